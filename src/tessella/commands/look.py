"""`tessella sample`, `reconstruct`, `interpolate` and `traverse`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from tessella.commands.shared import (
    Shown,
    Where,
    check_picture_name,
    inputs,
    loaded,
    loaded_without_prior,
    progress,
    say,
    write_picture,
)
from tessella.core.outputs import Sampling
from tessella.foundation.errors import SpecError


@dataclass(frozen=True)
class Sample:
    """Draw new examples: z from the prior, then what the model makes of it.

    Attributes:
        run: the run folder.
        out: the picture to write.
        count: how many.
        prior: the kind of a fitted prior, or trained (of codes uniform): the model's own; by default the best.
        label: a class by name or number, for a model or prior that sees them; without it, every class in turn.
        temperature: below 1 the examples are more typical and more alike: a factor on the prior's standard deviation;
            of codes, what their log-probabilities are divided by.
        top_k: of codes, draw each from its k likeliest values only.
        top_p: of codes, draw each from the likeliest values that hold this share of the probability only.
        steps: of a diffusion model or prior, in how many steps to draw.
        guidance: of a diffusion model or prior that sees labels, how far to lead what is drawn towards its class: above
            1 it is more typical of it and more alike.
        seed: of the draws.
    """

    run: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "samples.png"
    count: Annotated[int, arg(aliases=("-n",))] = 64
    prior: str | None = None
    label: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def sample(o: Sample) -> int:
    check_picture_name(o.out)
    sampling = Sampling(o.temperature, o.top_k, o.top_p, o.steps, o.guidance)
    model, _ = loaded(o.run, o.prior, o.where)
    from tessella.data.inputs import label_number
    from tessella.tasks import generate

    label = None if o.label is None else label_number(model.schema, o.label)
    with progress("drawing"):
        drawn = generate.sample(model, o.count, label=label, seed=o.seed, sampling=sampling)
    if model.conditional and label is None and len(drawn) == len(model.schema.classes):
        say(f"rows, top to bottom: {', '.join(model.schema.classes)}")
    write_picture(generate.sheet(drawn, model.schema), o.out)
    return 0


@dataclass(frozen=True)
class Reconstruct:
    """Rows of examples, each above a row of what the model gives back.

    Attributes:
        run: the run folder.
        inputs: picture files, or numbers of examples of the split; by default some of the split.
        out: the picture to write.
        count: how many, if no inputs are given.
    """

    run: Positional[str]
    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "reconstructions.png"
    count: Annotated[int, arg(aliases=("-n",))] = 20
    shown: Annotated[Shown, arg(name="")] = field(default_factory=Shown)
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def reconstruct(o: Reconstruct) -> int:
    check_picture_name(o.out)
    if o.count < 1:
        raise SpecError(f"{o.count} examples do not make a sheet: give at least 1")
    model, run = loaded_without_prior(o.run, o.where)
    from tessella.tasks import generate

    if o.inputs:
        examples = inputs(model, run, o.inputs, o.shown)
    else:
        split = run.data(o.shown.data, model).split(o.shown.split)
        examples = split.batch(generate.some(split, o.count))
    write_picture(generate.sheet(generate.reconstruct(model, examples), model.schema), o.out)
    return 0


@dataclass(frozen=True)
class Interpolate:
    """Walk from one example to another through the latent space; the two stand at the ends.

    Attributes:
        run: the run folder.
        first, last: picture files, or numbers of examples of the split.
        out: the picture to write.
        steps: pictures between the two.
    """

    run: Positional[str]
    first: Positional[str]
    last: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "interpolation.png"
    steps: int = 9
    shown: Annotated[Shown, arg(name="")] = field(default_factory=Shown)
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def interpolate(o: Interpolate) -> int:
    check_picture_name(o.out)
    model, run = loaded_without_prior(o.run, o.where)
    from tessella.tasks import generate

    both = inputs(model, run, (o.first, o.last), o.shown)
    walk = generate.interpolate(model, both[:1], both[1:2], o.steps)
    write_picture(generate.sheet(walk, model.schema), o.out)
    return 0


@dataclass(frozen=True)
class Traverse:
    """Move one latent unit at a time, a row each; those that say most first.

    Attributes:
        run: the run folder.
        example: a picture file, or the number of an example of the split.
        out: the picture to write.
        units: how many units.
        steps: pictures in a row.
        span: how far a unit goes to each side, in standard deviations.
    """

    run: Positional[str]
    example: Positional[str] = "0"
    out: Annotated[str, arg(aliases=("-o",))] = "traversals.png"
    units: int = 10
    steps: int = 11
    span: float = 2.5
    shown: Annotated[Shown, arg(name="")] = field(default_factory=Shown)
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def traverse(o: Traverse) -> int:
    check_picture_name(o.out)
    if o.units < 1 or o.steps < 2 or not 0 < o.span < math.inf:
        raise SpecError("a traversal takes at least 1 unit, 2 steps and a span above 0")
    model, run = loaded_without_prior(o.run, o.where)
    from tessella.tasks import generate

    split = run.data(o.shown.data, model).split(o.shown.split)
    example = inputs(model, run, (o.example,), o.shown)
    units = generate.unit_statistics(model, split)
    chosen = units.order[: o.units]
    moved = generate.traverse(model, example, units, chosen, span=o.span, steps=o.steps)
    say(f"rows, top to bottom: {', '.join(generate.named(units, chosen))}")
    say(f"columns: {-o.span:g} ... {o.span:g} standard deviations")
    write_picture(generate.sheet(moved, model.schema), o.out)
    return 0
