"""Ambient progress: loops tell how far they are, and whoever started the work may show it or cancel it.

    for batch in track(batches, "scoring"): ...

A loop within a tracked loop refines the outer one's progress; only the outermost has a phase that is shown. Without
`reporting` around it, `track` costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass
from threading import Event
from typing import ParamSpec, TypeVar, final

from tessella.foundation.errors import TessellaError

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class Cancelled(TessellaError):
    """The work was cancelled by whoever started it."""


@dataclass(frozen=True)
class Progress:
    """State of a piece of work.

    Attributes:
        phase: what is done now, as a participle: "scoring".
        done, total: in units of the outermost loop; parts of one count. `total` is None where nobody knows it.
        detail: what the innermost loop that has details says besides, such as figures.
    """

    phase: str
    done: float
    total: float | None
    detail: str = ""


Report = Callable[[Progress], None]


@final
class _Listener:
    """Receives progress, and holds the loops that are under way, the outermost first."""

    def __init__(self, report: Report, cancel: Event | None) -> None:
        self._report, self._cancel = report, cancel
        self.loops: list[_Loop] = []

    def tell(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("cancelled")
        outer, part = self.loops[0], 0.0
        for loop in reversed(self.loops[1:]):
            part = min((loop.done + part) / loop.total, 1.0) if loop.total else 0.0
        detail = next((loop.detail for loop in reversed(self.loops) if loop.detail), "")
        self._report(Progress(outer.phase, outer.done + part, outer.total, detail))


@final
class _Loop:
    def __init__(self, phase: str, total: float | None) -> None:
        self.phase, self.total, self.done, self.detail = phase, total, 0.0, ""


_listener: ContextVar[_Listener | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(report: Report, cancel: Event | None = None) -> Iterator[None]:
    """Receive the progress of all tracked loops in this context.

    Args:
        report: called at the start of a loop, after each of its items, and at its end.
        cancel: once it is set, the next item of any tracked loop raises `Cancelled`.
    """
    token: Token[_Listener | None] = _listener.set(_Listener(report, cancel))
    try:
        yield
    finally:
        _listener.reset(token)


def track(items: Iterable[T], phase: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items and report how many are done.

    Args:
        phase: what is done to them, as a participle.
        total: how many there are, if `items` has no length.

    Raises:
        Cancelled: if the work was cancelled.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    with tracking(phase, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def tracking(phase: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """Report work that is no loop over items: yields `advance(by=1, detail="")`.

    Raises:
        Cancelled: if the work was cancelled.
    """
    listener = _listener.get()
    if listener is None:
        yield lambda by=1, detail="": None
        return
    loop = _Loop(phase, total)
    listener.loops.append(loop)

    def advance(by: float = 1, detail: str = "") -> None:
        loop.done, loop.detail = loop.done + by, detail
        listener.tell()

    try:
        listener.tell()
        yield advance
    finally:
        if loop in listener.loops:
            listener.loops.remove(loop)


def in_context(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that another thread runs report to, and be cancelled by, the context of now."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return run
