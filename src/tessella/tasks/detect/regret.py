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
from tessella.core.distributions import kl_closed
from tessella.core.outputs import Latent
from tessella.core.rng import Noise
from tessella.evaluation import per_example_posterior
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel

STEP = 0.1
"""Adam's step, in deviations of the encoder's q."""
SHARES = (0.5, 0.2, 0.1, 0.05)
"""Shares of the codes that a trial replaces, in turn."""


def terms_of(
    model: Model, x: Tensor, label: Tensor | None, q: Distribution, prior: Distribution | None, eps: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Distortion -E_q log p(x | z) and rate KL(q || p), both `[B]`, over the z that `eps` stands for under q.

    The rate is in closed form if there is one, else the mean over the same z.

    Args:
        q: q(z | x), a Gaussian or a flow after one, batch shape `[B]`.
        prior: p(z); None leaves the rate out.
        eps: `[draws, B or 1, *latent_shape]`, standard normal.
    """
    closed = None if prior is None else kl_closed(q, prior)
    start = q.base if isinstance(q, FlowDistribution) else q
    distortions: list[Tensor] = []
    rates: list[Tensor] = []
    for e in eps:
        z = start.mean + start.stddev * e
        z, log_q = q.carried(z) if isinstance(q, FlowDistribution) else (z, q.log_prob(z))
        distortions.append(-model.decode(z, label).log_prob(x))
        if prior is not None and closed is None:
            rates.append(log_q - prior.log_prob(z))
    return torch.stack(distortions).mean(0), torch.stack(rates).mean(0) if rates else closed


def best_posterior(
    model: Model, x: Tensor, label: Tensor | None, latent: Latent, eps: Tensor, noise: Noise, steps: int
) -> Tensor:
    """The bound at N(mu, sigma^2), mu and log sigma moved from the encoder's by Adam, the decoder as it is."""
    assert isinstance(model, LatentVariableModel)
    assert latent.posterior is not None
    return per_example_posterior.after_steps(model, x, label, latent.posterior, eps, noise, steps=steps, rate=STEP)


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
