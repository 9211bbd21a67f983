"""Multi-scale flow of signals and pictures, in which each coupling factors out the numbers that it has transformed.

At each scale the grid's channels are mixed (`ActNorm`, `InvertibleConv`), then the grid is divided into subgrids of
every other position along each axis: two of a signal, four of a picture (a squeeze). All but the first are mapped to z,
each conditional on the previous ones and all coarser grids, and leave the flow (Dinh et al. 2017, section 3.6, with
nothing coupled twice); the first is the next scale's grid. So the inverse generates coarse positions first and those
between them afterwards, as the parallel multiscale PixelCNN does (Reed et al. 2017).
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.device import widened
from tessella.flows.logistics import Mixture
from tessella.flows.transforms import (
    PARITIES,
    ActNorm,
    AffineCoupling,
    ComposedTransform,
    InvertibleConv,
    Squeezed,
    Transform,
    join_subgrids,
    pad_to,
    subgrids,
)
from tessella.networks.conv import ResidualBlock, conv, crop, unfold

FLOOR = -7.0
"""Smallest log scale of a logistic, in units of the data's half range or standard deviation."""
HIDDEN = 32


@final
class MultiscaleFlow(Transform):
    """Flow from `[B, C, *spatial]` of about unit scale to independent standard logistic numbers.

    Args:
        shape: `(C, *spatial)`, of any sides.
        width: channels of the networks.
        depth: residual blocks before each of a scale's couplings.
        mixtures: number of logistics in each mixture.
        steps: couplings of all subgrids' channels at each scale with even sides (activation norm, 1 x 1 convolution,
            affine coupling; Kingma & Dhariwal 2018) before the grid is divided.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int, depth: int, mixtures: int, steps: int = 0) -> None:
        super().__init__()
        channels, *spatial = shape
        sides = spatial
        self.shape = tuple(shape)
        scales = []
        while max(sides) > 1:
            scales.append(_Scale(channels, tuple(sides), width, depth, mixtures, steps, finest=not scales))
            sides = [-(-side // 2) for side in sides]
        self.scales = nn.ModuleList(scales)
        self.last = _Head(channels, width, mixtures)
        self.start = nn.Parameter(torch.randn(width, *(1,) * len(spatial)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x to z and log |det|; outside training z is float64.

        Where F is nearly flat, float32 could not recover x, and the networks of all finer scales would amplify the
        error of one scale's inverse. A device without float64 uses float32.
        """
        x = x if self.training else widened(x)
        grids: list[list[Tensor]] = []
        total = x.new_zeros(len(x))
        for scale in self._scales():
            x, log_det = scale.mix(x)
            total = total + log_det
            grids.append(subgrids(x))
            x = grids[-1][0]
        features = self.start.expand(len(x), *self.start.shape)
        z, log_det = self.last(features, x)
        total = total + log_det
        for scale, parts in zip(reversed(self._scales()), reversed(grids), strict=True):
            told, log_det, features = scale(parts, features)
            z, total = join_subgrids([z, *told]), total + log_det
        return z, total

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        z = widened(z)
        grids: list[list[Tensor]] = []
        for _ in self.scales:
            grids.append(subgrids(z))
            z = grids[-1][0]
        features = self.start.expand(len(z), *self.start.shape)
        x = self.last.inverse(features, z)
        for scale, parts in zip(reversed(self._scales()), reversed(grids), strict=True):
            x, features = scale.inverse(x, parts, features)
        return x.float()

    def _scales(self) -> list[_Scale]:
        return list(self.scales)  # pyright: ignore[reportReturnType]


