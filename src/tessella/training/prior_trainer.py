"""Train priors on the latents of a fixed model: minimise the rate E_q[log q(z | x) - log p(z)] over p.

The entropy of q is constant, so this minimises the cross entropy -E_q log p(z). With a new sample of the posterior in
each step, it is the second stage of Dai & Wipf (2019, section 4) and the latent-space model of Rombach et al. (2022,
section 3.2). Examples are encoded once: to codes, to mean and deviation of the posterior, or to an autoencoder's z.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from tessella.bottlenecks.gaussian import diagonal_normal
from tessella.core.batches import Batch
from tessella.core.device import autocast, precise
from tessella.core.outputs import Latent, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Precision, Schema, bits_per_dim
from tessella.data import Data, Split
from tessella.data.splits import Indices
from tessella.foundation.progress import track
from tessella.kinds import pictures
from tessella.models.base import LatentModel
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import Objective
from tessella.priors.standardised import Standardised
from tessella.training.callbacks import SHOWN, ValidationProbe

ENCODED = 250
"""Examples that are encoded at a time."""
DRAWS = 4
"""Number of random encodings of each training example, if the data or its codes are random."""
MEASURED = 2000
"""Validation examples for measurements during training."""
REPEATED = 4_000
"""Least number of samples of z for comparing two priors; few validation examples are sampled repeatedly."""
CACHED = 1 << 29
"""Most bytes of posteriors in memory; beyond, each step encodes its own examples."""
SCALED = 10_000
"""Training examples for measuring the scale of z."""
FLOOR = 1e-4
"""Least standard deviation of z, for units that are constant."""


@final
class EncodedSplit(Split):
    """Split of encoded examples, one row of latents each.

    Args:
        rows: rows `[draws, N, ...]`; a batch with noise chooses one of the draws at random for each example.
        labels: class numbers `[N]`, or None.
    """

    def __init__(self, rows: Tensor, labels: Tensor | None, example_ids: np.ndarray) -> None:
        self.rows, self.example_ids, self.factors = rows, example_ids, {}
        self.labels = None if labels is None else labels.numpy()

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        at = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        which = torch.zeros_like(at) if noise is None else (noise.uniform(len(at)) * len(self.rows)).long()
        return Batch(self.rows[which, at], None if self.labels is None else torch.from_numpy(self.labels)[at])


class PriorTrainer(nn.Module, ABC):
    """Maps rows of latents to their rate, which the training loop minimises over the priors of a model.

    Args:
        model: trained model; its weights are not trained. It keeps its own priors until `set_prior`.

    Attributes:
        encoded: true if the rows come from an `EncodedSplit`, false if they are examples to encode.
    """

    learning_rate: float = 1e-3
    stream: str
    """Name of the random stream for encoding examples."""
    on_disk: bool
    """Whether encoded rows are stored in the run."""

    def __init__(self, model: LatentModel) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, so that its weights are not this module's
        self.priors = nn.ModuleList()
        self.encoded = True

    @property
    def model(self) -> LatentModel:
        """Return the model, which uses the trained priors."""
        return self._model[0]

    @property
    def schema(self) -> Schema:
        """Return the schema of the data, so that bits per dimension count the data's dimensions."""
        return self.model.schema

    @property
    def objective(self) -> Objective:
        return Objective()

    def set_prior(self, priors: Sequence[nn.Module]) -> None:
        """Set the priors to train, and let the model use them."""
        self.priors = nn.ModuleList(prior.to(self.model.device) for prior in priors).requires_grad_(True)
        self.model.set_prior(list(self.priors))

    def compile_networks(self) -> None:
        for prior in self.priors:
            prior.compile()

    @property
    def random(self) -> bool:
        """Return whether codes are sampled: the model was trained with several samples per example."""
        return self.on_disk and self.model.objective.iwae_samples > 1

    @abstractmethod
    def keeps(self, examples: int) -> bool:
        """Return whether the encoded rows of this many examples can be stored."""

    @abstractmethod
    def encode(self, batch: Batch, precision: Precision, noise: Noise | None) -> Tensor:
        """Encode examples to rows `[B, ...]` on the CPU."""

    @abstractmethod
    def fit_scale(self, train: Split, precision: Precision) -> None:
        """Fit the scale of the priors to encoded training examples, before training."""

    @abstractmethod
    def rate_before(self, valid: Split | None, precision: Precision) -> float | None:
        """Compute the rate under the model's own prior; None for an autoencoder, which has none."""

    @abstractmethod
    def mean_rate(self, valid: Split, precision: Precision, limit: int | None = None) -> float:
        """Compute the mean rate of a split in nats, with the priors in evaluation mode."""

    @abstractmethod
    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Compute the rate of rows of a split; the distortion is zero."""


@final
class CodePriorTrainer(PriorTrainer):
    """Trainer of priors over codes of all levels. A row holds the codes of one example, coarsest level first."""

    stream, on_disk = "codes", True

    @property
    def model(self) -> CodeModel:
        return cast(CodeModel, self._model[0])

    def keeps(self, examples: int) -> bool:
        return True

    def encode(self, batch: Batch, precision: Precision, noise: Noise | None) -> Tensor:
        model, x = self.model, batch.x.to(self.model.device)
        with autocast(precision, model.schema, model.device):
            rows = packed(model.encode(x).codes if noise is None or not self.random else model.draw_codes(x, noise))
        return rows.to("cpu", torch.int32 if int(rows.max()) > 32767 else torch.int16)

    def fit_scale(self, train: Split, precision: Precision) -> None:
        """Do nothing: codes have no scale."""

    def rate_before(self, valid: Split | None, precision: Precision) -> float:
        return sum(int(np.prod(q.code_shape)) * float(np.log(q.codebook_size)) for q in self.model.levels)

    def mean_rate(self, valid: Split, precision: Precision, limit: int | None = None) -> float:
        return _mean_rate(self, valid, precision, limit, stream=None)  # the order of the codes is fixed

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        log_p = self.model.log_prob_codes(unpacked(self.model, x), label, noise=noise)
        rates = -torch.stack([level.flatten(1).sum(1) for level in log_p], 1)
        return Terms(torch.zeros_like(rates[:, 0]), rates.sum(1), rates)


def packed(codes: Sequence[Tensor]) -> Tensor:
    """Pack the codes of all levels in one row an example, `[B, codes]`."""
    return torch.cat([c.flatten(1) for c in codes], 1)


def unpacked(model: CodeModel, rows: Tensor) -> tuple[Tensor, ...]:
    """Unpack what `packed` packed."""
    parts = rows.long().split([math.prod(shape) for shape in model.code_shapes], 1)
    return tuple(part.reshape(len(rows), *shape) for part, shape in zip(parts, model.code_shapes, strict=True))


@final
class LatentPriorTrainer(PriorTrainer):
    """Trainer of a prior over continuous z.

    A row `[2 or 1, *latent_shape]` holds mean and deviation of q(z | x), or z alone.
    """

    stream, on_disk = "latents", False

    @property
    def model(self) -> LatentVariableModel:
        return cast(LatentVariableModel, self._model[0])

    def keeps(self, examples: int) -> bool:
        q = self.model.bottleneck
        size = 4 * math.prod(self.model.latent_shape) * (1 + q.stochastic)
        return (q.gaussian or not q.stochastic) and examples * size <= CACHED

    def encode(self, batch: Batch, precision: Precision, noise: Noise | None) -> Tensor:
        model = self.model
        label = None if batch.label is None else batch.label.to(model.device)
        with autocast(precision, model.schema, model.device):
            latent = model.encode(batch.x.to(model.device), label)
        q = latent.posterior
        parts = (latent.z,) if q is None else (q.mean, q.stddev)
        return torch.stack([part.float() for part in parts], 1).cpu()

    def sample(self, x: Tensor, label: Tensor | None, noise: Noise | None) -> Latent:
        """Sample z for each row (its mean without noise), and return it with its posterior."""
        if not self.encoded:
            with torch.no_grad():
                return self.model.encode(x, label, noise=noise)
        if x.shape[1] == 1:
            return Latent(x[:, 0])
        mean, deviation = x.unbind(1)
        z = mean if noise is None else mean + deviation * noise.normal(*mean.shape, device=mean.device)
        return Latent(z, diagonal_normal(mean, deviation))

    @torch.no_grad()
    def fit_scale(self, train: Split, precision: Precision) -> None:
        """Fit the mean and standard deviation of each channel of z."""
        order, device = train.random_rows(SCALED), self.model.device
        sums = torch.zeros(2, self.model.latent_shape[0], dtype=torch.float64)
        for number, first in enumerate(range(0, len(order), ENCODED)):
            batch = train.batch(order[first : first + ENCODED]).to(device)
            with autocast(precision, self.schema, device):
                z = self.sample(batch.x, batch.label, Noise(0, number, "scale")).z
            z = z.cpu().double().transpose(0, 1).flatten(1)
            sums += torch.stack([z.sum(1), z.square().sum(1)])
        mean, square = sums / (len(order) * math.prod(self.model.latent_shape[1:]))
        deviation = (square - mean.square()).clamp_min(FLOOR**2).sqrt()
        cast(Standardised, self.priors[0]).fit_scale(mean.float(), deviation.float())

    def rate_before(self, valid: Split | None, precision: Precision) -> float | None:
        return self.mean_rate(valid, precision) if self.model.has_bound and valid is not None else None

    def mean_rate(self, valid: Split, precision: Precision, limit: int | None = None) -> float:
        times = 1 if limit else max(1, REPEATED // len(valid))  # so that few examples do not decide by luck
        return _mean_rate(self, valid, precision, limit, stream="rate", times=times)

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Compute log q(z | x) - log p(z) at a sample of each row. For an autoencoder, compute only -log p(z)."""
        latent = self.sample(x, label, noise)
        with torch.autocast(x.device.type, enabled=False):
            log_p = self.model.prior_given(label, noise).log_prob(latent.z.float())
            log_q = 0.0 if latent.posterior is None else latent.posterior.log_prob(latent.z.float())
        return Terms(torch.zeros_like(log_p), log_q - log_p)


