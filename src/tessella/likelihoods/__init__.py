"""Likelihoods p(x | z), each a normalised distribution over the stored values.

    binary     Bernoulli, MADE
    integers   Interlaced, LogisticMixture, Categorical
    symbols    Categorical
    real       Gaussian, FixedGaussian
    all        Autoregressive

The options are declared here, and each `build` imports its module from the files beside. Units and checks that the
modules share are in `shared.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tessella.core.configs import LikelihoodConfig
from tessella.foundation.config import Count
from tessella.foundation.registry import register
from tessella.foundation.validation import Range

if TYPE_CHECKING:
    from tessella.core.contracts import Likelihood
    from tessella.core.schema import Schema


@register("likelihood", "bernoulli", summary="binary values", values=("binary",))
class Bernoulli(LikelihoodConfig):
    """Bernoulli likelihood of binary values, independent given z."""

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.independent import BernoulliModule

        return BernoulliModule(schema)


@register("likelihood", "made", summary="binary values, each given the channels before it", values=("binary",))
class MADE(LikelihoodConfig):
    """Likelihood of binary values, each given z and the channels before it at its position."""

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.made import MADEModule

        return MADEModule(schema)


@register(
    "likelihood",
    "categorical",
    summary="a free probability for each value",
    values=("uint8", "integers", "symbols"),
)
class Categorical(LikelihoodConfig):
    """Categorical likelihood of integers or symbols, independent given z."""

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.independent import CategoricalModule

        return CategoricalModule(schema)


@register("likelihood", "gaussian", summary="real values, the scale predicted for each", values=("real",))
class Gaussian(LikelihoodConfig):
    """Gaussian likelihood of real values, with mean and scale predicted for each value."""

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.independent import GaussianModule

        return GaussianModule(schema)


@register(
    "likelihood",
    "gaussian-fixed",
    summary="real values, one scale for all: squared error as a likelihood",
    values=("real",),
)
class FixedGaussian(LikelihoodConfig):
    """Gaussian likelihood of real values with one scale for all.

    Attributes:
        scale: standard deviation, in units of the data's scale. Default: learned.
    """

    scale: Annotated[float, Range(1e-12)] | None = None

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.independent import FixedGaussianModule

        return FixedGaussianModule(schema, self.scale)


@register(
    "likelihood",
    "logistic",
    summary="mixture of discretised logistics with channel dependence, for ordered integers",
    values=("uint8", "integers"),
)
class LogisticMixture(LikelihoodConfig):
    """Mixture of discretised logistics.

    Attributes:
        components: number of logistics in the mixture.
    """

    components: Count = 10

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.logistic import LogisticMixtureModule

        return LogisticMixtureModule(schema, self.components)


@register(
    "likelihood",
    "interlaced",
    summary="mixture of discretised logistics given coarser lattices, codes trained as if positions were independent",
    values=("uint8", "integers"),
)
class Interlaced(LikelihoodConfig):
    """Mixture of discretised logistics of each position given the decoder's output and the positions before it.

    Positions come in the order of an interlaced picture. Vectors have independent values.

    Attributes:
        components: logistics in the mixture of each position.
        pixel_width: channels of the networks that see the neighbours.
        pixel_depth: layers of these networks after the first.
    """

    components: Count = 5
    pixel_width: Count = 32
    pixel_depth: Count = 1

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.interlaced import InterlacedModule

        return InterlacedModule(schema, self.components, width=self.pixel_width, depth=self.pixel_depth)


@register(
    "likelihood",
    "autoregressive",
    summary="each value given those before it and the decoder's features: strong bounds, slow sampling",
    values=("binary", "uint8", "integers", "symbols", "real"),
)
class Autoregressive(LikelihoodConfig):
    """Autoregressive likelihood: p(x | z) = prod_i p(x_i | x_<i, h(z)).

    Attributes:
        components: number of logistics in the mixture of each integer. Default: 10; for mu-law codes no mixture but
            a free probability for each code.
        pixel_width: channels of the causal network. Default: 64, or 96 for colour.
        pixel_depth: layers of the causal network. Default: 6, or 11 for signals.
    """

    components: Count | None = None
    pixel_width: Count | None = None
    pixel_depth: Count | None = None

    def build(self, schema: Schema) -> Likelihood:
        from tessella.likelihoods.autoregressive import AutoregressiveModule

        each = None if self.components is None else LogisticMixture(components=self.components)
        if each is None and schema.values.kind == "integers":
            each = Categorical() if schema.mu_law else LogisticMixture()
        if each is None and schema.values.kind == "binary" and schema.channels > 1:
            each = MADE()
        return AutoregressiveModule(
            schema, lambda part: likelihood_for(part, each), width=self.pixel_width, depth=self.pixel_depth
        )


def likelihood_for(schema: Schema, config: LikelihoodConfig | None = None) -> Likelihood:
    """Build a likelihood for data of a schema.

    Args:
        schema: description of one example.
        config: options of the likelihood; None: the default likelihood of the values.

    Raises:
        SpecError: if it is not a distribution over the values.
    """
    return (config or LikelihoodConfig.chosen(schema.values.default_likelihood)()).build(schema)
