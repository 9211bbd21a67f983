"""What the loop trains when a prior is fitted, and what is looked at meanwhile, whatever z is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from tessella.core.device import autocast, precise
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Precision, Schema, bits_per_dim
from tessella.data import Split
from tessella.kinds import pictures
from tessella.models.base import Model
from tessella.models.spec import Objective, TrainOptions
from tessella.training.callbacks import SHOWN, ValidationProbe
from tessella.training.loop import TrainResult

ENCODED = 250
"""Examples that are encoded at a time."""
DRAWS = 4
"""Times that each training example is encoded where the data draws it anew each time."""
MEASURED = 2000
"""Validation examples that a look measures."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FitResult:
    """How fitting a prior ended.

    Attributes:
        training: how the loop ended.
        rate: its mean rate on the whole validation split in nats (of an autoencoder, which has no q(z | x), the cross
            entropy -log p(z)); None without one, or if it was stopped.
        rate_before: what the prior pays that the model was trained with: of codes the uniform one; None if there is
            no such prior or no validation split.
        of_codes: whether it is over codes.
    """

    training: TrainResult
    rate: float | None
    rate_before: float | None
    of_codes: bool = True


class Frozen(nn.Module, ABC):
    """A prior as the loop trains it: rows of a split to their rate. The model that they are latents of stays.

    Args:
        model: whose latents they are; its weights are not this module's.
    """

    learning_rate: float = 1e-3
    """What suits it at the height of training, unless another is asked for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._model = (model,)  # in a tuple, so that its weights are not this module's

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model whose latents they are, with this prior."""

    @property
    def schema(self) -> Schema:
        """The data's, so that a rate in nats per dimension is one of the data's dimensions."""
        return self._model[0].schema

    @property
    def objective(self) -> Objective:
        return Objective()

    @abstractmethod
    def measuring(self, number: int) -> Noise | None:
        """The randomness that the batch of that number is measured with."""

    @abstractmethod
    def compile_networks(self) -> None: ...

    @abstractmethod
    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Rows of a split to their rate; there is no distortion."""


@torch.inference_mode()
def mean_rate(fit: Frozen, split: Split, *, precision: Precision, limit: int | None = None, times: int = 1) -> float:
    """The mean rate of a split's latents in nats, each drawn `times` times."""
    training = fit.training
    fit.eval()
    device, total = fit.model.device, min(len(split), limit or len(split))
    order = np.tile(split.random_rows(total), times)
    nats = 0.0
    for number, first in enumerate(range(0, len(order), ENCODED)):
        batch = split.batch(order[first : first + ENCODED])
        label = None if batch.label is None else batch.label.to(device)
        with autocast(precision, fit.schema, device):
            terms = fit(batch.x.to(device), label, noise=fit.measuring(number))
        nats += float(precise(terms.rate).sum())
    fit.train(training)
    return nats / len(order)


@final
class PriorView(ValidationProbe):
    """The rate on the validation split, and samples."""

    def __init__(self, valid: Split | None, options: TrainOptions) -> None:
        self.valid = valid
        self.precision: Precision = options.precision

    def measure(self, model: Any) -> dict[str, float | None]:
        if self.valid is None:
            return {}
        rate = mean_rate(model, self.valid, precision=self.precision, limit=MEASURED)
        bits = bits_per_dim(rate, model.schema.dims) if model.model.has_bound else None
        return {"rate": rate, "bits_per_dim": bits}

    @torch.inference_mode()
    def draw(self, model: Any) -> dict[str, Image]:
        label = torch.arange(2 * SHOWN) % max(1, len(model.schema.classes)) if model.model.conditional else None
        drawn = model.model.sample(2 * SHOWN, None if label is None else label.to(model.model.device))
        return {"samples": pictures.grid(drawn, model.schema, columns=SHOWN)}
