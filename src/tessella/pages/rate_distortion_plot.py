"""The rate-distortion plane as SVG: runs by what the latent costs and what is then still to be said."""

from __future__ import annotations

import html
from collections.abc import Sequence

from tessella.pages.svg import Plot, ticks

Point = tuple[str, float, float]
WIDTH, HEIGHT = 860, 430
APART, LINE = 150, 14
"""Pixels between names beside each other, and between lines of text."""


def plane(points: Sequence[Point], title: str, across: str) -> str:
    """Named points `(name, x, y)`, and dotted lines on which x + y is the same, each with its sum."""
    right, up = _range([x for _, x, _ in points]), _range([y for _, _, y in points])
    plot = Plot(WIDTH, HEIGHT, right, up)
    parts = [plot.frame(title, across, ticks(right[0], right[1], 7), ticks(up[0], up[1], 6)), *_sums(plot, points)]
    return plot.svg([*parts, *_named(plot, points)], title)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return low - margin if low < 0 else max(0.0, low - margin), high + margin


def _named(plot: Plot, points: Sequence[Point]) -> list[str]:
    """Circles with their names, those moved down that would lie on each other."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for name, x, y in sorted(points, key=lambda p: -p[2]):
        at, up = plot.x(x), plot.y(y)
        text = up + 4
        while any(abs(text - other) < LINE and abs(at - beside) < APART for beside, other in taken):
            text += LINE
        taken.append((at, text))
        anchor, aside = ("end", -9) if at > 0.75 * WIDTH else ("start", 9)
        place = f'x="{at + aside:.1f}" y="{text:.1f}" text-anchor="{anchor}"'
        parts.append(f'<circle class="point" cx="{at:.1f}" cy="{up:.1f}" r="5"/>')
        parts.append(f'<text class="named" {place}>{html.escape(name)}</text>')
    return parts


def _sums(plot: Plot, points: Sequence[Point]) -> list[str]:
    (left, right), (low, high) = plot.across, plot.up
    sums = [x + y for _, x, y in points]
    margin = (max(sums) - min(sums)) * 0.25 or abs(sums[0]) * 0.05 or 1.0
    parts: list[str] = []
    for total in ticks(min(sums) - margin, max(sums) + margin, 6):
        first, last = max(left, total - high), min(right, total - low)
        if first >= last:
            continue
        x1, y1, x2, y2 = plot.x(first), plot.y(total - first), plot.x(last), plot.y(total - last)
        parts.append(f'<line class="sum" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        parts.append(f'<text class="sum" x="{x2 - 4:.1f}" y="{y2 - 5:.1f}" text-anchor="end">{total:g}</text>')
    return parts
