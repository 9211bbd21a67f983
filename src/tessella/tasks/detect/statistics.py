"""Statistics of examples under a model: the numbers that anomaly scores are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.batches import Batch, FixedBatch, fixed_batches
from tessella.core.rng import Noise
from tessella.kinds.base import kind_of
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.tasks.detect.complexity import file_nats
from tessella.tasks.detect.regret import best_codes, best_posterior, terms_of

DRAWS = 4
"""Draws of z that a distortion is the mean of."""
STEPS = 20
"""Steps of per-example optimisation that a regret is measured by."""


@final
@dataclass(frozen=True)
class Statistics:
    """Of N examples, each `[N]` float64 in nats; None where the model or the data has no such number.

    Attributes:
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
        regret: the bound minus the bound after q has been fitted to the example itself.
        length: of the shortest file that a general lossless compressor makes of the picture.
    """

    distortion: np.ndarray
    rate: np.ndarray | None = None
    regret: np.ndarray | None = None
    length: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.distortion)

    @property
    def bound(self) -> np.ndarray:
        """rate + distortion, of a model that has a rate."""
        assert self.rate is not None
        return self.rate + self.distortion

    def rows(self, which: slice) -> Statistics:
        """Select some of the examples."""
        every = {f.name: values for f in fields(self) if (values := getattr(self, f.name)) is not None}
        return Statistics(**{name: values[which] for name, values in every.items()})

    @staticmethod
    def cat(parts: Iterable[Statistics]) -> Statistics:
        """Concatenate the examples of several batches; of none, no examples."""
        found: dict[str, list[np.ndarray]] = {"distortion": []}
        for part in parts:
            for f in fields(part):
                if (values := getattr(part, f.name)) is not None:
                    found.setdefault(f.name, []).append(values)
        return Statistics(**{name: np.concatenate(v) if v else np.empty(0) for name, v in found.items()})


def possible(model: Model) -> frozenset[str]:
    """Name the statistics that the model, and the kind of its data, allow."""
    found = {"distortion"}
    if model.has_bound:
        found |= {"rate"}
    if model.has_bound and isinstance(model, CodeModel | LatentVariableModel):
        found |= {"regret"}
    if kind_of(model.schema).image_files and model.schema.values.discrete:
        found |= {"length"}
    return frozenset(found)


@final
class StatisticsExtractor:
    """Computes the statistics of batches, and nothing that is not asked for.

    The statistics of an example depend on it alone, and not on its neighbours: batches have one size, z is sampled with
    the same noise for every example, and the local search that measures the regret of codes samples by its key.

    Args:
        needs: names of statistics, all of them `possible`.
        draws: of z an example, where z is continuous.
        steps: of the optimisation that the regret is measured by.
        seed: of all draws.
    """

    def __init__(
        self, model: Model, needs: Collection[str], *, draws: int = DRAWS, steps: int = STEPS, seed: int = 0
    ) -> None:
        self.model, self.needs, self.steps = model.eval(), frozenset(needs), steps
        self._noise = Noise(seed, stream="detect")
        self._eps = Noise(seed, stream="detect").normal(draws, 1, *model.latent_shape, device=model.device)

    def __call__(self, batch: Batch) -> Statistics:
        """Compute the statistics of a batch of stored values, of any length.

        Raises:
            SpecError: if the model needs labels and there are none.
        """
        parts = fixed_batches(batch, self.model.device)
        found = Statistics.cat(self._of(part).rows(slice(0, part.count)) for part in parts)
        length = file_nats(batch.x, self.model.schema) if "length" in self.needs else None
        return replace(found, length=length)

    @torch.no_grad()
    def _of(self, batch: FixedBatch) -> Statistics:
        """The statistics of all its rows, but for the length."""
        model, x, label = self.model, batch.x, batch.label
        latent = model.encode(x, label)
        paid = model.rate(latent, label)
        rate = paid and paid.total
        if latent.posterior is None:
            distortion = -model.decode(latent.z, label).log_prob(x)
        else:
            prior = model.prior_given(label) if isinstance(model, LatentVariableModel) else None
            distortion, own = terms_of(model, x, label, latent.posterior, prior, self._eps)
            rate = rate if own is None else own
        regret = None
        if "regret" in self.needs and rate is not None:
            best = (
                best_codes(model, x, label, latent.codes, self._noise.of(batch.example_ids), self.steps)
                if isinstance(model, CodeModel)
                else best_posterior(model, x, label, latent, self._eps, self._noise, self.steps)
            )
            regret = _numbers(rate + distortion - best)
        return Statistics(_numbers(distortion), None if rate is None else _numbers(rate), regret)


def _numbers(nats: Tensor) -> np.ndarray:
    return nats.cpu().double().numpy()
