"""Measures the inference gap: bound less -log p(x), and whether the encoder or q's family causes it.

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
from functools import partial

import torch
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.device import precise
from tessella.core.rng import Noise
from tessella.data import Split
from tessella.evaluation import annealing, per_example_posterior
from tessella.evaluation.results import Estimate, GapConfig, GapEvaluation
from tessella.foundation.errors import SpecError, option
from tessella.foundation.notes import note
from tessella.foundation.progress import tracking
from tessella.models.base import Model
from tessella.models.flow import FlowModel
from tessella.models.latent_variable import LatentVariableModel

FIRST_STEPS, MOST_STEPS = 16, 1024
"""Steps of annealing: at first, doubled until the bracket is narrow enough, and at most."""
STAGES = 4
"""Stages of progress: the bracket, log p(x), each example's own q, and its own flow."""
DRAWS = 500
"""Of z an example where a bound is measured."""
OPTIMISED = 2**21
"""Numbers of data decoded in an update of q: how many go together."""
WEIGHTS = 2**26
"""Weights of the examples' own flows: how many are kept together."""


def measure_gap(model: Model, split: Split, config: GapConfig | None = None, *, data: str = "") -> GapEvaluation:
    """Measure the gap between the bound and -log p(x) of some examples, and its parts; a wide bracket is noted.

    Args:
        split: the split that `config` names.
        data: the name of the data in the result.

    Raises:
        SpecError: if the model has no bound, or its z is no continuous latent under a p(z) that is known.
    """
    config = config or GapConfig()
    parts_of = _method(model)
    started, training = time.perf_counter(), model.training
    model.eval()
    batch = split.batch(split.random_rows(config.examples))
    x = batch.x.to(model.device)
    label = None if batch.label is None or not model.conditional else batch.label.to(model.device)
    noise = Noise(config.seed, stream="gap")
    try:
        with tracking("measuring the gap", STAGES) as advance:
            parts = parts_of(Batch(x, label), config, noise, advance)
    finally:
        model.train(training)
    for line in parts.warnings:
        note(line)
    return _record(model, parts, data, config, time.perf_counter() - started)


def _method(model: Model) -> Callable[[Batch, GapConfig, Noise, Callable[..., None]], _Parts]:
    """Choose how the gap of such a model is measured, or say why it cannot be."""
    if model.levels:
        raise SpecError(
            f"the model {model.name} has codes: its q is a point on one grid of them, with no density to optimise; "
            "a gap can be asked of a vae"
        )
    if not model.has_bound:
        raise SpecError(f"the model {model.name} has no bound, so no gap between it and log p(x): train a vae instead")
    if isinstance(model, FlowModel):
        return lambda batch, _, noise, __: _of_flow(model, batch.x, noise)
    if not isinstance(model, LatentVariableModel) or model.prior is None:
        raise SpecError(f"the model {model.name} has a chain of latents, whose q is not learned: ask a vae for its gap")
    if not model.prior.exact:
        raise SpecError(
            f"the prior of {model.name} gives a bound on log p(z) alone, so p(x, z) is not known: measure with another "
            f"({option('prior')} normal, where it was trained so)",
            "no-exact-prior",
        )
    return partial(_of_latent, model)


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


def _search(model: LatentVariableModel, label: Tensor | None, config: GapConfig, examples: int) -> tuple[int, Estimate]:
    """Find how many steps annealing takes, judged on simulated examples; and the bracket with so many."""
    count = config.simulated or max(2, math.ceil(examples / 2))
    label = None if label is None else label.repeat(-(-count // len(label)))[:count]
    noise = Noise(config.seed, stream="bracket")
    seconds = math.inf if config.minutes is None else 60 * config.minutes
    now, started = config.steps or FIRST_STEPS, time.perf_counter()
    while True:
        before = time.perf_counter()
        how = {"steps": now, "chains": config.chains, "base": config.base}
        both = annealing.bracket(model, count, label, noise.split(str(now)), **how)
        found = _estimate(both.upper - both.lower)
        took, spent = time.perf_counter() - before, time.perf_counter() - started
        enough = _width(found) <= config.tolerance or not math.isfinite(found.nats)
        if config.steps or now >= MOST_STEPS or enough:
            return now, found
        if spent + 4 * took > seconds:  # twice as long for the bracket, and about that for the examples themselves
            return now, found
        now *= 2


def _of_latent(
    model: LatentVariableModel, batch: Batch, config: GapConfig, noise: Noise, advance: Callable[..., None]
) -> _Parts:
    x, label, started = batch.x, batch.label, time.perf_counter()
    steps, bracket = _search(model, label, config, len(x))
    advance()
    exact = []
    for number, (first, last) in enumerate(annealing.passes(model, len(x), config.chains)):
        part = None if label is None else label[first:last]
        how = {"steps": steps, "chains": config.chains, "base": config.base}
        exact.append(-annealing.forward(model, x[first:last], part, noise.split(f"annealing{number}"), **how))
    seconds = time.perf_counter() - started
    advance()
    bound, own, flow, family = _optimised(model, batch, noise)
    converged = _width(bracket) <= config.tolerance
    warned = () if converged else (
        f"annealing has not converged: after {steps:,} steps log p(x) of simulated examples is only known to within "
        f"{bracket.nats:.2f} ± {bracket.error:.2f} nats, and the approximation gap may be too small by as much; "
        "take more annealing steps or chains",
    )  # fmt: skip
    method = "annealed importance sampling"
    values = torch.cat(exact).float().to(x.device), bound, own, flow
    return _Parts(family, method, *values, config.chains, steps, bracket, converged, seconds, warned, warned)


def _optimised(model: LatentVariableModel, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor, Tensor | None, str]:
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
        own, here = per_example_posterior.from_encoder(model, x, label), noise.split(f"local{first}")
        family = "gaussian" if isinstance(own, per_example_posterior.GaussianFamily) else "flow"
        values = [per_example_posterior.family_bound(model, x, label, own, here.split("bound"), draws=DRAWS)]
        per_example_posterior.optimise(model, x, label, own, here.split("own"))
        values.append(per_example_posterior.family_bound(model, x, label, own, here.split("own bound"), draws=DRAWS))
        if flows:
            flow = per_example_posterior.with_flow(model, x, own, here.split("flow"))
            per_example_posterior.optimise(model, x, label, flow, here.split("flow"))
            values.append(
                per_example_posterior.family_bound(model, x, label, flow, here.split("flow bound"), draws=DRAWS)
            )
        found.append(tuple(values))
    bound, own_bound, *rest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return bound, own_bound, rest[0] if rest else None, family


@torch.no_grad()
def _of_flow(model: FlowModel, x: Tensor, noise: Noise) -> _Parts:
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


def _record(model: Model, parts: _Parts, data: str, config: GapConfig, seconds: float) -> GapEvaluation:
    return GapEvaluation(
        model=model.name,
        data=data,
        split=config.split,
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
        tolerance=config.tolerance,
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
