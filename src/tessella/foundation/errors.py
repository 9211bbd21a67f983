"""Errors caused by the user's input, with messages of one line.

Each message says what is wrong, where, and what to do. The command line prints it and exits with status 2; any other
exception is a bug of the package.

    raise SpecError(f"{option('count')} must be at least 1, got {n}", code="out-of-range", option="count")

Below the command line, code marks options and tasks with `option` and `task_name`: Python shows `count`, the command
line a flag.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_MARK = re.compile("\ue000([^\ue001\ue002]*)\ue002([^\ue000\ue001]*)\ue001")


def option(name: str) -> str:
    """Mark an option of a config in a message: Python shows its name, the command line a flag."""
    return f"\ue000option\ue002{name}\ue001"


def task_name(name: str, arguments: str = "") -> str:
    """Mark a task in a message: Python shows its name, the command line a command with the arguments."""
    return f"\ue000task\ue002{name} {arguments}".rstrip() + "\ue001"


def in_python(text: str) -> str:
    """Replace marked options and tasks in a message with Python names."""
    return _worded(text, lambda name: name, lambda words: words.split(" ")[0].replace("-", "_"))


def on_command_line(text: str) -> str:
    """Replace marked options and tasks in a message with flags and commands."""
    return _worded(text, lambda name: f"--{name.replace('_', '-')}", lambda words: f"tessella {words}")


def _worded(text: str, option: Callable[[str], str], task: Callable[[str], str]) -> str:
    """Replace the marks of a message, inner marks first."""
    while text != (text := _MARK.sub(lambda m: (option if m[1] == "option" else task)(m[2]), text)):
        pass
    return text


class TessellaError(Exception):
    """Error that the user can correct, with a message of one line.

    Args:
        message: what is wrong, where, and what to do; options and tasks are marked with `option` and `task_name`.
        code: stable identifier of the error; by default that of the class.
        parameters: values used in the message.
    """

    default_code = "error"

    def __init__(self, message: str, code: str = "", **parameters: Any) -> None:
        super().__init__(message)
        self.message, self.code, self.parameters = message, code or self.default_code, parameters

    def __str__(self) -> str:
        return in_python(self.message)


class DataError(TessellaError):
    """Error: the data cannot be read, or does not fit the request."""

    default_code = "data"


class SpecError(TessellaError):
    """Error: the requested parts do not fit together, or do not fit the data."""

    default_code = "spec"


class RunError(TessellaError):
    """Error: a run folder is missing, occupied, damaged, or from a newer version."""

    default_code = "run"


class TrainingError(TessellaError):
    """Error: training cannot continue."""

    default_code = "training"
