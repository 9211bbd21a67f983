"""Transformers over the positions of a grid, for whole sequences or one position after another.

Pre-norm blocks (Xiong et al. 2020, section 3) with `F.scaled_dot_product_attention` and a GELU MLP, without biases,
with heads of 64 channels. Positions are in raster order and encoded in two ways, so that a grid may have any shape: by
a learned vector for each axis (row and column), and by rotary embeddings (Su et al. 2021, section 3.2), in which each
axis rotates an equal part of a head's channels, so that attention depends on distances from the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError, option
from tessella.networks.conv import conv

HEAD = 64
"""Largest number of channels of an attention head."""
SLOWEST = 1 / 30
"""Angle in radians per position of the slowest pair of a head's channels; the fastest has 1."""
SHORT = 256
"""Largest number of positions for which a processor computes bfloat16 attention by plain matrix products."""
BLOCK = 128
"""Positions by which the cache of keys and values grows."""


@final
class CodeEmbedding(nn.Module):
    """Maps the codes of each position `[B, C, P]` to the sum of their embeddings, `[B, P, width]`."""

    offsets: Tensor

    def __init__(self, codes: int, codebook_size: int, width: int) -> None:
        super().__init__()
        self.tables = nn.EmbeddingBag(codes * codebook_size, width, mode="sum")
        self.register_buffer("offsets", codebook_size * torch.arange(codes)[:, None], persistent=False)
        nn.init.normal_(self.tables.weight, std=1 / math.sqrt(codes))

    def forward(self, codes: Tensor) -> Tensor:
        batch, count, positions = codes.shape
        return self.tables((codes + self.offsets).movedim(1, 2).reshape(-1, count)).view(batch, positions, -1)


@final
class GridEmbedding(nn.Module):
    """Embedding of what is known at each position before any code: the position, the label and the context.

    The context enters through 5 x 5 positions around each position, including later ones, which causal attention would
    hide.

    Args:
        grid: `(t,)` or `(h, w)`.
        width: channels of the result.
        context_channels: channels of the context, a feature map; 0: there is none.
        classes: number of labels; 0: there are none.
    """

    def __init__(self, grid: tuple[int, ...], width: int, *, context_channels: int = 0, classes: int = 0) -> None:
        super().__init__()
        sides = [(side, *(1,) * (len(grid) - 1 - axis), width) for axis, side in enumerate(grid)]
        self.places = nn.ParameterList([nn.Parameter(0.3 * torch.randn(shape)) for shape in sides])
        self.label = nn.Embedding(classes, width) if classes else None
        self.context = (
            nn.Sequential(
                conv(len(grid), context_channels, width // 2, 3, padding=1),
                nn.SiLU(),
                conv(len(grid), width // 2, width, 3, padding=1),
            )
            if context_channels
            else None
        )

    def forward(self, label: Tensor | None, context: Tensor | None) -> Tensor:
        """Embed labels `[B]` and context `[B, context_channels, *grid]` as `[B, P, width]`.

        Without either the result is `[1, P, width]`.

        Raises:
            SpecError: if a label or a context is missing, or given to a network that has none.
        """
        vectors = reduce(torch.add, self.places).flatten(0, -2)[None]
        if self.label is not None:
            if label is None:
                raise SpecError("the class-conditional prior needs a label for each example", code="needs-labels")
            vectors = vectors + self.label(label)[:, None]
        elif label is not None:
            raise SpecError(
                f"the prior takes no labels: fit it with {option('class_conditional')}", code="unconditional"
            )
        if self.context is not None:
            if context is None:
                raise SpecError(
                    "the prior is conditional on a coarser level: pass that level's features as context",
                    code="needs-context",
                )
            vectors = vectors + self.context(context).flatten(2).transpose(1, 2)
        elif context is not None:
            raise SpecError("the prior is not conditional on a coarser level: leave out the context", code="no-context")
        return vectors


@final
class TransformerBlock(nn.Module):
    """Transformer block: `x + attention(norm(x))`, then `x + down(gelu(up(norm(x))))`.

    Args:
        width: number of channels.
        heads: number of attention heads.
        scale: factor on the initial weights of both residuals; 1 / sqrt(2 depth) keeps the variance of the sum.
    """

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.before_mlp = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for layer, gain in ((self.qkv, 1.0), (self.out, scale), (self.up, 1.0), (self.down, scale)):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))

    def attend(self, x: Tensor, turns: Tensor, causal: bool) -> Tensor:
        """Compute the residual of attention for `[B, P, width]`."""
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k = _turned(qkv[:, :, :2], turns).transpose(1, 3).unbind(2)
        return self.out(_attention(q, k, qkv[:, :, 2].transpose(1, 2), causal).transpose(1, 2).flatten(2))

    def perceive(self, x: Tensor) -> Tensor:
        """Compute the residual of the MLP."""
        return self.down(F.gelu(self.up(self.before_mlp(x))))


