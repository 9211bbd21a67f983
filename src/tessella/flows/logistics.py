"""One number's monotone map by the distribution function of a mixture of logistics (Ho et al. 2019, section 3.2).

z = logit F(x), F(x) = sum_k w_k sigmoid((x - mu_k) / s_k): if z is standard logistic, x is of that mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE, SHARE = 1.5, 1e-3
"""Scale and weight of a component that is always there: it keeps F strictly rising between far components, so that it
can be inverted for any x. It costs at most a thousandth of a nat."""
FAR, CEILING = 16.0, 2.0
HALVINGS = 36
POLISHED, NEAR = 3, 1e-3
"""Newton's steps in float64, each the square of the error before it, and how long they may be."""


@dataclass(frozen=True)
class Mixture:
    """Log weights, locations and log scales, each `[components, *numbers]`; arithmetic is in their precision."""

    log_weight: Tensor
    location: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, raw: Tensor, floor: float) -> Mixture:
        """From a network's output `[3 K, *numbers]`: logits, locations, log scales, and the wide component.

        Locations stay within `FAR`, log scales above `floor` and below `CEILING`: what is drawn from random or wild
        weights stays finite, through all scales of a flow.
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
        """That of one row of the numbers."""
        return Mixture(self.log_weight[:, row], self.location[:, row], self.log_scale[:, row])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x `[*numbers]` to z and log dz/dx, both `[*numbers]`."""
        t = (x - self.location) * (-self.log_scale).exp()
        below, above = F.logsigmoid(t), F.logsigmoid(-t)  # below - t would round what the inverse must meet
        log_f = torch.logsumexp(self.log_weight + below + above - self.log_scale, 0)
        left = torch.logsumexp(self.log_weight + below, 0)
        right = torch.logsumexp(self.log_weight + above, 0)
        return left - right, log_f - left - right

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        """z `[*numbers]` to x, by bisection between the components' own quantiles, which hold the mixture's.

        That is done in float32; of a z in float64 Newton's steps then find x as exactly.
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
        """z alone."""
        t = (x - self.location) * (-self.log_scale).exp()
        left = torch.logsumexp(self.log_weight + F.logsigmoid(t), 0)
        return left - torch.logsumexp(self.log_weight + F.logsigmoid(-t), 0)
