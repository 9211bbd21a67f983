"""Model with one continuous latent z between an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.core.configs import BottleneckConfig, InferenceNetwork, LikelihoodConfig, PriorConfig
from tessella.core.contracts import Bottleneck, Decoder, Encoder, Likelihood, Prior, StoredValues
from tessella.core.distributions import kl, kl_closed, kl_per_unit
from tessella.core.outputs import Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option
from tessella.likelihoods import likelihood_for
from tessella.models.base import LatentModel
from tessella.models.spec import ModelConfig
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan, is_colour
from tessella.networks.mlp import VectorDecoder, VectorEncoder
from tessella.priors.standardised import Standardised


class LatentVariableModel(LatentModel):
    """Latent variable model p(x, z) = p(z) p(x | z) with q(z | x) (Kingma & Welling 2013, section 2).

    Args:
        name, likelihood, config, conditional: as in `Model`.
        encoder: maps x to features.
        bottleneck: maps features to q(z | x).
        prior: p(z), or None for an autoencoder, which has no rate and no bound.
        decoder: maps z to the likelihood's parameters.
    """

    prior_part, has_decoder = "prior", True

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
        self.latent_shape, self.downsampling = bottleneck.latent_shape, (encoder.downsampling,)
        self.networks_see_labels, self.sequential_density = conditional, bottleneck.sequential_density
        self.set_prior([] if prior is None else [prior])

    def build_priors(
        self, config: PriorConfig, classes: int = 0, examples: Callable[[int], Tensor] | None = None
    ) -> list[Standardised]:
        inference = InferenceNetwork(
            self.encoder, self.bottleneck, self.schema.encoder_shape, self.networks_see_labels, examples
        )
        return [Standardised(config.build(self.latent_shape, classes, inference), self.latent_shape, classes)]

    def set_prior(self, priors: Sequence[Prior]) -> None:
        self.prior = priors[0] if priors else None
        # with p(z | label) the model is conditional, though its networks may see no label
        self.conditional = self.networks_see_labels or any(prior.classes for prior in priors)
        self.has_prior = bool(priors)
        self.has_bound = self.has_prior and self.bottleneck.stochastic

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        features = self.encoder(self.encoder_input(x, noise), self._shown(label))
        if draws is not None:
            return self._of_draws(features, x, label, noise, draws)
        latent = self._latent(features, noise)
        rate = self.rate(latent, label, noise=noise)
        distortion = -self.decode(latent.z, label).log_prob(x)
        return Terms.of(distortion, rate, latent.penalty)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        return self._latent(self.encoder(self.encoder_input(x), self._shown(label)), noise)

    def _latent(self, features: Tensor, noise: Noise | None) -> Latent:
        out = self.bottleneck(features, noise)
        return Latent(out.z, out.posterior, out.penalty)

    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate | None:
        if self.prior is None or latent.posterior is None:
            return None
        prior = self.prior_given(label, noise)
        per_unit = kl_per_unit(latent.posterior, prior)
        return Rate(kl(latent.posterior, prior, latent.z) if per_unit is None else per_unit.sum(1), per_unit)

    def _shown(self, label: Tensor | None) -> Tensor | None:
        """Return the label if encoder and decoder take labels, else None."""
        return self.check_label(label) if self.networks_see_labels else None

    def prior_given(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        """Return p(z), or p(z | label) if the prior is class-conditional.

        Raises:
            SpecError: if there is no prior, or a needed label is missing.
        """
        if self.prior is None:
            raise self.no_prior_error()
        return self.prior(self.check_label(label), None if noise is None else noise.split("prior"))

    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
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
        """Compute the terms for `draws` samples of z per example; the noise's first axis stays the examples."""
        out = self.bottleneck(features.repeat_interleave(draws, 0), noise)
        if self.prior is None or out.posterior is None:
            raise self.no_prior_error()
        if not self.prior.exact:  # exp of an unbiased estimate of a bound on log p(z) may exceed p(z) on average
            raise SpecError(
                f"importance weights need p(z) itself, but the prior of this {self.name} only has a bound "
                f"on it: leave out the importance samples, or use another {option('prior')}",
                code="inexact-prior",
            )
        labels = None if label is None else label.repeat_interleave(draws)
        q, prior = out.posterior, self.prior_given(labels, noise)
        distortion = -self.decode(out.z, labels).log_prob(x.repeat_interleave(draws, 0))
        cost = q.log_prob(out.z) - prior.log_prob(out.z)
        per_unit = kl_per_unit(q, prior)
        closed = kl_closed(q, prior) if per_unit is None else per_unit.sum(1)
        rate = cost if closed is None else closed

        def mean(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.unflatten(0, (len(x), draws)).mean(1)

        of_each = -(distortion + cost).view(len(x), draws).T
        each = distortion.view(len(x), draws).mean(1)
        return Terms(each, mean(rate), mean(per_unit), mean(out.penalty), of_each)

    def compile_networks(self) -> None:
        self.encoder.compile()
        self.decoder.compile()


def build_latent_variable_model(
    config: ModelConfig,
    schema: Schema,
    *,
    likelihood: LikelihoodConfig | None,
    posterior: BottleneckConfig,
    prior: PriorConfig | None,
    layout: str | None,
    latent_dim: int | None,
    width: int | None,
    depth: int | None,
    classes: int,
) -> LatentVariableModel:
    """Make a model of such parts and data.

    Args:
        classes: number of labels that encoder, decoder and prior see; 0: none.
    """
    p_x, size = likelihood_for(schema, likelihood), {"width": width or 256, "depth": depth or 3, "classes": classes}
    plan: ConvPlan | None = None
    if not schema.rank and layout == "grid":
        raise SpecError(f"vectors have no grid: leave out {option('latent_layout')}", code="no-grid")
    if schema.rank:
        grid = layout == "grid" or (layout is None and is_colour(schema.shape))
        plan = ConvPlan.usual(schema.shape, fine=grid, rate=schema.rate, width=width, depth=depth)
        encoder: Encoder = ConvEncoder(schema.encoder_shape, plan, features=None if grid else 256, classes=classes)
        usual = 16 if grid else 40
    else:
        encoder, usual = VectorEncoder(schema.encoder_shape[0], **size), min(32, max(2, schema.dims // 2))
    bottleneck = posterior.build(encoder.feature_shape, latent_dim or usual)
    if plan is not None:
        decoder: Decoder = ConvDecoder(bottleneck.latent_shape, plan, p_x.parameter_channels, classes=classes)
    else:
        decoder = VectorDecoder(bottleneck.latent_shape[0], p_x.parameter_channels, **size)
    if (bias := p_x.initial_bias()) is not None:
        decoder.start_at(bias)
    inference = InferenceNetwork(encoder, bottleneck, schema.encoder_shape, bool(classes))
    seen = classes if prior is not None and prior.labels != "none" else 0
    return LatentVariableModel(
        config.name,
        likelihood=p_x,
        encoder=encoder,
        bottleneck=bottleneck,
        prior=None if prior is None else prior.build(bottleneck.latent_shape, seen, inference),
        decoder=decoder,
        conditional=bool(classes),
        config=config,
    )
