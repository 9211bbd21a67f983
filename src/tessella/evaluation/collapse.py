"""Tests for posterior collapse: whether the decoder uses z.

Four measures, none of which is the training objective. They are computed on some examples; for a conditional model
within each class, so that information from the label is not credited to z.

* *Active units* (Burda et al. 2015, section 5 and appendix C): latent units whose posterior mean varies between
  examples, Var_x(E_q[z_u | x]) > 0.01. With codes: positions at which the code is not the same for all examples.
* *Mutual information* of z and the index n of one of M examples (Hoffman & Johnson 2016; He et al. 2019, section 4):
  I = E_n KL(q(z | x_n) || p(z)) - KL(q(z) || p(z)) = E_n E_q(z | x_n) [log q(z | x_n) - log 1/M sum_m q(z | x_m)],
  estimated with one posterior sample per example. It lies between 0 and log M: it is the information about these M
  examples, and a lower bound for the whole data. With codes it is the entropy of the M grids: log M if all differ.
* *Shuffle cost*: log p(x | z_x) - log p(x | z_other), where z_other belongs to another example (a seeded cyclic shift),
  in nats per example like the bound. For a model that fits its data it is at least the mutual information of x and z,
  since it is then the sum of both KL divergences between their joint distribution and the product of its margins.
* *KL per unit*: the rate of each latent unit, `Evaluation.kl_per_unit`.

A model has **collapsed** if the shuffle cost is below 0.5 nats or the mutual information is below 0.1 nats: less than a
bit of the decoded example depends on z. Working models lie far above (tens of nats, and log M on pictures); the noise
of the estimates, which shrinks with the cost itself, lies far below. Active units do not decide: they depend on the
encoder alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.core.batches import Batch
from tessella.core.device import precise
from tessella.core.outputs import Latent
from tessella.core.rng import Noise
from tessella.evaluation.results import CollapseEvaluation
from tessella.foundation.errors import option
from tessella.models.base import Model

EXAMPLES = 250
"""Number of examples to test on: enough to see up to log 250 = 5.5 nats of mutual information."""
MOVES = 0.01
"""Variance of the posterior mean over examples above which a unit is active."""
LEAST_COST, LEAST_INFORMATION = 0.5, 0.1
"""Lower limits in nats: a model has collapsed if it is below either."""
INVERTED, FEWEST = 100_000, 8
"""Limits for flow posteriors, whose density at another example's z needs an inversion.

