"""The field's claims as experiments on anybody's data: one file a claim.

`CLAIMS` says which file holds which claim; each file has a `CLAIM` with its hypothesis, its thresholds and its
experiment. claim.py are the records, bench.py what the experiments share, recipes.py the models that several train.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from statistics import fmean

from tessella.claims.bench import SEEDS, Bench, Recipe
from tessella.claims.claim import Claim, Measure, Result, Trial
from tessella.data import Data
from tessella.foundation.errors import SpecError

CLAIMS: dict[int, str] = {
    1: "c01_autoencoder_latents",
    2: "c02_gradient",
    3: "c03_divergence",
    4: "c04_bound",
    5: "c05_squared_error",
    6: "c06_collapse",
    7: "c07_learned_prior",
    8: "c08_codebook_size",
    9: "c09_primitives",
    10: "c10_locality",
    11: "c11_levels",
    12: "c12_gap",
    13: "c13_blur",
    14: "c14_latent_diffusion",
    15: "c15_noise",
    16: "c16_sound",
    17: "c17_condition",
    18: "c18_anomalies",
}
"""The file of each claim, in this package."""
LEAST_TRAINED = 0.15
"""Share of the updates that are enough for a model, below which nothing is concluded from it."""

__all__ = ["CLAIMS", "Bench", "Claim", "Measure", "Recipe", "Result", "Trial", "chosen", "claim", "run"]


def claim(number: int) -> Claim:
    """The claim of that number.

    Raises:
        SpecError: naming those there are.
    """
    if number not in CLAIMS:
        there = ", ".join(map(str, sorted(CLAIMS)))
        raise SpecError(f"there is no claim {number}; there are: {there}")
    return import_module(f"{__name__}.{CLAIMS[number]}").CLAIM


def chosen(only: Iterable[int] = ()) -> tuple[Claim, ...]:
    """These claims in the order of their numbers; all if none is named.

    Raises:
        SpecError: as of `claim`.
    """
    return tuple(claim(number) for number in sorted(set(only) or CLAIMS))


def run(
    data: Data,
    claims: Iterable[Claim],
    *,
    minutes: float | None = None,
    seeds: tuple[int, ...] = SEEDS,
    device: str | None = None,
    tell: Callable[[Claim, Result], None] | None = None,
) -> dict[int, Result]:
    """Test these claims on `data`.

    Args:
        minutes: for all of them together.
        seeds: every effect is measured once with each.
        device: where models are trained, as of `tessella.core.device.resolve`; they are measured on the processor.
        tell: told each claim as it is decided.

    Raises:
        DataError: if there is too little data.
    """
    claims = tuple(claims)
    bench = Bench(data, seeds=seeds)
    hindrances = {c.number: c.hindrance(bench) for c in claims}
    needs = {recipe.name: recipe for c in claims if hindrances[c.number] is None for recipe in c.needs}
    bench = Bench(data, minutes=minutes, seeds=seeds, needs=needs.values(), device=device)
    results: dict[int, Result] = {}
    for c in claims:
        started, reason = time.monotonic(), hindrances[c.number]
        if reason is not None:
            result = Result("not applicable", reason)
        else:
            bench.make(c.needs)  # before anything is measured, which would take the time of later seeds
            result = c.run(bench)
            result = _if_trained(result, {r.name: share for r in c.needs if (share := bench.shares.get(r.name))})
        trained = {r.name: fmean(steps) for r in c.needs if (steps := bench.updates.get(r.name))}
        results[c.number] = replace(result, seconds=time.monotonic() - started, trained=trained)
        if tell:
            tell(c, results[c.number])
    return results


def _if_trained(result: Result, shares: dict[str, list[float]]) -> Result:
    """The result, unless a model had far too few updates for the verdict to mean anything, whichever it is."""
    poor = [name for name, found in shares.items() if min(found) < LEAST_TRAINED]
    if not poor:
        return result
    words = f"{', '.join(poor)} had less than {LEAST_TRAINED * 100:g} % of the updates that are enough"
    return replace(result, verdict="undecided", sentence=f"{result.sentence}; but {words}: give more --minutes")
