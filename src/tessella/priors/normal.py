"""Gaussian priors: the standard normal, and one Gaussian per label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tessella.core.contracts import Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise


class StandardNormalModule(Prior):
    """Standard normal prior p(z) = N(0, I)."""

    zero: Tensor

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Independent:
        loc = self.zero.expand(self.latent_shape)
        return Independent(Normal(loc, loc + 1, validate_args=False), len(self.latent_shape), validate_args=False)

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        return sampling.temperature * noise.normal(count, *self.latent_shape, device=self.zero.device)


class ClassNormalModule(Prior):
    """Normal prior per label, p(z | y) = N(mu_y, diag sigma_y^2), learned; starts at N(0, I) (Sohn et al. 2015, section
    4).
    """

    def __init__(self, latent_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.loc = nn.Parameter(torch.zeros(classes, *latent_shape))
        self.log_scale = nn.Parameter(torch.zeros(classes, *latent_shape))

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Independent:
        label = self.check_label(label)
        loc, scale = self.loc[label], self.log_scale[label].clamp(-8, 4).exp()
        return Independent(Normal(loc, scale, validate_args=False), loc.dim() - 1, validate_args=False)

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        prior = self(label).base_dist
        assert isinstance(prior, Normal)
        eps = noise.normal(count, *self.loc.shape[1:], device=self.loc.device)
        return prior.loc + sampling.temperature * prior.scale * eps
