"""Samples, reconstructions, interpolations and latent traversals of a model, as rows of examples.

Rows are in stored units, float32 `[rows, columns, *shape]` on the CPU, ready for `examples_sheet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise, chunks
from tessella.core.schema import Schema
from tessella.data import Split
from tessella.foundation.errors import SpecError, option, task_name
from tessella.foundation.progress import track
from tessella.kinds import pictures
from tessella.models.base import Model

CHUNK = 100
"""Examples sampled at a time. Each chunk has its own seed, so the samples depend on this number."""
STATISTICS_OF = 500
"""Number of examples for the latent statistics."""


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of each latent dimension over examples.

    A dimension is one value of a vector, or one channel of a grid.

    Attributes:
        mean, deviation: `[D]`, over the examples (and averaged over a grid's positions).
        rate: `[D]`, mean KL in nats; None for an autoencoder, and for codes, whose rate is not a sum over channels.
    """

    mean: Tensor
    deviation: Tensor
    rate: Tensor | None

    @property
    def order(self) -> list[int]:
        """Sort dimensions by rate, or by deviation without a rate, largest first."""
        return torch.argsort(self.deviation if self.rate is None else self.rate, descending=True).tolist()

    def names(self, dimensions: Sequence[int]) -> list[str]:
        """Name dimensions by their number and their rate or deviation."""
        if self.rate is None:
            return [f"dimension {j} (deviation {self.deviation[j]:.2g})" for j in dimensions]
        return [f"dimension {j} ({self.rate[j]:.2g} nats)" for j in dimensions]


def examples_sheet(examples: Tensor, schema: Schema) -> Image.Image:
    """Render examples `[rows, columns, *shape]` as one picture."""
    return pictures.image_grid(examples.flatten(0, 1), schema, examples.shape[1])


def in_rows(examples: Tensor, columns: int) -> Tensor:
    """Arrange `[N, *shape]` float32 as `[rows, columns, *shape]`, the last row filled up with NaN, which is blank."""
    missing = -len(examples) % columns
    filled = torch.cat([examples, examples.new_full((missing, *examples.shape[1:]), math.nan)])
    return filled.unflatten(0, (-1, columns))


def sample_chunks(
    model: Model,
    count: int,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    draw: bool = False,
) -> Iterator[Tensor]:
    """Sample `count` examples, yielding `[<= CHUNK, *shape]` float32 in stored units on the CPU.

    Args:
        label: `[count]`, for a conditional model.
        sampling: temperature, truncation, steps and guidance.
        draw: whether to sample x ~ p(x | z) rather than take its mean.

    Raises:
        SpecError: if there is no prior to sample from.
    """
    for rows, chunk_seed in chunks(count, CHUNK, seed):
        labels = None if label is None else label[rows].to(model.device)
        number = rows.stop - rows.start
        yield model.sample(number, labels, seed=chunk_seed, sampling=sampling, draw=draw).cpu()


