"""Residual convolutional encoder and decoder for signals and pictures of any size.

Pre-activation residual blocks (He et al. 2016, section 3) without normalisation, whose last convolution starts small as
in very deep VAEs (Child 2020, section 3.1). Without batch statistics, an example's result does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.contracts import Decoder, Encoder

SIGNAL_SIDE = 16
"""Half of the positions to which the coarsest grid of a signal is brought down."""
FRAMES, SOUND_PATCH = 100, 8
"""Positions per second of the coarsest grid of a sound, about, and samples that the first layer folds into channels."""
START = 0.01
"""Factor on the initial weights of last layers that start small."""


@dataclass(frozen=True)
class ConvPlan:
    """Layout of a convolutional network, derived from the shape of the data.

    Attributes:
        spatial: `(T,)` or `(H, W)` of the data.
        patch: positions per axis that the first layer folds into channels: 1 or 2, and up to 8 for sounds.
        widths: channels at each resolution, finest first; each step halves the grid.
        depth: residual blocks at each resolution.
    """

    spatial: tuple[int, ...]
    patch: int
    widths: tuple[int, ...]
    depth: int

    @classmethod
    def usual(
        cls,
        shape: tuple[int, ...],
        *,
        fine: bool,
        rate: float = 0.0,
        side: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        coarser: bool = False,
    ) -> ConvPlan:
        """Plan networks for data of such a shape; the sizes that are not given are the usual ones.

        Args:
            fine: whether the grid is to be as fine, and the network as large, as colour pictures need.
            rate: samples per second of sounds, whose grids have about 100 positions per second; 0 for other data.
            coarser: whether the usual grid has to be coarser than the data, as codes of several bits each need.
        """
        usual = (16, 64, 4) if fine else (SIGNAL_SIDE if len(shape) == 2 else 7, 32, 2)
        least, patch = int(coarser and side is None and math.prod(shape[1:]) > 1), 2
        if rate:
            halvings, patch = max(1, round(math.log2(rate / FRAMES))), SOUND_PATCH
            usual = (max(1, -(-shape[1] // 2 ** (halvings + 1))), 64, 2)
        side, width, depth = side or usual[0], width or usual[1], depth or usual[2]
        return cls.of(shape, side=side, width=width, depth=depth, least=least, patch=patch)

    @classmethod
    def of(
        cls, shape: tuple[int, ...], *, side: int, width: int, depth: int, least: int = 0, patch: int = 2
    ) -> ConvPlan:
        """Make the layout for data of a shape.

        The grid is halved, at least `least` times, until it has at most 2 side^rank positions; the first halvings, up
        to `patch`, are folded into channels. The channels double once and then stay.
        """
        spatial, halvings = shape[1:], least
        while math.prod(-(-n // 2**halvings) for n in spatial) > 2 * side ** len(spatial):
            halvings += 1
        patch = min(patch, 2**halvings)
        steps = halvings - patch.bit_length() + 2
        return cls(spatial, patch, tuple(width * min(2**i, 2) for i in range(steps)), depth)

    @property
    def stride(self) -> int:
        """Return the number of data positions, along each axis, per position of the coarsest grid."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def margin(self) -> int:
        """Return the largest distance to its own of data positions that a position of the coarsest grid depends on."""
        strides = [self.patch * 2**i for i in range(len(self.widths))]
        return self.patch + 2 * self.depth * sum(strides)

    @property
    def grid(self) -> tuple[int, ...]:
        """Return the shape of the coarsest grid; sizes that the stride does not divide are padded."""
        return tuple(-(-n // self.stride) for n in self.spatial)


def conv(rank: int, inputs: int, outputs: int, size: Any = 1, **options: Any) -> nn.Conv1d | nn.Conv2d:
    """Make a convolution with one or two spatial axes."""
    return (nn.Conv2d if rank == 2 else nn.Conv1d)(inputs, outputs, size, **options)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """Convolve `[B, C, *spatial]` along its spatial axes."""
    return (F.conv2d if x.dim() == 4 else F.conv1d)(x, weight, bias, **options)


def fold(x: Tensor, side: int) -> Tensor:
    """Fold blocks of `side` positions per axis into channels: `[B, C, *spatial]` to `[B, C side^rank, ...]`."""
    return F.pixel_unshuffle(x, side) if x.dim() == 4 else x.unflatten(2, (-1, side)).movedim(3, 2).flatten(1, 2)


def unfold(x: Tensor, side: int) -> Tensor:
    """Invert `fold`."""
    return F.pixel_shuffle(x, side) if x.dim() == 4 else x.unflatten(1, (-1, side)).movedim(2, 3).flatten(2)


def blocked(maps: Tensor, side: int) -> Tensor:
    """Fold blocks of `side` positions per axis, position by position: `[B, C, *spatial]` to `[B, side^rank C, ...]`."""
    return fold(maps, side).unflatten(1, (maps.shape[1], -1)).transpose(1, 2).flatten(1, 2)


def unblocked(blocks: Tensor, side: int) -> Tensor:
    """Invert `blocked`."""
    return unfold(blocks.unflatten(1, (side ** (blocks.dim() - 2), -1)).transpose(1, 2).flatten(1, 2), side)


def checkerboard(spatial: Sequence[int]) -> Tensor:
    """Return the parity `[*spatial]` of each position, 0 or 1; neighbours along an axis differ."""
    axes = torch.meshgrid(*map(torch.arange, spatial), indexing="ij")
    return torch.stack(axes).sum(0) % 2


def over_positions(vectors: Tensor, rank: int) -> Tensor:
    """Reshape `[B, C]` to `[B, C, 1, ...]` so that it is added at every position."""
    return vectors.reshape(*vectors.shape, *(1,) * rank)


class Unfold(nn.Module):
    """Layer that applies `unfold`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return unfold(x, self.side)


class ResidualBlock(nn.Module):
    """Residual block `x + conv(silu(conv(silu(x))))` with kernels of size 3.

    Args:
        channels: number of channels.
        scale: factor on the last convolution's initial weights; 1 / sqrt(blocks) keeps the variance of the sum.
        rank: number of spatial axes.
    """

    def __init__(self, channels: int, scale: float, rank: int = 2) -> None:
        super().__init__()
        self.first = conv(rank, channels, channels, 3, padding=1)
        self.second = conv(rank, channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(scale)
            nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def is_colour(shape: tuple[int, ...]) -> bool:
    """Return whether data of such a shape are pictures of several colours."""
    return len(shape) == 3 and shape[0] >= 3


def _blocks(channels: int, plan: ConvPlan) -> list[nn.Module]:
    scale = 1 / math.sqrt(plan.depth * len(plan.widths))
    return [ResidualBlock(channels, scale, len(plan.spatial)) for _ in range(plan.depth)]


class ConvEncoder(Encoder):
    """Maps `[B, C, *spatial]` to a grid of features `[B, F, *grid]`, or to a vector `[B, F]` if `features` is set."""

    def __init__(
        self, shape: tuple[int, ...], plan: ConvPlan, *, features: int | None = None, classes: int = 0
    ) -> None:
        super().__init__()
        self.plan, rank = plan, len(plan.spatial)
        self.stem = conv(rank, shape[0] * plan.patch**rank, plan.widths[0], 3, padding=1)
        self.label = nn.Embedding(classes, plan.widths[0]) if classes else None
        layers: list[nn.Module] = _blocks(plan.widths[0], plan)
        for before, after in zip(plan.widths, plan.widths[1:], strict=False):
            layers += [conv(rank, before, after, 2, stride=2), *_blocks(after, plan)]
        self.trunk = nn.Sequential(*layers)
        grid = (plan.widths[-1], *plan.grid)
        self.flatten = nn.Linear(math.prod(grid), features) if features else None
        self.feature_shape = (features,) if features else grid
        self.downsampling = plan.stride
        self.margin = None if features else plan.margin

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.stem(fold(padded(x, self.plan.stride), self.plan.patch))
        if self.label is not None:
            h = h + over_positions(self.label(label), len(self.plan.spatial))
        h = F.silu(self.trunk(h))
        return h if self.flatten is None else F.silu(self.flatten(h.flatten(1)))


class ConvDecoder(Decoder):
    """Maps latents, a vector `[B, D]` or a grid `[B, D, *grid]`, to parameters `[B, channels, *spatial]`.

    A grid of another size than in training is decoded to its own size, the grid times the stride, because the network
    is convolutional.
    """

    def __init__(self, latent_shape: tuple[int, ...], plan: ConvPlan, channels: int, *, classes: int = 0) -> None:
        super().__init__()
        self.plan, rank = plan, len(plan.spatial)
        self.margin = None if len(latent_shape) == 1 else plan.margin + plan.stride
        top = plan.widths[-1]
        if len(latent_shape) == 1:
            self.entry = nn.Sequential(
                nn.Linear(latent_shape[0], top * math.prod(plan.grid)), nn.Unflatten(1, (top, *plan.grid))
            )
        else:
            self.entry = conv(rank, latent_shape[0], top, 3, padding=1)
        self.label = nn.Embedding(classes, top) if classes else None
        layers: list[nn.Module] = _blocks(top, plan)
        for before, after in zip(plan.widths[::-1], plan.widths[-2::-1], strict=False):
            layers += [conv(rank, before, 2**rank * after, 1), Unfold(2), *_blocks(after, plan)]
        self.trunk = nn.Sequential(*layers)
        self.head = conv(rank, plan.widths[0], channels * plan.patch**rank, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        h = self.entry(z)
        if self.label is not None:
            h = h + over_positions(self.label(label), len(self.plan.spatial))
        out = unfold(self.head(F.silu(self.trunk(h))), self.plan.patch)
        return crop(out, self.plan.spatial) if tuple(h.shape[2:]) == self.plan.grid else out

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Set the initial output to `bias` `[channels]` everywhere, nearly independent of z."""
        self.head.weight.mul_(0.1)
        self.head.bias.copy_(bias.repeat_interleave(self.plan.patch ** len(self.plan.spatial)))  # pyright: ignore[reportOptionalMemberAccess]


def padded(x: Tensor, stride: int) -> Tensor:
    """Repeat the last positions along each axis until the stride divides the size."""
    missing = [-n % stride for n in x.shape[2:]]
    return F.pad(x, [n for side in reversed(missing) for n in (0, side)], mode="replicate") if any(missing) else x


def crop(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Crop each axis to the given size, keeping the first positions."""
    for axis, size in enumerate(spatial, 2):
        x = x.narrow(axis, 0, size) if x.shape[axis] > size else x
    return x


def pooled_features(shape: tuple[int, ...], features: int) -> nn.Sequential:
    """Make the body of a small classifier, from `[B, C, *spatial]` to `[B, features]`."""
    before, *sides = shape
    flat = len(sides) == 1
    norm, halve = (nn.BatchNorm1d, nn.MaxPool1d) if flat else (nn.BatchNorm2d, nn.MaxPool2d)
    layers: list[nn.Module] = []
    for wide in (24, 48, 64):
        layers += [conv(len(sides), before, wide, 3, padding=1), norm(wide), nn.ReLU()]
        if min(sides) >= 4:
            layers.append(halve(2))
            sides = [side // 2 for side in sides]
        before = wide
    pooled = tuple(min(side, 3) for side in sides)
    pool = nn.AdaptiveAvgPool1d(pooled[0]) if flat else nn.AdaptiveAvgPool2d(pooled)
    layers += [pool, nn.Flatten(), nn.Linear(before * math.prod(pooled), features)]
    return nn.Sequential(*layers, nn.ReLU())


def start_small(parameters: Iterable[nn.Parameter]) -> None:
    """Scale the initial weights of a last layer by `START`, so that a transform starts near the identity."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(START)
