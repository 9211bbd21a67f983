"""The processes that train together, be it one, and the run that the first of them writes."""

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
from tessella.core.device import resolve
from tessella.data.raw import shown
from tessella.foundation.errors import RunError, SpecError, option
from tessella.foundation.files import place, write_atomic
from tessella.models.spec import TrainOptions
from tessella.training import ranks
from tessella.training.checkpoint import HOLDER, LOCK


@contextmanager
def together(options: TrainOptions, facts: Mapping[str, Any] | None = None) -> Iterator[Accelerator]:
    """The processes that train together, be it one; during the block each ends when another one is lost.

    Args:
        facts: what all of them must be started with, by name.

    Raises:
        TrainingError: if one was started with something else.
        SpecError: if a tracker that is asked for is not known or not installed.
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
    """As `together`, for a run that the first of the processes then holds."""
    with together(options, facts) as accelerator, held(run) if accelerator.is_main_process else nullcontext():
        yield accelerator


def accelerated(asked: str | None = None) -> Accelerator:
    """The processes that train together, be it one, on the device asked for.

    They part in order when Python ends, or it may abort. Of several processes each has a device of its own, of that
    kind.

    Raises:
        SpecError: if there is no such device.
    """
    device = resolve(asked)
    several = ranks.world() > 1
    # The backend never gives one up: a process may take long over what the others wait for. `ranks` knows better.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=several and device.type == "cpu", kwargs_handlers=[patient])
    if not several:  # accelerate would choose by itself, and for all trainings of a process the same
        accelerator.state.device = device  # pyright: ignore[reportAttributeAccessIssue]
    atexit.unregister(_part)
    atexit.register(_part)
    return accelerator


def check_trackers(names: str) -> list[str]:
    """Split the names of trackers, `a,b`, and check that each is installed.

    Raises:
        SpecError: if one is not known, or its package is missing.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known, there = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in asked:
        if name not in known:
            raise SpecError(
                f"no tracker is called {name!r}; there are {', '.join(known)}", "unknown-tracker", name=name
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
    """Start the trackers of a run, whose files, if they keep some, lie in folders of the run.

    Args:
        step: that the run goes on from.
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
"""Characters of a command line that are told of."""
_held: set[Path] = set()
"""What this process holds."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's folder until the block ends; a folder that is made for it and stays empty goes again.

    A process that holds it already goes on holding it.

    Raises:
        RunError: if another process holds it, naming that, or the folder cannot be written.
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
    """Who holds a run, in words, as far as that is known."""
    try:
        with open(os.open(run / HOLDER, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), encoding="utf-8") as file:
            who = json.loads(file.read(4096))
        since = datetime.fromisoformat(who["since"]).astimezone()
        day = "" if since.date() == datetime.now().astimezone().date() else f"{since:%Y-%m-%d} "
        process, host, command = int(who["process"]), shown(str(who["host"])), shown(str(who["command"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {process} on {host} since {day}{since:%H:%M} ({command})"
