"""How much better an example could be said if q were fitted to it alone: likelihood regret.

An encoder learns to choose q(z | x) for the examples that it was trained on. Where an example is unlike them it chooses
badly, and a few steps of optimisation for this one example gain much (Xiao et al. 2020, "Likelihood Regret", eq. 6).
Everything here gives the bound that is reached, `[B]` nats; the regret is the bound at the encoder's q less that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.bottlenecks.flow import FlowDistribution
from tessella.bottlenecks.gaussian import diagonal_normal
from tessella.core.distributions import kl_closed
from tessella.core.outputs import Latent
from tessella.core.rng import Noise
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel

STEP = 0.1
"""Adam's step, in deviations of the encoder's q."""
SHARES = (0.5, 0.2, 0.1, 0.05)
"""Shares of the codes that a trial replaces, in turn."""


def terms_of(
    model: Model,
    x: Tensor,
    label: Tensor | None,
    q: Distribution,
    prior: Distribution | None,
    eps: Tensor,
    *,
    source: Distribution | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Distortion -E_q log p(x | z) and rate KL(q || p), both `[B]`, over the z that `eps` stands for under q.

    The rate is in closed form if there is one, else the mean over the same z.

    Args:
        q: q(z | x), a Gaussian or a flow after one, batch shape `[B]`.
        prior: p(z); None leaves the rate out.
        eps: `[draws, B or 1, *latent_shape]`, standard normal.
        source: the Gaussian whose draws `eps` are; q's own unless given.
    """
    start = source or start_of(q)
    closed = None if prior is None else kl_closed(q, prior)
    distortions: list[Tensor] = []
    rates: list[Tensor] = []
    for e in eps:
        z = start.mean + start.stddev * e
        if isinstance(q, FlowDistribution):
            z, log_q = q.carried(z)
        else:
            log_q = q.log_prob(z)
        distortions.append(-model.decode(z, label).log_prob(x))
        if prior is not None and closed is None:
            rates.append(log_q - prior.log_prob(z))
    return torch.stack(distortions).mean(0), torch.stack(rates).mean(0) if rates else closed


def start_of(q: Distribution) -> Distribution:
    """The Gaussian that is drawn from: q itself, or what a flow carries on."""
    return q.base if isinstance(q, FlowDistribution) else q


@torch.enable_grad()
def best_posterior(
    model: Model, x: Tensor, label: Tensor | None, latent: Latent, eps: Tensor, noise: Noise, steps: int
) -> Tensor:
    """The bound at N(mu, sigma^2), mu and log sigma moved from the encoder's by Adam, the decoder as it is.

    Of a flow posterior those of its first Gaussian are moved, and its steps stay as the encoder sets them.

    Each step draws z anew, once; the bound is measured on `eps`, which had no part in the optimisation. So where
    nothing can be gained a regret may come out a little below zero.
    """
    assert isinstance(model, LatentVariableModel)
    assert latent.posterior is not None
    prior = model.prior_given(label)
    q, start = latent.posterior, start_of(latent.posterior)
    mean, deviation = start.mean.detach(), start.stddev.detach()
    moved = [torch.zeros_like(mean).requires_grad_(), torch.zeros_like(mean).requires_grad_()]
    optimizer = torch.optim.Adam(moved, lr=STEP)

    estimated = isinstance(q, FlowDistribution) or kl_closed(q, prior) is None

    def bound(draws: Tensor) -> Tensor:
        source = diagonal_normal(mean + deviation * moved[0], deviation * moved[1].exp())
        # Of an estimated rate only the draws are followed, and not log q's own parameters, whose gradient is noise of
        # mean zero (Roeder et al. 2017, "Sticking the landing", eq. 5).
        base = diagonal_normal(source.mean.detach(), source.stddev.detach()) if estimated else source
        now = q.rebased(base, base.mean) if isinstance(q, FlowDistribution) else base
        distortion, rate = terms_of(model, x, label, now, prior, draws, source=source)
        assert rate is not None
        return rate + distortion

    for step in range(steps):
        draws = noise.split(f"step{step}").normal(1, *eps.shape[1:], device=x.device)
        gradients = torch.autograd.grad(bound(draws).sum(), moved)
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch.no_grad():
        return bound(eps)


@torch.no_grad()
def best_codes(
    model: CodeModel, x: Tensor, label: Tensor | None, codes: Sequence[Tensor], noise: Noise, steps: int
) -> Tensor:
    """The lowest -log p(x, codes) that a local search finds.

    A trial replaces some of the codes by draws from the softened q(codes | x), and is kept for the examples whose
    -log p(x, codes) it lowers. So a regret is never below zero.
    """
    best, cost = tuple(codes), _cost(model, x, label, codes)
    for step in range(steps):
        drawn = model.draw_codes(x, noise.split(f"codes{step}"))
        share = SHARES[step % len(SHARES)]
        chance = noise.split(f"places{step}")
        places = [chance.uniform(*c.shape, device=c.device) < share for c in best]
        tried = tuple(torch.where(p, d, b) for p, d, b in zip(places, drawn, best, strict=True))
        now = _cost(model, x, label, tried)
        better = now < cost
        cost = torch.where(better, now, cost)
        best = tuple(torch.where(better.view(-1, *[1] * (t.dim() - 1)), t, b) for t, b in zip(tried, best, strict=True))
    return cost


def _cost(model: CodeModel, x: Tensor, label: Tensor | None, codes: Sequence[Tensor]) -> Tensor:
    rate = -torch.stack([level.flatten(1).sum(1) for level in model.log_prob_codes(codes, label)]).sum(0)
    return rate - model.decode(model.lookup(codes), label).log_prob(x)
