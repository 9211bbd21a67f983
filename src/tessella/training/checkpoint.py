"""Run folders: written atomically, read without executing stored code.

spec.json            specification of the model and the data
model.safetensors    averaged weights, for use
state/last.safetensors   raw weights, optimizer and progress, to resume from
metrics.jsonl, pictures/, report.html
results/NAME.json    results of tasks on the run's own data
codes.safetensors    codes of the data, stored to fit priors on
priors/KIND/         prior fitted on the latents of the trained model, a run folder of its own

A run may come from a stranger. Its records are checked before use (`validation`), its model may not be larger than its
tensors (`tensors.built`), and links in it are not followed to other places (`files`).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.core.tensors import built, read_header
from tessella.foundation import validation
from tessella.foundation.config import Config
from tessella.foundation.errors import RunError, option
from tessella.foundation.files import kept, write_atomic
from tessella.models.base import Model
from tessella.models.spec import Spec

SPEC, MODEL, STATE, METRICS = "spec.json", "model.safetensors", "state/last.safetensors", "metrics.jsonl"
MOST_METRICS = 1 << 26
"""Largest size of `metrics.jsonl` in bytes, enough for about ten million steps."""
CODES, PRIORS = "codes.safetensors", "priors"
LOCK, HOLDER, REPLACED = ".lock", ".lock.json", ".replaced"
"""Lock file of the process that writes into a run, description of this process, and mark of a run being replaced."""


def prepare_run(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Make an empty run folder at `out`, which keeps only this process's lock.

    Raises:
        RunError: if `check_place` refuses the folder, or it cannot be made.
    """
    run = Path(out)
    check_place(run, overwrite=overwrite)
    try:
        run.mkdir(parents=True, exist_ok=True)
        _clear(run)
    except OSError as error:
        why = f"{run} cannot be made ({error.strerror})"
        raise RunError(f"{why}: choose another folder", code="not-writable") from error
    return run


def check_place(run: Path, *, overwrite: bool = False) -> None:
    """Check that a new run may begin in a folder. Remains of a killed process do not matter.

    Raises:
        RunError: if the folder holds a run and `overwrite` is false, or holds something else.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise RunError(f"{run} is not a folder: choose another place", code="not-a-folder")
    if (run / REPLACED).is_file() or all(_is_leftover(path) for path in run.iterdir()):
        return
    if not (run / SPEC).is_file():
        raise RunError(
            f"{run} is not a run of tessella (it has no {SPEC}), so it is not overwritten: choose another folder",
            code="not-a-run",
        )
    if not overwrite:
        raise RunError(
            f"{run} already exists: continue it with {option('resume')}, replace it with {option('overwrite')}, or "
            "choose another folder",
            code="already-there",
        )


def _is_leftover(path: Path) -> bool:
    """Return whether a file may be in a folder without a run: a draft or a lock."""
    return path.name in (LOCK, HOLDER) or (path.name.startswith(".") and path.name.endswith(".draft"))


def _clear(run: Path) -> None:
    """Empty the folder of a run to replace. A mark in it lets an interrupted replacement be completed."""
    there = [path for path in run.iterdir() if path.name not in (LOCK, HOLDER, REPLACED)]
    if not there and not (run / REPLACED).exists():
        return
    (run / REPLACED).unlink(missing_ok=True)  # it may be a link
    write_atomic(run / REPLACED, lambda draft: draft.touch())
    for path in sorted(there, key=lambda path: path.name != SPEC):  # the specification first: then it is not a run
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (run / REPLACED).unlink()


def write_spec(run: Path, spec: Spec) -> None:
    """Write the specification of a run.

    Raises:
        RunError: if it is too large to be read, or cannot be written.
    """
    text = spec.to_json()
    if len(text) > validation.MOST_BYTES:
        raise RunError(
            f"{run / SPEC} would have {len(text):,} bytes, more than {validation.MOST_BYTES:,}: give fewer columns",
            code="too-large",
        )
    write_atomic(run / SPEC, lambda path: path.write_text(text))


def read_spec(run: str | os.PathLike[str]) -> Spec:
    """Read the specification of a run.

    Raises:
        RunError: if `run` is not a run folder, or its specification is damaged or newer than this package.
    """
    path = kept(run, SPEC)
    if not path.is_file():
        raise RunError(f"{run} is not a run of tessella: it has no {SPEC}", code="not-a-run")
    try:
        return Spec.from_json(validation.read_bytes(path).decode("utf-8"), str(path))
    except (UnicodeDecodeError, validation.Malformed) as error:
        why = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise RunError(f"{path} is not a specification that tessella wrote ({why})", code="damaged") from error


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of `metrics.jsonl`; incomplete or malformed lines are skipped.

    Raises:
        RunError: if it cannot be read, or is larger than a training makes it.
    """
    path = kept(run, METRICS)
    if not path.is_file():
        return []
    try:
        text = validation.read_bytes(path, MOST_METRICS).decode("utf-8", "replace")
    except (OSError, validation.Malformed) as error:
        what = f"{path} cannot be read ({error})"
        raise RunError(f"{what}: remove it; only the training curves are lost", code="damaged") from error
    return [record for line in text.splitlines() if (record := _noted(line)) is not None]


def _noted(line: str) -> dict[str, Any] | None:
    """Parse a line of `metrics.jsonl`, with None for metrics that are not finite; None if it is malformed."""
    try:
        record = json.loads(line, parse_constant=lambda _: None) if len(line) < validation.LONGEST else None
        validation.fitted(dict[str, float | str | None], record)
        progress: _Noted = validation.fitted(_Noted, record, others=True)
    except (ValueError, RecursionError):
        return None
    return record if progress.step >= 0 and progress.seconds >= 0 else None


@dataclass(frozen=True)
class _Noted:
    """Fields that each line of `metrics.jsonl` has."""

    kind: str
    step: int
    seconds: float


def build(run: str | os.PathLike[str], spec: Spec | None = None) -> Model:
    """Build the model of a run with fresh weights.

    Args:
        spec: specification of the run, if it was read before.

    Raises:
        RunError: if the run is missing or damaged, or the model is much larger than the run's weights.
    """
    spec = spec or read_spec(run)
    known = [name for name in (MODEL, STATE) if kept(run, name).exists()]
    header = read_header(kept(run, known[0])) if known else None
    model: Model = built(spec.build, header, of=Path(run) / SPEC, options=sizes(spec.config))
    return model


def fingerprint(run: str | os.PathLike[str]) -> str:
    """Compute the fingerprint of a run's weights, 12 hexadecimal digits.

    Raises:
        RunError: if the run has no weights.
    """
    try:
        return read_header(kept(run, MODEL)).digest[:12]
    except RunError as error:
        what = f"{Path(run) / MODEL} is missing or damaged"
        raise RunError(f"{what}: train the run first", code="no-weights") from error


def sizes(config: Config | None) -> dict[str, int]:
    """Return the integer options of a part and its nested parts that set network sizes."""
    others = ("iwae_samples", "grid_size", "codebook_size")
    values = {} if config is None else config.values()
    found = {name: value for name, value in values.items() if type(value) is int and name not in others}
    for value in values.values():
        found |= sizes(value) if isinstance(value, Config) else {}
    return found
