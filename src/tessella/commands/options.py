"""Flags that depend on what is chosen: those of a model or prior with its parts, and those of a configuration file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from tessella.foundation import config as configs
from tessella.foundation import registry, validation
from tessella.foundation.errors import SpecError
from tessella.models.spec import DataOptions, ModelConfig, TrainOptions

BUDGETS = ("minutes", "epochs", "steps")
T = TypeVar("T")


# configuration files


@dataclass(frozen=True)
class FileData(DataOptions):
    """Section `data` of a configuration file: what is trained on, and how it is read."""

    spec: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """What a configuration file says of a run.

    Attributes:
        model: its name.
        config: its options and its parts'.
        data: what it is trained on, and how that is read.
        training: the options of training that the file gives.
    """

    model: str | None = None
    config: ModelConfig | None = None
    data: FileData = field(default_factory=FileData)
    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a TOML file, or the specification of a run.

        Raises:
            SpecError: if it cannot be read, or holds what a run has no place for.
        """
        if path.is_dir() or path.suffix == ".json":
            from tessella.training.checkpoint import read_spec

            spec = read_spec(path if path.is_dir() else path.parent)
            data = {f.name: spec.data.get(f.name) for f in fields(FileData)}
            return cls(spec.model, spec.config, validation.fitted(FileData, data, "data"), spec.training)
        try:
            record = tomllib.loads(validation.read_bytes(path).decode("utf-8"))
            if isinstance(record.get("model"), str):
                record.setdefault("config", {}).setdefault(validation.TYPE, record["model"])
            found: RunConfig = validation.fitted(cls, record)
            validation.fitted(TrainOptions, found.training, "training")
            if found.config is not None and found.config.name != found.model:
                raise validation.Malformed(f"config is of {found.config.name}, and model is {found.model}")
            return found
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, validation.Malformed) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise SpecError(f"{path} is no configuration of a run: {why}", code="bad-config-file") from error


def toml(record: Mapping[str, Any], section: str = "") -> str:
    """Write a nested record as TOML; None, which TOML does not have, is left out."""
    plain = {k: v for k, v in record.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in plain.items()]
    if section and (lines or not record):
        lines.insert(0, f"[{section}]")
    parts = ["\n".join(lines)] if lines else []
    for name, inner in record.items():
        if isinstance(inner, Mapping):
            parts.append(toml(inner, f"{section}.{name}" if section else name))
    return "\n\n".join(part for part in parts if part)


# flags


def word_after(args: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the command line is parsed."""
    for place, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and place + 1 < len(args):
            return args[place + 1]
    return None


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def given_flags(args: Sequence[str]) -> frozenset[str]:
    """Names of the options whose flags occur."""
    flags = (word.removeprefix("--").partition("=")[0] for word in args if word.startswith("--"))
    return frozenset(name.replace("-", "_") for name in flags)


def with_fields(options: type[T], more: Mapping[str, tuple[Any, Any]]) -> type[T]:
    """A dataclass of options with more fields, or others: types and defaults by name."""
    rows = [
        (name, hint, value if isinstance(value, Field) else field(default=value))
        for name, (hint, value) in more.items()
    ]
    made = make_dataclass(options.__name__, rows, bases=(options,), frozen=True, kw_only=True)
    made.__doc__ = options.__doc__
    return made


def with_defaults(options: type[T], values: Mapping[str, Any]) -> type[T]:
    """The same options with other defaults."""
    hints = validation.field_types(options)
    return with_fields(options, {name: (hints[name], value) for name, value in values.items()})


@dataclass(frozen=True)
class Flags:
    """The flags of a model or prior with its parts.

    Attributes:
        kind: the class of its options.
        groups: fields of a dataclass whose flags they are: first its own, then those of each part.
        names: of the options, and which group has them.
    """

    kind: type[configs.Config]
    groups: Mapping[str, type]
    names: Mapping[str, str]

    @classmethod
    def of(cls, kind: type[configs.Config], args: Sequence[str], base: configs.Config | None = None) -> Flags:
        """Make the flags of a config, for the parts that the command line chooses.

        Args:
            base: where defaults come from, instead of the config's own.

        Raises:
            SpecError: if there is no such part, or an option that only another part has is given.
        """
        slots = configs.slots(kind)
        chosen = {slot: word for slot in slots if (word := word_after(args, flag(slot))) is not None}
        parts = configs.choices(kind, chosen, base)
        known = configs.options(kind, parts)
        words: dict[str, dict[str, str]] = {"": configs.described(kind)}
        words |= {slot: configs.described(type(part)) for slot, part in parts.items() if part is not None}
        rows: dict[str, list[tuple[str, Any, Any]]] = {slot: [] for slot in words}
        texts: dict[str, list[str]] = {slot: [] for slot in words}
        for slot, part in slots.items():
            usual = parts[slot]
            choice: Any = Literal[registry.names(part.part)]  # pyright: ignore[reportInvalidTypeArguments]
            rows[""].append((slot, choice if usual else choice | None, field(default=usual.name if usual else None)))
            texts[""].append(f"    {slot}: {words[''].get(slot, '')}")
        for name, (slot, attribute) in known.items():
            holder = parts[slot] if slot else base
            owner = type(parts[slot]) if slot else kind
            value = configs.default(owner, attribute) if holder is None else getattr(holder, attribute)
            hint = configs.hints(owner)[attribute]
            rows[slot].append((name, hint, field(default=value)))
            texts[slot].append(f"    {name}: {words[slot].get(attribute, '')}")
        titles = {"": registry.entry_of(kind).name, **{slot: part.name for slot, part in parts.items() if part}}
        groups: dict[str, type] = {}
        for slot, row in rows.items():
            made = make_dataclass("Options", row, frozen=True)
            about = configs.parsed_doc(type(parts[slot]) if slot else kind)
            made.__doc__ = "\n".join([about, "", "Attributes:", *texts[slot], ""])
            if row:
                groups[f"{slot or kind.part.replace('-', '_')}_{titles[slot].replace('-', '_')}"] = made
        names = {**dict.fromkeys(slots, ""), **{name: slot for name, (slot, _) in known.items()}}
        return cls(kind, groups, names)

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """What `with_fields` adds to the options of a command."""
        return {name: (OmitArgPrefixes[group], field(default_factory=group)) for name, group in self.groups.items()}

    def config(self, parsed: Any) -> Any:
        """The config of the options that were parsed."""
        values = {name: v for group in self.groups for name, v in asdict(getattr(parsed, group)).items()}
        return self.kind.from_options({name: value for name, value in values.items() if value is not None})

    def check(self, args: Sequence[str], command: type) -> None:
        """Refuse flags that neither the command nor these options have.

        Raises:
            SpecError: naming the part that has the option.
        """
        slots = configs.slots(self.kind)
        parts = configs.choices(self.kind, {s: w for s in slots if (w := word_after(args, flag(s))) is not None})
        known = {*self.names, "help", *given_flags([flags[0] for flags, _ in option_types(command)])}
        for name in sorted(given_flags(args) - known):
            raise configs.unknown_option(self.kind, parts, name)


def option_types(options: type) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The flags of a dataclass of options and of those that it holds, each with its type."""
    for name, hint in validation.field_types(options).items():
        marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        inner = get_args(hint)[0] if marks else hint
        if isinstance(inner, type) and hasattr(inner, "__dataclass_fields__"):
            yield from option_types(inner)
        elif Positional not in marks and Suppress not in marks:
            short = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
            yield (flag(name), *short), inner


AliasOut = Annotated[str | None, arg(aliases=("-o",))]
