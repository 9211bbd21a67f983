"""Bottlenecks: q(z | x), from the encoder's features to latents.

The options are declared here, and each `build` imports its module from the files beside, so that choosing a part and
reading the help of a command do not wait for PyTorch. A part of another package may declare both in one file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import count
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tessella.core.configs import BottleneckConfig, QuantizerConfig
from tessella.foundation.config import MOST, Count, Fraction, NotNegative
from tessella.foundation.errors import SpecError, option
from tessella.foundation.registry import register
from tessella.foundation.validation import Range

if TYPE_CHECKING:
    from tessella.bottlenecks.codebooks import Codebook, Distance
    from tessella.core.contracts import Bottleneck, Quantizer

# continuous


@register("bottleneck", "deterministic", summary="a linear map of the features: an autoencoder, without rate or bound")
class Deterministic(BottleneckConfig):
    """Bottleneck of an autoencoder: z is a linear map of the features, and has no rate."""

    stochastic = False

    def build(self, feature_shape: tuple[int, ...], latent_dim: int) -> Bottleneck:
        from tessella.bottlenecks.gaussian import DeterministicModule

        return DeterministicModule(feature_shape, latent_dim)


@register("bottleneck", "gaussian", summary="q(z|x) = N(mu, sigma^2), factorised and reparameterised")
class DiagonalGaussian(BottleneckConfig):
    """Factorised Gaussian posterior."""

    gaussian = True

    def build(self, feature_shape: tuple[int, ...], latent_dim: int) -> Bottleneck:
        from tessella.bottlenecks.gaussian import DiagonalGaussianModule

        return DiagonalGaussianModule(feature_shape, latent_dim)


@register("bottleneck", "flow", summary="a Gaussian followed by inverse autoregressive steps (Kingma et al. 2016)")
class FlowPosterior(BottleneckConfig):
    """Gaussian posterior followed by inverse autoregressive steps.

    Attributes:
        flow_steps: number of autoregressive steps T.
    """

    flow_steps: Count = 3

    def build(self, feature_shape: tuple[int, ...], latent_dim: int) -> Bottleneck:
        from tessella.bottlenecks.flow import FlowPosteriorModule

        return FlowPosteriorModule(feature_shape, latent_dim, flow_steps=self.flow_steps)


# quantizers

DistanceName = Literal["euclidean", "cosine"]
GradientEstimator = Literal["straight-through", "rotation"]


class CodebookConfig(QuantizerConfig, ABC):
    """Options of quantizers with codebooks.

    Attributes:
        codebook_size: number of vectors in each codebook, K.
        codes_per_position: number of codes per position of the grid.
        code_dim: dimension of a codebook vector; small ones (8 to 32) keep a large codebook in use (Yu et al. 2021,
            section 3.2). Default: 64 divided by the number of codes, at least 8, at most the number of features.
        commitment: weight of the commitment loss, which pulls the encoder's output towards the codebook.
        distance: distance by which the nearest code is chosen.
        gradient_estimator: estimator of the gradient through the quantizer.
    """

    codebook_size: Count = 512
    codes_per_position: Count = 1
    code_dim: Count | None = None
    commitment: NotNegative = 0.25
    distance: DistanceName = "euclidean"
    gradient_estimator: GradientEstimator = "straight-through"
    residual: ClassVar[bool] = False
    """Whether each code of a position has a codebook of its own, for what those before it left over."""

    @abstractmethod
    def codebook(self, groups: int, dims: int, distance: Distance) -> Codebook:
        """Make a codebook of `groups` tables of K vectors of `dims` numbers."""

    def build(self, feature_shape: tuple[int, ...]) -> Quantizer:
        from tessella.bottlenecks.codebooks import DISTANCES, euclidean
        from tessella.bottlenecks.quantizers import GRADIENTS, CodebookQuantizer

        stages, groups = (self.codes_per_position, 1) if self.residual else (1, self.codes_per_position)
        dims = self.code_dim or min(feature_shape[0], max(8, 64 // groups))
        distance = DISTANCES[self.distance]
        books = [self.codebook(groups, dims, euclidean if stage else distance) for stage in range(stages)]
        gradient = GRADIENTS[self.gradient_estimator]
        return CodebookQuantizer(
            feature_shape,
            books,
            commitment=self.commitment,
            distance=distance,
            gradient=gradient,
            dropout=self.share_dropped,
        )

    @property
    def share_dropped(self) -> float:
        """Return the share of the training examples that use fewer codes than all."""
        return 0.0


@register("quantizer", "vq", summary="vector quantisation, codebook by gradient (van den Oord et al. 2017)")
class VectorQuantizer(CodebookConfig):
    """Vector quantisation with a codebook learned by gradients (van den Oord et al. 2017, eq. 3)."""

    def codebook(self, groups: int, dims: int, distance: Distance) -> Codebook:
        from tessella.bottlenecks.codebooks import LearnedCodebook

        return LearnedCodebook(groups, self.codebook_size, dims, distance=distance)


@register("quantizer", "ema", summary="vector quantisation, codebook by exponential averages, dead codes revived")
class EMAQuantizer(CodebookConfig):
    """Vector quantisation with a codebook of exponential moving averages (van den Oord et al. 2017, appendix A.1).

    Attributes:
        decay: decay of the moving averages per update.
        revive: share of the mean use below which a code counts as dead and is replaced.
    """

    decay: Fraction = 0.99
    revive: NotNegative = 0.05

    def codebook(self, groups: int, dims: int, distance: Distance) -> Codebook:
        from tessella.bottlenecks.codebooks import AveragedCodebook

        size = self.codebook_size
        return AveragedCodebook(groups, size, dims, distance=distance, decay=self.decay, revive=self.revive)


@register(
    "quantizer", "simvq", summary="vector quantisation, codebook a frozen table times a learned map (Zhu et al. 2024)"
)
class SimVQ(CodebookConfig):
    """Vector quantisation with a codebook that is a frozen table times a learned map (Zhu et al. 2024, section 4)."""

    def codebook(self, groups: int, dims: int, distance: Distance) -> Codebook:
        from tessella.bottlenecks.codebooks import MappedCodebook

        return MappedCodebook(groups, self.codebook_size, dims, distance=distance)


@register(
    "quantizer",
    "residual",
    summary="several codes per position, each for the residual of those before (Zeghidour et al. 2021)",
)
class ResidualQuantizer(EMAQuantizer):
    """Residual quantisation: several codebooks, each for the residual of those before it.

    With `distance="cosine"` z and the first codebook lie on the sphere; the residuals lie anywhere.

    Attributes:
        dropout: share of the training examples that use a random number of the codes of each position, so that fewer
            codes than all may be used later.
    """

    codes_per_position: Count = 4
    dropout: Fraction = 0.0
    residual = True

    @property
    def share_dropped(self) -> float:
        return self.dropout


@register(
    "quantizer", "fsq", summary="finite scalar quantisation: numbers rounded to a few levels (Mentzer et al. 2023)"
)
class FSQ(QuantizerConfig):
    """Finite scalar quantisation: each number of z is rounded to one of a few levels.

    Attributes:
        codebook_size: number of values of a code, a product of numbers from 2 to 16. Default: 512.
        codes_per_position: number of codes per position of the grid, each with its own numbers.
        levels: number of levels of each number, for example 8 5 5 5 for 1000 codes as in the paper.
    """

    codebook_size: Count | None = None
    codes_per_position: Count = 1
    levels: tuple[Annotated[int, Range(2, MOST)], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels is None:
            levels_for(self.codebook_size or 512)
        elif not self.levels:
            raise SpecError(f"{option('levels')} needs at least one number", code="bad-option", name="levels")
        elif self.codebook_size not in (None, math.prod(self.levels)):
            raise SpecError(
                f"levels {self.levels} give {math.prod(self.levels)} codes, not {self.codebook_size}: use only one of "
                f"{option('levels')} and {option('codebook_size')}",
                code="levels-and-size",
            )

    def build(self, feature_shape: tuple[int, ...]) -> Quantizer:
        from tessella.bottlenecks.quantizers import FSQModule

        return FSQModule(feature_shape, self.codes_per_position, self.levels or levels_for(self.codebook_size or 512))


def levels_for(size: int) -> tuple[int, ...]:
    """Return the levels, 2 to 16 each, whose product is `size`.

    Among several factorisations, the one with levels nearest to 6 is chosen, by the sum of squared logarithms.

    Raises:
        SpecError: if there is none; the message names a nearby size that has one.
    """
    found = _factors(size, 16) if size > 1 else []
    if not found:
        near = next(n for off in count(1) for n in (size - off, size + off) if n > 1 and _factors(n, 16))
        raise SpecError(
            f"FSQ needs a {option('codebook_size')} that is a product of numbers from 2 to 16: use {near}, not {size}",
            code="bad-codebook-size",
        )
    return min(found, key=lambda levels: sum(math.log(level / 6) ** 2 for level in levels))


def _factors(size: int, most: int) -> list[tuple[int, ...]]:
    """List all factorisations of `size` into factors from 2 to `most`, largest factor first."""
    if size == 1:
        return [()]
    return [(f, *rest) for f in range(min(most, size), 1, -1) if size % f == 0 for rest in _factors(size // f, f)]


@register("quantizer", "lfq", summary="lookup-free quantisation: a code is a row of signs (Yu et al. 2023)")
class LFQ(QuantizerConfig):
    """Lookup-free quantisation: a code is a row of signs.

    Attributes:
        codebook_size: number of values of a code, a power of two.
        codes_per_position: number of codes per position of the grid, each with its own numbers.
        commitment: weight of the commitment loss, which pulls the encoder's output towards +1 and -1.
        entropy: weight of the entropy loss, which makes each bit certain and both of its values used.
    """

    codebook_size: Count = 512
    codes_per_position: Count = 1
    commitment: NotNegative = 0.25
    entropy: NotNegative = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        near = 2 ** max(1, round(math.log2(self.codebook_size)))
        if self.codebook_size != near:
            raise SpecError(
                f"LFQ needs a {option('codebook_size')} that is a power of two: use {near}, not {self.codebook_size}",
                code="no-power-of-two",
            )

    def build(self, feature_shape: tuple[int, ...]) -> Quantizer:
        from tessella.bottlenecks.quantizers import LFQModule

        return LFQModule(feature_shape, **self.values())
