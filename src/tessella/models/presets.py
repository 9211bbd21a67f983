"""Named compositions: models made of exchangeable parts.

Each has a config, and a function that takes the data's schema and the config's options: `VQVAE(schema,
quantizer=FSQ(levels=(8, 5, 5, 5)), grid_size=16)` is `VQVAEConfig(...).build(schema)`.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from tessella.bottlenecks import Deterministic, DiagonalGaussian, EMAQuantizer
from tessella.core.configs import BottleneckConfig, LikelihoodConfig, PriorConfig, QuantizerConfig
from tessella.core.schema import Schema
from tessella.foundation.config import Count, Fraction, NotNegative
from tessella.foundation.errors import SpecError, option, task_name
from tessella.foundation.registry import register
from tessella.models.spec import ModelConfig
from tessella.priors import ClassNormal, StandardNormal

if TYPE_CHECKING:
    from tessella.models.codes import CodeModel
    from tessella.models.diffusion import DiffusionModel
    from tessella.models.flow import FlowModel
    from tessella.models.latent_variable import LatentVariableModel

T = TypeVar("T", covariant=True)
P = ParamSpec("P")


class Builds(Protocol[T]):
    """Config from which a model can be built."""

    def build(self, schema: Schema) -> T: ...


def preset(config: Callable[P, Builds[T]]) -> Callable[Concatenate[Schema, P], T]:
    """Make a function of the schema and a config's options that builds the model."""

    def make(schema: Schema, /, *args: P.args, **options: P.kwargs) -> T:
        return config(*args, **options).build(schema)

    own = inspect.signature(config)
    make.__wrapped__ = config  # pyright: ignore[reportFunctionMemberAccess]
    first = inspect.Parameter("schema", inspect.Parameter.POSITIONAL_ONLY, annotation=Schema)
    make.__doc__, make.__name__ = config.__doc__, config.__name__.removesuffix("Config")
    make.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # pyright: ignore[reportFunctionMemberAccess]
    return make


# options that several models have


class RateWeighted(ModelConfig, ABC):
    """Options of the objective of a model that has a rate.

    Attributes:
        beta: weight of the rate in the training loss; 1 trains the bound itself.
        warmup: fraction of the training budget over which beta rises from 0.
    """

    beta: NotNegative = 1.0
    warmup: Fraction = 0.0


class ImportanceWeighted(RateWeighted, ABC):
    """Options of the importance-weighted bound (Burda et al. 2015, eq. 8).

    Attributes:
        iwae_samples: samples of z per example in training; more than one trains the importance-weighted bound.
        iwae_from: fraction of the training budget after which these samples are used; before, there is one.
    """

    iwae_samples: Count = 1
    iwae_from: Fraction = 0.0


GRID_SIZES = tuple(
    {"width": width, "depth": depth}
    for width, depth in ((12, 1), (16, 2), (24, 2), (32, 2), (48, 3), (64, 4), (96, 4), (128, 6))
)
"""Sizes of convolutional networks, from small to large."""
VECTOR_SIZES = tuple({"width": width, "depth": depth} for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3)))
"""Sizes of networks for vectors, from small to large."""


def no_labels(instead: str) -> SpecError:
    """Make the error of a conditional model for data without labels.

    Args:
        instead: model that needs no labels.
    """
    return SpecError(
        f"a conditional model needs labels, but this data has none: use {instead}, or labelled data", code="no-labels"
    )


class ContinuousConfig(ModelConfig, ABC):
    """Options of models with continuous latents.

    Attributes:
        likelihood: likelihood p(x | z). Default: the one that suits the values of the data.
        latent_layout: `vector` (one z for the whole example) or `grid` (one z at each position of a coarse grid).
            Default: grid for colour pictures, whose bound needs many dimensions, else vector.
        latent_dim: dimension of z; for a grid, of the z at each position.
        width: channels at the finest resolution (pictures) or units per layer (vectors). Default: what fits the budget.
        depth: residual blocks per resolution. Default: what fits the budget.
    """

    likelihood: LikelihoodConfig | None = None
    latent_layout: Literal["vector", "grid"] | None = None
    latent_dim: Count | None = None
    width: Count | None = None
    depth: Count | None = None

    def sizes(self, schema: Schema) -> Sequence[Mapping[str, int]]:
        return GRID_SIZES if schema.rank else VECTOR_SIZES

    def compose(
        self, schema: Schema, posterior: BottleneckConfig, prior: PriorConfig | None, classes: int = 0
    ) -> LatentVariableModel:
        """Make the model of these parts; encoder, decoder and prior see the label if there are classes."""
        from tessella.models.latent_variable import build_latent_variable_model

        return build_latent_variable_model(
            self,
            schema,
            likelihood=self.likelihood,
            posterior=posterior,
            prior=prior,
            layout=self.latent_layout,
            latent_dim=self.latent_dim,
            width=self.width,
            depth=self.depth,
            classes=classes,
        )


