"""Estimates log p(x) by annealed importance sampling, and brackets it on simulated examples.

A chain starts at a sample of a known base distribution b(z). It moves through f_t(z) = b(z)^(1 - beta_t)
p(x, z)^beta_t, with beta from 0 to 1, by Hamiltonian Monte Carlo. The product of its weights f_t / f_(t-1) is an
unbiased estimate of p(x), so its log is below log p(x) on average (Neal 2001; for decoders Wu et al. 2017). A chain in
reverse, from an exact sample of p(z | x), estimates 1 / p(x), which gives a value above log p(x) on average. Exact
samples exist for simulated data, z ~ p(z), x ~ p(x | z): there, forward and reverse chains bracket log p(x)
(bidirectional Monte Carlo, Grosse et al. 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tessella.core.device import precise
from tessella.core.rng import Noise, seeded
from tessella.models.latent_variable import LatentVariableModel

TARGET = 0.65
"""Target acceptance rate, near the best for HMC in many dimensions (Beskos et al. 2013; Wu et al. 2017)."""
LEAPS = 5
"""Leapfrog steps per transition."""
FIRST_STEP, ADAPTED = 0.3, 0.3
"""Initial step size, in standard deviations of the base, and how fast its logarithm adapts to the acceptance rate."""
STEEP = 4.0
"""Steepness of the sigmoid by which beta rises."""
MOMENTS = 64
"""Samples per example to estimate the moments of a base distribution that has no closed form."""
PASS = 2**20
"""Values of data decoded in one pass."""

Base = Literal["posterior", "prior"]


@final
class Joint:
    """Joint density p(x, z) of a batch, with each example repeated `repeats` times in a row.

    Args:
        x: `[B, *shape]` stored values.
        label: `[B]`, for a conditional model.
    """

    def __init__(self, model: LatentVariableModel, x: Tensor, label: Tensor | None, repeats: int = 1) -> None:
        if model.prior is None:
            raise model.no_prior_error()
        self.model, self.repeats = model, repeats
        self.x = x.repeat_interleave(repeats, 0)
        self.label = None if label is None else label.repeat_interleave(repeats)
        with torch.no_grad():
            self.prior = model.prior(model.check_label(self.label))

    def distortion(self, z: Tensor) -> Tensor:
        """Compute -log p(x | z), `[B * repeats]`."""
        return -self.model.decode(z, self.label).log_prob(self.x)

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute log p(x, z), `[B * repeats]`."""
        return self.prior.log_prob(z) - self.distortion(z)


@dataclass(frozen=True)
class Bracket:
    """Two estimates of log p(x) of simulated examples, `[B]` nats.

    On average `lower` is below log p(x) and `upper` is above it.
    """

    lower: Tensor
    upper: Tensor


