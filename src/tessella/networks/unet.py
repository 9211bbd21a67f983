"""Small U-Net that denoises signals and pictures (Ho et al. 2020, appendix B; Ronneberger et al. 2015)."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.networks.conv import ConvPlan, conv, crop, fold, over_positions, padded, unfold

WAVES = 16
GROUPED = 16
"""Smallest number of channels per normalisation group."""


class NoiseLevel(nn.Module):
    """Embeds the log noise-to-signal ratio gamma `[B]` and the label, if any, as `[B, features]`.

    Args:
        features: number of features.
        classes: number of labels; 0: there are none.
    """

    frequencies: Tensor

    def __init__(self, features: int, classes: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1.5, 0.5, WAVES), persistent=False)
        self.first = nn.Linear(2 * WAVES + 1, features)
        self.second = nn.Linear(features, features)
        self.label = nn.Embedding(classes, features) if classes else None

    def forward(self, gamma: Tensor, label: Tensor | None) -> Tensor:
        angles = gamma[:, None] * self.frequencies
        h = self.first(torch.cat([gamma[:, None] / 10, angles.sin(), angles.cos()], 1))
        if self.label is not None:
            h = h + self.label(label)
        return F.silu(self.second(F.silu(h)))


def _norm(channels: int) -> nn.GroupNorm:
    """Make a group norm with as many groups as divide the channels."""
    groups = max(n for n in range(1, max(1, channels // GROUPED) + 1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


class UNetBlock(nn.Module):
    """Residual block `x + conv(silu(scale * conv(silu(norm(x))) + shift))`, scale and shift from the noise level."""

    def __init__(self, channels: int, features: int, scale: float, rank: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.first = conv(rank, channels, channels, 3, padding=1)
        self.level = nn.Linear(features, 2 * channels)
        self.second = conv(rank, channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(scale)
            nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale = over_positions(self.level(level), x.dim() - 2).chunk(2, dim=1)
        h = self.first(F.silu(self.norm(x)))
        return x + self.second(F.silu(h * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over all positions with one head: `x + out(attention(norm(x)))`."""

    def __init__(self, channels: int, scale: float, rank: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.entry = conv(rank, channels, 3 * channels)
        self.exit = conv(rank, channels, channels)
        with torch.no_grad():
            self.exit.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.entry(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.exit(h.transpose(1, 2).reshape(x.shape))


def details(z: Tensor, gamma: Tensor) -> Tensor:
    """Compute asinh of each number's difference from the mean around it, in deviations of the noise."""
    rank = z.dim() - 2
    around = F.pad(z, (1, 1) * rank, mode="replicate")
    mean = F.avg_pool2d(around, 3, stride=1) if rank == 2 else F.avg_pool1d(around, 3, stride=1)
    return torch.asinh((z - mean) / over_positions(torch.sigmoid(gamma).sqrt()[:, None], rank))


@final
class UNet(nn.Module):
    """Maps z_t `[B, C, *spatial]` of any size and its noise level gamma `[B]` to `[B, outputs, *spatial]`.

    The input is z_t and its `details` at the scale of the noise; without these, low noise would be lost among features
    of the picture's own scale. The grids of a plan are passed from fine to coarse and back, with skip connections
    between equal grids; the coarsest grid has attention. Sizes that the plan's stride does not divide are padded and
    cropped.

    Args:
        shape: `(C, *spatial)`.
        outputs: number of output channels.
        width: channels at the finest resolution.
        depth: blocks per resolution, in each direction.
        patch: positions per axis that the first layer folds into channels, if the picture is not small.
        side: the grid is halved until it has at most 2 side^rank positions.
        classes: number of labels; 0: no labels.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        *,
        width: int,
        depth: int,
        patch: int = 2,
        side: int = 8,
        classes: int = 0,
    ) -> None:
        super().__init__()
        plan = ConvPlan.of(shape, side=side, width=width, depth=depth)
        if patch < plan.patch:
            plan = ConvPlan(plan.spatial, 1, (width, *[2 * width for _ in plan.widths]), depth)
        self.plan, rank = plan, len(plan.spatial)
        features, scale = 4 * width, 1 / math.sqrt(2 * depth * len(plan.widths))
        self.level = NoiseLevel(features, classes)

        def blocks(channels: int) -> nn.ModuleList:
            return nn.ModuleList([UNetBlock(channels, features, scale, rank) for _ in range(depth)])

        steps = list(zip(plan.widths, plan.widths[1:], strict=False))
        self.stem = conv(rank, 2 * shape[0] * plan.patch**rank, width, 3, padding=1)
        self.falling = nn.ModuleList([blocks(channels) for channels in plan.widths])
        self.down = nn.ModuleList([conv(rank, before, after, 2, stride=2) for before, after in steps])
        self.attention = Attention(plan.widths[-1], scale, rank) if math.prod(plan.grid) > 1 else None
        self.up = nn.ModuleList([conv(rank, after, 2**rank * before) for before, after in steps])
        self.join = nn.ModuleList([conv(rank, 2 * channels, channels) for channels in plan.widths])
        self.rising = nn.ModuleList([blocks(channels) for channels in plan.widths])
        self.norm = _norm(width)
        self.head = conv(rank, width, outputs * plan.patch**rank, 3, padding=1)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, z: Tensor, gamma: Tensor, label: Tensor | None = None) -> Tensor:
        spatial = z.shape[2:]
        z = padded(z, self.plan.stride)
        level = self.level(gamma, label)
        h = self.stem(fold(torch.cat([z, details(z, gamma)], 1), self.plan.patch))
        kept: list[Tensor] = []
        for number, group in enumerate(self.falling):
            if number:
                h = self.down[number - 1](h)
            for block in group:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, level)
            kept.append(h)
        if self.attention is not None:
            h = self.attention(h)
        for number in reversed(range(len(self.rising))):
            h = self.join[number](torch.cat([h, kept[number]], 1))
            for block in self.rising[number]:  # pyright: ignore[reportGeneralTypeIssues]
                h = block(h, level)
            if number:
                h = unfold(self.up[number - 1](h), 2)
        return crop(unfold(self.head(F.silu(self.norm(h))), self.plan.patch), spatial)
