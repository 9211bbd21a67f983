"""Named compositions. Each is a few lines over the same parts.

Imports beside it: spec.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tessella import registry
from tessella.errors import SpecError
from tessella.likelihoods import initial_bias, likelihood_for
from tessella.models.latent_variable import LatentVariableModel
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan
from tessella.networks.mlp import VectorDecoder, VectorEncoder
from tessella.records import Schema
from tessella.spec import ModelOptions


def AE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Autoencoder: x to z to x. No prior, so nothing can be sampled and no bound can be said.

    Args:
        schema: what one example looks like, for instance `Schema((1, 28, 28), "binary")`.
        options: of `ModelOptions`.
    """
    return _compose("ae", schema, ModelOptions(**options), bottleneck="deterministic", prior=None)


def VAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Variational autoencoder: q(z|x) = N(mu, sigma^2), p(z) = N(0, I) (Kingma & Welling 2013)."""
    return _compose("vae", schema, ModelOptions(**options))


def BetaVAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """VAE whose rate is weighted by `beta`, 4 unless given, while training (Higgins et al. 2017)."""
    chosen = ModelOptions(**options)
    return _compose("beta-vae", schema, replace(chosen, beta=4.0) if chosen.beta is None else chosen)


def CVAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Conditional VAE: encoder, decoder and prior see the label (Sohn et al. 2015, section 4).

    Raises:
        SpecError: if the schema has no classes.
    """
    if not schema.classes:
        raise SpecError("a conditional model needs labels, and this data has none: use vae, or give labelled data")
    return _compose("cvae", schema, ModelOptions(**options), prior="class-normal", classes=len(schema.classes))


def _compose(
    name: str,
    schema: Schema,
    options: ModelOptions,
    *,
    bottleneck: str = "gaussian",
    prior: str | None = "normal",
    classes: int = 0,
) -> LatentVariableModel:
    extras = {} if options.mixtures is None else {"mixtures": options.mixtures}
    likelihood = likelihood_for(schema, options.likelihood, **extras)
    pieces = _for_pictures if schema.is_picture else _for_vectors
    encoder, units, decoder_for = pieces(schema, options, likelihood.parameter_channels, classes)
    waist = registry.find("bottleneck", bottleneck).load()(encoder.feature_shape, units)
    extra = (classes,) if classes else ()
    decoder = decoder_for(waist.latent_shape)
    bias = initial_bias(likelihood)
    if bias is not None:
        decoder.start_at(bias)
    return LatentVariableModel(
        name,
        likelihood=likelihood,
        encoder=encoder,
        bottleneck=waist,
        prior=registry.find("prior", prior).load()(waist.latent_shape, *extra) if prior else None,
        decoder=decoder,
        conditional=bool(classes),
        options=options,
    )


def _for_pictures(schema: Schema, options: ModelOptions, channels: int, classes: int):
    latent = options.latent or ("grid" if schema.shape[0] >= 3 else "vector")
    if latent == "grid":
        plan = ConvPlan.for_pictures(schema.shape, side=16, width=options.width or 64, depth=options.depth or 4)
        encoder = ConvEncoder(schema.shape, plan, classes=classes)
        units = options.units or 16
    else:
        plan = ConvPlan.for_pictures(schema.shape, side=7, width=options.width or 32, depth=options.depth or 2)
        encoder = ConvEncoder(schema.shape, plan, features=256, classes=classes)
        units = options.units or 40
    return encoder, units, lambda shape: ConvDecoder(shape, plan, channels, classes=classes)


def _for_vectors(schema: Schema, options: ModelOptions, channels: int, classes: int):
    size = {"width": options.width or 256, "depth": options.depth or 3, "classes": classes}
    if options.latent == "grid":
        raise SpecError("vectors have no grid: leave --latent out")
    encoder = VectorEncoder(schema.dims, **size)
    units = options.units or min(32, max(2, schema.dims // 2))
    return encoder, units, lambda shape: VectorDecoder(shape[0], channels, **size)
