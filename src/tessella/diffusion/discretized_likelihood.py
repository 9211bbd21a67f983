"""Likelihood p(x | z_0) of a diffusion model, given the least noisy latent."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.schema import Binary, Schema, Values
from tessella.diffusion.discrete_denoiser import posterior
from tessella.likelihoods.independent import BernoulliLogits, CategoricalLogits
from tessella.likelihoods.shared import (
    IndependentValues,
    RealValues,
    Standardizer,
    checked_parameters,
    require_complete,
)

SCALE_FLOOR = 1e-3


@final
class Observation(Likelihood):
    """Likelihood p(x | z_0) of a diffusion model (Kingma et al. 2021, section 3.3).

    For discrete values it is proportional to prod_d N(z_0d; alpha_0 y(x_d), sigma_0^2), normalised over the
    values of x_d. For real values it is the density N(x; z_0 / alpha_0, exp(gamma_0)), whose scale is learned with
    gamma_0; it is at least a thousandth of the data's scale, so that the density stays bounded.

    Parameters: `[B, 2 C, *spatial]`: z_0 / alpha_0 and its log precision, -gamma_0.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_complete(schema, "diffusion")
        self.units = Standardizer(schema)

    @property
    def levels(self) -> int:
        """Return the number of values of one number; 0: real numbers."""
        return self.schema.values.levels

    @property
    def parameter_channels(self) -> int:
        return 2 * self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> None:
        """Return None: the parameters come from z itself."""

    def forward(self, parameters: Tensor) -> StoredValues:
        location, log_precision = checked_parameters(parameters, self.schema, self.parameter_channels).chunk(2, dim=1)
        if not self.levels:
            sigma = (log_precision / -2).exp().clamp_min(SCALE_FLOOR)
            return RealValues(Normal(self.units.to_stored(location), self.units.scale * sigma, validate_args=False))
        if self.schema.values == Binary():
            return BernoulliLogits(2 * location * log_precision.exp())
        return NoisyLevels(location, log_precision.exp(), self.schema.values)


@final
class NoisyLevels(IndependentValues):
    """Independent values of K levels: p(v) proportional to exp(-precision / 2 (y_v - location)^2), y_v in [-1, 1].

    Args:
        location, precision: `[B, *event_shape]`.
    """

    def __init__(self, location: Tensor, precision: Tensor, values: Values) -> None:
        self.location, self.precision = location, precision.expand_as(location)
        self.values, self.half = values, (values.levels - 1) / 2
        super().__init__(location.shape[0], location.shape[1:])

    def each(self, value: Tensor) -> Tensor:
        _, log_total = posterior(self.location, self.precision, self.values.levels)
        off = (value.to(self.location.dtype) - self.values.low) / self.half - 1 - self.location
        return -off.square() * self.precision / 2 - log_total

    @property
    def mean(self) -> Tensor:
        mean, _ = posterior(self.location, self.precision, self.values.levels)
        return ((mean + 1) * self.half).clamp(0, self.values.levels - 1) + self.values.low

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        told = [
            self._logits(i).code(coder, None if value is None else value[i : i + 1]) for i in range(self.batch_shape[0])
        ]
        return torch.cat(told)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        rows = [self._logits(i).sample(sample_shape) for i in range(self.batch_shape[0])]
        return torch.cat(rows, len(sample_shape))

    def _logits(self, i: int) -> CategoricalLogits:
        """Return the distribution of example i with logits for all K values."""
        index = torch.arange(self.values.levels, dtype=self.location.dtype, device=self.location.device)
        off = (index / self.half - 1).view(-1, *[1] * len(self.event_shape)) - self.location[i]
        return CategoricalLogits((off.square() * self.precision[i] / -2).unsqueeze(0), self.values)
