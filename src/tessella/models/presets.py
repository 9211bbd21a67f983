"""Named compositions. Each is a few lines over the same parts.

Imports beside it: spec.
"""

from __future__ import annotations

from dataclasses import fields, replace
from inspect import signature
from typing import Any

from tessella.core.contracts import Bottleneck, Encoder, Likelihood, Prior, Quantizer
from tessella.core.schema import UINT8, Schema
from tessella.diffusion.chain import Chain
from tessella.diffusion.discretized_likelihood import Observation
from tessella.diffusion.schedule import NoiseSchedule
from tessella.flows.dequantise import UniformDequantizer, VariationalDequantizer
from tessella.flows.multiscale import PictureFlow
from tessella.flows.vectors import VectorFlow
from tessella.foundation import registry
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import register
from tessella.likelihoods import likelihood_for
from tessella.models.codes import CodeModel
from tessella.models.diffusion import DiffusionModel
from tessella.models.flow import FlowModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import ModelOptions, Objective
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan
from tessella.networks.denoising_mlp import DenoisingPerceptron
from tessella.networks.mlp import VectorDecoder, VectorEncoder
from tessella.networks.unet import UNet
from tessella.priors.logistic import StandardLogistic
from tessella.priors.normal import StandardNormalModule


@register("model", "ae", summary="autoencoder: reconstructs, has no prior and so no bound")
def AE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Autoencoder: x to z to x. No prior, so nothing can be sampled and no bound can be said.

    Args:
        schema: what one example looks like, for instance `Schema.of((1, 28, 28), "binary")`.
        options: of `ModelOptions`.
    """
    return _compose("ae", schema, ModelOptions(**options), bottleneck="deterministic", prior=None)


@register("model", "vae", summary="variational autoencoder (Kingma & Welling 2013)")
def VAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Variational autoencoder: q(z|x) = N(mu, sigma^2), p(z) = N(0, I) (Kingma & Welling 2013)."""
    return _compose("vae", schema, ModelOptions(**options))


@register("model", "beta-vae", summary="VAE trained with the rate weighted by beta (Higgins et al. 2017)")
def BetaVAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """VAE whose rate is weighted by `beta`, 4 unless given, while training (Higgins et al. 2017)."""
    chosen = ModelOptions(**options)
    return _compose("beta-vae", schema, replace(chosen, beta=4.0) if chosen.beta is None else chosen)


@register("model", "cvae", summary="conditional VAE: encoder, decoder and prior see the label (Sohn et al. 2015)")
def CVAE(schema: Schema, **options: Any) -> LatentVariableModel:
    """Conditional VAE: encoder, decoder and prior see the label (Sohn et al. 2015, section 4).

    Raises:
        SpecError: if the schema has no classes.
    """
    if not schema.classes:
        raise SpecError("a conditional model needs labels, and this data has none: use vae, or give labelled data")
    return _compose("cvae", schema, ModelOptions(**options), prior="class-normal", classes=len(schema.classes))


@register("model", "vqvae", summary="a grid of codes (van den Oord et al. 2017)")
def VQVAE(schema: Schema, **options: Any) -> CodeModel:
    """Vector-quantised VAE: a grid of codes, under a uniform prior until one is fitted (van den Oord et al. 2017)."""
    return _of_codes("vqvae", schema, ModelOptions(**options), levels=1)


@register("model", "vqvae2", summary="grids of codes, coarse and fine (Razavi et al. 2019)")
def VQVAE2(schema: Schema, **options: Any) -> CodeModel:
    """VQ-VAE of two levels or more, the finer ones given the coarser (Razavi et al. 2019, section 3.1).

    Raises:
        SpecError: for vectors, which have no grid to be coarse or fine.
    """
    if not schema.rank:
        raise SpecError("vectors have no grid, so no coarse and fine levels: use vqvae")
    return _of_codes("vqvae2", schema, ModelOptions(**options), levels=2)


