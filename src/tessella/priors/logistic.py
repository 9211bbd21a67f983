"""Standard logistic prior, for flows whose last maps are distribution functions."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from tessella.core.contracts import Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise

TINY = 1e-7


class StandardLogistic(Prior):
    """Standard logistic prior p(z) = prod_d sigmoid'(z_d) (Dinh et al. 2014, section 3.4)."""

    zero: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        return IndependentLogistic(self.zero.expand(self.latent_shape))

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        u = noise.uniform(count, *self.latent_shape, device=self.zero.device)
        return sampling.temperature * u.clamp(TINY, 1 - TINY).logit()


@final
class IndependentLogistic(Distribution):
    """Independent logistic numbers with scale one and mean `location` `[*event_shape]`."""

    def __init__(self, location: Tensor) -> None:
        self.location = location
        super().__init__(torch.Size(), location.shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    @property
    def mean(self) -> Tensor:
        return self.location

    def log_prob(self, value: Tensor) -> Tensor:
        t = value - self.location
        each = F.logsigmoid(t) + F.logsigmoid(-t)
        return each.flatten(each.dim() - len(self.event_shape)).sum(-1)
