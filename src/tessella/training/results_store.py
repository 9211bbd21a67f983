"""Evaluations kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from tessella.core.schema import Precision
from tessella.evaluation.results import Evaluation, FidelityEvaluation, GapEvaluation
from tessella.foundation.notes import note
from tessella.foundation.validation import Malformed, read_json
from tessella.training import checkpoint

GAP = "gap.json"
FIDELITY = "fidelity.json"
R = TypeVar("R", Evaluation, FidelityEvaluation, GapEvaluation)


def store(run: Path, result: Evaluation, *, seed: int, precision: Precision = "float32") -> None:
    """Keep an evaluation on the run's own data, with how it was made and the weights that it is about."""
    _write(run, f"evaluation-{result.split}.json", {**jsonable(result), "seed": seed, "precision": precision})


def stored(run: Path, split: str) -> Evaluation | None:
    """The evaluation that was kept, if there is one of the weights as they are now."""
    return _read(run, f"evaluation-{split}.json", Evaluation, split)


def store_fidelity(run: Path, result: FidelityEvaluation, *, seed: int) -> None:
    """Keep what was found of samples, with the seed and the weights that they were drawn with."""
    _write(run, FIDELITY, {**jsonable(result), "seed": seed})


def stored_fidelity(run: Path, split: str) -> FidelityEvaluation | None:
    """What was kept of samples against that split, if it is of the weights as they are now."""
    return _read(run, FIDELITY, FidelityEvaluation, split)


def store_gap(run: Path, result: GapEvaluation, *, seed: int) -> None:
    """Keep the inference gap on the run's own data, with the weights that it is about."""
    _write(run, GAP, {**jsonable(result), "seed": seed})


def stored_gap(run: Path) -> GapEvaluation | None:
    """The inference gap that was kept, if it is of the weights as they are now."""
    return _read(run, GAP, GapEvaluation, None)


def jsonable(result: Evaluation | FidelityEvaluation | GapEvaluation) -> dict[str, Any]:
    """The evaluation as JSON knows it: numbers that are not finite become null."""
    return json.loads(json.dumps(result.to_json()), parse_constant=lambda _: None)


def _write(run: Path, name: str, record: dict[str, Any]) -> None:
    text = json.dumps({**record, **_weights(run)}, indent=2)
    checkpoint.write_atomic(run / name, lambda path: path.write_text(text))


def _read(run: Path, name: str, kind: type[R], split: str | None) -> R | None:
    """What was kept, if it is of that split and the weights as they are now; damaged it is as if it were not there."""
    path = checkpoint.kept(run, name)
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        about = record if isinstance(record, dict) else {}
        if any(about.get(key) != now for key, now in _weights(run).items()):
            return None
        found = kind.from_json(record)
        if split is not None and found.split != split:
            raise Malformed(f"it is of the split {found.split[:40]!r}")
        return found
    except (OSError, Malformed) as error:
        note(f"{path} is passed over, as it is damaged or was edited ({error})")
        return None


def _weights(run: Path) -> dict[str, Any]:
    """What names the weights of a run as they are now: its step, and the prior over its codes."""
    step = checkpoint.read_header(run / checkpoint.MODEL).progress.get("step")
    return {"step": step, "prior": checkpoint.prior_in_use(run)}
