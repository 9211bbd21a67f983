"""The field's claims as experiments on anybody's data: a plug-in package of Tessella, one file a claim.

Each file in `claims` has a `CLAIM` with its hypothesis, its thresholds and its experiment. records.py are the records,
runner.py what the experiments share, models.py the models that several of them train.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from statistics import fmean
from typing import TYPE_CHECKING

from tessella.plugin import SpecError, track
from tessella_experiments.records import SEEDS, Claim, Finding

if TYPE_CHECKING:
    from tessella import Data

CLAIMS = {
    1: "autoencoder_latents",
    4: "bound",
    6: "collapse",
    7: "learned_prior",
    8: "codebook_size",
    9: "primitives",
    10: "locality",
    11: "levels",
    12: "inference_gap",
    13: "blur",
    14: "latent_diffusion",
    15: "unseen_noise",
    16: "speakers",
    17: "condition",
    18: "anomalies",
}
"""The file of each claim. Claims 2, 3 and 5 are identities of mathematics: tests of the package."""
LEAST_TRAINED = 0.15
"""Share of the updates that are enough for a model, below which nothing is concluded from it."""


def claim(number: int) -> Claim:
    """Load the claim of that number.

    Raises:
        SpecError: "no-such-claim".
    """
    if number not in CLAIMS:
        there = ", ".join(map(str, CLAIMS))
        raise SpecError(f"there is no claim {number}; there are: {there}", "no-such-claim", number=number)
    return import_module(f"{__name__}.claims.{CLAIMS[number]}").CLAIM


def chosen(only: Iterable[int] = ()) -> tuple[Claim, ...]:
    """Load these claims in the order of their numbers; all if none is named.

    Raises:
        SpecError: "no-such-claim".
    """
    return tuple(claim(number) for number in sorted(set(only) or CLAIMS))


def run(
    data: Data,
    claims: Iterable[Claim],
    *,
    minutes: float | None = None,
    seeds: tuple[int, ...] = SEEDS,
    device: str | None = None,
    tell: Callable[[Claim, Finding], None] | None = None,
) -> dict[int, Finding]:
    """Test these claims on `data`.

    Args:
        minutes: for all of them together.
        seeds: every effect is measured once with each.
        device: where models are trained, as of `tessella.plugin.resolve_device`; they are measured on the processor.
        tell: called with each claim and its result as soon as it is concluded.

    Raises:
        DataError: if there is too little data.
    """
    from tessella_experiments.runner import ExperimentRunner

    claims = tuple(claims)
    probe = ExperimentRunner(data, seeds=seeds)
    reasons = {c.number: c.skip_reason(probe) for c in claims}
    needs = {job.name: job for c in claims if reasons[c.number] is None for job in c.needs}
    runner = ExperimentRunner(data, minutes=minutes, seeds=seeds, needs=needs.values(), device=device)
    results: dict[int, Finding] = {}
    for c in track(claims, "testing claims"):
        started, reason = time.monotonic(), reasons[c.number]
        if reason is not None:
            result = Finding("not applicable", reason)
        else:
            runner.make(c.needs)  # before anything is measured, which would take the time of later seeds
            result = c.run(runner)
            result = _if_trained(result, {j.name: share for j in c.needs if (share := runner.shares.get(j.name))})
        trained = {j.name: fmean(steps) for j in c.needs if (steps := runner.updates.get(j.name))}
        results[c.number] = replace(result, seconds=time.monotonic() - started, trained=trained)
        if tell:
            tell(c, results[c.number])
    return results


def _if_trained(result: Finding, shares: dict[str, list[float]]) -> Finding:
    """Take the verdict back if a model had far too few updates for it to mean anything."""
    poor = [name for name, found in shares.items() if min(found) < LEAST_TRAINED]
    if not poor:
        return result
    words = f"{', '.join(poor)} had less than {LEAST_TRAINED * 100:g} % of the updates that are enough"
    return replace(result, verdict="undecided", sentence=f"{result.sentence}; but {words}: give more minutes")
