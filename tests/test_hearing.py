"""Laws of what people see and hear of sounds, and of how sounds are measured."""

from __future__ import annotations

import math

import pytest
import torch

from tessella.kinds import spectra

RATES = [1000.0, 8000.0, 16000.0, 44100.0]


@pytest.mark.parametrize("rate", RATES)
def test_a_sine_peaks_in_the_band_that_contains_it(rate: float) -> None:
    window, _ = spectra.frame_sizes(rate)
    bands = spectra.band_count(window)
    edges = spectra.band_edges(rate, bands)
    assert float(edges[-1]) == pytest.approx(rate / 2)
    assert (spectra.mel_filters(rate, window, bands).sum(1) - 1).abs().max() < 1e-5, "no band is empty"
    time = torch.arange(round(rate), dtype=torch.float64) / rate
    pitches = edges[1:-1][edges[1:-1] > 4 * rate / window][:-1]
    mel = spectra.log_mel((2 * math.pi * pitches[:, None] * time).sin(), rate)
    loudest = mel.mean(-1).argmax(1)
    assert (edges[loudest] <= pitches).all()
    assert (pitches <= edges[loudest + 2]).all()


def test_white_noise_has_its_variance_at_each_frequency() -> None:
    x = 0.3 * torch.randn(64, 4000, generator=torch.Generator().manual_seed(0))
    power = spectra.magnitudes(x, 200, 80)[..., 2:-2].square().mean((0, 2))
    assert power[1:-1].mean() == pytest.approx(0.09, rel=0.02)
    assert (power[1:-1] / 0.09 - 1).abs().max() < 0.15


def test_silence_and_gaps_are_finite_and_have_gradients() -> None:
    x = torch.zeros(2, 1, 4000)
    x[1, 0, 2000:] = math.nan
    x.requires_grad_()
    mel = spectra.log_mel(x, 8000)
    assert (mel == math.log10(spectra.FLOOR)).all()
    (mel.sum() + spectra.magnitudes(x, 200, 80).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert spectra.observed_frames(x, 80).sum(-1).flatten().tolist() == [50, 25]


def test_a_spectrum_moves_with_its_sound() -> None:
    x = torch.randn(3, 2, 4000, generator=torch.Generator().manual_seed(0))
    whole, late = spectra.magnitudes(x, 200, 80), spectra.magnitudes(x[..., 800:], 200, 80)
    assert whole.shape == (3, 2, 129, 50)
    torch.testing.assert_close(whole[..., 12:], late[..., 2:])
