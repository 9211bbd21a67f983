"""The composed model: one latent z between an encoder and a decoder.

Imports beside it: spec.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.core.contracts import Bottleneck, Decoder, Encoder, Likelihood, Prior
from tessella.core.distributions import kl, kl_closed, kl_per_unit
from tessella.core.outputs import BottleneckOutput, Latent, Sampling, Terms
from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError
from tessella.models.base import Model
from tessella.models.spec import ModelConfig


class LatentVariableModel(Model):
    """p(x, z) = p(z) p(x | z) with q(z | x) (Kingma & Welling 2013, section 2).

    Args:
        name, likelihood, config, conditional: as of `Model`.
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
        config: ModelConfig | None = None,
    ) -> None:
        super().__init__(name, likelihood, config, conditional=conditional)
        self.encoder, self.bottleneck, self.prior, self.decoder = encoder, bottleneck, prior, decoder
        self.latent_shape = bottleneck.latent_shape
        self.networks_see_labels = conditional

    def set_prior(self, prior: Prior | None, *, labelled: bool = False) -> None:
        """Use this p(z) from now on; q(z | x) and p(x | z) stay as they are.

        Args:
            labelled: whether it is p(z | label): the model is then conditional, though its networks see no label.
        """
        self.prior = prior
        self.conditional = self.networks_see_labels or labelled

    @property
    def has_prior(self) -> bool:
        return self.prior is not None

    @property
    def has_bound(self) -> bool:
        return self.has_prior and self.bottleneck.stochastic

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        features = self.encoder(self.likelihood.to_network(x), self._shown(label))
        if draws is not None:
            return self._of_draws(features, x, label, noise, draws)
        latent = self._priced(self.bottleneck(features, noise), label, noise)
        distortion = -self.decode(latent.z, label).log_prob(x)
        return Terms(distortion, latent.rate, latent.rate_per_unit, latent.penalty)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        return self._priced(self.passage(x, label, noise=noise), label, noise)

    def passage(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> BottleneckOutput:
        """z and q(z | x), as `encode`, but not priced: what p(z) thinks of it is not asked."""
        features = self.encoder(self.likelihood.to_network(x), self._shown(label))
        return self.bottleneck(features, noise)

    def _shown(self, label: Tensor | None) -> Tensor | None:
        """The label if encoder and decoder see it, be the prior class-conditional or not."""
        return self.check_label(label) if self.networks_see_labels else None

    def _priced(self, passage: BottleneckOutput, label: Tensor | None, noise: Noise | None) -> Latent:
        """What passes, with its rate."""
        if self.prior is None or passage.posterior is None:
            return Latent(passage.z, None, None, passage.penalty)
        prior = self.prior_given(label, noise)
        per_unit = kl_per_unit(passage.posterior, prior)
        rate = kl(passage.posterior, prior, passage.z) if per_unit is None else per_unit.sum(1)
        return Latent(passage.z, rate, per_unit, passage.penalty, posterior=passage.posterior)

    def prior_given(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        """p(z), or p(z | label) if it sees labels.

        Raises:
            SpecError: if there is none, or no label and one is needed.
        """
        if self.prior is None:
            raise self.no_prior_error()
        return self.prior(self.check_label(label), None if noise is None else noise.split("prior"))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Distribution:
        return self.likelihood(self.decoder(z, self._shown(label)))

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Tensor:
        if self.prior is None:
            raise self.no_prior_error()
        sampling, label = self.reject_truncation(sampling), self.check_label(label)
        return self.prior.sample(count, Noise(seed, stream="prior"), label, sampling=sampling)

    def _of_draws(self, features: Tensor, x: Tensor, label: Tensor | None, noise: Noise | None, draws: int) -> Terms:
        """The terms of `draws` z an example; examples stay the first axis that noise is drawn along."""
        passage = self.bottleneck(features.repeat_interleave(draws, 0), noise)
        if self.prior is None or passage.posterior is None:
            raise self.no_prior_error()
        if not self.prior.exact:  # exp of an unbiased estimate of a bound on log p(z) may lie above p(z) on average
            raise SpecError(f"importance weights need p(z) itself, and this {self.name} has a prior that gives a bound "
                            "on it: leave the importance samples out, or give --prior another")  # fmt: skip
        labels = None if label is None else label.repeat_interleave(draws)
        q, prior = passage.posterior, self.prior_given(labels, noise)
        distortion = -self.decode(passage.z, labels).log_prob(x.repeat_interleave(draws, 0))
        cost = q.log_prob(passage.z) - prior.log_prob(passage.z)
        per_unit = kl_per_unit(q, prior)
        closed = kl_closed(q, prior) if per_unit is None else per_unit.sum(1)
        rate = cost if closed is None else closed

        def mean(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.unflatten(0, (len(x), draws)).mean(1)

        of_each = -(distortion + cost).view(len(x), draws).T
        each = distortion.view(len(x), draws).mean(1)
        return Terms(each, mean(rate), mean(per_unit), mean(passage.penalty), of_each)

    def compile_networks(self) -> None:
        self.encoder.compile()
        self.decoder.compile()