def prior_trainer(model: LatentModel) -> PriorTrainer:
    """Make a trainer of priors for a model's kind of latents: codes or real numbers."""
    return CodePriorTrainer(model) if model.prior_part == "code-prior" else LatentPriorTrainer(model)


@torch.inference_mode()
def _mean_rate(
    trainer: PriorTrainer, split: Split, precision: Precision, limit: int | None, stream: str | None, times: int = 1
) -> float:
    """Average the rate over a split, with `times` noise samples per example. No noise is used if `stream` is None."""
    training = trainer.training
    trainer.eval()
    device, total = trainer.model.device, min(len(split), limit or len(split))
    order = np.tile(split.random_rows(total), times)
    nats = 0.0
    for number, first in enumerate(range(0, len(order), ENCODED)):
        batch = split.batch(order[first : first + ENCODED]).to(device)
        with autocast(precision, trainer.schema, device):
            terms = trainer(batch.x, batch.label, noise=None if stream is None else Noise(0, number, stream))
        nats += float(precise(terms.rate).sum())
    trainer.train(training)
    return nats / len(order)


def encode_splits(trainer: PriorTrainer, data: Data, precision: Precision) -> dict[str, Split]:
    """Encode the training and validation splits if their rows can be stored. Otherwise return them unchanged.

    If the data or the codes are random, each training example is encoded several times.
    """
    splits = {name: data.split(name) for name in ("train", "valid") if name in data.splits}
    random = trainer.random or data.options.get("binarize") == "dynamic"
    draws = {name: DRAWS if name == "train" and random else 1 for name in splits}
    trainer.encoded = trainer.keeps(sum(draws[name] * len(split) for name, split in splits.items()))
    if not trainer.encoded:
        return splits
    return {name: encode_split(trainer, split, precision, draws[name]) for name, split in splits.items()}


