"""The inference gap: by how much the bound misses log p(x), and whether the encoder or q's family is to blame.

    bound - (-log p(x)) = (bound - bound with the best q of the family) + (the latter - (-log p(x)))
                        =  amortisation gap                             +  approximation gap

(Cremer et al. 2018, section 2.) The first bound is the model's as it is, the second is optimised for each example by
itself (`local`), and log p(x) is found by annealed importance sampling (`annealing`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.device import precise
from tessella.core.rng import Noise
from tessella.data import Split
from tessella.evaluation import annealing, per_example_posterior
from tessella.evaluation.results import Estimate, GapEvaluation
from tessella.foundation.errors import SpecError
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.flow import FlowModel
from tessella.models.latent_variable import LatentVariableModel

TOLERANCE = 0.3
"""Nats: what the bracket is to come below."""
STEPS, MOST_STEPS = 16, 1024
"""Of annealing: at first, doubled until the bracket is narrow enough, and at most."""
DRAWS = 500
"""Of z an example where a bound is measured."""
OPTIMISED = 2**21
"""Numbers of data decoded in an update of q: how many go together."""
WEIGHTS = 2**26
"""Weights of the examples' own flows: how many are kept together."""


def measure(
    model: Model,
    split: Split,
    *,
    examples: int = 100,
    chains: int = 16,
    steps: int | None = None,
    simulated: int | None = None,
    tolerance: float = TOLERANCE,
    base: annealing.Base = "posterior",
    seed: int = 0,
    minutes: float | None = None,
    data: str = "",
    split_name: str = "test",
    progress: Callable[[int, int], None] | None = None,
) -> GapEvaluation:
    """The gap between the bound and -log p(x) of some examples, in its parts; a bracket that stays wide is warned of.

    Args:
        examples: how many, the same ones each time, spread over the split.
        chains: of annealing, an example.
        steps: of annealing; by default doubled from 16 on until the bracket on simulated examples, with its standard
            error, is within `tolerance` nats.
        simulated: on how many examples the bracket is found; by default on half as many.
        base: what annealing starts from.
        minutes: do not double the steps again if finding log p(x) would then take longer than about that.
        data, split_name: what to call them in the result.
        progress: told (stages done, stages in all).

    Raises:
        SpecError: of a model without a bound, or whose z is no continuous latent under a p(z) that is known.
    """
    _check(model, examples, chains, steps, simulated, tolerance, minutes)
    started, training = time.perf_counter(), model.training
    model.eval()
    batch = split.batch(split.random_rows(examples))
    x = batch.x.to(model.device)
    label = None if batch.label is None or not model.conditional else batch.label.to(model.device)
    try:
        if isinstance(model, FlowModel):
            parts = _of_flow(model, x, Noise(seed, stream="gap"), tolerance)
        else:
            assert isinstance(model, LatentVariableModel)
            count = simulated or max(2, math.ceil(len(x) / 2))
            search = _Search(model, label, count, chains, tolerance, base, Noise(seed, stream="bracket"), progress)
            limit = math.inf if minutes is None else 60 * minutes
            parts = _of_latent(model, Batch(x, label), search, steps, limit, Noise(seed, stream="gap"))
    finally:
        model.train(training)
    if progress:
        progress(1, 1)
    for line in parts.warnings:
        note(line)
    return _record(model, parts, data, split_name, tolerance, time.perf_counter() - started)


