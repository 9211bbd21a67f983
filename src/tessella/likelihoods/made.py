"""Likelihood of binary values whose channels depend on one another, by one masked hidden layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder, code_bits, of_observed
from tessella.core.observed import observed, zero_filled
from tessella.core.schema import Schema
from tessella.likelihoods.shared import Standardizer, checked_parameters, over_channels, require_values

UNITS = 4
"""Hidden units for each channel."""
GAIN = 10.0
"""Factor on logits and weights: keys are rarely pressed, and an optimiser's small steps take long to logits of -5."""


@final
class MADEModule(Likelihood):
    """Likelihood of binary values, each given z and the channels before it at the same position.

    It is a masked autoencoder (Germain et al. 2015, "MADE", section 3) with parameters from the decoder:

        logit_c = 10 a_c + sum_(j<c) W_cj x_j + sum_m U_cm silu(b_m + sum_j V_mj x_j),

    where unit m sees the channels up to a channel d(m), and only the channels after d(m) see it. So the keys of a chord
    are not independent. Positions are independent given z. A value that is missing counts as 0 for the others. The
    numbers of a vector count as channels.

    Parameters: `[B, C + 4 C, *spatial]`, a and b.

    Raises:
        SpecError: if the values are not binary.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        require_values(schema, "made", "binary")
        channels = self.channels = schema.shape[0]
        self.units = Standardizer(schema)
        last = torch.arange(channels).repeat_interleave(UNITS)  # the last channel that each unit sees
        self.direct = nn.Parameter(torch.zeros(channels, channels))
        self.into = nn.Parameter(torch.randn(UNITS * channels, channels) / (GAIN * channels**0.5))
        self.out = nn.Parameter(torch.zeros(channels, UNITS * channels))
        self.register_buffer("seen", (torch.arange(channels) <= last[:, None]).float(), persistent=False)
        self.seen: Tensor
        self.register_buffer("later", (torch.arange(channels)[:, None] > last).float(), persistent=False)
        self.later: Tensor

    @property
    def parameter_channels(self) -> int:
        return (1 + UNITS) * self.channels

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return zeros: both values are about equally probable."""
        return torch.zeros(self.parameter_channels)

    def forward(self, parameters: Tensor) -> StoredValues:
        return MADEValues(self, checked_parameters(parameters, self.schema, self.parameter_channels))

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return W `[C, C]`, V `[M, C]` and U `[C, M]`, masked."""
        direct, into, out = self.direct.tril(-1), self.into * self.seen, self.out * self.later
        return GAIN * direct.to(dtype), GAIN * into.to(dtype), GAIN * out.to(dtype)


@final
class MADEValues(StoredValues):
    """Distribution of `MADEModule`; a position's channels are sampled and coded one after another.

    Args:
        likelihood: likelihood whose weights are used.
        parameters: `[B, 5 C, *spatial]`.
    """

    def __init__(self, likelihood: MADEModule, parameters: Tensor) -> None:
        self.likelihood = likelihood
        channels, maps = likelihood.channels, parameters.reshape(*parameters.shape[:2], -1)
        logits, self.hidden = maps.split((channels, UNITS * channels), 1)  # [B, ., N]
        self.logits = GAIN * logits
        super().__init__(len(parameters), (channels, *parameters.shape[2:]))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._each(value).flatten(1).sum(1)

    def by_position(self, value: Tensor) -> Tensor:
        return over_channels(self._each(value).view(self.batch_shape + self.event_shape))

    def _each(self, value: Tensor) -> Tensor:
        """Compute log p of each value given those before it, `[B, C, N]`: 0 where it is not observed."""
        seen = observed(value)
        with torch.autocast(self.logits.device.type, enabled=False):
            x = zero_filled(value).reshape(self.logits.shape).to(self.logits.dtype)
            direct, into, out = self.likelihood.weights(self.logits.dtype)
            logits = self.logits + direct @ x + out @ F.silu(self.hidden + into @ x)
            each = -F.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return each if seen is None else each.masked_fill(~seen.reshape(each.shape), 0)

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        known = None if value is None else value.nan_to_num().reshape(self.logits.shape)
        seen = None if observed is None else observed.reshape(len(self.logits), -1, self.logits.shape[2])

        def choose(logit: Tensor, c: int) -> Tensor:
            here = None if seen is None else seen[:, c % seen.shape[1]]
            bits = code_bits(of_observed(coder, here), logit, None if known is None else known[:, c])
            return bits.to(logit.dtype)

        told = self._one_after_another(choose)
        return told if seen is None else told.masked_fill(~seen.expand_as(self.logits).reshape(told.shape), torch.nan)

    @property
    def mean(self) -> Tensor:
        """Return the probability that each value is 1, given the likelier values of the channels before it."""
        p = torch.empty_like(self.logits)

        def choose(logit: Tensor, c: int) -> Tensor:
            p[:, c] = torch.sigmoid(logit)
            return (logit > 0).to(logit.dtype)

        self._one_after_another(choose)
        return p.view(self.batch_shape + self.event_shape)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        if len(sample_shape):
            return torch.stack([self.sample(sample_shape[1:]) for _ in range(sample_shape[0])])
        return self._one_after_another(lambda logit, c: torch.bernoulli(torch.sigmoid(logit)))

    @torch.no_grad()
    def _one_after_another(self, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Choose each channel `[B, N]` by its logit given the channels before it; return all, `[B, *event_shape]`."""
        direct, into, out = self.likelihood.weights(self.logits.dtype)
        logits, hidden = self.logits.clone(), self.hidden.clone()
        x = torch.zeros_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for c in range(self.likelihood.channels):
                x[:, c] = choose(logits[:, c] + (out[c, :, None] * F.silu(hidden)).sum(1), c)
                logits += direct[:, c, None] * x[:, None, c]
                hidden += into[:, c, None] * x[:, None, c]
        return x.view(self.batch_shape + self.event_shape)
