"""a VAE's samples are blurred, because it averages; codes with a learned prior and diffusion blur less.

Sharpness is the high-frequency energy of samples as a share of the data's (`high_frequency_energy`). Samples are the
means of p(x | z). How far they are from the data is |log sharpness|, so that noise counts as much as blur.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella import Diffusion, Sampling, high_frequency_energy, image_grid
from tessella.plugin import Rows
from tessella_experiments.models import VAE, VQVAE_PRIOR
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, Plot, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, of_model
from tessella_experiments.runner import samples as drawn

SAMPLES, SHOWN, STEPS = 500, 12, 25
NAMES = {"vae": "VAE", "codes": "VQ-VAE and prior", "diffusion": "diffusion"}


DIFFUSION = of_model(
    "diffusion",
    Diffusion,
    lambda schema: {"width": 24, "depth": 1} if schema.rank == 2 else {"width": 128, "depth": 2},
    steps=1000,
    weight=2.5,
    learning_rate=2e-3,
)
MODELS = {"vae": VAE, "codes": VQVAE_PRIOR, "diffusion": DIFFUSION}


def run(runner: ExperimentRunner) -> Finding:
    data, seen = runner.unseen().x, runner.examples(5000).x
    energy = float(high_frequency_energy(data, runner.schema).mean())
    found: dict[str, list[float]] = {name: [] for name in MODELS}
    again: list[float] = []
    shown: list[tuple[str, Tensor]] = [("data", data[:SHOWN])]
    for seed in runner.seeds:
        for name, job in MODELS.items():
            x = drawn(runner.model(job, seed), SAMPLES, seed, Sampling(steps=STEPS if name == "diffusion" else None))
            found[name].append(float(high_frequency_energy(x, runner.schema).mean()) / energy)
            if seed == runner.seeds[0]:
                shown.append((NAMES[name], x[:SHOWN]))
        vae = runner.model(VAE, seed)
        rebuilt = torch.cat([vae.reconstruct(part) for part in data.split(AT_ONCE)])
        again.append(float(high_frequency_energy(rebuilt, runner.schema).mean()) / energy)
    rows = [(name, image_grid(x, runner.schema, SHOWN, scale=4)) for name, x in shown]
    of_seen = float(high_frequency_energy(seen, runner.schema).mean()) / energy
    return conclude(found, again, of_seen, [Rows(rows, "Samples are the means of p(x | z), of one seed.")])


def conclude(
    found: dict[str, list[float]], reconstructed: list[float], of_data: float, more: list[Rows] | None = None
) -> Finding:
    """The result of the sharpness of `vae`, `codes` and `diffusion`, one a seed.

    Args:
        reconstructed: the sharpness of what the VAE makes of unseen data.
        of_data: that of training data.
    """
    apart = {name: [abs(math.log(max(s, 1e-9))) for s in of] for name, of in found.items()}
    effects = [EffectTest.over("sharpness of the VAE's samples: blurred", found["vae"], least=None, most=1.0)]
    effects += [
        EffectTest.over(
            f"|log sharpness| of the VAE less that of {NAMES[name]}",
            difference(apart["vae"], apart[name]),
        )
        for name in ("codes", "diffusion")
    ]
    measures = [Measure.over(f"sharpness, {NAMES[name]}", of) for name, of in found.items()]
    measures.append(Measure.over("sharpness, what the VAE makes of unseen data", reconstructed))
    measures.append(Measure("sharpness, training data", of_data))
    shown = dict(zip((*NAMES.values(), "data"), measures[:3] + measures[4:], strict=True))
    plots: list[Plot] = [bars("sharpness: high-frequency energy over the data's", shown), *(more or [])]
    sentence = (
        f"of the data's high-frequency energy the VAE's samples have {100 * measures[0].value:.0f} %, those of the "
        f"VQ-VAE with its prior {100 * measures[1].value:.0f} % and those of diffusion "
        f"{100 * measures[2].value:.0f} %; what the VAE makes of unseen data has {100 * measures[3].value:.0f} %"
    )
    return Finding.of(sentence, effects, measures, plots)


CLAIM = Claim(
    number=13,
    title="A VAE's samples are blurred; codes with a prior and diffusion blur less",
    hypothesis=(
        "The VAE's samples have less high-frequency energy than data; and those of a VQ-VAE with a learned prior, and "
        "those of diffusion, are nearer to the data's (|log share|) than the VAE's."
    ),
    method=(
        f"{SAMPLES} samples of each model and seed; energy of the cosine transform above a quarter of Nyquist's "
        "frequency, over that of unseen data"
    ),
    run=run,
    needs=(VAE, VQVAE_PRIOR, DIFFUSION),
    skip_reason=lambda runner: (
        None if runner.schema.rank == 2 else "the data are vectors, which have no fine detail to be blurred"
    ),
)
