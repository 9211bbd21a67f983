"""Interlaced likelihood: each position is conditional on coarser lattices and on the decoder's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.schema import Schema
from tessella.likelihoods.history import GAIN
from tessella.likelihoods.logistic import LogisticMixtureModule
from tessella.networks.conv import blocked, conv, convolve, crop, unblocked

ORDER = {1: ((0,), (1,)), 2: ((0,), (3,), (1, 2))}
"""Cells of a block of 2 positions per axis, in groups in coding order; each has known neighbours on all sides."""
LEVELS, SMALLEST = 2, 4
"""Largest number of lattices that are coded given a coarser one, and the smallest side of one."""
CONTEXT = 8
"""Channels to which the decoder's parameters at a position are reduced."""
Drawn = Callable[[StoredValues, Tensor | None, Tensor | None], Tensor]
LOG_SCALE = -2.5
"""Initial log scale of positions with known neighbours: those of photographs differ by about a tenth."""


@final
class InterlacedModule(Likelihood):
    """Interlaced mixture of logistics: p(x | z) = p(x_0 | z) prod_l p(x_l | x_<l, z), x_l the positions of lattice l.

    As in an interlaced PNG, every fourth position per axis comes first, then lattices of twice the density (Reed et al.
    2017, "Parallel multiscale autoregressive density estimation"). The first lattice has the mixture of logistics that
    the decoder's output describes. At each later position a small network of that output and of the neighbours that
    are known gives the mixture, with locations relative to the neighbours. Within a group of positions the
    values are independent, so sampling and coding take a handful of passes, whatever the size.

    Neighbours in a picture are alike beyond what z tells. If the decoder were trained by this density, z would not tell
    what neighbours tell one another (posterior collapse, van den Oord et al. 2017). So in training mode the decoder and
    all before it get the gradient of independent positions, log prod_i p(x_i | z), and only the networks here that of
    the density; the value is log p(x | z) always. `mean` is that of independent positions.

    Parameters: those of `LogisticMixtureModule` for independent positions. Vectors have no lattices: their values are
    independent.

    Args:
        schema: of one example.
        components: logistics in the mixture of each position.
        width: channels of the networks.
        depth: layers of the networks after the first.

    Raises:
        SpecError: if the values are not integers, or a position has more than 4 channels.
    """

    detached = True

    def __init__(self, schema: Schema, components: int, *, width: int, depth: int) -> None:
        super().__init__(schema)
        self.mixture = LogisticMixtureModule(schema, components)
        count = LEVELS if schema.rank else 0
        while count and min(schema.spatial) < SMALLEST * 2**count:
            count -= 1
        levels = [_Level(schema.rank, self.parameter_channels, self.mixture, width, depth) for _ in range(count)]
        self.levels = cast(Sequence[_Level], nn.ModuleList(levels))

    @property
    def parameter_channels(self) -> int:
        return self.mixture.parameter_channels

    def to_network(self, x: Tensor) -> Tensor:
        return self.mixture.to_network(x)

    def initial_bias(self) -> Tensor:
        return self.mixture.initial_bias()

    def forward(self, parameters: Tensor) -> StoredValues:
        return InterlacedValues(self, parameters)


