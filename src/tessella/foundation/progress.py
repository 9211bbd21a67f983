"""Ambient progress: loops report their progress, and the caller may show it or cancel the work.

    for batch in track(batches, "scoring"): ...

A loop inside a tracked loop refines the progress of the outer loop; only the phase of the outermost loop is shown.
Without `reporting` around it, `track` costs almost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from threading import Event
from typing import TypeVar, final

from tessella.foundation.errors import TessellaError

T = TypeVar("T")


class Cancelled(TessellaError):
    """Error: the caller cancelled the work."""


@dataclass(frozen=True)
class Progress:
    """Progress of some work.

    Attributes:
        phase: current activity as a participle, for example "scoring".
        done, total: items of the outermost loop, with fractions; `total` is None if unknown.
        detail: text of the innermost loop that has one, for example metrics.
        left: seconds left, of work that has a time budget; None if it must be estimated.
    """

    phase: str
    done: float
    total: float | None
    detail: str = ""
    left: float | None = None


Report = Callable[[Progress], None]


@final
class _Listener:
    """Receiver of progress, with the running loops, outermost first."""

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
        self._report(Progress(outer.phase, outer.done + part, outer.total, detail, outer.left))


@final
class _Loop:
    def __init__(self, phase: str, total: float | None) -> None:
        self.phase, self.total, self.done, self.detail = phase, total, 0.0, ""
        self.left: float | None = None


_listener: ContextVar[_Listener | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(report: Report, cancel: Event | None = None) -> Iterator[None]:
    """Receive the progress of all tracked loops in this context.

    Args:
        report: called at the start of a loop and after each of its items.
        cancel: event; once it is set, the next item of each tracked loop raises `Cancelled`.
    """
    token: Token[_Listener | None] = _listener.set(_Listener(report, cancel))
    try:
        yield
    finally:
        _listener.reset(token)


def track(items: Iterable[T], phase: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items, and report the number of finished items.

    Args:
        phase: activity as a participle, for example "scoring".
        total: number of items, if `items` has no length.

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
    """Report progress of work without a loop over items, by calls of the yielded `advance(by=1, detail="", left=None)`.

    Raises:
        Cancelled: if the work was cancelled.
    """
    listener = _listener.get()
    if listener is None:
        yield lambda by=1, detail="", left=None: None
        return
    loop = _Loop(phase, total)
    listener.loops.append(loop)

    def advance(by: float = 1, detail: str = "", left: float | None = None) -> None:
        loop.done, loop.detail, loop.left = loop.done + by, detail, left
        listener.tell()

    try:
        listener.tell()
        yield advance
    finally:
        if loop in listener.loops:
            listener.loops.remove(loop)
