"""A multi-scale flow of pictures in which every coupling factors out what it has changed.

At each scale the grid's channels are mixed (`ActNorm`, `InvertibleConv`), then it falls into four grids of every other
row and column (a squeeze). Three of them are mapped to z, each given the grids told before it and all coarser ones, and
leave the flow (Dinh et al. 2017, section 3.6, with nothing coupled twice); the fourth is the next scale's grid. So the
inverse draws coarse pixels first, and those between them, as in the parallel multiscale PixelCNN (Reed et al. 2017).
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
    ActNorm,
    AffineCoupling,
    ComposedTransform,
    InvertibleConv,
    Squeezed,
    Transform,
    join_quarters,
    quarters,
)
from tessella.networks.conv import ResidualBlock

FLOOR = -7.0
"""Least log scale of a logistic, in units of the data's half range or deviation."""
HIDDEN = 32


@final
class PictureFlow(Transform):
    """`[B, C, H, W]` of about unit scale to z of the same shape, of independent standard logistic numbers.

    Args:
        shape: `(C, H, W)`, of any sides.
        width: channels of the networks.
        depth: residual blocks before each of a scale's three couplings.
        mixtures: logistics that a pixel's channel is mapped by.
        steps: couplings of all four grids' channels at each scale (activation norm, 1 x 1 convolution, affine coupling;
            Kingma & Dhariwal 2018) before they are taken apart; where the sides are even.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int, depth: int, mixtures: int, steps: int = 0) -> None:
        super().__init__()
        channels, *sides = shape
        self.shape = tuple(shape)
        scales = []
        while max(sides) > 1:
            scales.append(_Scale(channels, tuple(sides), width, depth, mixtures, steps, finest=not scales))
            sides = [-(-side // 2) for side in sides]
        self.scales = nn.ModuleList(scales)
        self.last = _Head(channels, width, mixtures)
        self.start = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Transform`; but in training z is float64.

        Where F hardly rises float32 would not tell what x was, and what one scale's inverse gives back inexactly the
        networks of all finer ones would make worse. On a device without float64 it is float32 all the same.
        """
        x = x if self.training else widened(x)
        grids: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        total = x.new_zeros(len(x))
        for scale in self._scales():
            x, log_det = scale.mix(x)
            total = total + log_det
            grids.append(quarters(x))
            x = grids[-1][0]
        features = self.start.expand(len(x), -1, -1, -1)
        z, log_det = self.last(features, x)
        total = total + log_det
        for scale, parts in zip(reversed(self._scales()), reversed(grids), strict=True):
            told, log_det, features = scale(parts, features)
            z, total = join_quarters((z, *told)), total + log_det
        return z, total

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        z = widened(z)
        grids: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for _ in self.scales:
            grids.append(quarters(z))
            z = grids[-1][0]
        features = self.start.expand(len(z), -1, -1, -1)
        x = self.last.inverse(features, z)
        for scale, parts in zip(reversed(self._scales()), reversed(grids), strict=True):
            x, features = scale.inverse(x, parts, features)
        return x.float()

    def _scales(self) -> list[_Scale]:
        return list(self.scales)  # pyright: ignore[reportReturnType]


