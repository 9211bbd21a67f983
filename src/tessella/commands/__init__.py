"""What each command takes and does: a dataclass of options, and one function that runs it.

Most commands are tasks. PyTorch is imported by the functions, so that a command's help does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any


def command(name: str, args: Sequence[str] = ()) -> tuple[type, Callable[[Any], int]]:
    """The options of a command with such words, and the function that runs it.

    Raises:
        SpecError: if the words name no part, or an option of another part than they choose.
    """
    if name == "train":
        from tessella.commands.train import run_training, train_options

        return train_options(args), run_training
    if name == "fit-prior":
        from tessella.commands.prior import prior_options, run_fitting

        return prior_options(args), run_fitting
    if name == "completion":
        from tessella.commands.completion import completion_options

        return completion_options(), lambda _: 0  # what it prints is printed before options are parsed
    from tessella.commands.tasks import run_task, task_options
    from tessella.tasks.task import load_task

    task = load_task(name)
    return task_options(task), partial(run_task, task)
