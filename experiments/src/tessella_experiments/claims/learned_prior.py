"""a learned prior over codes beats the uniform one: fewer bits for unseen examples, and samples like data."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from tessella.plugin import CodeModel, Rows
from tessella_experiments.measuring import CLASSIFIER, distance, features_named, row_of
from tessella_experiments.models import VQVAE, VQVAE_PRIOR
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner

EXAMPLES, SAMPLES, SHOWN = 1000, 500, 12


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    data = runner.unseen(EXAMPLES).x
    rates: dict[str, list[float]] = {"uniform": [], "learned": []}
    apart: dict[str, list[float]] = {"uniform": [], "learned": []}
    shown: list[tuple[str, Tensor]] = [("data", data[:SHOWN])]
    for seed in runner.seeds:
        models = {"uniform": runner.model(VQVAE, seed), "learned": runner.model(VQVAE_PRIOR, seed)}
        for name, model in models.items():
            rates[name].append(_bits(cast(CodeModel, model), data))
            drawn = model.sample(SAMPLES, seed=seed)
            apart[name].append(distance(runner, drawn, data))
            if seed == runner.seeds[0]:
                shown.append((f"{name} prior", drawn[:SHOWN]))
    effects = [
        EffectTest.over(
            "bits that the learned prior saves",
            difference(rates["uniform"], rates["learned"]),
            unit="bits an example",
        ),
        EffectTest.over(
            "Frechet distance of samples from the uniform prior less that from the learned one",
            difference(apart["uniform"], apart["learned"]),
        ),
    ]
    measures = [
        *(Measure.over(f"rate, {name} prior", values, "bits an example") for name, values in rates.items()),
        *(Measure.over(f"Frechet distance, {name} prior", values) for name, values in apart.items()),
    ]
    labels = ("uniform", "learned")
    plots = [
        bars("rate", dict(zip(labels, measures[:2], strict=True)), "bits"),
        bars("Frechet distance to unseen data", dict(zip(labels, measures[2:], strict=True))),
        Rows([(n, row_of(x, runner.schema)) for n, x in shown], "Samples of one seed."),
    ]
    sentence = (
        f"an example's codes cost {measures[0].value:.4g} bits under the uniform prior and {measures[1].value:.4g} "
        f"under the learned one; samples are at {measures[2].value:.3g} and {measures[3].value:.3g} "
        f"({features_named(runner)})"
    )
    return Finding.of(sentence, effects, measures, plots)


def _bits(model: CodeModel, x: Tensor) -> float:
    """Mean rate of the codes in bits."""
    nats = 0.0
    for part in x.split(AT_ONCE):
        nats += float(model.rate(model.encode(part.to(model.device))).total.double().sum())
    return nats / len(x) / math.log(2)


CLAIM = Claim(
    number=7,
    title="A learned prior over codes beats the uniform one",
    hypothesis=(
        "Unseen examples' codes cost fewer bits under the learned prior than under the uniform one, and its samples "
        "are nearer to unseen data (Frechet distance)."
    ),
    method=f"a VQ-VAE and a PixelCNN over its codes; {EXAMPLES:,} unseen examples and {SAMPLES} samples at most",
    run=run,
    needs=(CLASSIFIER, VQVAE, VQVAE_PRIOR),
)
