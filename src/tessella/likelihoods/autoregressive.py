"""Autoregressive likelihood: each pixel is conditional on the pixels before it and on the decoder's output."""

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
from tessella.likelihoods.shared import Standardizer, checked_parameters, over_channels
from tessella.networks.causal_conv import BlockHead, CausalConv, IncrementalCausalConv
from tessella.networks.conv import blocked, unblocked

FEATURES, FEATURES_OF_A_NUMBER = 32, 16
WIDTH, WIDTH_OF_COLOUR = 64, 96
DEPTH = 6
BLOCK, SMALL = 2, 16
"""Side of a block in pixels, and the smallest side of pictures that are divided into blocks."""


@final
class AutoregressiveModule(Likelihood):
    """Autoregressive likelihood: p(x | z) = prod_i p(x_i | x_<i, h(z)), with h(z) the decoder's output.

    The order is raster order over blocks of 2 x 2 pixels (1 x 1 for small pictures), then within a block: so the
    network runs on a quarter of the positions, and a small head handles a block's pixels one after another. Any order
    gives a normalised distribution; this one takes a third of the time.

    Causal convolutions (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders") take the
    stored values and h(z) at each position. They give the parameters of each pixel's distribution, the default one of
    its values (Bernoulli, mixture of logistics, categorical, Gaussian), so p(x | z) is normalised over the stored
    values. The bounds are strong, but because the network can explain much of x without z, it may leave z unused (Chen
    et al. 2017, "Variational lossy autoencoder", section 2; Gulrajani et al. 2017, "PixelVAE").

    Parameters: `[B, features, *spatial]` (vectors `[B, features * D]`, read as `[B, features, D]`): context for the
    convolutions. The numbers of a vector are treated as a row of pixels.

    Sampling goes pixel by pixel. The mean has no closed form; it is replaced by the greedy reconstruction, in which
    each pixel takes its conditional mean, rounded to a stored value, given the pixels before it.

    Args:
        schema: of one example.
        pixel: makes the likelihood of the values of a grid, or of one of its pixels.
        width: channels of the causal network. Default: 64, or 96 for colour.
        depth: layers of the causal network. Default: 6.
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
        """Return None: the decoder's output is features."""

    def forward(self, parameters: Tensor) -> StoredValues:
        parameters = checked_parameters(parameters, self.schema, self.parameter_channels)
        return PixelByPixel(self, parameters.reshape(len(parameters), self.features, *self._sides(parameters)))

    def standard(self, x: Tensor) -> Tensor:
        """Convert stored values `[B, *shape]` to `[B, *grid]` for `whole`; only real values are standardised."""
        x = x if self.schema.values.discrete else self.units.to_network(x)
        return x.reshape(len(x), self.grid[0], *self._sides(x))

    def stored(self, x: Tensor) -> Tensor:
        """Invert `standard`; the result is float32."""
        x = x.flatten(1 + self.schema.rank)
        return x if self.schema.values.discrete else self.units.to_stored(x)

    def seen(self, x: Tensor) -> Tensor:
        """Convert the output of `standard` to network units, and add a channel of ones.

        The channel is zero where the network pads, so that it can detect the border.
        """
        return F.pad(self.whole.to_network(x), (0, 0, 0, 0, 0, 1), value=1.0)

    def blocks(self, maps: Tensor) -> Tensor:
        """Convert maps `[B, C, H, W]` to blocks `[B, pixels * C, h, w]`, padded with zeros."""
        height, width = maps.shape[2:]
        whole = F.pad(maps, (0, -width % self.side, 0, -height % self.side))
        return blocked(whole, self.side)

    def unblocked(self, blocks: Tensor, height: int, width: int) -> Tensor:
        """Invert `blocks` for maps of this size."""
        return unblocked(blocks, self.side)[..., :height, :width]

    def conditionals(self, x: Tensor, context: Tensor) -> Tensor:
        """Compute each pixel's parameters for `whole` given the pixels before it, `[B, parameters, H, W]`.

        Args:
            x: result of `standard`.
            context: `[B, features, H, W]`.
        """
        values = self.blocks(self.seen(x))
        return self.unblocked(self.head(self.trunk(values, self.blocks(context)), values), *x.shape[2:])

    def log_volume(self, shape: tuple[int, ...]) -> Tensor | float:
        """Return log p of standardised real values minus log p of stored ones, in nats."""
        return 0.0 if self.schema.values.discrete else self.units.scale.expand(shape).log().sum()

    def _sides(self, maps: Tensor) -> tuple[int, ...]:
        """Return height and width of pictures of any size; a signal or a vector is one row."""
        return {0: self.grid[1:], 1: (1, maps.shape[-1])}.get(self.schema.rank, tuple(maps.shape[2:]))


@final
class PixelByPixel(StoredValues):
    """Distribution of `Autoregressive`; the network runs in the surrounding autocast, the rest in float32.

    Args:
        likelihood: the likelihood whose networks are used.
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
        """Return the greedy reconstruction: the conditional mean of each pixel given those before it.

        Discrete values are rounded.
        """
        return self._drawn(self.context, lambda pixel, row, column: self._greedy(pixel))

    def redrawn(self, x: Tensor, where: Tensor) -> Tensor:
        """Reconstruct only the pixels `where` `[H, W]` (bool) greedily; all others are those of `x` `[1, *shape]`."""
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

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        known = None if value is None else self.likelihood.standard(value)
        seen = None if observed is None else observed.reshape(-1, *self.context.shape[2:])

        def choose(pixel: StoredValues, row: int, column: int) -> Tensor:
            here = None if seen is None else seen[:, row, column, None, None]
            return pixel.code(coder, None if known is None else known[:, :, row, column], here)

        return self._drawn(self.context, choose)

    @torch.no_grad()
    def _drawn(self, context: Tensor, choose: Callable[[StoredValues, int, int], Tensor]) -> Tensor:
        """Generate pixels one after another, `[B, *shape]`; `choose` gets the pixel's distribution, row and column."""
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