class CodesConfig(ImportanceWeighted, ABC):
    """Options of models with discrete codes.

    Attributes:
        likelihood: likelihood p(x | z). Default: the one that suits the values of the data.
        quantizer: method that turns features into codes.
        grid_size: target side of the grid of codes; the data's grid is halved until it has at most 2 grid_size^2
            positions. Default: 7, 16 for colour pictures, for sounds about 100 a second; but coarser than the data.
        width: channels at the finest resolution (pictures) or units per layer (vectors). Default: what fits the budget.
        depth: residual blocks per resolution. Default: what fits the budget.
        spectral_penalty: weight of the distance of log-mel spectra in the training loss of sounds, in nats per sample
            and factor of ten. Default: 5, without which reconstructions are faint; 0 for autoregressive likelihoods.
    """

    likelihood: LikelihoodConfig | None = None
    quantizer: QuantizerConfig = EMAQuantizer()
    grid_size: Count | None = None
    width: Count | None = None
    depth: Count | None = None
    spectral_penalty: NotNegative | None = None

    def sizes(self, schema: Schema) -> Sequence[Mapping[str, int]]:
        return GRID_SIZES if schema.rank else VECTOR_SIZES

    def compose(self, schema: Schema, *, levels: int, classes: int = 0) -> CodeModel:
        """Make the model with so many grids of codes; the decoder sees the label if there are classes."""
        from tessella.models.codes import build_code_model

        return build_code_model(
            self,
            schema,
            levels=levels,
            likelihood=self.likelihood,
            quantizer=self.quantizer,
            grid_size=self.grid_size,
            width=self.width,
            depth=self.depth,
            spectral_penalty=self.spectral_penalty,
            classes=classes,
        )


# models


@register("model", "ae", summary="autoencoder: reconstructs, has no prior and so no bound")
class AEConfig(ContinuousConfig):
    """Autoencoder: x to z to x. It has no prior, so no samples and no bound."""

    def build(self, schema: Schema) -> LatentVariableModel:
        return self.compose(schema, Deterministic(), None)


@register("model", "vae", summary="variational autoencoder (Kingma & Welling 2013)")
class VAEConfig(ContinuousConfig, ImportanceWeighted):
    """Variational autoencoder: q(z | x) = N(mu, sigma^2), p(z) = N(0, I) (Kingma & Welling 2013).

    Attributes:
        prior: prior p(z).
        posterior: approximate posterior q(z | x).
        free_bits: nats per dimension of z that are free of cost in training.
    """

    prior: PriorConfig = StandardNormal()
    posterior: BottleneckConfig = DiagonalGaussian()
    free_bits: NotNegative = 0.0
    conditional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        prior, posterior, mine = self.prior, self.posterior, f"the prior {self.prior.name}"
        choose = f"use {option('prior')} mixture or flow"
        if not posterior.stochastic:
            raise SpecError(f"the posterior {posterior.name} has no rate: use the model ae", code="no-rate")
        if not prior.trained_with:
            raise SpecError(
                f"{mine} is fitted after the model: train without {option('prior')}, then "
                f"{task_name('fit-prior', 'RUN ' + option('kind') + ' ' + prior.name)}",
                code="fitted-after",
            )
        if prior.labels == "required" and not self.conditional:
            raise SpecError(
                f"{mine} needs labels, which {self.name} ignores: use cvae, or {choose}", code="needs-labels"
            )
        if prior.of_posteriors and not posterior.gaussian:
            raise SpecError(
                f"{mine} needs a Gaussian posterior: leave out {option('posterior')}, or {choose}",
                code="needs-gaussian-posterior",
            )
        if self.free_bits and not (prior.factorised and posterior.gaussian):
            raise SpecError(
                f"{option('free_bits')} needs a Gaussian posterior and a normal prior, whose rate is a sum over "
                f"dimensions: leave it out; {option('warmup')} works with all priors",
                code="needs-factorised-rate",
            )

    def build(self, schema: Schema) -> LatentVariableModel:
        if self.conditional and not schema.classes:
            raise no_labels("vae")
        return self.compose(schema, self.posterior, self.prior, len(schema.classes) if self.conditional else 0)


@register("model", "beta-vae", summary="VAE trained with the rate weighted by beta (Higgins et al. 2017)")
class BetaVAEConfig(VAEConfig):
    """VAE trained with the rate weighted by beta (Higgins et al. 2017)."""

    beta: NotNegative = 4.0


@register("model", "cvae", summary="conditional VAE: encoder, decoder and prior take the label (Sohn et al. 2015)")
class CVAEConfig(VAEConfig):
    """Conditional VAE: encoder, decoder and prior take the label (Sohn et al. 2015, section 4)."""

    prior: PriorConfig = ClassNormal()
    conditional = True


