"""One update of the weights: the objective, the schedules, the averaged weights, and what went wrong first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.models.spec import Objective, TrainOptions

RISE = 0.03
"""Fraction of the budget over which the learning rate rises."""


class Average:
    """Exponential average of the trained weights; young averages forget faster (Polyak & Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.sources = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self.sources.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.tensors.values())
        sources: list[Tensor] = list(self.sources.values())
        torch._foreach_lerp_(averages, sources, weight)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    @torch.no_grad()
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights in the model's place, in evaluation mode."""
        self.swap()
        model.eval()
        try:
            yield
        finally:
            self.swap()
            model.train()

    def swap(self) -> None:
        """The averaged weights and the model's change places."""
        for name, source in self.sources.items():
            source.data, self.tensors[name] = self.tensors[name], source.data


def objective(terms: Terms, chosen: Objective, beta: float) -> Tensor:
    """mean(distortion + beta * rate) + penalty, a scalar in nats; free bits raise each unit's mean rate to a floor.

    Of several draws it is the mean importance-weighted bound instead, plus the penalty.
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


def parameter_groups(model: nn.Module, options: TrainOptions) -> list[dict[str, Any]]:
    """Weights decay, biases and embeddings of one axis do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


def budget_in_steps(options: TrainOptions, examples: int, world: int) -> int | None:
    """The budget in steps, if it is not a time."""
    if options.steps:
        return options.steps
    if options.epochs:
        return max(1, round(options.epochs * examples / min(examples, options.batch_size * world)))
    return None


def learning_rate_factor(used: float) -> float:
    """Linear rise over the first part of the budget, then half a cosine to zero (Loshchilov & Hutter 2016)."""
    if used < RISE:
        return 0.02 + 0.98 * used / RISE
    return 0.5 * (1 + math.cos(math.pi * (used - RISE) / (1 - RISE)))


def beta_at(chosen: Objective, used: float) -> float:
    return chosen.beta * min(1.0, used / chosen.warmup) if chosen.warmup else chosen.beta


def draws_at(chosen: Objective, used: float) -> int | None:
    return chosen.iwae_samples if chosen.iwae_samples > 1 and used >= chosen.iwae_from else None


@torch.no_grad()
def first_bad_tensor(model: nn.Module, x: Tensor, label: Tensor | None, noise: Noise) -> str:
    """The name of the first tensor that is not finite: a weight, a module's output, or else a gradient."""
    if (bad := first_infinite(model)) is not None:
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


def first_infinite(model: nn.Module) -> str | None:
    """The first weights (or statistics that are kept with them) that are not finite, in words."""
    named = [(name, t) for name, t in model.state_dict().items() if t.is_floating_point() and t.numel()]
    if not named or torch.stack([t.detach().isfinite().all() for _, t in named]).all():
        return None
    return next(f"the weights {name}" for name, t in named if not t.isfinite().all())
