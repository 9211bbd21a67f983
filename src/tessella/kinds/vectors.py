"""Vectors: rows of a table."""

from __future__ import annotations

from typing import final

import numpy as np
from torch import Tensor

from tessella.core.rng import Noise
from tessella.foundation.registry import register
from tessella.kinds.base import Kind, Probe

PLOT_HEIGHT, PLOT_WIDTH, FEW_BARS = 48, 96, 32


@register("kind", "vector", summary="rows of numbers (D,)", rank=0)
@final
class Vectors(Kind):
    """Rows of numbers `(D,)`, shown as small plots."""

    @property
    def description(self) -> str:
        return f"rows of {self.schema.dims} numbers"

    @property
    def tile_size(self) -> tuple[int, int]:
        return PLOT_HEIGHT, PLOT_WIDTH

    @property
    def probe(self) -> Probe:
        return "autoencoder"

    def tiles(self, x: Tensor) -> np.ndarray:
        return plots(self.unit(x))

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        return [self.noisy_copy(x, noise)]


def plots(unit: np.ndarray, rows: int = PLOT_HEIGHT) -> np.ndarray:
    """Plot `[B, D]` in `[0, 1]` as a line, or as bars for few numbers: `[B, rows, W, 1]`, dark on white."""
    features = unit.shape[1]
    width = features * max(1, PLOT_WIDTH // features) if features <= FEW_BARS else PLOT_WIDTH
    at = np.linspace(0, features - 1, width)
    height = (1 - unit) * (rows - 1)
    if features <= FEW_BARS:
        curve = np.repeat(height, width // features, axis=1)
        top, bottom = curve, np.full_like(curve, rows)
    else:
        left = np.floor(at).astype(int)
        right = np.minimum(left + 1, features - 1)
        curve = height[:, left] + (height[:, right] - height[:, left]) * (at - left)
        before = np.concatenate([curve[:, :1], curve[:, :-1]], axis=1)
        top, bottom = np.minimum(curve, before), np.maximum(curve, before)
    y = np.arange(rows)[None, :, None]
    ink = (y >= np.floor(top)[:, None]) & (y <= np.ceil(bottom)[:, None])
    return np.where(ink, 40, 255).astype(np.uint8)[..., None]
