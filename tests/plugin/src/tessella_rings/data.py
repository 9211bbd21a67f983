"""A data source."""

from __future__ import annotations

import numpy as np

from tessella.plugin import WHOLE, RawDataset, RawSplit, index_keys, register


@register("data", "rings", summary="600 points near two rings, in two dimensions")
def rings(size: tuple[int, int] | None) -> RawDataset:
    """600 points near rings of radius 1 and 2, labelled by the ring."""
    rng = np.random.default_rng(0)
    label = np.arange(600) % 2
    angle = rng.uniform(0, 2 * np.pi, 600)
    radius = 1 + label + rng.normal(0, 0.05, 600)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    return RawDataset({WHOLE: RawSplit(points, label, index_keys(600, "rings"))}, classes=("inner", "outer"))
