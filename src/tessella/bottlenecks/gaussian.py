"""Bottlenecks with continuous latents: deterministic and Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tessella.core.contracts import Bottleneck
from tessella.core.outputs import BottleneckOutput
from tessella.core.rng import Noise
from tessella.networks.conv import conv


def position_head(feature_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Make a linear map of each position's features."""
    rank = len(feature_shape) - 1
    return conv(rank, feature_shape[0], outputs) if rank else nn.Linear(feature_shape[0], outputs)


def diagonal_normal(mean: Tensor, deviation: Tensor) -> Independent:
    """Make N(mean, diag deviation^2) with batch shape `[B]`; arguments are not validated, for speed."""
    return Independent(Normal(mean, deviation, validate_args=False), mean.dim() - 1, validate_args=False)


class DeterministicModule(Bottleneck):
    """Bottleneck of an autoencoder: z = W h, without a distribution and so without a rate."""

    stochastic = False

    def __init__(self, feature_shape: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.head = position_head(feature_shape, channels)
        self.latent_shape = (channels, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        return BottleneckOutput(self.head(features).float(), None)


class DiagonalGaussianModule(Bottleneck):
    """q(z | x) = N(mu, diag sigma^2), z = mu + sigma * eps (Kingma & Welling 2013, section 2.4 and appendix C.2).

    log sigma is clamped to [-8, 4], so that the first steps cannot overflow; a dimension at a bound still has a correct
    KL. The head starts near q = N(0, I), that is at a rate near zero.
    """

    gaussian = True

    def __init__(self, feature_shape: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.head = position_head(feature_shape, 2 * channels)
        self.latent_shape = (channels, *feature_shape[1:])
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(0.1)

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            mu, log_sigma = self.head(features.float()).chunk(2, dim=1)
        sigma = log_sigma.clamp(-8, 4).exp()
        z = mu if noise is None else mu + sigma * noise.normal(*mu.shape, device=mu.device)
        return BottleneckOutput(z, diagonal_normal(mu, sigma))
