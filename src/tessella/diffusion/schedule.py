"""Noise schedule: a monotone, learned log noise-to-signal ratio gamma(t)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.rng import Noise

BINS = 32
"""Number of linear pieces of the schedule."""
FLOOR = 0.1
"""Share of the times that stays uniform in gamma, so that no weight exceeds 1 / FLOOR."""


@dataclass(frozen=True)
class Times:
    """Sampled noise levels, one per example.

    Attributes:
        gamma: `[B]`; its gradient reaches the ends of the schedule.
        slope: `[B]`, d gamma / dt, the weight that turns an average over t into an integral over gamma.
        density: `[B]`, dt / du of u = (gamma - gamma_0) / (gamma_1 - gamma_0); its gradient reaches the pieces.
    """

    gamma: Tensor
    slope: Tensor
    density: Tensor


@final
class NoiseSchedule(nn.Module):
    """Learned noise schedule gamma(t) = gamma_0 + (gamma_1 - gamma_0) u(t) for t in [0, 1].

    z_t = alpha_t y + sigma_t eps with alpha_t^2 = sigmoid(-gamma), sigma_t^2 = sigmoid(gamma), so exp(-gamma) is the
    signal-to-noise ratio (Kingma et al. 2021, section 3.2). u(t) rises from 0 to 1 and is piecewise linear; each piece
    gets at least a tenth of the times that it would get if u were linear.

    The bound depends only on the ends and is minimised over them. u(t) changes only the variance of its estimate: it is
    trained to reduce E[L^2] (section 5.3) by `variance_term`, and gets no gradient from the bound itself.

    Args:
        first, last: initial gamma_0 and gamma_1.
    """

    def __init__(self, first: float = -13.3, last: float = 5.0) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(first))
        self.last = nn.Parameter(torch.tensor(last))
        self.pieces = nn.Parameter(torch.zeros(BINS))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return gamma_0 and gamma_1 > gamma_0, scalars; far apart they equal `first` and `last`."""
        return self.first, self.first + F.softplus(self.last - self.first)

    def masses(self) -> Tensor:
        """Return the share of the times in each piece, `[BINS]`."""
        return (1 - FLOOR) * self.pieces.softmax(0) + FLOOR / BINS

    def forward(self, t: Tensor) -> Tensor:
        """Compute gamma(t) of t in [0, 1], in the shape of t; strictly increasing."""
        first, last = self.ends()
        return first + (last - first) * self._inverted(t, self.masses())[0]

    def at(self, t: Tensor) -> Times:
        """Return the noise levels, weights and densities at times `[B]` in [0, 1)."""
        masses = self.masses()
        with torch.no_grad():
            u, piece = self._inverted(t, masses)
        first, last = self.ends()
        density = masses[piece] * BINS
        span = last - first
        return Times(first + span * u, span / density.detach(), density)

    @staticmethod
    def _inverted(t: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
        """Return u(t) and the index of its piece."""
        edges = masses.cumsum(0)
        piece = torch.searchsorted(edges.detach(), t.contiguous(), right=True).clamp_max(BINS - 1)
        inside = ((t - (edges - masses)[piece]) / masses[piece]).clamp(0, 1)
        return (piece + inside) / BINS, piece


def variance_term(times: Times, loss: Tensor) -> Tensor:
    """Return zeros `[B]` whose gradient for the pieces is proportional to that of E[loss^2].

    With u sampled from the density rho, the second moment under another rho' is exactly E[loss^2 rho / rho'].

    Args:
        times: the sampled noise levels.
        loss: `[B]`, the estimates at these times; it gets no gradient.
    """
    weight = loss.detach().square()
    term = weight / weight.mean().clamp_min(1e-30) * (times.density.detach() / times.density)
    return term - term.detach()


def spread_times(count: int, device: torch.device, noise: Noise | None, part: int = 0, parts: int = 1) -> Tensor:
    """Sample times `[count]` in [0, 1), each uniform, together evenly spaced (Kingma et al. 2021, appendix I.1).

    Args:
        count: number of examples.
        device: device of the result.
        noise: source for `Noise.spread`; None: all examples share evenly spaced fixed times, each used for two parts.
        part, parts: index and number of times per example; the time lies in this part of [0, 1).
    """
    if noise is None:
        return torch.full((count,), (part // 2 + 0.5) / ((parts + 1) // 2), device=device)
    t = (part + noise.split("times").spread(count, device)) / parts
    return t.clamp_max(math.nextafter(1.0, 0.0))


def alpha(gamma: Tensor) -> Tensor:
    """Compute the signal level sqrt(sigmoid(-gamma))."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Compute the noise level sqrt(sigmoid(gamma))."""
    return torch.sigmoid(gamma).sqrt()


def over(numbers: Tensor, like: Tensor) -> Tensor:
    """Reshape `[B]` or a scalar so that it broadcasts with `[B, ...]`."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))
