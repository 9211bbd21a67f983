"""The autoregressive decoder: each pixel given those before it and what the decoder says of its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.schema import Schema
from tessella.likelihoods.shared import Standardizer, checked, over_channels
from tessella.networks.causal_conv import BlockHead, CausalConv, IncrementalCausalConv

FEATURES, FEATURES_OF_A_NUMBER = 32, 16
WIDTH, WIDTH_OF_COLOUR = 64, 96
DEPTH = 6
BLOCK, SMALL = 2, 16
"""Pixels a side of a block, for pictures of at least so many pixels a side."""


@final
class AutoregressiveModule(Likelihood):
    """p(x | z) = prod_i p(x_i | x_<i, h(z)) over pixels, with h(z) the decoder's output.

    The order is raster order over blocks of 2 x 2 pixels (of one pixel where pictures are small), then within a block:
    so the network runs on a quarter of the positions, and a small head says a block's pixels one after the other. Any
    order gives a normalised distribution; this one takes a third of the time.

    Causal convolutions (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders") see the
    stored values, and h(z) at every position, and say each pixel's distribution: the one that such values get by
    default (Bernoulli, mixture of logistics, Gaussian), so it is normalised over the stored values. It gives strong
    bounds, and as it can explain much of x without z it may leave z unused (Chen et al. 2017, "Variational lossy
    autoencoder", section 2; Gulrajani et al. 2017, "PixelVAE").

    Parameters: `[B, features, *spatial]` (vectors `[B, features * D]`, read as `[B, features, D]`): context for the
    convolutions. The numbers of a vector are a row of pixels, each given those before it.

    Sampling goes pixel by pixel, and the mean too: it has no closed form, and is replaced by the greedy drawing in
    which each pixel takes its conditional mean, rounded to a stored value, given those before it.

    Args:
        pixel: makes the likelihood of the values of a grid, or of one of its pixels.
        width: channels of the causal network; 64 unless given, 96 for colour.
        depth: its layers.
    """

    sequential_mean = True

    def __init__(
        self,
        schema: Schema,
        pixel: Callable[[Schema], Likelihood],
        *,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(schema)
        self.grid = {0: (1, 1, schema.dims), 1: (schema.channels, 1, *schema.spatial)}.get(schema.rank, schema.shape)
        self.features = FEATURES if schema.rank else FEATURES_OF_A_NUMBER
        self.units = Standardizer(schema)
        standard = Schema.of(self.grid, schema.values)
        self.whole = pixel(standard)
        self.one = pixel(replace(standard, spatial=(1, 1)))
        width = width or (WIDTH_OF_COLOUR if self.grid[0] > 1 else WIDTH)
        self.side = BLOCK if min(self.grid[1:]) >= SMALL else 1
        pixels, values = self.side**2, self.grid[0] + 1
        self.trunk = CausalConv(pixels * values, width, depth or DEPTH, context=pixels * self.features)
        self.head = BlockHead(width, values, pixels, self.whole.parameter_channels)
        bias = self.whole.initial_bias()
        if bias is not None:
            self.head.start_at(bias)

    @property
    def parameter_channels(self) -> int:
        return self.features * (1 if self.schema.rank else self.schema.dims)

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> None:
        """None: the decoder gives features."""

    def forward(self, parameters: Tensor) -> StoredValues:
        parameters = checked(parameters, self.schema, self.parameter_channels)
        return PixelByPixel(self, parameters.reshape(len(parameters), self.features, *self._sides(parameters)))

    def standard(self, x: Tensor) -> Tensor:
        """Stored values `[B, *shape]` as `whole` takes them, `[B, *grid]`: real ones standardised, others as is."""
        x = x if self.schema.values.discrete else self.units.to_network(x)
        return x.reshape(len(x), self.grid[0], *self._sides(x))

    def stored(self, x: Tensor) -> Tensor:
        """The inverse, as float32."""
        rank = self.schema.rank
        x = x if rank == 2 else x.flatten(1 + rank)
        return x if self.schema.values.discrete else self.units.to_stored(x)

    def seen(self, x: Tensor) -> Tensor:
        """What `standard` gives, as the network sees it: in units of one, with a channel that is zero outside only."""
        return F.pad(self.whole.to_network(x), (0, 0, 0, 0, 0, 1), value=1.0)

    def blocks(self, maps: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` as blocks `[B, pixels * C, h, w]`, pixel by pixel; zeros where one reaches outside."""
        height, width = maps.shape[2:]
        whole = F.pad(maps, (0, -width % self.side, 0, -height % self.side))
        return F.pixel_unshuffle(whole, self.side).unflatten(1, (-1, self.side**2)).transpose(1, 2).flatten(1, 2)

    def unblocked(self, blocks: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `blocks`, of maps of that size."""
        by_channel = blocks.unflatten(1, (self.side**2, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(by_channel, self.side)[..., :height, :width]

    def conditionals(self, x: Tensor, context: Tensor) -> Tensor:
        """Parameters of each pixel of `whole` given those before it, `[B, parameters, H, W]`.

        Args:
            x: as `standard` gives it.
            context: `[B, features, H, W]`.
        """
        values = self.blocks(self.seen(x))
        return self.unblocked(self.head(self.trunk(values, self.blocks(context)), values), *x.shape[2:])

    def log_volume(self, shape: tuple[int, ...]) -> Tensor | float:
        """Of real values, the nats by which a density of standardised values exceeds that of stored ones."""
        return 0.0 if self.schema.values.discrete else self.units.scale.expand(shape).log().sum()

    def _sides(self, maps: Tensor) -> tuple[int, ...]:
        """Height and width of pictures, of any size; a signal, and the numbers of a vector, are one row."""
        return {0: self.grid[1:], 1: (1, maps.shape[-1])}.get(self.schema.rank, tuple(maps.shape[2:]))


@final
class PixelByPixel(StoredValues):
    """The distribution of `Autoregressive`. The network runs in the surrounding autocast, the rest in float32.

    Args:
        likelihood: whose networks it uses.
        context: `[B, features, H, W]`.
    """

    def __init__(self, likelihood: AutoregressiveModule, context: Tensor) -> None:
        self.likelihood, self.context = likelihood, context
        schema = likelihood.schema
        sides = context.shape[4 - schema.rank :]
        super().__init__(len(context), (schema.channels, *sides))

    def log_prob(self, value: Tensor) -> Tensor:
        of = self.likelihood
        x = of.standard(value)
        return of.whole(of.conditionals(x, self.context)).log_prob(x) - of.log_volume(self.event_shape)

    def by_position(self, value: Tensor) -> Tensor:
        of = self.likelihood
        x = of.standard(value)
        each = of.whole(of.conditionals(x, self.context)).by_position(x)
        each = each.reshape(len(x), *(self.event_shape[1:] or self.event_shape))
        if of.schema.values.discrete:
            return each
        return each - over_channels(of.units.scale.expand(self.event_shape).log()[None])

    @property
    def mean(self) -> Tensor:
        """The greedy drawing: each pixel its conditional mean, rounded unless real, given those before it."""
        return self._drawn(self.context, lambda pixel, row, column: self._greedy(pixel))

    def redrawn(self, x: Tensor, where: Tensor) -> Tensor:
        """The greedy drawing of some pixels alone, `where` `[H, W]` bool; all others are those of `x` `[1, *shape]`."""
        known, free = self.likelihood.standard(x).expand(len(self.context), -1, -1, -1), where.tolist()

        def choose(pixel: StoredValues, row: int, column: int) -> Tensor:
            return self._greedy(pixel) if free[row][column] else known[:, :, row, column, None, None]

        return self._drawn(self.context, choose)

    def _greedy(self, pixel: StoredValues) -> Tensor:
        return pixel.mean.round() if self.likelihood.schema.values.discrete else pixel.mean

    def sample(self, sample_shape: _size = ()) -> Tensor:
        context = self.context.expand(*sample_shape, *self.context.shape).flatten(0, -4)
        drawn = self._drawn(context, lambda pixel, row, column: pixel.sample())
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def code(self, coder: SymbolCoder, value: Tensor | None = None) -> Tensor:
        known = None if value is None else self.likelihood.standard(value)

        def choose(pixel: StoredValues, row: int, column: int) -> Tensor:
            return pixel.code(coder, None if known is None else known[:, :, row, column])

        return self._drawn(self.context, choose)

    @torch.no_grad()
    def _drawn(self, context: Tensor, choose: Callable[[StoredValues, int, int], Tensor]) -> Tensor:
        """One pixel after another, `[B, *shape]`; `choose` gets its distribution, its row and its column."""
        of, (height, width) = self.likelihood, context.shape[2:]
        x = context.new_empty(len(context), of.grid[0], height, width)
        with torch.autocast(context.device.type, enabled=False):
            rows, columns = -(-height // of.side), -(-width // of.side)
            decoder = IncrementalCausalConv(of.trunk, len(context), rows, columns, of.blocks(context))
            for row, column in product(range(rows), range(columns)):
                begun = of.head.begin(decoder.step())
                values = begun.new_zeros(len(context), 0)
                for j in range(of.side**2):
                    at = of.side * row + j // of.side, of.side * column + j % of.side
                    if at[0] >= height or at[1] >= width:
                        seen = begun.new_zeros(len(context), of.head.values)
                    else:
                        pixel = choose(of.one(of.head.pixel(begun, values, j)[:, :, None, None]), *at)
                        x[:, :, at[0], at[1]] = pixel[..., 0, 0]
                        seen = of.seen(pixel).flatten(1)
                    values = torch.cat([values, seen], 1)
                decoder.append(values)
            return of.stored(x)
