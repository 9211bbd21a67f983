"""Kind of data: signals, numbers at evenly spaced times."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary
from tessella.foundation.registry import register
from tessella.kinds.sound_files import SoundFiles
from tessella.kinds.vectors import PLOT_HEIGHT, PLOT_WIDTH, Arrays, plots

LINES, LOWEST = 8, 16
"""Largest number of channels shown, and smallest height of a channel in pixels."""
LOUDER = 1.02


@register("kind", "signal", summary="signals (C, T) of numbers", rank=1)
@final
class Signals(Arrays):
    """Signals `(C, T)`, shown as one line per channel."""

    example = "signal"
    examples = "signals"
    dimension = "sample"
    files = SoundFiles()

    @property
    def description(self) -> str:
        channels = "1 channel" if self.schema.channels == 1 else f"{self.schema.channels} channels"
        return f"signals of {self.schema.spatial[0]:,} samples, {channels}"

    @property
    def tile_size(self) -> tuple[int, int]:
        return self._lines * self._height, PLOT_WIDTH

    def render(self, x: Tensor) -> np.ndarray:
        unit = self.unit(x)
        return np.concatenate([plots(unit[:, c], self._height) for c in range(self._lines)], 1)

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Make copies with noise, delayed by one sample, and 2 % louder."""
        copies = [self.noisy_copy(x, noise), torch.cat([x[..., :1], x[..., :-1]], -1)]
        values = self.schema.values
        if values == Binary():
            return copies
        louder = x.float() * LOUDER
        return [*copies, louder.clamp(values.low, values.high).round().to(x.dtype) if values.discrete else louder]

    @property
    def _lines(self) -> int:
        return min(self.schema.channels, LINES)

    @property
    def _height(self) -> int:
        return max(LOWEST, PLOT_HEIGHT // self._lines)
