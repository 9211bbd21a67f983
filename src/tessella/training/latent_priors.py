"""FitResult a prior over real-valued latents: min E_q[log q(z | x) - log p(z)], the rate, over p alone.

The entropy of q is a constant, so this is the cross entropy -E_q log p(z); with a posterior drawn anew each step it is
the second stage of Dai & Wipf (2019, section 4) and the latent-space model of Rombach et al. (2022, section 3.2).
"""

from __future__ import annotations

import math
from typing import cast, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from tessella.bottlenecks.gaussian import diagonal_normal
from tessella.core.batches import Batch
from tessella.core.device import autocast
from tessella.core.outputs import Latent, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Precision
from tessella.data import Data, Split
from tessella.data.splits import Indices
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors.mixture import VampPriorModule
from tessella.priors.standardised import Standardised
from tessella.training.prior_trainer import DRAWS, ENCODED, Frozen, Progress

CACHED = 1 << 29
"""Bytes of posteriors that are kept in memory; more are encoded anew each step."""
SCALED = 10_000
"""Training examples that the scale of z is taken from."""
FLOOR = 1e-4
"""The least deviation of z: a unit that never moves has none."""
PAIRED = 4_000
"""Draws that two priors are compared on, if each validation example gives one or more."""


@final
class LatentsSplit(Split):
    """The posteriors of a split's examples: mean and deviation of each, or z alone of an autoencoder.

    Args:
        rows: `[draws, N, 2 or 1, *latent_shape]`; of several draws a batch with noise picks one for each example.
        labels: `[N]`, or None.
    """

    def __init__(self, rows: Tensor, labels: Tensor | None, keys: np.ndarray) -> None:
        self._rows, self.example_ids, self.factors = rows, keys, {}
        self.labels = None if labels is None else labels.numpy()

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        at = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        which = torch.zeros_like(at) if noise is None else (noise.uniform(len(at)) * len(self._rows)).long()
        label = None if self.labels is None else torch.from_numpy(self.labels)[at]
        return Batch(self._rows[which, at], label)


