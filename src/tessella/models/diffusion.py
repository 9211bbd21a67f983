"""Diffusion model: z is z_0, the least noisy latent, p(z_0) is a chain, and p(x | z_0) is almost certain."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tessella.core.contracts import StoredValues
from tessella.core.outputs import Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.diffusion.chain import Chain
from tessella.diffusion.discretized_likelihood import Observation
from tessella.diffusion.schedule import NoiseSchedule, alpha, over, sigma
from tessella.models.base import Model
from tessella.models.spec import ModelConfig
from tessella.networks.denoising_mlp import DenoisingPerceptron
from tessella.networks.unet import UNet

TIMES = 16
"""Evaluations per example with fixed noise: eight noise levels, each twice."""
MEASURED = 2
"""Evaluations per example with random noise outside training, where each example's estimate must stand alone."""


@final
class DiffusionModel(Model):
    """Diffusion model: z = z_0, and q(z | x) = N(alpha_0 x, sigma_0^2 I) is fixed (Kingma et al. 2021).

    `rate` is the rate of the whole chain, KL(q(z_0, ..., z_1 | x) || p), which is at least KL(q(z | x) || p(z)); with
    the distortion -log p(x | z) it bounds -log p(x). Its estimate is unbiased, but may be far off for a single example.

    Args:
        name, config: as in `Model`.
        likelihood: p(x | z_0).
        chain: p(z_0); with classes the model is conditional.
    """

    learning_rate = 1e-3

    def __init__(self, name: str, *, likelihood: Observation, chain: Chain, config: ModelConfig | None = None) -> None:
        super().__init__(name, likelihood, config, conditional=bool(chain.classes))
        self.chain, self.latent_shape = chain, chain.shape

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        if draws is not None:
            return self._of_draws(x, label, noise or Noise(0), draws)
        y = self.likelihood.to_network(x)
        rate = self._rate(y, label, noise)
        return Terms(-self.decode(self._start(y, noise), label).log_prob(x), rate)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        y = self.likelihood.to_network(x)
        first, _ = self.chain.schedule.ends()
        mean = alpha(first) * y
        q = Independent(
            Normal(mean, sigma(first).expand_as(mean), validate_args=False), y.dim() - 1, validate_args=False
        )
        return Latent(self._start(y, noise), q, trace=(y,))

    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate:
        return Rate(self._rate(latent.trace[0], label, noise))

    def _rate(self, y: Tensor, label: Tensor | None, noise: Noise | None) -> Tensor:
        times = TIMES if noise is None else 1 if self.training else MEASURED
        source = None if noise is None else noise.split("rate")
        return self.chain.rate(y, self.check_label(label), source, times=times)

    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
        self.check_label(label)
        first, _ = self.chain.schedule.ends()
        location = z / alpha(first)
        return self.likelihood(torch.cat([location, over(-first, z).expand_as(z)], 1))

    def _start(self, y: Tensor, noise: Noise | None) -> Tensor:
        return self.chain.start(y, None if noise is None else noise.split("start"))

    def _of_draws(self, x: Tensor, label: Tensor | None, noise: Noise, draws: int) -> Terms:
        """Compute the terms for `draws` samples of a chain with few steps: a looser bound, but exact weights."""
        many, labels = x.repeat_interleave(draws, 0), None if label is None else label.repeat_interleave(draws)
        y = self.likelihood.to_network(many)
        z = self._start(y, noise)
        distortion = -self.decode(z, labels).log_prob(many)
        rate = -self.chain.log_weight(y, z, self.check_label(labels), noise.split("links"))
        each = distortion.view(len(x), draws)
        return Terms(each.mean(1), rate.view(len(x), draws).mean(1), log_weights=-(each + rate.view_as(each)).T)

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Tensor:
        sampling = self.reject_truncation(sampling)
        return self.chain.sample(count, Noise(seed, stream="prior"), self.check_label(label), sampling)

    def compile_networks(self) -> None:
        self.chain.network.compile()


def build_diffusion_model(
    config: ModelConfig, schema: Schema, *, width: int | None, depth: int | None, class_conditional: bool
) -> DiffusionModel:
    """Make a diffusion model for such data: a U-Net of pictures and signals, a residual MLP of vectors."""
    likelihood = Observation(schema)
    channels, classes = schema.shape[0], len(schema.classes) if class_conditional else 0
    seen = classes + 1 if classes else 0
    network = (
        UNet(schema.shape, 2 * channels, width=width or 64, depth=depth or 2, classes=seen)
        if schema.rank
        else DenoisingPerceptron(channels, 2 * channels, width=width or 256, depth=depth or 4, classes=seen)
    )
    levels = schema.values.levels
    least = {0: -8.0, 2: -4.0}.get(levels) or -13.3 - 2 * math.log((levels - 1) / 255)
    schedule, variance = NoiseSchedule(least), 0.25 if schema.values.kind == "integers" else 1.0
    if schema.level:
        variance = (2 * schema.level / schema.values.span) ** 2
    chain = Chain(schema.shape, network, schedule, levels=likelihood.levels, variance=variance, classes=classes)
    return DiffusionModel(config.name, likelihood=likelihood, chain=chain, config=config)
