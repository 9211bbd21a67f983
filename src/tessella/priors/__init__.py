"""Priors p(z) over continuous latents and p(codes) over discrete ones.

The options are declared here, and each `build` imports its module from the files beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tessella.core.configs import CodePriorConfig, InferenceNetwork, PriorConfig
from tessella.foundation.config import Count
from tessella.foundation.registry import register

if TYPE_CHECKING:
    from tessella.core.contracts import CodePrior, Prior


def _sizes(*sizes: tuple[int, int]) -> tuple[Mapping[str, int], ...]:
    return tuple({"width": width, "depth": depth} for width, depth in sizes)


# over real numbers


@register("prior", "normal", summary="p(z) = N(0, I)")
class StandardNormal(PriorConfig):
    """Standard normal prior N(0, I)."""

    labels = "none"
    fitted_after = False
    factorised = True

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.normal import StandardNormalModule

        return StandardNormalModule(latent_shape)


@register("prior", "class-normal", summary="p(z | label) = N(mu_label, sigma_label^2), learned")
class ClassNormal(PriorConfig):
    """Normal prior with a learned mean and scale for each label."""

    labels = "required"
    fitted_after = False
    factorised = True

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.normal import ClassNormalModule

        return ClassNormalModule(latent_shape, classes)


@register("prior", "mixture", summary="a mixture of Gaussians, weights, means and scales learned")
class MixturePrior(PriorConfig):
    """Mixture of Gaussians.

    Attributes:
        components: number of Gaussians in the mixture.
    """

    components: Count = 50

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.mixture import MixturePriorModule

        return MixturePriorModule(latent_shape, classes, components=self.components)


@register("prior", "vamp", summary="mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)")
class VampPrior(PriorConfig):
    """VampPrior: mixture of the posteriors of learned pseudo-inputs.

    Attributes:
        components: number of pseudo-inputs.
    """

    components: Count = 50
    of_posteriors = True

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.mixture import VampPriorModule

        if inference is None:
            raise ValueError("a VampPrior is made of the posteriors of an inference network")
        return VampPriorModule(latent_shape, classes, **inference._asdict(), components=self.components)


@register(
    "prior",
    "flow",
    summary="normalising flow of couplings (on larger grids convolutional): exact density, fast sampling",
)
class FlowPrior(PriorConfig):
    """Normalising flow of coupling layers.

    Attributes:
        flow_steps: number of coupling layers. Default: 4, or 8 for large grids.
        width: units of the hidden layers of the couplings' networks.
    """

    flow_steps: Count | None = None
    width: Count = 128

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.flow import FlowPriorModule

        return FlowPriorModule(latent_shape, classes, flow_steps=self.flow_steps, width=self.width)


@register("prior", "diffusion", summary="diffusion over z: a lower bound on log p(z), sampling in 50 steps or fewer")
class DiffusionPrior(PriorConfig):
    """Diffusion in the latent space, fitted to a trained model.

    Attributes:
        width: channels of the network (default for grids: 64) or units per layer (default for vectors: 256).
        depth: blocks per resolution (default for grids: 2) or layers (default for vectors: 4).
    """

    width: Count | None = None
    depth: Count | None = None
    trained_with = False

    def build(
        self, latent_shape: tuple[int, ...], classes: int = 0, inference: InferenceNetwork | None = None
    ) -> Prior:
        from tessella.priors.diffusion import DiffusionPriorModule

        return DiffusionPriorModule(latent_shape, classes, width=self.width, depth=self.depth)


# over codes


@register("code-prior", "uniform", summary="all codes equally probable")
class Uniform(CodePriorConfig):
    """Uniform prior over codes."""

    labels = "none"
    fitted_after = False

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        from tessella.priors.uniform import UniformModule

        return UniformModule(code_shape, codebook_size, context_channels=context_channels, classes=classes)


@register("code-prior", "pixelcnn", summary="gated PixelCNN: code after code in raster order, by causal convolutions")
class PixelCNN(CodePriorConfig):
    """Gated PixelCNN over codes.

    Attributes:
        width: channels of each of the two stacks. Default: what fits the budget.
        depth: number of layers. Default: what fits the budget.
    """

    width: Count | None = None
    depth: Count | None = None
    sizes = _sizes((24, 3), (32, 4), (48, 5), (64, 6), (96, 7), (128, 8), (192, 10), (256, 12))

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        from tessella.priors.autoregressive import PixelCNNModule

        return PixelCNNModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width or 128,
            depth=self.depth or 8,
        )


@register("code-prior", "transformer", summary="causal transformer: code after code in raster order")
class CausalTransformer(CodePriorConfig):
    """Causal transformer over codes in raster order.

    Attributes:
        width: channels of the transformer. Default: what fits the budget.
        depth: number of blocks. Default: what fits the budget.
    """

    width: Count | None = None
    depth: Count | None = None
    sizes = _sizes((48, 2), (64, 3), (96, 4), (128, 5), (192, 6), (256, 8), (384, 10))

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        from tessella.priors.autoregressive import CausalTransformerModule

        return CausalTransformerModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width or 192,
            depth=self.depth or 6,
        )


@register(
    "code-prior",
    "masked",
    summary="any-order masked transformer: inpaints any codes given any others, samples in a few steps",
)
class MaskedTransformer(CodePriorConfig):
    """Masked transformer over codes in any order.

    Attributes:
        width: channels of the transformer. Default: what fits the budget.
        depth: number of blocks. Default: what fits the budget.
    """

    width: Count | None = None
    depth: Count | None = None
    sizes = _sizes((48, 2), (64, 3), (96, 4), (128, 5), (192, 6), (256, 8), (384, 10))

    any_order = True

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CodePrior:
        from tessella.priors.masked import MaskedTransformerModule

        return MaskedTransformerModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width or 192,
            depth=self.depth or 6,
        )
