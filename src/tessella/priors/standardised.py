"""Wrapper that lets a prior over latents of unit scale model latents of any scale."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.distributions import AffineTransform, TransformedDistribution

from tessella.core.contracts import Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise


@final
class Standardised(Prior):
    """Prior over standardised latents: z = mean + deviation u with u ~ p_u.

    p(z) = p_u((z - mean) / deviation) / prod deviation. The z of an autoencoder may have any scale; priors are made for
    numbers near N(0, 1).

    Args:
        prior: p_u, over latents of shape `latent_shape`.
        latent_shape: shape of one example's z.
        classes: number of labels of `prior`; 0: it gets no labels.

    Attributes:
        mean, deviation: mean and standard deviation of z, `[*latent_shape]`; 0 and 1 until `fit_scale`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, prior: Prior, latent_shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.prior, self.classes = prior, classes
        self.exact, self.iterative = prior.exact, prior.iterative
        self.latent_shape = latent_shape
        self.register_buffer("mean", torch.zeros(latent_shape))
        self.register_buffer("deviation", torch.ones(latent_shape))

    @torch.no_grad()
    def fit_scale(self, mean: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation: one number per channel, `[C]` each, or any shape that expands to `latent_shape`."""
        spread = (-1, *[1] * (len(self.latent_shape) - 1))
        for kept, given in ((self.mean, mean), (self.deviation, deviation)):
            kept.copy_((given.reshape(spread) if given.dim() == 1 else given).expand(self.latent_shape))

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> TransformedDistribution:
        base = self.prior(label if self.classes else None, noise)
        scale = AffineTransform(self.mean, self.deviation, event_dim=len(self.latent_shape))
        return TransformedDistribution(base, scale, validate_args=False)

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        return self.mean + self.deviation * self.prior.sample(count, noise, label, sampling=sampling)
