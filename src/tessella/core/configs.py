"""Options of the parts of a model, by kind of part: what each kind builds its module from.

A part is a subclass with its options as fields, registered under its name; see `foundation/config.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from tessella.foundation.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.core.contracts import Bottleneck, CodePrior, Encoder, Likelihood, Prior, Quantizer
    from tessella.core.schema import Schema


class LikelihoodConfig(Config, ABC):
    """Options of p(x | z)."""

    part = "likelihood"

    @abstractmethod
    def build(self, schema: Schema) -> Likelihood:
        """Make the module for such data.

        Raises:
            SpecError: if it is not a distribution over such values.
        """


class BottleneckConfig(Config, ABC):
    """Options of a continuous q(z | x)."""

    part = "bottleneck"
    stochastic: ClassVar[bool] = True
    """Whether z has a distribution, so that it has a rate."""
    gaussian: ClassVar[bool] = False
    """Whether q(z | x) is a diagonal Gaussian."""

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...], latent_dim: int) -> Bottleneck:
        """Make the module from features `[B, *feature_shape]` to z `[B, latent_dim, *spatial]`."""


class QuantizerConfig(Config, ABC):
    """Options of a discrete q(z | x)."""

    part = "quantizer"

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...]) -> Quantizer:
        """Make the module for features `[B, *feature_shape]`."""


class InferenceNetwork(NamedTuple):
    """The model's own q(z | x), for a prior that is made of posteriors.

    Attributes:
        input_shape: of one example as `Likelihood.to_network` gives it.
        labelled: whether the encoder sees labels.
        examples: gives so many different examples in that form, which pseudo-inputs start at; None: at noise.
    """

    encoder: Encoder
    bottleneck: Bottleneck
    input_shape: tuple[int, ...]
    labelled: bool
    examples: Callable[[int], Tensor] | None = None


class PriorConfig(Config, ABC):
    """Options of p(z), z continuous."""

    part = "prior"
    labels: ClassVar[Literal["none", "optional", "required"]] = "optional"
    """Whether it may see labels, or must."""
    trained_with: ClassVar[bool] = True
    """Whether it can be trained together with a model."""
    fitted_after: ClassVar[bool] = True
    """Whether it can be fitted on the latents of a trained model."""
    factorised: ClassVar[bool] = False
    """Whether the rate of a Gaussian posterior under it is a sum over dimensions."""
    of_posteriors: ClassVar[bool] = False
    """Whether it is made of Gaussian posteriors of the model's own."""

    @abstractmethod
    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        """Make the module over z `[B, *latent_shape]`.

        Args:
            classes: number of labels of p(z | label); 0: it sees none.
            inference: q(z | x), where it is made of posteriors.
        """


class CodePriorConfig(Config, ABC):
    """Options of p(codes)."""

    part = "code-prior"
    labels: ClassVar[Literal["none", "optional", "required"]] = "optional"
    fitted_after: ClassVar[bool] = True
    any_order: ClassVar[bool] = False
    """Whether it inpaints given all known codes, as `CodePrior.any_order` of its module."""

    @abstractmethod
    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        """Make the module over codes `[B, *code_shape]` from 0 to codebook_size - 1.

        Args:
            context_channels: channels of a feature map that all codes may look at; 0: none.
            classes: number of labels of p(codes | label); 0: it sees none.
        """
