"""Notes to the user: decisions about their data or run, one line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tessella.foundation.errors import in_python

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("notes", default=None)


def note(message: str) -> None:
    """Show the user a note of one line: to the listener of this context, else as a Python warning.

    Args:
        message: text; options and tasks are marked with `foundation.errors.option` and `task_name`.
    """
    listener = _listener.get()
    if listener is None:
        warnings.warn(in_python(message), stacklevel=3)
    else:
        listener(message)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Receive the notes of this context during the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
