"""`tessella data` and `tessella train`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg

from tessella.commands.shared import check_picture_name, quoted, said_of_device, say, write_picture
from tessella.foundation import registry
from tessella.foundation.errors import DataError, RunError, SpecError
from tessella.models.spec import ModelOptions, TrainOptions

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.models.base import Model

Binarize = Literal["dynamic", "static", "threshold"]
CHANGEABLE_ON_RESUME = ("save_every", "workers", "device", "rank_timeout", "track")
"""Options of training that a resumed run may change: no number depends on them but by rounding."""
OF_COMMAND = ("quiet", "out", "resume", "overwrite", "data", "changed_data", "given")
"""What is no part of a run; its data is compared by content."""
BUDGETS = ("minutes", "epochs", "steps")


@dataclass(frozen=True)
class AsData:
    """How data is read.

    Attributes:
        size: height and width that pictures are cropped and resized to, or one number for both.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        binarize: make bytes binary: drawn anew in every batch, drawn once, or cut at half.
        label: the column of a table, or the array of an .npz, that holds the class; by default one called label, class
            or target that holds few values.
    """

    size: tuple[int, ...] | None = None
    channels: int | None = None
    binarize: Binarize | None = None
    label: str | None = None

    def open(self, spec: str) -> Data:
        from tessella.data import open_data

        sides = self.size
        if sides is not None and len(sides) not in (1, 2):
            raise DataError(f"--size takes one number, or a height and a width, not {len(sides)} numbers")
        box = None if sides is None else (sides[0], sides[-1])
        return open_data(spec, size=box, channels=self.channels, binarize=self.binarize, label=self.label)


# data


@dataclass(frozen=True)
class ShowData:
    """Show what is understood of some data: counts, shape, value range, classes, splits; and write a contact sheet.

    Attributes:
        spec: clothes, digits, sprites, hf:NAME, a folder of pictures, or a file.
        out: the contact sheet.
    """

    spec: Positional[str]
    how: Annotated[AsData, arg(name="")] = field(default_factory=AsData)
    out: Annotated[str, arg(aliases=("-o",))] = "contact-sheet.png"


def show_data(o: ShowData) -> int:
    check_picture_name(o.out)
    data = o.how.open(o.spec)
    from tessella.data import contact_sheet, describe

    say(*describe(data).split("\n"))
    write_picture(contact_sheet(data), o.out)
    return 0


# train


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on data and leave a run folder. Ctrl-C saves; `--resume --out RUN` goes on.

    Attributes:
        model: a name that `tessella list` lists. The run's own when resuming.
        data: clothes, digits, sprites, hf:NAME, a folder of pictures, or a file. When resuming, where the run's data
            lies now, if it was moved.
        out: the run folder.
        resume: go on from the last checkpoint in it; a newly given budget replaces the old one.
        changed_data: resume although the data is not what the run was started with.
        overwrite: replace a run that is there.
        quiet: print nothing but the end.
    """

    model: Positional[str | None] = None
    data: str | None = None
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    resume: bool = False
    changed_data: bool = False
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
    if o.changed_data:
        raise SpecError("--changed-data is for a run that is resumed: leave it out, or give --resume")
    if o.model is None or o.data is None:
        raise SpecError(
            "name a model and its data: tessella train MODEL --data SPEC --out RUN; models are "
            f"{', '.join(registry.names('model'))}"
        )
    entry, run = registry.find("model", o.model), Path(o.out)
    import torch

    from tessella.training import checkpoint
    from tessella.training.processes import writing

    checkpoint.check_place(run, overwrite=True)  # whoever writes into it is told of first
    with writing(run, o.training, _facts(o)) as accelerator:
        checkpoint.check_place(run, overwrite=o.overwrite or not accelerator.is_main_process)
        data = o.how.open(o.data)
        torch.manual_seed(o.training.seed)
        model = entry.load()(data.schema, **asdict(o.options))
        return _trained(model, data, o, o.training)


