"""The processes that train together, be it one, and the run that the first of them writes.

Imports beside it: lock, ranks.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType
from torch import distributed

import tessella
from tessella.core.device import resolve
from tessella.foundation.errors import SpecError, option
from tessella.foundation.files import place
from tessella.models.spec import TrainOptions
from tessella.training import ranks
from tessella.training.lock import held


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
