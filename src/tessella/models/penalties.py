"""Penalties of reconstructions: added to the training loss, never part of a bound."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tessella.core.observed import observed
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option
from tessella.kinds import spectra
from tessella.kinds.sounds import pressure

SCALES = (0.5, 1.0, 2.0)
"""Lengths of the windows, relative to 25 ms."""
SPECTRAL_PENALTY = 5.0
"""Usual weight, in nats per sample and factor of ten."""


@final
class SpectralPenalty:
    """Distance of the log-mel spectra of sounds and their reconstructions, at several resolutions.

    The mean of a waveform given a few codes is a faint one, because its phase is not known. What is heard, the
    magnitudes, is close only if it is trained (Yamamoto et al. 2020, "Parallel WaveGAN", section 2.2). The penalty of
    an example is

        weight * (number of samples) * mean_s mean_(bands, frames) |log10 mel_s(x) - log10 mel_s(reconstruction)|.

    Args:
        schema: of sounds.
        weight: nats per sample and decade.

    Raises:
        SpecError: if the examples are no sounds.
    """

    def __init__(self, schema: Schema, weight: float) -> None:
        if not schema.rate:
            raise SpecError(f"{option('spectral_penalty')} is for sounds: leave it out", code="no-sound")
        self.schema, self.weight = schema, weight

    def __call__(self, mean: Tensor, x: Tensor) -> Tensor:
        """Compute the penalty `[B]` of reconstructions `mean` of stored values `x`, both `[B, C, T]`."""
        with torch.autocast(x.device.type, enabled=False):
            seen = observed(x)
            silent = ~seen if seen is not None else torch.zeros_like(x, dtype=torch.bool)
            ours, theirs = (pressure(t, self.schema).masked_fill(silent, 0) for t in (mean, x))
            samples = (~silent).flatten(1).sum(1)
            apart = torch.stack([self._distance(ours, theirs, silent, s) for s in SCALES]).mean(0)
            return self.weight * samples * apart

    def _distance(self, ours: Tensor, theirs: Tensor, silent: Tensor, scale: float) -> Tensor:
        window = max(16, round(scale * spectra.frame_sizes(self.schema.rate)[0]))
        hop = window // 4

        def log_mel(p: Tensor) -> Tensor:
            mel = spectra.mel_magnitudes(p, self.schema.rate, window, hop, spectra.band_count(window))
            return mel.clamp_min(spectra.FLOOR).log10()

        ours, theirs = log_mel(ours), log_mel(theirs)
        heard = (~silent[..., ::hop]).unsqueeze(-2).to(ours.dtype)
        total = ((ours - theirs).abs() * heard).flatten(1).sum(1)
        return total / (heard.flatten(1).sum(1) * ours.shape[-2]).clamp_min(1)
