"""Posterior of evenly spaced values that are observed with Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**17
"""Numbers processed at once on a CPU: half a megabyte, which fits the cache."""
DENSE = 3.0
"""Smallest number of values per standard deviation at which a sum is as good as the integral."""
SMALL = 64
"""Smallest number of values, and of numbers per example, for which thinning saves time."""
FAR = 200.0
"""Twice the difference in nats beyond which a value has no weight in float32."""


def posterior(location: Tensor, precision: Tensor, levels: int, *, thin: bool = False) -> tuple[Tensor, Tensor]:
    """Compute the mean and log-normaliser of p(v) proportional to exp(-precision / 2 (y_v - location)^2).

    The values y_v are `levels` evenly spaced numbers from -1 to 1. Values without weight in float32 are skipped, so low
    noise is cheap. The first derivative is computed in the same pass over the values.

    Args:
        location, precision: any common shape, float32 or float64.
        levels: at least 2.
        thin: whether to sum over every n-th value only, for examples (first axis) whose numbers all spread over many
            values; the mean is then nearly exact, but the log-normaliser is not valid.

    Returns:
        E[y] and log sum_v exp(...), in the shape of the arguments.
    """
    return _Posterior.apply(location, precision, levels, thin)


class _Posterior(torch.autograd.Function):
    """Posterior with gradients by the moments M_k = E[d^k] of d = y - m.

    E[y] = m + M_1, dE[y]/dm = Lambda Var, dE[y]/dLambda = -Cov(y, d^2) / 2, dlogZ/dm = Lambda M_1 and dlogZ/dLambda =
    -M_2 / 2.
    """

    @staticmethod
    def forward(ctx: Any, location: Tensor, precision: Tensor, levels: int, thin: bool) -> tuple[Tensor, Tensor]:
        m, p = location.reshape(-1), precision.reshape(-1)
        mean, log_total, by_m, by_p, second = (torch.empty_like(m) for _ in range(5))
        thin = thin and levels > SMALL and location[0].numel() > SMALL
        for at, stride in _pieces(p.view(len(location) if thin else 1, -1), levels, thin):
            m1, m2, m3, log_total[at] = _moments(m[at], p[at], levels, stride)
            mean[at] = m[at] + m1
            by_m[at] = p[at] * (m2 - m1 * m1).clamp_min(0)
            by_p[at] = (m1 * m2 - m3) / 2
            second[at] = m2
        ctx.save_for_backward(by_m, by_p, (mean - m) * p, second / -2)
        return mean.view_as(location), log_total.view_as(location)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        by_m, by_p, total_by_m, total_by_p = ctx.saved_tensors
        mean, total = grad_outputs
        shape = mean.shape
        mean, total = mean.reshape(-1), total.reshape(-1)
        return (
            (mean * by_m + total * total_by_m).view(shape),
            (mean * by_p + total * total_by_p).view(shape),
            None,
            None,
        )


def _pieces(precision: Tensor, levels: int, thin: bool) -> Iterator[tuple[slice, int]]:
    """Yield slices of numbers to process at once, each with the stride of its values."""
    spacing, each = 2 / (levels - 1), precision.shape[1]
    strides = [n for n in range(1, levels) if (levels - 1) % n == 0]
    for row, sharpest in enumerate(precision.max(1).values.tolist() if thin else [math.inf]):
        widest = 1 / (DENSE * spacing * math.sqrt(sharpest))
        stride = max(n for n in strides if n <= max(1.0, widest))
        step = max(1, CHUNK * stride // levels) if precision.device.type == "cpu" else max(1, 2**26 // levels)
        for start in range(0, each, step):
            yield slice(row * each + start, row * each + min(start + step, each)), stride


def _moments(m: Tensor, p: Tensor, levels: int, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spacing = 2 / (levels - 1)
    nearest = ((m + 1) / spacing).round_().clamp_(0, levels - 1)
    reach = math.ceil(math.sqrt(FAR / float(p.min())) / spacing) + 1
    outside = None
    if stride == 1 and 2 * reach + 1 < levels:
        index = nearest + torch.arange(-reach, reach + 1, dtype=m.dtype, device=m.device).unsqueeze(1)
        outside = (index < 0) | (index > levels - 1)
    else:
        index = torch.arange(0, levels, stride, dtype=m.dtype, device=m.device).unsqueeze(1)
    d = index * spacing - (m + 1)
    top = (nearest * spacing - (m + 1)).square_().mul_(p / 2)
    weight = (d * d).mul_(p / -2).add_(top).exp_()
    if outside is not None:
        weight.masked_fill_(outside, 0)
    if stride > 1:  # the trapezium rule, and half a value beyond each end
        weight[0] *= (stride + 1) / (2 * stride)
        weight[-1] *= (stride + 1) / (2 * stride)
    total = weight.sum(0)
    moments = [weight.mul_(d).sum(0) / total for _ in range(3)]
    return moments[0], moments[1], moments[2], total.log() - top
