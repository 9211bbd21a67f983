"""Run folders: written atomically, read without running anything that is stored.

spec.json            what was built, on which data
model.safetensors    the averaged weights: the model to use
state/last.safetensors   raw weights, optimizer and progress: enough to go on
metrics.jsonl, pictures/, report.html
results/NAME.json    what tasks found on the run's own data
codes.safetensors    the codes of the data, made once to fit priors on
priors/KIND/         a prior over the latents, fitted when the model stood still: a run of its own

A run may come from a stranger. What it says is checked before it is used (`validation`), what it asks for may not be
larger than its tensors (`tensors.built`), and nothing is read or written through a link that lies in it (`files`).
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
"""Bytes of `metrics.jsonl`: of some ten million steps."""
CODES, PRIORS = "codes.safetensors", "priors"
LOCK, HOLDER, REPLACED = ".lock", ".lock.json", ".replaced"
"""What a process that writes into a run holds it by, who that is, and a mark of a run that is being replaced."""


def prepare_run(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """An empty run folder at `out`, but for what this process holds it by.

    Raises:
        RunError: as of `check_place`, or if the folder cannot be made.
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
    """Whether a new run may begin in that folder. What a process leaves that was killed before it had begun, or while
    it was replacing a run, is in nobody's way.

    Raises:
        RunError: if something is there already and `overwrite` is not given, or it is not a run.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise RunError(f"{run} is not a folder: choose another place", code="not-a-folder")
    if (run / REPLACED).is_file() or all(_is_leftover(path) for path in run.iterdir()):
        return
    if not (run / SPEC).is_file():
        raise RunError(
            f"{run} is not a run of tessella (it has no {SPEC}), so it is not overwritten: choose another",
            code="not-a-run",
        )
    if not overwrite:
        raise RunError(
            f"{run} already exists: go on with {option('resume')}, replace it with {option('overwrite')}, or choose "
            "another",
            code="already-there",
        )


def _is_leftover(path: Path) -> bool:
    """Whether it may lie in a folder in which no run has begun: drafts, and what a run is held by."""
    return path.name in (LOCK, HOLDER) or (path.name.startswith(".") and path.name.endswith(".draft"))


def _clear(run: Path) -> None:
    """Empty the folder of a run that is replaced; when it is cut short, a mark says that all of it is to go."""
    there = [path for path in run.iterdir() if path.name not in (LOCK, HOLDER, REPLACED)]
    if not there and not (run / REPLACED).exists():
        return
    (run / REPLACED).unlink(missing_ok=True)  # it may be a link
    write_atomic(run / REPLACED, lambda draft: draft.touch())
    for path in sorted(there, key=lambda path: path.name != SPEC):  # first what makes a run of it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (run / REPLACED).unlink()


def write_spec(run: Path, spec: Spec) -> None:
    """Keep the specification of a run.

    Raises:
        RunError: if it is too large to be read again, or cannot be written.
    """
    text = spec.to_json()
    if len(text) > validation.MOST_BYTES:
        raise RunError(
            f"{run / SPEC} would have {len(text):,} bytes and may have {validation.MOST_BYTES:,}: give fewer columns",
            code="too-large",
        )
    write_atomic(run / SPEC, lambda path: path.write_text(text))


def read_spec(run: str | os.PathLike[str]) -> Spec:
    """The specification of a run.

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
    """The lines of `metrics.jsonl`; one that was cut off, or does not say what a line says, is left out.

    Raises:
        RunError: if it is no file of the run, or larger than any training makes it.
    """
    path = kept(run, METRICS)
    if not path.is_file():
        return []
    try:
        text = validation.read_bytes(path, MOST_METRICS).decode("utf-8", "replace")
    except (OSError, validation.Malformed) as error:
        what = f"{path} cannot be read ({error})"
        raise RunError(f"{what}: remove it, it holds nothing but the curves", code="damaged") from error
    return [record for line in text.splitlines() if (record := _noted(line)) is not None]


def _noted(line: str) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`; figures that were not finite are None."""
    try:
        record = json.loads(line, parse_constant=lambda _: None) if len(line) < validation.LONGEST else None
        validation.fitted(dict[str, float | str | None], record)
        progress: _Noted = validation.fitted(_Noted, record, others=True)
    except (ValueError, RecursionError):
        return None
    return record if progress.step >= 0 and progress.seconds >= 0 else None


@dataclass(frozen=True)
class _Noted:
    """What each line of `metrics.jsonl` says."""

    kind: str
    step: int
    seconds: float


def build(run: str | os.PathLike[str], spec: Spec | None = None) -> Model:
    """The model of a run with fresh weights, unless it would be much larger than the weights that the run holds.

    Args:
        spec: the run's specification, if it was read before.

    Raises:
        RunError: if the run is missing, damaged, or its specification and its weights do not belong together.
    """
    spec = spec or read_spec(run)
    known = [name for name in (MODEL, STATE) if kept(run, name).exists()]
    header = read_header(kept(run, known[0])) if known else None
    model: Model = built(spec.build, header, of=Path(run) / SPEC, options=sizes(spec.config))
    return model


def fingerprint(run: str | os.PathLike[str]) -> str:
    """12 hexadecimal digits that name the weights of a run: what their codes are codes of.

    Raises:
        RunError: if there are no weights.
    """
    try:
        return read_header(kept(run, MODEL)).digest[:12]
    except RunError as error:
        what = f"{Path(run) / MODEL} is missing or damaged"
        raise RunError(f"{what}: train the run first", code="no-weights") from error


def sizes(config: Config | None) -> dict[str, int]:
    """Those options of a part and of the parts it holds that say how many or how wide parts are."""
    others = ("iwae_samples", "grid_size", "codebook_size")
    values = {} if config is None else config.values()
    found = {name: value for name, value in values.items() if type(value) is int and name not in others}
    for value in values.values():
        found |= sizes(value) if isinstance(value, Config) else {}
    return found
