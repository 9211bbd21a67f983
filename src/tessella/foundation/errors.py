"""What goes wrong because of the user's input, said in one line.

Every message says what is wrong, where, and what to do. The command line prints it and exits with status 2;
any other exception is a defect of the package.

    raise SpecError(f"{option('count')} must be at least 1, got {n}", code="out-of-range", option="count")

Code below the faces names options and tasks by `option` and `task_name`: Python reads `count`, the command line a flag.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_MARK = re.compile("\ue000([^\ue001\ue002]*)\ue002([^\ue000\ue001]*)\ue001")


def option(name: str) -> str:
    """Name an option of a config in a message; each face words it its own way."""
    return f"\ue000option\ue002{name}\ue001"


def task_name(name: str, arguments: str = "") -> str:
    """Name a task in a message, with its arguments, options among them by `option`; each face words it its own way."""
    return f"\ue000task\ue002{name} {arguments}".rstrip() + "\ue001"


def in_python(text: str) -> str:
    """Word the options and tasks of a message as Python names."""
    return _worded(text, lambda name: name, lambda words: words.split(" ")[0].replace("-", "_"))


def on_command_line(text: str) -> str:
    """Word the options and tasks of a message as flags and commands."""
    return _worded(text, lambda name: f"--{name.replace('_', '-')}", lambda words: f"tessella {words}")


def _worded(text: str, option: Callable[[str], str], task: Callable[[str], str]) -> str:
    """Replace the marks of a message, those within others first."""
    while text != (text := _MARK.sub(lambda m: (option if m[1] == "option" else task)(m[2]), text)):
        pass
    return text


class TessellaError(Exception):
    """A mistake that the user can mend. The message is one line.

    Args:
        message: what is wrong, where, and what to do; options and tasks named by `option` and `task_name`.
        code: a short name of the mistake that does not change with its wording; by default the class's.
        parameters: the values that the message is made of.
    """

    default_code = "error"

    def __init__(self, message: str, code: str = "", **parameters: Any) -> None:
        super().__init__(message)
        self.message, self.code, self.parameters = message, code or self.default_code, parameters

    def __str__(self) -> str:
        return in_python(self.message)


class DataError(TessellaError):
    """The data cannot be read, or does not fit what is asked of it."""

    default_code = "data"


class SpecError(TessellaError):
    """The parts that were asked for do not fit together, or do not fit the data."""

    default_code = "spec"


class RunError(TessellaError):
    """A run folder cannot be used: it is missing, occupied, damaged, or from a newer version."""

    default_code = "run"


class TrainingError(TessellaError):
    """Training cannot go on."""

    default_code = "training"