def _check(
    model: Model,
    examples: int,
    chains: int,
    steps: int | None,
    simulated: int | None,
    tolerance: float,
    minutes: float | None,
) -> None:
    if examples < 2 or chains < 1 or (steps is not None and steps < 1) or (simulated is not None and simulated < 2):
        raise SpecError(
            "the gap takes at least 2 examples (and 2 simulated ones) for a standard error, 1 chain and 1 step: "
            f"not {examples}, {2 if simulated is None else simulated}, {chains} and {STEPS if steps is None else steps}"
        )
    if not tolerance > 0 or (minutes is not None and not minutes > 0):
        raise SpecError(f"the tolerance and the minutes must be more than zero, not {tolerance} and {minutes}")
    if isinstance(model, CodeModel):
        raise SpecError(
            f"the model {model.name} has codes: its q is a point on one grid of them, with no density to optimise; "
            "a gap can be asked of a vae"
        )
    if not model.has_bound:
        raise SpecError(f"the model {model.name} has no bound, so no gap between it and log p(x): train a vae instead")
    if isinstance(model, FlowModel):
        return
    if not isinstance(model, LatentVariableModel) or model.prior is None:
        raise SpecError(f"the model {model.name} has a chain of latents, whose q is not learned: ask a vae for its gap")
    if not model.prior.exact:
        raise SpecError(
            f"the prior of {model.name} gives a bound on log p(z) alone, so p(x, z) is not known: "
            "measure with another (--prior normal, where it was trained so)"
        )


@dataclass(frozen=True)
class _Parts:
    """What was found of each example, `[B]` nats."""

    family: str
    method: str
    exact: Tensor
    bound: Tensor
    own: Tensor
    flow: Tensor | None
    chains: int
    steps: int
    bracket: Estimate | None
    converged: bool
    seconds: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@final
