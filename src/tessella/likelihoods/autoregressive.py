"""Autoregressive likelihood: each pixel is conditional on the pixels before it and on the decoder's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.observed import observed, trimmed
from tessella.core.schema import Schema
from tessella.likelihoods.history import LocatedLikelihood, PlainHistory, SampleHistory
from tessella.likelihoods.lattice import Lattice
from tessella.likelihoods.shared import Standardizer, checked_parameters, over_channels
from tessella.networks.causal_conv import BlockHead, CausalConv
from tessella.networks.dilated_conv import DilatedConv

FEATURES, FEATURES_OF_A_NUMBER = 32, 16
WIDTH, WIDTH_OF_COLOUR = 64, 96
DEPTH, DEPTH_OF_SIGNALS = 6, 11
BLOCK, SMALL = (2, 2), 16
"""Height and width of a block in pixels, and the smallest side of pictures that are divided into blocks."""
BLOCK_OF_SIGNALS = (1, 1)
Rows = Tensor | slice
Choose = Callable[[StoredValues, int, int, Rows], Tensor]


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
        depth: layers of the causal network. Default: 6, or 11 for signals.
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
        self.units = Standardizer(schema, by_level=True)
        network, usual = {1: (DilatedConv, DEPTH_OF_SIGNALS)}.get(schema.rank, (CausalConv, DEPTH))
        signal, channels = network is DilatedConv, self.grid[0]
        self.lattice = Lattice(schema.values, look=schema.rate > 0)
        self.wholes = _modules(pixel(Schema.of(self.grid, values)) for values in self.lattice.values)
        whole = self.wholes[0]
        self._ones: Sequence[Likelihood] = ()
        if not any(True for _ in whole.parameters()):  # weights must be the same for all positions and for one
            self._ones = _modules(pixel(Schema.of((channels, 1, 1), values)) for values in self.lattice.values)
        history, bias = PlainHistory(channels), whole.initial_bias()
        if signal and schema.values.kind != "symbols" and isinstance(whole, LocatedLikelihood):
            history, bias = SampleHistory(whole, channels, schema.values), whole.residual_bias()
        width = width or (WIDTH_OF_COLOUR if channels > 1 and not signal else WIDTH)
        self.block = BLOCK_OF_SIGNALS if signal else BLOCK if min(self.grid[1:]) >= SMALL else (1, 1)
        pixels, values = math.prod(self.block), history.features + 1 + (len(self.lattice.values) > 1)
        outputs = whole.parameter_channels if bias is None else len(bias)
        self.trunk = network(pixels * values, width, depth or usual, context=pixels * self.features)
        self.history, self.head = history, BlockHead(width, values, pixels, outputs)
        if bias is not None:
            self.head.start_at(bias)

    @property
    def ones(self) -> Sequence[Likelihood]:
        """Return the likelihoods of one pixel, for the step of each lattice."""
        return self._ones or self.wholes

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
        """Convert stored values `[B, *shape]` to `[B, *grid]` for `wholes`; only real values are standardised."""
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
        y, seen = self.wholes[0].to_network(x), observed(x)
        known = torch.ones_like(y[:, :1]) if seen is None else seen.to(y.dtype).mean(1, keepdim=True)
        return y, known

    def seen(self, y: Tensor, known: Tensor, exponents: Tensor) -> Tensor:
        """Compute the network's input `[B, values, H, W]` from the output of `units_of`, y with its past.

        With lattices, the input also has the share of the bits that an example leaves empty.
        """
        maps, steps = [self.history(y), known], len(self.lattice.values)
        if steps > 1:
            maps.append(known * (exponents / steps)[:, None, None, None])
        return torch.cat(maps, 1)

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

    def conditionals(self, x: Tensor, context: Tensor, exponents: Tensor) -> Tensor:
        """Compute each pixel's parameters for `wholes` given the pixels before it, `[B, parameters, H, W]`.

        Args:
            x: result of `standard`.
            context: `[B, features, H, W]`.
            exponents: of the step of each example's lattice, `[B]`.
        """
        y, known = self.units_of(x)
        y = F.pad(y, (self.history.past, 0))
        values = self.blocks(self.seen(y, known, exponents))
        parameters = self.head(self.trunk(values, self.blocks(context)), values)
        return self.located(self.unblocked(parameters, *x.shape[2:]), y, exponents)

    def located(self, parameters: Tensor, y: Tensor, exponents: Tensor) -> Tensor:
        """Place the locations of parameters `[B, parameters, H, W]` as the history y demands."""
        return self.history.located(parameters, y, lambda near: self.lattice.align(near, exponents))

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
        if not (of.training and of.schema.lengths):
            return self._nats(value, self.context)
        seen = trimmed(value, 1)  # the silence at the end of a batch would only take time
        nats = self._nats(seen, self.context[..., : seen.shape[-1]])
        return F.pad(nats, (0, value.shape[-1] - seen.shape[-1]))

    def _nats(self, value: Tensor, context: Tensor) -> Tensor:
        """Compute log p of each position, given its context `[B, features, H, W]`."""
        of = self.likelihood
        x = of.standard(value)
        exponents = of.lattice.exponents(x)
        parameters, steps = of.conditionals(x, context, exponents), self._steps(exponents)
        each = of.lattice.by_step(
            exponents, lambda e, rows: of.wholes[e](parameters[rows]).by_position((x / steps)[rows] if e else x[rows])
        )
        if of.lattice.logits is not None:  # the first observed position pays for the step
            seen = ~x.isnan().all(1)
            each = each + of.lattice.log_prob(exponents)[:, None, None] * (seen & (seen.cumsum(-1) == 1))
        each = each.reshape(len(x), *(value.shape[2:] or value.shape[1:]))
        if of.schema.values.discrete:
            return each
        volume = of.units.scale.log().expand_as(value).masked_fill(value.isnan(), 0)
        return each - over_channels(volume)

    @property
    def mean(self) -> Tensor:
        """Return the greedy reconstruction: the conditional mean of each pixel given those before it.

        Discrete values are rounded.
        """
        return self._drawn(self._exponents(self.likelihood.lattice.mode), lambda pixel, *_: self._greedy(pixel))

    def redrawn(self, x: Tensor, where: Tensor) -> Tensor:
        """Reconstruct only the pixels `where` `[*spatial]` (bool) greedily; take all others from `x` `[1, *shape]`."""
        known = self.likelihood.standard(x)
        exponents = self._exponents(int(self.likelihood.lattice.exponents(known)))
        known = known / self._steps(exponents)
        free = where.reshape(known.shape[2:]).tolist()

        def choose(pixel: StoredValues, row: int, column: int, rows: Rows) -> Tensor:
            return self._greedy(pixel) if free[row][column] else known[rows, :, row, column, None, None]

        return self._drawn(exponents, choose)

    def _greedy(self, pixel: StoredValues) -> Tensor:
        return pixel.mean.round() if self.likelihood.schema.values.discrete else pixel.mean

    def sample(self, sample_shape: _size = ()) -> Tensor:
        context = self.context.expand(*sample_shape, *self.context.shape).flatten(0, -4)
        exponents = self.likelihood.lattice.sample(len(context)).to(context.device)
        drawn = self._drawn(exponents, lambda pixel, *_: pixel.sample(), context)
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        of, count = self.likelihood, len(self.context)
        known = None if value is None else of.standard(value)
        seen = None if observed is None else observed.reshape(-1, *self.context.shape[2:])
        exponents = of.lattice.code(coder, count, None if known is None else of.lattice.exponents(known))
        known = None if known is None else known / self._steps(exponents)

        def choose(pixel: StoredValues, row: int, column: int, rows: Rows) -> Tensor:
            here = None if seen is None else seen[rows, row, column, None, None]
            return pixel.code(coder, None if known is None else known[rows, :, row, column], here)

        return self._drawn(exponents, choose)

    def _exponents(self, e: int) -> Tensor:
        return torch.full((len(self.context),), e, dtype=torch.int64, device=self.context.device)

    def _steps(self, exponents: Tensor) -> Tensor:
        """Return the step of each example's lattice, `[B, 1, 1, 1]`."""
        return torch.exp2(exponents.float())[:, None, None, None]

    def _drawn(self, exponents: Tensor, choose: Choose, context: Tensor | None = None) -> Tensor:
        """Generate pixels one after another, `[B, *shape]`; the examples of each lattice together.

        `choose` gets the distribution of a pixel divided by the step, its row and column, and which examples these are.
        """
        context = self.context if context is None else context

        def draw(e: int, rows: Rows) -> Tensor:
            return self._on_lattice(e, context[rows], lambda pixel, i, k: choose(pixel, i, k, rows))

        return self.likelihood.lattice.by_step(exponents, draw)

    @torch.no_grad()
    def _on_lattice(self, e: int, context: Tensor, choose: Callable[[StoredValues, int, int], Tensor]) -> Tensor:
        of, (height, width), exponents = self.likelihood, context.shape[2:], self._exponents(e)[:1]
        (tall, wide), past = of.block, of.history.past
        x = context.new_empty(len(context), of.grid[0], height, width)
        y = x.new_zeros(*x.shape[:3], past + width)
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
                        window = y[:, :, i : i + 1, k : k + past + 1]
                        parameters = of.located(of.head.pixel(begun, values, j)[:, :, None, None], window, exponents)
                        pixel = choose(of.ones[e](parameters), i, k)
                        x[:, :, i, k] = pixel[..., 0, 0] * 2**e
                        units, known = of.units_of(x[:, :, i : i + 1, k : k + 1])
                        window[..., -1:] = units
                        seen = of.seen(window, known, exponents).flatten(1)
                    values = torch.cat([values, seen], 1)
                decoder.append(values)
            return of.stored(x)


def _modules(likelihoods: Iterable[Likelihood]) -> Sequence[Likelihood]:
    return cast(Sequence[Likelihood], nn.ModuleList(likelihoods))