def sample_rows(
    model: Model, count: int, *, label: int | None = None, seed: int = 0, sampling: Sampling | None = None
) -> Tensor:
    """Sample `count` examples, in about as many rows as columns.

    A conditional model without a `label` samples every class, one row each (or the first classes, if there are more
    than `count`).

    Raises:
        SpecError: if there is no prior, `count` is out of range, or the model does not see the label.
    """
    if not 1 <= count <= 10_000:
        raise SpecError(f"{option('count')} must be from 1 to 10000, got {count}", code="out-of-range", option="count")
    if label is not None and not model.conditional:
        raise SpecError(
            f"the model {model.name} is unconditional and cannot sample a class: train a cvae instead"
            + (f", or {task_name('fit-prior', 'RUN')} with {option('class_conditional')}" if model.has_decoder else ""),
            code="unconditional",
        )
    columns, labels = math.ceil(math.sqrt(count)), None
    if model.conditional:
        classes = len(model.schema.classes)
        each = max(1, count // classes)
        labels = torch.full((count,), label) if label is not None else torch.arange(classes).repeat_interleave(each)
        if label is None:
            columns, count = (each if each > 1 else min(columns, classes)), min(count, len(labels))
    parts = sample_chunks(model, count, labels, seed=seed, sampling=sampling)
    return in_rows(torch.cat(list(track(parts, "sampling", -(-count // CHUNK)))), columns)


def reconstruct_rows(model: Model, examples: Batch, columns: int = 10) -> Tensor:
    """Reconstruct examples `[B]`, with each row of inputs above the row of its reconstructions."""
    columns = min(columns, len(examples))
    parts = [model.reconstruct(b.x, b.label).cpu() for b in _on_device(model, examples)]
    pairs = [in_rows(x.float(), columns) for x in (examples.x, torch.cat(parts))]
    return torch.stack(pairs, 1).flatten(0, 1)


@torch.no_grad()
def interpolate_rows(model: Model, first: Batch, last: Batch, steps: int = 9) -> Tensor:
    """Interpolate from each of `first` `[B]` to each of `last` `[B]`: `[B, steps + 2, *shape]`, inputs at the ends.

    A model with a rate interpolates spherically, so that the norm, which decides what is plausible under a normal
    prior, changes evenly (White 2016). An autoencoder and a model with codes interpolate linearly. A conditional model
    changes the label half way.

    Raises:
        SpecError: if there are fewer than 2 steps.
    """
    if steps < 2:
        raise SpecError(f"{option('steps')} must be at least 2, got {steps}", code="out-of-range", option="steps")
    first, last = first.to(model.device), last.to(model.device)
    a, b = (model.encode(batch.x, batch.label).z for batch in (first, last))
    between = slerp if model.has_bound and not model.levels else torch.lerp
    columns = [first.x.float().cpu()]
    for k in range(steps):
        label = first.label if 2 * k < steps else last.label
        columns.append(model.decode(between(a, b, k / (steps - 1)), label).mean.cpu())
    return torch.stack([*columns, last.x.float().cpu()], 1)


@torch.no_grad()
def traverse_rows(
    model: Model,
    example: Batch,
    statistics: LatentStatistics,
    dimensions: Sequence[int],
    *,
    span: float = 2.5,
    steps: int = 11,
) -> Tensor:
    """Decode one example `[1]` with one latent dimension changed at a time: `[len(dimensions), steps, *shape]`.

    Each row moves one dimension from `-span` to `span` standard deviations about its mean. In a grid the whole channel
    is shifted, so that its mean over the positions takes these values.
    """
    example = example.to(model.device)
    z = model.encode(example.x, example.label).z
    label = None if example.label is None else example.label.repeat(steps)
    rows = []
    for j in dimensions:
        goals = statistics.mean[j] + statistics.deviation[j] * torch.linspace(-span, span, steps)
        moved = z.repeat(steps, *[1] * (z.dim() - 1))
        moved[:, j] += (goals.to(z) - z[:, j].mean()).reshape(steps, *[1] * (z.dim() - 2))
        rows.append(model.decode(moved, label).mean.cpu())
    return torch.stack(rows)


@torch.no_grad()
def latent_statistics(model: Model, split: Split, seed: int = 0) -> LatentStatistics:
    """Estimate the statistics of the latent dimensions on some examples of a split.

    Each example contributes one posterior sample.
    """
    samples, rates = [], []
    for number, batch in enumerate(_on_device(model, split.batch(split.random_rows(STATISTICS_OF)))):
        latent = model.encode(batch.x, batch.label, noise=Noise(seed, number, "survey"))
        by_position = latent.z.flatten(1).reshape(*latent.z.shape[:2], -1)
        samples.append(by_position.mean(2))
        rate = None if latent.codes else model.rate(latent, batch.label)
        if rate and rate.per_unit is not None:
            rates.append(rate.per_unit.reshape(by_position.shape).sum(2))
    z = torch.cat(samples).cpu().double()
    rate = torch.cat(rates).mean(0).cpu() if rates else None
    return LatentStatistics(z.mean(0).float(), z.std(0, correction=0).float(), rate)


def slerp(a: Tensor, b: Tensor, at: float) -> Tensor:
    """Interpolate between `a` and `b` `[B, *latent_shape]`: directions on the great circle, norms linearly."""
    x, y = a.flatten(1), b.flatten(1)
    long, short = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    u, v = x / long.clamp_min(1e-12), y / short.clamp_min(1e-12)
    angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - at) * angle).sin() * u + (at * angle).sin() * v) / sine.clamp_min(1e-6)
    direction = torch.where(sine < 1e-4, torch.lerp(u, v, at), turned)
    return (direction * torch.lerp(long, short, at)).reshape(a.shape)


def _on_device(model: Model, examples: Batch) -> Iterator[Batch]:
    return (batch.to(model.device) for batch in examples.split(CHUNK))
