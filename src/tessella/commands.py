"""What each command takes and does: a dataclass of options, and one function that runs it.

PyTorch is imported by the functions, so that a command's help does not wait for it.

Imports beside it: report.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import Positional, Suppress, arg

from tessella import registry
from tessella.errors import DataError, RunError, SpecError
from tessella.records import Precision, Sampling
from tessella.spec import ModelOptions, TrainOptions

if TYPE_CHECKING:
    from PIL.Image import Image

    from tessella.data import Data, Split
    from tessella.models.model import Model
    from tessella.records import Batch, Evaluation

Binarize = Literal["dynamic", "static", "threshold"]
UNHEARD = ("save_every", "workers", "quiet", "out", "resume", "overwrite", "given")
"""Options that a resumed run may change, because no number depends on them."""
BUDGETS = ("minutes", "epochs", "steps")


@dataclass(frozen=True)
class AsData:
    """How data is read.

    Attributes:
        size: height and width that pictures are cropped and resized to, or one number for both.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        binarize: make bytes binary: drawn anew in every batch, drawn once, or cut at half.
    """

    size: tuple[int, ...] | None = None
    channels: int | None = None
    binarize: Binarize | None = None

    def open(self, spec: str) -> Data:
        from tessella.data import open_data

        sides = self.size
        if sides is not None and len(sides) not in (1, 2):
            raise DataError(f"--size takes one number, or a height and a width, not {len(sides)} numbers")
        box = None if sides is None else (sides[0], sides[-1])
        return open_data(spec, size=box, channels=self.channels, binarize=self.binarize)


# data


@dataclass(frozen=True)
class ShowData:
    """Show what is understood of some data: counts, shape, value range, classes, splits; and write a contact sheet.

    Attributes:
        spec: digits, sprites, hf:NAME, a folder of pictures, or a file.
        out: the contact sheet.
    """

    spec: Positional[str]
    how: Annotated[AsData, arg(name="")] = field(default_factory=AsData)
    out: Annotated[str, arg(aliases=("-o",))] = "contact-sheet.png"


def show_data(o: ShowData) -> int:
    _check_picture_name(o.out)
    data = o.how.open(o.spec)
    from tessella.data import contact_sheet, describe

    print(describe(data))
    _write_picture(contact_sheet(data), o.out)
    return 0


# train


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on data and leave a run folder. Ctrl-C saves; `--resume --out RUN` goes on.

    Attributes:
        model: a name that `tessella parts` lists. The run's own when resuming.
        data: digits, sprites, hf:NAME, a folder of pictures, or a file. The run's own when resuming.
        out: the run folder.
        resume: go on from the last checkpoint in it; a newly given budget replaces the old one.
        overwrite: replace a run that is there.
        quiet: print nothing but the end.
    """

    model: Positional[str | None] = None
    data: str | None = None
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    how: Annotated[AsData, arg(name="")] = field(default_factory=AsData)
    training: Annotated[TrainOptions, arg(name="")]
    options: Annotated[ModelOptions, arg(name="")] = field(default_factory=ModelOptions)
    given: Suppress[frozenset[str]] = frozenset()


def train(o: Train) -> int:
    if o.out is None:
        raise SpecError("give the folder to train into: --out RUN")
    if o.resume:
        return _resume(o, Path(o.out))
    if o.model is None or o.data is None:
        raise SpecError(
            "name a model and its data: tessella train MODEL --data SPEC --out RUN; models are "
            f"{', '.join(registry.names('model'))}"
        )
    entry = registry.find("model", o.model)
    if not o.overwrite and os.path.exists(o.out) and (not os.path.isdir(o.out) or os.listdir(o.out)):
        raise RunError(f"{o.out} already exists: go on with --resume, replace it with --overwrite, or choose another")
    data = o.how.open(o.data)
    import torch

    torch.manual_seed(o.training.seed)
    model = entry.load()(data.schema, **asdict(o.options))
    return _trained(model, data, o, o.training)


