"""Claim 2: z = mu + sigma eps makes the expectation differentiable, with less noise than the score function.

Of E_q[f(z)] with q = N(mu, sigma^2) and f(z) = log p(x | z), the estimators of the gradient with one draw are

* reparameterised: the gradient of f(mu + sigma eps) (Kingma & Welling 2013, section 2.4);
* score function: f(z) times the gradient of log q(z) (Williams 1992), plain, and with the mean of f as a baseline.

p(x | z) = N(b + W z, s^2) is probabilistic PCA of the data (Tipping & Bishop 1999), so f is quadratic and the gradient
is known: W'(x - b - W mu) / s^2 for mu, -diag(W'W) sigma / s^2 for sigma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella.claims.bench import Bench
from tessella.claims.claim import Bars, Claim, Lines, Measure, Result, Series, Trial, decided
from tessella.claims.measuring import principal
from tessella.core.rng import Noise

COMPONENTS, UNITS = 16, 8
DRAWS, EXAMPLES = 20_000, 16
TOLERANCE = 0.1
"""How far a mean may be off, as a share of the true gradient's length and along it."""
LEAST_RATIO = 2.0
"""By what factor the score function's variance is predicted to be larger, at the least."""
ESTIMATORS = ("reparameterised", "score function", "score function with baseline")


def run(bench: Bench) -> Result:
    batch = bench.examples("train", 5000)
    components = principal(batch.x, COMPONENTS)
    values = components.of(batch.x)
    units = min(UNITS, values.shape[1] - 1)
    weights, variance = _pca(components.deviations, units)
    off: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    noise: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for seed in bench.seeds:
        chosen = (Noise(seed, stream="claim 2 examples").uniform(EXAMPLES) * len(values)).long()
        found = {name: ([], []) for name in ESTIMATORS}
        for number, x in enumerate(values[chosen]):
            drawn = Noise(seed, number, "claim 2").normal(DRAWS, units).double()
            mu, sigma = _posterior(x, weights, variance)
            mu = mu + 0.5 * sigma * Noise(seed, number, "claim 2 start").normal(units).double()
            truth, estimates = _gradients(x, weights, variance, mu, 2 * sigma, drawn)
            for name, estimate in zip(ESTIMATORS, estimates, strict=True):
                error = estimate.mean(0) - truth
                found[name][0].append(float(error @ truth / truth.square().sum()))
                found[name][1].append(float(estimate.var(0).sum() / truth.square().sum()))
        for name in ESTIMATORS:
            off[name] += found[name][0]
            noise[name].append(_geometric(found[name][1]))
    trials = [
        Trial.over(
            f"the mean, {name}, is off by", off[name], least=-TOLERANCE, most=TOLERANCE, unit="of the true gradient"
        )
        for name in ESTIMATORS
    ]
    ratios = {
        name: [math.log2(b / a) for a, b in zip(noise[ESTIMATORS[0]], noise[name], strict=True)]
        for name in ESTIMATORS[1:]
    }
    trials += [
        Trial.over(f"variance of the {name} over the other", r, least=math.log2(LEAST_RATIO), unit="doublings")
        for name, r in ratios.items()
    ]
    measures = [Measure.over(f"variance of one draw, {n}", v, "of the squared gradient") for n, v in noise.items()]
    times = [2 ** (sum(r) / len(r)) for r in ratios.values()]
    worst = max(abs(sum(v) / len(v)) for v in off.values())
    sentence = (
        f"the means of the three are off by {100 * worst:.1f} % of the true gradient at most; one draw of the score "
        f"function varies {times[0]:,.0f} times as much as a reparameterised one, {times[1]:,.0f} times with a baseline"
    )
    return decided(sentence, trials, measures, [_by_draws(noise), _bars(noise)])


def _pca(deviations: Tensor, units: int) -> tuple[Tensor, float]:
    """W `[D, units]` and s^2 of probabilistic PCA, in the components' own axes."""
    variances = deviations.square()
    s2 = float(variances[units:].mean())
    diagonal = (variances[:units] - s2).clamp_min(1e-6).sqrt()
    return torch.cat([torch.diag(diagonal), diagonal.new_zeros(len(variances) - units, units)]), s2


def _posterior(x: Tensor, weights: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Mean and deviations of p(z | x) under z ~ N(0, I)."""
    precision = weights.T @ weights / variance + torch.eye(weights.shape[1], dtype=weights.dtype)
    return torch.linalg.solve(precision, weights.T @ x / variance), precision.diagonal().rsqrt()


def _gradients(
    x: Tensor, weights: Tensor, variance: float, mu: Tensor, sigma: Tensor, eps: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The true gradient by (mu, sigma) `[2 units]`, and each estimator's draws `[draws, 2 units]`."""
    gram = weights.T @ weights
    truth = torch.cat([weights.T @ (x - weights @ mu), -gram.diagonal() * sigma]) / variance
    z = mu + sigma * eps
    residual = x - z @ weights.T
    f = -0.5 * (residual.square() / variance + math.log(2 * math.pi * variance)).sum(1)
    slope = residual @ weights / variance
    score = torch.cat([eps / sigma, (eps.square() - 1) / sigma], 1)
    baseline = (f.sum() - f) / (len(f) - 1)  # of the other draws, so that it is independent of each
    return truth, (torch.cat([slope, slope * eps], 1), f[:, None] * score, (f - baseline)[:, None] * score)


def _geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def _by_draws(noise: dict[str, list[float]]) -> Lines:
    draws = (1, 4, 16, 64, 256, 1024)
    return Lines(
        "error of the gradient, log10 of its share",
        "draws",
        tuple(
            Series(n, tuple((float(d), 0.5 * math.log10(_geometric(v) / d)) for d in draws)) for n, v in noise.items()
        ),
        log=True,
    )


def _bars(noise: dict[str, list[float]]) -> Bars:
    logs = [Measure.over(n, [math.log10(x) for x in v]) for n, v in noise.items()]
    return Bars(
        "log10 of the variance of one draw",
        tuple(m.name.replace("score function", "score") for m in logs),
        tuple(m.value for m in logs),
        tuple(m.error or 0.0 for m in logs),
    )


def _hindrance(bench: Bench) -> str | None:
    return "the examples are single numbers" if bench.schema.dims < 2 else None


CLAIM = Claim(
    number=2,
    title="z = mu + sigma eps makes the expectation differentiable",
    hypothesis=(
        "The reparameterised gradient and the score function's have the same mean, the true gradient (within "
        f"{TOLERANCE * 100:g} % of its length), and the score function's variance is more than {LEAST_RATIO:g} times "
        "as large, with a baseline too."
    ),
    measured=(
        f"E_q log p(x | z) under probabilistic PCA of the data, where the gradient is known; {EXAMPLES} examples a "
        f"seed, {DRAWS:,} draws each, q wider than p(z | x) by a factor of two and off its mean"
    ),
    run=run,
    hindrance=_hindrance,
)
