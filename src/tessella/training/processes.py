"""Distributed training: one or several processes, trackers, and the lock on the run folder."""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType
from filelock import FileLock, Timeout
from torch import distributed

import tessella
from tessella.core.device import resolve_device
from tessella.foundation.errors import RunError, SpecError, option
from tessella.foundation.files import place, write_atomic
from tessella.foundation.text import shown
from tessella.models.spec import TrainOptions
from tessella.training import ranks
from tessella.training.checkpoint import HOLDER, LOCK


@contextmanager
def together(options: TrainOptions, facts: Mapping[str, Any] | None = None) -> Iterator[Accelerator]:
    """Join the processes of a training (one or several). If one is lost, the others end.

    Args:
        facts: options that must be equal in all processes, by name.

    Raises:
        TrainingError: if they differ.
        SpecError: if a tracker is unknown or not installed.
    """
    check_trackers(options.track)
    with ranks.joining(options.rank_timeout):
        accelerator = accelerated(options.device)
    if accelerator.num_processes == 1:
        yield accelerator
        return
    with ranks.watched(options.rank_timeout, accelerator.device):
        versions = {"tessella": tessella.__version__, "torch": torch.__version__}
        ranks.agree({**versions, **(facts or {})}, accelerator.device)
        yield accelerator


@contextmanager
def writing(run: Path, options: TrainOptions, facts: Mapping[str, Any]) -> Iterator[Accelerator]:
    """Join the processes of a training, and lock the run folder in process 0."""
    with together(options, facts) as accelerator, held(run) if accelerator.is_main_process else nullcontext():
        yield accelerator


def accelerated(asked: str | None = None) -> Accelerator:
    """Make the `Accelerator` of this process on the requested device.

    Each of several processes has its own device of this kind. The process group is closed when Python exits, because it
    may abort otherwise.

    Raises:
        SpecError: if there is no such device.
    """
    device = resolve_device(asked)
    several = ranks.world() > 1
    # A very long timeout: a process may work long while the others wait; `ranks` detects lost processes instead.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=several and device.type == "cpu", kwargs_handlers=[patient])
    if not several:  # accelerate would choose the device itself, the same for all trainings of a process
        accelerator.state.device = device  # pyright: ignore[reportAttributeAccessIssue]
    atexit.unregister(_part)
    atexit.register(_part)
    return accelerator


def check_trackers(names: str) -> list[str]:
    """Split a list of tracker names `a,b`, and check that each is installed.

    Raises:
        SpecError: if a tracker is unknown, or its package is missing.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known, there = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in asked:
        if name not in known:
            raise SpecError(
                f"no tracker is called {name!r}; there are: {', '.join(known)}", "unknown-tracker", name=name
            )
        if name not in there:
            package = "'tessella[tensorboard]'" if name == "tensorboard" else name.replace("_", "-")
            raise SpecError(
                f"the tracker {name} is not installed: pip install {package}, or leave it out of {option('track')}",
                "tracker-not-installed",
                name=name,
            )
    return asked


def started_trackers(accelerator: Accelerator, names: str, run: Path, step: int) -> list[GeneralTracker]:
    """Start the trackers of a run; their files are written below the run folder.

    Args:
        step: step from which the run is resumed; 0 for a new run.
    """
    asked = check_trackers(names)
    if not asked:
        return []
    accelerator.project_configuration.set_directories(str(place(run, "trackers/events").parent))
    accelerator.log_with = list[Any](map(LoggerType, asked))
    accelerator.init_trackers(run.name or "run", init_kwargs={"tensorboard": {"purge_step": step}} if step else {})
    return list(accelerator.trackers)


def _part() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


LONGEST = 60
"""Characters of a command line that are shown in messages."""
_held: set[Path] = set()
"""Run folders that this process has locked."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Lock a run folder until the block ends. Remove the folder if it was made here and stays empty.

    A second lock by the same process does nothing.

    Raises:
        RunError: if another process has locked it, or the folder cannot be written.
    """
    place = Path(os.path.abspath(run))
    if place in _held:
        yield
        return
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    lock = FileLock(place / LOCK, timeout=0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        holder = _holder(place)
        raise RunError(f"{run} is in use by {holder}; wait for it, or choose another folder", code="in-use") from None
    except OSError as error:
        where = error.filename or place
        what = f"{shown(str(where))} cannot be written ({error.strerror})"
        raise RunError(f"{what}: choose another folder", code="not-writable") from error
    _held.add(place)
    try:
        write_atomic(place / HOLDER, lambda draft: draft.write_text(json.dumps(_self())))
        yield
    finally:
        _held.discard(place)
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (place / name).unlink()
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _self() -> dict[str, str | int]:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command if len(command) <= LONGEST else f"{command[: LONGEST - 4]} ...",
    }


def _holder(run: Path) -> str:
    """Describe the process that has locked a run, as far as it is known."""
    try:
        with open(os.open(run / HOLDER, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), encoding="utf-8") as file:
            who = json.loads(file.read(4096))
        since = datetime.fromisoformat(who["since"]).astimezone()
        day = "" if since.date() == datetime.now().astimezone().date() else f"{since:%Y-%m-%d} "
        process, host, command = int(who["process"]), shown(str(who["host"])), shown(str(who["command"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {process} on {host} since {day}{since:%H:%M} ({command})"
