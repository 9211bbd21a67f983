"""Tasks `sample`, `reconstruct`, `interpolate` and `traverse`: sheets of decoded examples."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

from tyro.conf import Positional, arg

from tessella.core.outputs import Sampling
from tessella.foundation.blocks import Figure, Page, Text, joined
from tessella.foundation.errors import DataError, SpecError, option
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.core.batches import Batch
    from tessella.core.schema import Schema
    from tessella.models.base import Model
    from tessella.tasks.fill import FilledSeries
    from tessella.training.run import Run


@final
@dataclass(frozen=True)
class SheetResult(Result):
    """Examples in rows and columns.

    Attributes:
        title: what the examples are.
        examples: `[rows, columns, *shape]`, stored units.
        schema: schema of the examples.
        rows: names of the rows, top to bottom, if they have any.
        columns: what varies from column to column; empty if nothing does.
        filled: series that were given as inputs, with their gaps filled.
    """

    title: str
    examples: Tensor
    schema: Schema
    rows: tuple[str, ...] = ()
    columns: str = ""
    filled: Sequence[FilledSeries] = ()

    def to_json(self) -> Mapping[str, Any]:
        rows, columns = self.examples.shape[:2]
        about = {"version": 1, "title": self.title, "rows": rows, "columns": columns, "shape": self.schema.shape}
        return {**about, "row_names": self.rows, "across": self.columns}

    def page(self) -> Page:
        from tessella.evaluation.samples import examples_sheet
        from tessella.kinds.figures import named_examples, players

        rows = Text(f"rows, top to bottom: {', '.join(dict.fromkeys(self.rows))}") if self.rows else None
        columns = Text(f"columns: {self.columns}") if self.columns else None
        sheet = Figure(examples_sheet(self.examples, self.schema), pixelated=True)
        heard = players(named_examples(self.examples, self.rows), self.schema)
        return Page(self.title, joined(rows, columns, sheet, heard))

    def save(self, out: Path) -> None:
        """Write the sheet as a picture, all sounds as a WAV file, a filled series as CSV, or examples into a folder."""
        from tessella.evaluation.samples import examples_sheet
        from tessella.foundation.files import write_atomic
        from tessella.foundation.output_folder import Outputs
        from tessella.kinds import pictures
        from tessella.kinds.base import kind_of
        from tessella.kinds.figures import named_examples
        from tessella.kinds.sounds import one_after_another

        kind, named = kind_of(self.schema), named_examples(self.examples, self.rows)
        if out.suffix.lower() == ".csv":
            if len(self.filled) != 1:
                raise DataError(f"{out} takes one series: give the file of one series as input", code="one-series")
            write_atomic(out, self.filled[0].write_csv)
        elif out.suffix.lower() == ".wav":
            if not kind.audible:
                raise DataError(
                    f"{out} has the ending of a sound, but the examples are {kind.examples}: give a .png file or a "
                    "folder",
                    code="no-sounds",
                )
            sound = one_after_another([x for _, x in named], self.schema)
            write_atomic(out, lambda draft: kind.write(draft, sound))
        elif out.suffix:
            pictures.save(examples_sheet(self.examples, self.schema), out)
        else:
            files = [(re.sub(r"\W+", "-", name).strip("-"), x) for name, x in named]
            with Outputs(str(out), [name for name, _ in files], kind.file_ending, overwrite=True) as outputs:
                for name, x in files:
                    outputs.write(name + kind.file_ending, partial(kind.write, x=x))


@dataclass(frozen=True)
class SampleConfig:
    """Sample new examples: z from the prior, then the mean of p(x | z).

    Attributes:
        count: number of examples.
        prior: kind of the fitted prior to use, or trained (uniform for codes): the model's own; by default the best.
        label: class to sample, by name or number, if the model or prior is conditional; by default every class in turn.
        temperature: factor on the prior's standard deviation, or divisor of the log-probabilities of codes; below 1
            samples are more typical and less diverse.
        top_k: sample each code from its k most likely values only.
        top_p: sample each code only from the most likely values that together have this probability.
        steps: number of sampling steps of a diffusion model or prior.
        guidance: scale of classifier-free guidance, for a conditional diffusion model or prior; above 1 samples are
            more typical of their class and less diverse.
        seed: seed of the sampling.
    """

    count: Annotated[int, arg(aliases=("-n",))] = 64
    prior: str | None = None
    label: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.steps, self.guidance)


@task(
    "sample",
    summary="sample new examples",
    group="look",
    out="samples.png",
    endings=(".png", ".html", ".wav", ""),
)
def sample(run: Run, config: SampleConfig) -> SheetResult:
    """Sample from the model of a run."""
    from tessella.data.inputs import label_number
    from tessella.evaluation.samples import sample_rows

    sampling = config.sampling
    model = run.model(config.prior)
    label = None if config.label is None else label_number(model.schema, config.label)
    rows = sample_rows(model, config.count, label=label, seed=config.seed, sampling=sampling)
    classes = model.schema.classes
    by_class = model.conditional and label is None and len(rows) == len(classes)
    return SheetResult("Samples", rows, model.schema, classes if by_class else ())


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruct examples, with each row of inputs above the row of its reconstructions.

    Missing values of a series are filled; a result that ends in .csv is the whole series, complete.

    Attributes:
        inputs: files, folders, numbers of examples, names of splits, or other data; by default some of the
            split.
        count: number of examples, if no inputs are given.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split that numbers of examples refer to.
        label: class of picture or sound files, by name or number, for a conditional model.
        codes_used: number of codes of each position to use, of a model trained with the quantizer residual and its
            dropout; fewer codes take fewer bits. Default: all.
    """

    inputs: Positional[tuple[str, ...]] = ()
    count: Annotated[int, arg(aliases=("-n",))] = 20
    data: str | None = None
    split: str = "test"
    label: str | None = None
    codes_used: int | None = None


