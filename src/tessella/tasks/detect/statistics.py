"""Statistics of examples under a model, from which anomaly scores are computed."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, cast, final

import numpy as np
import torch
from PIL import Image, features
from scipy.special import betaln
from torch import Tensor
from torch.distributions import Distribution

from tessella.bottlenecks.flow import FlowDistribution
from tessella.core.batches import Batch, FixedBatch, fixed_batches
from tessella.core.distributions import kl_closed
from tessella.core.outputs import Latent
from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
from tessella.evaluation import per_example_posterior
from tessella.kinds.base import kind_of
from tessella.kinds.pictures import MODES
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel

SAMPLES = 4
"""Posterior samples per example for the distortion."""
STEPS = 20
"""Steps of per-example optimisation for the regret."""


class ReferenceScorer(Protocol):
    """Scores of examples relative to training examples, such as distances to the nearest ones."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def pooled(self, batch: Batch) -> np.ndarray: ...

    def summary(self, name: str, examples: str) -> str: ...


@final
@dataclass(frozen=True)
class Statistics:
    """Statistics of N examples, each `[N]` float64 in nats; None where they do not apply.

    Attributes:
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
        regret: the bound minus the bound after q has been fitted to the example.
        length: length of the shortest file of the picture by general lossless compressors.
        local: scores relative to training examples, `[N, scores]`, in the order of `ReferenceScorer.names`.
    """

    distortion: np.ndarray
    rate: np.ndarray | None = None
    regret: np.ndarray | None = None
    length: np.ndarray | None = None
    local: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.distortion)

    @property
    def bound(self) -> np.ndarray:
        """Return rate + distortion, for a model that has a rate."""
        assert self.rate is not None
        return self.rate + self.distortion

    def rows(self, which: slice | np.ndarray) -> Statistics:
        """Select some of the examples."""
        every = {f.name: values for f in fields(self) if (values := getattr(self, f.name)) is not None}
        return Statistics(**{name: values[which] for name, values in every.items()})

    @staticmethod
    def cat(parts: Iterable[Statistics]) -> Statistics:
        """Concatenate the statistics of several batches; no batches give no examples."""
        found: dict[str, list[np.ndarray]] = {"distortion": []}
        for part in parts:
            for f in fields(part):
                if (values := getattr(part, f.name)) is not None:
                    found.setdefault(f.name, []).append(values)
        return Statistics(**{name: np.concatenate(v) if v else np.empty(0) for name, v in found.items()})


def possible(model: Model) -> frozenset[str]:
    """Name the statistics that the model and its kind of data allow."""
    found = {"distortion"}
    if model.has_bound:
        found |= {"rate", "regret"} if model.has_decoder else {"rate"}
    if (kind := kind_of(model.schema)).pixels and kind.in_files:
        found |= {"length"}
    return frozenset(found)


