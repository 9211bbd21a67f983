"""Evaluations kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessella import checkpoint
from tessella.records import Evaluation, Precision


def store(run: Path, result: Evaluation, *, seed: int, precision: Precision = "float32") -> None:
    """Keep an evaluation on the run's own data, with how it was made and the step of the weights that it is about."""
    record = {**jsonable(result), "seed": seed, "precision": precision, "step": _step(run)}
    text = json.dumps(record, indent=2)
    checkpoint.write_atomic(run / f"evaluation-{result.split}.json", lambda path: path.write_text(text))


def stored(run: Path, split: str) -> Evaluation | None:
    """The evaluation that was kept, if there is one of the weights as they are now."""
    try:
        record = json.loads((run / f"evaluation-{split}.json").read_text())
        if record["step"] != _step(run):
            return None
        return Evaluation.from_json(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def jsonable(result: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON knows it: numbers that are not finite become null."""
    return json.loads(json.dumps(result.to_json()), parse_constant=lambda _: None)


def _step(run: Path) -> int | None:
    return checkpoint.read_tensors(run / checkpoint.MODEL).progress.get("step")
