"""Renders charts as SVG shapes; the page's style sets the colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from tessella.foundation.blocks import Chart, Series

COLOURS = 6
"""Number of colours for series, `c0` to `c5` in the page's style; further series reuse them."""
DOTTED, OUTLINED, THINNED = 20, 256, 600
"""Most points of a line with dots, most bars without a common outline, most points of a line."""
NARROW, WIDE = (380, 236), (860, 300)
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 26, 38
APART, LINE = 150, 14
"""Least distance in pixels of names in one line, and of lines of text."""
PART = 26
"""Height of a stacked bar in pixels."""


@dataclass(frozen=True)
class Shape:
    """SVG element: its tag, attributes and text."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""


@dataclass(frozen=True)
class Drawing:
    """Rendered chart; `key` is its legend, pairs of a style class and a name."""

    width: int
    height: int
    label: str
    shapes: Sequence[Shape]
    key: Sequence[tuple[str, str]] = ()


def draw_chart(chart: Chart) -> Drawing:
    """Render a chart as SVG shapes; a chart without finite numbers is an empty frame."""
    return {"line": _lines, "bar": _bars, "scatter": _scatter, "stack": _stack}[chart.kind](chart)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Choose about `about` round numbers between `low` and `high`."""
    rough = (high - low) / about
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


@final
class _Axis:
    """Axis of a chart from `low` to `high`."""

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        self.low, self.high, self.log = low, high if high > low else low + 1, log

    @classmethod
    def around(cls, values: Iterable[float], share: float, *, log: bool = False) -> _Axis:
        """Make an axis around values, with a margin of `share` of their range."""
        known = [_scaled(v, log) for v in values if math.isfinite(_scaled(v, log))] or [0.0]
        low, high = min(known), max(known)
        margin = (high - low) * share or (0.5 if log else abs(high) * 0.1 or 1.0) * (share > 0)
        return cls(low - margin, high + margin, log=log)

    def share(self, value: float) -> float:
        """Compute the position of a value on the axis, clipped to 0 ... 1."""
        return min(max((_scaled(value, self.log) - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self, about: int) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, about)
        base = 2.0 if self.high - self.low < 10 else 10.0
        first, last = (math.log(2.0, base) * end for end in (self.low, self.high))
        every = max(1, round((last - first) / about))
        return [base**k for k in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1, every)]


def _scaled(value: float, log: bool) -> float:
    return math.log2(max(value, 1e-12)) if log else value


@final
class _Canvas:
    """Canvas with data coordinates that collects SVG shapes."""

    def __init__(self, size: tuple[int, int], across: _Axis, up: _Axis) -> None:
        (self.width, self.height), self.across, self.up = size, across, up
        self.shapes: list[Shape] = []

    def x(self, value: float) -> float:
        return LEFT + self.across.share(value) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - self.up.share(value) * (self.height - TOP - BOTTOM)

    def add(self, tag: str, text: str = "", /, **attributes: Any) -> None:
        """Add a shape; `class_` is its class, `_` in names becomes `-`, numbers are rounded to a tenth."""
        named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        rounded = {name: f"{v:.1f}" if isinstance(v, float) else v for name, v in named.items()}
        self.shapes.append(Shape(tag, rounded, text))

    def text(self, x: float, y: float, text: str, anchor: str = "middle", class_: str = "") -> None:
        self.add("text", text, x=x, y=y, text_anchor=anchor, class_=class_ or None)

    def frame(self, chart: Chart, *, xs: Sequence[float] = (), ys: int = 4) -> None:
        """Add the title, horizontal grid lines with values, and the labels of the x axis."""
        self.text(LEFT, 14, chart.title, "start", "title")
        right, base = self.width - RIGHT, self.height - BOTTOM
        for y in self.up.ticks(ys):
            self.add("path", d=f"M{LEFT} {self.y(y):.1f}H{right}", class_="axis")
            self.text(LEFT - 6, self.y(y) + 4, f"{y:g}", "end")
        for x in xs:
            self.text(self.x(x), base + 16, f"{x:g}")
        self.text((LEFT + right) / 2, self.height - 4, chart.x_label)

    def whisker(self, x: float, y: float, error: float, class_: str) -> None:
        top, bottom = self.y(y + error), self.y(y - error)
        path = f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {top:.1f}h6M{x - 3:.1f} {bottom:.1f}h6"
        self.add("path", d=path, class_=f"line {class_}")

    def drawing(self, chart: Chart, key: Sequence[tuple[str, str]] = ()) -> Drawing:
        return Drawing(self.width, self.height, chart.title, self.shapes, key)


