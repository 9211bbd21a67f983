"""Run folders: written atomically, read without running anything that is stored.

spec.json            what was built, on which data
model.safetensors    the averaged weights: the model to use
state/last.safetensors   raw weights, optimizer and progress: enough to go on
metrics.jsonl, tensorboard/, pictures/, report.html
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tessella.errors import RunError
from tessella.models.model import Model
from tessella.spec import Spec

SPEC, MODEL, STATE, METRICS = "spec.json", "model.safetensors", "state/last.safetensors", "metrics.jsonl"


@dataclass(frozen=True)
class State:
    """Tensors by name, and the numbers that go with them."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def prepare_run(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """An empty run folder at `out`.

    Raises:
        RunError: if something is there already and `overwrite` is not given, or the folder cannot be made.
    """
    run = Path(out)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not overwrite:
            raise RunError(f"{run} already exists: go on with --resume, replace it with --overwrite, or choose another")
        if run.is_dir() and not (run / SPEC).is_file():
            raise RunError(
                f"{run} is not a run of tessella (it has no {SPEC}), so it is not overwritten: choose another"
            )
        shutil.rmtree(run) if run.is_dir() else run.unlink()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run} cannot be made ({error.strerror}): choose another folder") from error
    return run


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place; a reader sees the old or the new whole.

    Raises:
        RunError: if the disk is full or the folder cannot be written; what was there stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        mode = draft.stat().st_mode  # some writers close their files to others
        write(draft)
        draft.chmod(mode)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise RunError(f"{path} cannot be saved: {reason}; what was saved before is untouched") from error


def write_spec(run: Path, spec: Spec) -> None:
    write_atomic(run / SPEC, lambda path: path.write_text(spec.to_json()))


def read_spec(run: str | os.PathLike[str]) -> Spec:
    """The specification of a run.

    Raises:
        RunError: if `run` is not a run folder, or its specification is damaged or newer than this package.
    """
    path = Path(run) / SPEC
    if not path.is_file():
        raise RunError(f"{run} is not a run of tessella: it has no {SPEC}")
    try:
        return Spec.from_json(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not a specification that tessella wrote ({error.reason})") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Tensors and numbers as one safetensors file that carries its own checksum."""
    plain = {name: t.detach().to("cpu", copy=False).contiguous() for name, t in tensors.items()}
    note = {"progress": json.dumps(progress), "sha256": _digest(plain)}
    write_atomic(path, lambda draft: save_file(plain, draft, note))


def read_tensors(path: Path) -> State:
    """What `write_tensors` wrote.

    Raises:
        RunError: if the file is missing, truncated, or not what was written.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing: the run was stopped before its first checkpoint; start it again")
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress = json.loads(note["progress"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} is damaged ({' '.join(str(error).split())}): copy it anew or train again") from error
    if note.get("sha256") != _digest(tensors):
        raise RunError(f"{path} is damaged (its checksum does not match): copy it anew or train again")
    return State(tensors, progress)


def load(run: str | os.PathLike[str], *, device: str | torch.device = "cpu", into: Model | None = None) -> Model:
    """The trained model of a run: averaged weights, evaluation mode.

    Args:
        into: a model to load the weights into, for a composition of your own that the catalogue does not know.

    Raises:
        RunError: if the run is missing, damaged, from a newer version, or its weights do not fit its specification.
    """
    spec = read_spec(run)
    path = Path(run) / MODEL
    weights = read_tensors(path).tensors
    model = into or spec.build()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path} does not fit {SPEC} beside it: one of them is from another run") from error
    return model.to(device).eval()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
