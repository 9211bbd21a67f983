"""Posterior collapse: whether z is used, or the decoder does without it.

Four views of the same question, none of which sees the objective that was trained. All are of some examples; where a
model is conditional they are taken within each class, so that what the label says is not credited to z.

* *Active units* (Burda et al. 2015, section 5 and appendix C): numbers of z whose posterior mean moves from example to
  example, Var_x(E_q[z_u | x]) > 0.01. Of codes: those that are not the same for all examples.
* *Mutual information* of z and the index n of one of M examples (Hoffman & Johnson 2016; He et al. 2019, section 4):
  I = E_n KL(q(z | x_n) || p(z)) - KL(q(z) || p(z)) = E_n E_q(z | x_n) [log q(z | x_n) - log 1/M sum_m q(z | x_m)],
  by one draw an example. It lies between 0 and log M, so it is exact for these M and a lower bound for the data's.
  Of codes it is the entropy of the M grids: log M if no two examples have the same.
* *Shuffle cost*: log p(x | z_x) - log p(x | z_other), z_other of another example (a seeded cyclic shift). It is in the
  bound's own nats; for a model that fits its data it is at least the mutual information of x and z, as it is then the
  sum of both KL divergences between their joint distribution and the product of its margins.
* *KL per unit* is the rate's own split, `Evaluation.kl_per_unit`.

**Collapsed** is said when the shuffle cost is below 0.5 nats, or the mutual information below 0.1 nats: less than a bit
of what is drawn depends on z. Working models lie far above (tens of nats and log M on pictures); the noise of the
estimates, which shrinks with the cost itself, far below. Active units do not decide: they look at the encoder alone.
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
"""How many examples it is judged on: enough to see up to log 250 = 5.5 nats of mutual information."""
MOVES = 0.01
"""Variance over the examples that the mean of an active unit has at least."""
LEAST_COST, LEAST_INFORMATION = 0.5, 0.1
"""Nats: z is used if it is worth as much as both."""
INVERTED, FEWEST = 100_000, 8
"""Of a flow posterior, whose density at another example's z is found by inversion: numbers inverted in all, about, and
how many examples there are at least."""
AT_ONCE = 2**24
"""Numbers in the largest tensor of log densities: 64 MB."""


@torch.inference_mode()
def measure_collapse(model: Model, examples: Batch, *, seed: int = 0) -> CollapseEvaluation | None:
    """Judge `model` on `examples` `[M]`, which are encoded once and decoded twice.

    Args:
        seed: of the draws of z and of the exchange.

    Returns:
        None where there is nothing to judge: no q(z | x), or no two examples (of one class, for a conditional model).
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
    """For each example another one of its group `[M]`: a cyclic shift of a seeded order; the only one is left alone."""
    order = torch.argsort(Noise(seed, stream="exchange").uniform(len(group)))
    other = torch.arange(len(group))
    for of in group.unique():
        members = order[group[order] == of]
        other[members] = members.roll(1)
    return other


def log_densities(latent: Latent) -> Tensor:
    """log q(z_n | x_m) `[M, M]`, row n, in nats; of codes 0 where the grids are the same, else -inf.

    Args:
        latent: of M examples, `z` drawn from the posterior.
    """
    if latent.posterior is None:
        _, grid = torch.unique(_flat(latent.codes), dim=0, return_inverse=True)
        same = grid[:, None] == grid
        return torch.zeros(same.shape, device=same.device).masked_fill(~same, -torch.inf)
    rows = max(1, AT_ONCE // latent.z.numel())
    return torch.cat([latent.posterior.log_prob(z.unsqueeze(1)) for z in latent.z.split(rows)])


def mutual_information(log_q: Tensor, group: Tensor, counted: Tensor) -> tuple[float, float]:
    """The mutual information of z and the example's index within its group, and what it can be at most; nats.

    An estimate below zero, which chance may give, is returned as zero.

    Args:
        log_q: `[M, M]`, as `log_densities` gives it.
        group: `[M]`.
        counted: `[M]` bool, the rows that the average is over.
    """
    log_q = precise(log_q)
    group, counted = group.to(log_q.device), counted.to(log_q.device)
    same = group[:, None] == group
    log_q, number = log_q.masked_fill(~same, -torch.inf), same.sum(1).double().log()
    aggregate = torch.logsumexp(log_q, 1) - number
    return max(0.0, float((log_q.diagonal() - aggregate)[counted].mean())), float(number[counted].mean())


def active_units(latent: Latent, group: Tensor, other: Tensor) -> tuple[int | None, int]:
    """How many units (codes) change from example to example of a group, and of how many.

    Args:
        other: `[M]`, as `partners` gives it.
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
    """The codes of all levels `[M, N]`."""
    return torch.cat([c.flatten(1) for c in codes], 1)


def _mean(posterior: Distribution) -> Tensor | None:
    """E_q[z], where the distribution knows it."""
    try:
        return posterior.mean
    except NotImplementedError:
        return None


def _advice(model: Model, cost: float, information: float) -> str:
    """What is wrong and what to do, in words."""
    found = (
        f"exchanging it between examples costs only {cost:.2f} nats"
        if cost < LEAST_COST
        else f"it tells only {information:.2f} nats of which example it is of"
    )
    weaker = f", a weaker decoder (smaller {option('pixel_depth')})" if model.likelihood.sequential_mean else ""
    if model.levels:
        remedy = f"another {option('quantizer')} (ema, fsq){weaker}, or longer training"
    else:
        options = f"{option('free_bits')} 0.1, {option('warmup')} 0.3"
        remedy = f"{options}{weaker}, longer training, or codes, which keep their rate: vqvae"
    return f"the latent is not used: {found}. Try {remedy}."
