"""Mixture of discretised logistics for integers, with linear dependence between channels."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import StoredValues
from tessella.core.entropy_coding import SymbolCoder, code_from_cdf, of_observed
from tessella.core.schema import Schema, Values
from tessella.foundation.errors import SpecError, option
from tessella.likelihoods.history import LocatedLikelihood
from tessella.likelihoods.shared import Standardizer, checked_parameters, require_values

LOG_SCALE_MIN, LOG_SCALE_MAX = -7.0, 7.0
"""Smallest log scale for 256 levels (lower for more levels), and the largest."""
COARSE = 256
"""Largest number of levels that float32 distinguishes in network units."""
EDGE_CAP = 20.0
HUGE = 1e38
CHUNK = 1 << 18
"""Numbers of an intermediate result processed at once on a CPU: a megabyte per thread, by measurement."""


@final
class LogisticMixtureModule(LocatedLikelihood):
    """Mixture of K logistics, discretised so that each bin is one integer (Salimans et al. 2017, 2.1-2.2).

    With n levels, half a bin h = 1 / (n - 1), values y = 2 h (x - low) - 1 and the channels of one position in order,

        p(position) = sum_k pi_k prod_c [F((y_c + h - mu_kc) / s_kc) - F((y_c - h - mu_kc) / s_kc)],
        mu_kc = m_kc + sum_(j < c) tanh(a_kcj) y_j,   F the logistic function,

    where the lowest value takes the whole lower tail and the highest the upper one, so that it sums to one. log s is
    clamped to [-7 - log((n - 1) / 255), 7]; so log p and its gradient are finite for all parameters up to 1e30.

    Parameters: `[B, K * (1 + 2 C + C (C - 1) / 2), *spatial]`, blocks of K channels: the mixture's logits; the
    locations m of channel 0, 1, ...; the log scales of channel 0, 1, ...; the coefficients a of the pairs (1, 0), (2,
    0), (2, 1), ... Locations and scales of sounds are in units of the level of the training split. The values of a
    vector `(D,)` are independent given z: parameters `[B, 3 * K * D]`, read as `[B, 3 * K, D]` with the same blocks.

    Raises:
        SpecError: if the values are not integers, or a position has more than 4 channels.
    """

    def __init__(self, schema: Schema, components: int) -> None:
        super().__init__(schema)
        require_values(schema, "logistic", "integers")
        self.is_vector = not schema.rank
        self.channels = 1 if self.is_vector else schema.shape[0]
        if self.channels > 4:
            raise SpecError(
                f"the logistic likelihood takes 1 to 4 channels, got {self.channels}: "
                f"use {option('likelihood')} categorical",
                code="channels",
            )
        self.mixtures = components
        self.units = Standardizer(schema, by_level=True)
        self.log_gain = math.log(schema.values.span / 2 / schema.level) if schema.level else 0.0
        self.least_log_scale = _least_log_scale(schema.values.levels) + self.log_gain

    @property
    def parameter_channels(self) -> int:
        return self._parameters_per_position * (self.schema.dims if self.is_vector else 1)

    @property
    def _parameters_per_position(self) -> int:
        return self.mixtures * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def _in_half_ranges(self, parameters: Tensor) -> Tensor:
        """Convert locations and scales in units of the level, `[B, P, N]`, to those of half the range."""
        parameters, count = parameters.to(_precision(parameters)), self.locations
        moved = parameters.new_zeros(self._parameters_per_position)
        moved[self.mixtures + count : self.mixtures + 2 * count] = -self.log_gain
        factor = torch.ones_like(moved)
        factor[self.mixtures : self.mixtures + count] = math.exp(-self.log_gain)
        return torch.addcmul(moved[:, None], parameters, factor[:, None])

    def initial_bias(self) -> Tensor:
        """Return equal weights, locations spread over [-1, 1] and independent channels: 7.5 bits per value on
        photographs.

        Scales start at exp(-1.5) or more: a pixel's channels share their component, so narrow ones would force grey.
        """
        bias = torch.zeros(self._parameters_per_position // self.mixtures, self.mixtures)
        bias[1 : 1 + self.channels] = (2 * torch.arange(self.mixtures) + 1) / self.mixtures - 1
        bias[1 + self.channels : 1 + 2 * self.channels] = -min(1.5, math.log(self.mixtures + 2))
        return bias.flatten().repeat_interleave(self.schema.dims if self.is_vector else 1)

    @property
    def locations(self) -> int:
        return self.channels * self.mixtures

    def around(self, predictions: Tensor, parameters: Tensor) -> Tensor:
        """Place the locations; channels depend on how much earlier ones differ from their predictions."""
        count = self.channels
        parts = parameters.unflatten(1, (-1, self.mixtures))
        near = predictions.unflatten(1, (count, self.mixtures))
        logits, offsets, log_scales, coefficients = parts.split([1, count, count, parts.shape[1] - 1 - 2 * count], 1)
        scales = log_scales.clamp(self.least_log_scale, 0.0).exp()
        locations, slopes = list((near + offsets * scales).unbind(1)), coefficients.tanh()
        for i, (c, j) in enumerate(_pairs(count)):
            locations[c] = locations[c] - slopes[:, i] * near[:, j]
        return torch.cat([logits, torch.stack(locations, 1), log_scales, coefficients], 1).flatten(1, 2)

    def residual_bias(self) -> Tensor:
        """Return equal weights, locations 0, and scales from half a level to a tenth of the range."""
        finest = math.log(1 / (self.schema.values.levels - 1)) + self.log_gain
        bias = torch.zeros(self._parameters_per_position // self.mixtures, self.mixtures)
        bias[1 + self.channels : 1 + 2 * self.channels] = torch.linspace(finest, -2.3, self.mixtures)
        return bias.flatten()

    def forward(self, parameters: Tensor) -> StoredValues:
        checked_parameters(parameters, self.schema, self.parameter_channels)
        shape = (self.schema.shape[0], *parameters.shape[2:])
        parameters = parameters.reshape(parameters.shape[0], self._parameters_per_position, -1)
        if self.log_gain:
            parameters = self._in_half_ranges(parameters)
        return LogisticMixtureValues(parameters, self.mixtures, self.channels, shape, self.schema.values)


@final
class LogisticMixtureValues(StoredValues):
    """Distribution of `LogisticMixture` over integers of shape `[B, *shape]`.

    Args:
        parameters: `[B, K * (1 + 2 C + C (C - 1) / 2), positions]`, laid out as in `LogisticMixtureModule`, in any
            precision and memory format; they are converted piece by piece where they are used.
        mixtures: K.
        channels: C, the values at one position that depend on one another.
        shape: the event shape, C * positions numbers, channels first.
        values: description of the values: the lowest one and the number of levels.
    """

    def __init__(
        self, parameters: Tensor, mixtures: int, channels: int, shape: tuple[int, ...], values: Values
    ) -> None:
        self.parameters, self.mixtures, self.channels = parameters, mixtures, channels
        self.low, self.levels, self.half = values.low, values.levels, (values.levels - 1) / 2
        super().__init__(parameters.shape[0], shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._each(value).sum(1)

    def by_position(self, value: Tensor) -> Tensor:
        return self._each(value).reshape(-1, *(self.event_shape[1:] or self.event_shape))

    def _each(self, value: Tensor) -> Tensor:
        """Compute log p of each position, `[B, N]`: 0 if no channel of it is observed, NaN if only some are."""
        parameters = self.parameters
        index = self._index(value)
        with_gradient = torch.is_grad_enabled() and parameters.requires_grad
        absent = index.isnan().all(1) if index.is_floating_point() else None
        if absent is not None:
            index = index.masked_fill(absent[:, None], 0)
        with torch.autocast(parameters.device.type, enabled=False):
            each = _LogProb.apply(parameters, index, self.mixtures, self.levels, with_gradient)
            return each if absent is None else each.masked_fill(absent, 0)

    def _index(self, value: Tensor) -> Tensor:
        """Convert stored values to integers from 0, `[B, C, N]`."""
        value = value.reshape(self.parameters.shape[0], self.channels, self.parameters.shape[2])
        return value - self.low if self.low else value

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """Write or read channel by channel: p(x_c | x_<c) is a mixture.

        Its weights are pi_k prod_(j < c) p_k(x_j | x_<j).
        """
        batch, _, positions = self.parameters.shape
        known = None if value is None else self._index(value).nan_to_num()
        seen = None if observed is None else observed.reshape(batch, positions)
        step = max(1, CHUNK // (self.mixtures * positions))
        told = [
            self._told(
                of_observed(coder, None if seen is None else seen[rows]),
                self.parameters[rows],
                None if known is None else known[rows],
            )
            for rows in (slice(first, first + step) for first in range(0, batch, step))
        ]
        index = torch.cat(told).float()
        index = index if seen is None else index.masked_fill(~seen[:, None], torch.nan)
        return index.view(self.batch_shape + self.event_shape) + self.low

    def _told(self, coder: SymbolCoder, parameters: Tensor, known: Tensor | None) -> Tensor:
        """Write or read a few examples, `[b, C, N]`. The coder takes one symbol of each position at a time."""
        precise = parameters.double() if self.levels > COARSE else parameters
        logits, locations, log_scales, coefficients = self._split(precise)
        bits = 2 * -(-(self.levels - 1).bit_length() // 2)
        values: list[Tensor] = []
        for c in range(self.channels):
            location, inverse, weights = locations[:, c], log_scales[:, c].neg().exp(), logits.softmax(1)
            for j, earlier in enumerate(values):
                slope = coefficients[:, c * (c - 1) // 2 + j]
                location = location + slope * (earlier / self.half - 1).unsqueeze(1)
            offset = (-1 - 0.5 / self.half - location) * inverse
            rise = inverse / self.half

            def below(t: Tensor, offset: Tensor = offset, rise: Tensor = rise, weights: Tensor = weights) -> Tensor:
                total = torch.addcmul(offset, rise, t.unsqueeze(1)).sigmoid_().mul_(weights).sum(1)
                return total if self.levels == 1 << bits else total.masked_fill_(t >= self.levels, 1.0)

            here = None if known is None else known[:, c].to(offset.dtype)
            values.append(code_from_cdf(coder, below, bits, here, torch.zeros_like(offset[:, 0])))
            if c + 1 < self.channels:
                logits = logits + _log_bins(values[-1].unsqueeze(1), offset, rise, self.levels)
        return torch.stack(values, 1)

    @property
    def mean(self) -> Tensor:
        """Return E[x], computed channel by channel with the earlier channels at their means.

        Each component's logistic is cut at both ends but not rounded: its mean is s (softplus((m + 1) / s) -
        softplus((m - 1) / s)) - 1 in network units. Rounding would change that by at most 0.2 of a value, at the
        smallest scales. What an earlier channel loses at the ends affects the next one only through its mean.
        """
        with torch.autocast(self.parameters.device.type, enabled=False):
            logits, locations, log_scales, coefficients = self._split(self.parameters)
            means: list[Tensor] = []
            for c in range(self.channels):
                location = locations[:, c]
                for j, mean in enumerate(means):
                    location = location + coefficients[:, c * (c - 1) // 2 + j] * mean
                location, s = location.clamp(-1e4, 1e4), log_scales[:, c].exp()
                rise = F.softplus((location + 1) / s) - F.softplus((location - 1) / s)
                means.append((s * rise - 1).clamp(-1, 1))
            y = (logits.softmax(1).unsqueeze(1) * torch.stack(means, 1)).sum(2)
            return ((y + 1) * self.half).reshape(-1, *self.event_shape) + self.low

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            parameters = self.parameters.expand(*sample_shape, *self.parameters.shape).flatten(0, -3)
            logits, locations, log_scales, coefficients = self._split(parameters)
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
                    location = location + coefficients[:, c * (c - 1) // 2 + j] * (earlier / self.half - 1)
                index = ((location + noise[:, c] + 1) * self.half).round().clamp(0, self.levels - 1)
                values.append(index)
            return torch.stack(values, 1).reshape(*sample_shape, *self.batch_shape, *self.event_shape) + self.low

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split into logits `[B, K, N]`, locations and log scales `[B, C, K, N]`, and coefficients `[B, C (C - 1) / 2,
        K, N]`.
        """
        (batch, _, positions), channels = parameters.shape, self.channels
        blocks = parameters.to(_precision(parameters)).reshape(batch, -1, self.mixtures, positions)
        log_scales = blocks[:, 1 + channels : 1 + 2 * channels].clamp(_least_log_scale(self.levels), LOG_SCALE_MAX)
        return blocks[:, 0], blocks[:, 1 : 1 + channels], log_scales, blocks[:, 1 + 2 * channels :].tanh()