class _Scale(nn.Module):
    """One halving of the grid: mixes the channels, then maps all other subgrids given the first."""

    def __init__(
        self,
        channels: int,
        sides: tuple[int, ...],
        width: int,
        depth: int,
        mixtures: int,
        steps: int,
        *,
        finest: bool,
    ) -> None:
        super().__init__()
        self.sides = sides
        rank = len(sides)
        there = [all(side > at for side, at in zip(sides, parity, strict=True)) for parity in PARITIES[rank]]
        self.kept = [number for number in range(1, len(there)) if there[number]]
        colours = [InvertibleConv(channels)] if channels > 1 else []
        self.mix = ComposedTransform(
            [ActNorm(channels), *colours, *_steps(2**rank * channels, sides, width, depth, steps)]
        )
        self.entry = conv(rank, channels, width, 3, padding=1)
        scale = 1 / math.sqrt((2**rank - 1) * depth)
        trunks = [nn.Sequential(*[ResidualBlock(width, scale, rank) for _ in range(depth)]) for _ in self.kept]
        self.trunks = nn.ModuleList(trunks)
        self.heads = nn.ModuleList([_Head(channels, width, mixtures) for _ in self.kept])
        looks = self.kept[: len(self.kept) - finest]
        self.looks = nn.ModuleList([conv(rank, channels, width, 3, padding=1) for _ in looks])
        self.finer = None if finest else conv(rank, width, 2**rank * width)

    def forward(self, parts: list[Tensor], features: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Map all other subgrids to z, given the first and the coarser scale's features.

        Returns their z, log |det| and this scale's features.
        """
        h = self._seen(parts[0], features)
        total, told = parts[0].new_zeros(len(h)), list(parts)
        for i, number in enumerate(self.kept):
            part = parts[number]
            h = self.trunks[i](h)
            told[number], log_det = self.heads[i](crop(h, part.shape[2:]), part)
            total = total + log_det
            h = self._looked(i, h, part)
        return told[1:], total, self._passed(h)

    def inverse(self, even: Tensor, z: list[Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
        """Map the first subgrid and the z of the others to this scale's grid and features."""
        h = self._seen(even, features)
        parts = [even, *z[1:]]
        for i, number in enumerate(self.kept):
            known = z[number]
            h = self.trunks[i](h)
            head = self.heads[i]
            assert isinstance(head, _Head)
            parts[number] = head.inverse(crop(h, known.shape[2:]), known)
            h = self._looked(i, h, parts[number])
        return self.mix.inverse(join_subgrids(parts)), self._passed(h)

    def _seen(self, even: Tensor, features: Tensor) -> Tensor:
        return _full(self.entry, even) + features

    def _looked(self, i: int, h: Tensor, part: Tensor) -> Tensor:
        """Add the subgrid that was just mapped to the features."""
        if i >= len(self.looks):
            return h
        return h + _full(self.looks[i], pad_to(part, h.shape[2:]))

    def _passed(self, h: Tensor) -> Tensor:
        """Return the features on this scale's own grid, for the next finer scale."""
        if self.finer is None:
            return h
        return crop(unfold(self.finer(h).float(), 2), self.sides)


class _Head(nn.Module):
    """Maps one grid's positions given features there: channel by channel, each by a mixture of logistics.

    A channel's parameters come from a small MLP of the features and the position's previous channels. Computed in
    float32: bfloat16 is too coarse for a location.
    """

    mask: Tensor

    def __init__(self, channels: int, width: int, mixtures: int) -> None:
        super().__init__()
        self.channels = channels
        self.entry = nn.Linear(width, channels * HIDDEN)
        mask = torch.ones(channels, channels).tril(-1).repeat_interleave(HIDDEN, 0)
        self.register_buffer("mask", mask, persistent=False)
        self.before = nn.Parameter(mask * torch.randn(len(mask), channels)) if channels > 1 else None
        self.weight = nn.Parameter(torch.randn(channels, 3 * mixtures, HIDDEN) * 0.5 / math.sqrt(HIDDEN))
        start = torch.zeros(channels, 3, mixtures)
        start[:, 1] = torch.linspace(-1, 1, mixtures + 2)[1:-1]
        start[:, 2] = math.log(0.6 / mixtures)
        self.bias = nn.Parameter(start.reshape(channels, 3 * mixtures, 1))

    def forward(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x `[B, C, *grid]` to z and log |det| `[B]`, given features `[B, width, *grid]`.

        The result has the precision of x.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = _rows(x)
            z, log_slope = self._mixture(self._entered(features), rows).forward(rows)
            return _pixels(z, x), log_slope.view(self.channels, len(x), -1).sum((0, 2))

    def inverse(self, features: Tensor, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            entered, rows = self._entered(features), _rows(z)
            x = torch.zeros_like(rows)
            for channel in range(self.channels):
                x[channel] = self._mixture(entered, x).of_row(channel).inverse(rows[channel])
            return _pixels(x, z)

    def _entered(self, features: Tensor) -> Tensor:
        """Compute the hidden units `[C * HIDDEN, B * positions]` from the features."""
        return self.entry.bias[:, None] + self.entry.weight @ _rows(features.float())

    def _mixture(self, entered: Tensor, x: Tensor) -> Mixture:
        """Compute the mixtures of x `[C, B * positions]` in its precision; the network itself is float32."""
        if self.before is not None:
            entered = entered + (self.before * self.mask) @ x.float()
        raw = torch.baddbmm(self.bias, self.weight, F.silu(entered).unflatten(0, (self.channels, HIDDEN)))
        return Mixture.of(raw.movedim(1, 0).to(x.dtype), FLOOR)


def _rows(x: Tensor) -> Tensor:
    """Reshape `[B, C, *grid]` to `[C, B * positions]`."""
    return x.movedim(1, 0).flatten(1)


def _pixels(rows: Tensor, like: Tensor) -> Tensor:
    """Invert `_rows` for a tensor of the shape of `like`."""
    return rows.view(-1, len(like), *like.shape[2:]).movedim(0, 1)


def _full(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in float32 whatever the autocast, because it passes the values themselves."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def _steps(channels: int, sides: tuple[int, ...], width: int, depth: int, steps: int) -> list[Transform]:
    if not steps or any(side % 2 for side in sides):
        return []
    parts: list[Transform] = []
    for number in range(steps):
        coupling = AffineCoupling(channels, width=width, depth=depth, flip=bool(number % 2), rank=len(sides))
        parts += [ActNorm(channels), InvertibleConv(channels), coupling]
    return [Squeezed(ComposedTransform(parts))]
