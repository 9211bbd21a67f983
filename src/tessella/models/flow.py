"""Flow model: z = f(x + u) with f invertible, so the distortion is 0 and the rate is the whole bound."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.types import _size

from tessella.core.contracts import Likelihood, Prior, StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.outputs import Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.flows.dequantise import Dequantizer, UniformDequantizer, VariationalDequantizer
from tessella.flows.multiscale import MultiscaleFlow
from tessella.flows.transforms import Transform
from tessella.flows.vectors import VectorFlow
from tessella.foundation.errors import SpecError
from tessella.likelihoods.shared import IndependentValues, Standardizer, require_complete
from tessella.models.base import Model
from tessella.models.spec import ModelConfig
from tessella.priors.logistic import StandardLogistic
from tessella.priors.normal import StandardNormalModule

NEAR = 1e-3
"""Distance, in units of the data's scale, up to which two real values count as equal."""


@final
class FlowModel(Model):
    """Flow p(z) with z = f(y): log p(y) = log p(z) + log |det df/dy| (Dinh et al. 2017, section 3.1).

    Discrete values are dequantised, y = x + u with u ~ q(u | x): q(z | x) is the image of q(u | x) under f, and p(x |
    z) is 1 for the x whose cell contains f^-1(z). So the distortion is 0 and the rate is log q(u | x) - log p(x + u),
    whose mean over u bounds -log p(x). Real values are y themselves: z is a function of x, and the rate is exactly -log
    p(x).

    In training mode the networks inside f follow the autocast. Otherwise they are float32, in f and in its inverse,
    because the inverse must use the same numbers; z of pictures is then float64.

    Args:
        name, config: as in `Model`.
        schema: description of one example.
        flow: f, on network units `[B, *shape]`.
        prior: p(z), of the same shape.
        dequantizer: q(u | x); None for real values.
    """

    likelihood: DeltaLikelihood
    learning_rate = 1e-3

    def __init__(
        self,
        name: str,
        schema: Schema,
        *,
        flow: Transform,
        prior: Prior,
        dequantizer: Dequantizer | None,
        config: ModelConfig | None = None,
    ) -> None:
        super().__init__(name, DeltaLikelihood(schema), config, conditional=False)
        self.flow, self.prior, self.dequantizer = flow, prior, dequantizer
        self.latent_shape = schema.shape

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        if draws is not None:
            return self._of_draws(x, noise, draws)
        rate = self.rate(self.encode(x, noise=noise)).total
        return Terms(torch.zeros_like(rate), rate)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        """Map x to z; without `noise` u is 1/2, the middle of each value's cell.

        The trace holds log q(u | x) and the log-determinant.
        """
        y = self.likelihood.to_network(x)
        lowered = self.training and torch.is_autocast_enabled(y.device.type)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=lowered):
            log_q = y.new_zeros(len(y))
            if self.dequantizer is not None and noise is not None:
                u, log_q = self.dequantizer(y, noise.split("dequantisation"))
                y = y + (u - 0.5) / self.likelihood.unit
            z, log_det = self.flow(y)
        return Latent(z, trace=(log_q, log_det))

    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate:
        log_q, log_det = latent.trace
        with torch.autocast(latent.z.device.type, enabled=False):
            log_p = self.prior(None).log_prob(latent.z) + log_det - self.likelihood.log_unit
        return Rate((log_q - log_p).float())

    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
        with torch.autocast(z.device.type, enabled=False):
            return self.likelihood(self.flow.inverse(z))

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Tensor:
        return self.prior.sample(count, Noise(seed, stream="prior"), sampling=self.reject_truncation(sampling))

    def compile_networks(self) -> None:
        self.flow.compile()

    def _of_draws(self, x: Tensor, noise: Noise | None, draws: int) -> Terms:
        """Compute the terms for `draws` values of u per example; the noise's first axis stays the examples."""
        rate = self.rate(self.encode(x.repeat_interleave(draws, 0), noise=noise)).total
        each = rate.view(len(x), draws)
        return Terms(torch.zeros_like(each[:, 0]), each.mean(1), log_weights=-each.T)


@final
class DeltaLikelihood(Likelihood):
    """Likelihood p(x | z) of a flow: probability one on the x that z stands for.

    Parameters: `[B, C, *spatial]`, f^-1(z) in network units. The cells of n discrete values from `low` on are centred
    at (x - low + 1/2 - n / 2) / s, where s is the level of sounds and n / 2 else; real values are standardised.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_complete(schema, "flow")
        self.discrete = schema.values.discrete
        self.units = Standardizer(schema)
        self.low, self.levels, half = schema.values.low, schema.values.levels, schema.values.levels / 2
        self.unit = schema.level or half
        self.middle = half / self.unit if self.discrete else 0.0
        scale = self.units.scale.double().log()
        self.log_unit = (
            schema.dims * math.log(self.unit) if self.discrete else float(scale.sum()) * schema.dims / scale.numel()
        )
        """Log-volume in stored units of a unit cell in network units, in nats."""

    @property
    def parameter_channels(self) -> int:
        return self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        if not self.discrete:
            return self.units.to_network(x)
        return (x.to(torch.float32) - self.low + 0.5) / self.unit - self.middle

    def initial_bias(self) -> None:
        """Return None: there is no decoder."""

    def forward(self, parameters: Tensor) -> StoredValues:
        if not self.discrete:
            return Delta(self.units.to_stored(parameters), NEAR * self.units.scale)
        cell = torch.floor((parameters + self.middle) * self.unit)
        return Delta(cell.clamp(0, self.levels - 1) + self.low, 0.5)


@final
class Delta(IndependentValues):
    """One value per example with probability one; for real values `log_prob` only tests equality."""

    def __init__(self, value: Tensor, near: Tensor | float) -> None:
        self.value, self.near = value, near
        super().__init__(len(value), value.shape[1:])

    def each(self, value: Tensor) -> Tensor:
        far = (value.to(self.value.dtype) - self.value).abs() > self.near
        return torch.zeros_like(self.value).masked_fill(far, -math.inf)

    @property
    def mean(self) -> Tensor:
        return self.value

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        raise SpecError(
            "a flow cannot code x given z, because its z has no lossless code: use a vae or vqvae", code="no-code"
        )


def build_flow_model(
    config: ModelConfig,
    schema: Schema,
    *,
    width: int | None,
    depth: int,
    steps: int | None,
    components: int | None,
    variational: bool,
) -> FlowModel:
    """Make a multi-scale coupling flow of signals and pictures, or a flow of autoregressive splines for vectors.

    Args:
        variational: how discrete values become real ones: by a learned distribution, else by uniform noise.
    """
    width = width or (64 if not schema.rank or schema.shape[0] >= 3 else 32)
    flow = (
        MultiscaleFlow(schema.shape, mixtures=components or 5, steps=steps or 0, width=width, depth=depth)
        if schema.rank
        else VectorFlow(schema.dims, bins=components or 16, steps=steps or 3, width=width, depth=depth)
    )
    dequantizer: Dequantizer | None = None
    if schema.values.discrete:
        dequantizer = VariationalDequantizer(schema.shape, width=32, depth=2) if variational else UniformDequantizer()
    prior = (StandardLogistic if schema.rank else StandardNormalModule)(schema.shape)
    return FlowModel(config.name, schema, flow=flow, prior=prior, dequantizer=dequantizer, config=config)