def _pairs(channels: int) -> list[tuple[int, int]]:
    """List the channels that depend on an earlier one, with that one, in the order of their coefficients."""
    return [(c, j) for c in range(channels) for j in range(c)]


def _least_log_scale(levels: int) -> float:
    return LOG_SCALE_MIN - math.log((levels - 1) / 255)


def _log_bins(x: Tensor, offset: Tensor, rise: Tensor, levels: int) -> Tensor:
    """Compute log p_k(x) of each component: log[F(b) - F(a)], a and b = offset + rise t at t = x and x + 1.

    Computed on the side where both are small, if need be as F(-a) - F(-b), so that little cancels.
    """
    a = torch.addcmul(offset, rise, x)
    b = (a + rise).masked_fill_(x == levels - 1, torch.inf)
    a.masked_fill_(x == 0, -torch.inf)
    side = torch.where(a + b > 0, -1.0, 1.0)
    return ((b * side).sigmoid_() - (a * side).sigmoid_()).mul_(side).clamp_min_(1e-37).log_()


class _LogProb(torch.autograd.Function):
    """log p of each position `[B, N]`, with its gradient computed in the same pass over the parameters.

    For one value with location mu, inverse scale w, m = w (y - mu) and half bin h = w / (n - 1), the difference of
    distribution functions is F(m + h) - F(m - h) = exp(q) F(-q) F(2 h - q) (1 - exp(-2 h)) with q = h - |m|, in which
    nothing cancels and only exp(q) can vanish. At the lower edge it is F(m + h) = exp(q) F(-q) with q = h + m, at the
    upper edge likewise with q = h - m. So the edges need no branch: a huge number added in the right places turns the
    other two factors into one. q is capped there (error below 1e-8 nats) so that F(-q) does not vanish.

    Then d log p / dq = F(-q) + F(2 h - q) - 1, and the rest is the chain rule. The factors of the channels are
    multiplied before the single logarithm. On a CPU a few examples are processed at a time, so that everything stays in
    the cache.
    """

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, value: Tensor, mixtures: int, levels: int, with_gradient: bool) -> Tensor:
        batch, numbers, positions = parameters.shape
        channels, work = value.shape[1], _precision(parameters)
        on_cpu = parameters.device.type == "cpu"
        result = parameters.new_empty(batch, positions, dtype=work)
        # kept in the decoder's precision and layout, except float16, whose range is too small
        kept = torch.float32 if parameters.dtype == torch.float16 else parameters.dtype
        gradient = torch.empty_like(parameters, dtype=kept) if with_gradient else None
        step = max(batch, 1)
        if on_cpu:
            step = max(1, CHUNK * torch.get_num_threads() // (channels * mixtures * positions))
        for start in range(0, batch, step):
            rows = slice(start, start + step)
            part = parameters[rows].to(work, memory_format=torch.contiguous_format)
            blocks = part.view(-1, numbers // mixtures, mixtures, positions)
            into = None if gradient is None else torch.empty_like(blocks)
            result[rows] = _log_prob_and_gradient(blocks, value[rows].to(work), levels, into)
            if gradient is not None and into is not None:
                _store(gradient[rows], into.view_as(part), on_cpu)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None, None, None


def _precision(parameters: Tensor) -> torch.dtype:
    return torch.float64 if parameters.dtype == torch.float64 else torch.float32


def _store(into: Tensor, values: Tensor, on_cpu: bool) -> None:
    """Copy `values` `[b, P, N]` to another precision and layout; on a CPU the 2-d transpose is four times as fast."""
    if on_cpu and into.stride() != values.stride():
        for row, done in zip(into, values.to(into.dtype), strict=True):
            row.t().copy_(done.t())
    else:
        into.copy_(values)


def _log_prob_and_gradient(blocks: Tensor, x: Tensor, levels: int, gradient: Tensor | None) -> Tensor:
    """Compute log p `[b, N]` of values x `[b, C, N]` from 0, and write its derivative to `gradient`.

    The derivative is by `blocks` `[b, -1, K, N]`. With many levels, distances are measured in bins: there x is exact,
    and neighbouring bins meet at one edge.
    """
    channels, half_range, least = x.shape[1], (levels - 1) / 2, _least_log_scale(levels)
    unit = 1.0 if levels <= COARSE else half_range
    logits, locations = blocks[:, 0], blocks[:, 1 : 1 + channels]
    log_scales, coefficients = blocks[:, 1 + channels : 1 + 2 * channels], blocks[:, 1 + 2 * channels :]
    pairs = _pairs(channels)

    y = (x / half_range - 1).unsqueeze(2)  # [b, C, 1, N], as all that has no component
    side = ((x == 0).to(x.dtype) - (x == levels - 1).to(x.dtype)).unsqueeze(2)
    edge = side.abs() * HUGE
    cap = torch.where(side == 0, HUGE, EDGE_CAP if x.dtype == torch.float32 else 2 * EDGE_CAP)

    inverse = log_scales.clamp(least, LOG_SCALE_MAX).neg_().exp_()
    half = inverse * (0.5 / half_range)
    middle = torch.sub(y if unit == 1 else (x - half_range).unsqueeze(2), locations, alpha=unit)  # [b, C, K, N]
    slopes = torch.sigmoid(2 * coefficients).mul_(2).sub_(1)  # tanh
    for i, (c, j) in enumerate(pairs):
        middle[:, c].addcmul_(slopes[:, i], y[:, j], value=-unit)
    middle.mul_(inverse if unit == 1 else inverse / unit)
    sign = (middle - side * HUGE).sign_()
    q = torch.addcmul(half, sign, middle, value=-1)
    q = torch.minimum(q, cap, out=q)
    near = torch.sigmoid(-q)
    far = torch.add(edge, half, alpha=2).sub_(q).sigmoid_()
    width = torch.add(edge, half).mul_(-2).expm1_().neg_()
    total = (near * far).mul_(width).prod(1).log_().add_(q.sum(1)).add_(logits)
    result = total.logsumexp(1) - logits.logsumexp(1)
    if gradient is None:
        return result

    share = total.softmax(1)
    torch.sub(share, logits.softmax(1), out=gradient[:, 0])
    share = share.unsqueeze(1)
    by_q = (near.add_(far).sub_(1)).mul_(share)
    by_location = torch.mul(by_q, sign.mul_(inverse), out=gradient[:, 1 : 1 + channels])
    by_scale = width.reciprocal_().sub_(far).mul_(half).mul_(share).mul_(-2).addcmul_(by_q, q, value=-1)
    inside = torch.ops.aten.hardtanh_backward(by_scale, log_scales, least, LOG_SCALE_MAX)
    gradient[:, 1 + channels : 1 + 2 * channels] = inside
    for i, (c, j) in enumerate(pairs):
        by_slope = (by_location[:, c] * y[:, j]).mul_(slopes[:, i].square().neg_().add_(1))
        gradient[:, 1 + 2 * channels + i] = by_slope
    return result
