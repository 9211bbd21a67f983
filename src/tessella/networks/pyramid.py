"""Features at several resolutions: what a hierarchy of latents looks at.

The finest grid is an encoder's; each coarser one has half its side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.networks.conv import ResidualBlock


class Pyramid(nn.Module):
    """The finest features `[B, F, h, w]` to `levels` of them, coarsest first; odd sides are rounded up."""

    def __init__(self, channels: int, levels: int, depth: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 2, stride=2), *_blocks(channels, depth))
            for _ in range(levels - 1)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        grids = [features]
        for step in self.steps:
            h, w = features.shape[-2:]
            features = step(F.pad(features, (0, w % 2, 0, h % 2), mode="replicate") if h % 2 or w % 2 else features)
            grids.append(F.silu(features))
        return grids[::-1]


class Merge(nn.Module):
    """Features of one level, given what coarser levels have said: `[B, F, h, w]`, `[B, C, h, w]` to `[B, F, h, w]`."""

    def __init__(self, channels: int, context_channels: int, depth: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(channels + context_channels, channels, 1)
        self.blocks = nn.Sequential(*_blocks(channels, depth))

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        joined = torch.cat([features, context.to(features.dtype)], 1)
        return F.silu(self.blocks(self.entry(joined)))


def _blocks(channels: int, depth: int) -> list[nn.Module]:
    return [ResidualBlock(channels, 1 / math.sqrt(depth)) for _ in range(depth)]
