"""The autoregressive decoder: each pixel given those before it and what the decoder says of its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.types import _size

from tessella.contracts import Likelihood
from tessella.likelihoods import initial_bias, likelihood_for
from tessella.likelihoods.shared import StoredValues, Units, checked
from tessella.networks.causal_conv import CausalConv, CausalWalk
from tessella.records import Schema

FEATURES, FEATURES_OF_A_NUMBER = 32, 16
WIDTH, WIDTH_OF_COLOUR = 64, 96
DEPTH = 6


@final
class Autoregressive(Likelihood):
    """p(x | z) = prod_i p(x_i | x_<i, h(z)) over pixels in raster order, with h(z) the decoder's output.

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
        mixtures: of logistics, for bytes.
        width, depth: of the causal network.
        features: channels of h(z).

    Raises:
        SpecError: if mixtures are asked of other values than bytes, or the pictures have too many channels for them.
    """

    sequential_mean = True
    """Whether a mean costs a pass pixel by pixel."""

    def __init__(
        self,
        schema: Schema,
        *,
        mixtures: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        features: int | None = None,
    ) -> None:
        super().__init__(schema)
        self.grid = schema.shape if schema.is_picture else (1, 1, schema.dims)
        self.features = features or (FEATURES if schema.is_picture else FEATURES_OF_A_NUMBER)
        self.units = Units(schema)
        options: dict[str, Any] = {} if mixtures is None else {"mixtures": mixtures}
        standard = replace(schema, shape=self.grid, center=(0.0,), scale=(1.0,))
        self.whole = likelihood_for(standard, **options)
        self.one = likelihood_for(replace(standard, shape=(self.grid[0], 1, 1)), **options)
        width = width or (WIDTH_OF_COLOUR if self.grid[0] > 1 else WIDTH)
        self.trunk = CausalConv(self.grid[0] + 1, width, depth or DEPTH, context=self.features)
        self.exit = nn.Conv2d(width, self.whole.parameter_channels, 1)
        with torch.no_grad():
            self.exit.weight.mul_(0.1)
            bias = initial_bias(self.whole)
            if bias is not None and self.exit.bias is not None:
                self.exit.bias.copy_(bias)

    @property
    def parameter_channels(self) -> int:
        return self.features * (1 if self.schema.is_picture else self.schema.dims)

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def forward(self, parameters: Tensor) -> Distribution:
        parameters = checked(parameters, self.schema, self.parameter_channels)
        return PixelByPixel(self, parameters.reshape(len(parameters), self.features, *self.grid[1:]))

    def standard(self, x: Tensor) -> Tensor:
        """Stored values `[B, *shape]` as `whole` takes them, `[B, *grid]`: real ones standardised, others as is."""
        x = self.units.to_network(x) if self.schema.values == "real" else x
        return x.reshape(len(x), *self.grid)

    def stored(self, x: Tensor) -> Tensor:
        """The inverse, as float32."""
        x = x.reshape(-1, *self.schema.shape)
        return self.units.to_stored(x) if self.schema.values == "real" else x

    def seen(self, x: Tensor) -> Tensor:
        """What `standard` gives, as the network sees it: in units of one, with a channel that is zero outside only."""
        return F.pad(self.whole.to_network(x), (0, 0, 0, 0, 0, 1), value=1.0)

    def log_volume(self) -> Tensor | float:
        """Of real values, the nats by which a density of standardised values exceeds that of stored ones."""
        return self.units.scale.expand(self.schema.shape).log().sum() if self.schema.values == "real" else 0.0


@final
class PixelByPixel(StoredValues):
    """The distribution of `Autoregressive`. The network runs in the surrounding autocast, the rest in float32.

    Args:
        likelihood: whose networks it uses.
        context: `[B, features, H, W]`.
    """

    sequential_mean = True

    def __init__(self, likelihood: Autoregressive, context: Tensor) -> None:
        self.likelihood, self.context = likelihood, context
        super().__init__(len(context), likelihood.schema.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        of = self.likelihood
        x = of.standard(value)
        parameters = of.exit(of.trunk(of.seen(x), self.context))
        return of.whole(parameters).log_prob(x) - of.log_volume()

    @property
    def mean(self) -> Tensor:
        """The greedy drawing: each pixel its conditional mean, rounded unless real, given those before it."""

        def choose(pixel: Distribution) -> Tensor:
            return pixel.mean if self.likelihood.schema.values == "real" else pixel.mean.round()

        return self._drawn(self.context, choose)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        context = self.context.expand(*sample_shape, *self.context.shape).flatten(0, -4)
        drawn = self._drawn(context, lambda pixel: pixel.sample())
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    @torch.no_grad()
    def _drawn(self, context: Tensor, choose: Callable[[Distribution], Tensor]) -> Tensor:
        """One value after another, `[B, *shape]`."""
        of, (channels, height, width) = self.likelihood, self.likelihood.grid
        x = context.new_empty(len(context), channels, height * width)
        with torch.autocast(context.device.type, enabled=False):
            walk = CausalWalk(of.trunk, len(context), height, width, context)
            exit_ = of.exit.weight.flatten(1)
            for p in range(math.prod((height, width))):
                parameters = F.linear(walk.features(), exit_, of.exit.bias)
                pixel = choose(of.one(parameters[:, :, None, None]))
                walk.put(of.seen(pixel).flatten(1))
                x[..., p] = pixel.flatten(1)
            return of.stored(x)
