"""Charts of measurements with their standard errors, from plain data, as SVG in the page's colours."""

from __future__ import annotations

import html
import math
from typing import Any

from tessella.pages.svg import Plot, ticks

COLOURS = ("var(--accent)", "var(--second)", "var(--soft)", "#7a5ea8", "#b0413e", "#3f7fbf")


def chart(plot: dict[str, Any]) -> str:
    """Of `Lines` or `Bars` as `Result.to_json` gives them."""
    return _lines(plot) if plot["kind"] == "lines" else _bars(plot)


def _lines(plot: dict[str, Any]) -> str:
    series = [s for s in plot["series"] if s["points"]]
    at = (lambda x: math.log2(max(x, 1e-12))) if plot["log"] else float
    points = [(at(x), y) for s in series for x, y in s["points"] if y is not None]
    if not points:
        return ""
    errors = [e or 0.0 for s in series for e in (s["errors"] or [0.0] * len(s["points"]))]
    lows = [y - e for (_, y), e in zip(points, errors, strict=False)]
    highs = [y + e for (_, y), e in zip(points, errors, strict=False)]
    low, high = min(lows), max(highs)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    right = right if right > left else left + 1
    canvas = Plot(380, 236, (left, right), (low - margin, high + margin))
    ys, xs = ticks(low - margin, high + margin, 4), ticks(left, right, 5)
    if plot["log"]:
        xs = list(range(math.ceil(left), math.floor(right) + 1, max(1, round((right - left) / 6))))
    parts = [_frame(canvas, plot["title"], plot["across"], xs, ys, log=plot["log"])]
    for number, s in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        shown = [(canvas.x(at(x)), canvas.y(y)) for x, y in s["points"] if y is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        parts.append(f'<polyline points="{path}" style="stroke: {colour}; fill: none; stroke-width: 2"/>')
        for (x, y), error in zip(s["points"], s["errors"], strict=False):
            if error and y is not None:
                parts.append(_whisker(canvas, canvas.x(at(x)), y, error, colour))
        if len(shown) <= 20:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" style="fill: {colour}"/>' for x, y in shown]
    names = [
        f'<span class="key"><i style="background: {COLOURS[n % len(COLOURS)]}"></i>{html.escape(s["name"])}</span>'
        for n, s in enumerate(series)
    ]
    key = f'<div class="soft">{"".join(names)}</div>' if len(series) > 1 else ""
    return f"<div>{canvas.svg(parts, plot['title'])}{key}</div>"


def _bars(plot: dict[str, Any]) -> str:
    values = [v or 0.0 for v in plot["values"]]
    errors = [e or 0.0 for e in plot["errors"]]
    if not values:
        return ""
    low = min(0.0, *(v - e for v, e in zip(values, errors, strict=True)))
    high = max(0.0, *(v + e for v, e in zip(values, errors, strict=True)))
    high = high * 1.08 if high > low else low + 1
    low *= 1.08
    long = max(map(len, plot["labels"])) * len(values) > 50
    canvas = Plot(380, 300 if long else 236, (0.0, float(len(values))), (low, high))
    bottom = canvas.BOTTOM
    ys = ticks(low, high, 4)
    title = plot["title"] + (f" ({plot['unit']})" if plot["unit"] else "")
    parts = [_frame(canvas, title, "", [], ys)]
    zero = canvas.y(0.0)
    for k, (label, value, error) in enumerate(zip(plot["labels"], values, errors, strict=True)):
        left, right, y = canvas.x(k + 0.15), canvas.x(k + 0.85), canvas.y(value)
        top, tall = min(y, zero), max(abs(y - zero), 0.5)
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{tall:.1f}"/>')
        if error:
            parts.append(_whisker(canvas, (left + right) / 2, value, error, "var(--ink)"))
        x, base = (left + right) / 2, canvas.height - bottom
        turned = f' transform="rotate(-32 {x:.1f} {base + 12})" text-anchor="end"' if long else ' text-anchor="middle"'
        parts.append(f'<text x="{x:.1f}" y="{base + (12 if long else 16)}"{turned}>{html.escape(label)}</text>')
    return canvas.svg(parts, title)


def _whisker(canvas: Plot, x: float, y: float, error: float, colour: str) -> str:
    top, bottom = canvas.y(y + error), canvas.y(y - error)
    path = f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {top:.1f}h6M{x - 3:.1f} {bottom:.1f}h6"
    return f'<path d="{path}" style="stroke: {colour}; fill: none"/>'


def _frame(canvas: Plot, title: str, across: str, xs: list[Any], ys: list[float], *, log: bool = False) -> str:
    if not log:
        return canvas.frame(title, across, xs, ys)
    plain = canvas.frame(title, across, [], ys)
    base = canvas.height - canvas.BOTTOM
    return plain + "".join(
        f'<text x="{canvas.x(x):.1f}" y="{base + 16}" text-anchor="middle">{2**x:g}</text>' for x in xs
    )
