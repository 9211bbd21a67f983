"""Residual convolutional encoder and decoder for pictures of any size.

Norm-free pre-activation residual blocks (He et al. 2016, section 3) whose last convolution starts small, as in
very deep VAEs (Child 2020, section 3.1): no statistics are kept, so a batch's composition changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.contracts import Decoder, Encoder


@dataclass(frozen=True)
class ConvPlan:
    """The shape of a convolutional network, read off the data's.

    Attributes:
        height, width: of the pictures.
        patch: pixels a side that the first layer folds into channels (1 or 2).
        widths: channels at each resolution, finest first; each step halves the grid.
        depth: residual blocks at each resolution.
    """

    height: int
    width: int
    patch: int
    widths: tuple[int, ...]
    depth: int

    @classmethod
    def for_pictures(cls, shape: tuple[int, ...], *, side: int, width: int, depth: int) -> ConvPlan:
        """Halve the grid until it has no more than 2 side^2 positions; channels double once and then stay."""
        _, h, w = shape
        halvings = 0
        while -(-h // 2**halvings) * -(-w // 2**halvings) > 2 * side**2:
            halvings += 1
        patch = 2 if halvings else 1
        widths = tuple(width * min(2**i, 2) for i in range(max(1, halvings)))
        return cls(h, w, patch, widths, depth)

    @property
    def stride(self) -> int:
        """Pixels a side of one position of the coarsest grid."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """The coarsest grid; sizes that the stride does not divide are padded."""
        return -(-self.height // self.stride), -(-self.width // self.stride)


def conv(rank: int, inputs: int, outputs: int, size: Any = 1, **options: Any) -> nn.Conv1d | nn.Conv2d:
    """Make a convolution along that many axes; along none it is one along an axis of length 1."""
    return (nn.Conv2d if rank == 2 else nn.Conv1d)(inputs, outputs, size, **options)


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(x))))`, 3 x 3.

    Args:
        scale: factor on the last convolution's initial weights; 1 / sqrt(blocks) keeps the variance of the sum.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(scale)
            nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _blocks(channels: int, plan: ConvPlan) -> list[nn.Module]:
    scale = 1 / math.sqrt(plan.depth * len(plan.widths))
    return [ResidualBlock(channels, scale) for _ in range(plan.depth)]


class ConvEncoder(Encoder):
    """`[B, C, H, W]` to a grid of features `[B, F, h, w]`, or to one vector `[B, F]` if `features` is given."""

    def __init__(
        self, shape: tuple[int, ...], plan: ConvPlan, *, features: int | None = None, classes: int = 0
    ) -> None:
        super().__init__()
        self.plan = plan
        self.stem = nn.Conv2d(shape[0] * plan.patch**2, plan.widths[0], 3, padding=1)
        self.label = nn.Embedding(classes, plan.widths[0]) if classes else None
        layers: list[nn.Module] = _blocks(plan.widths[0], plan)
        for before, after in zip(plan.widths, plan.widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 2, stride=2), *_blocks(after, plan)]
        self.trunk = nn.Sequential(*layers)
        grid = (plan.widths[-1], *plan.grid)
        self.flatten = nn.Linear(math.prod(grid), features) if features else None
        self.feature_shape = (features,) if features else grid
        self.downsampling = plan.stride

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.stem(F.pixel_unshuffle(_padded(x, self.plan.stride), self.plan.patch))
        if self.label is not None:
            h = h + self.label(label)[:, :, None, None]
        h = F.silu(self.trunk(h))
        return h if self.flatten is None else F.silu(self.flatten(h.flatten(1)))


class ConvDecoder(Decoder):
    """Latents, a vector `[B, D]` or a grid `[B, D, h, w]`, to parameters `[B, channels, H, W]`.

    A grid of another size than the training pictures' is drawn as a picture of its size: the network is
    convolutional. `H` and `W` are then the grid's times the stride.
    """

    def __init__(self, latent_shape: tuple[int, ...], plan: ConvPlan, channels: int, *, classes: int = 0) -> None:
        super().__init__()
        self.plan = plan
        top = plan.widths[-1]
        if len(latent_shape) == 1:
            self.entry = nn.Sequential(
                nn.Linear(latent_shape[0], top * math.prod(plan.grid)), nn.Unflatten(1, (top, *plan.grid))
            )
        else:
            self.entry = nn.Conv2d(latent_shape[0], top, 3, padding=1)
        self.label = nn.Embedding(classes, top) if classes else None
        layers: list[nn.Module] = _blocks(top, plan)
        for before, after in zip(plan.widths[::-1], plan.widths[-2::-1], strict=False):
            layers += [nn.Conv2d(before, 4 * after, 1), nn.PixelShuffle(2), *_blocks(after, plan)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(plan.widths[0], channels * plan.patch**2, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        h = self.entry(z)
        if self.label is not None:
            h = h + self.label(label)[:, :, None, None]
        out = F.pixel_shuffle(self.head(F.silu(self.trunk(h))), self.plan.patch)
        if tuple(h.shape[-2:]) == self.plan.grid:
            out = out[..., : self.plan.height, : self.plan.width]
        return out

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Let the first output be `bias` `[channels]` everywhere, plus a small part that depends on z."""
        self.head.weight.mul_(0.1)
        self.head.bias.copy_(bias.repeat_interleave(self.plan.patch**2))  # pyright: ignore[reportOptionalMemberAccess]


def _padded(x: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column until the stride divides the size."""
    h, w = x.shape[-2:]
    down, right = -h % stride, -w % stride
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
