"""Likelihoods under which the values of an example are independent given z."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder, code_bits, code_categorical, of_observed
from tessella.core.schema import Schema, Values
from tessella.likelihoods.history import LocatedLikelihood
from tessella.likelihoods.shared import (
    IndependentValues,
    RealValues,
    Standardizer,
    checked_parameters,
    require_values,
)

SCALE_FLOOR = 1e-3
LOG_SCALES = -7.0, 3.0
"""Smallest and largest log scale of categorical values around a prediction."""


@final
class BernoulliModule(Likelihood):
    """Bernoulli likelihood of binary values: p(x | z) = prod_d p_d^x_d (1 - p_d)^(1 - x_d), p = sigmoid(parameters).

    Parameters: `[B, C, *spatial]`, the logits.

    Raises:
        SpecError: if the values are not binary; the cross-entropy of grey values is not a likelihood.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_values(schema, "bernoulli", "binary")
        self.units = Standardizer(schema)

    @property
    def parameter_channels(self) -> int:
        return self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return zeros: both values are equally probable."""
        return torch.zeros(self.parameter_channels)

    def forward(self, parameters: Tensor) -> StoredValues:
        return BernoulliLogits(checked_parameters(parameters, self.schema, self.parameter_channels))


@final
class BernoulliLogits(IndependentValues):
    """Independent bits with logits `[B, *event_shape]`; `log_prob` takes any dtype."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[0], logits.shape[1:])

    def each(self, value: Tensor) -> Tensor:
        with torch.autocast(self.logits.device.type, enabled=False):
            value = value.to(self.logits.dtype)
            return -F.binary_cross_entropy_with_logits(self.logits, value, reduction="none")

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        seen = self.each_observed(observed)
        known = None if value is None else value.nan_to_num()
        told = code_bits(of_observed(coder, seen), self.logits, known).float()
        return told if seen is None else told.masked_fill(~seen, torch.nan)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(*sample_shape, *self.logits.shape))


@final
class CategoricalModule(LocatedLikelihood):
    """Categorical likelihood with a free probability for each of K values, independent given z.

    Parameters: `[B, K * C, *spatial]`, the logits, laid out as `[B, K, C, *spatial]`. Around a prediction there are C
    locations m and C log scales s more, and value y in network units gets -|y - m| / exp(s) in addition.

    Raises:
        SpecError: if the values are neither integers nor symbols.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_values(schema, "categorical", "integers", "symbols")
        self.units = Standardizer(schema)

    @property
    def parameter_channels(self) -> int:
        return self.schema.values.levels * self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return zeros: all values are equally probable."""
        return torch.zeros(self.parameter_channels)

    @property
    def locations(self) -> int:
        return self.schema.shape[0]

    def around(self, predictions: Tensor, parameters: Tensor) -> Tensor:
        count, levels = self.locations, self.schema.values.levels
        logits, offset, log_scale = parameters.split([levels * count, count, count], 1)
        log_scale = log_scale.clamp(*LOG_SCALES)
        location = (predictions + offset * log_scale.exp()).unsqueeze(1)
        y = torch.linspace(-1, 1, levels).to(location).view(-1, *(1,) * (location.dim() - 2))
        return logits - ((y - location).abs() * log_scale.neg().exp().unsqueeze(1)).flatten(1, 2)

    def residual_bias(self) -> Tensor:
        """Return equal logits, locations 0, and scales of a twelfth of half the range."""
        count = self.locations
        return torch.cat([self.initial_bias(), torch.zeros(count), torch.full((count,), -2.5)])

    def forward(self, parameters: Tensor) -> StoredValues:
        parameters = checked_parameters(parameters, self.schema, self.parameter_channels)
        values = self.schema.values
        return CategoricalLogits(parameters.reshape(len(parameters), values.levels, -1, *parameters.shape[2:]), values)