@register("model", "flow", summary="invertible map with exact likelihood (Dinh et al. 2017)")
def Flow(schema: Schema, **options: Any) -> FlowModel:
    """Flow: x to z by an invertible map, with its exact likelihood (Dinh et al. 2017).

    Pictures of any size get a multi-scale coupling flow, vectors autoregressive splines.

    Raises:
        SpecError: for options that are other models'.
    """
    chosen = ModelOptions(**options)
    own = ("width", "depth", "mixtures", "flow_steps", "dequantization")
    known = {*own, *(f.name for f in fields(Objective))}
    if wrong := [f.name for f in fields(chosen) if f.name not in known and getattr(chosen, f.name) != f.default]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise SpecError(f"flow has no {flags}: leave it out; a flow has z as large as x and needs no likelihood")
    if not schema.values.discrete and chosen.dequantization:
        raise SpecError("real values need no dequantisation: leave --dequantization out")
    wide = 64 if not schema.rank or schema.shape[0] >= 3 else 32
    size: dict[str, Any] = {"width": chosen.width or wide, "depth": chosen.depth or 2}
    flow = (
        PictureFlow(schema.shape, mixtures=chosen.mixtures or 5, steps=chosen.flow_steps or 0, **size)
        if schema.rank
        else VectorFlow(schema.dims, bins=chosen.mixtures or 16, steps=chosen.flow_steps or 3, **size)
    )
    dequantizer = None
    if schema.values.discrete:
        variational = chosen.dequantization == "variational"
        dequantizer = VariationalDequantizer(schema.shape, width=32, depth=2) if variational else UniformDequantizer()
    prior = (StandardLogistic if schema.rank else StandardNormalModule)(schema.shape)
    return FlowModel("flow", schema, flow=flow, prior=prior, dequantizer=dequantizer, options=chosen)


@register("model", "diffusion", summary="variational diffusion in the data's own space (Kingma et al. 2021)")
def Diffusion(schema: Schema, **options: Any) -> DiffusionModel:
    """Variational diffusion: z is the data with a little noise, p(z) a chain that removes it (Kingma et al. 2021).

    `width` is 64 (pictures) or 256 (vectors), `depth` 2 or 4, unless given.

    Raises:
        SpecError: if it is to see labels and there are none, or for options of other models.
    """
    chosen = ModelOptions(**options)
    if chosen.class_conditional and not schema.classes:
        raise SpecError("this data has no labels to be conditional on: leave --class-conditional out")
    own = ("width", "depth", "class_conditional", "beta", "warmup", "free_bits")
    if wrong := [f.name for f in fields(chosen) if f.name not in own and getattr(chosen, f.name) != f.default]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise SpecError(f"diffusion has no {flags}: leave it out; its z is as large as x and needs no likelihood")
    likelihood = Observation(schema)
    channels, classes = schema.shape[0], len(schema.classes) if chosen.class_conditional else 0
    seen = classes + 1 if classes else 0
    if schema.rank:
        size = {"width": chosen.width or 64, "depth": chosen.depth or 2}
        network = UNet(schema.shape, 2 * channels, **size, classes=seen)
    else:
        size = {"width": chosen.width or 256, "depth": chosen.depth or 4}
        network = DenoisingPerceptron(channels, 2 * channels, **size, classes=seen)
    schedule = NoiseSchedule({"binary": -4.0, "uint8": -13.3, "real": -8.0}[schema.values.name])
    variance = 0.25 if schema.values == UINT8 else 1.0
    chain = Chain(schema.shape, network, schedule, levels=likelihood.levels, variance=variance, classes=classes)
    return DiffusionModel("diffusion", likelihood=likelihood, chain=chain, options=chosen)


def _of_codes(name: str, schema: Schema, options: ModelOptions, *, levels: int) -> CodeModel:
    if options.units is not None or options.latent is not None:
        raise SpecError(
            f"{name} has codes instead of units: give --codebook-size, --codes and --side, not --units or --latent"
        )
    _check_latents(name, options, None)
    likelihood = _likelihood(schema, options)
    levels = options.levels or levels
    if levels > 1 and not schema.rank:
        raise SpecError("vectors have no grid, so no coarse and fine levels: leave --levels out")
    channels = likelihood.parameter_channels
    encoder, decoder_for = (_grid if schema.rank else _row)(schema, options, channels)
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
    if options.dequantization is not None:
        raise SpecError("only a flow is dequantised: leave --dequantization out, or train a flow")
    asked = {"mixtures": options.mixtures, "width": options.pixel_width, "depth": options.pixel_depth}
    extras = {name: value for name, value in asked.items() if value is not None}
    return likelihood_for(schema, options.likelihood, **extras)


