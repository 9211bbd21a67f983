"""Mixture of discretised logistics for integers, with linear dependence between the values of a block."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.types import _size

from tessella.core.contracts import Likelihood, StoredValues
from tessella.core.entropy_coding import SymbolCoder, code_from_cdf
from tessella.core.schema import Schema, Values
from tessella.foundation.errors import SpecError, option
from tessella.likelihoods.shared import Standardizer, checked_parameters, require_values
from tessella.networks.conv import blocked, unblocked

LOG_SCALE_MIN, LOG_SCALE_MAX = -7.0, 7.0
"""Smallest log scale for 256 levels (lower for more levels), and the largest."""
COARSE = 256
"""Largest number of levels that float32 distinguishes in network units."""
LARGEST_BLOCK = 16
"""Largest number of values of a block."""
EDGE_CAP = 20.0
HUGE = 1e38
CHUNK = 1 << 18
"""Numbers of an intermediate result processed at once on a CPU: a megabyte per thread, by measurement."""


@final
class LogisticMixtureModule(Likelihood):
    """Mixture of K logistics, discretised so that each bin is one integer (Salimans et al. 2017, 2.1-2.2).

    The data is divided into blocks of `block` positions per axis. With n levels, half a bin h = 1 / (n - 1) and values
    y = 2 h (x - low) - 1, the V values of a block in order, position by position and in each channel by channel, have

        p(block) = sum_k pi_k prod_v [F((y_v + h - mu_kv) / s_kv) - F((y_v - h - mu_kv) / s_kv)],
        mu_kv = m_kv + sum_(j < v) tanh(a_kvj) y_j,   F the logistic function,

    where the lowest value takes the whole lower tail and the highest the upper one, so that it sums to one. log s is
    clamped to [-7 - log((n - 1) / 255), 7]; so log p and its gradient are finite for all parameters up to 1e30.
    Neighbours in a picture are alike beyond what z tells, which independent positions would pay for each time.

    Parameters: `[B, K * (1 + 2 V + V (V - 1) / 2), *spatial / block]`, parts of K channels: the mixture's logits; the
    locations m of value 0, 1, ...; the log scales of value 0, 1, ...; the coefficients a of the pairs (1, 0), (2, 0),
    (2, 1), ... The values of a vector `(D,)` are independent given z: parameters `[B, 3 * K * D]`, read as `[B, 3 * K,
    D]` with the same parts.

    Raises:
        SpecError: if the values are not integers, a position has more than 4 channels, or blocks do not fit the data.
    """

    def __init__(self, schema: Schema, components: int, block: int = 1) -> None:
        super().__init__(schema)
        require_values(schema, "logistic", "integers")
        self.is_vector = not schema.rank
        channels = 1 if self.is_vector else schema.shape[0]
        if channels > 4:
            raise SpecError(
                f"the logistic likelihood takes 1 to 4 channels, got {channels}: "
                f"use {option('likelihood')} categorical",
                code="channels",
            )
        self.values = channels * block**schema.rank
        fits = block == 1 if self.is_vector else not any(side % block for side in schema.spatial)
        if not fits or self.values > LARGEST_BLOCK:
            raise SpecError(
                f"blocks of {block} do not divide examples of shape {schema.shape}, or hold more than {LARGEST_BLOCK} "
                f"values: {option('block')} 1 suits all data",
                code="block",
            )
        self.mixtures, self.block = components, block
        self.units = Standardizer(schema)

    @property
    def parameter_channels(self) -> int:
        return self._parameters_per_block * (self.schema.dims if self.is_vector else 1)

    @property
    def _parameters_per_block(self) -> int:
        return self.mixtures * (1 + 2 * self.values + self.values * (self.values - 1) // 2)

    def to_network(self, x: Tensor) -> Tensor:
        return self.units.to_network(x)

    def initial_bias(self) -> Tensor:
        """Return equal weights, locations spread over [-1, 1] and independent values: 7.5 bits per value on
        photographs.

        Scales start at exp(-1.5) or more: a block's values share their component, so narrow ones would force grey.
        """
        bias = torch.zeros(self._parameters_per_block // self.mixtures, self.mixtures)
        bias[1 : 1 + self.values] = (2 * torch.arange(self.mixtures) + 1) / self.mixtures - 1
        bias[1 + self.values : 1 + 2 * self.values] = -min(1.5, math.log(self.mixtures + 2))
        return bias.flatten().repeat_interleave(self.schema.dims if self.is_vector else 1)

    def forward(self, parameters: Tensor) -> StoredValues:
        checked_parameters(parameters, self.schema, self.parameter_channels)
        shape = (self.schema.shape[0], *(self.block * side for side in parameters.shape[2:]))
        parameters = parameters.reshape(parameters.shape[0], self._parameters_per_block, -1)
        return LogisticMixtureValues(parameters, self.mixtures, self.block, shape, self.schema.values)


@final
class LogisticMixtureValues(StoredValues):
    """Distribution of `LogisticMixture` over integers of shape `[B, *shape]`.

    Args:
        parameters: `[B, K * (1 + 2 V + V (V - 1) / 2), blocks]`, laid out as in `LogisticMixtureModule`, in any
            precision and memory format; they are converted piece by piece where they are used.
        mixtures: K.
        block: side of a block, whose V values depend on one another.
        shape: the event shape, V * blocks numbers, channels first.
        values: description of the values: the lowest one and the number of levels.
    """

    def __init__(self, parameters: Tensor, mixtures: int, block: int, shape: tuple[int, ...], values: Values) -> None:
        self.parameters, self.mixtures, self.block = parameters, mixtures, block
        self.values = math.prod(shape) // parameters.shape[2]
        self.positions = block ** (len(shape) - 1)
        self.low, self.levels, self.half = values.low, values.levels, (values.levels - 1) / 2
        super().__init__(parameters.shape[0], shape)

    def log_prob(self, value: Tensor) -> Tensor:
        parameters, index = self.parameters, self._index(value)
        with_gradient = torch.is_grad_enabled() and parameters.requires_grad
        with torch.autocast(parameters.device.type, enabled=False):
            each = _LogProb.apply(parameters, index, self.mixtures, self.levels, self.positions, with_gradient)
            return each.sum(1)

    @torch.no_grad()
    def by_position(self, value: Tensor) -> Tensor:
        """Compute log p of each position given those before it in its block, `[B, *spatial]`, without a gradient."""
        size = self.event_shape[1:] or self.event_shape
        with torch.autocast(self.parameters.device.type, enabled=False):
            each = _in_pieces(self.parameters, self._index(value), self.mixtures, self.levels, self.positions, None)
        blocks = each.reshape(-1, self.positions, *(side // self.block for side in size))
        return unblocked(blocks, self.block).reshape(-1, *size)

    def _index(self, value: Tensor) -> Tensor:
        """Convert stored values to integers from 0 by block, `[B, V, blocks]`."""
        value = value.reshape(self.parameters.shape[0], *self.event_shape)
        blocks = value[:, None] if value.dim() == 2 else blocked(value, self.block)
        return blocks.flatten(2) - self.low if self.low else blocks.flatten(2)

    def _stored(self, index: Tensor) -> Tensor:
        """Invert `_index` for any number of examples."""
        sides = self.event_shape[1:]
        if sides:
            index = unblocked(index.reshape(-1, self.values, *(side // self.block for side in sides)), self.block)
        return index.reshape(-1, *self.event_shape) + self.low

    def code(self, coder: SymbolCoder, value: Tensor | None = None) -> Tensor:
        """Write or read a block's values one after the other: p(x_v | x_<v) is a mixture.

        Its weights are pi_k prod_(j < v) p_k(x_j | x_<j).
        """
        batch, _, blocks = self.parameters.shape
        known = None if value is None else self._index(value)
        step = max(1, CHUNK // (self.mixtures * blocks))
        told = [
            self._told(coder, self.parameters[rows], None if known is None else known[rows])
            for rows in (slice(first, first + step) for first in range(0, batch, step))
        ]
        return self._stored(torch.cat(told).float())

    def _told(self, coder: SymbolCoder, parameters: Tensor, known: Tensor | None) -> Tensor:
        """Write or read a few examples, `[b, V, N]`."""
        precise = parameters.double() if self.levels > COARSE else parameters
        logits, locations, log_scales, coefficients = self._split(precise)
        bits = 2 * -(-(self.levels - 1).bit_length() // 2)
        values: list[Tensor] = []
        for v in range(self.values):
            location = _shifted(locations, coefficients, [(y / self.half - 1).unsqueeze(1) for y in values])
            inverse, weights = log_scales[:, v].neg().exp(), logits.softmax(1)
            offset = (-1 - 0.5 / self.half - location) * inverse
            rise = inverse / self.half

            def below(t: Tensor, offset: Tensor = offset, rise: Tensor = rise, weights: Tensor = weights) -> Tensor:
                total = torch.addcmul(offset, rise, t.unsqueeze(1)).sigmoid_().mul_(weights).sum(1)
                return total if self.levels == 1 << bits else total.masked_fill_(t >= self.levels, 1.0)

            here = None if known is None else known[:, v].to(offset.dtype)
            values.append(code_from_cdf(coder, below, bits, here, torch.zeros_like(offset[:, 0])))
            if v + 1 < self.values:
                logits = logits + _log_bins(values[-1].unsqueeze(1), offset, rise, self.levels)
        return torch.stack(values, 1)

    @property
    def mean(self) -> Tensor:
        """Return E[x], computed value by value with the earlier values of the block at their means.

        Each component's logistic is cut at both ends but not rounded: its mean is s (softplus((m + 1) / s) -
        softplus((m - 1) / s)) - 1 in network units. Rounding would change that by at most 0.2 of a value, at the
        smallest scales. What an earlier value loses at the ends affects the next one only through its mean.
        """
        with torch.autocast(self.parameters.device.type, enabled=False):
            logits, locations, log_scales, coefficients = self._split(self.parameters)
            means: list[Tensor] = []
            for v in range(self.values):
                location = _shifted(locations, coefficients, means).clamp(-1e4, 1e4)
                s = log_scales[:, v].exp()
                rise = F.softplus((location + 1) / s) - F.softplus((location - 1) / s)
                means.append((s * rise - 1).clamp(-1, 1))
            y = (logits.softmax(1).unsqueeze(1) * torch.stack(means, 1)).sum(2)
            return self._stored((y + 1) * self.half)

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
            for v in range(self.values):
                location = _shifted(locations, coefficients, [value / self.half - 1 for value in values])
                index = ((location + noise[:, v] + 1) * self.half).round().clamp(0, self.levels - 1)
                values.append(index)
            return self._stored(torch.stack(values, 1)).reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split into logits `[B, K, N]`, locations and log scales `[B, V, K, N]`, and coefficients `[B, V (V - 1) / 2,
        K, N]`.
        """
        (batch, _, blocks), values = parameters.shape, self.values
        parts = parameters.to(_precision(parameters)).reshape(batch, -1, self.mixtures, blocks)
        log_scales = parts[:, 1 + values : 1 + 2 * values].clamp(_least_log_scale(self.levels), LOG_SCALE_MAX)
        return parts[:, 0], parts[:, 1 : 1 + values], log_scales, parts[:, 1 + 2 * values :].tanh()


