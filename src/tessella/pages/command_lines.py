"""Shell commands for calls of tasks."""

from __future__ import annotations

import shlex
from typing import Any

from tessella.foundation.blocks import Call


def command_line(call: Call) -> str:
    """Return the shell command for a call of a task."""
    words = ["tessella", call.task, *map(str, call.arguments)]
    for name, value in call.options.items():
        if value is None or value is False:
            continue
        values = [] if value is True else list(value) if isinstance(value, list | tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(_text, values)]
    return shlex.join(words) + (f"  # {call.note}" if call.note else "")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