@final
class InterlacedValues(StoredValues):
    """Distribution of `Interlaced`; the networks run in the surrounding autocast, the rest in float32.

    Args:
        likelihood: the likelihood whose networks are used.
        parameters: `[B, parameter_channels, *spatial]`.
    """

    def __init__(self, likelihood: InterlacedModule, parameters: Tensor) -> None:
        self.likelihood, self._independent = likelihood, likelihood.mixture(parameters)
        self.parameters = parameters.detach() if likelihood.training else parameters
        super().__init__(len(parameters), self._independent.event_shape)

    @property
    def independent(self) -> StoredValues:
        return self._independent

    def log_prob(self, value: Tensor) -> Tensor:
        each = self.independent.by_position(value)
        if not self.likelihood.training:
            return self._by_position(each, value).flatten(1).sum(1)
        nats, of_decoder = self._by_position(each.detach(), value).flatten(1).sum(1), each.flatten(1).sum(1)
        return nats + of_decoder - of_decoder.detach()

    def by_position(self, value: Tensor) -> Tensor:
        """Compute log p of each position given those before it, `[B, *spatial]`."""
        return self._by_position(self.independent.by_position(value), value)

    def _by_position(self, independent: Tensor, value: Tensor) -> Tensor:
        """Compute log p of each position; `independent` is that of each position given z alone."""
        of, value = self.likelihood, value.reshape(self._extended_shape())
        nats, finer = independent.unsqueeze(1), list[tuple[Tensor, torch.Size]]()
        parameters = self.parameters
        for level in of.levels:
            cells, seen = _cells(value), _cells(of.to_network(value))
            context, parts = level.context_of(parameters), dict[int, Tensor]()
            for group, step in zip(level.order[1:], level.steps, strict=True):
                p_x = of.mixture(step(seen, context).flatten(0, 1))
                values = torch.stack([cells[:, cell] for cell in group], 1)
                each = p_x.by_position(values.flatten(0, 1)).unflatten(0, (-1, len(group)))
                parts |= zip(group, each.unbind(1), strict=True)
            finer.append((torch.stack([parts[cell] for cell in sorted(parts)], 1), value.shape[2:]))
            value, parameters, nats = (_first(maps) for maps in (value, parameters, nats))
        for others, sides in reversed(finer):
            nats = crop(unblocked(torch.cat([nats, others], 1), 2), sides)
        return nats.squeeze(1)

    @property
    def mean(self) -> Tensor:
        return self.independent.mean

    def sample(self, sample_shape: _size = ()) -> Tensor:
        rows = self.parameters.expand(*sample_shape, *self.parameters.shape).flatten(0, len(sample_shape))
        return self._drawn(rows, lambda p_x, *_: p_x.sample()).reshape(*sample_shape, *self._extended_shape())

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """Write or read one group of positions after the other, from the coarsest lattice on."""

        return self._coded(coder, value, observed)

    def encode(self, coder: SymbolCoder, value: Tensor, observed: Tensor | None = None) -> Tensor:
        """Write groups of positions; their networks run once for both the code and log p."""
        nats = self.parameters.new_zeros(len(self.parameters), dtype=torch.float64)
        self._coded(coder, value, observed, nats)
        return nats

    def _coded(
        self, coder: SymbolCoder, value: Tensor | None, observed: Tensor | None, nats: Tensor | None = None
    ) -> Tensor:
        """Write or read values, and add log p of those that are written to `nats` `[B]`."""

        def draw(p_x: StoredValues, known: Tensor | None, here: Tensor | None) -> Tensor:
            if nats is not None and known is not None:
                nats.add_(p_x.log_prob(known))
            return p_x.code(coder, known, None if here is None else here.squeeze(1))

        whole = None if value is None else value.reshape(self._extended_shape())
        return self._drawn(self.parameters, draw, whole, None if observed is None else observed.unsqueeze(1))

    @torch.no_grad()
    def _drawn(
        self, parameters: Tensor, draw: Drawn, value: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Generate group after group.

        `draw` gets the positions' distribution, their values if they are known, and which of them are observed.
        """
        of, levels = self.likelihood, [(parameters, value, observed)]
        for _ in of.levels:
            coarser, *given = levels[-1]
            known, here = (None if maps is None else _first(maps) for maps in given)
            levels.append((_first(coarser), known, here))
        with torch.autocast(parameters.device.type, enabled=False):
            x = draw(of.mixture(levels[-1][0]), *levels[-1][1:])
            for level, (parameters, *given) in reversed(list(zip(of.levels, levels, strict=False))):
                x = level.drawn(x, parameters.float(), of, draw, *given)
        return x


@final
class _Level(nn.Module):
    """Networks that give the mixtures of a lattice's positions from the lattice of every second one.

    Args:
        rank: number of axes.
        parameters: channels of the decoder's parameters.
        mixture: mixture of logistics of the lattice's other positions.
        width: channels.
        depth: layers after the first.
    """

    def __init__(self, rank: int, parameters: int, mixture: LogisticMixtureModule, width: int, depth: int) -> None:
        super().__init__()
        self.order = ORDER[rank]
        self.context = conv(rank, parameters, CONTEXT, 1)
        known, steps = self.order[0], list[_Step]()
        for group in self.order[1:]:
            steps.append(_Step(rank, known, group, mixture, width, depth))
            known += group
        self.steps = cast(Sequence[_Step], nn.ModuleList(steps))

    def context_of(self, parameters: Tensor) -> Tensor:
        """Reduce parameters `[B, P, *spatial]` to what the networks see of each block, `[B, cells CONTEXT, ...]`."""
        return _cells(self.context(parameters)).flatten(1, 2)

    def drawn(
        self,
        x: Tensor,
        parameters: Tensor,
        of: InterlacedModule,
        draw: Drawn,
        known: Tensor | None,
        observed: Tensor | None,
    ) -> Tensor:
        """Generate a lattice, given the coarser one x; the arguments are as in `InterlacedValues`."""
        context, sides = self.context_of(parameters), parameters.shape[2:]
        seen = x.new_zeros(len(x), 2 ** len(sides), *x.shape[1:])
        values = torch.zeros_like(seen)
        seen[:, 0], values[:, 0] = of.to_network(x), x
        for group, step in zip(self.order[1:], self.steps, strict=True):
            for cell, p in zip(group, step(seen, context).unbind(1), strict=True):
                here = _slices(cell, sides)
                size = [len(range(*part.indices(side))) for part, side in zip(here, sides, strict=True)]
                given = (None if maps is None else maps[(..., *here)] for maps in (known, observed))
                got = draw(of.mixture(crop(p, size)), *given)
                inside = (slice(None), cell, slice(None), *(slice(length) for length in size))
                seen[inside], values[inside] = of.to_network(got), got
        return crop(unblocked(values.flatten(1, 2), 2), sides)


@final
class _Step(nn.Module):
    """Network that gives the mixtures of a group of cells from the cells known before.

    Each component's location is a linear function of the known neighbours, at first their mean or one of them, and an
    offset in units of its scale: photographs are smooth, drawings repeat colours, and narrow components stay near.
    Channels depend on how much earlier ones differ from that function.
    """

    def __init__(
        self,
        rank: int,
        known: tuple[int, ...],
        group: tuple[int, ...],
        mixture: LogisticMixtureModule,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.known, self.cells = known, len(group)
        self.mixtures, self.channels, self.around = mixture.mixtures, mixture.channels, mixture.around
        values = len(known) * self.channels
        self.near = conv(rank, values, len(group) * self.channels * self.mixtures, 3, bias=False)
        self.values = conv(rank, values, width, 3)
        self.context = conv(rank, 2**rank * CONTEXT, width)
        self.layers = nn.ModuleList(conv(rank, width, width, 3, padding=1) for _ in range(depth))
        self.head = conv(rank, width, len(group) * mixture.parameter_channels)
        self._start(group)

    @torch.no_grad()
    def _start(self, group: tuple[int, ...]) -> None:
        """Start with components at the mean of the nearest known neighbours, and at each of them."""
        rank, count, mixtures = self.near.weight.dim() - 2, self.channels, self.mixtures
        weights = self.near.weight.zero_().unflatten(0, (self.cells, count, mixtures))
        for i, cell in enumerate(group):
            near = _nearest(cell, self.known, rank)
            choices = [near, *([one] for one in near)]
            for k, channel in product(range(mixtures), range(count)):
                chosen = choices[k % len(choices)]
                for known, place in chosen:
                    weights[(i, channel, k, known * count + channel, *place)] = 1 / len(chosen) / GAIN
        bias = torch.zeros(self.cells, self.head.out_channels // self.cells // mixtures, mixtures)
        bias[:, 1 + count : 1 + 2 * count] = LOG_SCALE
        self.head.weight.mul_(0.1)
        self.head.bias.copy_(bias.flatten())  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, seen: Tensor, context: Tensor) -> Tensor:
        """Compute parameters `[B, cells of the group, P, *half]`.

        Args:
            seen: cells in network units, `[B, cells, C, *half]`; only the known ones are used.
            context: `[B, cells CONTEXT, *half]`.
        """
        seen = torch.cat([seen[:, cell] for cell in self.known], 1)
        seen = F.pad(seen, (1, 1) * (seen.dim() - 2), mode="replicate")
        h = self.values(seen) + self.context(context)
        for layer in self.layers:
            h = h + layer(F.silu(h))
        parts = self.head(F.silu(h)).unflatten(1, (self.cells, -1)).flatten(0, 1)
        with torch.autocast(seen.device.type, enabled=False):  # bfloat16 would be off by a level of 256
            near = convolve(seen.to(self.near.weight.dtype), GAIN * self.near.weight)
        return self.around(near.unflatten(1, (self.cells, -1)).flatten(0, 1), parts).unflatten(0, (-1, self.cells))


def _cells(maps: Tensor) -> Tensor:
    """Divide maps `[B, C, *spatial]`, padded with zeros, into cells `[B, cells, C, *half]`."""
    sides = maps.shape[2:]
    if any(side % 2 for side in sides):
        maps = F.pad(maps, [n for side in reversed(sides) for n in (0, side % 2)])
    return blocked(maps, 2).unflatten(1, (2 ** len(sides), -1))


def _first(maps: Tensor) -> Tensor:
    """Select the coarser lattice, every second position per axis of `[B, C, *spatial]`."""
    return maps[(..., *_slices(0, maps.shape[2:]))]


def _nearest(cell: int, known: Sequence[int], rank: int) -> list[tuple[int, tuple[int, ...]]]:
    """Find the known cells of this and the adjacent blocks that are nearest: each one's index, and its block's."""
    at: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for (i, other), block in product(enumerate(known), product(range(3), repeat=rank)):
        steps = zip(block, _offsets(other, rank), _offsets(cell, rank), strict=True)
        at.setdefault(sum((2 * (b - 1) + o - c) ** 2 for b, o, c in steps), []).append((i, block))
    return at[min(at)]


def _offsets(cell: int, rank: int) -> list[int]:
    """Return the position of a cell in its block."""
    return [cell >> (rank - 1 - axis) & 1 for axis in range(rank)]


def _slices(cell: int, sides: torch.Size) -> list[slice]:
    """Select the positions of a cell from maps of these sides."""
    return [slice(offset, None, 2) for offset in _offsets(cell, len(sides))]
