"""Invertible maps f with log |det df/dx|, and the small ones that flows of pictures are made of.

All arithmetic on x and z is in their own precision whatever the autocast: float32, or float64, whose inverse gives back
the very numbers that the networks saw. Networks that give a map's parameters run in float32, or lower.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.device import precise
from tessella.networks.conv import ResidualBlock


class Transform(nn.Module, ABC):
    """An invertible map of examples: log p(x) = log p(f(x)) + log |det df/dx|."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, *shape]` to z `[B, *shape]` and log |det df/dx| `[B]` in nats."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """z `[B, *shape]` back to x `[B, *shape]`."""


@final
class ComposedTransform(Transform):
    """Transforms one after the other."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Tensor:
        for transform in reversed(list(self.transforms)):
            assert isinstance(transform, Transform)
            z = transform.inverse(z)
        return z


@final
class ActNorm(Transform):
    """z = exp(s_c) (x + b_c) for each channel c of `[B, C, H, W]` (Kingma & Dhariwal 2018, section 3.1).

    It starts at the identity: data come standardised, so no first batch has to set it, which resumed and parallel runs
    would have to agree on.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale.to(x.dtype)[:, None, None]
        log_det = log_scale.sum() * math.prod(x.shape[2:])
        return log_scale.exp() * (x + self.shift[:, None, None]), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale.to(z.dtype)).exp()[:, None, None] - self.shift[:, None, None]


@final
class InvertibleConv(Transform):
    """Every pixel's channels times one invertible matrix W = P L (U + diag(s)): an invertible 1 x 1 convolution, in the
    LU form that makes log |det W| = sum log |s| (Kingma & Dhariwal 2018, section 3.2, eq. 10). P and the signs of s
    stay as they start.

    W starts as the orthonormal cosine transform: of colours the first channel is their mean, the others differences.

    Args:
        channels: at least 2.
    """

    sign: Tensor
    permutation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        n = torch.arange(channels, dtype=torch.float64)
        cosines = torch.cos(math.pi / channels * (n + 0.5) * n[:, None]) * math.sqrt(2 / channels)
        cosines[0] /= math.sqrt(2)
        permutation, lower, upper = torch.linalg.lu(cosines)
        diagonal = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_scale = nn.Parameter(diagonal.abs().log().float())
        self.register_buffer("sign", diagonal.sign().float())
        self.register_buffer("permutation", permutation.float())

    def weight(self) -> Tensor:
        """W `[C, C]`, float64."""
        diagonal = precise(self.sign * self.log_scale.exp())
        lower = precise(self.lower).tril(-1) + torch.eye(len(diagonal), dtype=torch.float64, device=diagonal.device)
        return precise(self.permutation) @ lower @ (precise(self.upper).triu(1) + torch.diag(diagonal))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.log_scale.sum() * math.prod(x.shape[2:])
        return _mixed(self.weight().to(x), x), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return _mixed(torch.linalg.inv(self.weight()).to(z), z)


def _mixed(weight: Tensor, x: Tensor) -> Tensor:
    """`[C, C]` times each pixel of `[B, C, H, W]`."""
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, weight[:, :, None, None])


@final
class AffineCoupling(Transform):
    """z_1 = x_1, z_2 = exp(s(x_1)) x_2 + t(x_1) on halves of the channels (Dinh et al. 2017, section 3.2).

    |s| < 1: a coupling can stretch by e at most, so that a stack of them stays well conditioned.

    Args:
        channels: at least 2.
        width, depth: channels and residual blocks of the network.
        flip: let the second half speak and the first be changed.
    """

    def __init__(self, channels: int, *, width: int, depth: int, flip: bool = False) -> None:
        super().__init__()
        self.sizes = (channels // 2, channels - channels // 2)
        self.flip = flip
        told, changed = reversed(self.sizes) if flip else self.sizes
        blocks = [ResidualBlock(width, 1 / math.sqrt(depth)) for _ in range(depth)]
        self.network = nn.Sequential(nn.Conv2d(told, width, 3, padding=1), *blocks, nn.SiLU())
        self.exit = nn.Conv2d(width, 2 * changed, 3, padding=1)
        with torch.no_grad():
            self.exit.weight.mul_(0.1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.flip else (first, second)

    def _joined(self, told: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, told] if self.flip else [told, changed], 1)

    def _map_given(self, told: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.exit(self.network(told.float())).to(told.dtype).chunk(2, 1)
        return log_scale.tanh(), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        told, changed = self._halves(x)
        log_scale, shift = self._map_given(told)
        return self._joined(told, log_scale.exp() * changed + shift), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        told, changed = self._halves(z)
        log_scale, shift = self._map_given(told)
        return self._joined(told, (changed - shift) * (-log_scale).exp())


@final
class Squeezed(Transform):
    """A transform of the `4 C` channels that 2 x 2 pixels have together (Dinh et al. 2017, section 3.6).

    Height and width must be even.
    """

    def __init__(self, inner: Transform) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.inner(F.pixel_unshuffle(x, 2))
        return F.pixel_shuffle(z, 2), log_det

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self.inner.inverse(F.pixel_unshuffle(z, 2)), 2)


def quarters(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four grids of every other row and column of `[B, C, H, W]`: even rows and columns; odd and odd; odd rows;
    odd columns. Of odd sides the first is the largest, and any other may be empty."""
    return x[..., ::2, ::2], x[..., 1::2, 1::2], x[..., 1::2, ::2], x[..., ::2, 1::2]


def join_quarters(parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The inverse of `quarters`."""
    even, both, rows, columns = parts
    h, w = even.shape[2:]
    whole = [F.pad(p, (0, w - p.shape[3], 0, h - p.shape[2])) for p in (even, columns, rows, both)]
    out = F.pixel_shuffle(torch.stack(whole, 2).flatten(1, 2), 2)
    return out[..., : h + rows.shape[2], : w + columns.shape[3]]
