"""What each command takes and does: a dataclass of options, and one function that runs it.

PyTorch is imported by the functions, so that a command's help does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tessella.commands import (
    demo,
    detect,
    measure,
    prior,
    tasks,
    train,
)
from tessella.commands.train import Train
from tessella.tasks.task import load_task

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "data": (train.ShowData, train.show_data),
    "train": (train.Train, train.train),
    "prior": (prior.Prior, prior.prior),
    "detect": (detect.Detect, detect.detect),
    "report": (measure.Report, measure.report),
    "demo": (demo.Demo, demo.demo),
}


def command(name: str) -> tuple[type, Callable[[Any], int]]:
    """The options of a command, and the function that runs it: of a task, or of `COMMANDS`."""
    if name in COMMANDS:
        return COMMANDS[name]
    task = load_task(name)
    return tasks.options_of(task), partial(tasks.run_task, task)


__all__ = ["COMMANDS", "Train", "command"]
