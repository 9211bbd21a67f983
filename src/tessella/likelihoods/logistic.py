"""Bytes as a mixture of discretised logistics with linear channel dependence."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from tessella.contracts import Likelihood
from tessella.errors import SpecError
from tessella.likelihoods.units import Units, checked, require_values
from tessella.records import Schema

LOG_SCALE_MIN, LOG_SCALE_MAX = -7.0, 7.0
HALF_BIN = 1 / 255


@final
class LogisticMixture(Likelihood):
    """Bytes: a mixture of K logistics on the line, each bin of which is one value (Salimans et al. 2017, 2.1-2.2).

    With values y = x / 127.5 - 1 and the channels of one pixel in order,

        p(pixel) = sum_k pi_k prod_c [F((y_c + 1/255 - mu_kc) / s_kc) - F((y_c - 1/255 - mu_kc) / s_kc)],
        mu_kc = m_kc + sum_(j < c) tanh(a_kcj) y_j,   F the logistic function,

    where x = 0 takes the whole lower tail and x = 255 the upper one, so that it sums to one. log s is held in [-7, 7].

    Parameters: `[B, K * (1 + 2 C + C (C - 1) / 2), *spatial]`, blocks of K channels: the mixture's logits; the
    locations m of channel 0, 1, ...; the log scales of channel 0, 1, ...; the coefficients a of the pairs
    (1, 0), (2, 0), (2, 1), ... The values of a vector `(D,)` are independent given z: parameters `[B, 3 * K * D]`, read as
    `[B, 3 * K, D]` with the same blocks.

    Args:
        mixtures: K.

    Raises:
        SpecError: if the values are not bytes, a picture has more than 4 channels, or K < 1.
    """

    def __init__(self, schema: Schema, mixtures: int = 10) -> None:
        super().__init__(schema)
        require_values(
            schema, "bytes", "logistic", f"use --likelihood {'bernoulli' if schema.values == 'binary' else 'gaussian'}"
        )
        if mixtures < 1:
            raise SpecError(f"the logistic likelihood needs at least one mixture component, not {mixtures}")
        self.channels = schema.shape[0] if len(schema.shape) > 1 else 1
        if self.channels > 4:
            raise SpecError(
                f"the logistic likelihood takes 1 to 4 channels, not {self.channels}: use --likelihood categorical"
            )
        self.mixtures = mixtures
        self.units = Units(schema)

    @property
    def parameter_channels(self) -> int:
        numbers = self.mixtures * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)
        return numbers if len(self.schema.shape) > 1 else numbers * self.schema.shape[0]

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Equal weights, locations spread over [-1, 1], scales of about half their distance, no channel dependence."""
        k = self.mixtures
        per_pixel = torch.zeros(k * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2))
        locations, scales = per_pixel[k : k + 2 * k * self.channels].view(2, self.channels, k)
        locations.copy_((2 * torch.arange(k) + 1) / k - 1)
        scales.fill_(-math.log(k + 2))
        return per_pixel if len(self.schema.shape) > 1 else per_pixel.repeat_interleave(self.schema.shape[0])

    def forward(self, parameters: Tensor) -> Distribution:
        parameters = checked(parameters, self.schema, self.parameter_channels)
        positions = math.prod(self.schema.shape) // self.channels
        pixels = parameters.reshape(parameters.shape[0], -1, positions)
        return LogisticMixtureBytes(pixels, self.mixtures, self.channels, self.schema.shape)


