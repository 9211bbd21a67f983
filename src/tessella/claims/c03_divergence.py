"""Claim 3: the KL divergence is never negative, is not symmetric, and has a closed form for Gaussians.

The Gaussians are the data's own: of each class (or of each group along the first component, without labels) the
mean and variances in whitened principal components, so that N(0, I) is the whole data's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tessella.claims.bench import Bench
from tessella.claims.claim import Claim, Lines, Measure, Result, Series, Trial, decided
from tessella.claims.measuring import principal
from tessella.core.distributions import kl
from tessella.core.rng import Noise

UNITS, DRAWS, GROUPS, MOST_CLASSES = 8, 20_000, 8, 20
TOLERANCE = 0.02
"""Share by which closed form and Monte Carlo may differ."""
LEAST_ASYMMETRY = 0.05
"""|KL(q, p) - KL(p, q)| over their mean that counts as not symmetric."""


def run(bench: Bench) -> Result:
    batch = bench.examples("train", 5000)
    values = principal(batch.x, UNITS).of(batch.x, whitened=True)
    groups = _groups(values, batch.label if bench.classes > 1 else None)
    means = torch.stack([values[groups == g].mean(0) for g in groups.unique()])
    variances = torch.stack([values[groups == g].var(0) + 1e-3 for g in groups.unique()])
    q, p = Independent(Normal(means, variances.sqrt()), 1), _standard(means)
    formula = -0.5 * (1 + variances.log() - means.square() - variances).sum(1)
    closed, backward = kl(q, p).double(), kl(p, q).double()
    off = float((closed - formula).abs().max())
    differences, worst = [], []
    for seed in bench.seeds:
        z = means + variances.sqrt() * Noise(seed, stream="claim 3").normal(DRAWS, *means.shape).double()
        estimate = (q.log_prob(z) - p.log_prob(z)).mean(0)
        differences.append(float((estimate / closed - 1).mean()))
        worst.append(float((estimate / closed - 1).abs().max()))
    between = _between(means, variances)
    apart = (between - between.T).abs() / (between + between.T).clamp_min(1e-12) * 2
    pairs = apart[~torch.eye(len(means), dtype=torch.bool)]
    least = float(torch.cat([closed, backward, between.flatten()]).min())
    trials = [
        Trial.over(
            "closed form and Monte Carlo agree", differences, least=-TOLERANCE, most=TOLERANCE, unit="of the value"
        ),
        Trial.exact("the least of all divergences is not negative", least, least=-1e-6, unit="nats"),
        Trial.exact("KL(q, p) differs from KL(p, q)", float(pairs.mean()), least=LEAST_ASYMMETRY, unit="of their mean"),
        Trial.exact("the package computes another value than the formula", off, least=None, most=1e-3, unit="nats"),
    ]
    measures = [
        Measure.over("KL of a group from N(0, I)", closed.tolist(), "nats"),
        Measure.over("the other way round", backward.tolist(), "nats"),
        Measure("largest difference of Monte Carlo from the closed form", max(worst) * 100, None, "%"),
    ]
    both = (("KL(q || p)", closed), ("KL(p || q)", backward))
    plot = Lines(
        "nats, q of a group, p = N(0, I)",
        "class" if bench.classes > 1 else "group along the first component",
        tuple(Series(name, tuple((float(n), float(v)) for n, v in enumerate(values))) for name, values in both),
    )
    sentence = (
        f"over {len(closed)} Gaussians of the data, Monte Carlo is within {max(worst) * 100:.1f} % of the closed form; "
        f"the two directions differ by {float(pairs.mean()) * 100:.0f} % on average; the least divergence is "
        f"{least:.3g} nats"
    )
    return decided(sentence, trials, measures, [plot])


def _groups(values: Tensor, label: Tensor | None) -> Tensor:
    if label is not None:
        counts = torch.bincount(label)
        kept = [int(k) for k in counts.argsort(descending=True)[:MOST_CLASSES] if counts[k] > 4]
        if len(kept) > 1:
            groups = torch.full_like(label, -1)
            for number, of in enumerate(sorted(kept)):
                groups[label == of] = number
            return torch.where(groups < 0, 0, groups)
    order = values[:, 0].argsort().argsort()
    return order * GROUPS // len(values)


def _standard(like: Tensor) -> Independent:
    return Independent(Normal(torch.zeros_like(like), torch.ones_like(like)), 1)


def _between(means: Tensor, variances: Tensor) -> Tensor:
    """KL of each group's Gaussian from each other's, `[G, G]`."""
    ratio = variances[:, None] / variances[None]
    return 0.5 * (ratio - 1 - ratio.log() + (means[:, None] - means[None]).square() / variances[None]).sum(-1)


CLAIM = Claim(
    number=3,
    title="KL is never negative, not symmetric, and closed for Gaussians",
    hypothesis=(
        "The closed form -1/2 sum(1 + log s^2 - mu^2 - s^2) agrees with Monte Carlo within "
        f"{TOLERANCE * 100:g} %, no divergence is negative, and KL(q, p) differs from KL(p, q) by more than "
        f"{LEAST_ASYMMETRY * 100:g} % of their mean."
    ),
    measured=(
        f"Gaussians of the data's groups in {UNITS} whitened principal components; {DRAWS:,} draws each; the package's "
        "own KL against the formula"
    ),
    run=run,
)