The approximate number of values to invert in total, and the minimum number of examples.
"""
AT_ONCE = 2**24
"""Values in the largest tensor of log densities: 64 MB."""


@torch.inference_mode()
def measure_collapse(model: Model, examples: Batch, *, seed: int = 0) -> CollapseEvaluation | None:
    """Test `model` for posterior collapse on `examples` `[M]`.

    Args:
        seed: seed of the posterior samples and of the shuffle.

    Returns:
        None if there is nothing to test: no q(z | x), or no two examples (of one class, for a conditional model).
    """
    examples = examples.to(model.device)
    if model.sequential_density:
        few = int((INVERTED / math.prod(model.latent_shape)) ** 0.5)
        examples = examples[: max(FEWEST, few)]
    x, label = examples.x, examples.label
    latent = model.encode(x, label, noise=Noise(seed, 0, "collapse"))
    if latent.posterior is None and not latent.codes:
        return None
    group = torch.zeros(len(x), dtype=torch.int64) if not model.conditional or label is None else label.cpu()
    other = partners(group, seed).to(x.device)
    group, paired = group.to(x.device), other != torch.arange(len(x), device=x.device)
    if not paired.any():
        return None
    own, exchanged = (precise(model.decode(z, label).log_prob(x)) for z in (latent.z, latent.z[other]))
    cost = float((own - exchanged)[paired.to(own.device)].mean())
    information, ceiling = mutual_information(log_densities(latent), group, paired)
    active, units = active_units(latent, group, other)
    collapsed = cost < LEAST_COST or information < LEAST_INFORMATION
    return CollapseEvaluation(
        examples=len(x),
        active_units=active,
        units=units,
        mutual_information=information,
        mutual_information_ceiling=ceiling,
        shuffle_cost=cost,
        collapsed=collapsed,
        advice=_advice(model, cost, information) if collapsed else "",
    )


def partners(group: Tensor, seed: int = 0) -> Tensor:
    """Choose another example of the same group for each example, `[M]`.

    Each group is shifted cyclically in a seeded order. An example that is alone in its group gets itself.
    """
    order = torch.argsort(Noise(seed, stream="exchange").uniform(len(group)))
    other = torch.arange(len(group))
    for of in group.unique():
        members = order[group[order] == of]
        other[members] = members.roll(1)
    return other


def log_densities(latent: Latent) -> Tensor:
    """Compute log q(z_n | x_m) `[M, M]` in nats, with the samples z_n in rows.

    With codes it is 0 where the two grids are equal, else -inf.

    Args:
        latent: latents of M examples, with `z` sampled from the posterior.
    """
    if latent.posterior is None:
        _, grid = torch.unique(_flat(latent.codes), dim=0, return_inverse=True)
        same = grid[:, None] == grid
        return torch.zeros(same.shape, device=same.device).masked_fill(~same, -torch.inf)
    rows = max(1, AT_ONCE // latent.z.numel())
    return torch.cat([latent.posterior.log_prob(z.unsqueeze(1)) for z in latent.z.split(rows)])


def mutual_information(log_q: Tensor, group: Tensor, counted: Tensor) -> tuple[float, float]:
    """Estimate the mutual information of z and the example's index, and its maximum, in nats.

    The index is that within the example's group. A negative estimate, which occurs by chance, is returned as zero.

    Args:
        log_q: `[M, M]`, from `log_densities`.
        group: `[M]`, group of each example.
        counted: `[M]` bool, rows to average over.
    """
    log_q = precise(log_q)
    group, counted = group.to(log_q.device), counted.to(log_q.device)
    same = group[:, None] == group
    log_q, number = log_q.masked_fill(~same, -torch.inf), same.sum(1).double().log()
    aggregate = torch.logsumexp(log_q, 1) - number
    return max(0.0, float((log_q.diagonal() - aggregate)[counted].mean())), float(number[counted].mean())


def active_units(latent: Latent, group: Tensor, other: Tensor) -> tuple[int | None, int]:
    """Count the units (or codes) that vary between the examples of a group, and all units.

    The first number is None if the posterior has no known mean.

    Args:
        other: `[M]`, from `partners`.
    """
    if latent.posterior is None:
        codes = _flat(latent.codes)
        return int((codes != codes[other]).any(0).sum()), codes.shape[1]
    means, units = _mean(latent.posterior), math.prod(latent.z.shape[1:])
    if means is None:
        return None, units
    centred = precise(means.flatten(1))
    group = group.to(centred.device)
    groups = group.unique()
    for of in groups:
        centred[group == of] -= centred[group == of].mean(0)
    variance = centred.square().sum(0) / (len(centred) - len(groups))
    return int((variance > MOVES).sum()), units


def _flat(codes: tuple[Tensor, ...]) -> Tensor:
    """Concatenate the codes of all levels, `[M, N]`."""
    return torch.cat([c.flatten(1) for c in codes], 1)


def _mean(posterior: Distribution) -> Tensor | None:
    """Return E_q[z], or None if the distribution does not know it."""
    try:
        return posterior.mean
    except NotImplementedError:
        return None


def _advice(model: Model, cost: float, information: float) -> str:
    """Describe what is wrong and how to mend it."""
    found = (
        f"exchanging it between examples costs only {cost:.2f} nats"
        if cost < LEAST_COST
        else f"its mutual information with the example is only {information:.2f} nats"
    )
    weaker = f", a weaker decoder (smaller {option('pixel_depth')})" if model.likelihood.sequential_mean else ""
    if model.levels:
        remedy = f"another {option('quantizer')} (ema, fsq){weaker}, or longer training"
    else:
        options = f"{option('free_bits')} 0.1, {option('warmup')} 0.3"
        remedy = f"{options}{weaker}, longer training, or codes, whose rate is fixed: vqvae"
    return f"the latent is not used: {found}. Try {remedy}."