@final
class LogisticMixtureBytes(Distribution):
    """The distribution of `LogisticMixture`, over bytes of shape `[B, *shape]`.

    Args:
        parameters: `[B, K * (1 + 2 C + C (C - 1) / 2), positions]`, laid out as `LogisticMixture` says.
        mixtures: K.
        channels: C, the values at one position that depend on one another.
        shape: the event shape, C * positions numbers, channels first.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, parameters: Tensor, mixtures: int, channels: int, shape: tuple[int, ...]) -> None:
        self.parameters, self.mixtures, self.channels = parameters, mixtures, channels
        super().__init__(parameters.shape[:1], torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        batch, _, positions = self.parameters.shape
        with torch.autocast(self.parameters.device.type, enabled=False):
            y = value.reshape(batch, self.channels, positions).to(self.parameters.dtype) / 127.5 - 1
            return _log_prob(self.parameters, y, self.mixtures).sum(1)

    @property
    def mean(self) -> Tensor:
        logits, locations, log_scales, coefficients = _split(self.parameters, self.mixtures, self.channels)
        scales = log_scales.exp()
        means: list[Tensor] = []
        for c in range(self.channels):
            location = locations[:, c]
            for j, mean in enumerate(means):
                location = location + coefficients[:, c * (c - 1) // 2 + j] * mean
            # E[clamp(location + scale * logistic noise, -1, 1)], the integral of the distribution function
            s = scales[:, c]
            rise = F.softplus((location + 1) / s) - F.softplus((location - 1) / s)
            means.append((s * rise - 1).clamp(-1, 1))
        y = torch.einsum("bkn,bckn->bcn", logits.softmax(1), torch.stack(means, 1))
        return ((y + 1) * 127.5).clamp(0, 255).reshape(-1, *self.event_shape)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            parameters = self.parameters.expand(*sample_shape, *self.parameters.shape).flatten(0, -3)
            logits, locations, log_scales, coefficients = _split(parameters, self.mixtures, self.channels)
            gumbel = -torch.empty_like(logits).exponential_().log()
            chosen = (logits + gumbel).argmax(1)[:, None, None]

            def of_chosen(p: Tensor) -> Tensor:
                return p.gather(2, chosen.expand(-1, p.shape[1], -1, -1)).squeeze(2)

            locations, log_scales, coefficients = map(of_chosen, (locations, log_scales, coefficients))
            uniform = torch.rand_like(locations).clamp_(1e-7, 1 - 1e-7)
            noise = log_scales.exp() * (uniform.log() - torch.log1p(-uniform))
            values: list[Tensor] = []
            for c in range(self.channels):
                location = locations[:, c]
                for j, earlier in enumerate(values):
                    location = location + coefficients[:, c * (c - 1) // 2 + j] * (earlier / 127.5 - 1)
                values.append(((location + noise[:, c] + 1) * 127.5).round().clamp(0, 255))
            return torch.stack(values, 1).reshape(*sample_shape, *self.batch_shape, *self.event_shape)


def _split(parameters: Tensor, mixtures: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits `[B, K, N]`, locations, log scales `[B, C, K, N]` and coefficients `[B, C (C - 1) / 2, K, N]`."""
    batch, _, positions = parameters.shape
    blocks = parameters.reshape(batch, -1, mixtures, positions)
    locations = blocks[:, 1 : 1 + channels]
    log_scales = blocks[:, 1 + channels : 1 + 2 * channels].clamp(LOG_SCALE_MIN, LOG_SCALE_MAX)
    return blocks[:, 0], locations, log_scales, blocks[:, 1 + 2 * channels :].tanh()


def _log_prob(parameters: Tensor, y: Tensor, mixtures: int) -> Tensor:
    """log p `[B, N]` of `y` `[B, C, N]` in network units."""
    channels = y.shape[1]
    logits, locations, log_scales, coefficients = _split(parameters, mixtures, channels)
    residuals = []
    for c in range(channels):
        location = locations[:, c]
        for j in range(c):
            location = location + coefficients[:, c * (c - 1) // 2 + j] * y[:, j, None]
        residuals.append(y[:, c, None] - location)
    inverse = (-log_scales).exp()
    half = inverse * HALF_BIN
    middle = torch.stack(residuals, 1) * inverse
    y = y[:, :, None]
    # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)); the tails leave out the factors of the edge they do not have
    below = F.softplus(-(middle + half)) * (y < 1 - HALF_BIN)
    above = F.softplus(middle - half) * (y > -1 + HALF_BIN)
    inside = torch.log(-torch.expm1(-2 * half)) * (y.abs() < 1 - HALF_BIN)
    return torch.logsumexp(logits.log_softmax(1) + (inside - below - above).sum(1), 1)
