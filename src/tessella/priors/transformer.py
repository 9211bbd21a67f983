"""A causal transformer over codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from tessella.contracts import CodePrior
from tessella.networks.transformer import CachedSteps, CodeEmbedding, GridEmbedding, Transformer
from tessella.noise import Noise
from tessella.priors.head import CodeHead
from tessella.records import Sampling

WIDTH, DEPTH, DROPOUT = 192, 6, 0.1


@final
class CausalTransformer(CodePrior):
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
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        count, *grid = code_shape
        width = width or WIDTH
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, classes
        self.start = nn.Parameter(torch.randn(width))
        self.embed = CodeEmbedding(count, codebook_size, width)
        self.given = GridEmbedding(tuple(grid), width, context_channels=context_channels, classes=classes)
        self.trunk = Transformer(tuple(grid), width, depth or DEPTH, causal=True, dropout=DROPOUT)
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

    @torch.no_grad()
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
        positions = math.prod(self.code_shape[1:])
        uniform = noise.uniform(count, *self.code_shape, device=self.start.device).flatten(2)
        codes = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
        with torch.inference_mode():
            given = self.given(label, context).expand(count, -1, -1)
            step = CachedSteps(self.trunk, count, positions)
            before = self.start
            for p in range(positions):
                codes[..., p] = self.head.draw(step(before + given[:, p]), uniform[..., p], sampling)
                before = self.embed(codes[..., p : p + 1])[:, 0]
                if progress is not None:
                    progress(p + 1, positions)
        return codes.view(count, *self.code_shape)
