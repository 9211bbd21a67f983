"""Claim 8: the loss from quantising shrinks as the codebook grows.

One VQ-VAE a size K = 2 ... 4096 and seed, with the same batches and updates: all start with the networks of one that
was trained with 64 codes, and with a codebook of their own, placed by k-means. The effect is the slope of the
distortion on log2 K: nats that a doubling of the codebook saves. Whether the codes are used is told too, as a codebook
that is not used cannot help (usage and perplexity over all unseen examples).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from tessella.claims.bench import AT_ONCE, Bench, Recipe
from tessella.claims.claim import Claim, Lines, Measure, Result, Series, Trial, decided
from tessella.claims.recipes import RATE, VQVAE, codes
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import ModelConfig

SIZES = (2, 8, 32, 128, 512, 4096)
EXAMPLES, UPDATES = 1000, 150


def _recipe(size: int) -> Recipe:
    def make(bench: Bench, seed: int, seconds: float) -> Model:
        base = bench.model(VQVAE, seed)
        torch.manual_seed(seed)
        made = ModelConfig.chosen("vqvae").from_options(codes(bench.schema, size)).build(bench.schema)
        kept = {n: value for n, value in base.state_dict().items() if ".books." not in n}
        made.load_state_dict(kept, strict=False)
        bench.fit(made, seed=seed, seconds=seconds, steps=UPDATES, learning_rate=RATE / 2)
        return made

    return Recipe(f"vqvae, K = {size:,}", make, weight=0.25)


RECIPES = {size: _recipe(size) for size in SIZES}


@torch.inference_mode()
def run(bench: Bench) -> Result:
    x = bench.unseen(EXAMPLES).x
    found: dict[int, list[tuple[float, float, float]]] = {size: [] for size in SIZES}
    for seed in bench.seeds:
        for size, recipe in RECIPES.items():
            found[size].append(_measured(cast(CodeModel, bench.model(recipe, seed)), x))
    slopes = [-_slope([found[size][n][0] for size in SIZES]) for n in range(len(bench.seeds))]
    first = [a[0] - b[0] for a, b in zip(found[2], found[SIZES[-1]], strict=True)]
    dims = bench.schema.dims
    trials = [
        Trial.over("distortion that a doubling of the codebook saves", slopes, unit="nats"),
        Trial.over(f"distortion with 2 codes less that with {SIZES[-1]:,}", first, unit="nats"),
    ]
    measures = []
    for size, rows in found.items():
        measures += [
            Measure.over(f"distortion, K = {size:,}", [r[0] for r in rows], "nats"),
            Measure.over(f"share of the codes used, K = {size:,}", [100 * r[1] for r in rows], "%"),
            Measure.over(f"perplexity, K = {size:,}", [r[2] for r in rows]),
        ]
    of = {kind: [m for m in measures if m.name.startswith(kind)] for kind in ("distortion", "share", "perplexity")}
    plots = [
        Lines(
            "distortion, bits per dimension",
            "codebook size K",
            (
                Series(
                    "distortion",
                    tuple(
                        (float(k), m.value / dims / math.log(2)) for k, m in zip(SIZES, of["distortion"], strict=True)
                    ),
                    tuple((m.error or 0.0) / dims / math.log(2) for m in of["distortion"]),
                ),
            ),
            log=True,
        ),
        Lines(
            "codes in use, log2",
            "codebook size K",
            (
                Series(
                    "occur at all",
                    tuple(
                        (float(k), math.log2(max(1.0, k * m.value / 100)))
                        for k, m in zip(SIZES, of["share"], strict=True)
                    ),
                ),
                Series(
                    "perplexity",
                    tuple(
                        (float(k), math.log2(max(1.0, m.value))) for k, m in zip(SIZES, of["perplexity"], strict=True)
                    ),
                ),
            ),
            log=True,
        ),
    ]
    falls = [a.value > b.value for a, b in zip(of["distortion"], of["distortion"][1:], strict=False)]
    sentence = (
        f"from K = 2 to {SIZES[-1]:,} the distortion falls from {of['distortion'][0].value:.4g} to "
        f"{of['distortion'][-1].value:.4g} nats, {trials[0].effect:.2g} a doubling, in {sum(falls)} of {len(falls)} "
        f"steps; of the largest codebook {of['share'][-1].value:.2g} % occurs "
        f"(perplexity {of['perplexity'][-1].value:.3g})"
    )
    return decided(sentence, trials, measures, plots)


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
    measured=(
        "a VQ-VAE (EMA codebook, dead codes revived) of each size and seed, from the same networks; distortion, usage "
        "and perplexity"
    ),
    run=run,
    needs=(VQVAE, *RECIPES.values()),
)
