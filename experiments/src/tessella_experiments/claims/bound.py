"""log p(x) = bound + KL(q(z | x) || p(z | x)), and raising the bound shrinks the gap.

The model is linear and Gaussian, so that all three are known in closed form: p(z) = N(0, I) and p(x | z) = N(b + W z,
s^2), so p(x) = N(b, W W' + s^2 I) and p(z | x) = N(P W'(x - b) / s^2, P), P = (I + W'W / s^2)^-1; q(z | x) = N(A x + c,
D) has a free diagonal D. All of it is trained on the bound, by Adam; the three are computed by three separate formulas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from tessella import Noise
from tessella.plugin import Chart, Series
from tessella_experiments.measuring import principal
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, difference
from tessella_experiments.runner import ExperimentRunner

COMPONENTS, UNITS = 16, 4
STEPS, VALIDATE_AT, RATE = 400, 20, 0.02
EXAMPLES = 512
IDENTITY = 1e-6
"""Nats that both sides may differ by: the rounding of float64, and no more."""


class Linear:
    """The model and its inference network, float64."""

    def __init__(self, dims: int, units: int, seed: int) -> None:
        noise = Noise(seed, stream="claim 4")
        w, a = (0.3 * noise.normal(*shape).double() for shape in ((dims, units), (units, dims)))
        b, c, log_d, log_s = (torch.zeros(n, dtype=torch.float64) for n in (dims, units, units, 1))
        self.parameters = [t.requires_grad_() for t in (w, a, b, c, log_d, log_s)]

    def bound(self, x: Tensor) -> Tensor:
        """E_q log p(x | z) - KL(q || p(z)), `[B]`."""
        w, a, b, c, log_d, log_s = self.parameters
        mean, d, s2 = x @ a.T + c, (2 * log_d).exp(), (2 * log_s).exp()
        missed = (x - b - mean @ w.T).square().sum(1) + (w.square().sum(0) * d).sum()
        fit = -0.5 * (missed / s2 + x.shape[1] * (s2.log() + math.log(2 * math.pi)))
        rate = 0.5 * (mean.square() + d - 1 - d.log()).sum(1)
        return fit - rate

    @torch.no_grad()
    def evidence(self, x: Tensor) -> Tensor:
        """log p(x), `[B]`."""
        w, _, b, _, _, log_s = self.parameters
        covariance = w @ w.T + (2 * log_s).exp() * torch.eye(len(b), dtype=w.dtype)
        return MultivariateNormal(b, covariance).log_prob(x)

    @torch.no_grad()
    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z | x) || p(z | x)), `[B]`."""
        w, a, b, c, log_d, log_s = self.parameters
        s2 = (2 * log_s).exp()
        precision = torch.eye(len(c), dtype=w.dtype) + w.T @ w / s2
        mean = ((x - b) @ w / s2) @ torch.linalg.inv(precision)
        posterior = MultivariateNormal(mean, precision_matrix=precision)
        q = MultivariateNormal(x @ a.T + c, torch.diag((2 * log_d).exp()))
        return kl_divergence(q, posterior)


def run(runner: ExperimentRunner) -> Finding:
    x = runner.examples(5000).x
    components = principal(x, COMPONENTS)
    values = components.of(x) / components.deviations[0]
    units = max(1, min(UNITS, values.shape[1] // 2))
    looked = values[:EXAMPLES]
    courses = [_course(values, looked, units, seed) for seed in runner.seeds]
    apart = max(abs(e - b - g) for course in courses for _, e, b, g in course)
    first = [course[0][3] for course in courses]
    last = [course[-1][3] for course in courses]
    together = [_correlation([b for _, _, b, _ in c], [g for _, _, _, g in c]) for c in courses]
    effects = [
        EffectTest.exact("log p(x) - bound - KL differs from zero", apart, least=None, most=IDENTITY, unit="nats"),
        EffectTest.over("the gap at the start less that at the end", difference(first, last), unit="nats"),
        EffectTest.over("rank correlation of bound and gap along training", together, least=None, most=0.0),
    ]
    measures = [
        Measure.over("gap at the start", first, "nats"),
        Measure.over("gap at the end", last, "nats"),
        Measure.over("bound at the start", [c[0][2] for c in courses], "nats"),
        Measure.over("bound at the end", [c[-1][2] for c in courses], "nats"),
        Measure.over("log p(x) at the end", [c[-1][1] for c in courses], "nats"),
    ]
    sentence = (
        f"the two sides differ by {apart:.1g} nats at most along {len(courses)} trainings; while the bound rose from "
        f"{measures[2].value:.2f} to {measures[3].value:.2f} nats, the gap went from {measures[0].value:.2f} to "
        f"{measures[1].value:.2f}"
    )
    return Finding.of(sentence, effects, measures, _plots(courses[0]))


def _course(values: Tensor, looked: Tensor, units: int, seed: int) -> list[tuple[int, float, float, float]]:
    """(step, log p(x), bound, gap) along one training, means over the examples looked at."""
    model = Linear(values.shape[1], units, seed)
    optimizer = torch.optim.Adam(model.parameters, RATE)
    course = []
    marks = {round(STEPS * (k / VALIDATE_AT) ** 2) for k in range(VALIDATE_AT + 1)}
    for step in range(STEPS + 1):
        if step in marks:
            with torch.no_grad():
                numbers = (model.evidence(looked), model.bound(looked), model.gap(looked))
            course.append((step, *(float(n.mean()) for n in numbers)))
        rows = (Noise(seed, step, "claim 4 rows").uniform(128) * len(values)).long()
        optimizer.zero_grad()
        (-model.bound(values[rows]).mean()).backward()
        optimizer.step()
    return course


def _correlation(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation."""
    ranks = torch.stack([torch.tensor(v).argsort().argsort().double() for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _plots(course: list[tuple[int, float, float, float]]) -> list[Chart]:
    steps, evidence, bound, gap = (tuple(map(float, column)) for column in zip(*course, strict=True))
    both = (Series(steps[2:], evidence[2:], "log p(x)"), Series(steps[2:], bound[2:], "bound"))
    return [
        Chart("nats per example, one seed", both, x_label="updates"),
        Chart("KL(q(z | x) || p(z | x)), nats", (Series(steps, gap, "gap"),), x_label="updates"),
    ]


CLAIM = Claim(
    number=4,
    title="log p(x) = bound + KL(q(z|x) || p(z|x)); raising the bound shrinks the gap",
    hypothesis=(
        f"Along training the identity holds to {IDENTITY:g} nats; the gap is smaller at the end than at the start, and "
        "falls as the bound rises (negative rank correlation)."
    ),
    method=(
        f"a linear-Gaussian model of the data's {COMPONENTS} leading principal components with {UNITS} units, where "
        f"log p(x) and p(z | x) are known; model and q trained together by {STEPS} updates, {VALIDATE_AT} looks"
    ),
    run=run,
    skip_reason=lambda runner: "the examples are single numbers" if runner.schema.dims < 2 else None,
)