@final
class LatentPrior(Frozen):
    """The prior over a model's z as the loop trains it: draws of q(z | x) to their rate.

    Args:
        model: whose latents they are; it uses its own prior until `set_prior`.

    Attributes:
        cached: whether the rows are those of a `LatentsSplit`, and not examples to encode.
    """

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__(model)
        self.cached = False
        self.priors = nn.ModuleList()

    @property
    def model(self) -> LatentVariableModel:
        return cast(LatentVariableModel, self._model[0])

    def set_prior(self, prior: Standardised, rows: Split, examples: Split, precision: Precision) -> None:
        """Let the model use this prior, which is then what is trained.

        Args:
            rows: of the training split, whose scale it is given. A VampPrior, whose components are this model's
                q(z | x), has that scale already, and starts at examples instead.
            examples: of the same split, as stored.
        """
        prior = prior.to(self.model.device)
        if isinstance(prior.prior, VampPriorModule):
            first = examples.batch(examples.random_rows(len(prior.prior.inputs)))
            prior.prior.start_at(self.model.likelihood.to_network(first.x.to(self.model.device)))
        else:
            prior.fit_scale(*scale_of(self, rows, precision))
        self.model.set_prior(prior, labelled=bool(prior.classes))
        self.priors = nn.ModuleList([prior.requires_grad_(True)])

    def measuring(self, number: int) -> Noise:
        return Noise(0, number, "rate")

    def compile_networks(self) -> None:
        for prior in self.priors:
            prior.compile()

    def drawn(self, x: Tensor, label: Tensor | None, noise: Noise | None) -> Latent:
        """z of a batch, drawn with the noise, and what it was drawn from."""
        if not self.cached:
            with torch.no_grad():
                return self.model.encode(x, label, noise=noise)
        if x.shape[1] == 1:
            return Latent(x[:, 0])
        mean, deviation = x.unbind(1)
        q = diagonal_normal(mean, deviation)
        z = mean if noise is None else mean + deviation * noise.normal(*mean.shape, device=mean.device)
        return Latent(z, q)

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Rows `[B, ...]` to log q(z | x) - log p(z) at a draw; of an autoencoder to -log p(z), which is no rate."""
        latent = self.drawn(x, label, noise)
        with torch.autocast(x.device.type, enabled=False):
            log_p = self.model.prior_given(label, noise).log_prob(latent.z.float())
            log_q = 0.0 if latent.posterior is None else latent.posterior.log_prob(latent.z.float())
        return Terms(torch.zeros_like(log_p), log_q - log_p)


@torch.no_grad()
def splits_for(
    fit: LatentPrior, data: Data, precision: Precision, progress: Progress | None = None
) -> dict[str, Split]:
    """The training and validation splits as rows that `fit` takes.

    Where q(z | x) is a normal distribution (or z one value) and all of them fit in memory they are encoded once; `fit`
    is then told so. Otherwise the examples themselves are the rows, and each step encodes its own.
    """
    splits = {name: data.split(name) for name in ("train", "valid") if name in data.splits}
    anew = data.options.get("binarize") == "dynamic"
    draws = {name: DRAWS if name == "train" and anew else 1 for name in splits}
    total = sum(draws[name] * len(split) for name, split in splits.items())
    fit.cached = False
    one = _rows(fit, splits["train"], np.arange(1), None, precision)
    if one is None or total * one[0][0].numel() * 4 > CACHED:
        return splits
    found: dict[str, Split] = {}
    done = 0
    for name, split in splits.items():
        every, labels = [], []
        for draw in range(draws[name]):
            for first in range(0, len(split), ENCODED):
                at = np.arange(first, min(first + ENCODED, len(split)))
                noise = Noise(draw, first, "latents") if draws[name] > 1 else None
                got = _rows(fit, split, at, noise, precision)
                assert got is not None
                every.append(got[0])
                labels += [got[1]] if draw == 0 and got[1] is not None else []
                done += len(at)
                if progress:
                    progress(done, total)
        rows = torch.cat(every).unflatten(0, (draws[name], len(split)))
        found[name] = LatentsSplit(rows, torch.cat(labels) if labels else None, split.example_ids)
    fit.cached = True
    return found


def _rows(
    fit: LatentPrior, split: Split, at: np.ndarray, noise: Noise | None, precision: Precision
) -> tuple[Tensor, Tensor | None] | None:
    """Posteriors `[B, 2 or 1, *latent_shape]` and labels; None if two numbers do not say such a posterior."""
    batch, model = split.batch(at, noise), fit.model
    label = None if batch.label is None else batch.label.to(model.device)
    with autocast(precision, model.schema, model.device):
        latent = model.encode(batch.x.to(model.device), label)
    if latent.posterior is None:
        return latent.z.float().cpu()[:, None], batch.label
    if not _is_normal(latent.posterior):
        return None
    q = latent.posterior
    return torch.stack([q.mean.float(), q.stddev.float()], 1).cpu(), batch.label


def _is_normal(q: Distribution) -> bool:
    return isinstance(q, Independent) and isinstance(q.base_dist, Normal)


@torch.no_grad()
def scale_of(fit: LatentPrior, split: Split, precision: Precision) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of z, `[C]`, over draws of some of a split's examples."""
    order = split.random_rows(SCALED)
    sums = torch.zeros(2, fit.model.latent_shape[0], dtype=torch.float64)
    for number, first in enumerate(range(0, len(order), ENCODED)):
        batch = split.batch(order[first : first + ENCODED])
        label = None if batch.label is None else batch.label.to(fit.model.device)
        with autocast(precision, fit.schema, fit.model.device):
            z = fit.drawn(batch.x.to(fit.model.device), label, Noise(0, number, "scale")).z
        z = z.cpu().double().transpose(0, 1).flatten(1)
        sums += torch.stack([z.sum(1), z.square().sum(1)])
    mean, square = sums / (len(order) * math.prod(fit.model.latent_shape[1:]))
    return mean.float(), (square - mean.square()).clamp_min(FLOOR**2).sqrt().float()


def times_for(split: Split) -> int:
    """How often each validation example is drawn, so that few examples do not decide by luck."""
    return max(1, PAIRED // len(split))
