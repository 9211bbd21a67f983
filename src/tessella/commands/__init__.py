"""What each command takes and does: a dataclass of options, and one function that runs it.

PyTorch is imported by the functions, so that a command's help does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tessella.commands import (
    prior,
    tasks,
    train,
)
from tessella.commands.train import Train
from tessella.tasks.task import load_task

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "data": (train.ShowData, train.show_data),
}


DEPENDENT: dict[str, tuple[Callable[[Sequence[str]], type], Callable[[Any], int]]] = {
    "train": (train.options_of, train.train),
    "fit-prior": (prior.options_of, prior.fit_prior),
}
"""Commands whose options depend on what the command line chooses."""


def command(name: str, args: Sequence[str] = ()) -> tuple[type, Callable[[Any], int]]:
    """The options of a command with such words, and the function that runs it.

    Raises:
        SpecError: if the words name no part, or an option of another part than they choose.
    """
    if name in DEPENDENT:
        options_of, run = DEPENDENT[name]
        return options_of(args), run
    if name in COMMANDS:
        return COMMANDS[name]
    task = load_task(name)
    return tasks.options_of(task), partial(tasks.run_task, task)


__all__ = ["COMMANDS", "Train", "command"]