def _points(series: Series) -> Iterator[tuple[float, float, float]]:
    """Yield the position, value and standard error of each finite value."""
    errors = [*series.error, *[None] * (len(series.x) - len(series.error))]
    for number, (x, y, error) in enumerate(zip(series.x, series.y, errors, strict=True)):
        if y is not None and math.isfinite(y):
            yield float(number if isinstance(x, str) else x), y, error or 0.0


def _lines(chart: Chart) -> Drawing:
    lines = [list(_points(series)) for series in chart.series]
    every = [point for line in lines for point in line]
    end = max((x for x, *_ in every), default=0.0)
    deciding = [p for p in every if not chart.settled or p[0] >= end / 10] or every
    up = _Axis.around([y + s * e for _, y, e in deciding for s in (-1, 1)], 0.08, log=chart.log_y)
    across = _Axis.around([x for x, *_ in every] + [0.0] * chart.settled, 0, log=chart.log_x)
    canvas = _Canvas(WIDE if chart.wide else NARROW, across, up)
    canvas.frame(chart, xs=across.ticks(5))
    classes = _classes(chart.series)
    for class_, line in sorted(zip(classes, lines, strict=True), key=lambda pair: pair[0] != "faint"):
        thin = line[:: -(-len(line) // THINNED)] if line else []
        thin += line[-1:] if thin and thin[-1] != line[-1] else []
        path = " ".join(f"{canvas.x(x):.1f},{canvas.y(y):.1f}" for x, y, _ in thin)
        canvas.add("polyline", points=path, class_=f"line {class_}")
        for x, y, error in line:
            if error:
                canvas.whisker(canvas.x(x), y, error, class_)
        for x, y, _ in line if len(line) <= DOTTED else line[-1:] if class_ != "faint" else ():
            canvas.add("circle", cx=canvas.x(x), cy=canvas.y(y), r=2.6, class_=f"dot {class_}")
    named = [(class_, series.name) for class_, series in zip(classes, chart.series, strict=True) if series.name]
    return canvas.drawing(chart, named if len(named) > 1 else ())


def _classes(series: Sequence[Series]) -> list[str]:
    """Choose a style class for each series: a colour, or `faint`."""
    number, classes = 0, []
    for one in series:
        classes.append("faint" if one.faint else f"c{number % COLOURS}")
        number += not one.faint
    return classes


def _bars(chart: Chart) -> Drawing:
    (series,) = chart.series
    bars = [(y, error) for _, y, error in _points(series)]
    labels = [x for x in series.x if isinstance(x, str)]
    count = max(len(bars), 1)
    low = min((y - error for y, error in bars), default=0.0)
    high = max((y + error for y, error in bars), default=1.0)
    up = _Axis(min(low * 1.08, 0.0), max(high * 1.06, 0.0 if low < 0 else 1e-3))
    turned = bool(labels) and max(map(len, labels)) * count > (110 if chart.wide else 50)
    width, height = WIDE if chart.wide else NARROW
    canvas = _Canvas((width, height + 64 * turned), _Axis(0.0, count), up)
    canvas.frame(chart, xs=() if labels else ticks(0, count, 8))
    used = count if chart.used is None else chart.used
    if count > OUTLINED:
        every = -(-count // THINNED)
        outline = " ".join(f"{canvas.x(k):.1f},{canvas.y(y):.1f}" for k, (y, _) in enumerate(bars) if k % every == 0)
        corners = f"{canvas.x(0):.1f},{canvas.y(0):.1f} {outline} {canvas.x(count):.1f},{canvas.y(0):.1f}"
        canvas.add("polygon", points=corners, class_="fill c0")
    wide = (canvas.x(1) - canvas.x(0)) * (0.7 if labels else 0.8 if count <= 128 else 1)
    for k, (y, error) in enumerate(bars if count <= OUTLINED else ()):
        left = canvas.x(k + 0.15) if labels else canvas.x(k)
        top, foot = min(canvas.y(y), canvas.y(0)), max(canvas.y(y), canvas.y(0))
        shape = {"x": left, "y": top, "width": wide, "height": max(foot - top, 0.5)}
        canvas.add("rect", **shape, class_="fill c0" if k < used else "fill faint")
        if error:
            canvas.whisker(left + wide / 2, y, error, "ink")
    for k, label in enumerate(labels):
        x, y = canvas.x(k + 0.5), height - BOTTOM + 14.0
        turn = {"transform": f"rotate(-32 {x:.1f} {y:.1f})", "text_anchor": "end"}
        canvas.add("text", label, x=x, y=y, **(turn if turned else {"text_anchor": "middle"}))
    if used < count:
        x, late = canvas.x(used) - 0.1 * (canvas.x(1) - canvas.x(0)), used > 0.75 * count
        canvas.add("line", x1=x, x2=x, y1=float(TOP), y2=canvas.y(0), class_="mark")
        where = (x - 6, "end") if late else (x + 6, "start")
        canvas.text(where[0], TOP + 12.0, f"{used:,} in use, {count - used:,} not", where[1], "marked")
    return canvas.drawing(chart)


def _scatter(chart: Chart) -> Drawing:
    groups = [list(_points(series)) for series in chart.series]
    every = [point for group in groups for point in group]
    axes = []
    for values, log in (([x for x, *_ in every], chart.log_x), ([y for _, y, _ in every], chart.log_y)):
        axis = _Axis.around(values, 0.12, log=log)
        if not log and min(values, default=0.0) >= 0:
            axis = _Axis(max(axis.low, 0.0), axis.high)
        axes.append(axis)
    canvas = _Canvas((WIDE[0], 430) if chart.wide else NARROW, *axes)
    canvas.frame(chart, xs=axes[0].ticks(7), ys=6)
    if chart.sums:
        _sums(canvas, [x + y for x, y, _ in every])
    for class_, group in zip(_classes(chart.series), groups, strict=True):
        for x, y, error in group:
            if error:
                canvas.whisker(canvas.x(x), y, error, class_)
            canvas.add("circle", cx=canvas.x(x), cy=canvas.y(y), r=5.0 if chart.names else 3.0, class_=f"dot {class_}")
    taken: list[tuple[float, float]] = []
    for name, (x, y, _) in sorted(zip(chart.names, every, strict=False), key=lambda p: -p[1][1]):
        at, text = canvas.x(x), canvas.y(y) + 4
        while any(abs(text - other) < LINE and abs(at - beside) < APART for beside, other in taken):
            text += LINE
        taken.append((at, text))
        anchor, aside = ("end", -9) if at > 0.75 * canvas.width else ("start", 9)
        canvas.text(at + aside, text, name, anchor, "named")
    return canvas.drawing(chart)


def _sums(canvas: _Canvas, sums: Sequence[float]) -> None:
    """Add dotted lines of constant x + y, each with its sum."""
    if not sums:
        return
    (left, right), (low, high) = ((axis.low, axis.high) for axis in (canvas.across, canvas.up))
    margin = (max(sums) - min(sums)) * 0.25 or abs(sums[0]) * 0.05 or 1.0
    for total in ticks(min(sums) - margin, max(sums) + margin, 6):
        first, last = max(left, total - high), min(right, total - low)
        if first < last:
            x1, y1, x2, y2 = canvas.x(first), canvas.y(total - first), canvas.x(last), canvas.y(total - last)
            canvas.add("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="sum")
            canvas.text(x2 - 4, y2 - 5, f"{total:g}", "end", "sum")


def _stack(chart: Chart) -> Drawing:
    (series,) = chart.series
    parts = [(str(name), max(y or 0.0, 0.0)) for name, y in zip(series.x, series.y, strict=True)]
    whole, at = sum(size for _, size in parts), 10.0
    canvas = _Canvas((WIDE[0], 76), _Axis(0.0, 1.0), _Axis(0.0, 1.0))
    for number, (name, size) in enumerate(parts if math.isfinite(whole) and whole > 0 else ()):
        wide = (WIDE[0] - 20) * size / whole
        class_ = "fill faint" if number % 2 else "fill c0"
        canvas.add("rect", x=at, y=24.0, width=max(wide, 1.0), height=float(PART), class_=class_)
        middle = at + wide / 2
        anchor = "start" if middle < 120 else "end" if middle > WIDE[0] - 120 else "middle"
        canvas.text(min(max(middle, 10.0), WIDE[0] - 10.0), 68.0 if number % 2 else 14.0, name, anchor)
        at += wide
    return canvas.drawing(chart)
