"""Autoregressive likelihood: each pixel is conditional on the pixels before it and on the decoder's output."""

from __future__ import annotations

import math
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
from tessella.core.observed import observed
from tessella.core.schema import Schema
from tessella.likelihoods.history import LocatedLikelihood, PlainHistory, SampleHistory
from tessella.likelihoods.shared import Standardizer, checked_parameters, over_channels
from tessella.networks.causal_conv import BlockHead, CausalConv
from tessella.networks.dilated_conv import DilatedConv

FEATURES, FEATURES_OF_A_NUMBER = 32, 16
WIDTH, WIDTH_OF_COLOUR = 64, 96
DEPTH, DEPTH_OF_SIGNALS = 6, 22
BLOCK, SMALL = (2, 2), 16
"""Height and width of a block in pixels, and the smallest side of pictures that are divided into blocks."""


@final
class AutoregressiveModule(Likelihood):
    """Autoregressive likelihood: p(x | z) = prod_i p(x_i | x_<i, h(z)), with h(z) the decoder's output.

    The order is raster order over blocks of 2 x 2 pixels (1 x 1 for small pictures), then within a block: so the
    network runs on a quarter of the positions, and a small head handles a block's pixels one after another. Any order
    gives a normalised distribution; this one takes a third of the time. Signals go sample by sample.

    Causal convolutions (van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders"; for signals
    dilated ones, "WaveNet") take the stored values and h(z) at each position. They give the parameters of each pixel's
    distribution, the default one of its values (Bernoulli, mixture of logistics, categorical, Gaussian), so p(x | z) is
    normalised over the stored values. The bounds are strong, but because the network can explain much of x without z,
    it may leave z unused (Chen et al. 2017, "Variational lossy autoencoder", section 2; Gulrajani et al. 2017,
    "PixelVAE").

    Parameters: `[B, features, *spatial]` (vectors `[B, features * D]`, read as `[B, features, D]`): context for the
    convolutions. The numbers of a vector are treated as a row of pixels.

    Sampling goes pixel by pixel. The mean has no closed form; it is replaced by the greedy reconstruction, in which
    each pixel takes its conditional mean, rounded to a stored value, given the pixels before it.

    Args:
        schema: of one example.
        pixel: makes the likelihood of the values of a grid, or of one of its pixels.
        width: channels of the causal network. Default: 64, or 96 for colour.
        depth: layers of the causal network. Default: 6, or 22 for signals.
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
        self.whole = whole = pixel(standard)
        self.one = pixel(replace(standard, spatial=(1, 1)))
        network, usual = {1: (DilatedConv, DEPTH_OF_SIGNALS)}.get(schema.rank, (CausalConv, DEPTH))
        signal, channels = network is DilatedConv, self.grid[0]
        history, bias = PlainHistory(channels), whole.initial_bias()
        if signal and isinstance(whole, LocatedLikelihood):
            history, bias = SampleHistory(whole, channels, schema.values), whole.residual_bias()
        width = width or (WIDTH_OF_COLOUR if channels > 1 and not signal else WIDTH)
        self.block = BLOCK if min(self.grid[1:]) >= SMALL else (1, 1)
        pixels, values = math.prod(self.block), history.features + 1
        self.trunk = network(pixels * values, width, depth or usual, context=pixels * self.features)
        self.history, self.head = history, BlockHead(width, values, pixels, whole.parameter_channels)
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
        if not self.schema.values.discrete:
            x = self.units.to_network(x).masked_fill(x.isnan(), torch.nan)
        return x.reshape(len(x), self.grid[0], *self._sides(x))

    def stored(self, x: Tensor) -> Tensor:
        """Invert `standard`; the result is float32."""
        x = x.flatten(1 + self.schema.rank)
        return x if self.schema.values.discrete else self.units.to_stored(x)

    def units_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convert the output of `standard` to network units, 0 where it is NaN, and return what share is known.

        That share, `[B, 1, H, W]`, is 1 without NaN. The network also sees the border by it, since padding is 0.
        """
        y, seen = self.whole.to_network(x), observed(x)
        known = torch.ones_like(y[:, :1]) if seen is None else seen.to(y.dtype).mean(1, keepdim=True)
        return y, known

    def blocks(self, maps: Tensor) -> Tensor:
        """Convert maps `[B, C, H, W]` to blocks `[B, pixels * C, h, w]`, padded with zeros."""
        (height, width), (rows, columns) = maps.shape[2:], self.block
        whole = F.pad(maps, (0, -width % columns, 0, -height % rows))
        cells = whole.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        return cells.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)

    def unblocked(self, blocks: Tensor, height: int, width: int) -> Tensor:
        """Invert `blocks` for maps of this size."""
        cells = blocks.unflatten(1, (*self.block, -1)).permute(0, 3, 4, 1, 5, 2)
        return cells.flatten(4, 5).flatten(2, 3)[..., :height, :width]

    def conditionals(self, x: Tensor, context: Tensor) -> Tensor:
        """Compute each pixel's parameters for `whole` given the pixels before it, `[B, parameters, H, W]`.

        Args:
            x: result of `standard`.
            context: `[B, features, H, W]`.
        """
        y, known = self.units_of(x)
        y = F.pad(y, (self.history.past, 0))
        values = self.blocks(torch.cat([self.history(y), known], 1))
        parameters = self.head(self.trunk(values, self.blocks(context)), values)
        return self.history.located(self.unblocked(parameters, *x.shape[2:]), y)

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
        return self.by_position(value).flatten(1).sum(1)

    def by_position(self, value: Tensor) -> Tensor:
        of = self.likelihood
        x = of.standard(value)
        each = of.whole(of.conditionals(x, self.context)).by_position(x)
        each = each.reshape(len(x), *(self.event_shape[1:] or self.event_shape))
        if of.schema.values.discrete:
            return each
        volume = of.units.scale.log().expand_as(value).masked_fill(value.isnan(), 0)
        return each - over_channels(volume)

    @property
    def mean(self) -> Tensor:
        """Return the greedy reconstruction: the conditional mean of each pixel given those before it.

        Discrete values are rounded.
        """
        return self._drawn(self.context, lambda pixel, row, column: self._greedy(pixel))

    def redrawn(self, x: Tensor, where: Tensor) -> Tensor:
        """Reconstruct only the pixels `where` `[*spatial]` (bool) greedily; take all others from `x` `[1, *shape]`."""
        known = self.likelihood.standard(x).expand(len(self.context), -1, -1, -1)
        free = where.reshape(known.shape[2:]).tolist()

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
        history, (tall, wide) = of.history, of.block
        x = context.new_empty(len(context), of.grid[0], height, width)
        y = x.new_zeros(*x.shape[:3], history.past + width)
        with torch.autocast(context.device.type, enabled=False):
            rows, columns = -(-height // tall), -(-width // wide)
            decoder = of.trunk.incremental(len(context), rows, columns, of.blocks(context))
            for row, column in product(range(rows), range(columns)):
                begun = of.head.begin(decoder.step())
                values = begun.new_zeros(len(context), 0)
                for j in range(tall * wide):
                    i, k = tall * row + j // wide, wide * column + j % wide
                    if i >= height or k >= width:
                        seen = begun.new_zeros(len(context), of.head.values)
                    else:
                        window = y[:, :, i : i + 1, k : k + history.past + 1]
                        parameters = history.located(of.head.pixel(begun, values, j)[:, :, None, None], window)
                        x[:, :, i, k] = choose(of.one(parameters), i, k)[..., 0, 0]
                        units, known = of.units_of(x[:, :, i : i + 1, k : k + 1])
                        window[..., -1:] = units
                        seen = torch.cat([history(window), known], 1).flatten(1)
                    values = torch.cat([values, seen], 1)
                decoder.append(values)
            return of.stored(x)
