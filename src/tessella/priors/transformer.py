"""A causal transformer over codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from tessella.core.configs import CodePriorConfig
from tessella.core.contracts import CodePrior, SymbolCoder
from tessella.core.entropy_coding import code_categorical
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.foundation.config import Count
from tessella.foundation.registry import register
from tessella.networks.transformer import CachedSteps, CodeEmbedding, GridEmbedding, Transformer
from tessella.priors.head import CodeHead
from tessella.priors.sampling import Pick, Progress, draw, filling

WIDTH, DEPTH, DROPOUT = 192, 6, 0.1


@register(
    "code-prior",
    "transformer",
    summary="causal transformer: code after code in raster order",
)
class CausalTransformer(CodePriorConfig):
    """Causal transformer over codes in raster order.

    Attributes:
        width: channels of the transformer.
        depth: blocks.
    """

    width: Count = WIDTH
    depth: Count = DEPTH

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> CausalTransformerModule:
        return CausalTransformerModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width,
            depth=self.depth,
        )


@final
class CausalTransformerModule(CodePrior):
    """p(codes) = prod_p p(codes at p | codes before p), in raster order (Esser et al. 2021, section 3.2).

    A position is given the sum of its predecessor's embedded codes, its place in the grid, the label and the context
    around it; what the transformer then says of it goes to a `CodeHead`, which tells its C codes one by one. In
    training the noise decides what is dropped (`trunk.dropout`).

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of the transformer.
        depth: its blocks.
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
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, classes
        self.start = nn.Parameter(torch.randn(width))
        self.embed = CodeEmbedding(count, codebook_size, width)
        self.given = GridEmbedding(tuple(grid), width, context_channels=context_channels, classes=classes)
        self.trunk = Transformer(tuple(grid), width, depth, causal=True, dropout=DROPOUT)
        self.head = CodeHead(width, count, codebook_size)

    def forward(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        features = self.features(codes, label, context, noise=noise)
        return self.head.log_prob(features, codes.flatten(2)).view(codes.shape)

    def features(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """What is known of each position by the codes before it: `[B, C, h, w]` to `[B, h w, width]`, for `head`."""
        before = self.embed(codes.flatten(2))[:, :-1]
        start = self.start.expand(len(codes), 1, -1)
        return self.trunk(torch.cat([start, before], 1) + self.given(label, context), noise)

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
        uniform = noise.uniform(count, *self.code_shape, device=self.start.device).flatten(2)

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
        positions = math.prod(self.code_shape[1:])
        codes = torch.empty(count, self.code_shape[0], positions, dtype=torch.int64, device=self.start.device)
        with torch.inference_mode():
            given = self.given(label, context).expand(count, -1, -1)
            step = CachedSteps(self.trunk, count, positions)
            before = self.start
            for p in range(positions):
                codes[..., p] = self.head.choose(step(before + given[:, p]), lambda logits, c, p=p: pick(logits, c, p))
                before = self.embed(codes[..., p : p + 1])[:, 0]
                if progress is not None:
                    progress(p + 1, positions)
        return codes.view(count, *self.code_shape)
