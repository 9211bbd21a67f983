"""The gated PixelCNN over codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from tessella.core.configs import CodePriorConfig
from tessella.core.contracts import CodePrior, SymbolCoder
from tessella.core.entropy_coding import code_categorical
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.foundation.config import Count
from tessella.foundation.registry import register
from tessella.networks.causal_conv import CausalConv, CausalWalk
from tessella.networks.transformer import CodeEmbedding, GridEmbedding
from tessella.priors.head import CodeHead
from tessella.priors.sampling import Pick, Progress, draw, filling

WIDTH, DEPTH, DROPOUT = 128, 8, 0.1
EMBEDDED = 64


@register("code-prior", "pixelcnn", summary="gated PixelCNN: code after code in raster order, by causal convolutions")
class PixelCNN(CodePriorConfig):
    """Gated PixelCNN over codes.

    Attributes:
        width: channels of each stack.
        depth: layers.
    """

    width: Count = WIDTH
    depth: Count = DEPTH

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> PixelCNNModule:
        return PixelCNNModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width,
            depth=self.depth,
        )


@final
class PixelCNNModule(CodePrior):
    """p(codes) = prod_p p(codes at p | codes before p), in raster order, by causal convolutions.

    The gated PixelCNN of van den Oord et al. (2016, "Conditional image generation with PixelCNN decoders", section 2),
    which VQ-VAE and VQ-VAE-2 took as their prior: no blind spot, residual, conditional on a class and on a coarser
    level. A position's C codes go in as the sum of their embeddings and come out of a `CodeHead` one by one. Every
    position is also told its place in the grid.

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of each stack.
        depth: layers.

    Attributes:
        dropout: share of the channels that training leaves out of what a layer adds, for an example as a whole
            (Tompson et al. 2015, section 3.2); which ones, the noise decides, and without noise none.
    """

    def __init__(
        self,
        code_shape: tuple[int, ...],
        codebook_size: int,
        *,
        context_channels: int = 0,
        classes: int = 0,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        count, *grid = code_shape
        self.width, self.depth, self.dropout = width, depth, DROPOUT
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, classes
        self.embed = CodeEmbedding(count, codebook_size, EMBEDDED)
        self.given = GridEmbedding(tuple(grid), self.width, context_channels=context_channels, classes=classes)
        self.trunk = CausalConv(EMBEDDED, self.width, self.depth, context=self.width)
        self.head = CodeHead(self.width, count, codebook_size)

    def forward(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        features = self.features(codes, label, context, noise=noise)
        return self.head.log_prob(features, codes.flatten(2)).view(codes.shape)

    def features(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """What is known of each position by the codes before it: `[B, C, h, w]` to `[B, h w, width]`, for `head`."""
        batch, _, *grid = codes.shape
        values = self.embed(codes.flatten(2)).transpose(1, 2).unflatten(2, grid)
        features = self.trunk(values, self._given(label, context), self._keep(batch, noise, codes.device))
        return features.flatten(2).transpose(1, 2)

    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        uniform = noise.uniform(count, *self.code_shape, device=self.trunk.last.weight.device).flatten(2)

        def pick(logits: Tensor, c: int, p: int) -> Tensor:
            return draw(logits, uniform[:, c, p], sampling)

        return self._walked(count, pick, label, context, progress)

    def fill(
        self,
        codes: Tensor,
        known: Tensor,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Each given those before it: known codes after it have no say."""
        return self._walked(len(codes), filling(codes, known, noise, sampling), label, context, progress)

    def code(
        self,
        wire: SymbolCoder,
        count: int,
        codes: Tensor | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        known = None if codes is None else codes.flatten(2)

        def pick(logits: Tensor, c: int, p: int) -> Tensor:
            return code_categorical(wire, logits, None if known is None else known[:, c, p])

        return self._walked(count, pick, label, context, progress)

    @torch.no_grad()
    def _walked(
        self, count: int, pick: Pick, label: Tensor | None, context: Tensor | None, progress: Progress | None
    ) -> Tensor:
        """Codes `[count, C, h, w]`, position by position; `pick` gets logits `[count, K]`, which code and position."""
        height, width = self.code_shape[1:]
        positions, device = math.prod((height, width)), self.trunk.last.weight.device
        codes = torch.empty(count, self.code_shape[0], positions, dtype=torch.int64, device=device)
        with torch.inference_mode():
            walk = CausalWalk(self.trunk, count, height, width, self._given(label, context))
            for p in range(positions):
                codes[..., p] = self.head.choose(walk.features(), lambda logits, c, p=p: pick(logits, c, p))
                walk.put(self.embed(codes[..., p : p + 1])[:, 0])
                if progress is not None:
                    progress(p + 1, positions)
        return codes.view(count, *self.code_shape)

    def _given(self, label: Tensor | None, context: Tensor | None) -> Tensor:
        """Place, label and context as a feature map `[B or 1, width, h, w]`."""
        return self.given(label, context).transpose(1, 2).unflatten(2, self.code_shape[1:])

    def _keep(self, batch: int, noise: Noise | None, device: torch.device) -> Tensor | None:
        if noise is None or not self.training or not self.dropout:
            return None
        keep = noise.uniform(batch, self.depth, 2 * self.width, device=device) >= self.dropout
        return keep / (1 - self.dropout)
