"""How much noise there is when: a monotone, learned log noise-to-signal ratio gamma(t)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.rng import Noise

BINS = 32
"""Pieces of the schedule between its ends."""
FLOOR = 0.1
"""Share of the times that stays evenly spread over gamma, so that no weight is above 1 / FLOOR."""


@dataclass(frozen=True)
class Times:
    """Noise levels that were drawn, one an example.

    Attributes:
        gamma: `[B]`; its gradient reaches the ends of the schedule.
        slope: `[B]`, d gamma / dt there, the weight that makes an average over t an integral over gamma.
        density: `[B]`, dt / du of u = (gamma - gamma_0) / (gamma_1 - gamma_0); its gradient reaches the pieces.
    """

    gamma: Tensor
    slope: Tensor
    density: Tensor


@final
class NoiseSchedule(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) u(t), t from 0 to 1, all learned (Kingma et al. 2021, section 3.2).

    z_t = alpha_t y + sigma_t eps with alpha_t^2 = sigmoid(-gamma), sigma_t^2 = sigmoid(gamma), so exp(-gamma) is the
    signal-to-noise ratio. u(t) rises from 0 to 1 in pieces that are straight, each at least a tenth as steep as the
    straight line's inverse allows.

    The bound depends on the ends alone and is minimised over them. u(t) moves the variance of its estimate alone: it is
    taught to lower E[L^2] (section 5.3), by the estimate of `variance_term`, and the bound's own gradient does not
    reach it.

    Args:
        first, last: gamma_0 and gamma_1 to start with.
    """

    def __init__(self, first: float = -13.3, last: float = 5.0) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(first))
        self.last = nn.Parameter(torch.tensor(last))
        self.pieces = nn.Parameter(torch.zeros(BINS))

    def ends(self) -> tuple[Tensor, Tensor]:
        """gamma_0 and gamma_1 > gamma_0, scalars; far apart they are `first` and `last`."""
        return self.first, self.first + F.softplus(self.last - self.first)

    def masses(self) -> Tensor:
        """Share of the times in each piece, `[BINS]`."""
        return (1 - FLOOR) * self.pieces.softmax(0) + FLOOR / BINS

    def forward(self, t: Tensor) -> Tensor:
        """gamma(t) of any t in [0, 1], same shape: strictly rising."""
        first, last = self.ends()
        return first + (last - first) * self._inverted(t, self.masses())[0]

    def at(self, t: Tensor) -> Times:
        """What an estimate of the bound needs of times `[B]` in [0, 1)."""
        masses = self.masses()
        with torch.no_grad():
            u, piece = self._inverted(t, masses)
        first, last = self.ends()
        density = masses[piece] * BINS
        span = last - first
        return Times(first + span * u, span / density.detach(), density)

    @staticmethod
    def _inverted(t: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
        """u(t) and the piece that it lies in."""
        edges = masses.cumsum(0)
        piece = torch.searchsorted(edges.detach(), t.contiguous(), right=True).clamp_max(BINS - 1)
        inside = ((t - (edges - masses)[piece]) / masses[piece]).clamp(0, 1)
        return (piece + inside) / BINS, piece


def variance_term(times: Times, loss: Tensor) -> Tensor:
    """Zeros `[B]` whose gradient by the pieces is, up to a positive factor, that of E[loss^2].

    With u drawn from the density rho the second moment under another rho' is E[loss^2 rho / rho'], exactly.

    Args:
        loss: `[B]`, the estimates at these times; no gradient passes to it.
    """
    weight = loss.detach().square()
    term = weight / weight.mean().clamp_min(1e-30) * (times.density.detach() / times.density)
    return term - term.detach()


def spread_times(count: int, device: torch.device, noise: Noise | None, part: int = 0, parts: int = 1) -> Tensor:
    """Times `[count]` in [0, 1), each uniform and together evenly spread (Kingma et al. 2021, appendix I.1).

    Args:
        noise: as of `Noise.spread`; without it every example has the same times, evenly spread, each for two parts.
        part, parts: of several times an example, which one of how many: it lies in that part of [0, 1).
    """
    if noise is None:
        return torch.full((count,), (part // 2 + 0.5) / ((parts + 1) // 2), device=device)
    t = (part + noise.split("times").spread(count, device)) / parts
    return t.clamp_max(math.nextafter(1.0, 0.0))


def alpha(gamma: Tensor) -> Tensor:
    """How much signal is left: sqrt(sigmoid(-gamma))."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """How much noise there is: sqrt(sigmoid(gamma))."""
    return torch.sigmoid(gamma).sqrt()


def over(numbers: Tensor, like: Tensor) -> Tensor:
    """`[B]` or a scalar, to be spread over `[B, ...]`."""
    return numbers.reshape(-1, *[1] * (like.dim() - 1))