class _Scale(nn.Module):
    """One halving of the grid: what is done with all of it, and how three of its quarters are told given the first."""

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
        high, wide = sides[0] > 1, sides[1] > 1
        self.kept = [number for number, there in enumerate((high and wide, high, wide)) if there]
        colours = [InvertibleConv(channels)] if channels > 1 else []
        self.mix = ComposedTransform([ActNorm(channels), *colours, *_steps(4 * channels, sides, width, depth, steps)])
        self.entry = nn.Conv2d(channels, width, 3, padding=1)
        scale = 1 / math.sqrt(3 * depth)
        trunks = [nn.Sequential(*[ResidualBlock(width, scale) for _ in range(depth)]) for _ in self.kept]
        self.trunks = nn.ModuleList(trunks)
        self.heads = nn.ModuleList([_Head(channels, width, mixtures) for _ in self.kept])
        looks = self.kept[: len(self.kept) - finest]
        self.looks = nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1) for _ in looks])
        self.finer = None if finest else nn.Conv2d(width, 4 * width, 1)

    def forward(
        self, parts: tuple[Tensor, Tensor, Tensor, Tensor], features: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """The quarters and the coarser scale's features, to the z of the last three, log |det| and own features."""
        h = self._seen(parts[0], features)
        total, told = parts[0].new_zeros(len(h)), list(parts[1:])
        for i, number in enumerate(self.kept):
            part = parts[1 + number]
            h = self.trunks[i](h)
            told[number], log_det = self.heads[i](h[..., : part.shape[-2], : part.shape[-1]], part)
            total = total + log_det
            h = self._looked(i, h, part)
        return (told[0], told[1], told[2]), total, self._passed(h)

    def inverse(
        self, even: Tensor, z: tuple[Tensor, Tensor, Tensor, Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first quarter and the z of the others, to this scale's grid and features."""
        h = self._seen(even, features)
        parts = [even, *z[1:]]
        for i, number in enumerate(self.kept):
            known = z[1 + number]
            h = self.trunks[i](h)
            head = self.heads[i]
            assert isinstance(head, _Head)
            parts[1 + number] = head.inverse(h[..., : known.shape[-2], : known.shape[-1]], known)
            h = self._looked(i, h, parts[1 + number])
        whole = join_quarters((parts[0], parts[1], parts[2], parts[3]))
        return self.mix.inverse(whole), self._passed(h)

    def _seen(self, even: Tensor, features: Tensor) -> Tensor:
        return _full(self.entry, even) + features

    def _looked(self, i: int, h: Tensor, part: Tensor) -> Tensor:
        """The features, once they have seen the grid that was just told."""
        if i >= len(self.looks):
            return h
        right, down = h.shape[-1] - part.shape[-1], h.shape[-2] - part.shape[-2]
        return h + _full(self.looks[i], F.pad(part, (0, right, 0, down)))

    def _passed(self, h: Tensor) -> Tensor:
        """The features on this scale's own grid, for the next finer one."""
        if self.finer is None:
            return h
        return F.pixel_shuffle(self.finer(h).float(), 2)[..., : self.sides[0], : self.sides[1]]


class _Head(nn.Module):
    """One grid's pixels given features there: channel after channel, each by a mixture of logistics given the former.

    A channel's parameters are a small perceptron's of the features and the pixel's channels before it. In float32:
    a pixel's location is wanted more sharply than bfloat16 can say it.
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
        """Features `[B, width, h, w]` and x `[B, C, h, w]` to z `[B, C, h, w]` and log |det| `[B]`, as precise as x."""
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
        """`[C * HIDDEN, B * h * w]`."""
        return self.entry.bias[:, None] + self.entry.weight @ _rows(features.float())

    def _mixture(self, entered: Tensor, x: Tensor) -> Mixture:
        """Of x `[C, B * h * w]`, in its precision; the network's own is float32."""
        if self.before is not None:
            entered = entered + (self.before * self.mask) @ x.float()
        raw = torch.baddbmm(self.bias, self.weight, F.silu(entered).unflatten(0, (self.channels, HIDDEN)))
        return Mixture.of(raw.movedim(1, 0).to(x.dtype), FLOOR)


def _rows(x: Tensor) -> Tensor:
    """`[B, C, h, w]` as `[C, B * h * w]`."""
    return x.movedim(1, 0).flatten(1)


def _pixels(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`, for something of the shape of `like`."""
    return rows.view(-1, len(like), *like.shape[2:]).movedim(0, 1)


def _full(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer in float32 whatever the autocast: values pass it, not only what is made of them."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def _steps(channels: int, sides: tuple[int, ...], width: int, depth: int, steps: int) -> list[Transform]:
    if not steps or sides[0] % 2 or sides[1] % 2:
        return []
    parts: list[Transform] = []
    for number in range(steps):
        coupling = AffineCoupling(channels, width=width, depth=depth, flip=bool(number % 2))
        parts += [ActNorm(channels), InvertibleConv(channels), coupling]
    return [Squeezed(ComposedTransform(parts))]
