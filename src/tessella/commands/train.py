"""`tessella train`."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Suppress

from tessella.commands.options import (
    BUDGETS,
    AliasOut,
    Flags,
    RunConfig,
    given_flags,
    toml,
    with_defaults,
    with_fields,
    word_after,
)
from tessella.commands.tasks import device_text, progress_bar, quoted, say
from tessella.foundation import registry
from tessella.foundation.config import Config, options, slots
from tessella.foundation.errors import RunError, SpecError, option, task_name
from tessella.models.spec import DataOptions, ModelConfig, TrainOptions

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.models.base import Model
    from tessella.training.sizing import Sized

CHANGEABLE_ON_RESUME = ("save_every", "workers", "device", "rank_timeout", "track")
"""Options of training that a resumed run may change: no number depends on them but by rounding."""
OF_COMMAND = ("quiet", "out", "resume", "overwrite", "data", "changed_data", "given", "config", "print_config")
"""What is no part of a run; its data is compared by content."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on data and leave a run folder. Ctrl-C saves; `--resume --out RUN` goes on.

    Attributes:
        model: its name. The run's own when resuming.
        data: clothes, digits, sprites, tones, hf:NAME, a folder of pictures or sounds, or a file. When
            resuming, where the run's data lies now, if it was moved.
        out: the run folder.
        config: a TOML file of options, or a run whose options are taken; flags come before it.
        print_config: print the configuration that would run, as TOML, and end.
        resume: go on from the last checkpoint in it; a newly given budget replaces the old one.
        changed_data: resume although the data is not what the run was started with.
        overwrite: replace a run that is there.
        quiet: print nothing but the end.
    """

    model: Suppress[str | None] = None
    data: str | None = None
    out: AliasOut = None
    config: str | None = None
    print_config: bool = False
    resume: bool = False
    changed_data: bool = False
    overwrite: bool = False
    quiet: bool = False
    data_reading: OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    training: OmitArgPrefixes[TrainOptions]
    given: Suppress[frozenset[str]] = frozenset()
    flags: Suppress[Flags | None] = None

    @property
    def chosen(self) -> ModelConfig | None:
        """The options of the model."""
        return None if self.flags is None else self.flags.config(self)


def train_options(args: Sequence[str]) -> type[Train]:
    """The options of a command line: those of the model that it names, with defaults of the file that it names.

    Raises:
        SpecError: if there is no such model or part, or an option that another one has.
    """
    name = args[0] if args and not args[0].startswith("-") else None
    file = word_after(args, "--config")
    saved = RunConfig() if file is None else RunConfig.read(Path(file))
    if name is None and "--resume" in args and (out := word_after(args, "--out") or word_after(args, "-o")):
        from tessella.training.checkpoint import read_spec

        saved = replace(saved, model=None, config=read_spec(out).config)
    base = saved.config if name in (None, saved.model) else None
    given, training = given_flags(args), dict(saved.training)
    if given & set(BUDGETS):
        training |= dict.fromkeys(BUDGETS)
    reading = {f.name: value for f in fields(DataOptions) if (value := getattr(saved.data, f.name)) is not None}
    more: dict[str, tuple[Any, Any]] = {
        "model": (Suppress[str | None], name or saved.model),
        "data": (str | None, saved.data.spec),
        "data_reading": (OmitArgPrefixes[with_defaults(DataOptions, reading)], MISSING),
        "training": (OmitArgPrefixes[with_defaults(TrainOptions, training)], MISSING),
        "given": (Suppress[frozenset[str]], given),
    }
    kind = type(base) if base is not None else None if name is None else ModelConfig.chosen(name)
    if kind is not None:
        flags = Flags.of(kind, args, base)
        flags.check(args, Train)
        more |= {**flags.fields, "flags": (Suppress[Any], flags)}
    return with_fields(Train, more)


def models_overview() -> str:
    """What `tessella train --help` prints: the models."""
    known = registry.entries("model")
    wide = max(len(entry.name) for entry in known)
    return "\n".join([
        inspect.cleandoc(Train.__doc__ or "").partition("\n")[0],
        "",
        "usage: tessella train MODEL --data SPEC --out RUN ...    (tessella train MODEL --help lists its options)",
        "       tessella train --resume --out RUN ...",
        "",
        "models:",
        *(f"  {entry.name:{wide}}  {entry.summary}" for entry in known),
    ])  # fmt: skip


def run_training(o: Train) -> int:
    if o.print_config:
        return _print_config(o)
    if o.out is None:
        raise SpecError(f"give the folder to train into: {option('out')} RUN", code="no-out")
    if o.resume:
        return _resume(o, Path(o.out))
    if o.changed_data:
        raise SpecError(
            f"{option('changed_data')} is for a run that is resumed: leave it out, or give {option('resume')}",
            code="only-with-resume",
        )
    if o.chosen is None or o.data is None:
        raise SpecError(
            f"name a model and its data: {task_name('train', 'MODEL --data SPEC --out RUN')}; models are "
            f"{', '.join(registry.names('model'))}",
            code="no-model",
        )
    config, options, run = o.chosen, TrainOptions(**asdict(o.training)), Path(o.out)
    import torch

    from tessella.training import checkpoint
    from tessella.training.processes import writing

    checkpoint.check_place(run, overwrite=True)  # whoever writes into it is told of first
    with writing(run, options, _facts(o)) as accelerator:
        checkpoint.check_place(run, overwrite=o.overwrite or not accelerator.is_main_process)
        data = o.data_reading.open(o.data)
        sized = _sized(config, data, options)
        torch.manual_seed(options.seed)
        return _trained(sized.config.build(data.schema), data, o, sized.options, sized.reason)


def _sized(config: ModelConfig, data: Data, options: TrainOptions) -> Sized[ModelConfig]:
    """Choose the sizes that the command line leaves open."""
    from tessella.training.sizing import fit_to_budget

    schema = data.schema
    return fit_to_budget(
        config, config.sizes(schema), lambda c: c.build(schema), data.split("train"), options, schema.dims
    )


def _print_config(o: Train) -> int:
    """Print what `--config` reads: everything that a run depends on, with the sizes that fit its data and budget."""
    chosen, options = o.chosen, TrainOptions(**asdict(o.training))
    if chosen is not None and o.data is not None:
        sized = _sized(chosen, o.data_reading.open(o.data), options)
        chosen, options = sized.config, sized.options
    config = None if chosen is None else chosen.to_record()
    record = {
        "model": None if config is None else config.pop("type"),
        "config": config,
        "data": {"spec": o.data, **asdict(o.data_reading)},
        "training": asdict(options),
    }
    print(toml(record))
    return 0


def _resume(o: Train, run: Path) -> int:
    import torch

    from tessella.training import checkpoint
    from tessella.training.processes import writing
    from tessella.training.run import Run

    if o.overwrite:
        raise SpecError(
            f"{option('resume')} goes on with a run and {option('overwrite')} replaces it: give one of them",
            code="resume-or-overwrite",
        )
    spec = checkpoint.read_spec(run)
    stored = {**spec.data, **flat(spec.config), **spec.training, "model": spec.model}
    refuse_changes(run, stored, _requested(o), o.given if o.model is None else o.given | {"model"})
    options = resumed_options(run, spec.training, o.training, o.given)
    with writing(run, options, _facts(o)):
        torch.manual_seed(options.seed)
        model = checkpoint.build(run, spec)
        return _trained(model, Run(run).own_data(o.data), o, options)


def flat(config: Config | None) -> dict[str, Any]:
    """The options of a config and its parts by the names of their flags."""
    if config is None:
        return {}
    parts = {slot: getattr(config, slot) for slot in slots(type(config))}
    named = {slot: None if part is None else part.name for slot, part in parts.items()}
    return named | {
        name: getattr(parts[slot] if slot else config, attribute)
        for name, (slot, attribute) in options(type(config), parts).items()
    }


def refuse_changes(run: Path, stored: Mapping[str, Any], requested: Mapping[str, Any], given: Collection[str]) -> None:
    """Let what is resumed be what it was started with, but for its budget and what no number depends on.

    Args:
        stored, requested: all options by name, as they were and as they are now.
        given: the names that were said now.
    """
    for name in sorted(set(given) - {*CHANGEABLE_ON_RESUME, *OF_COMMAND, *BUDGETS}):
        if requested[name] != stored.get(name):
            raise SpecError(
                f"{run} was started with {name.replace('_', ' ')} {stored.get(name)}, not {requested[name]}: leave it "
                "out to go on with the run, or start a new one",
                code="changed-option",
                option=name,
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
        raise RunError(
            f"{run} has options of training that this tessella does not know ({error})", code="unknown-options"
        ) from error


def _requested(o: Train) -> dict[str, Any]:
    """All options by name, as a run's specification has them."""
    reading = o.data_reading
    box = None if reading.box is None else list(reading.box)
    return {**flat(o.chosen), **asdict(o.training), **asdict(reading), "size": box, "model": o.model}


