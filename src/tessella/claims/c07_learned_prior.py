"""Claim 7: a learned prior over codes beats the uniform one: fewer bits for unseen examples, and samples like data."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from tessella.claims.bench import AT_ONCE, Bench
from tessella.claims.claim import Bars, Claim, Measure, Pictures, Plot, Result, Trial, decided
from tessella.claims.measuring import CLASSIFIER, distance, features_named, row_of
from tessella.claims.recipes import VQVAE, VQVAE_PRIOR
from tessella.models.codes import CodeModel

EXAMPLES, SAMPLES, SHOWN = 1000, 500, 12


@torch.inference_mode()
def run(bench: Bench) -> Result:
    data = bench.unseen(EXAMPLES).x
    rates: dict[str, list[float]] = {"uniform": [], "learned": []}
    apart: dict[str, list[float]] = {"uniform": [], "learned": []}
    shown: list[tuple[str, Tensor]] = [("data", data[:SHOWN])]
    for seed in bench.seeds:
        models = {"uniform": bench.model(VQVAE, seed), "learned": bench.model(VQVAE_PRIOR, seed)}
        for name, model in models.items():
            rates[name].append(_bits(cast(CodeModel, model), data))
            drawn = model.sample(SAMPLES, seed=seed)
            apart[name].append(distance(bench, drawn, data))
            if seed == bench.seeds[0]:
                shown.append((f"{name} prior", drawn[:SHOWN]))
    trials = [
        Trial.over(
            "bits that the learned prior saves",
            [a - b for a, b in zip(rates["uniform"], rates["learned"], strict=True)],
            unit="bits an example",
        ),
        Trial.over(
            "Frechet distance of samples from the uniform prior less that from the learned one",
            [a - b for a, b in zip(apart["uniform"], apart["learned"], strict=True)],
        ),
    ]
    measures = [
        *(Measure.over(f"rate, {name} prior", values, "bits an example") for name, values in rates.items()),
        *(Measure.over(f"Frechet distance, {name} prior", values) for name, values in apart.items()),
    ]
    plots: list[Plot] = [
        _bars("rate", measures[:2], "bits"),
        _bars("Frechet distance to unseen data", measures[2:], ""),
        Pictures(
            "Samples of one seed.",
            tuple((n, row_of(x, bench.schema)) for n, x in shown),
        ),
    ]
    sentence = (
        f"an example's codes cost {measures[0].value:.4g} bits under the uniform prior and {measures[1].value:.4g} "
        f"under the learned one; samples are at {measures[2].value:.3g} and {measures[3].value:.3g} "
        f"({features_named(bench)})"
    )
    return decided(sentence, trials, measures, plots)


def _bits(model: CodeModel, x: Tensor) -> float:
    """Mean rate of the codes in bits."""
    nats = 0.0
    for part in x.split(AT_ONCE):
        nats += float(model.rate(model.encode(part.to(model.device))).total.double().sum())
    return nats / len(x) / math.log(2)


def _bars(title: str, measures: list[Measure], unit: str) -> Bars:
    return Bars(
        title, ("uniform", "learned"), tuple(m.value for m in measures), tuple(m.error or 0.0 for m in measures), unit
    )


CLAIM = Claim(
    number=7,
    title="A learned prior over codes beats the uniform one",
    hypothesis=(
        "Unseen examples' codes cost fewer bits under the learned prior than under the uniform one, and its samples "
        "are nearer to unseen data (Frechet distance)."
    ),
    measured=f"a VQ-VAE and a PixelCNN over its codes; {EXAMPLES:,} unseen examples and {SAMPLES} samples at most",
    run=run,
    needs=(CLASSIFIER, VQVAE, VQVAE_PRIOR),
)
