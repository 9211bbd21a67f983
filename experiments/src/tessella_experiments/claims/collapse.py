"""with a strong autoregressive decoder a VAE's z is ignored (posterior collapse); codes are not.

Three models of the same encoder and decoder: a VAE whose pixels are independent given z, and a VAE and a VQ-VAE whose
pixels are drawn each given those before it (Chen et al. 2016; van den Oord et al. 2017, section 1). How much z is used
is told by what log p(x | z) loses when z is exchanged between examples, and by the mutual information of z and the
example: `measure_collapse`.
"""

from __future__ import annotations

from typing import Any

import torch

import tessella
from tessella import Autoregressive, CollapseEvaluation, Integers, Schema, measure_collapse
from tessella.plugin import Chart, Series
from tessella_experiments.models import RATE, VAE, codes, latent
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import ExperimentRunner, of_model

EXAMPLES = 250
IGNORED = 0.1
"""Of what z is worth to the factorised decoder: worth less than this share, it counts as ignored."""
USED = 0.5
"""Nats that codes are worth at the least if they are used."""


def _strong(schema: Schema) -> dict[str, Any]:
    """A decoder of pixels that sees far: 4 layers reach over a small picture."""
    components = 4 if schema.values == Integers() else None
    return {"likelihood": Autoregressive(components=components, pixel_width=16, pixel_depth=4)}


STRONG_VAE = of_model(
    "vae, autoregressive",
    tessella.VAE,
    lambda s: {**latent(s), **_strong(s)},
    weight=2.5,
    steps=500,
    learning_rate=RATE,
)
STRONG_VQVAE = of_model(
    "vqvae, autoregressive",
    tessella.VQVAE,
    lambda s: {**codes(s), **_strong(s)},
    weight=2.5,
    steps=500,
    learning_rate=RATE,
)
JOBS = {"VAE": VAE, "VAE, autoregressive": STRONG_VAE, "VQ-VAE, autoregressive": STRONG_VQVAE}


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    examples = runner.unseen(EXAMPLES)
    found: dict[str, list[CollapseEvaluation]] = {name: [] for name in JOBS}
    curves: dict[str, tuple[float, ...]] = {}
    for seed in runner.seeds:
        for name, job in JOBS.items():
            model = runner.model(job, seed)
            judged = measure_collapse(model, examples, seed=seed)
            assert judged is not None
            found[name].append(judged)
            rate = model.rate(model.encode(examples.x.to(model.device)))
            if name != "VQ-VAE, autoregressive" and name not in curves and rate and rate.per_unit is not None:
                curves[name] = tuple(sorted(rate.per_unit.mean(0).tolist(), reverse=True))
    plain, vae, vq = ([j.shuffle_cost for j in found[name]] for name in JOBS)
    effects = [
        EffectTest.over(
            "exchanging z of the autoregressive VAE costs, of what it costs the factorised one",
            [a / b for a, b in zip(vae, plain, strict=True)],
            least=None,
            most=IGNORED,
        ),
        EffectTest.over("exchanging codes of the autoregressive VQ-VAE costs", vq, least=USED, unit="nats"),
        EffectTest.over(
            "which is more than exchanging z of the autoregressive VAE",
            difference(vq, vae),
            unit="nats",
        ),
    ]
    measures = []
    for name, judged in found.items():
        measures += [
            Measure.over(f"shuffle cost, {name}", [j.shuffle_cost for j in judged], "nats"),
            Measure.over(f"mutual information, {name}", [j.mutual_information for j in judged], "nats"),
            Measure.over(
                f"units that vary, {name}", [100 * (j.active_units or 0) / j.units for j in judged], "% of the units"
            ),
        ]
    costs = [m for m in measures if m.name.startswith("shuffle cost")]
    units = tuple(Series(tuple(float(k + 1) for k in range(len(y))), y, n) for n, y in curves.items())
    plots = [
        bars("shuffle cost", dict(zip(("VAE", "VAE, autoreg.", "VQ-VAE, autoreg."), costs, strict=True)), "nats"),
        Chart("KL of each unit, nats, one seed", units, x_label="units, in falling order"),
    ]
    sentence = (
        f"exchanging z between examples costs {costs[0].value:.3g} nats with a factorised decoder and "
        f"{costs[1].value:.3g} with an autoregressive one; exchanging codes costs {costs[2].value:.3g} with the "
        "autoregressive one"
    )
    return Finding.of(sentence, effects, measures, plots)


CLAIM = Claim(
    number=6,
    title="With a strong autoregressive decoder a VAE's z is ignored; codes are not",
    hypothesis=(
        f"Under an autoregressive decoder, exchanging a VAE's z between examples costs less than {IGNORED * 100:g} % "
        f"of what it costs under a factorised one; exchanging codes costs more than {USED:g} nats, and more than z."
    ),
    method="shuffle cost, mutual information and active units on unseen examples, KL of each unit",
    run=run,
    needs=tuple(JOBS.values()),
    skip_reason=lambda runner: None if runner.schema.rank == 2 else "vectors have no pixels to be drawn in turn",
)
