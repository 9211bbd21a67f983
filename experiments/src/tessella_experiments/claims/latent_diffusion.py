"""a prior built in many small steps closes the gap that N(0, I) leaves.

A VAE is trained with N(0, I); then a diffusion prior is fitted on its z, while encoder and decoder stay as they are.
So both priors draw for the same decoder. What is measured is as in claims 1 and 13: the Frechet distance to unseen
data and the sharpness. What the decoder makes of unseen data's own z is the most that any prior can reach.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella import DiffusionPrior, Model, Noise, high_frequency_energy, image_grid
from tessella.plugin import Rows
from tessella_experiments.measuring import CLASSIFIER, distance, features_named
from tessella_experiments.models import VAE
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, Plot, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, with_prior
from tessella_experiments.runner import samples as drawn

SAMPLES, SHOWN, TAUGHT = 1000, 12, 20_000
PRIORS = {"normal": "N(0, I)", "diffusion": "diffusion"}

LATENT_DIFFUSION = with_prior(
    "latent diffusion", VAE, DiffusionPrior(width=128, depth=3), steps=3000, batch_size=128, examples=TAUGHT
)


def run(runner: ExperimentRunner) -> Finding:
    data = runner.unseen(SAMPLES).x
    energy = None
    if runner.schema.rank == 2:
        energy = float(high_frequency_energy(data, runner.schema).mean())
    frechet: dict[str, list[float]] = {"normal": [], "diffusion": [], "reconstructed": []}
    sharp: dict[str, list[float]] = {name: [] for name in frechet}
    shown: list[tuple[str, Tensor]] = [("data", data[:SHOWN])]
    for seed in runner.seeds:
        plain = runner.model(VAE, seed)
        made = {
            "normal": drawn(plain, SAMPLES, seed),
            "diffusion": drawn(runner.model(LATENT_DIFFUSION, seed), SAMPLES, seed),
            "reconstructed": _rebuilt(plain, data, seed),
        }
        for name, x in made.items():
            frechet[name].append(distance(runner, x, data))
            if energy is not None:
                sharp[name].append(float(high_frequency_energy(x, runner.schema).mean()) / energy)
        if seed == runner.seeds[0]:
            shown += [(f"z from {words}", made[name][:SHOWN]) for name, words in PRIORS.items()]
    more = []
    if energy is not None:
        rows = [(name, image_grid(x, runner.schema, SHOWN, scale=4)) for name, x in shown]
        more = [Rows(rows, "Samples are the means of p(x | z), of one seed and one decoder.")]
    return conclude(frechet, sharp if energy is not None else None, features_named(runner), more)


@torch.no_grad()
def _rebuilt(vae: Model, data: Tensor, seed: int) -> Tensor:
    """What the decoder makes of the data's own z, drawn from q(z | x)."""
    parts = enumerate(data.split(AT_ONCE))
    return torch.cat([vae.decode(vae.encode(x, noise=Noise(seed, n, "claim 14")).z).mean for n, x in parts])


def conclude(
    frechet: dict[str, list[float]],
    sharp: dict[str, list[float]] | None,
    features: str,
    more: list[Rows] | None = None,
) -> Finding:
    """The result of Frechet distances and sharpness of `normal`, `diffusion` and `reconstructed`, one a seed.

    Args:
        sharp: None of vectors.
        features: what the distance is in, in words.
    """
    pairs = list(zip(frechet["normal"], frechet["diffusion"], strict=True))
    effects = [
        EffectTest.over(
            "Frechet distance with N(0, I) less that with diffusion",
            difference(frechet["normal"], frechet["diffusion"]),
        )
    ]
    measures = [
        Measure.over("Frechet distance, z from N(0, I)", frechet["normal"]),
        Measure.over("Frechet distance, z from diffusion", frechet["diffusion"]),
        Measure.over("Frechet distance, z of the data themselves", frechet["reconstructed"]),
    ]
    closed = [(n - d) / (n - r) for (n, d), r in zip(pairs, frechet["reconstructed"], strict=True) if n > r]
    if closed:
        measures.append(Measure.over("share of the distance above that which is gone", [100 * c for c in closed], "%"))
    told = ""
    if sharp is not None:
        apart = {name: [abs(math.log(max(s, 1e-9))) for s in of] for name, of in sharp.items()}
        effects.append(
            EffectTest.over(
                "|log sharpness| with N(0, I) less that with diffusion",
                difference(apart["normal"], apart["diffusion"]),
            )
        )
        of = [
            Measure.over("sharpness, z from N(0, I)", sharp["normal"]),
            Measure.over("sharpness, z from diffusion", sharp["diffusion"]),
            Measure.over("sharpness, z of the data themselves", sharp["reconstructed"]),
        ]
        told = f"; sharpness goes from {of[0].value:.3f} to {of[1].value:.3f} (at most {of[2].value:.3f})"
        measures += of
    shown = dict(zip(("N(0, I)", "diffusion", "the data's own z"), measures, strict=False))
    plots: list[Plot] = [bars("Frechet distance to unseen data, one decoder", shown), *(more or [])]
    sentence = (
        f"on the same decoder the Frechet distance is {measures[0].value:.4g} with N(0, I), {measures[1].value:.4g} "
        f"with diffusion and {measures[2].value:.4g} with the data's own z ({features}){told}"
    )
    return Finding.of(sentence, effects, measures, plots)


CLAIM = Claim(
    number=14,
    title="A prior of many small steps closes the gap that N(0, I) leaves",
    hypothesis=(
        "On the same decoder, samples with z from a diffusion prior are nearer to unseen data than with z from "
        "N(0, I): in Frechet distance and, of pictures, in sharpness (|log share|)."
    ),
    method=(
        f"{SAMPLES:,} samples with each prior and seed; features of a small network trained on the same data; "
        "high-frequency energy over that of unseen data"
    ),
    run=run,
    needs=(CLASSIFIER, VAE, LATENT_DIFFUSION),
)
