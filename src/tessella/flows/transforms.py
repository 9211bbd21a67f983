"""Invertible maps f with log |det df/dx|, and the basic ones that flows of pictures are made of.

All arithmetic on x and z is in their own precision whatever the autocast: float32, or float64, whose inverse reproduces
the exact numbers that the networks saw. Networks that predict a map's parameters run in float32 or lower.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.device import precise
from tessella.networks.conv import ResidualBlock, conv, convolve, crop, fold, over_positions, unfold


class Transform(nn.Module, ABC):
    """Invertible map of examples: log p(x) = log p(f(x)) + log |det df/dx|."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x `[B, *shape]` to z `[B, *shape]` and log |det df/dx| `[B]` in nats."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Map z `[B, *shape]` to x `[B, *shape]`."""


@final
class ComposedTransform(Transform):
    """Sequence of transforms."""

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
    """Activation norm: z = exp(s_c) (x + b_c) for each channel c (Kingma & Dhariwal 2018, section 3.1).

    It starts at the identity. Data is standardised, so no first batch has to initialise it, on which resumed and
    parallel runs would have to agree.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rank = x.dim() - 2
        log_scale, shift = (over_positions(p, rank) for p in (self.log_scale.to(x.dtype), self.shift))
        log_det = log_scale.sum() * math.prod(x.shape[2:])
        return log_scale.exp() * (x + shift), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        rank = z.dim() - 2
        log_scale, shift = (over_positions(p, rank) for p in (self.log_scale.to(z.dtype), self.shift))
        return z * (-log_scale).exp() - shift


@final
class InvertibleConv(Transform):
    """Invertible 1 x 1 convolution: multiplies each pixel's channels by one matrix W = P L (U + diag(s)).

    In this LU form log |det W| = sum log |s| (Kingma & Dhariwal 2018, section 3.2, eq. 10). P and the signs of s are
    fixed. W starts as the orthonormal cosine transform: for colours the first channel is their mean, the others
    differences.

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
        """Compute W `[C, C]` in float64."""
        diagonal = precise(self.sign * self.log_scale.exp())
        lower = precise(self.lower).tril(-1) + torch.eye(len(diagonal), dtype=torch.float64, device=diagonal.device)
        return precise(self.permutation) @ lower @ (precise(self.upper).triu(1) + torch.diag(diagonal))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.log_scale.sum() * math.prod(x.shape[2:])
        return _mixed(self.weight().to(x), x), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return _mixed(torch.linalg.inv(self.weight()).to(z), z)


def _mixed(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply each position of `[B, C, *spatial]` by a matrix `[C, C]`."""
    with torch.autocast(x.device.type, enabled=False):
        return convolve(x, over_positions(weight, x.dim() - 2))


@final
class AffineCoupling(Transform):
    """Affine coupling on halves of the channels: z_1 = x_1, z_2 = exp(s(x_1)) x_2 + t(x_1).

    With |s| < 1 a coupling stretches by at most e, so that a stack of them stays well conditioned (Dinh et al. 2017,
    section 3.2).

    Args:
        channels: at least 2.
        width, depth: channels and residual blocks of the network.
        flip: whether the second half is the input of the network and the first half is transformed.
        rank: number of spatial axes.
    """

    def __init__(self, channels: int, *, width: int, depth: int, flip: bool = False, rank: int = 2) -> None:
        super().__init__()
        self.sizes = (channels // 2, channels - channels // 2)
        self.flip = flip
        told, changed = reversed(self.sizes) if flip else self.sizes
        blocks = [ResidualBlock(width, 1 / math.sqrt(depth), rank) for _ in range(depth)]
        self.network = nn.Sequential(conv(rank, told, width, 3, padding=1), *blocks, nn.SiLU())
        self.exit = conv(rank, width, 2 * changed, 3, padding=1)
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
    """Transform of the channels of blocks with 2 positions along each axis (Dinh et al. 2017, section 3.6).

    All sides must be even.
    """

    def __init__(self, inner: Transform) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.inner(fold(x, 2))
        return unfold(z, 2), log_det

    def inverse(self, z: Tensor) -> Tensor:
        return unfold(self.inner.inverse(fold(z, 2)), 2)


PARITIES: dict[int, tuple[tuple[int, ...], ...]] = {1: ((0,), (1,)), 2: ((0, 0), (1, 1), (1, 0), (0, 1))}
"""Even (0) or odd (1) positions along each axis, of the subgrids of a signal or a picture."""


def subgrids(x: Tensor) -> list[Tensor]:
    """Divide `[B, C, *spatial]` into grids of every other position along each axis, in the order of `PARITIES`.

    For odd sides the first is the largest, and the others may be empty.
    """
    return [x[(..., *(slice(at, None, 2) for at in parity))] for parity in PARITIES[x.dim() - 2]]


def join_subgrids(grids: Sequence[Tensor]) -> Tensor:
    """Invert `subgrids`."""
    spatial, rank = grids[0].shape[2:], grids[0].dim() - 2
    by_parity = dict(zip(PARITIES[rank], grids, strict=True))
    whole = [pad_to(by_parity[parity], spatial) for parity in sorted(by_parity)]
    odd = [by_parity[tuple(int(i == axis) for i in range(rank))].shape[2 + axis] for axis in range(rank)]
    out = unfold(torch.stack(whole, 2).flatten(1, 2), 2)
    return crop(out, [even + more for even, more in zip(spatial, odd, strict=True)])


def pad_to(x: Tensor, spatial: Sequence[int]) -> Tensor:
    """Pad each axis of `[B, C, *spatial]` with zeros to a size."""
    return F.pad(x, [n for have, want in reversed([*zip(x.shape[2:], spatial, strict=True)]) for n in (0, want - have)])