@register("model", "vqvae", summary="a grid of codes (van den Oord et al. 2017)")
class VQVAEConfig(CodesConfig):
    """Vector-quantised VAE: a grid of codes with a uniform prior until one is fitted (van den Oord et al. 2017)."""

    def build(self, schema: Schema) -> CodeModel:
        return self.compose(schema, levels=1)


@register("model", "cvqvae", summary="a grid of codes whose decoder takes the label, for what the codes need not carry")
class CVQVAEConfig(CodesConfig):
    """VQ-VAE with a decoder that takes the label: codes of speech need not tell who speaks.

    So an example is decoded as one of another class by another label (van den Oord et al. 2017, section 4.3).
    """

    def build(self, schema: Schema) -> CodeModel:
        if not schema.classes:
            raise no_labels("vqvae")
        return self.compose(schema, levels=1, classes=len(schema.classes))


@register("model", "vqvae2", summary="grids of codes, coarse and fine (Razavi et al. 2019)")
class VQVAE2Config(CodesConfig):
    """VQ-VAE with several grids of codes, each conditional on the coarser ones (Razavi et al. 2019, section 3.1).

    Attributes:
        levels: number of grids of codes, from coarse to fine.
    """

    levels: Count = 2

    def build(self, schema: Schema) -> CodeModel:
        if not schema.rank:
            raise SpecError("vectors have no grid and so no coarse and fine levels: use vqvae", code="pictures-only")
        return self.compose(schema, levels=self.levels)


@register("model", "flow", summary="invertible map with exact likelihood (Dinh et al. 2017)")
class FlowConfig(ImportanceWeighted):
    """Flow: invertible map from x to z with exact likelihood (Dinh et al. 2017).

    Signals and pictures of any size get a multi-scale coupling flow, vectors autoregressive splines.

    Attributes:
        width: channels (signals, pictures) or units (vectors) of the couplings' networks. Default: what fits the
            budget.
        depth: residual blocks of these networks.
        flow_steps: couplings per scale (signals, pictures) or autoregressive steps (vectors, default 3).
        components: logistics in a coupling's mixture (default 5) or bins of a spline (vectors, default 16).
        dequantization: how discrete values become real ones. Default: uniform.
    """

    width: Count | None = None
    depth: Count = 2
    flow_steps: Count | None = None
    components: Count | None = None
    dequantization: Literal["uniform", "variational"] | None = None

    def sizes(self, schema: Schema) -> Sequence[Mapping[str, int]]:
        return [{"width": width} for width in (16, 24, 32, 48, 64, 96, 128)]

    def build(self, schema: Schema) -> FlowModel:
        if not schema.values.discrete and self.dequantization:
            raise SpecError(
                f"real values need no dequantisation: leave out {option('dequantization')}", code="real-values"
            )
        from tessella.models.flow import build_flow_model

        return build_flow_model(
            self,
            schema,
            width=self.width,
            depth=self.depth,
            steps=self.flow_steps,
            components=self.components,
            variational=self.dequantization == "variational",
        )


@register("model", "diffusion", summary="variational diffusion in the data's own space (Kingma et al. 2021)")
class DiffusionConfig(RateWeighted):
    """Variational diffusion: z is the data with little noise, and p(z) a chain that removes noise (Kingma et al. 2021).

    Attributes:
        width: channels (pictures) or units per layer (vectors). Default: what fits the budget.
        depth: blocks per resolution (pictures, default 2) or layers (vectors, default 4).
        class_conditional: condition the model on the label.
    """

    width: Count | None = None
    depth: Count | None = None
    class_conditional: bool = False

    def sizes(self, schema: Schema) -> Sequence[Mapping[str, int]]:
        widths = (16, 32, 48, 64, 96, 128) if schema.rank else (64, 128, 256, 512)
        return [{"width": width} for width in widths]

    def build(self, schema: Schema) -> DiffusionModel:
        if self.class_conditional and not schema.classes:
            raise SpecError(
                f"{option('class_conditional')} needs labels, but this data has none: leave it out",
                code="no-labels",
            )
        from tessella.models.diffusion import build_diffusion_model

        return build_diffusion_model(
            self, schema, width=self.width, depth=self.depth, class_conditional=self.class_conditional
        )


AE = preset(AEConfig)
VAE = preset(VAEConfig)
BetaVAE = preset(BetaVAEConfig)
CVAE = preset(CVAEConfig)
VQVAE = preset(VQVAEConfig)
CVQVAE = preset(CVQVAEConfig)
VQVAE2 = preset(VQVAE2Config)
Flow = preset(FlowConfig)
Diffusion = preset(DiffusionConfig)