def _turns(grid: tuple[int, ...], channels: int) -> Tensor:
    """Compute cosine and sine of the rotary angles, by position and pair of channels: `[P, channels / 2, 2]`."""
    pairs = channels // 2 // len(grid)
    rates = SLOWEST ** (torch.arange(pairs) / pairs)
    places = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(-1, len(grid))
    angles = (places[:, :, None] * rates).flatten(1)
    return torch.stack([angles.cos(), angles.sin()], -1)  # 3 axes: channels-last would refuse 5


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate each pair of channels `[..., d]` by its angle, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * torch.view_as_complex(turns)
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Compute `F.scaled_dot_product_attention` of `[B, heads, P, d]`.

    For short bfloat16 sequences on a processor plain matrix products are used, because its backward pass takes several
    times as long.
    """
    positions = q.shape[2]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or positions > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(torch.ones(positions, positions, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ v


@final
class Transformer(nn.Module):
    """Transformer blocks and a final norm: maps `[B, P, width]` to `[B, P, width]`.

    Args:
        grid: `(t,)` or `(h, w)`, with P positions in raster order.
        width: number of channels; there are as few equal heads as possible with at most 64 channels each.
        depth: number of blocks.
        causal: whether a position attends only to itself and those before it.
        dropout: share of channels dropped in training from the input and from each residual. The same channels are
            dropped at all positions of an example, as in recurrent networks (Gal & Ghahramani 2016), which takes little
            noise.

    Raises:
        SpecError: if the width is not a multiple of 4.
    """

    turns: Tensor

    def __init__(self, grid: tuple[int, ...], width: int, depth: int, *, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        if width % 4:
            raise SpecError(
                f"{option('width')} of a transformer must be a multiple of 4, got {width}", code="bad-width"
            )
        self.width, self.causal, self.dropout = width, causal, dropout
        heads = next(n for n in range(1, width) if width % (4 * n) == 0 and width // n <= HEAD)
        self.register_buffer("turns", _turns(grid, width // heads), persistent=False)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, 1 / math.sqrt(2 * depth)) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Transform `x` `[B, P, width]`; in training mode `noise` decides what is dropped, without it nothing is."""
        keep = self._keep(noise, x) if noise is not None and self.training and self.dropout else None

        def dropped(branch: Tensor, place: int) -> Tensor:
            return branch if keep is None else branch * keep[:, place].to(branch.dtype)

        x = dropped(x, 0)
        for i, block in enumerate(cast(Iterable[TransformerBlock], self.blocks)):
            x = x + dropped(block.attend(x, self.turns[:, None, None], self.causal), 2 * i + 1)
            x = x + dropped(block.perceive(x), 2 * i + 2)
        return self.norm(x)

    def _keep(self, noise: Noise, x: Tensor) -> Tensor:
        """Sample dropout factors `[B, 2 depth + 1, 1, width]` with mean 1."""
        uniform = noise.uniform(len(x), 2 * len(self.blocks) + 1, 1, self.width, device=x.device)
        return (uniform >= self.dropout) / (1 - self.dropout)


@final
class IncrementalTransformer:
    """Causal transformer one position at a time, with a cache of keys and values. No gradients.

    Weights are cast once to the precision of the surrounding autocast; keys and values are stored in it. The cache
    grows by blocks, so that each layer's is one dense array: matrix products read that several times faster than a part
    of a larger one.

    Args:
        trunk: the transformer; its weights are copied now.
        given: `[B, P, width]`, added to the input at each position.
        start: `[width]`, the input of the first position.
    """

    def __init__(self, trunk: Transformer, given: Tensor, start: Tensor) -> None:
        like = trunk.norm.weight
        rough = torch.is_autocast_enabled(like.device.type)
        dtype = torch.get_autocast_dtype(like.device.type) if rough else like.dtype
        self._norm, self._turns, self._given, self._before = trunk.norm, trunk.turns[:, None, None], given, start
        self._done = 0
        self._layers = [_Layer(cast(TransformerBlock, block), len(given), dtype) for block in trunk.blocks]

    def step(self) -> Tensor:
        """Compute the transformer's output at the next position, `[B, width]`."""
        if self._done % BLOCK == 0:
            for layer in self._layers:
                layer.grow(min(BLOCK, self._given.shape[1] - self._done))
        x = self._before + self._given[:, self._done]
        for layer in self._layers:
            x = layer(x, self._turns[self._done], self._done)
        self._done += 1
        return self._norm(x)

    def append(self, vectors: Tensor) -> None:
        """Set the input of the next position, `[B, width]`."""
        self._before = vectors


@final
class _Layer:
    """Weights of one block, with its cache of keys and values `[2, B, heads, positions, d]`."""

    def __init__(self, block: TransformerBlock, batch: int, dtype: torch.dtype) -> None:
        self.batch, self.heads, self.dtype = batch, block.heads, dtype
        self.norms = block.before_attention, block.before_mlp
        width = block.out.in_features
        scale = torch.ones(3 * width, 1, device=block.out.weight.device)
        scale[:width] = (width // block.heads) ** -0.5
        self.qkv = (block.qkv.weight * scale).to(dtype)
        self.out, self.up, self.down = (layer.weight.to(dtype) for layer in (block.out, block.up, block.down))
        self.kv = self.out.new_zeros(2, batch, block.heads, 0, width // block.heads)

    def grow(self, positions: int) -> None:
        self.kv = F.pad(self.kv, (0, 0, 0, positions))
        keys, self.values = self.kv.flatten(1, 2)
        self.keys = keys.transpose(1, 2)

    def __call__(self, x: Tensor, turns: Tensor, position: int) -> Tensor:
        """Compute the block's output for `[B, width]`."""
        first, second = self.norms
        qkv = F.linear(first(x).to(self.dtype), self.qkv).view(self.batch, 3, self.heads, -1)
        q, k = _turned(qkv[:, :2], turns).unbind(1)
        self.kv[0, :, :, position] = k
        self.kv[1, :, :, position] = qkv[:, 2]
        scores = torch.bmm(q.flatten(0, 1)[:, None], self.keys)[..., : position + 1]
        heard = torch.bmm(scores.softmax(-1), self.values[:, : position + 1])
        x = x + F.linear(heard.view(x.shape), self.out)
        return x + F.linear(F.gelu(F.linear(second(x).to(self.dtype), self.up)), self.down)
