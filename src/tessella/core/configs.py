"""Base classes of the options of each kind of part, which build the part's module.

A part's options are the fields of a subclass that is registered under the part's name; see `foundation/config.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from tessella.foundation.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.core.contracts import Bottleneck, CodePrior, Encoder, Likelihood, Prior, Quantizer
    from tessella.core.schema import Schema


class LikelihoodConfig(Config, ABC):
    """Options of a likelihood p(x | z)."""

    part = "likelihood"

    @abstractmethod
    def build(self, schema: Schema) -> Likelihood:
        """Build the likelihood of a schema.

        Raises:
            SpecError: if it is not a distribution over the schema's values.
        """


class BottleneckConfig(Config, ABC):
    """Options of a bottleneck with continuous latents, q(z | x)."""

    part = "bottleneck"
    stochastic: ClassVar[bool] = True
    """Whether z has a distribution q(z | x), and so a rate."""
    gaussian: ClassVar[bool] = False
    """Whether q(z | x) is a diagonal Gaussian."""

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...], latent_dim: int) -> Bottleneck:
        """Build the bottleneck that maps features `[B, *feature_shape]` to z `[B, latent_dim, *spatial]`."""


class QuantizerConfig(Config, ABC):
    """Options of a bottleneck with discrete codes."""

    part = "quantizer"

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...]) -> Quantizer:
        """Build the quantizer of features `[B, *feature_shape]`."""


class InferenceNetwork(NamedTuple):
    """The model's own q(z | x), for a prior that is a mixture of posteriors.

    Attributes:
        encoder: the model's encoder.
        bottleneck: the model's bottleneck.
        input_shape: shape of one example as the encoder's input.
        labelled: whether the encoder takes labels.
        examples: function that returns a number of different examples in that form, at which pseudo-inputs start; None:
            they start as noise.
    """

    encoder: Encoder
    bottleneck: Bottleneck
    input_shape: tuple[int, ...]
    labelled: bool
    examples: Callable[[int], Tensor] | None = None


class PriorConfig(Config, ABC):
    """Options of a prior p(z) over continuous latents."""

    part = "prior"
    labels: ClassVar[Literal["none", "optional", "required"]] = "optional"
    """Whether the prior takes no labels, may take them, or needs them."""
    trained_with: ClassVar[bool] = True
    """Whether the prior can be trained together with a model."""
    fitted_after: ClassVar[bool] = True
    """Whether the prior can be fitted to the latents of a trained model."""
    factorised: ClassVar[bool] = False
    """Whether the rate of a Gaussian posterior under this prior is a sum over dimensions."""
    of_posteriors: ClassVar[bool] = False
    """Whether the prior is a mixture of the model's own Gaussian posteriors."""
    sizes: ClassVar[Sequence[Mapping[str, int]]] = ()
    """Sizes of the network, by option, from small to large, of which one suits the training budget."""

    @abstractmethod
    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        """Build the prior over z `[B, *latent_shape]`.

        Args:
            latent_shape: shape of one example's z.
            classes: number of labels of p(z | label); 0: the prior takes no labels.
            inference: q(z | x), for a prior that is a mixture of posteriors.
        """


class CodePriorConfig(Config, ABC):
    """Options of a prior p(codes) over discrete codes."""

    part = "code-prior"
    labels: ClassVar[Literal["none", "optional", "required"]] = "optional"
    fitted_after: ClassVar[bool] = True
    any_order: ClassVar[bool] = False
    """Whether inpainting is conditional on all known codes, as in `CodePrior.any_order`."""
    sizes: ClassVar[Sequence[Mapping[str, int]]] = ()

    @abstractmethod
    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        """Build the prior over codes `[B, *code_shape]` from 0 to codebook_size - 1.

        Args:
            code_shape: shape of one example's codes, `(C, *spatial)`.
            codebook_size: number of values of a code.
            context_channels: channels of a feature map on which all codes depend; 0: none.
            classes: number of labels of p(codes | label); 0: the prior takes no labels.
        """
