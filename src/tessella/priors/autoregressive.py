"""Autoregressive priors over codes in raster order, by causal convolutions or causal attention."""

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
"""Channels of the code embeddings that a PixelCNN takes."""


class IncrementalDecoder(Protocol):
    """Causal network that advances one position at a time, reusing the results of earlier positions."""

    def step(self) -> Tensor:
        """Compute the features `[B, width]` of the next position."""
        ...

    def append(self, vectors: Tensor) -> None:
        """Append the embedded codes `[B, channels]` of this position and move to the next."""
        ...


class AutoregressivePrior(CodePrior, ABC):
    """Autoregressive prior p(codes) = prod_p p(codes at p | codes before p), in raster order.

    A causal network takes the embedded codes of the positions before p, the position, the label and the context at p. A
    `CodeHead` maps its features to the distribution of the position's C codes, each conditional on the previous ones.
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
        """Compute the features of each position from the codes before it: `[B, C, *grid]` to `[B, P, width]`."""

    @abstractmethod
    def incremental(self, count: int, condition: Condition) -> IncrementalDecoder:
        """Make an incremental decoder of `count` grids, at their first position."""

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

    The prior of VQ-VAE and VQ-VAE-2: residual causal convolutions without a blind spot (section 2).

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of each of the two stacks.
        depth: number of layers.

    Attributes:
        dropout: share of channels dropped in training from each layer's residual, for a whole example (Tompson et al.
            2015, section 3.2); the noise decides which, and without noise none are.
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
        """Embed position, label and context as a feature map `[B or 1, width, *grid]`."""
        return self.given(condition.label, condition.context).transpose(1, 2).unflatten(2, self.code_shape[1:])

    def _keep(self, batch: int, noise: Noise | None, device: torch.device) -> Tensor | None:
        if noise is None or not self.training or not self.dropout:
            return None
        keep = noise.uniform(batch, self.depth, 2 * self.width, device=device) >= self.dropout
        return keep / (1 - self.dropout)


@final
class CausalTransformerModule(AutoregressivePrior):
    """Causal transformer over codes (Esser et al. 2021, section 3.2).

    The input at a position is the sum of the previous position's embedded codes and embeddings of the position, the
    label and the context. In training the noise decides what is dropped (`trunk.dropout`).

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of the transformer.
        depth: number of blocks.
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
        self.start = nn.Parameter(torch.randn(width))
        self.embed = CodeEmbedding(count, codebook_size, width)
        self.given = GridEmbedding(tuple(grid), width, context_channels=context_channels, classes=classes)
        self.trunk = Transformer(tuple(grid), width, depth, causal=True, dropout=DROPOUT)
        self.head = CodeHead(width, count, codebook_size)

    def features(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        before = self.embed(codes.flatten(2))[:, :-1]
        start = self.start.expand(len(codes), 1, -1)
        return self.trunk(torch.cat([start, before], 1) + self.given(condition.label, condition.context), noise)

    def incremental(self, count: int, condition: Condition) -> IncrementalDecoder:
        given = self.given(condition.label, condition.context).expand(count, -1, -1)
        return IncrementalTransformer(self.trunk, given, self.start)