def _resume(o: Train, run: Path) -> int:
    import torch

    from tessella.training import checkpoint
    from tessella.training.processes import writing
    from tessella.training.run import Run

    if o.overwrite:
        raise SpecError("--resume goes on with a run and --overwrite replaces it: give one of them")
    spec = checkpoint.read_spec(run)
    stored = {**spec.data, **asdict(spec.options), **spec.training, "model": spec.model}
    refuse_changes(run, stored, _mapped(o), o.given if o.model is None else o.given | {"model"})
    options = resumed_options(run, spec.training, o.training, o.given)
    with writing(run, options, _facts(o)):
        torch.manual_seed(options.seed)
        model = checkpoint.build(run, spec)
        return _trained(model, Run(run).own_data(o.data), o, options)


def refuse_changes(run: Path, stored: Mapping[str, Any], minded: Mapping[str, Any], given: Collection[str]) -> None:
    """Let what is resumed be what it was started with, but for its budget and what no number depends on.

    Args:
        stored, minded: all options by name, as they were and as they are now.
        given: the names that were said now.
    """
    for name in sorted(set(given) - {*CHANGEABLE_ON_RESUME, *OF_COMMAND, *BUDGETS}):
        if minded[name] != stored.get(name):
            raise SpecError(
                f"{run} was started with {name.replace('_', ' ')} {stored.get(name)}, not {minded[name]}: leave it out "
                "to go on with the run, or start a new one"
            )


def resumed_options(run: Path, stored: Mapping[str, Any], now: TrainOptions, given: Collection[str]) -> TrainOptions:
    """The training's options as they were, but for a new budget and what no number depends on."""
    changed = {name: getattr(now, name) for name in given if name in (*CHANGEABLE_ON_RESUME, *BUDGETS)}
    changed["device"] = now.device  # where it runs is of this machine, not of the run
    if set(given) & set(BUDGETS):
        changed = {**dict.fromkeys(BUDGETS), **changed}
    try:
        return TrainOptions(**{**stored, **changed})
    except TypeError as error:
        raise RunError(f"{run} has options of training that this tessella does not know ({error})") from error


def _mapped(o: Train) -> dict[str, Any]:
    """All options by name, as a run's specification has them."""
    size = o.how.size
    box = None if size is None else [size[0], size[-1]]
    return {**asdict(o.options), **asdict(o.training), **asdict(o.how), "size": box, "model": o.model}


def _facts(o: Train) -> dict[str, Any]:
    """The options that processes must have in common; what data they have is compared by content."""
    alike = {**_mapped(o), "out": o.out, "resume": o.resume, "overwrite": o.overwrite}
    return {name: value for name, value in alike.items() if name != "workers"}


def _trained(model: Model, data: Data, o: Train, options: TrainOptions) -> int:
    from tessella.data import describe
    from tessella.training.loop import train as run_training

    if not o.quiet:
        say(*describe(data).split("\n"))
        say(f"device   {said_of_device(options.device)}")
        say(f"model    {model.name}, {sum(p.numel() for p in model.parameters()):,} parameters")
        say(f"budget   {budget(options)}")
    how = {"resume": o.resume, "overwrite": o.overwrite, "changed_data": o.changed_data, "quiet": o.quiet}
    done = run_training(model, data, str(o.out), options, **how)
    if done.stopped == "signal":
        say(f"stopped and saved at step {done.steps:,}; go on with: tessella train --resume --out {quoted(str(o.out))}")
        return 130
    say(f"trained for {done.steps:,} steps, {done.seconds:.0f} seconds: {o.out}")
    if not o.quiet:
        run = quoted(str(o.out))
        prior = f"tessella prior {run}, " if model.levels else ""
        say(f"next: {prior}tessella evaluate {run}, tessella report {run}")
    return 0


def budget(options: TrainOptions) -> str:
    return next(f"{value:g} {name}" for name in BUDGETS if (value := getattr(options, name)) is not None)
