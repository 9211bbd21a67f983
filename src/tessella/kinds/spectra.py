"""Short-time spectra of signals: Fourier magnitudes and mel bands, differentiable and for any batch.

A frame is centred on every `hop`-th sample, and zeros stand before the start and after the end. Samples that are NaN
were not observed: they count as zeros, and `observed_frames` says which frames to leave out.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
MOST_BANDS = 80
FLOOR = 1e-5
"""Smallest magnitude that counts, for samples in -1 ... 1: the level of rounding to 16 bits."""
SMALLEST = 1e-10
"""Magnitude below which the gradient fades, as that of a root has no bound at 0."""
_LINEAR, _KNEE = 200 / 3, 1000.0
"""Slaney's mel scale: hertz per mel below the knee, and the knee in hertz; above it, a factor of 6.4 is 27 mels."""


def frame_sizes(rate: float) -> tuple[int, int]:
    """Return window and hop in samples: 25 and 10 milliseconds."""
    return max(4, round(WINDOW_SECONDS * rate)), max(1, round(HOP_SECONDS * rate))


def magnitudes(x: Tensor, window: int, hop: int) -> Tensor:
    """Compute the magnitudes of the short-time Fourier transform with a Hann window.

    |sum_n w_n x_n exp(-2 pi i k n / N)| / sqrt(sum_n w_n^2), so white noise of variance v has a mean power of v at
    each frequency.

    Args:
        x: signals `[..., T]`.
        window: length of the window in samples.
        hop: samples from one frame to the next.

    Returns:
        `[..., N / 2 + 1, ceil(T / hop)]`, where N is the next power of two of `window`.
    """
    x = torch.nan_to_num(x.float())
    shape = torch.hann_window(window, periodic=True, device=x.device)
    frames = pad(x, (window // 2, window)).unfold(-1, window, hop)[..., : -(-x.shape[-1] // hop), :]
    size = _transform_size(window)
    parts = torch.view_as_real(torch.fft.rfft(frames * (shape / shape.norm()), size))
    power = parts[..., 0].square() + parts[..., 1].square()
    return (power + SMALLEST**2).sqrt().transpose(-1, -2)  # half the time of abs() and its gradient


def mel_magnitudes(x: Tensor, rate: float, window: int, hop: int, bands: int) -> Tensor:
    """Average the magnitudes in triangular bands of the mel scale: `[..., T]` to `[..., bands, frames]`."""
    return mel_filters(rate, window, bands).to(x.device) @ magnitudes(x, window, hop)


def log_mel(x: Tensor, rate: float) -> Tensor:
    """Compute the log-mel spectrogram of sounds `[..., T]` in -1 ... 1: log10 of magnitudes, at least `FLOOR`.

    Frames have 25 ms, every 10 ms; there is a band for three frequencies of the transform, and at most 80 bands.

    Returns:
        `[..., bands, frames]`.
    """
    window, hop = frame_sizes(rate)
    return mel_magnitudes(x, rate, window, hop, band_count(window)).clamp_min(FLOOR).log10()


def band_count(window: int) -> int:
    """Return the number of mel bands for a window, so that none is empty."""
    return max(1, min(MOST_BANDS, (_transform_size(window) // 2 + 1) // 3))


def observed_frames(x: Tensor, hop: int) -> Tensor:
    """Return which frames of `[..., T]` are centred on an observed sample, `[..., frames]`."""
    return ~x[..., ::hop].isnan()


@lru_cache(32)
def mel_filters(rate: float, window: int, bands: int) -> Tensor:
    """Compute triangular filters `[bands, frequencies]` evenly spaced in mels; each sums to 1.

    The mel scale is that of Slaney's Auditory Toolbox (1998), from 0 to half the rate.
    """
    edges = band_edges(rate, bands)
    at = torch.linspace(0, rate / 2, _transform_size(window) // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((at - low) / (middle - low), (high - at) / (high - middle)).clamp_min(0)
    return (filters / filters.sum(1, keepdim=True).clamp_min(1e-12)).float()


def band_edges(rate: float, bands: int) -> Tensor:
    """Return the frequencies between mel bands, `[bands + 2]`: band b rises from b, peaks at b + 1, ends at b + 2."""
    step, knee = 27 / math.log(6.4), _KNEE / _LINEAR
    top = rate / 2
    most = top / _LINEAR if top < _KNEE else knee + step * math.log(top / _KNEE)
    mels = torch.linspace(0, most, bands + 2, dtype=torch.float64)
    return torch.where(mels < knee, mels * _LINEAR, _KNEE * ((mels - knee) / step).exp())


def _transform_size(window: int) -> int:
    return 1 << max(2, window - 1).bit_length()
