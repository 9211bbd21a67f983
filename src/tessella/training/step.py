"""One training step: the objective, the schedules, and the search for the first bad tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tessella.core.contracts import Likelihood
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.models.spec import Objective, TrainOptions
from tessella.training.state import first_not_finite

RISE, RISE_STEPS, LATEST = 0.03, 50, 0.3
"""The learning rate rises over this fraction of the budget and this many steps, whichever is longer, but is risen after
the fraction `LATEST`."""
VALUES = 1 << 17
"""Values of the data in a batch, about."""


def objective(terms: Terms, chosen: Objective, beta: float) -> Tensor:
    """Compute the training loss mean(distortion + beta * rate) + mean(penalty), in nats.

    Free bits set a lower limit to the mean rate of each unit. With several samples, the loss is the mean
    importance-weighted bound plus the penalty.
    """
    loss = terms.distortion.mean()
    if terms.log_weights is not None:
        loss = math.log(len(terms.log_weights)) - torch.logsumexp(terms.log_weights, 0).mean()
    elif terms.rate is not None and chosen.free_bits and terms.rate_per_unit is not None:
        loss = loss + beta * terms.rate_per_unit.mean(0).clamp_min(chosen.free_bits).sum()
    elif terms.rate is not None:
        loss = loss + beta * terms.rate.mean()
    if terms.penalty is not None:
        loss = loss + terms.penalty.mean()
    return loss


def usual_batch_size(dims: int) -> int:
    """Return the batch size with about 2^17 values, from 8 to 64 examples of so many values."""
    return min(max(2 ** round(math.log2(VALUES / dims)), 8), 64)


def budget_in_steps(options: TrainOptions, examples: int, batch: int) -> int | None:
    """Return the budget in steps of batches of all processes; None if it is a time."""
    if options.steps:
        return options.steps
    if options.epochs:
        return max(1, round(options.epochs * examples / min(examples, batch)))
    return None


def learning_rate_factor(used: float, step: int) -> float:
    """Compute the learning rate factor: linear warm-up, then cosine decay to zero (Loshchilov & Hutter 2016).

    Adam's second moments need a number of steps, not a share of the budget (Ma & Yarats 2021, "On the adequacy of
    untuned warmup"): where a step takes long, 3 % of the budget are too few.
    """
    risen = max(min(used / RISE, step / RISE_STEPS), used / LATEST)
    fall = max(0.0, (used - RISE) / (1 - RISE))
    return (0.02 + 0.98 * min(1.0, risen)) * 0.5 * (1 + math.cos(math.pi * fall))


def beta_at(chosen: Objective, used: float) -> float:
    return chosen.beta * min(1.0, used / chosen.warmup) if chosen.warmup else chosen.beta


def draws_at(chosen: Objective, used: float) -> int | None:
    return chosen.iwae_samples if chosen.iwae_samples > 1 and used >= chosen.iwae_from else None


@torch.no_grad()
def separately_trained(model: nn.Module) -> list[list[nn.Parameter]]:
    """Group parameters by the loss that they get gradients of: all but those of detached likelihoods, and these."""
    detached = [module for module in model.modules() if isinstance(module, Likelihood) and module.detached]
    own = {p for module in detached for p in module.parameters()}
    groups = [p for p in model.parameters() if p not in own], [p for p in model.parameters() if p in own]
    return [group for group in groups if group]


def clipped_norm(groups: Sequence[Sequence[nn.Parameter]], most: float) -> Tensor:
    """Limit the norm of each group's gradient to `most`, and return the norm of the whole before."""
    return torch.stack([nn.utils.clip_grad_norm_(group, most) for group in groups]).square().sum().sqrt()


def first_bad_tensor(model: nn.Module, x: Tensor, label: Tensor | None, noise: Noise) -> str:
    """Name the first tensor that is not finite: a weight, a module's output, a term of the loss, or a gradient."""
    if (bad := first_not_finite(model)) is not None:
        return bad
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"the output of {name}")

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    try:
        terms: Terms = model(x, label, noise=noise)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    for name, tensor in (("rate", terms.rate), ("distortion", terms.distortion), ("penalty", terms.penalty)):
        if tensor is not None and not tensor.isfinite().all():
            return f"the {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the gradient"
