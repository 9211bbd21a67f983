"""Charts of what training noted in `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tessella.foundation.blocks import Chart, Series

NAMES = {"train": "training batches, weights as they move", "valid": "validation split, averaged weights"}


def curves(metrics: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, str]]) -> list[Chart]:
    """Charts of these figures `(key, title)` over time; those that were not noted often enough are left out."""
    seconds = max((m.get("seconds") or 0 for m in metrics), default=0)
    per, unit = (60, "minutes") if seconds >= 120 else (1, "seconds")
    charts = []
    for key, title in wanted:
        series = []
        for kind, name in NAMES.items():
            noted = [m for m in metrics if m.get("kind") == kind and _is_number(m.get(key))]
            x, y = [m["seconds"] / per for m in noted], [m[key] for m in noted]
            if x:
                series.append(Series(x, y, name, faint=kind == "train"))
        if any(len(one.x) > 1 for one in series):
            charts.append(Chart(title, series, x_label=f"{unit} of training", settled=True))
    return charts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