@torch.no_grad()
def encode_split(trainer: PriorTrainer, split: Split, precision: Precision, draws: int = 1) -> EncodedSplit:
    """Encode each example of a split `draws` times."""
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    firsts = [(draw, first) for draw in range(draws) for first in range(0, len(split), ENCODED)]
    for draw, first in track(firsts, "encoding"):
        noise = Noise(draw, first, trainer.stream) if draws > 1 else None
        batch = split.batch(np.arange(first, min(first + ENCODED, len(split))), noise)
        rows.append(trainer.encode(batch, precision, noise))
        labels += [batch.label] if draw == 0 and batch.label is not None else []
    every = torch.cat(rows).unflatten(0, (draws, len(split)))
    return EncodedSplit(every, torch.cat(labels) if labels else None, split.example_ids)


@final
class PriorProbe(ValidationProbe):
    """Probe of a prior: rate on the validation split, and samples."""

    def __init__(self, valid: Split | None, precision: Precision) -> None:
        self.valid, self.precision = valid, precision

    def measure(self, model: Any) -> dict[str, float | None]:
        if self.valid is None:
            return {}
        rate = model.mean_rate(self.valid, self.precision, limit=MEASURED)
        bits = bits_per_dim(rate, model.schema.observed_dims) if model.model.has_bound else None
        return {"rate": rate, "bits_per_dim": bits}

    def cost(self, model: Any, figures: Mapping[str, float | None]) -> float:
        """Return the rate."""
        return figures["rate"] or 0.0

    @torch.inference_mode()
    def draw(self, model: Any) -> dict[str, Image]:
        label = torch.arange(2 * SHOWN) % max(1, len(model.schema.classes)) if model.model.conditional else None
        samples = model.model.sample(2 * SHOWN, None if label is None else label.to(model.model.device))
        return {"samples": pictures.image_grid(samples, model.schema, columns=SHOWN)}
