"""Looking at what a model has learned: draw new examples, give examples back, walk between two, move one unit.

Everything here returns examples in stored units as float32 `[rows, columns, *shape]`, ready for `sheet`.
Models are used through `encode`, `decode`, `reconstruct` and `sample` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data import Split
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.progress import track
from tessella.kinds import pictures
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel

AT_ONCE = 100
"""Examples that are drawn at a time, so that any number fits in memory."""
SURVEYED = 500
"""Examples that are asked how they use the latent units."""


@dataclass(frozen=True)
class LatentStatistics:
    """The latent units as a set of examples uses them. A unit is one number of a vector, one channel of a grid.

    Attributes:
        mean, deviation: `[U]`, of each unit over the examples (and averaged over a grid's positions).
        rate: `[U]`, its mean KL in nats; None for an autoencoder, and for codes, whose rate is no sum over channels.
    """

    mean: Tensor
    deviation: Tensor
    rate: Tensor | None

    @property
    def order(self) -> list[int]:
        """Unit numbers, those that say most first: by rate, or by deviation where there is none."""
        return torch.argsort(self.deviation if self.rate is None else self.rate, descending=True).tolist()


def sheet(examples: Tensor, schema: Schema) -> Image.Image:
    """Examples `[R, C, *shape]` as one picture of R rows."""
    return pictures.grid(examples.flatten(0, 1), schema, examples.shape[1])


def in_rows(examples: Tensor, columns: int, blank: float) -> Tensor:
    """`[N, *shape]` as `[R, columns, *shape]`, the last row filled up with `blank`."""
    missing = -len(examples) % columns
    filled = torch.cat([examples, examples.new_full((missing, *examples.shape[1:]), blank)])
    return filled.unflatten(0, (-1, columns))


def sample(
    model: Model,
    count: int,
    *,
    label: int | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Tensor:
    """`count` new examples as a sheet, about as many rows as columns.

    A conditional model without a `label` draws every class, a row each (or, of more classes than `count`, the first).

    Raises:
        SpecError: if there is no prior, no such number of examples, or a label that the model cannot see.
    """
    if not 1 <= count <= 10_000:
        raise SpecError(f"{count} samples do not make a sheet: give a number from 1 to 10000")
    if label is not None and not model.conditional:
        raise SpecError(f"the model {model.name} does not see labels, so none can be asked for: {_remedy(model)}")
    columns, labels = math.ceil(math.sqrt(count)), None
    if model.conditional:
        classes = len(model.schema.classes)
        each = max(1, count // classes)
        labels = torch.full((count,), label) if label is not None else torch.arange(classes).repeat_interleave(each)
        if label is None:
            columns, count = (each if each > 1 else min(columns, classes)), min(count, len(labels))
    drawn = [
        model.sample(
            min(AT_ONCE, count - start),
            None if labels is None else labels[start : min(start + AT_ONCE, count)].to(model.device),
            seed=seed + (start << 32),
            sampling=sampling,
        ).cpu()
        for start in track(range(0, count, AT_ONCE), "sampling")
    ]
    return in_rows(torch.cat(drawn), columns, model.schema.values.low)


def _remedy(model: Model) -> str:
    if isinstance(model, CodeModel):
        return "fit a prior that sees them, tessella prior RUN --class-conditional"
    if isinstance(model, LatentVariableModel):
        return "train a cvae instead, or fit a prior that sees them, tessella prior RUN --kind flow --class-conditional"
    return "train a cvae instead"


def reconstruct(model: Model, examples: Batch, columns: int = 10) -> Tensor:
    """Examples `[B]`, each row of them above a row of what the model gives back."""
    columns = min(columns, len(examples.x))
    parts = [model.reconstruct(b.x, b.label).cpu() for b in _on_device(model, examples)]
    pairs = [in_rows(x.float(), columns, model.schema.values.low) for x in (examples.x, torch.cat(parts))]
    return torch.stack(pairs, 1).flatten(0, 1)


@torch.no_grad()
def interpolate(model: Model, first: Batch, last: Batch, steps: int = 9) -> Tensor:
    """Walks from each of `first` `[B]` to each of `last` `[B]`: `[B, steps + 2, *shape]`, the two examples at the ends.

    A model with a rate walks along the sphere, so that length, which decides what is plausible under a normal prior,
    changes evenly (White 2016); an autoencoder and a model of codes walk straight. A conditional model changes the
    label half way.

    Raises:
        SpecError: if there are fewer than 2 steps.
    """
    if steps < 2:
        raise SpecError(f"a walk has at least 2 steps, not {steps}")
    ends = [model.encode(b.x.to(model.device), _moved(b.label, model)).z for b in (first, last)]
    walk = _along_sphere if model.has_bound and not isinstance(model, CodeModel) else torch.lerp
    columns = [first.x.float().cpu()]
    for k in range(steps):
        label = first.label if 2 * k < steps else last.label
        z = walk(ends[0], ends[1], k / (steps - 1))
        columns.append(model.decode(z, _moved(label, model)).mean.cpu())
    return torch.stack([*columns, last.x.float().cpu()], 1)


@torch.no_grad()
def traverse(
    model: Model,
    example: Batch,
    units: LatentStatistics,
    chosen: Sequence[int],
    *,
    span: float = 2.5,
    steps: int = 11,
) -> Tensor:
    """One example `[1]` redrawn with one unit moved, all else kept: `[len(chosen), steps, *shape]`.

    A row takes its unit from `-span` to `span` of its deviations about its mean over the examples of `units`. In a grid
    the whole channel is shifted, so that its mean over the positions goes there.
    """
    label = _moved(example.label, model)
    z = model.encode(example.x.to(model.device), label).z
    drawn = []
    for unit in chosen:
        now = z[:, unit].mean()
        goals = units.mean[unit] + units.deviation[unit] * torch.linspace(-span, span, steps)
        moved = z.repeat(steps, *[1] * (z.dim() - 1))
        moved[:, unit] += (goals.to(z) - now).reshape(steps, *[1] * (z.dim() - 2))
        drawn.append(model.decode(moved, None if label is None else label.repeat(steps)).mean.cpu())
    return torch.stack(drawn)


@torch.no_grad()
def unit_statistics(model: Model, split: Split, seed: int = 0) -> LatentStatistics:
    """How some of a split's examples use the latent units; their posteriors are drawn from once each."""
    drawn, rates = [], []
    for number, batch in enumerate(_on_device(model, split.batch(some(split, SURVEYED)))):
        latent = model.encode(batch.x, batch.label, noise=Noise(seed, number, "unit_statistics"))
        by_position = latent.z.flatten(1).reshape(*latent.z.shape[:2], -1)
        drawn.append(by_position.mean(2))
        rate = None if latent.codes else model.rate(latent, batch.label)
        if rate and rate.per_unit is not None:
            rates.append(rate.per_unit.reshape(by_position.shape).sum(2))
    z = torch.cat(drawn).cpu().double()
    rate = torch.cat(rates).mean(0).cpu() if rates else None
    return LatentStatistics(z.mean(0).float(), z.std(0, correction=0).float(), rate)


def _along_sphere(a: Tensor, b: Tensor, at: float) -> Tensor:
    """Between `a` and `b` `[B, *latent_shape]`: directions on the great circle, lengths linearly."""
    x, y = a.flatten(1), b.flatten(1)
    long, short = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    u, v = x / long.clamp_min(1e-12), y / short.clamp_min(1e-12)
    angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    turned = (((1 - at) * angle).sin() * u + (at * angle).sin() * v) / sine.clamp_min(1e-6)
    direction = torch.where(sine < 1e-4, torch.lerp(u, v, at), turned)
    return (direction * torch.lerp(long, short, at)).reshape(a.shape)


def _moved(label: Tensor | None, model: Model) -> Tensor | None:
    return None if label is None else label.to(model.device)


def _on_device(model: Model, examples: Batch) -> Iterable[Batch]:
    for start in range(0, len(examples.x), AT_ONCE):
        batch = examples[start : start + AT_ONCE]
        yield Batch(batch.x.to(model.device), _moved(batch.label, model))


# examples for a model


def from_split(split: Split, inputs: Sequence[str], name: str) -> Batch:
    """Examples of a split by their numbers.

    Raises:
        DataError: if one is no number of an example.
    """
    for given in inputs:
        if not given.isdecimal() or int(given) >= len(split):
            raise DataError(
                f"{given} is no picture file and no example of the {name} split: give a file that exists, or a number "
                f"from 0 to {len(split) - 1}"
            )
    return split.batch([int(given) for given in inputs])


def some(split: Split, count: int) -> np.ndarray:
    """Row numbers of `count` examples, always the same ones, in an order that the data's own says nothing about."""
    return split.random_rows(count)


def rows(batch: Batch, which: slice) -> Batch:
    """Some examples of a batch."""
    return Batch(batch.x[which], None if batch.label is None else batch.label[which])


def named(units: LatentStatistics, chosen: Sequence[int]) -> list[str]:
    """LatentStatistics in words: their numbers and what they say."""
    if units.rate is None:
        return [f"unit {j} (deviation {units.deviation[j]:.2g})" for j in chosen]
    return [f"unit {j} ({units.rate[j]:.2g} nats)" for j in chosen]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
