"""Autoregressive priors over codes: one code after another in raster order, by causal convolutions or attention."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, final

import torch
from torch import Tensor, nn

from tessella.core.contracts import CodePrior
from tessella.core.outputs import UNCONDITIONAL, Condition
from tessella.core.rng import Noise
from tessella.core.selectors import Selector
from tessella.foundation.progress import track
from tessella.networks.causal_conv import CausalConv, IncrementalCausalConv
from tessella.networks.transformer import CodeEmbedding, GridEmbedding, IncrementalTransformer, Transformer
from tessella.priors.head import CodeHead

DROPOUT = 0.1
EMBEDDED = 64
"""Channels of an embedded code that a PixelCNN sees."""


class IncrementalDecoder(Protocol):
    """A causal network at one position after another, without computing those before it again."""

    def step(self) -> Tensor:
        """Compute the features `[B, width]` of the next position."""
        ...

    def append(self, vectors: Tensor) -> None:
        """Take in the position's embedded codes `[B, channels]`; the next position follows."""
        ...


class AutoregressivePrior(CodePrior, ABC):
    """p(codes) = prod_p p(codes at p | codes before p), in raster order.

    A causal network sees the embedded codes of the positions before p, the place, the label and the context around p;
    a `CodeHead` turns its features into the distribution of the position's C codes, one given another.
    """

    embed: CodeEmbedding
    given: GridEmbedding
    head: CodeHead

    def __init__(self, code_shape: tuple[int, ...], codebook_size: int, classes: int) -> None:
        super().__init__()
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, classes

    def forward(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        return self.head.log_prob(self.features(codes, condition, noise=noise), codes.flatten(2)).view(codes.shape)

    @abstractmethod
    def features(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        """Compute each position's features by the codes before it: `[B, C, *grid]` to `[B, P, width]`, for `head`."""

    @abstractmethod
    def incremental(self, count: int, condition: Condition) -> IncrementalDecoder:
        """Make a decoder of `count` grids, at their first position."""

    @torch.no_grad()
    def generate(self, count: int, select: Selector, condition: Condition = UNCONDITIONAL) -> Tensor:
        positions = math.prod(self.code_shape[1:])
        device = self.embed.offsets.device
        codes = torch.empty(count, self.code_shape[0], positions, dtype=torch.int64, device=device)
        first = torch.arange(count, device=device) * codes[0].numel() if count else codes.flatten()
        with torch.inference_mode():
            decoder = self.incremental(count, condition)
            for p in track(range(positions), "generating codes"):

                def select_symbol(logits: Tensor, c: int, p: int = p) -> Tensor:
                    return select(logits, first + (c * positions + p))

                codes[..., p] = self.head.select(decoder.step(), select_symbol)
                decoder.append(self.embed(codes[..., p : p + 1])[:, 0])
        return codes.view(count, *self.code_shape)


@final
class PixelCNNModule(AutoregressivePrior):
    """Gated PixelCNN over codes (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders").

    What VQ-VAE and VQ-VAE-2 took as their prior: causal convolutions without a blind spot, residual (section 2).

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
        super().__init__(code_shape, codebook_size, classes)
        count, *grid = code_shape
        self.width, self.depth, self.dropout = width, depth, DROPOUT
        self.embed = CodeEmbedding(count, codebook_size, EMBEDDED)
        self.given = GridEmbedding(tuple(grid), self.width, context_channels=context_channels, classes=classes)
        self.trunk = CausalConv(EMBEDDED, self.width, self.depth, context=self.width)
        self.head = CodeHead(self.width, count, codebook_size)

    def features(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        batch, _, *grid = codes.shape
        values = self.embed(codes.flatten(2)).transpose(1, 2).unflatten(2, grid)
        features = self.trunk(values, self._given(condition), self._keep(batch, noise, codes.device))
        return features.flatten(2).transpose(1, 2)

    def incremental(self, count: int, condition: Condition) -> IncrementalDecoder:
        height, width = (1, *self.code_shape[1:])[-2:]
        given = self._given(condition).flatten(2).unflatten(2, (height, width))
        return IncrementalCausalConv(self.trunk, count, height, width, given)

    def _given(self, condition: Condition) -> Tensor:
        """Place, label and context as a feature map `[B or 1, width, *grid]`."""
        return self.given(condition.label, condition.context).transpose(1, 2).unflatten(2, self.code_shape[1:])

    def _keep(self, batch: int, noise: Noise | None, device: torch.device) -> Tensor | None:
        if noise is None or not self.training or not self.dropout:
            return None
        keep = noise.uniform(batch, self.depth, 2 * self.width, device=device) >= self.dropout
        return keep / (1 - self.dropout)


@final
class CausalTransformerModule(AutoregressivePrior):
    """Causal transformer over codes (Esser et al. 2021, section 3.2).

    A position's input is the sum of its predecessor's embedded codes, its place, the label and the context around it.
    In training the noise decides what is dropped (`trunk.dropout`).

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels.
        depth: blocks.
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
        super().__init__(code_shape, codebook_size, classes)
        count, *grid = code_shape
        width = width or 192
        self.start = nn.Parameter(torch.randn(width))
        self.embed = CodeEmbedding(count, codebook_size, width)
        self.given = GridEmbedding(tuple(grid), width, context_channels=context_channels, classes=classes)
        self.trunk = Transformer(tuple(grid), width, depth or 6, causal=True, dropout=DROPOUT)
        self.head = CodeHead(width, count, codebook_size)

    def features(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        before = self.embed(codes.flatten(2))[:, :-1]
        start = self.start.expand(len(codes), 1, -1)
        return self.trunk(torch.cat([start, before], 1) + self.given(condition.label, condition.context), noise)

    def incremental(self, count: int, condition: Condition) -> IncrementalDecoder:
        given = self.given(condition.label, condition.context).expand(count, -1, -1)
        return IncrementalTransformer(self.trunk, given, self.start)
