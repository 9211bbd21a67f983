"""Charts as SVG, which takes its colours from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def line_chart(lines: dict[str, list[tuple[float, float]]], title: str, across: str) -> str:
    """Lines `{css class: [(x, y), ...]}` as SVG with axes; the first tenth of the time does not decide the scale."""
    points = [p for line in lines.values() for p in line]
    end = max(x for x, _ in points) or 1.0
    settled = [y for x, y in points if x >= end / 10] or [y for _, y in points]
    low, high = min(settled), max(settled)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    ys = ticks(low - margin, high + margin, 4)
    plot = Plot(300, 210, (0.0, end), (min(low - margin, ys[0]), max(high + margin, ys[-1])))
    parts = [plot.frame(title, across, ticks(0, end, 4), ys)]
    for kind, line in lines.items():
        if not line:
            continue
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y, clip=True):.1f}" for x, y in _thinned(line))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        x, y = line[-1]
        if kind == "valid":
            parts.append(f'<circle class="valid" cx="{plot.x(x):.1f}" cy="{plot.y(y, clip=True):.1f}" r="3"/>')
    return plot.svg(parts, title)


def over_time(metrics: list[dict[str, Any]], wanted: Sequence[tuple[str, str]]) -> str:
    """Curves of these figures `(key, title)` beside each other; empty if nothing was noted often enough.

    Args:
        metrics: lines of `metrics.jsonl`.
    """
    seconds = max((m.get("seconds") or 0 for m in metrics), default=0)
    per, unit = (60, "minutes") if seconds >= 120 else (1, "seconds")
    charts = []
    for key, title in wanted:
        lines = {
            kind: [(m["seconds"] / per, m[key]) for m in metrics if m.get("kind") == kind and _is_number(m.get(key))]
            for kind in ("train", "valid")
        }
        if any(len(points) > 1 for points in lines.values()):
            charts.append(line_chart(lines, title, f"{unit} of training"))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def bar_chart(values: Sequence[float], active: int, *, title: str, across: str) -> str:
    """Values in falling order as SVG bars, the first `active` of them marked off; very many become an outline."""
    top = max(*values, 1e-3) * 1.05
    count = len(values)
    plot = Plot(860, 230, (0.0, float(count)), (0.0, top))
    parts = [plot.frame(title, across, ticks(0, count, 8), ticks(0, top, 4))]
    if count <= 256:
        wide = (plot.x(1) - plot.x(0)) * (0.8 if count <= 128 else 1)
        for k, value in enumerate(values):
            kind, y = ("bar" if k < active else "idle"), plot.y(max(value, 0))
            tall = max(plot.y(0) - y, 0.5)
            parts.append(
                f'<rect class="{kind}" x="{plot.x(k):.1f}" y="{y:.1f}" width="{wide:.2f}" height="{tall:.1f}"/>'
            )
    else:
        outline = " ".join(f"{plot.x(k):.1f},{plot.y(max(v, 0)):.1f}" for k, v in _thinned(list(enumerate(values))))
        corners = f"{plot.x(0):.1f},{plot.y(0):.1f} {outline} {plot.x(count):.1f},{plot.y(0):.1f}"
        parts.append(f'<polygon class="bar" points="{corners}"/>')
    if active < count:
        x, y = plot.x(active) - 0.1 * (plot.x(1) - plot.x(0)), plot.y(top)
        late = active > 0.75 * count
        anchor, to_side = ("end", -6) if late else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{plot.y(0):.1f}"/>')
        text = f"{active:,} in use, {count - active:,} not"
        parts.append(
            f'<text class="marked" x="{x + to_side:.1f}" y="{y + 12:.1f}" text-anchor="{anchor}">{text}</text>'
        )
    return plot.svg(parts, title)


@dataclass(frozen=True)
class Plot:
    """Data coordinates on an SVG canvas."""

    width: int
    height: int
    across: tuple[float, float]
    up: tuple[float, float]

    LEFT, RIGHT, TOP, BOTTOM = 46, 8, 26, 38

    def x(self, value: float) -> float:
        return self.LEFT + (value - self.across[0]) / (self.across[1] - self.across[0]) * (
            self.width - self.LEFT - self.RIGHT
        )

    def y(self, value: float, *, clip: bool = False) -> float:
        share = (value - self.up[0]) / (self.up[1] - self.up[0])
        share = min(max(share, 0.0), 1.0) if clip else share
        return self.height - self.BOTTOM - share * (self.height - self.TOP - self.BOTTOM)

    def frame(self, title: str, across: str, xs: Sequence[float], ys: Sequence[float]) -> str:
        base, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = [f'<text class="title" x="{self.LEFT}" y="14">{html.escape(title)}</text>']
        for y in ys:
            at = self.y(y)
            parts.append(f'<path class="axis" d="M{self.LEFT} {at:.1f}H{right}"/>')
            parts.append(f'<text x="{self.LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
        parts += [f'<text x="{self.x(x):.1f}" y="{base + 16}" text-anchor="middle">{x:g}</text>' for x in xs]
        middle = (self.LEFT + right) / 2
        parts.append(f'<text x="{middle:.0f}" y="{self.height - 4}" text-anchor="middle">{html.escape(across)}</text>')
        return "".join(parts)

    def svg(self, parts: Sequence[str], label: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(label, quote=True)}">'
            f"{''.join(parts)}</svg>"
        )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, about so many."""
    rough = (high - low) / about
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(points: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    every = -(-len(points) // most)
    return points if every == 1 else [*points[::every], points[-1]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
