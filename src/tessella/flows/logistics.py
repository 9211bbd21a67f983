"""Monotone map of one number by the distribution function of a mixture of logistics (Ho et al. 2019, section 3.2).

z = logit F(x), F(x) = sum_k w_k sigmoid((x - mu_k) / s_k): if z is standard logistic, x has the mixture's distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE, SHARE = 1.5, 1e-3
"""Scale and weight of an additional wide component.

It keeps F strictly increasing between distant components, so that F is invertible for any x. It costs at most a
thousandth of a nat.
"""
FAR, CEILING = 16.0, 2.0
HALVINGS = 36
POLISHED, NEAR = 3, 1e-3
"""Number of Newton steps in float64, each squaring the error, and their largest length."""


@dataclass(frozen=True)
class Mixture:
    """Mixture of logistics: log weights, locations and log scales, each `[components, *numbers]`, in their own
    precision.
    """

    log_weight: Tensor
    location: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, raw: Tensor, floor: float) -> Mixture:
        """Make a mixture from a network's output `[3 K, *numbers]`, and add the wide component.

        The output holds logits, locations and log scales. Locations are bounded by `FAR`, log scales by `floor` and
        `CEILING`, so that samples stay finite for any weights, through all scales of a flow.
        """
        logits, location, log_scale = raw.unflatten(0, (3, -1))
        wide = torch.full_like(logits[:1], math.log(SHARE))
        log_weight = torch.cat([logits.log_softmax(0) + math.log1p(-SHARE), wide])
        log_scale = CEILING - F.softplus(CEILING - floor - F.softplus(log_scale - floor))
        location = FAR * (location / FAR).tanh()
        return cls(
            log_weight,
            torch.cat([location, torch.zeros_like(wide)]),
            torch.cat([log_scale, torch.full_like(wide, math.log(WIDE))]),
        )

    def of_row(self, row: int) -> Mixture:
        """Return the mixture of one row of the numbers."""
        return Mixture(self.log_weight[:, row], self.location[:, row], self.log_scale[:, row])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x `[*numbers]` to z and log dz/dx, both `[*numbers]`."""
        t = (x - self.location) * (-self.log_scale).exp()
        below, above = F.logsigmoid(t), F.logsigmoid(-t)  # below - t would round differently from the inverse
        log_f = torch.logsumexp(self.log_weight + below + above - self.log_scale, 0)
        left = torch.logsumexp(self.log_weight + below, 0)
        right = torch.logsumexp(self.log_weight + above, 0)
        return left - right, log_f - left - right

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        """Map z `[*numbers]` to x, by bisection between the quantiles of the components.

        This is done in float32; for float64 z, Newton steps then refine x.
        """
        rough, at = Mixture(self.log_weight.float(), self.location.float(), self.log_scale.float()), z.float()
        own = rough.location + rough.log_scale.exp() * at
        low, high = own.amin(0), own.amax(0)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            under = rough.logit(middle) < at
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        x = (0.5 * (low + high)).to(z.dtype)
        for _ in range(POLISHED if z.dtype == torch.float64 else 0):
            now, log_slope = self.forward(x)
            x = x - ((now - z) * (-log_slope).exp()).clamp(-NEAR, NEAR)
        return x

    def logit(self, x: Tensor) -> Tensor:
        """Map x to z without the derivative."""
        t = (x - self.location) * (-self.log_scale).exp()
        left = torch.logsumexp(self.log_weight + F.logsigmoid(t), 0)
        return left - torch.logsumexp(self.log_weight + F.logsigmoid(-t), 0)
