"""The composed model: one latent z between an encoder and a decoder.

Imports beside it: spec.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.contracts import Bottleneck, Decoder, Encoder, Likelihood, Prior
from tessella.divergences import kl, kl_per_unit
from tessella.models.model import Model
from tessella.noise import Noise
from tessella.records import Latent, Terms
from tessella.spec import ModelOptions


class LatentVariableModel(Model):
    """p(x, z) = p(z) p(x | z) with q(z | x) (Kingma & Welling 2013, section 2).

    Args:
        name, likelihood, options, conditional: as of `Model`.
        prior: p(z), or None for an autoencoder, which then has no rate and no bound.
    """

    def __init__(
        self,
        name: str,
        *,
        likelihood: Likelihood,
        encoder: Encoder,
        bottleneck: Bottleneck,
        prior: Prior | None,
        decoder: Decoder,
        conditional: bool = False,
        options: ModelOptions | None = None,
    ) -> None:
        super().__init__(name, likelihood, options, conditional=conditional, has_prior=prior is not None)
        self.encoder, self.bottleneck, self.prior, self.decoder = encoder, bottleneck, prior, decoder
        self.latent_shape = bottleneck.latent_shape

    def forward(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Terms:
        latent = self.encode(x, label, noise=noise)
        distortion = -self.decode(latent.z, label).log_prob(x)
        return Terms(distortion, latent.rate, latent.rate_per_unit, latent.penalty)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        passage = self.bottleneck(self._features(x, label), noise)
        if self.prior is None or passage.posterior is None:
            return Latent(passage.z, None, None, passage.penalty)
        prior = self.prior(self.seen(label))
        per_unit = kl_per_unit(passage.posterior, prior)
        rate = kl(passage.posterior, prior, passage.z) if per_unit is None else per_unit.sum(1)
        return Latent(passage.z, rate, per_unit, passage.penalty)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Distribution:
        return self.likelihood(self.decoder(z, self.seen(label)))

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, temperature: float = 1.0
    ) -> Tensor:
        if self.prior is None:
            raise self.without_prior()
        prior = self.prior(self.seen(label))
        eps = Noise(seed, stream="prior").normal(count, *self.latent_shape, device=self.device)
        return prior.mean + temperature * prior.stddev * eps

    def log_weights(self, x: Tensor, label: Tensor | None = None, *, samples: int, noise: Noise) -> Tensor:
        features = self._features(x, label)
        passage = self.bottleneck(features.repeat(samples, *[1] * (features.dim() - 1)), noise)
        if self.prior is None or passage.posterior is None:
            raise self.without_prior()
        labels = None if label is None else label.repeat(samples)
        weights = self.decode(passage.z, labels).log_prob(x.repeat(samples, *[1] * (x.dim() - 1)))
        weights = weights + self.prior(self.seen(labels)).log_prob(passage.z) - passage.posterior.log_prob(passage.z)
        return weights.view(samples, len(x))

    def compile_networks(self) -> None:
        self.encoder.compile()
        self.decoder.compile()

    def _features(self, x: Tensor, label: Tensor | None) -> Tensor:
        return self.encoder(self.likelihood.to_network(x), self.seen(label))
