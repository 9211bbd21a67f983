"""Features at several resolutions, for a hierarchy of latents.

The finest grid is an encoder's output; each coarser one has half its size along each axis.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.networks.conv import ResidualBlock, conv, padded


class Pyramid(nn.Module):
    """Maps features `[B, F, *grid]` to features at `levels` resolutions, coarsest first; odd sizes are rounded up."""

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
    """Combines the features of one level `[B, F, *grid]` with the context `[B, C, *grid]` from coarser levels."""

    def __init__(self, channels: int, context_channels: int, depth: int, rank: int = 2) -> None:
        super().__init__()
        self.entry = conv(rank, channels + context_channels, channels, 1)
        self.blocks = nn.Sequential(*_blocks(channels, depth, rank))

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        joined = torch.cat([features, context.to(features.dtype)], 1)
        return F.silu(self.blocks(self.entry(joined)))


def _blocks(channels: int, depth: int, rank: int) -> list[nn.Module]:
    return [ResidualBlock(channels, 1 / math.sqrt(depth), rank) for _ in range(depth)]
