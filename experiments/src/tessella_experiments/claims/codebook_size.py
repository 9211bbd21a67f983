"""the loss from quantising shrinks as the codebook grows.

One VQ-VAE a size K = 2 ... 4096 and seed, with the same batches and updates: all start with the networks of one that
was trained with 64 codes, and with a codebook of their own, placed by k-means. The effect is the slope of the
distortion on log2 K: nats that a doubling of the codebook saves. Whether the codes are used is told too, as a codebook
that is not used cannot help (usage and perplexity over all unseen examples).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

import tessella
from tessella import Model
from tessella.plugin import Chart, CodeModel, Series
from tessella_experiments.models import RATE, VQVAE, codes
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, TrainingJob

SIZES = (2, 8, 32, 128, 512, 4096)
EXAMPLES, UPDATES = 1000, 150


def _recipe(size: int) -> TrainingJob:
    def make(runner: ExperimentRunner, seed: int, seconds: float) -> Model:
        base = runner.model(VQVAE, seed)
        torch.manual_seed(seed)
        made = tessella.VQVAE(runner.schema, **codes(runner.schema, size))
        kept = {n: value for n, value in base.state_dict().items() if ".books." not in n}
        made.load_state_dict(kept, strict=False)
        runner.fit(made, seed=seed, seconds=seconds, steps=UPDATES, learning_rate=RATE / 2)
        return made

    return TrainingJob(f"vqvae, K = {size:,}", make, weight=0.25)


JOBS = {size: _recipe(size) for size in SIZES}


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    x = runner.unseen(EXAMPLES).x
    found: dict[int, list[tuple[float, float, float]]] = {size: [] for size in SIZES}
    for seed in runner.seeds:
        for size, job in JOBS.items():
            found[size].append(_measured(cast(CodeModel, runner.model(job, seed)), x))
    slopes = [-_slope([found[size][n][0] for size in SIZES]) for n in range(len(runner.seeds))]
    first = difference(*([row[0] for row in found[size]] for size in (SIZES[0], SIZES[-1])))
    dims = runner.schema.dims
    effects = [
        EffectTest.over("distortion that a doubling of the codebook saves", slopes, unit="nats"),
        EffectTest.over(f"distortion with 2 codes less that with {SIZES[-1]:,}", first, unit="nats"),
    ]
    distortions, shares, perplexities = (
        [Measure.over(f"{what}, K = {size:,}", [scale * r[k] for r in rows], unit) for size, rows in found.items()]
        for k, (what, scale, unit) in enumerate(
            (("distortion", 1, "nats"), ("share of the codes used", 100, "%"), ("perplexity", 1, ""))
        )
    )
    bits = [(m.value / dims / math.log(2), (m.error or 0.0) / dims / math.log(2)) for m in distortions]
    at_all = [k * m.value / 100 for k, m in zip(SIZES, shares, strict=True)]
    in_use = (("occur at all", at_all), ("perplexity", [m.value for m in perplexities]))
    values, errors = zip(*bits, strict=True)
    plots = [
        Chart("distortion, bits per dimension", (Series(SIZES, values, error=errors),), x_label="codes", log_x=True),
        Chart(
            "codes in use, log2",
            [Series(SIZES, [math.log2(max(1.0, y)) for y in ys], name) for name, ys in in_use],
            x_label="codes",
            log_x=True,
        ),
    ]
    falls = [a.value > b.value for a, b in pairwise(distortions)]
    sentence = (
        f"from K = 2 to {SIZES[-1]:,} the distortion falls from {distortions[0].value:.4g} to "
        f"{distortions[-1].value:.4g} nats, {effects[0].effect:.2g} a doubling, in {sum(falls)} of {len(falls)} "
        f"steps; of the largest codebook {shares[-1].value:.2g} % occurs "
        f"(perplexity {perplexities[-1].value:.3g})"
    )
    return Finding.of(sentence, effects, [*distortions, *shares, *perplexities], plots)


def _measured(model: CodeModel, x: Tensor) -> tuple[float, float, float]:
    """Distortion in nats, share of the codes that occur, and perplexity, over all of `x`."""
    size = model.levels[0].codebook_size
    counts, nats = torch.zeros(size, dtype=torch.int64), 0.0
    for part in x.split(AT_ONCE):
        latent = model.encode(part.to(model.device))
        nats -= float(model.decode(latent.z).log_prob(part.to(model.device)).double().sum())
        counts += torch.bincount(latent.codes[0].flatten().cpu(), minlength=size)
    shares = counts.double() / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    return nats / len(x), float((counts > 0).double().mean()), float(entropy.exp())


def _slope(distortions: list[float]) -> float:
    """Of the straight line of least squares through the distortions against log2 K."""
    at = torch.tensor([math.log2(k) for k in SIZES], dtype=torch.float64)
    at = at - at.mean()
    return float((at * torch.tensor(distortions, dtype=torch.float64)).sum() / at.square().sum())


CLAIM = Claim(
    number=8,
    title="The loss from quantising shrinks as the codebook grows",
    hypothesis=(
        f"Over K = {', '.join(f'{k:,}' for k in SIZES)}, the distortion of unseen examples falls with each doubling of "
        "the codebook (negative slope on log2 K), and is lower at the largest than at the smallest."
    ),
    method=(
        "a VQ-VAE (EMA codebook, dead codes revived) of each size and seed, from the same networks; distortion, usage "
        "and perplexity"
    ),
    run=run,
    needs=(VQVAE, *JOBS.values()),
)