@final
class CategoricalLogits(IndependentValues):
    """Independent values `low ... low + K - 1` with logits `[B, K, *event_shape]`."""

    def __init__(self, logits: Tensor, values: Values) -> None:
        self.logits, self.values, self.filler = logits, values, values.low
        super().__init__(logits.shape[0], logits.shape[2:])

    def each(self, value: Tensor) -> Tensor:
        with torch.autocast(self.logits.device.type, enabled=False):
            return -F.cross_entropy(self.logits, self._index(value), reduction="none")

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        told, seen = [], self.each_observed(observed)
        for i, logits in enumerate(self.logits.movedim(1, -1)):  # one at a time: K numbers a value
            known = None if value is None else self._index(value[i].nan_to_num(self.filler)).flatten()
            part = of_observed(coder, None if seen is None else seen[i])
            told.append(code_categorical(part, logits.flatten(0, -2), known))
        x = torch.stack(told).view(self.batch_shape + self.event_shape).float() + self.values.low
        return x if seen is None else x.masked_fill(~seen, torch.nan)

    @property
    def mean(self) -> Tensor:
        """Return E[x], or for symbols, which have no mean, the most probable one."""
        if self.values.kind == "symbols":
            return self.logits.argmax(1).to(self.logits.dtype)
        index = torch.arange(self.values.levels, dtype=self.logits.dtype, device=self.logits.device)
        return torch.einsum("bv...,v->b...", self.logits.softmax(1), index) + self.values.low

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            weights = self.logits.movedim(1, -1).softmax(-1)
            rows = weights.reshape(-1, self.values.levels)
            draws = torch.multinomial(rows, math.prod(sample_shape), replacement=True)
            shape = (*sample_shape, *self.batch_shape, *self.event_shape)
            return draws.T.reshape(shape).to(self.logits.dtype) + self.values.low

    def _index(self, value: Tensor) -> Tensor:
        return value.to(torch.int64) - int(self.values.low)


@final
class GaussianModule(LocatedLikelihood):
    """Gaussian likelihood of real values: p(x | z) = prod_d N(x_d; mu_d, sigma_d^2), a density of the stored values.

    Parameters: `[B, 2 * C, *spatial]`: first the locations m, then the log scales s, in network units; mu = center +
    scale * m and sigma = scale * (0.001 + exp(s)). The lower limit, a thousandth of the data's scale, bounds the
    density of values that the decoder can copy.

    Raises:
        SpecError: if the values are discrete.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_values(schema, "gaussian", "real")
        self.units = Standardizer(schema)

    @property
    def parameter_channels(self) -> int:
        return 2 * self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return zeros: mean and standard deviation of the training split."""
        return torch.zeros(self.parameter_channels)

    @property
    def locations(self) -> int:
        return self.schema.shape[0]

    def around(self, predictions: Tensor, parameters: Tensor) -> Tensor:
        offset, log_scale = parameters.chunk(2, dim=1)
        return torch.cat([predictions + offset * log_scale.clamp(max=20).exp(), log_scale], 1)

    def residual_bias(self) -> Tensor:
        """Return locations 0 and a third of the training split's standard deviation."""
        return torch.tensor([0.0, -1.0]).repeat_interleave(self.locations)

    def forward(self, parameters: Tensor) -> StoredValues:
        parameters = checked_parameters(parameters, self.schema, self.parameter_channels)
        location, log_scale = parameters.chunk(2, dim=1)
        return _normal(self.units, location, SCALE_FLOOR + log_scale.clamp(max=20).exp())


@final
class FixedGaussianModule(Likelihood):
    """Gaussian likelihood of real values with one scale for all: squared error as a likelihood.

    -log p(x | z) = sum_d (x_d - mu_d)^2 / (2 sigma_d^2) + log sigma_d + log(2 pi) / 2, a density of the stored values,
    with sigma_d = scale_d * (0.001 + exp(log_scale)), where scale_d is that of the data and `log_scale` is one learned
    number. Learning it finds the weight of the squared error that a fixed unit variance only guesses (Rybkin et al.
    2021, "sigma-VAE", section 3).

    Parameters: `[B, C, *spatial]`, the locations in network units.

    Args:
        schema: description of one example.
        scale: fixed sigma in units of the data's scale; None: learned, starting at 1.

    Raises:
        SpecError: if the values are discrete.
    """

    def __init__(self, schema: Schema, scale: float | None) -> None:
        super().__init__(schema)
        require_values(schema, "fixed-scale Gaussian", "real")
        self.units = Standardizer(schema)
        self.fixed_scale = scale
        self.log_scale = nn.Parameter(torch.zeros(())) if scale is None else None

    @property
    def parameter_channels(self) -> int:
        return self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return zeros: the mean of the training split."""
        return torch.zeros(self.parameter_channels)

    def forward(self, parameters: Tensor) -> StoredValues:
        parameters = checked_parameters(parameters, self.schema, self.parameter_channels)
        if self.log_scale is None:
            sigma = parameters.new_tensor(self.fixed_scale)
        else:
            sigma = SCALE_FLOOR + self.log_scale.to(parameters.dtype).clamp(max=20).exp()
        return _normal(self.units, parameters, sigma)


def _normal(units: Standardizer, location: Tensor, sigma: Tensor) -> StoredValues:
    """Convert N(location, sigma^2) in network units to a distribution over stored values."""
    with torch.autocast(location.device.type, enabled=False):
        return RealValues(Normal(units.to_stored(location), units.scale * sigma, validate_args=False))