def _facts(o: Train) -> dict[str, Any]:
    """The options that processes must have in common; what data they have is compared by content."""
    alike = {**_requested(o), "out": o.out, "resume": o.resume, "overwrite": o.overwrite}
    return {name: value for name, value in alike.items() if name != "workers"}


def _trained(model: Model, data: Data, o: Train, options: TrainOptions, reason: str = "") -> int:
    from tessella.tasks.describe import data_facts
    from tessella.training.loop import train

    if not o.quiet:
        say(*(f"{what:8} {text}" for what, text in data_facts(data)))
        say(f"device   {device_text(options.device)}")
        say(f"model    {model.name}, {sum(p.numel() for p in model.parameters()):,} parameters")
        say(f"budget   {budget(options)}")
        if reason:
            say(f"sizes    {reason}")
    how = {"resume": o.resume, "overwrite": o.overwrite, "changed_data": o.changed_data}
    with progress_bar(quiet=o.quiet):
        done = train(model, data, str(o.out), options, **how)
    if done.stopped == "signal":
        say(f"stopped and saved at step {done.steps:,}; go on with: tessella train --resume --out {quoted(str(o.out))}")
        return 130
    early = ", stopped because validation examples cost more and more" if done.stopped == "converged" else ""
    say(f"trained for {done.steps:,} steps, {done.seconds:.0f} seconds{early}: {o.out}")
    if not o.quiet:
        say_verdict(Path(str(o.out)), data, options)
        run = quoted(str(o.out))
        prior = f"tessella fit-prior {run}, " if model.levels else ""
        say(f"next: {prior}tessella evaluate {run}, tessella report {run}")
    return 0


def say_verdict(run: Path, data: Data, options: TrainOptions) -> None:
    """Say how the model compares with simple baselines; of several processes only the first does."""
    from tessella.evaluation.verdict import judge
    from tessella.training import ranks
    from tessella.training.run import Run

    if ranks.rank() == 0:
        found = judge(Run(run, options.device).model(), data, options.precision)
        say(*(f"verdict  {sentence}" for sentence in found.sentences))


def budget(options: TrainOptions) -> str:
    return next(f"{value:g} {name}" for name in BUDGETS if (value := getattr(options, name)) is not None)