class _Search:
    """How many steps annealing takes, judged on simulated examples."""

    def __init__(
        self,
        model: LatentVariableModel,
        label: Tensor | None,
        count: int,
        chains: int,
        tolerance: float,
        base: annealing.Base,
        noise: Noise,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.count, self.chains, self.tolerance, self.base = model, count, chains, tolerance, base
        self.label = None if label is None else label.repeat(-(-count // len(label)))[:count]
        self.noise, self.tell = noise, progress or (lambda done, total: None)

    def run(self, steps: int | None, seconds: float) -> tuple[int, Estimate]:
        """Steps, and the bracket with so many."""
        now, started = steps or STEPS, time.perf_counter()
        while True:
            before = time.perf_counter()
            found = self._bracket(now)
            took, spent = time.perf_counter() - before, time.perf_counter() - started
            enough = _width(found) <= self.tolerance or not math.isfinite(found.nats)
            if steps or now >= MOST_STEPS or enough:
                return now, found
            if spent + 4 * took > seconds:  # twice as long for the bracket, and about that for the examples themselves
                return now, found
            now *= 2

    def _bracket(self, steps: int) -> Estimate:
        noise = self.noise.split(str(steps))
        said = {"steps": steps, "chains": self.chains, "base": self.base}
        both = annealing.bracket(self.model, self.count, self.label, noise, **said)
        return _estimate(both.upper - both.lower)


def _of_latent(
    model: LatentVariableModel, batch: Batch, search: _Search, steps: int | None, limit: float, noise: Noise
) -> _Parts:
    x, label, started = batch.x, batch.label, time.perf_counter()
    search.tell(0, 5)
    steps, bracket = search.run(steps, limit)
    search.tell(1, 5)
    exact = []
    for number, (first, last) in enumerate(annealing.passes(model, len(x), search.chains)):
        part = None if label is None else label[first:last]
        said = {"steps": steps, "chains": search.chains, "base": search.base}
        exact.append(-annealing.forward(model, x[first:last], part, noise.split(f"annealing{number}"), **said))
    seconds = time.perf_counter() - started
    search.tell(2, 5)
    bound, own, flow, family = _optimised(model, Batch(x, label), noise, search.tell)
    converged = _width(bracket) <= search.tolerance
    warned = () if converged else (
        f"annealing has not converged: after {steps:,} steps log p(x) of simulated examples is only known to within "
        f"{bracket.nats:.2f} ± {bracket.error:.2f} nats, and the approximation gap may be too small by as much; "
        "give more --steps or --chains",
    )  # fmt: skip
    method = "annealed importance sampling"
    values = torch.cat(exact).float().to(x.device), bound, own, flow
    return _Parts(family, method, *values, search.chains, steps, bracket, converged, seconds, warned, warned)


def _optimised(
    model: LatentVariableModel, batch: Batch, noise: Noise, tell: Callable[[int, int], None]
) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """The bound of each example as trained, with its own q, and with its own flow; and what family q is of.

    A flow posterior of each example's own is a flow of its own already.
    """
    latent, owned = math.prod(model.latent_shape), per_example_posterior.weights(model)
    flows = not owned and latent <= per_example_posterior.LARGEST
    owned = max(owned, 6 * per_example_posterior.HIDDEN * latent if flows else 1)
    together = max(1, min(OPTIMISED // (per_example_posterior.DRAWS * model.schema.dims), WEIGHTS // owned))
    found: list[tuple[Tensor, ...]] = []
    family = "gaussian"
    for first in range(0, len(batch.x), together):
        x = batch.x[first : first + together]
        label = None if batch.label is None else batch.label[first : first + together]
        own, here = per_example_posterior.amortised(model, x, label), noise.split(f"local{first}")
        family = "gaussian" if isinstance(own, per_example_posterior.GaussianFamily) else "flow"
        values = [per_example_posterior.bound(model, x, label, own, here.split("bound"), draws=DRAWS)]
        per_example_posterior.optimise(model, x, label, own, here.split("own"))
        values.append(per_example_posterior.bound(model, x, label, own, here.split("own bound"), draws=DRAWS))
        tell(3, 5)
        if flows:
            flow = per_example_posterior.with_flow(model, x, own, here.split("flow"))
            per_example_posterior.optimise(model, x, label, flow, here.split("flow"))
            values.append(per_example_posterior.bound(model, x, label, flow, here.split("flow bound"), draws=DRAWS))
        found.append(tuple(values))
    bound, own_bound, *rest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return bound, own_bound, rest[0] if rest else None, family


@torch.no_grad()
def _of_flow(model: FlowModel, x: Tensor, noise: Noise, tolerance: float) -> _Parts:
    """By several draws of u: z is a function of x + u, so q(z | x + u) is p(z | x + u) and has no gap."""
    started, total, each = time.perf_counter(), None, []
    draws = 64 if model.schema.values.discrete else 1
    for number in range(draws):
        weights = precise(model(x, None, noise=noise.split(f"draw{number}"), draws=1).log_weights[0])
        total = weights if total is None else torch.logaddexp(total, weights)
        each.append(weights)
    assert total is not None
    exact, bound = (math.log(draws) - total).float(), -torch.stack(each).mean(0).float()
    if draws == 1:
        method, note = (
            "exact",
            "zero by construction: z is a function of x, so q(z | x) is p(z | x) and the bound log p(x)",
        )
    else:
        method = "importance sampling"
        note = (
            "zero by construction is the gap of z given the dequantised x + u; what is shown is the gap of q(u | x), "
            f"from below, by {draws} draws of u"
        )
    seconds = time.perf_counter() - started
    return _Parts("dequantisation", method, exact, bound, bound, None, draws, 0, None, True, seconds, (), (note,))


def _record(model: Model, parts: _Parts, data: str, split: str, tolerance: float, seconds: float) -> GapEvaluation:
    return GapEvaluation(
        model=model.name,
        data=data,
        split=split,
        examples=len(parts.exact),
        dims=model.schema.dims,
        family=parts.family,
        method=parts.method,
        chains=parts.chains,
        steps=parts.steps,
        exact=_estimate(parts.exact),
        bound=_estimate(parts.bound),
        own=_estimate(parts.own),
        flow=None if parts.flow is None else _estimate(parts.flow),
        approximation=_estimate(parts.own - parts.exact),
        approximation_flow=None if parts.flow is None else _estimate(parts.flow - parts.exact),
        amortisation=_estimate(parts.bound - parts.own),
        total=_estimate(parts.bound - parts.exact),
        bracket=parts.bracket,
        tolerance=tolerance,
        converged=parts.converged,
        seconds_annealing=parts.seconds,
        seconds=seconds,
        notes=parts.notes,
    )


def _width(bracket: Estimate) -> float:
    """How wide it may be, nats. On average it is never below zero: where it came out so, that is noise, not width."""
    return max(bracket.nats, 0.0) + bracket.error


def _estimate(each: Tensor) -> Estimate:
    """Mean and standard error of examples' figures."""
    values = precise(each)
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))
