"""Compares a model with simple baselines on examples that it was not trained on, and says in words how good it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tessella.core.device import autocast
from tessella.core.observed import count_observed, zero_filled
from tessella.core.rng import Noise
from tessella.core.schema import Precision, bits_per_dim
from tessella.data import Data, Split
from tessella.evaluation.quality.sharpness import FEWEST, high_frequency_energy
from tessella.evaluation.verdict.marginal import marginal_bound
from tessella.evaluation.verdict.principal import principal_components
from tessella.foundation.errors import option
from tessella.kinds.base import Kind, kind_of
from tessella.models.base import Model

EXAMPLES = 200
CHUNK = 50
BLURRED = 0.5
"""Share of the fine detail below which reconstructions are called blurred."""


@dataclass(frozen=True)
class Verdict:
    """Figures of a model beside those of simple baselines.

    Attributes:
        examples: number of held-out examples.
        bits_per_dim: the model's bound; None if it has none.
        marginal: bits per dimension of knowing only how often each value occurs.
        codec, codec_bits_per_dim: best general compressor and its size; None for real values.
        psnr: PSNR of the reconstructions in dB; None for models that do not compress.
        bits: bits of the latent of an example, its rate.
        principal_psnr: PSNR in dB of principal components that take as many bits.
        detail: energy of the reconstructions above a quarter of the Nyquist frequency, as a share of the data's.
        sentences: what this means, and what to change.
    """

    examples: int
    bits_per_dim: float | None
    marginal: float
    codec: str | None
    codec_bits_per_dim: float | None
    psnr: float | None
    bits: float | None
    principal_psnr: float | None
    detail: float | None
    sentences: tuple[str, ...] = ()


@torch.inference_mode()
def judge(model: Model, data: Data, precision: Precision = "auto") -> Verdict:
    """Measure a model and the baselines on validation examples, or on training examples if there are no others."""
    training = model.training
    model.eval()
    schema, train = model.schema, data.split("train")
    held = data.splits.get("valid") or data.splits.get("test") or train
    held = held.subset(held.random_rows(EXAMPLES))
    x = held.batch(range(len(held))).x
    values = count_observed(x)
    rate, distortion, mean = _measured(model, held, precision)
    kind = kind_of(schema)
    sizes = [(c.size(list(x)), c.name) for c in kind.baseline_codecs(lossy=False)] if schema.values.discrete else []
    size, codec = min(sizes, default=(None, None))
    psnr = principal = detail = None
    if mean is not None:
        error = float(zero_filled((mean - x).double()).square().sum()) / values
        psnr = _psnr(error, schema.values.span)
        if rate is not None and not schema.partial:
            components = principal_components(train)
            principal = _psnr(components.error(x, rate / math.log(2)), schema.values.span)
        if max(schema.spatial, default=0) >= FEWEST and not schema.partial:
            of_data = float(high_frequency_energy(x, schema).mean())
            detail = float(high_frequency_energy(mean, schema).mean()) / of_data if of_data else None
    found = Verdict(
        examples=len(held),
        bits_per_dim=None if rate is None else bits_per_dim(rate + distortion, values / len(x)),
        marginal=bits_per_dim(marginal_bound(train, schema, held), values / len(x)),
        codec=codec,
        codec_bits_per_dim=None if size is None else 8 * size / values,
        psnr=psnr,
        bits=None if rate is None else rate / math.log(2),
        principal_psnr=principal,
        detail=detail,
    )
    model.train(training)
    return Verdict(**{**vars(found), "sentences": _sentences(found, kind)})


def _measured(model: Model, split: Split, precision: Precision) -> tuple[float | None, float, torch.Tensor | None]:
    """Measure rate and distortion in nats per example, and the reconstructions if z is smaller than x."""
    rates, distortions, means = [], [], []
    for first in range(0, len(split), CHUNK):
        batch = split.batch(range(first, min(first + CHUNK, len(split)))).to(model.device)
        with autocast(precision, model.schema, model.device):
            terms = model(batch.x, batch.label, noise=Noise(0, first, "verdict"))
            if model.has_decoder and not model.likelihood.sequential_mean:
                means.append(model.reconstruct(batch.x, batch.label).float().cpu())
        distortions.append(terms.distortion.cpu())
        rates += [] if terms.rate is None else [terms.rate.cpu()]
    rate = float(torch.cat(rates).mean()) if rates and model.has_bound else None
    return rate, float(torch.cat(distortions).mean()), torch.cat(means) if means else None


def _psnr(error: float, span: float) -> float:
    return 10 * math.log10(span**2 / max(error, 1e-12 * span**2))


def _sentences(v: Verdict, kind: Kind) -> tuple[str, ...]:
    """Say what the figures mean, and what to change."""
    lines, weak = [], False
    if v.bits_per_dim is not None:
        others = f"knowing only how often each value occurs takes {v.marginal:.2f}"
        if v.codec_bits_per_dim is not None:
            others += f", {v.codec} {v.codec_bits_per_dim:.2f}"
        beaten = v.codec_bits_per_dim is not None and v.bits_per_dim < v.codec_bits_per_dim
        weak = v.bits_per_dim >= v.marginal
        known = "has learned" if v.codec is None else f"has learned, but {v.codec} takes fewer bits"
        level = "has learned nothing yet" if weak else f"compresses better than {v.codec}" if beaten else known
        lines.append(f"the model {level}: {v.bits_per_dim:.2f} bits per dimension ({others})")
    if v.psnr is not None and v.principal_psnr is not None and v.bits is not None:
        worse = v.psnr < v.principal_psnr
        weak |= worse
        lines.append(
            f"reconstructions are {'worse' if worse else 'better'} than those of principal components of as many bits: "
            f"{v.psnr:.1f} dB against {v.principal_psnr:.1f} dB, from {v.bits:,.0f} bits per {kind.example}"
        )
    if v.detail is not None and v.detail < BLURRED:
        lines.append(f"reconstructions are blurred: they keep {100 * v.detail:.0f} % of the fine detail")
    if weak:
        smaller = f", or on smaller examples ({option('size')})" if kind.pixels else ""
        lines.append(f"to improve: train longer ({option('minutes')}){smaller}")
    return tuple(lines)
