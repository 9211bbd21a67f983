"""q(z | x) leaves an inference gap, of approximation and amortisation; flows shrink it or have none.

    bound - (-log p(x)) = (bound - bound with the best q of the family) + (the latter - (-log p(x)))
                        =  amortisation gap                             +  approximation gap

All three are measured by `measure_gap`, the task `inference-gap` in memory. Two VAEs differ in nothing but the family:
a factorised Gaussian, and the same followed by inverse autoregressive steps. Of an invertible model z says x exactly:
q(z | x) is p(z | x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tessella
from tessella import FlowPosterior, GapConfig, Model, Noise, Schema, Split, measure_gap
from tessella_experiments.models import RATE, UPDATES, VAE, latent
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import ExperimentRunner, of_model

CHAINS, DRAWS = 8, 200
"""Of annealing, and of z for the importance-weighted bound."""
ANNEALING_STEPS = 100
EXAMPLES = 8
"""Each is given a flow of its own, which takes longer than the training."""


def _with_flow(schema: Schema) -> dict[str, Any]:
    return {**latent(schema), "posterior": FlowPosterior()}


def _invertible(schema: Schema) -> dict[str, Any]:
    return {"width": 16, "depth": 1, "flow_steps": 2} if schema.rank == 2 else {"width": 64}


FLOW_POSTERIOR = of_model(
    "vae with a flow posterior", tessella.VAE, _with_flow, steps=UPDATES, weight=1.5, learning_rate=RATE
)
FLOW = of_model("flow", tessella.Flow, _invertible, steps=300, weight=1.0)


@dataclass(frozen=True)
class Gap:
    """Of one model, mean nats per example.

    Attributes:
        exact: -log p(x).
        bound, own: as trained, and with each example's own q of the same family.
        weighted: -log p(x) bounded by importance weighting.
    """

    exact: float
    bound: float
    own: float
    weighted: float

    @property
    def approximation(self) -> float:
        return self.own - self.exact

    @property
    def amortisation(self) -> float:
        return self.bound - self.own


def run(runner: ExperimentRunner) -> Finding:
    split = runner.data.split("test" if "test" in runner.data.splits else "valid")
    gaussian, flow, exact = [], [], []
    for seed in runner.seeds:
        gaussian.append(measured(runner.model(VAE, seed), split, seed))
        flow.append(measured(runner.model(FLOW_POSTERIOR, seed), split, seed))
        exact.append(given_back(runner.model(FLOW, seed), runner.unseen(200).x, seed))
    return conclude(gaussian, flow, exact, EXAMPLES)


def measured(model: Model, split: Split, seed: int, *, examples: int = EXAMPLES, steps: int = ANNEALING_STEPS) -> Gap:
    """The parts of the gap; every seed judges the same examples by random numbers of its own."""
    with torch.inference_mode(False):
        config = GapConfig(examples=examples, chains=CHAINS, steps=steps, simulated=2, seed=seed)
        gap = measure_gap(model, split, config)
    chosen = split.subset(split.random_rows(examples))
    weighted = tessella.evaluate(model, chosen, importance_samples=DRAWS, seed=seed).importance_bound
    assert weighted is not None
    return Gap(gap.exact.nats, gap.bound.nats, gap.own.nats, weighted.nats)


@torch.no_grad()
def given_back(model: Model, x: Tensor, seed: int) -> float:
    """Share of the examples that an invertible model gives back exactly from z, so that z leaves nothing to be said."""
    z = model.encode(x, noise=Noise(seed, stream="claim 12")).z
    return float((model.decode(z).log_prob(x) == 0).double().mean())


def conclude(gaussian: list[Gap], flow: list[Gap], exact: list[float], examples: int) -> Finding:
    """The result of the gaps of both VAEs and of what the invertible model gives back, one a seed."""
    effects = [
        EffectTest.over("Gaussian: approximation gap", [g.approximation for g in gaussian], unit="nats"),
        EffectTest.over("Gaussian: amortisation gap", [g.amortisation for g in gaussian], unit="nats"),
        EffectTest.over(
            "approximation gap: Gaussian more than flow",
            difference([g.approximation for g in gaussian], [f.approximation for f in flow]),
            unit="nats",
        ),
        EffectTest.exact(
            "invertible model: share of examples given back exactly, least of all seeds", min(exact), least=0.999
        ),
    ]
    measures = []
    for words, gaps in (("Gaussian", gaussian), ("flow", flow)):
        measures += [
            Measure.over(f"{words}: -log p(x), annealed", [g.exact for g in gaps], "nats"),
            Measure.over(f"{words}: -log p(x), {DRAWS} importance weights", [g.weighted for g in gaps], "nats"),
            Measure.over(f"{words}: bound with each example's own q", [g.own for g in gaps], "nats"),
            Measure.over(f"{words}: bound", [g.bound for g in gaps], "nats"),
            Measure.over(f"{words}: approximation gap", [g.approximation for g in gaps], "nats"),
            Measure.over(f"{words}: amortisation gap", [g.amortisation for g in gaps], "nats"),
            Measure.over(f"{words}: total gap", [g.bound - g.exact for g in gaps], "nats"),
        ]
    parts = [measures[i] for i in (4, 5, 11, 12)]
    labels = [f"{family}, {part}" for family in ("Gaussian", "flow") for part in ("approximation", "amortisation")]
    shown = {**dict(zip(labels, parts, strict=True)), "invertible": Measure("invertible", 0.0)}
    plot = bars("the inference gap and its parts", shown, "nats")
    sentence = (
        f"on {examples} unseen examples the Gaussian posterior misses log p(x) by {measures[6].value:.2f} nats, "
        f"{parts[0].value:.2f} of approximation and {parts[1].value:.2f} of amortisation; the flow posterior by "
        f"{measures[13].value:.2f}, {parts[2].value:.2f} and {parts[3].value:.2f}; the invertible model gives "
        f"{100 * min(exact):.0f} % of the examples back exactly from z"
    )
    return Finding.of(sentence, effects, measures, [plot])


CLAIM = Claim(
    number=12,
    title="The inference gap has two parts; a flow posterior shrinks one, an invertible model has none",
    hypothesis=(
        "With a factorised Gaussian q both the approximation gap and the amortisation gap are above zero; with a flow "
        "posterior the approximation gap is smaller; and an invertible model gives x back exactly from z, so that "
        "q(z | x) is p(z | x)."
    ),
    method=(
        f"{CHAINS} chains of {ANNEALING_STEPS} steps of annealed importance sampling, and Adam on each example's own q "
        f"until it gains no more, for {EXAMPLES} unseen examples"
    ),
    run=run,
    needs=(VAE, FLOW_POSTERIOR, FLOW),
)
