"""A likelihood with an option."""

from __future__ import annotations

from typing import Annotated, final

import torch
from torch import Tensor
from torch.distributions import Laplace as ElementwiseLaplace

from tessella import Schema
from tessella.plugin import (
    Likelihood,
    LikelihoodConfig,
    Range,
    RealValues,
    Standardizer,
    StoredValues,
    checked_parameters,
    register,
    require_values,
)


@register("likelihood", "laplace", summary="real values, absolute error as a likelihood", values=("real",))
class Laplace(LikelihoodConfig):
    """Laplace likelihood of real values, independent given z.

    Attributes:
        sharpness: inverse scale, in units of the data's standard deviation.
    """

    sharpness: Annotated[float, Range(1e-3, 1e3)] = 4.0

    def build(self, schema: Schema) -> LaplaceModule:
        return LaplaceModule(schema, self.sharpness)


@final
class LaplaceModule(Likelihood):
    """p(x | z) = prod_d Laplace(x_d; mu_d, sigma_d / sharpness), where sigma_d is the data's deviation."""

    def __init__(self, schema: Schema, sharpness: float) -> None:
        super().__init__(schema)
        require_values(schema, "laplace", "real")
        self.units, self.sharpness = Standardizer(schema), sharpness

    @property
    def parameter_channels(self) -> int:
        return self.schema.channels

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Zeros: the training split's mean."""
        return torch.zeros(self.parameter_channels)

    def forward(self, parameters: Tensor) -> StoredValues:
        location = self.units.to_stored(checked_parameters(parameters, self.schema, self.parameter_channels))
        scale = (self.units.scale / self.sharpness).to(location).expand_as(location)
        return RealValues(ElementwiseLaplace(location, scale, validate_args=False))
