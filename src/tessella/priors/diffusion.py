"""Diffusion prior over continuous latents."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from tessella.core.contracts import Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.diffusion.chain import Chain
from tessella.diffusion.schedule import NoiseSchedule, alpha
from tessella.networks.denoising_mlp import DenoisingPerceptron
from tessella.networks.unet import UNet

TIMES, FIXED = 8, 32
"""Noise levels per example for an estimate of `log_prob` outside training: with noise, and without."""


@final
class DiffusionPriorModule(Prior):
    """Diffusion prior in a model's latent space (Vahdat et al. 2021; Rombach et al. 2022, section 3.2).

    p(z) = int p(z_0) N(z; z_0 / alpha_0, exp(gamma_0) I) dz_0, where p(z_0) is a `Chain`. `log_prob` estimates a lower
    bound on the log-density: E[log p(z | z_0)] minus the rate of the chain; gamma_0 is learned. z should have about
    unit scale.

    Args:
        latent_shape: shape of one example's z, `(D, *spatial)`.
        classes: number of labels; 0: the prior takes no labels.
        width: channels (default for grids: 64) or units per layer (default for vectors: 256).
        depth: blocks per resolution (default for grids: 2) or layers (default for vectors: 4).
    """

    exact = False
    iterative = True

    def __init__(self, latent_shape: tuple[int, ...], classes: int, *, width: int | None, depth: int | None) -> None:
        super().__init__()
        self.latent_shape, self.classes = latent_shape, classes
        seen = classes + 1 if classes else 0
        if len(latent_shape) > 1:
            network: nn.Module = UNet(
                latent_shape, 2 * latent_shape[0], width=width or 64, depth=depth or 2, patch=1, classes=seen
            )
        else:
            dims = math.prod(latent_shape)
            network = DenoisingPerceptron(dims, 2 * dims, width=width or 256, depth=depth or 4, classes=seen)
        self.chain = Chain(latent_shape, network, NoiseSchedule(-8.0, 5.0), classes=classes)

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        return _Bounded(self, self.check_label(label), noise)

    def log_prob(self, z: Tensor, label: Tensor | None, noise: Noise | None) -> Tensor:
        """Estimate a lower bound on log p(z) of z `[B, *latent_shape]`: `[B]` nats.

        In training mode one noise level per example is used, otherwise several; if `noise` is None they are fixed.
        """
        times = FIXED if noise is None else 1 if self.training else TIMES
        rate = self.chain.rate(z, label, None if noise is None else noise.split("rate"), times=times)
        first, _ = self.chain.schedule.ends()
        # E[log p(z | z_0)] in closed form: z_0 / alpha_0 - z ~ N(0, exp(gamma_0)), and the scale is that deviation
        return -(1 + math.log(2 * math.pi) + first) / 2 * math.prod(self.latent_shape) - rate

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        """Sample z as `Prior.sample` does; returns the mean of p(z | z_0).

        `Sampling.steps` is 50 by default. `Sampling.guidance` 0 ignores the label, 1 samples p(z | label).

        Raises:
            SpecError: if guidance is given to a prior that takes no labels.
        """
        first, _ = self.chain.schedule.ends()
        return self.chain.sample(count, noise, label, sampling) / alpha(first.detach())


@final
class _Bounded(Distribution):
    """Distribution whose `log_prob` is the lower bound; batch shape `()`, or `[B]` given labels."""

    def __init__(self, prior: DiffusionPriorModule, label: Tensor | None, noise: Noise | None) -> None:
        self.prior, self.label, self.noise = prior, label, noise
        batch = torch.Size() if label is None else label.shape
        super().__init__(batch, torch.Size(prior.latent_shape), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.log_prob(value, self.label, self.noise)