@final
class StatisticsExtractor:
    """Computes the requested statistics of batches.

    The statistics of an example do not depend on its neighbours: batches have one size, z is sampled with the same
    noise for every example, and the local search for the regret of codes is seeded by the example's key.

    Args:
        needs: names of statistics, all of them `possible`.
        samples: samples of z per example, if z is continuous.
        steps: steps of optimisation for the regret.
        seed: seed of all samples.
        local: computes the local scores, if they are needed.
    """

    def __init__(
        self,
        model: Model,
        needs: Collection[str],
        *,
        samples: int = SAMPLES,
        steps: int = STEPS,
        seed: int = 0,
        local: ReferenceScorer | None = None,
    ) -> None:
        self.model, self.needs, self.steps, self._local = model.eval(), frozenset(needs), steps, local
        self._noise = Noise(seed, stream="detect")
        self._eps = Noise(seed, stream="detect").normal(samples, 1, *model.latent_shape, device=model.device)

    def __call__(self, batch: Batch) -> Statistics:
        """Compute the statistics of a batch of stored values, of any length.

        Raises:
            SpecError: if the model needs labels and there are none.
        """
        parts = fixed_batches(batch, self.model.device)
        found = Statistics.cat(self._of(part).rows(slice(0, part.count)) for part in parts)
        length = file_nats(batch.x, self.model.schema) if "length" in self.needs else None
        local = self._local.pooled(batch) if self._local is not None and "local" in self.needs else None
        return replace(found, length=length, local=local)

    @torch.no_grad()
    def _of(self, batch: FixedBatch) -> Statistics:
        """Compute the statistics of all rows, except the length."""
        model, x, label = self.model, batch.x, batch.label
        latent = model.encode(x, label)
        paid = model.rate(latent, label)
        rate = paid and paid.total
        if latent.posterior is None:
            distortion = -model.decode(latent.z, label).log_prob(x)
        else:
            prior = cast(LatentVariableModel, model).prior_given(label) if model.has_decoder else None
            distortion, own = terms_of(model, x, label, latent.posterior, prior, self._eps)
            rate = rate if own is None else own
        regret = None
        if "regret" in self.needs and rate is not None:
            if model.levels:
                best = best_codes(model, x, label, latent.codes, self._noise.of(batch.example_ids), self.steps)
            else:
                best = best_posterior(model, x, label, latent, self._eps, self._noise, self.steps)
            regret = _numbers(rate + distortion - best)
        return Statistics(_numbers(distortion), None if rate is None else _numbers(rate), regret)


def _numbers(nats: Tensor) -> np.ndarray:
    return nats.cpu().double().numpy()


BYTE = 8 * math.log(2)
"""Nats per byte."""
SMALLEST_FILE = 26
"""Bytes of the shortest possible PNG or WebP file."""
CAUSAL = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Offsets (row, column) from a pixel to those of its context: left, and the three above."""


def file_nats(x: Tensor, schema: Schema) -> np.ndarray:
    """Compute the length in nats of each picture's shortest lossless description, `[B]` float64.

    These are its PNG and lossless WebP file (8 ln 2 per byte, headers included) and, for binary pictures, an adaptive
    context code as in fax machines. The length bounds the Kolmogorov complexity from above (Serra et al. 2020, section
    3). For small binary pictures the file formats need several times the length of the context code.

    Args:
        x: uint8 or binary values `[B, C, H, W]`.
    """
    tiles = kind_of(schema).render(x)
    mode = MODES[tiles.shape[-1]]
    least = context_nats(x.cpu().numpy()) if schema.values == Binary() else np.full(len(x), np.inf)
    for i in np.flatnonzero(least > SMALLEST_FILE * BYTE):
        least[i] = min(least[i], _shortest(Image.fromarray(tiles[i].squeeze(), mode)) * BYTE)
    return least


def context_nats(x: np.ndarray) -> np.ndarray:
    """Compute the nats of an adaptive arithmetic code of binary pictures `[B, C, H, W]`, `[B]` float64.

    A pixel is coded given four neighbours before it (channels separately). The probabilities in each context are
    learned along the way by the estimator of Krichevsky & Trofimov (1981, eq. 2.2), (n_v + 1/2) / (n + 1). The total
    depends on the counts alone: sum over contexts of -log B(n_0 + 1/2, n_1 + 1/2) / B(1/2, 1/2).
    """
    batch, channels, height, width = x.shape
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    cells = x.astype(np.int64)
    for bit, (row, column) in enumerate(CAUSAL, 1):
        cells = cells + (padded[:, :, 1 + row : 1 + row + height, 1 + column : 1 + column + width] << bit)
    each = 2 ** (1 + len(CAUSAL))
    cells = cells + each * np.arange(batch * channels).reshape(batch, channels, 1, 1)
    counts = np.bincount(cells.ravel(), minlength=batch * channels * each).reshape(batch, -1, 2) + 0.5
    return (betaln(0.5, 0.5) - betaln(counts[..., 0], counts[..., 1])).sum(1)


def _shortest(picture: Image.Image) -> int:
    """Return the bytes of the shorter of PNG and WebP; of PNG alone if Pillow has no WebP."""
    png = _bytes(picture, format="PNG", optimize=True)
    if not features.check("webp"):
        return png
    colour = picture.convert("RGBA" if "A" in picture.mode else "RGB")
    return min(png, _bytes(colour, format="WEBP", lossless=True, exact=True))


def _bytes(picture: Image.Image, **options: object) -> int:
    buffer = io.BytesIO()
    picture.save(buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.tell()


STEP = 0.1
"""Learning rate of Adam, in standard deviations of the encoder's q."""
SHARES = (0.5, 0.2, 0.1, 0.05)
"""Shares of the codes that a trial replaces, in turn."""