def _resume(o: Train, run: Path) -> int:
    from tessella import checkpoint
    from tessella.uses.look import data_for

    spec = checkpoint.read_spec(run)
    if o.overwrite:
        raise SpecError("--resume goes on with a run and --overwrite replaces it: give one of them")
    training, minded = _with_budget(spec.training, o), _mapped(o)
    stored = {**spec.data, **asdict(spec.options), **spec.training, "model": spec.model, "data": spec.data.get("spec")}
    named = o.given if o.model is None else o.given | {"model"}
    for name in sorted(named - {*UNHEARD, *BUDGETS}):
        same = _same_data(minded[name], stored["data"]) if name == "data" else minded[name] == stored.get(name)
        if not same:
            raise SpecError(
                f"{run} was started with {name.replace('_', ' ')} {stored.get(name)}, not {minded[name]}: leave it out "
                "to go on with the run, or start a new one"
            )
    model = spec.build()
    return _trained(model, data_for(model, spec.data), o, training)


def _with_budget(stored: dict[str, Any], o: Train) -> TrainOptions:
    """The training's options as they were, but for a new budget and what no number depends on."""
    changed = {name: getattr(o.training, name) for name in o.given if name in ("save_every", "workers", *BUDGETS)}
    if o.given & set(BUDGETS):
        changed = {**dict.fromkeys(BUDGETS), **changed}
    try:
        return TrainOptions(**{**stored, **changed})
    except TypeError as error:
        raise RunError(f"{o.out} has options of training that this tessella does not know ({error})") from error


def _mapped(o: Train) -> dict[str, Any]:
    """All options by name, as a run's specification has them."""
    size = o.how.size
    box = None if size is None else [size[0], size[-1]]
    return {**asdict(o.options), **asdict(o.training), **asdict(o.how), "size": box, "model": o.model, "data": o.data}


def _same_data(given: str, stored: str) -> bool:
    return stored in (given, os.path.abspath(os.path.expanduser(given)))


def _trained(model: Model, data: Data, o: Train, options: TrainOptions) -> int:
    from tessella.data import describe
    from tessella.training import train as run_training

    if not o.quiet:
        print(describe(data))
        print(f"model    {model.name}, {sum(p.numel() for p in model.parameters()):,} parameters")
        print(f"budget   {_budget(options)}", flush=True)
    done = run_training(model, data, str(o.out), options, resume=o.resume, overwrite=o.overwrite, quiet=o.quiet)
    if done.stopped == "signal":
        print(f"stopped and saved at step {done.steps:,}; go on with: tessella train --resume --out {o.out}")
        return 130
    print(f"trained for {done.steps:,} steps, {done.seconds:.0f} seconds: {o.out}")
    if not o.quiet:
        print(f"next: tessella evaluate {o.out}, tessella report {o.out}")
    return 0


def _budget(options: TrainOptions) -> str:
    return next(f"{value:g} {name}" for name in BUDGETS if (value := getattr(options, name)) is not None)


