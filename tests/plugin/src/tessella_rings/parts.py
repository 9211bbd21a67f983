"""A quantizer and a likelihood, each with an option."""

from __future__ import annotations

from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent
from torch.distributions import Laplace as LaplaceDistribution

from tessella.core.configs import LikelihoodConfig, QuantizerConfig
from tessella.core.contracts import Likelihood, Quantizer
from tessella.core.distributions import PointMass
from tessella.core.outputs import BottleneckOutput
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.foundation.config import Count
from tessella.foundation.registry import register
from tessella.foundation.validation import Range
from tessella.likelihoods.shared import LatentStatistics, require_values


@register("quantizer", "bsq", summary="binary spherical quantisation: a code is the corner nearest to z (Zhao et al. 2024)")
class BSQ(QuantizerConfig):
    """Binary spherical quantisation.

    Attributes:
        bits: numbers in z at each position; a code takes 2^bits values.
    """

    bits: Annotated[int, Range(1, 20)] = 6

    def build(self, feature_shape: tuple[int, ...]) -> BSQModule:
        return BSQModule(feature_shape, self.bits)


@final
class BSQModule(Quantizer):
    """z = u / |u| goes to sign(z) / sqrt(b) (Zhao et al. 2024, section 3.2)."""

    base: Tensor

    def __init__(self, feature_shape: tuple[int, ...], bits: int) -> None:
        super().__init__()
        self.codebook_size = 2**bits
        self.register_buffer("base", 2 ** torch.arange(bits), persistent=False)
        self.head = nn.Linear(feature_shape[0], bits)
        self.latent_shape = (bits, *feature_shape[1:])
        self.code_shape = (1, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            z = F.normalize(self.head(features.float().movedim(1, -1)), dim=-1)
            codes = ((z > 0) * self.base).sum(-1)[:, None].contiguous()
            corners = self.lookup(codes)
            through = z.movedim(-1, 1)
            return BottleneckOutput(corners + through - through.detach(), PointMass(codes))

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Each bit is turned with probability 0.1."""
        codes = self(features, None).posterior.value
        turned = noise.uniform(*codes.shape, len(self.base), device=codes.device) < 0.1
        log_q = torch.where(turned, 0.1, 0.9).log().flatten(1).sum(1)
        return codes ^ (turned * self.base).sum(-1), log_q

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes.movedim(1, -1) // self.base % 2
        return ((2.0 * bits - 1) / len(self.base) ** 0.5).movedim(-1, 1)


@register("likelihood", "laplace", summary="real values, absolute error as a likelihood", values=("real",))
class Laplace(LikelihoodConfig):
    """Laplace likelihood of real values, independent given z.

    Attributes:
        sharpness: inverse scale, in units of the data's standard deviation.
    """

    sharpness: Count = 4

    def build(self, schema: Schema) -> LaplaceModule:
        return LaplaceModule(schema, self.sharpness)


@final
class LaplaceModule(Likelihood):
    """p(x | z) = prod_d Laplace(x_d; mu_d, sigma_d / sharpness)."""

    def __init__(self, schema: Schema, sharpness: int) -> None:
        super().__init__(schema)
        require_values(schema, Real(), "laplace")
        self.units, self.sharpness = LatentStatistics(schema), sharpness

    @property
    def parameter_channels(self) -> int:
        return self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def forward(self, parameters: Tensor) -> Independent:
        location = self.units.to_stored(parameters.float())
        scale = (self.units.scale / self.sharpness).expand_as(location)
        return Independent(LaplaceDistribution(location, scale), location.dim() - 1)
