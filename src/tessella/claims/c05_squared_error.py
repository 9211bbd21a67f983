"""Claim 5: squared error is a Gaussian likelihood.

-log N(x; x', s^2 I) = |x - x'|^2 / (2 s^2) + D/2 log(2 pi s^2): the same VAE is trained twice from the same weights,
once on each side, with the package's own `gaussian-fixed` likelihood for the left one. Constants have no gradient, so
both come to the same weights. The best s^2 is the mean squared error itself (Rybkin et al. 2021, section 3).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from tessella.claims.bench import Bench
from tessella.claims.claim import Claim, Lines, Measure, Result, Series, Trial, decided
from tessella.claims.measuring import principal
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.likelihoods.independent import FixedGaussian
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.presets import VAE

COMPONENTS, SCALE = 16, 0.3
STEPS, RATE, ROWS = 150, 2e-3, 64
WEIGHTS, NATS = 1e-3, 1e-4
"""Share of the weights' way, and nats a dimension, that both may differ by: rounding of float32, summed up."""
BEST = 0.02
"""Share by which the best scale may miss the error itself: the scan's own steps."""


def run(bench: Bench) -> Result:
    x = bench.examples("train", 5000).x
    components = principal(x, COMPONENTS)
    values = (components.of(x) / components.deviations[0]).float()
    dims = values.shape[1]
    schema = Schema((dims,), "real", float(values.min()), float(values.max()), (0.0,) * dims, (1.0,) * dims)
    constant = dims / 2 * math.log(2 * math.pi * SCALE**2)
    apart, differences, misses = [], [], []
    curves: list[Series] = []
    scans: list[Series] = []
    for seed in bench.seeds:
        torch.manual_seed(seed)
        start = VAE(
            schema, likelihood=FixedGaussian(scale=SCALE), latent_dim=max(1, min(8, dims // 2)), width=64, depth=1
        )
        left, right = copy.deepcopy(start), copy.deepcopy(start)
        left_course = _train(left, values, seed, squared=False)
        right_course = _train(right, values, seed, squared=True)
        a, b, origin = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (left, right, start))
        apart.append(float((a - b).norm() / (a - origin).norm()))
        with torch.no_grad():
            noise = Noise(seed, stream="claim 5 bound")
            terms = left(values, noise=noise)
            bound = float(terms.bound.double().mean())
            error, rate = _squared(right, values, Noise(seed, stream="claim 5 bound"))
        written = float(error.double().mean()) / (2 * SCALE**2) + constant + float(rate.double().mean())
        differences.append((bound - written) / dims)
        best, curve = _best_scale(float(error.double().mean()), dims)
        misses.append(best / (float(error.double().mean()) / dims) - 1)
        if not curves:
            moved = tuple((float(n), y + constant) for n, y in right_course)
            curves = [Series("log-likelihood", left_course), Series("squared error + constant", moved)]
            scans = [curve]
    trials = [
        Trial.over("weights differ, of the way that they went", apart, least=None, most=WEIGHTS),
        Trial.over("bounds differ, a dimension", differences, least=-NATS, most=NATS, unit="nats"),
        Trial.over("the best s^2 misses the mean squared error by", misses, least=-BEST, most=BEST, unit="of it"),
    ]
    measures = [
        Measure("the constant D/2 log(2 pi s^2)", constant, None, "nats"),
        Measure.over("weights differ, of the way that they went", apart),
        Measure.over("bounds differ, a dimension", differences, "nats"),
    ]
    sentence = (
        f"trained on either, the weights differ by {max(apart):.1g} of the way that they went and the bounds by "
        f"{max(map(abs, differences)):.1g} nats a dimension; the bound is best where s^2 is the mean squared error"
    )
    plots = [
        Lines("training loss, nats", "updates", tuple(curves)),
        Lines("-log p(x | z) against s^2 / mean squared error", "s^2 / mean squared error", tuple(scans), log=True),
    ]
    return decided(sentence, trials, measures, plots)


def _train(model: LatentVariableModel, values: Tensor, seed: int, *, squared: bool) -> tuple[tuple[float, float], ...]:
    """The course of the loss, smoothed."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    course: list[tuple[float, float]] = []
    mean = 0.0
    for step in range(STEPS):
        noise = Noise(seed, step, "claim 5")
        x = values[(noise.split("rows").uniform(ROWS) * len(values)).long()]
        if squared:
            error, rate = _squared(model, x, noise)
            loss = (error / (2 * SCALE**2) + rate).mean()
        else:
            terms = model(x, noise=noise)
            assert terms.bound is not None
            loss = terms.bound.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.item() if not step else 0.8 * mean + 0.2 * loss.item()
        if step % 10 == 0:
            course.append((float(step), mean))
    return tuple(course)


def _squared(model: LatentVariableModel, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """|x - x'|^2 and the rate, `[B]` each, with no likelihood in between: x' is what the decoder says."""
    latent = model.encode(x, noise=noise)
    assert latent.rate is not None
    return (x - model.decoder(latent.z, None)).square().sum(1), latent.rate


def _best_scale(error: float, dims: int) -> tuple[float, Series]:
    """The s^2 of least -log p(x | z), by a scan over powers of two about the mean squared error."""
    each = error / dims
    tried = [each * 2 ** (k / 50) for k in range(-100, 101)]
    nats = [0.5 * (error / s2 + dims * math.log(2 * math.pi * s2)) for s2 in tried]
    points = tuple((s2 / each, n) for s2, n in zip(tried, nats, strict=True))
    return min(zip(nats, tried, strict=True))[1], Series("scan", points[::5])


CLAIM = Claim(
    number=5,
    title="Squared error is a Gaussian likelihood",
    hypothesis=(
        f"Trained on -log N(x; x', s^2) or on |x - x'|^2 / (2 s^2), a VAE comes to the same weights (within "
        f"{WEIGHTS:g} of the way), its bound is the squared error's plus D/2 log(2 pi s^2) (within {NATS:g} nats a "
        "dimension), and the best s^2 is the mean squared error."
    ),
    measured=(
        f"the data's {COMPONENTS} leading principal components; the same start, batches and draws, {STEPS} updates, "
        f"s = {SCALE:g}; the package's likelihood against the square written out"
    ),
    run=run,
    hindrance=lambda bench: "the examples are single numbers" if bench.schema.dims < 2 else None,
)
