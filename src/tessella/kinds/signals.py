"""Kind of data: signals, numbers at evenly spaced times, and among them sounds, whose schema has a rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
from tessella.foundation.registry import register
from tessella.kinds import sounds
from tessella.kinds.base import Codec
from tessella.kinds.sound_files import SoundFiles, channel_words
from tessella.kinds.vectors import PLOT_HEIGHT, PLOT_WIDTH, Arrays, plots

LINES, LOWEST, WAVES = 8, 16, 2
"""Largest number of channels shown, smallest height of a channel in pixels, and largest number of waveforms shown."""
LOUDER, SOFT_NOISE = 1.02, 0.01
"""Changes of near-duplicates: gain, and noise relative to the level of a sound."""


@register("kind", "signal", summary="signals (C, T) of numbers, and sounds", rank=1)
@final
class Signals(Arrays):
    """Signals `(C, T)`: one line per channel; sounds have waveforms above a spectrogram, and WAV files."""

    dimension = "sample"
    timed = True
    files = SoundFiles()

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.audible = schema.rate > 0
        self.example, self.examples = ("sound", "sounds") if self.audible else ("signal", "signals")
        self.file_ending = ".wav" if self.audible else ".npy"

    @property
    def description(self) -> str:
        schema, (length,) = self.schema, self.schema.spatial
        channels = "1 channel" if schema.channels == 1 else f"{schema.channels} channels"
        if not self.audible:
            return f"signals of {length:,} samples, {channels}"
        stored = "mu-law" if schema.mu_law else f"{schema.values.words.replace('-', ' ')}"
        most = "up to " if schema.lengths else ""
        of = f"{most}{length / schema.rate:.2f} s at {schema.rate:,.10g} Hz"
        return f"sounds of {of}, {channel_words(schema.channels)}, {stored}"

    @property
    def tile_size(self) -> tuple[int, int]:
        return sounds.TILE if self.audible else (self._lines * self._height, PLOT_WIDTH)

    def render(self, x: Tensor) -> np.ndarray:
        if self.audible:
            return sounds.tiles(x, self.schema, min(self.schema.channels, WAVES))
        unit = self.unit(x)
        return np.concatenate([plots(unit[:, c], self._height) for c in range(self._lines)], 1)

    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        if self.audible:
            sounds.write_wav(path, [x], self.schema)
        else:
            self.write_array(path, x)

    def write_joined(self, path: Path, windows: Iterable[Tensor], form: str = "") -> None:
        if self.audible:
            sounds.write_wav(path, windows, self.schema)
        else:
            super().write_joined(path, windows, form)

    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        own = sounds.codecs(self.schema, lossy=lossy) if self.audible else ()
        return (*own, *self.general_codecs(lossy=lossy))

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Make copies with noise, delayed by one sample, and 2 % louder; of sounds also lossy files."""
        late = torch.cat([x[..., :1], x[..., :-1]], -1)
        values = self.schema.values
        if self.audible:
            p = sounds.pressure(x, self.schema)
            level = p.square().nanmean((1, 2), keepdim=True).nan_to_num().sqrt()
            noisy = p + SOFT_NOISE * level * noise.normal(*p.shape)
            copies = [sounds.from_pressure(copy, self.schema).to(x.dtype) for copy in (noisy, LOUDER * p)]
            if sounds.codable(self.schema):
                copies.append(torch.stack([sounds.lossy_copy(one, self.schema).to(x.dtype) for one in x]))
            return [*copies, late]
        copies = [self.noisy_copy(x, noise), late]
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