def _shifted(locations: Tensor, coefficients: Tensor, earlier: list[Tensor]) -> Tensor:
    """Compute the location of the next value of each block, given the earlier ones in network units."""
    v = len(earlier)
    location = locations[:, v]
    for j, y in enumerate(earlier):
        location = location + coefficients[:, v * (v - 1) // 2 + j] * y
    return location


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
    """log p of each block `[B, N]`, with its gradient computed in the same pass over the parameters.

    For one value with location mu, inverse scale w, m = w (y - mu) and half bin h = w / (n - 1), the difference of
    distribution functions is F(m + h) - F(m - h) = exp(q) F(-q) F(2 h - q) (1 - exp(-2 h)) with q = h - |m|, in which
    nothing cancels and only exp(q) can vanish. At the lower edge it is F(m + h) = exp(q) F(-q) with q = h + m, at the
    upper edge likewise with q = h - m. So the edges need no branch: a huge number added in the right places turns the
    other two factors into one. q is capped there (error below 1e-8 nats) so that F(-q) does not vanish.

    Then d log p / dq = F(-q) + F(2 h - q) - 1, and the rest is the chain rule. The factors of a position's channels
    are multiplied before the logarithm. On a CPU a few examples are processed at a time, so that everything stays in
    the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parameters: Tensor,
        value: Tensor,
        mixtures: int,
        levels: int,
        positions: int,
        with_gradient: bool,
    ) -> Tensor:
        # kept in the decoder's precision and layout, except float16, whose range is too small
        kept = torch.float32 if parameters.dtype == torch.float16 else parameters.dtype
        gradient = torch.empty_like(parameters, dtype=kept) if with_gradient else None
        result = _in_pieces(parameters, value, mixtures, levels, positions, gradient).sum(1)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None, None, None, None


def _in_pieces(
    parameters: Tensor, value: Tensor, mixtures: int, levels: int, positions: int, gradient: Tensor | None
) -> Tensor:
    """Compute log p of each position given those before it in its block, `[B, positions, N]`, piece by piece.

    Args:
        positions: positions of a block.
        gradient: where to write the derivative of the whole block's log p.
    """
    (batch, numbers, blocks), work = parameters.shape, _precision(parameters)
    on_cpu = parameters.device.type == "cpu"
    result = parameters.new_empty(batch, positions, blocks, dtype=work)
    step = max(batch, 1)
    if on_cpu:
        step = max(1, CHUNK * torch.get_num_threads() // (value.shape[1] * mixtures * blocks))
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        part = parameters[rows].to(work, memory_format=torch.contiguous_format)
        parts = part.view(-1, numbers // mixtures, mixtures, blocks)
        into = None if gradient is None else torch.empty_like(parts)
        result[rows] = _log_prob_and_gradient(parts, value[rows].to(work), levels, positions, into)
        if gradient is not None and into is not None:
            _store(gradient[rows], into.view_as(part), on_cpu)
    return result


def _precision(parameters: Tensor) -> torch.dtype:
    return torch.float64 if parameters.dtype == torch.float64 else torch.float32


def _store(into: Tensor, values: Tensor, on_cpu: bool) -> None:
    """Copy `values` `[b, P, N]` to another precision and layout; on a CPU the 2-d transpose is four times as fast."""
    if on_cpu and into.stride() != values.stride():
        for row, done in zip(into, values.to(into.dtype), strict=True):
            row.t().copy_(done.t())
    else:
        into.copy_(values)


def _log_prob_and_gradient(parts: Tensor, x: Tensor, levels: int, positions: int, gradient: Tensor | None) -> Tensor:
    """Compute log p `[b, positions, N]` of values x `[b, V, N]` from 0, and write the block's derivative to `gradient`.

    The derivative is by `parts` `[b, -1, K, N]`. With many levels, distances are measured in bins: there x is exact,
    and neighbouring bins meet at one edge.
    """
    values, half_range, least = x.shape[1], (levels - 1) / 2, _least_log_scale(levels)
    unit = 1.0 if levels <= COARSE else half_range
    logits, locations = parts[:, 0], parts[:, 1 : 1 + values]
    log_scales, coefficients = parts[:, 1 + values : 1 + 2 * values], parts[:, 1 + 2 * values :]
    pairs = [(v, j) for v in range(values) for j in range(v)]

    y = (x / half_range - 1).unsqueeze(2)  # [b, V, 1, N], as all that has no component
    side = ((x == 0).to(x.dtype) - (x == levels - 1).to(x.dtype)).unsqueeze(2)
    edge = side.abs() * HUGE
    cap = torch.where(side == 0, HUGE, EDGE_CAP if x.dtype == torch.float32 else 2 * EDGE_CAP)

    inverse = log_scales.clamp(least, LOG_SCALE_MAX).neg_().exp_()
    half = inverse * (0.5 / half_range)
    middle = torch.sub(y if unit == 1 else (x - half_range).unsqueeze(2), locations, alpha=unit)  # [b, V, K, N]
    slopes = torch.sigmoid(2 * coefficients).mul_(2).sub_(1)  # tanh
    for i, (v, j) in enumerate(pairs):
        middle[:, v].addcmul_(slopes[:, i], y[:, j], value=-unit)
    middle.mul_(inverse if unit == 1 else inverse / unit)
    sign = (middle - side * HUGE).sign_()
    q = torch.addcmul(half, sign, middle, value=-1)
    q = torch.minimum(q, cap, out=q)
    near = torch.sigmoid(-q)
    far = torch.add(edge, half, alpha=2).sub_(q).sigmoid_()
    width = torch.add(edge, half).mul_(-2).expm1_().neg_()
    near_far = (near * far).mul_(width).unflatten(1, (positions, -1)).prod(2)
    each = near_far.log_().add_(q.unflatten(1, (positions, -1)).sum(2))  # [b, positions, K, N]
    so_far = torch.cat([logits.unsqueeze(1), each], 1).cumsum(1)
    result = so_far.logsumexp(2).diff(dim=1)
    if gradient is None:
        return result

    total = so_far[:, -1]
    share = total.softmax(1)
    torch.sub(share, logits.softmax(1), out=gradient[:, 0])
    share = share.unsqueeze(1)
    by_q = (near.add_(far).sub_(1)).mul_(share)
    by_location = torch.mul(by_q, sign.mul_(inverse), out=gradient[:, 1 : 1 + values])
    by_scale = width.reciprocal_().sub_(far).mul_(half).mul_(share).mul_(-2).addcmul_(by_q, q, value=-1)
    inside = torch.ops.aten.hardtanh_backward(by_scale, log_scales, least, LOG_SCALE_MAX)
    gradient[:, 1 + values : 1 + 2 * values] = inside
    for i, (v, j) in enumerate(pairs):
        by_slope = (by_location[:, v] * y[:, j]).mul_(slopes[:, i].square().neg_().add_(1))
        gradient[:, 1 + 2 * values + i] = by_slope
    return result
