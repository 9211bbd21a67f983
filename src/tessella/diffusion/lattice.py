"""What is known of whole numbers seen through Gaussian noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**17
"""Numbers at once on a CPU: half a megabyte, which the cache holds."""
FAR = 200.0
"""Twice the nats beyond which a value has no weight in float32."""


def posterior(location: Tensor, precision: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Mean and log-normaliser of p(v) proportional to exp(-precision / 2 (y_v - location)^2).

    The values y_v are `levels` evenly spaced numbers from -1 to 1. Values that have no weight in float32 are left out,
    so little noise is cheap. Differentiable once, in the one walk over the values.

    Args:
        location, precision: any one shape, float32 or float64.
        levels: at least 2.

    Returns:
        E[y] and log sum_v exp(...), of that shape.
    """
    return _Posterior.apply(location, precision, levels)


class _Posterior(torch.autograd.Function):
    """By moments M_k = E[d^k] of d = y - m: E[y] = m + M_1, dE[y]/dm = Lambda Var, dE[y]/dLambda = -Cov(y, d^2) / 2,
    dlogZ/dm = Lambda M_1 and dlogZ/dLambda = -M_2 / 2.
    """

    @staticmethod
    def forward(ctx: Any, location: Tensor, precision: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        m, p = location.reshape(-1), precision.reshape(-1)
        mean, log_total, by_m, by_p, second = (torch.empty_like(m) for _ in range(5))
        step = max(1, CHUNK // levels) if m.device.type == "cpu" else max(1, 2**26 // levels)
        for start in range(0, len(m), step):
            at = slice(start, start + step)
            m1, m2, m3, log_total[at] = _moments(m[at], p[at], levels)
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
        return (mean * by_m + total * total_by_m).view(shape), (mean * by_p + total * total_by_p).view(shape), None


def _moments(m: Tensor, p: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spacing = 2 / (levels - 1)
    nearest = ((m + 1) / spacing).round_().clamp_(0, levels - 1)
    reach = math.ceil(math.sqrt(FAR / float(p.min())) / spacing) + 1
    if 2 * reach + 1 < levels:
        offsets = torch.arange(-reach, reach + 1, dtype=m.dtype, device=m.device).unsqueeze(1)
        index = nearest + offsets
        outside = (index < 0) | (index > levels - 1)
    else:
        index, outside = torch.arange(levels, dtype=m.dtype, device=m.device).unsqueeze(1), None
    d = index * spacing - (m + 1)
    top = (nearest * spacing - (m + 1)).square_().mul_(p / 2)
    weight = (d * d).mul_(p / -2).add_(top).exp_()
    if outside is not None:
        weight.masked_fill_(outside, 0)
    total = weight.sum(0)
    moments = [weight.mul_(d).sum(0) / total for _ in range(3)]
    return moments[0], moments[1], moments[2], total.log() - top