def terms_of(
    model: Model, x: Tensor, label: Tensor | None, q: Distribution, prior: Distribution | None, eps: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Compute distortion -E_q log p(x | z) and rate KL(q || p), both `[B]`, over given noise.

    The rate is in closed form if there is one, else the mean over the same samples.

    Args:
        q: q(z | x), a Gaussian or a flow over one, batch shape `[B]`.
        prior: p(z); None omits the rate.
        eps: `[samples, B or 1, *latent_shape]`, standard normal noise that is mapped to z by q.
    """
    closed = None if prior is None else kl_closed(q, prior)
    start = q.base if isinstance(q, FlowDistribution) else q
    distortions: list[Tensor] = []
    rates: list[Tensor] = []
    for e in eps:
        z = start.mean + start.stddev * e
        z, log_q = q.carried(z) if isinstance(q, FlowDistribution) else (z, q.log_prob(z))
        distortions.append(-model.decode(z, label).log_prob(x))
        if prior is not None and closed is None:
            rates.append(log_q - prior.log_prob(z))
    return torch.stack(distortions).mean(0), torch.stack(rates).mean(0) if rates else closed


def best_posterior(
    model: Model, x: Tensor, label: Tensor | None, latent: Latent, eps: Tensor, noise: Noise, steps: int
) -> Tensor:
    """Compute the bound after mean and scale of q have been optimised by Adam, with the decoder fixed."""
    assert latent.posterior is not None
    return per_example_posterior.after_steps(
        cast(LatentVariableModel, model), x, label, latent.posterior, eps, noise, steps=steps, rate=STEP
    )


@torch.no_grad()
def best_codes(
    model: Model, x: Tensor, label: Tensor | None, codes: Sequence[Tensor], noise: Noise, steps: int
) -> Tensor:
    """Search locally for the lowest -log p(x, codes).

    A trial replaces some of the codes by samples of the softened q(codes | x), and is accepted for the examples whose
    -log p(x, codes) it lowers. So a regret is never below zero.
    """
    model = cast(CodeModel, model)
    best, cost = tuple(codes), _cost(model, x, label, codes)
    for step in range(steps):
        sampled = model.draw_codes(x, noise.split(f"codes{step}"))
        share = SHARES[step % len(SHARES)]
        chance = noise.split(f"places{step}")
        places = [chance.uniform(*c.shape, device=c.device) < share for c in best]
        tried = tuple(torch.where(p, d, b) for p, d, b in zip(places, sampled, best, strict=True))
        now = _cost(model, x, label, tried)
        better = now < cost
        cost = torch.where(better, now, cost)
        best = tuple(torch.where(better.view(-1, *[1] * (t.dim() - 1)), t, b) for t, b in zip(tried, best, strict=True))
    return cost


def _cost(model: CodeModel, x: Tensor, label: Tensor | None, codes: Sequence[Tensor]) -> Tensor:
    rate = -torch.stack([level.flatten(1).sum(1) for level in model.log_prob_codes(codes, label)]).sum(0)
    return rate - model.decode(model.lookup(codes), label).log_prob(x)
