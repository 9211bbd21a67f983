"""Measures the inference gap, the bound minus -log p(x), and splits it into the parts of encoder and family.

    bound - (-log p(x)) = (bound - bound with the best q of the family) + (bound with the best q - (-log p(x)))
                        =  amortisation gap                             +  approximation gap

(Cremer et al. 2018, section 2.) The first bound is the trained model's. The second is optimised for each example by
itself (`per_example_posterior`), and log p(x) is estimated by annealed importance sampling (`annealing`).
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
"""Annealing steps: the initial number, doubled until the bracket is narrow enough, and the maximum."""
STAGES = 4
"""Stages of progress: the bracket, log p(x), the q per example, and the flow per example."""
DRAWS = 500
"""Posterior samples per example for a bound."""
OPTIMISED = 2**21
"""Values of data decoded in one update of q, which limits the examples that are optimised together."""
WEIGHTS = 2**26
"""Weights of per-example flows in memory, which also limits the examples that are optimised together."""


def measure_gap(model: Model, split: Split, config: GapConfig | None = None, *, data: str = "") -> GapEvaluation:
    """Measure the inference gap of some examples, and its parts; note a bracket that is too wide.

    Args:
        split: the split that `config` names.
        data: name of the data in the result.

    Raises:
        SpecError: if the model has no bound, or no continuous latent z with a known density p(z).
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
    """Choose how to measure the gap of this model, or raise if it cannot be measured."""
    if model.levels:
        raise SpecError(
            f"the model {model.name} has discrete codes, and its q has no density to optimise: measure the gap of a "
            "vae instead",
            code="no-density",
        )
    if not model.has_bound:
        raise SpecError(
            f"the model {model.name} has no bound, so it has no inference gap: measure a vae instead", code="no-prior"
        )
    if isinstance(model, FlowModel):
        return lambda batch, _, noise, __: _of_flow(model, batch.x, noise)
    if not isinstance(model, LatentVariableModel) or model.prior is None:
        raise SpecError(
            f"the model {model.name} has a chain of latents with a fixed q: measure the gap of a vae instead",
            code="fixed-posterior",
        )
    if not model.prior.exact:
        raise SpecError(
            f"the prior of {model.name} gives only a bound on log p(z), so p(x, z) is unknown: choose an exact "
            f"prior, such as {option('prior')} normal if the run has one",
            "no-exact-prior",
        )
    return partial(_of_latent, model)


@dataclass(frozen=True)
class _Parts:
    """Measurements of each example, `[B]` nats."""

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
    """Find the number of annealing steps on simulated examples, and the bracket at that number."""
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
        "use more annealing steps or chains",
    )  # fmt: skip
    method = "annealed importance sampling"
    values = torch.cat(exact).float().to(x.device), bound, own, flow
    return _Parts(family, method, *values, config.chains, steps, bracket, converged, seconds, warned, warned)


def _optimised(model: LatentVariableModel, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor, Tensor | None, str]:
    """Compute the bounds of each example: as trained, with its own q, with its own flow.

    Returns:
        The three bounds and the name of q's family. The last bound is None if the model's q is a flow already, or z is
        too large for a flow per example.
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
    """Measure the gap of a flow model with several samples of u.

    z is a function of x + u, so q(z | x + u) equals p(z | x + u) and has no gap.
    """
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
            "zero by construction: z is a function of x, so q(z | x) is p(z | x) and the bound is exact",
        )
    else:
        method = "importance sampling"
        note = (
            "the gap of z given the dequantised x + u is zero by construction; shown is a lower estimate of the gap of "
            f"q(u | x), from {draws} samples of u"
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
    """Compute the upper limit of the bracket's width, in nats.

    The expected width is at least zero, so a negative estimate is noise and counts as zero.
    """
    return max(bracket.nats, 0.0) + bracket.error


def _estimate(each: Tensor) -> Estimate:
    """Compute mean and standard error over the examples."""
    values = precise(each)
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))
