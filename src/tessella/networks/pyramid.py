"""Features at several resolutions: what a hierarchy of latents looks at.

The finest grid is an encoder's; each coarser one has half its side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.networks.conv import ResidualBlock, conv, padded


class Pyramid(nn.Module):
    """The finest features `[B, F, *grid]` to `levels` of them, coarsest first; odd sides are rounded up."""

    def __init__(self, channels: int, levels: int, depth: int, rank: int = 2) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(conv(rank, channels, channels, 2, stride=2), *_blocks(channels, depth, rank))
            for _ in range(levels - 1)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        grids = [features]
        for step in self.steps:
            features = step(padded(features, 2))
            grids.append(F.silu(features))
        return grids[::-1]


class Merge(nn.Module):
    """Features of one level, given what coarser levels have said: `[B, F, *grid]`, `[B, C, *grid]` to the former."""

    def __init__(self, channels: int, context_channels: int, depth: int, rank: int = 2) -> None:
        super().__init__()
        self.entry = conv(rank, channels + context_channels, channels, 1)
        self.blocks = nn.Sequential(*_blocks(channels, depth, rank))

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        joined = torch.cat([features, context.to(features.dtype)], 1)
        return F.silu(self.blocks(self.entry(joined)))


def _blocks(channels: int, depth: int, rank: int) -> list[nn.Module]:
    return [ResidualBlock(channels, 1 / math.sqrt(depth), rank) for _ in range(depth)]
