"""Evaluations kept with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessella import checkpoint
from tessella.records import Evaluation, Precision


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


def jsonable(result: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON knows it: numbers that are not finite become null."""
    return json.loads(json.dumps(result.to_json()), parse_constant=lambda _: None)


def _weights(run: Path) -> dict[str, Any]:
    """What names the weights of a run as they are now: its step, and the prior over its codes."""
    step = checkpoint.read_tensors(run / checkpoint.MODEL).progress.get("step")
    return {"step": step, "prior": checkpoint.prior_in_use(run)}
