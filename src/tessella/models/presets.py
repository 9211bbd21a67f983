"""Named compositions. Each is a few lines over the same parts.

Imports beside it: spec.
"""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

from tessella import registry
from tessella.contracts import Likelihood, Quantizer
from tessella.errors import SpecError
from tessella.likelihoods import initial_bias, likelihood_for
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan
from tessella.networks.mlp import VectorDecoder, VectorEncoder
from tessella.networks.paper import PaperDecoder, PaperEncoder
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


def VQVAE(schema: Schema, **options: Any) -> CodeModel:
    """Vector-quantised VAE: a grid of codes, under a uniform prior until one is fitted (van den Oord et al. 2017)."""
    return _of_codes("vqvae", schema, ModelOptions(**options), levels=1)


def VQVAE2(schema: Schema, **options: Any) -> CodeModel:
    """VQ-VAE of two levels or more, the finer ones given the coarser (Razavi et al. 2019, section 3.1).

    Raises:
        SpecError: for vectors, which have no grid to be coarse or fine.
    """
    if not schema.is_picture:
        raise SpecError("vectors have no grid, so no coarse and fine levels: use vqvae")
    return _of_codes("vqvae2", schema, ModelOptions(**options), levels=2)


def PaperVQVAE(schema: Schema, **options: Any) -> CodeModel:
    """The VQ-VAE paper's network: 256 ReLU units, two halvings, codes of 64 numbers (2017, section 4.1).

    On CIFAR-10 the paper has 8 x 8 x 10 codes of 512 values.

    Raises:
        SpecError: for vectors, or options that it fixes.
    """
    chosen = ModelOptions(**options)
    if not schema.is_picture:
        raise SpecError("the paper's network is for pictures: use vqvae")
    if chosen.depth is not None or chosen.side is not None or chosen.levels not in (None, 1):
        raise SpecError("the paper's network fixes depth, side and levels: leave them out, or use vqvae")
    likelihood = _likelihood(schema, chosen)
    encoder = PaperEncoder(schema.shape, chosen.width or 256)
    plain = replace(chosen, quantizer="vq", code_dim=chosen.code_dim or 64) if chosen.quantizer is None else chosen
    quantizer = _quantizer(encoder.feature_shape, plain)
    decoder = PaperDecoder(quantizer.latent_shape, schema.shape, likelihood.parameter_channels, chosen.width or 256)
    _start(decoder, likelihood)
    return CodeModel(
        "vqvae-paper", likelihood=likelihood, encoder=encoder, quantizers=[quantizer], decoder=decoder, options=chosen
    )


def _of_codes(name: str, schema: Schema, options: ModelOptions, *, levels: int) -> CodeModel:
    if options.units is not None or options.latent is not None:
        raise SpecError(
            f"{name} has codes instead of units: give --codebook-size, --codes and --side, not --units or --latent"
        )
    likelihood = _likelihood(schema, options)
    levels = options.levels or levels
    if levels > 1 and not schema.is_picture:
        raise SpecError("vectors have no grid, so no coarse and fine levels: leave --levels out")
    channels = likelihood.parameter_channels
    encoder, decoder_for = (_grid if schema.is_picture else _row)(schema, options, channels)
    features, *grid = encoder.feature_shape
    grids = [[-(-side // 2**i) for side in grid] for i in reversed(range(levels))]
    quantizers = [_quantizer((features, *sides), options) for sides in grids]
    latent = (sum(q.latent_shape[0] for q in quantizers), *grid)
    decoder = decoder_for(latent)
    _start(decoder, likelihood)
    return CodeModel(
        name, likelihood=likelihood, encoder=encoder, quantizers=quantizers, decoder=decoder, options=options
    )


def _grid(schema: Schema, options: ModelOptions, channels: int):
    colour = schema.shape[0] >= 3
    side, width, depth = (16, 64, 4) if colour else (7, 32, 2)
    plan = ConvPlan.for_pictures(
        schema.shape, side=options.side or side, width=options.width or width, depth=options.depth or depth
    )
    return ConvEncoder(schema.shape, plan), lambda shape: ConvDecoder(shape, plan, channels)


def _row(schema: Schema, options: ModelOptions, channels: int):
    size = {"width": options.width or 256, "depth": options.depth or 3}
    return VectorEncoder(schema.dims, **size), lambda shape: VectorDecoder(shape[0], channels, **size)


def _quantizer(feature_shape: tuple[int, ...], options: ModelOptions) -> Quantizer:
    """The quantiser that is asked for; what it does not know is refused.

    Raises:
        SpecError: naming the option and what the quantiser knows.
    """
    name = options.quantizer or "ema"
    make = registry.find("quantizer", name).load()
    asked = ("codebook_size", "codes", "code_dim", "commitment", "distance", "gradient")
    given = {option: value for option in asked if (value := getattr(options, option)) is not None}
    known = signature(make).parameters
    if unknown := [option for option in given if option not in known]:
        flags = ", ".join(f"--{option.replace('_', '-')}" for option in unknown)
        raise SpecError(f"the quantiser {name} has no {flags}: leave it out, or choose another with --quantizer")
    return make(feature_shape, **{"codebook_size": 512, **given})


def _likelihood(schema: Schema, options: ModelOptions) -> Likelihood:
    asked = {"mixtures": options.mixtures, "width": options.pixel_width, "depth": options.pixel_depth}
    extras = {name: value for name, value in asked.items() if value is not None}
    return likelihood_for(schema, options.likelihood, **extras)


def _start(decoder: ConvDecoder | VectorDecoder | PaperDecoder, likelihood: Likelihood) -> None:
    bias = initial_bias(likelihood)
    if bias is not None:
        decoder.start_at(bias)


def _compose(
    name: str,
    schema: Schema,
    options: ModelOptions,
    *,
    bottleneck: str = "gaussian",
    prior: str | None = "normal",
    classes: int = 0,
) -> LatentVariableModel:
    likelihood = _likelihood(schema, options)
    pieces = _for_pictures if schema.is_picture else _for_vectors
    encoder, units, decoder_for = pieces(schema, options, likelihood.parameter_channels, classes)
    waist = registry.find("bottleneck", bottleneck).load()(encoder.feature_shape, units)
    extra = (classes,) if classes else ()
    decoder = decoder_for(waist.latent_shape)
    _start(decoder, likelihood)
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