# evaluate


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: rate, distortion, and the bound they make, in nats and in bits per dimension.

    Attributes:
        run: the run folder.
        data: other data than the run's own, read as the run's was.
        split: train, valid or test.
        importance_samples: draws an example for the importance-weighted bound, which is tighter; 0 leaves it out.
        seed: of the draws.
        precision: of the networks; the bound holds for the model as it runs here.
        json: print all numbers as JSON.
    """

    run: Positional[str]
    data: str | None = None
    split: str = "test"
    importance_samples: int = 0
    seed: int = 0
    precision: Precision = "float32"
    json: bool = False


def evaluate(o: Evaluate) -> int:
    model, source = _loaded(o.run)
    from tessella import report
    from tessella.uses.look import data_for

    data = data_for(model, source, o.data)
    result = _measured(model, data, o, quiet=o.json)
    if o.data is None:
        report.store(Path(o.run), result, seed=o.seed, precision=o.precision)
    if o.json:
        print(json.dumps(report.jsonable(result), indent=2))
    else:
        _print_numbers(result, model)
    return 0


def _measured(model: Model, data: Data, o: Evaluate, *, quiet: bool) -> Evaluation:
    from rich.console import Console
    from rich.progress import Progress

    from tessella.evaluation.bounds import evaluate as measure

    examples = data.split(o.split)
    with Progress(console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("evaluating", total=len(examples))
        return measure(
            model,
            examples,
            importance_samples=o.importance_samples,
            seed=o.seed,
            precision=o.precision,
            data=data.spec,
            split_name=o.split,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print_numbers(result: Evaluation, model: Model) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tessella.report import numbers

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.title = f"{result.model} on {result.examples:,} examples of {result.data}, split {result.split}"
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it means")
    for row in numbers(result, model.schema):
        table.add_row(row.name, row.value, row.meaning)
    console = Console(highlight=False)
    console.print(table)


# look


@dataclass(frozen=True)
class Sample:
    """Draw new examples: z from the prior, then what the model makes of it.

    Attributes:
        run: the run folder.
        out: the picture to write.
        count: how many.
        label: a class by name or number, for a conditional model; without it, every class in turn.
        temperature: factor on the prior's standard deviation; below 1 the examples are more typical and more alike.
        seed: of the draws.
    """

    run: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "samples.png"
    count: Annotated[int, arg(aliases=("-n",))] = 64
    label: str | None = None
    temperature: float = 1.0
    seed: int = 0


def sample(o: Sample) -> int:
    _check_picture_name(o.out)
    model, _ = _loaded(o.run)
    from tessella.uses import look

    label = None if o.label is None else look.label_number(model.schema, o.label)
    drawn = look.sample(model, o.count, label=label, seed=o.seed, sampling=Sampling(o.temperature))
    if model.conditional and label is None and len(drawn) == len(model.schema.classes):
        print(f"rows, top to bottom: {', '.join(model.schema.classes)}")
    _write_picture(look.sheet(drawn, model.schema), o.out)
    return 0


@dataclass(frozen=True)
class Shown:
    """Which examples are looked at.

    Attributes:
        data: other data than the run's own, read as the run's was.
        split: the split that numbers of examples refer to.
        label: the class of picture files, by name or number, for a conditional model.
    """

    data: str | None = None
    split: str = "test"
    label: str | None = None


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


def reconstruct(o: Reconstruct) -> int:
    _check_picture_name(o.out)
    if o.count < 1:
        raise SpecError(f"{o.count} examples do not make a sheet: give at least 1")
    model, source = _loaded(o.run)
    from tessella.uses import look

    if o.inputs:
        examples = _inputs(model, source, o.inputs, o.shown)
    else:
        split = look.data_for(model, source, o.shown.data).split(o.shown.split)
        examples = split.batch(look.some(split, o.count))
    _write_picture(look.sheet(look.reconstruct(model, examples), model.schema), o.out)
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


def interpolate(o: Interpolate) -> int:
    _check_picture_name(o.out)
    model, source = _loaded(o.run)
    from tessella.uses import look

    both = _inputs(model, source, (o.first, o.last), o.shown)
    walk = look.interpolate(model, look.rows(both, slice(0, 1)), look.rows(both, slice(1, 2)), o.steps)
    _write_picture(look.sheet(walk, model.schema), o.out)
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


def traverse(o: Traverse) -> int:
    _check_picture_name(o.out)
    if o.units < 1 or o.steps < 2 or not 0 < o.span < math.inf:
        raise SpecError("a traversal takes at least 1 unit, 2 steps and a span above 0")
    model, source = _loaded(o.run)
    from tessella.uses import look

    split = look.data_for(model, source, o.shown.data).split(o.shown.split)
    example = _inputs(model, source, (o.example,), o.shown, split)
    units = look.survey(model, split)
    chosen = units.order[: o.units]
    moved = look.traverse(model, example, units, chosen, span=o.span, steps=o.steps)
    print(f"rows, top to bottom: {', '.join(look.named(units, chosen))}")
    print(f"columns: {-o.span:g} ... {o.span:g} standard deviations")
    _write_picture(look.sheet(moved, model.schema), o.out)
    return 0


def _inputs(
    model: Model, source: dict[str, Any], inputs: Sequence[str], shown: Shown, split: Split | None = None
) -> Batch:
    """Picture files, or else numbers of examples of the split, in the order given."""
    from tessella.uses import look

    label = None if shown.label is None else look.label_number(model.schema, shown.label)
    batches = []
    for given in inputs:
        if os.path.isfile(given):
            batches.append(look.from_files(model, (given,), label))
            continue
        if not given.isdecimal():
            raise DataError(f"no such picture: {given}; give a file that exists, or the number of an example")
        split = split or look.data_for(model, source, shown.data).split(shown.split)
        batches.append(look.from_split(split, (given,), shown.split))
    return look.joined(batches)


# report


@dataclass(frozen=True)
class Report:
    """Write report.html into the run: curves, pictures, the numbers and what they mean, how to reproduce.

    Attributes:
        run: the run folder.
        data: other data than the run's own, for instance where it lies on this machine.
    """

    run: Positional[str]
    data: str | None = None


def report(o: Report) -> int:
    model, source = _loaded(o.run)
    from tessella.report import write
    from tessella.uses.look import data_for

    print(f"wrote {write(Path(o.run), model, data_for(model, source, o.data))}")
    return 0


# demo


@dataclass(frozen=True)
class Demo:
    """Train a VAE on the embedded digits, measure it and write its report.

    Attributes:
        out: the run folder; `demo-run` is replaced if it is there.
        minutes: how long to train.
    """

    out: Annotated[str, arg(aliases=("-o",))] = "demo-run"
    minutes: float = 1.5


def demo(o: Demo) -> int:
    options = TrainOptions(minutes=o.minutes, batch_size=64)
    print("1 of 3: training a variational autoencoder on 1,797 handwritten digits")
    chosen = {"model": "vae", "data": "digits", "options": ModelOptions(units=16), "training": options}
    if status := train(Train(**chosen, out=o.out, overwrite=o.out == Demo.out)):
        return status
    print("2 of 3: measuring it on digits that it never saw")
    evaluate(Evaluate(run=o.out, importance_samples=50))
    print("3 of 3: writing the report")
    report(Report(run=o.out))
    print(f"open {os.path.abspath(os.path.join(o.out, 'report.html'))} in a browser, then try pictures of your own:")
    print("tessella train vae --data FOLDER --out RUN --minutes 10")
    return 0


# parts


@dataclass(frozen=True)
class Parts:
    """List the models and what they are made of."""


def parts(o: Parts) -> int:
    kinds = [kind for kind in get_args(registry.Kind) if kind != "evaluation"]
    wide = max(len(entry.name) for entry in registry.CATALOGUE)
    for kind in ("model", *(k for k in kinds if k != "model")):
        print(f"{kind}:")
        for entry in registry.entries(kind):
            print(f"  {entry.name:{wide}}  {entry.summary}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "data": (ShowData, show_data),
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
    "sample": (Sample, sample),
    "reconstruct": (Reconstruct, reconstruct),
    "interpolate": (Interpolate, interpolate),
    "traverse": (Traverse, traverse),
    "report": (Report, report),
    "demo": (Demo, demo),
    "parts": (Parts, parts),
}


def _loaded(run: str) -> tuple[Model, dict[str, Any]]:
    """The model of a run and where its data comes from."""
    from tessella import checkpoint

    source = checkpoint.read_spec(run).data
    return checkpoint.load(run), source


def _check_picture_name(path: str) -> None:
    if Path(path).suffix.lower() != ".png":
        raise DataError(f"{path} has no picture's ending: let it end in .png")


def _write_picture(image: Image, path: str) -> None:
    from tessella.checkpoint import write_atomic

    write_atomic(Path(path), lambda draft: image.save(draft, format="PNG"))
    print(f"wrote {path}")