def _start(decoder: ConvDecoder | VectorDecoder, likelihood: Likelihood) -> None:
    bias = likelihood.initial_bias()
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
    _check_latents(name, options, prior)
    likelihood = _likelihood(schema, options)
    pieces = _for_pictures if schema.rank else _for_vectors
    encoder, units, decoder_for = pieces(schema, options, likelihood.parameter_channels, classes)
    waist = _waist(bottleneck, encoder.feature_shape, units, options)
    decoder = decoder_for(waist.latent_shape)
    _start(decoder, likelihood)
    return LatentVariableModel(
        name,
        likelihood=likelihood,
        encoder=encoder,
        bottleneck=waist,
        prior=_prior(options.prior or prior, schema, waist, encoder, classes, options) if prior else None,
        decoder=decoder,
        conditional=bool(classes),
        options=options,
    )


def _check_latents(name: str, options: ModelOptions, prior: str | None) -> None:
    """Whether prior and posterior are what such a model can have.

    Args:
        prior: its own, a name of the catalogue; None if it has none.

    Raises:
        SpecError: saying what to leave out or to choose.
    """
    if prior is None:
        given = [n for n in ("prior", "posterior", "components", "flow_steps") if getattr(options, n) is not None]
        if given:
            flags = ", ".join(f"--{n.replace('_', '-')}" for n in given)
            raise SpecError(f"{name} has no distribution over z while it is trained, so no {flags}: leave it out, or "
                            "train a vae; tessella prior fits a prior afterwards")  # fmt: skip
        return
    chosen = options.prior or prior
    known = signature(registry.find("prior", chosen).load()).parameters
    if chosen == "class-normal" and prior != chosen:
        raise SpecError(f"the prior class-normal sees labels and {name} does not: use cvae, or --prior mixture")
    if chosen == "diffusion":
        raise SpecError("a diffusion prior is fitted after the model: train without --prior, then tessella prior RUN "
                        "--kind diffusion")  # fmt: skip
    if chosen == "vamp" and options.posterior == "flow":
        raise SpecError("a vamp prior needs a Gaussian posterior: leave --posterior flow out, or use --prior flow")
    if options.components is not None and "components" not in known:
        raise SpecError(f"the prior {chosen} has no --components: leave it out, or use --prior mixture or vamp")
    if options.flow_steps is not None and "flow_steps" not in known and options.posterior != "flow":
        raise SpecError("there is no flow to have --flow-steps: leave it out, or use --prior flow or --posterior flow")
    if options.free_bits and (options.posterior == "flow" or chosen not in ("normal", "class-normal")):
        raise SpecError("--free-bits needs a rate that is a sum over units, as of a Gaussian posterior and a normal "
                        "prior: leave it out; --warmup works with any")  # fmt: skip


def _waist(bottleneck: str, feature_shape: tuple[int, ...], units: int, options: ModelOptions) -> Bottleneck:
    """The bottleneck, with the steps that a flow posterior was asked for."""
    steps = {}
    if options.posterior == "flow":
        bottleneck = "flow"
        steps = {} if options.flow_steps is None else {"flow_steps": options.flow_steps}
    return registry.find("bottleneck", bottleneck).load()(feature_shape, units, **steps)


def _prior(
    kind: str, schema: Schema, waist: Bottleneck, encoder: Encoder, classes: int, options: ModelOptions
) -> Prior:
    """The prior over the bottleneck's latents, given the labels where there are classes and it sees them."""
    make = registry.find("prior", kind).load()
    known = signature(make).parameters
    asked: dict[str, Any] = {"flow_steps": options.flow_steps, "components": options.components}
    given = {option: value for option, value in asked.items() if value is not None and option in known}
    if kind == "vamp":
        given |= {"encoder": encoder, "bottleneck": waist, "input_shape": schema.shape, "labelled": bool(classes)}
    return make(waist.latent_shape, *((classes,) if classes and "classes" in known else ()), **given)


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