@torch.no_grad()
def base_moments(
    model: LatentVariableModel, x: Tensor, label: Tensor | None, noise: Noise, base: Base = "posterior"
) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of q(z | x) or p(z), each `[B, *latent_shape]`.

    They are estimated from samples where they have no closed form.
    """
    count = len(x)
    if base == "prior":
        assert model.prior is not None
        labels = None if label is None else label.repeat_interleave(MOMENTS)
        draws = model.prior.sample(count * MOMENTS, noise, model.check_label(labels))
    else:
        features = model.encoder(model.encoder_input(x), model.check_label(label))
        q = model.bottleneck(features, None).posterior
        if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
            return q.base_dist.loc, q.base_dist.scale
        draws = model.bottleneck(features.repeat_interleave(MOMENTS, 0), noise).z
    deviation, mean = torch.std_mean(draws.float().unflatten(0, (count, MOMENTS)), 1)
    return mean, deviation.clamp_min(1e-4)


def forward(
    model: LatentVariableModel,
    x: Tensor,
    label: Tensor | None,
    noise: Noise,
    *,
    steps: int,
    chains: int = 16,
    base: Base = "posterior",
) -> Tensor:
    """Estimate log p(x) from below, `[B]` nats, by chains that start at the base distribution.

    The estimate is the log of the mean weight of `chains` chains of `steps` steps; on average it is below log p(x).

    Args:
        x: `[B, *shape]` stored values.
        base: moments of the Gaussian that the chains start from: those of q(z | x), or of p(z). Any base is valid; one
            near p(z | x) needs fewer steps.
    """
    walk = _Walk(model, x, label, noise, chains, base)
    u = walk.noise.normal(len(x) * chains, *model.latent_shape, device=x.device)
    weights = walk.log_weights(betas(steps), u)
    return torch.logsumexp(weights.view(len(x), chains), 1) - math.log(chains)


def reverse(
    model: LatentVariableModel,
    x: Tensor,
    label: Tensor | None,
    z: Tensor,
    noise: Noise,
    *,
    steps: int,
    chains: int = 16,
    base: Base = "posterior",
) -> Tensor:
    """Estimate log p(x) from above, `[B]` nats, by chains in reverse.

    Args:
        z: `[B, *latent_shape]`, an exact sample of p(z | x) for each example.
    """
    walk = _Walk(model, x, label, noise, chains, base)
    u = (z.repeat_interleave(chains, 0) - walk.loc) / walk.scale
    weights = walk.log_weights(betas(steps).flip(0), u)
    return -(torch.logsumexp(weights.view(len(x), chains), 1) - math.log(chains))


def bracket(
    model: LatentVariableModel,
    count: int,
    label: Tensor | None,
    noise: Noise,
    *,
    steps: int,
    chains: int = 16,
    base: Base = "posterior",
) -> Bracket:
    """Simulate `count` examples and estimate log p(x) of each from both sides.

    Args:
        label: `[count]`, for a conditional model.
    """
    x, z = simulated(model, count, label, noise.split("simulated"))
    lower, upper = [], []
    for number, (first, last) in enumerate(passes(model, count, chains)):
        part = None if label is None else label[first:last]
        said = {"steps": steps, "chains": chains, "base": base}
        lower.append(forward(model, x[first:last], part, noise.split(f"forward{number}"), **said))
        upper.append(reverse(model, x[first:last], part, z[first:last], noise.split(f"reverse{number}"), **said))
    return Bracket(torch.cat(lower), torch.cat(upper))


@torch.no_grad()
def simulated(model: LatentVariableModel, count: int, label: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor]:
    """Sample z ~ p(z) and x ~ p(x | z).

    Returns:
        x `[count, *shape]` and z. As x was sampled from it, z is an exact sample of p(z | x).
    """
    assert model.prior is not None
    z = model.prior.sample(count, noise, model.check_label(label))
    with seeded(int(noise.uniform(1).item() * 2**24), z.device):  # likelihoods sample from the global generator
        drawn = [model.decode(z[a:b], None if label is None else label[a:b]).sample() for a, b in passes(model, count)]
    return torch.cat(drawn), z


def betas(steps: int) -> Tensor:
    """Compute the schedule of beta, `[steps + 1]` from 0 to 1 along a sigmoid.

    Wu et al. 2017, section 4.
    """
    rise = torch.sigmoid(torch.linspace(-STEEP, STEEP, steps + 1, dtype=torch.float64))
    return (rise - rise[0]) / (rise[-1] - rise[0])


def passes(model: LatentVariableModel, count: int, chains: int = 1) -> list[tuple[int, int]]:
    """Divide examples into passes of bounded memory, as (first, end) pairs of indices."""
    each = max(1, PASS // (chains * model.schema.dims))
    return [(first, min(first + each, count)) for first in range(0, count, each)]


@final
class _Walk:
    """Annealing chains of a batch, in coordinates u = (z - loc) / scale in which the base is N(0, I)."""

    def __init__(
        self, model: LatentVariableModel, x: Tensor, label: Tensor | None, noise: Noise, chains: int, base: Base
    ) -> None:
        self.noise, self.chains, self.count = noise, chains, len(x)
        self.joint = Joint(model, x, label, chains)
        loc, scale = base_moments(model, x, label, noise.split("moments"), base)
        self.loc, self.scale = loc.repeat_interleave(chains, 0), scale.repeat_interleave(chains, 0)
        self.constant = self.scale.log().flatten(1).sum(1) + 0.5 * math.log(2 * math.pi) * self.loc[0].numel()
        self.log_step = torch.full((self.count,), math.log(FIRST_STEP), device=x.device)

    def log_weights(self, path: Tensor, u: Tensor) -> Tensor:
        """Anneal along beta = path[0], path[1], ... and return each chain's log weight, `[B * chains]` float64."""
        weights = torch.zeros_like(precise(u[:, :0].flatten(1).sum(1)))
        joint, slope = self._joint(u)
        for t in range(1, len(path)):
            weights += float(path[t] - path[t - 1]) * precise(joint - self._base(u))
            if t < len(path) - 1:
                u, joint, slope = self._transition(u, joint, slope, float(path[t]))
        return weights

    def _base(self, u: Tensor) -> Tensor:
        return -0.5 * u.square().flatten(1).sum(1) - self.constant

    @torch.enable_grad()
    def _joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p(x, z) `[N]` and its gradient with respect to u."""
        u = u.detach().requires_grad_()
        value = self.joint.log_prob(self.loc + self.scale * u)
        (slope,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), slope

    def _transition(self, u: Tensor, joint: Tensor, slope: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Make one HMC transition that leaves f_beta invariant (Neal 2011, section 3.2).

        Each example has its own step size.
        """
        trailing = (-1, *[1] * (u.dim() - 1))
        jitter = 0.8 + 0.4 * self.noise.uniform(len(u), device=u.device)  # trajectories of one length may be periodic
        step = (self.log_step.exp().repeat_interleave(self.chains) * jitter).view(trailing)
        momentum = self.noise.normal(*u.shape, device=u.device)
        at, value, slope_at, pull = u, joint, slope, beta * slope - (1 - beta) * u
        before = self._energy(u, joint, momentum, beta)
        for _ in range(LEAPS):
            momentum = momentum + 0.5 * step * pull
            at = at + step * momentum
            value, slope_at = self._joint(at)
            pull = beta * slope_at - (1 - beta) * at
            momentum = momentum + 0.5 * step * pull
        chance = (before - self._energy(at, value, momentum, beta)).clamp(max=0).exp().nan_to_num(0.0)
        accepted = self.noise.uniform(len(u), device=u.device) < chance
        share = chance.view(self.count, self.chains).mean(1)
        self.log_step = self.log_step + ADAPTED * (share - TARGET)
        moved = accepted.view(trailing)
        return torch.where(moved, at, u), torch.where(accepted, value, joint), torch.where(moved, slope_at, slope)

    def _energy(self, u: Tensor, joint: Tensor, momentum: Tensor, beta: float) -> Tensor:
        kinetic = 0.5 * momentum.square().flatten(1).sum(1)
        return kinetic - beta * joint - (1 - beta) * self._base(u)