@task(
    "reconstruct",
    summary="reconstruct examples",
    group="look",
    out="reconstructions.png",
    endings=(".png", ".html", ".wav", ".csv", ""),
)
def reconstruct(run: Run, config: ReconstructConfig) -> SheetResult:
    """Reconstruct examples with the model of a run, and fill the gaps of series."""
    from tessella.data.series import is_series
    from tessella.evaluation.samples import reconstruct_rows
    from tessella.tasks.fill import fill_series

    if config.count < 1:
        raise SpecError(f"{option('count')} must be at least 1, got {config.count}", code="out-of-range")
    model = run.model("trained", codes_used=config.codes_used)
    filled: Sequence[FilledSeries] = ()
    if is_series(run.spec.data.get("spec"), run.spec.data.get("kind")):
        filled = [one for word in config.inputs if os.path.exists(word) for one in fill_series(model, word)]
    if config.inputs:
        examples = _read(run, model, config, *config.inputs)
    else:
        split = run.data(config.data, model).split(config.split)
        examples = split.batch(split.random_rows(config.count))
    rows = reconstruct_rows(model, examples)
    labels = ("input", "reconstruction") * (len(rows) // 2)
    return SheetResult("Inputs, each row above its reconstructions", rows, model.schema, labels, filled=filled)


@dataclass(frozen=True)
class InterpolateConfig:
    """Interpolate between two examples through the latent space; the examples are at the ends.

    Attributes:
        first, last: files, or numbers of examples of the split.
        steps: number of pictures between the two.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split that numbers of examples refer to.
        label: class of files, by name or number, for a conditional model.
    """

    first: Positional[str]
    last: Positional[str]
    steps: int = 9
    data: str | None = None
    split: str = "test"
    label: str | None = None


@task(
    "interpolate",
    summary="interpolate from one example to another",
    group="look",
    out="interpolation.png",
    endings=(".png", ".html", ".wav", ""),
)
def interpolate(run: Run, config: InterpolateConfig) -> SheetResult:
    """Interpolate between two examples with the model of a run."""
    from tessella.evaluation.samples import interpolate_rows

    model = run.model("trained")
    both = _read(run, model, config, config.first, config.last)
    if len(both) != 2:
        raise DataError(
            f"{config.first} and {config.last} name {len(both)} examples: give one each", code="two-examples"
        )
    rows = interpolate_rows(model, both[:1], both[1:], config.steps)
    return SheetResult(f"From {config.first} to {config.last}", rows, model.schema)


@dataclass(frozen=True)
class TraverseConfig:
    """Traverse latent dimensions: decode one example with one dimension changed at a time, in a row each.

    Attributes:
        example: file, or number of an example of the split.
        dimensions: number of dimensions, those with the highest rate first.
        steps: number of pictures in a row.
        span: largest change to each side, in standard deviations of the dimension.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split that numbers of examples refer to.
        label: class of files, by name or number, for a conditional model.
    """

    example: Positional[str] = "0"
    dimensions: int = 10
    steps: int = 11
    span: float = 2.5
    data: str | None = None
    split: str = "test"
    label: str | None = None


@task(
    "traverse",
    summary="decode an example with one latent dimension moved at a time",
    group="look",
    out="traversals.png",
    endings=(".png", ".html", ".wav", ""),
)
def traverse(run: Run, config: TraverseConfig) -> SheetResult:
    """Traverse the latent dimensions of one example with the model of a run."""
    from tessella.evaluation.samples import latent_statistics, traverse_rows

    if config.dimensions < 1 or config.steps < 2 or not 0 < config.span < math.inf:
        least = f"{option('dimensions')} must be at least 1, {option('steps')} at least 2 and {option('span')} above 0"
        raise SpecError(least, code="out-of-range")
    model = run.model("trained")
    example = _read(run, model, config, config.example)[:1]
    statistics = latent_statistics(model, run.data(config.data, model).split(config.split))
    chosen = statistics.order[: config.dimensions]
    rows = traverse_rows(model, example, statistics, chosen, span=config.span, steps=config.steps)
    across = f"{-config.span:g} ... {config.span:g} standard deviations"
    title = f"Latent traversals of {config.example}"
    return SheetResult(title, rows, model.schema, tuple(statistics.names(chosen)), across)


def _read(run: Run, model: Model, config: ReconstructConfig | InterpolateConfig | TraverseConfig, *words: str) -> Batch:
    """Read the examples that the words name."""
    return run.inputs(model, words, data=config.data, split=config.split, label=config.label).batch()
