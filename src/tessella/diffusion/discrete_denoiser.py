"""Posterior of evenly spaced values that are observed with Gaussian noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**17
"""Numbers processed at once on a CPU: half a megabyte, which fits the cache."""
DENSE = 3.0
"""Smallest number of values per standard deviation at which a sum is as good as the integral."""
FEW = 64
"""Largest number of values that are always summed: with few, ends count."""
FAR = 200.0
"""Twice the difference in nats beyond which a value has no weight in float32."""
HALF_LOG_2_PI = math.log(2 * math.pi) / 2


def posterior(location: Tensor, precision: Tensor, levels: int, *, mean_only: bool = False) -> tuple[Tensor, Tensor]:
    """Compute the mean and log-normaliser of p(v) proportional to exp(-precision / 2 (y_v - location)^2).

    The values y_v are `levels` evenly spaced numbers from -1 to 1. Values without weight in float32 are skipped, so low
    noise is cheap. The first derivative is computed in the same pass over the values.

    Args:
        location, precision: any common shape, float32 or float64.
        levels: at least 2.
        mean_only: whether numbers that spread over many values are treated as continuous, which makes high noise cheap
            too; the mean is then nearly exact, but the log-normaliser is not valid.

    Returns:
        E[y] and log sum_v exp(...), in the shape of the arguments.
    """
    return _Posterior.apply(location, precision, levels, mean_only)


class _Posterior(torch.autograd.Function):
    """Posterior with gradients by the moments M_k = E[d^k] of d = y - m.

    E[y] = m + M_1, dE[y]/dm = Lambda Var, dE[y]/dLambda = -Cov(y, d^2) / 2, dlogZ/dm = Lambda M_1 and dlogZ/dLambda =
    -M_2 / 2.
    """

    @staticmethod
    def forward(ctx: Any, location: Tensor, precision: Tensor, levels: int, mean_only: bool) -> tuple[Tensor, Tensor]:
        m, p = location.reshape(-1), precision.reshape(-1)
        moments, log_total = m.new_empty(3, len(m)), torch.zeros_like(m)
        spacing, mean_only = 2 / (levels - 1), mean_only and levels > FEW
        dense = torch.zeros_like(p, dtype=torch.bool)
        if mean_only:  # also beyond the ends, where the weights fall by e every 1 / (p * distance)
            dense = p * torch.maximum(m.abs() - 1, torch.full_like(m, DENSE * spacing)) * DENSE * spacing < 1
        if bool(dense.any()):
            moments[:, dense] = _continuous_moments(m[dense], p[dense], spacing)
        rest = (~dense).nonzero().flatten()
        least = (DENSE * spacing) ** -2 if mean_only else float(p.min())  # the former does not depend on other examples
        width = min(levels, 2 * math.ceil(math.sqrt(FAR / least) / spacing) + 3)
        for some in rest.split(max(1, (CHUNK if p.device.type == "cpu" else 2**26) // width)):
            moments[:, some], log_total[some] = _moments(m[some], p[some], levels, width)
        m1, m2, m3 = moments
        ctx.save_for_backward(p * (m2 - m1 * m1).clamp_min(0), (m1 * m2 - m3) / 2, m1 * p, m2 / -2)
        return (m + m1).view_as(location), log_total.view_as(location)

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


def _moments(m: Tensor, p: Tensor, levels: int, width: int) -> tuple[Tensor, Tensor]:
    """Compute M_1, M_2, M_3 `[3, n]` and the log-normaliser `[n]` by sums over the `width` nearest values."""
    spacing = 2 / (levels - 1)
    nearest = ((m + 1) / spacing).round_().clamp_(0, levels - 1)
    outside = None
    if width < levels:
        index = nearest + (torch.arange(width, dtype=m.dtype, device=m.device) - width // 2).unsqueeze(1)
        outside = (index < 0) | (index > levels - 1)
    else:
        index = torch.arange(levels, dtype=m.dtype, device=m.device).unsqueeze(1)
    d = index * spacing - (m + 1)
    top = (nearest * spacing - (m + 1)).square_().mul_(p / 2)
    weight = (d * d).mul_(p / -2).add_(top).exp_()
    if outside is not None:
        weight.masked_fill_(outside, 0)
    total = weight.sum(0)
    return torch.stack([weight.mul_(d).sum(0) / total for _ in range(3)]), total.log() - top


def _continuous_moments(m: Tensor, p: Tensor, spacing: float) -> Tensor:
    """Compute M_1, M_2, M_3 `[3, n]` of N(m, 1 / p), truncated to half a value beyond the first and the last one."""
    side = torch.where(m > 0, -1.0, 1.0).double()  # mirrored, so that the lower edge is the nearer one
    scale, middle = p.double().sqrt(), m.double() * side
    low, high = ((edge - middle) * scale for edge in (-1 - spacing / 2, 1 + spacing / 2))
    above_low, above_high = (torch.special.log_ndtr(-edge) for edge in (low, high))
    log_mass = above_low + torch.log1p(-(above_high - above_low).exp())
    at_low, at_high = ((edge.square() / -2 - log_mass - HALF_LOG_2_PI).exp() for edge in (low, high))
    first = (at_low - at_high) / scale
    second = (1 + low * at_low - high * at_high) / scale**2
    third = (2 * (at_low - at_high) + low**2 * at_low - high**2 * at_high) / scale**3
    return torch.stack([side * first, second, side * third]).to(m.dtype)
