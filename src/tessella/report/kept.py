"""Evaluations kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessella import checkpoint
from tessella.records import Evaluation, FidelityEvaluation, GapEvaluation, Precision

GAP = "gap.json"
FIDELITY = "fidelity.json"


def store(run: Path, result: Evaluation, *, seed: int, precision: Precision = "float32") -> None:
    """Keep an evaluation on the run's own data, with how it was made and the weights that it is about."""
    record = {**jsonable(result), "seed": seed, "precision": precision, **_weights(run)}
    text = json.dumps(record, indent=2)
    checkpoint.write_atomic(run / f"evaluation-{result.split}.json", lambda path: path.write_text(text))


def stored(run: Path, split: str) -> Evaluation | None:
    """The evaluation that was kept, if there is one of the weights as they are now."""
    try:
        record = json.loads((run / f"evaluation-{split}.json").read_text())
        if any(record.get(name) != now for name, now in _weights(run).items()):
            return None
        return Evaluation.from_json(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_fidelity(run: Path, result: FidelityEvaluation, *, seed: int) -> None:
    """Keep what was found of samples, with the seed and the weights that they were drawn with."""
    text = json.dumps({**jsonable(result), "seed": seed, **_weights(run)}, indent=2)
    checkpoint.write_atomic(run / FIDELITY, lambda path: path.write_text(text))


def stored_fidelity(run: Path, split: str) -> FidelityEvaluation | None:
    """What was kept of samples against that split, if it is of the weights as they are now."""
    try:
        record = json.loads((run / FIDELITY).read_text())
        if record.get("split") != split or any(record.get(name) != now for name, now in _weights(run).items()):
            return None
        return FidelityEvaluation.from_json(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_gap(run: Path, result: GapEvaluation, *, seed: int) -> None:
    """Keep the inference gap on the run's own data, with the weights that it is about."""
    text = json.dumps({**jsonable(result), "seed": seed, **_weights(run)}, indent=2)
    checkpoint.write_atomic(run / GAP, lambda path: path.write_text(text))


def stored_gap(run: Path) -> GapEvaluation | None:
    """The inference gap that was kept, if it is of the weights as they are now."""
    try:
        record = json.loads((run / GAP).read_text())
        if any(record.get(name) != now for name, now in _weights(run).items()):
            return None
        return GapEvaluation.from_json(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def jsonable(result: Evaluation | FidelityEvaluation | GapEvaluation) -> dict[str, Any]:
    """The evaluation as JSON knows it: numbers that are not finite become null."""
    return json.loads(json.dumps(result.to_json()), parse_constant=lambda _: None)


def _weights(run: Path) -> dict[str, Any]:
    """What names the weights of a run as they are now: its step, and the prior over its codes."""
    step = checkpoint.read_tensors(run / checkpoint.MODEL).progress.get("step")
    return {"step": step, "prior": checkpoint.prior_in_use(run)}
