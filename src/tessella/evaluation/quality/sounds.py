"""Likeness of reconstructed sounds: scale-invariant distortion, distance of log-mel spectra, intelligibility.

Sounds are compared as sound pressure, `[B, C, T]` in -1 ... 1. What was not observed of the input is not compared.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from tessella.core.schema import Schema, bits_per_dim
from tessella.data import Split, batches
from tessella.evaluation.results import SoundEvaluation, SoundQuality
from tessella.foundation.notes import note
from tessella.foundation.progress import track
from tessella.kinds import spectra
from tessella.kinds.base import kind_of
from tessella.kinds.sounds import pressure, until_end
from tessella.models.base import Model

EXAMPLES = 1000
"""Number of sounds whose reconstructions are compared with their inputs."""
PORTION = 50
MOST_DECIBELS = 100.0
"""Largest absolute SI-SDR, which an exact copy gets."""


def sound_evaluation(
    schema: Schema, rate: float | None, bound: float | None, values: float, quality: SoundQuality | None
) -> SoundEvaluation | None:
    """Convert rate and bound to bits per sample and per second; None if the examples are no sounds.

    Args:
        rate, bound: in nats per example; None where there are none.
        values: mean number of observed values per example.
    """
    if not kind_of(schema).audible:
        return None
    in_bits = bound is not None and schema.values.discrete  # a density has no bits
    each = bits_per_dim(bound, values) if bound is not None and in_bits else None
    per_second = schema.rate * schema.channels
    return SoundEvaluation(
        bits_per_sample=each,
        bits_per_second=None if each is None else each * per_second,
        rate_per_second=None if rate is None else bits_per_dim(rate, values) * per_second,
        quality=quality,
    )


def measure_quality(model: Model, split: Split, count: int) -> SoundQuality | None:
    """Compare reconstructions with `count` sounds of a split, the same each time.

    The result is None if the examples are no sounds, or a reconstruction takes a pass over all samples.
    """
    schema = model.schema
    if not (count and kind_of(schema).audible) or model.likelihood.sequential_mean:
        return None
    measured = split.subset(split.random_rows(count))
    intelligible = find_spec("pystoi") is not None
    if not intelligible:
        note("STOI is left out, as it needs the extra `sound`: pip install 'tessella[sound]'")
    decibels: list[Tensor] = []
    scores: list[float] = []
    difference, frames = 0.0, 0
    for batch in track(batches(measured, PORTION), "listening", -(-len(measured) // PORTION)):
        batch = batch.to(model.device)
        y = model.reconstruct(batch.x, batch.label)
        x, y = (pressure(v.round() if schema.values.discrete else v, schema).cpu() for v in (batch.x, y))
        decibels.append(si_sdr(x, y))
        seen = int(observed_count(x, schema.rate))
        difference += float(log_mel_distance(x, y, schema.rate)) * seen
        frames += seen
        if intelligible:
            each = [stoi(one, other, schema.rate) for one, other in zip(x, y, strict=True)]
            scores += [score for score in each if score is not None]
    return SoundQuality(
        clips=len(measured),
        si_sdr=float(torch.cat(decibels).mean()),
        log_mel_distance=difference / max(1, frames),
        stoi=sum(scores) / len(scores) if scores else None,
        stoi_clips=len(scores),
    )


def si_sdr(x: Tensor, y: Tensor) -> Tensor:
    """Compute the scale-invariant signal-to-distortion ratio of y as a copy of x, in decibels, `[B]`.

    10 log10 |a x|^2 / |a x - y|^2 with a = <x, y> / |x|^2 (Le Roux et al. 2019), from -100 to 100.
    """
    x, y = _both(x, y)
    x, y = x.nan_to_num().flatten(1).double(), y.nan_to_num().flatten(1).double()
    target = x * ((x * y).sum(1) / x.square().sum(1).clamp_min(1e-30))[:, None]
    ratio = target.square().sum(1).clamp_min(1e-30) / (target - y).square().sum(1).clamp_min(1e-30)
    return torch.where(y.any(1), 10 * ratio.log10(), -MOST_DECIBELS).clamp(-MOST_DECIBELS, MOST_DECIBELS)


def log_mel_distance(x: Tensor, y: Tensor, rate: float) -> Tensor:
    """Compute the mean of |log10 mel(x) - log10 mel(y)| over all bands and observed frames.

    mel() are magnitudes in mel bands, at least 1e-5: `spectra.log_mel`.
    """
    x, y = _both(x, y)
    difference = (spectra.log_mel(x, rate) - spectra.log_mel(y, rate)).abs().mean(-2)
    seen = spectra.observed_frames(x, spectra.frame_sizes(rate)[1])
    return (difference * seen).sum() / seen.sum().clamp_min(1)


def observed_count(x: Tensor, rate: float) -> Tensor:
    """Count the observed frames of `[B, C, T]`."""
    return spectra.observed_frames(x, spectra.frame_sizes(rate)[1]).sum()


def stoi(x: Tensor, y: Tensor, rate: float) -> float | None:
    """Compute the short-time objective intelligibility of y `[C, T]` as a copy of x (Taal et al. 2011), about 0 ... 1.

    It is the mean over the channels, by the package `pystoi`. None if the sound is shorter than 0.4 s without its
    silences.
    """
    from pystoi import stoi as measured

    x, y = _both(x, y)
    x = until_end(x).nan_to_num()
    y = y[:, : x.shape[1]].nan_to_num()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return sum(float(measured(a, b, round(rate))) for a, b in zip(x.numpy(), y.numpy(), strict=True)) / len(x)
        except (RuntimeWarning, ValueError):  # too short
            return None


def _both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out of y what was not observed of x."""
    return x, y.masked_fill(x.isnan(), torch.nan)
