"""Sizes of networks and batches that fit a time budget on this machine, by measuring a few updates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tessella.core.device import autocast, resolve_device, thread_count
from tessella.core.rng import Noise, seeded
from tessella.data import Split
from tessella.foundation.config import Config
from tessella.foundation.errors import option
from tessella.foundation.notes import note
from tessella.foundation.progress import tracking
from tessella.foundation.text import duration_text
from tessella.models.spec import TrainOptions
from tessella.training.loop import Trainable, without_compiler
from tessella.training.step import objective, usual_batch_size

C = TypeVar("C", bound=Config)

UPDATES, REFERENCE = 3000, 6.0
"""Updates that a budget of 6 minutes should hold; other budgets, in proportion to the square root of the time.

More time is spent half on more updates and half on larger networks, as is best for a given number of operations
(Hoffmann et al. 2022, section 3).
"""
FEWEST = 300
"""Updates below which a budget is too small for anything to be learned."""
SMALLEST_BATCH = 2
"""Smallest batch that is chosen if even the smallest network leaves too few updates."""
LARGEST_BATCH = 512
"""Largest batch that is chosen on an accelerator."""
UNDERUSED = 1.3
"""A device is underused if a batch of twice the size takes less than this many times the time. A larger network that
takes less is worth it: what is not the network takes most of the time then.
"""
SHARE = 0.03
"""Largest share of the budget for measuring."""
FASTEST = 2.0
"""Largest factor on the learning rate of a network that is narrower than usual."""
COMPILED_FROM = 20 * 60.0
"""Least budget in seconds in which compiling is tried, which itself takes about a minute."""
SLOWED = 1.2
"""Several threads are not worth it if one of them alone takes less than the time over this factor."""
TIMED = 2
"""Updates that are timed for each size, after one to warm up."""


@dataclass(frozen=True)
class Sized(Generic[C]):
    """Configuration and options whose sizes fit the budget.

    Attributes:
        config: options of the model or prior.
        options: options of training.
        reason: what was chosen and why, in a line; empty if nothing was measured.
    """

    config: C
    options: TrainOptions
    reason: str = ""


def fit_to_budget(
    config: C,
    sizes: Sequence[Mapping[str, int]],
    make: Callable[[C], Trainable],
    split: Split,
    options: TrainOptions,
    dims: int,
) -> Sized[C]:
    """Choose the sizes that are not given, so that a budget in minutes holds enough updates.

    The largest network is taken that leaves `UPDATES` updates in 6 minutes, or a larger one if it takes hardly longer;
    if none does, the smallest with smaller batches. On an accelerator the batch grows while that costs little.

    Args:
        config: options, in which None means: not given.
        sizes: sizes of the networks by option, from small to large.
        make: function that makes the module to train.
        split: training examples.
        options: options of training; without a budget in minutes, only a missing batch size is filled in.
        dims: values of one example.
    """
    batch = usual = options.batch_size or min(usual_batch_size(dims), len(split))
    if options.minutes is None:
        return Sized(config, replace(options, batch_size=batch))
    candidates = _candidates(config, sizes)
    seconds, device = 60 * options.minutes, resolve_device(options.device)
    wanted = UPDATES * math.sqrt(options.minutes / REFERENCE)
    with tracking("measuring this machine"):
        each = _update_time(make(candidates[0]), split, batch, options, device)
        if options.threads is None and device.type == "cpu" and torch.get_num_threads() > 1:
            alone = _update_time(make(candidates[0]), split, batch, replace(options, threads=1), device)
            if SLOWED * alone < each:
                note(
                    f"the machine is busy: one thread is faster than {torch.get_num_threads()} and is used alone "
                    f"({1000 * alone:,.0f} instead of {1000 * each:,.0f} ms per update); change it with "
                    f"{option('threads')}"
                )
                options, each = replace(options, threads=1), alone
        times = {0: each}
        low, high = 0, len(candidates) - 1
        while low < high and (1 + TIMED) * sum(times.values()) < SHARE * seconds:
            middle = (low + high + 1) // 2
            times[middle] = _update_time(make(candidates[middle]), split, batch, options, device)
            low, high = (middle, high) if times[middle] * wanted <= seconds else (low, middle - 1)
        most = UNDERUSED * times[low]
        while low + 1 < len(candidates):
            if low + 1 not in times:
                if (1 + TIMED) * sum(times.values()) >= SHARE * seconds:
                    break
                times[low + 1] = _update_time(make(candidates[low + 1]), split, batch, options, device)
            if times[low + 1] > most:
                break
            low += 1
        chosen, each = candidates[low], times[low]
        while options.batch_size is None and batch // 2 >= SMALLEST_BATCH and each * wanted > UNDERUSED * seconds:
            halved = _update_time(make(chosen), split, batch // 2, options, device)
            if UNDERUSED * halved > each:
                break
            batch, each = batch // 2, halved
        while device.type != "cpu" and options.batch_size is None and 2 * batch <= min(LARGEST_BATCH, len(split)):
            doubled = _update_time(make(chosen), split, 2 * batch, options, device)
            if doubled > UNDERUSED * each or doubled * wanted > seconds:
                break
            batch, each = 2 * batch, doubled
        compiled = options.compile
        if compiled == "auto":
            worth = seconds >= COMPILED_FROM and split.lengths is None  # each length would be compiled by itself
            pays = worth and _compiling_pays(make(chosen), split, batch, options, device, each, seconds)
            compiled = "yes" if pays else "no"
        smaller = min(1.0, math.sqrt(batch / usual))  # as noisier gradients need of Adam (Malladi et al. 2022)
        rate = options.learning_rate or make(chosen).learning_rate * _rate_factor(chosen, sizes) * smaller
    updates = seconds / each
    if updates < FEWEST:
        enough = f"{duration_text(math.ceil(FEWEST * each))} ({option('minutes')})"
        note(
            f"a budget of {duration_text(seconds)} holds about {updates:,.0f} updates of this network, "
            f"which is too few to learn much: give at least {enough}, or smaller examples"
        )
    named = ", ".join(f"{k.replace('_', ' ')} {getattr(chosen, k)}" for k in _sized(config, sizes))
    passes, milliseconds = updates * batch / len(split), 1000 * each
    reason = (
        f"{named + ', ' if named else ''}batches of {batch}, learning rate {rate:.2g}: {milliseconds:,.0f} ms per "
        f"update, about {_rounded(updates)} updates and {_rounded(passes)} passes in {duration_text(seconds)}"
    )
    return Sized(chosen, replace(options, batch_size=batch, compile=compiled, learning_rate=rate), reason)


def _sized(config: Config, sizes: Sequence[Mapping[str, int]]) -> list[str]:
    """Name the options that are to be sized."""
    names = dict.fromkeys(name for row in sizes for name in row)
    values = config.values()
    return [name for name in names if name in values and values[name] is None]


def _rate_factor(config: Config, sizes: Sequence[Mapping[str, int]]) -> float:
    """Return the factor on the learning rate, sqrt(usual width / width), where half of the largest width is usual.

    Wide networks need smaller steps (Yang et al. 2022, "Tensor Programs V", section 3, where the factor is the ratio
    itself).
    """
    usual, width = max((row.get("width", 0) for row in sizes), default=0) / 2, config.values().get("width")
    return min(FASTEST, math.sqrt(usual / width)) if usual and width else 1.0


def _candidates(config: C, sizes: Sequence[Mapping[str, int]]) -> list[C]:
    """Fill in the sizes that are not given, from small to large."""
    free = _sized(config, sizes)
    chosen = [{name: row[name] for name in free if name in row} for row in sizes]
    found = [type(config)(**{**config.values(), **row}) for row in chosen]
    return list(dict.fromkeys(found)) or [config]


def _compiling_pays(
    model: Trainable,
    split: Split,
    batch: int,
    options: TrainOptions,
    device: torch.device,
    each: float,
    seconds: float,
) -> bool:
    """Return whether compiled networks make more updates in the budget, the time of compiling included."""
    model.compile_networks()
    started = time.perf_counter()
    try:
        compiled = _update_time(model, split, batch, options, device)
    except RuntimeError as error:
        if without_compiler(error):
            return False
        raise
    taken = _of_all(time.perf_counter() - started, device)
    return (seconds - taken) / compiled > seconds / each


def _update_time(model: Trainable, split: Split, batch: int, options: TrainOptions, device: torch.device) -> float:
    """Measure the seconds of an update of such a model with such batches."""
    assert isinstance(model, torch.nn.Module)
    module = model.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)
    examples = split.batch(_typical_rows(split, batch)).to(device)
    taken: list[float] = []
    with seeded(0, device), thread_count(options.threads):
        for number in range(1 + TIMED):
            started = time.perf_counter()
            with autocast(options.precision, module.schema, device):
                terms = module(examples.x, examples.label, noise=Noise(0, number, "sizing"))
            loss = objective(terms, module.objective, 1.0) / module.schema.dims
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss.detach())  # waits for an accelerator
            taken.append(time.perf_counter() - started)
    return _of_all(min(taken[1:]), device)


def _typical_rows(split: Split, batch: int) -> np.ndarray:
    """Choose the rows of a batch; where examples have lengths, those of about the mean length."""
    rows = np.arange(len(split))
    if split.lengths is not None:
        rows = np.abs(split.lengths - split.lengths.mean()).argsort(kind="stable")
    return np.resize(rows, batch)


def _of_all(seconds: float, device: torch.device) -> float:
    """Average over the processes that train together, so that all choose the same sizes."""
    if not dist.is_initialized():
        return seconds
    total = torch.tensor(seconds, device=device)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _rounded(number: float) -> str:
    """Write a number with two digits that count."""
    if number < 10:
        return f"{number:.2g}"
    return f"{round(number, 1 - math.floor(math.log10(number))):,.0f}"
