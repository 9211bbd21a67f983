"""Features of examples that a search compares, in one or two spaces.

latent  z of each example (vectors of the codes, or else the posterior mean), with a grid averaged to at most
        `GRID` x `GRID` positions. The distance is the root mean square of the differences. Each value is weighted by
        its use, sqrt(1 - mean posterior variance), which is 0 for an inactive unit. Under a prior other than N(0, I)
        values are in units of their own standard deviation.
codes   codes at each position, for a model with codes; the distance is the share of codes that differ
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.bottlenecks.flow import variance_of
from tessella.core.batches import Batch, FixedBatch, fixed_batches
from tessella.core.rng import Noise, example_keys
from tessella.foundation.errors import DataError, SpecError
from tessella.kinds.base import kind_of
from tessella.models.base import Model
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors.normal import StandardNormalModule

GRID = 7
"""Largest number of positions per axis after averaging a grid of vectors."""
POOLS: dict[int, Callable[..., Tensor]] = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d}
COPIED = 256
"""Maximum number of examples to make altered copies of."""
Features = dict[str, Tensor]
"""Features in each space: `latent` `[N, D]` float16, and `codes` `[N, P]` in the smallest integer type."""


@torch.no_grad()
def features(model: Model, x: Tensor) -> Features:
    """Compute the features of examples `[B, *shape]`.

    Raises:
        SpecError: if the model is conditional.
    """
    return _features(model, x).features


def widths(model: Model) -> dict[str, int]:
    """Count the values of an example in each space."""
    units, *grid = model.latent_shape
    found = {"latent": units * math.prod(min(GRID, side) for side in grid)}
    if model.levels:
        found["codes"] = sum(math.prod(q.code_shape) for q in model.levels)
    return found


@final
class FeatureSurvey:
    """Computes the features of many examples batch by batch, and measures the use of each value.

    Altered copies are made of the `COPIED` examples with the smallest keys, which do not depend on the order of
    examples.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._count = model, 0
        self._variance = self._center = self._sum = self._squares = torch.zeros((), dtype=torch.float64)
        self._keys, self._copied = torch.zeros(0, dtype=torch.int64), torch.zeros(0)

    @torch.no_grad()
    def add(self, x: Tensor) -> Features:
        """Compute the features of examples `[B, *shape]`, and add them to the statistics."""
        looked = _features(self._model, x)
        z = looked.features["latent"].double()
        if not self._count:
            self._center, self._copied = z.mean(0), x[:0]
        apart = z - self._center
        self._count, self._variance = self._count + len(x), self._variance + looked.variance.sum(0)
        self._sum, self._squares = self._sum + apart.sum(0), self._squares + apart.square().sum(0)
        keys = example_keys(x)
        if len(self._keys) < COPIED or bool((keys < self._keys[-1]).any()):
            every, rows = np.unique(torch.cat([self._keys, keys]).numpy(), return_index=True)
            self._keys = torch.from_numpy(every[:COPIED])
            self._copied = torch.cat([self._copied, x])[torch.from_numpy(rows[:COPIED])]
        return looked.features

    @property
    def scale(self) -> Tensor:
        """Compute the factor of each latent value, `[D]`: its use, divided by its deviation if the prior is not N(0,
        I).

        Raises:
            DataError: if there were no examples.
        """
        if not self._count:
            raise DataError("there are no examples to index", code="no-examples")
        moved = self._squares / self._count - (self._sum / self._count).square()
        variance = self._variance / self._count
        model, total = self._model, torch.ones_like(variance)
        if model.has_decoder and model.has_bound and not model.levels:
            prior = cast(LatentVariableModel, model).prior
            total = total if isinstance(prior, StandardNormalModule) else (variance + moved).clamp_min(1e-12)
        return ((1 - variance / total).clamp_min(1e-12) / total).sqrt().float()

    @torch.no_grad()
    def altered(self) -> list[tuple[Features, Features]]:
        """Compute the features of some examples and of their altered copies, in pairs."""
        x, first = self._copied, features(self._model, self._copied)
        noise = Noise(0, stream="copies").of(self._keys)
        return [(first, features(self._model, copy)) for copy in kind_of(self._model.schema).altered_copies(x, noise)]


@dataclass(frozen=True)
class _Features:
    """Features, and the posterior variance of each latent value, `[B, D]`; zeros without a posterior."""

    features: Features
    variance: Tensor


def _features(model: Model, x: Tensor) -> _Features:
    if model.conditional and not model.levels:
        raise SpecError(
            f"the z of the model {model.name} lacks the information in the label: search with a vae or vqvae",
            code="conditional-model",
        )
    parts = [_of_batch(model, batch) for batch in fixed_batches(Batch(x), model.device)]
    spaces = {space: torch.cat([part.features[space] for part in parts]) for space in parts[0].features}
    return _Features(spaces, torch.cat([part.variance for part in parts]))


def _of_batch(model: Model, batch: FixedBatch) -> _Features:
    latent = model.encode(batch.x)
    z = _averaged(latent.z)
    variance = torch.zeros_like(z) if latent.posterior is None else _averaged(variance_of(latent.posterior))
    found = {"latent": z[: batch.count].half().cpu()}
    if model.levels:
        codes = torch.cat([c.flatten(1) for c in latent.codes], 1)[: batch.count].cpu()
        largest = max(q.codebook_size for q in model.levels) - 1
        found["codes"] = codes.to(torch.uint8 if largest < 256 else torch.int16 if largest < 1 << 15 else torch.int32)
    return _Features(found, variance[: batch.count].cpu().double())


def _averaged(z: Tensor) -> Tensor:
    """Average z `[B, *latent_shape]` to at most `GRID` positions per axis, flattened to rows."""
    if z.dim() > 2:
        z = POOLS[z.dim()](z, tuple(min(GRID, side) for side in z.shape[2:]))
    return z.flatten(1)


BLOCK = 1 << 13
"""Rows of an index that are compared at once."""
FOUND_AGAIN = 0.95
"""Share of altered copies that are nearer to their originals than the threshold of near-duplicates."""


@final
class Measure:
    """Computes distances in one space, with latent values multiplied by `scale` `[D]`."""

    def __init__(self, space: str, scale: Tensor) -> None:
        self.codes, self.scale = space == "codes", scale

    def ready(self, rows: Tensor) -> Tensor:
        """Scale features for comparison."""
        return rows if self.codes else rows.float() * self.scale

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute distances `[A, B]` between rows `[A, D]` and `[B, D]`.

        In latent space they come from a matrix product, which is less exact for near rows.
        """
        if self.codes:
            return torch.stack([(row != b).sum(1) for row in a]) / a.shape[1]
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
        return (squares.clamp_min(0) / a.shape[1]).sqrt()

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute distances `[A, n]` between rows `[A, D]` and their own candidates `[A, n, D]`."""
        if self.codes:
            return (a[:, None] != b).sum(2) / a.shape[1]
        return (a[:, None] - b).square().mean(2).sqrt()


def distance_of_copies(space: str, copies: Iterable[tuple[Features, Features]], scale: Tensor) -> float:
    """Compute the distance below which the share `FOUND_AGAIN` of altered copies is from its originals."""
    measure = Measure(space, scale)
    each = [measure.exact(measure.ready(a[space]), measure.ready(b[space])[:, None])[:, 0] for a, b in copies]
    return float(torch.quantile(torch.cat(each).double(), FOUND_AGAIN))
