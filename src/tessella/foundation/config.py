"""Configs: options of parts as nested frozen dataclasses, registered by name.

A part declares its options once, as a subclass of one of the classes of `tessella.core.configs`:

    @register("quantizer", "fsq", summary="finite scalar quantisation (Mentzer et al. 2023)")
    class FSQ(QuantizerConfig):
        \"\"\"Finite scalar quantisation.

        Attributes:
            codebook_size: values that a code can take.
        \"\"\"

        codebook_size: Count = 512

        def build(self, feature_shape): ...

The same dataclass is used in Python, in `spec.json`, in TOML files, and for the options of the command line. Values are
checked against the types of the fields when the object is created.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, dataclass_transform, get_args, get_origin

from tessella.foundation import registry, validation
from tessella.foundation.errors import SpecError, option
from tessella.foundation.validation import Range

if TYPE_CHECKING:
    from typing import Self

MOST = 1 << 24
Count = Annotated[int, Range(1, MOST)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]

_INDENTED = re.compile(r"(?: {4}.*\n|\n)*")
_ENTRY = re.compile(r"^ {4}(?=\S)", re.MULTILINE)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Config(validation.Tagged):
    """Options of a part. Subclasses become frozen dataclasses with keyword arguments.

    Raises:
        SpecError: if a value has the wrong type or is out of range.
    """

    part: ClassVar[registry.PartKind]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, validation.fitted(hint, value, name.replace("_", " ")))
            except validation.Malformed as error:
                raise SpecError(str(error), code="bad-option", name=name) from error

    @property
    def name(self) -> str:
        """Return the registered name of the part."""
        return registry.entry_of(type(self)).name

    def values(self) -> dict[str, Any]:
        """Return the values of all fields by name."""
        return {name: getattr(self, name) for name in hints(type(self))}

    def to_record(self) -> dict[str, Any]:
        """Convert to a record of plain values, which `validation.fitted` converts back."""
        plain = {name: v.to_record() if isinstance(v, Config) else v for name, v in self.values().items()}
        return {validation.TYPE: self.name, **plain}

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by their names in `from_options`."""
        parts = {slot: getattr(self, slot) for slot in slots(type(self))}
        found: dict[str, Any] = {}
        usual = {slot: default(type(self), slot) for slot in parts}
        for slot, part in parts.items():
            if part is not None and not _within(part, usual[slot]):
                found[slot], usual[slot] = part.name, type(part)()
        for name, (slot, attribute) in options(type(self), parts).items():
            value = getattr(parts[slot] if slot else self, attribute)
            if value != (getattr(usual[slot], attribute) if slot else default(type(self), attribute)):
                found[name] = value
        return found

    @classmethod
    def chosen(cls, name: str) -> type[Self]:
        return registry.find(cls.part, name).load()

    @classmethod
    def from_options(cls, given: Mapping[str, Any], base: Self | None = None) -> Self:
        """Make the config from options with the names of `options()`. Parts are given by their names.

        Args:
            given: options, for example `{"quantizer": "fsq", "levels": (8, 5, 5, 5), "grid_size": 16}`.
            base: config with the values of all other options; None for the defaults.

        Raises:
            SpecError: if no chosen part has an option; the message names the parts that have it.
        """
        rest = dict(given)
        parts = {name: part for name, part in choices(cls, rest, base).items() if part is not None}
        known = options(cls, parts)
        if unknown := [name for name in rest if name not in known and name not in slots(cls)]:
            raise unknown_option(cls, parts, unknown[0])
        own: dict[str, Any] = {} if base is None else base.values()
        values = {slot: part.values() for slot, part in parts.items()}
        for name, (slot, attribute) in known.items():
            if name in rest:
                (values[slot] if slot else own)[attribute] = rest[name]
        own |= {slot: type(part)(**values[slot]) for slot, part in parts.items()}
        return cls(**own)


def hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass by name."""
    every = validation.field_types(kind)
    return {f.name: every[f.name] for f in fields(kind)}


def part_of(hint: Any) -> type[Config] | None:
    """Return the config class in a field's type; None for a plain value."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Config)), None)


@cache
def slots(kind: type[Config]) -> dict[str, type[Config]]:
    """Return the fields that hold the config of another part, with their config classes."""
    return {name: part for name, hint in hints(kind).items() if (part := part_of(hint)) is not None}


def default(kind: type, name: str) -> Any:
    """Return the default of a field; `MISSING` if it has none."""
    found = next(f for f in fields(kind) if f.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory()


def choices(kind: type[Config], given: Mapping[str, Any], base: Config | None = None) -> dict[str, Config | None]:
    """Choose the part of each slot: the one named in the options, else from `base`, else the default."""
    found: dict[str, Config | None] = {}
    for slot, part in slots(kind).items():
        before = default(kind, slot) if base is None else getattr(base, slot)
        name = given.get(slot)
        found[slot] = before if name is None or (base and before and before.name == name) else part.chosen(name)()
    return found


def _within(part: Config, usual: Config | None) -> bool:
    """Return whether options can turn the default part into this one; None cannot be given as an option."""
    if type(part) is not type(usual):
        return False
    return all(getattr(part, name) is not None or getattr(usual, name) is None for name in hints(type(part)))


def options(kind: type[Config], parts: Mapping[str, Config | None]) -> dict[str, tuple[str, str]]:
    """Return the plain options of a composition by name, each with slot (or "") and field.

    The option of a part has the name of its field. If the composition or another chosen part has an option with this
    name, the slot is its prefix: `prior_components`.
    """
    own = {name: ("", name) for name in hints(kind) if name not in slots(kind)}
    fields_of = {slot: list(hints(type(part))) for slot, part in parts.items() if part is not None}
    found = dict(own)
    for slot, names in fields_of.items():
        others = [*own, *(n for other, ns in fields_of.items() if other != slot for n in ns)]
        found |= {(f"{slot}_{name}" if name in others else name): (slot, name) for name in names}
    return found


def unknown_option(kind: type[Config], parts: Mapping[str, Config | None], name: str) -> SpecError:
    """Make the error for an unknown option, which names the parts that have it."""
    title = _title(kind)
    wrong = option(name)
    twice = [slot for slot, part in parts.items() if part is not None and name in hints(type(part))]
    if twice:
        remedy = " or ".join(option(f"{slot}_{name}") for slot in twice)
        return SpecError(f"more than one part has {wrong}: use {remedy}", code="ambiguous-option", option=name)
    having = [
        f"{option(slot)} {entry.name}" for slot, part in slots(kind).items() for entry in registry.entries(part.part)
        if any(name in (field, f"{slot}_{field}") for field in hints(entry.load()))
    ]  # fmt: skip
    others = [
        entry.name for entry in registry.entries(kind.part) if name in {**hints(entry.load()), **slots(entry.load())}
    ]
    if having:
        remedy = f"it is an option of {' and of '.join(having)}"
    elif others:
        remedy = f"{', '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    else:
        remedy = "there is no such option"
    return SpecError(
        f"{title} has no {wrong} here: {remedy}", code="no-such-option", option=name, parts=having or others
    )


def _title(kind: type[Config]) -> str:
    return f"the {kind.part.replace('-', ' ')} {registry.entry_of(kind).name}"


def described(kind: type) -> dict[str, str]:
    """Return the descriptions of fields in the `Attributes:` of a dataclass and its bases."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        section = inspect.cleandoc(vars(each).get("__doc__") or "").partition("\nAttributes:\n")[2]
        for entry in _ENTRY.split(_INDENTED.match(f"{section}\n")[0])[1:]:  # pyright: ignore[reportOptionalSubscript]
            names, _, words = " ".join(entry.split()).partition(": ")
            found |= dict.fromkeys(names.split(", "), words)
    return found


def parsed_doc(kind: type) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
