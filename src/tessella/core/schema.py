"""Description of one example: channels, shape and values."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, final

from tessella.foundation import validation

LARGEST = 1 << 26
"""Largest allowed number of values in one example."""
MOST_LEVELS = 1 << 24
"""Largest allowed number of levels: float32 distinguishes them all."""
Precision = Literal["auto", "float32", "bfloat16"]


class Values(ABC):
    """Set of values that one number of an example can take.

    Attributes:
        kind: name of the class in files.
        default_likelihood: name of the likelihood used by default.
        low, high: the smallest and the largest value.
        levels: number of values; 0 for real numbers, which have a density.
    """

    kind: ClassVar[str]
    default_likelihood: ClassVar[str]
    low: float
    high: float
    levels: int

    @property
    def name(self) -> str:
        """Return the distinguishing name: `binary`, `uint8`, `integer(-3..3)`, `symbol(27)` or `real`."""
        if self == UINT8:
            return "uint8"
        named = {"integers": f"integer({self.low:.0f}..{self.high:.0f})", "symbols": f"symbol({self.levels})"}
        return named.get(self.kind, self.kind)

    @property
    def words(self) -> str:
        """Return the adjective for messages and pages, such as `8-bit` or `7-level`."""
        if self.kind != "integers":
            return self.kind.removesuffix("s")
        bits = self.levels.bit_length() - 1
        return f"{bits}-bit" if self.levels == 1 << bits else f"{self.levels}-level"

    @property
    def discrete(self) -> bool:
        """Return whether the values have probabilities, so that they can be compressed without loss."""
        return self.levels > 0

    @property
    def span(self) -> float:
        """Return `high - low`, or 1 if that is 0."""
        return (self.high - self.low) or 1.0

    def __str__(self) -> str:
        return self.name

    def to_json(self) -> dict[str, Any]:
        """Return the kind and the constructor's fields."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # pyright: ignore[reportArgumentType]
        return {"kind": self.kind, **own}

    @staticmethod
    def from_json(record: Any) -> Values:
        """Read a record that `to_json` wrote.

        Raises:
            Malformed: if it is not such a record.
        """
        kind = _KINDS.get(str(record.get("kind"))) if isinstance(record, dict) else None
        if kind is None:
            raise validation.Malformed(f"the kind of the values must be one of {', '.join(_KINDS)}")
        return validation.fitted(kind, {key: one for key, one in record.items() if key != "kind"}, "values")


@final
@dataclass(frozen=True)
class Binary(Values):
    """Values 0 and 1."""

    kind = "binary"
    default_likelihood = "bernoulli"
    low, high, levels = 0.0, 1.0, 2


@final
@dataclass(frozen=True)
class Integers(Values):
    """Ordered integers `low ... low + levels - 1`; by default the bytes of a picture.

    Attributes:
        levels: number of values.
        low: the smallest value.
        high: the largest value.
    """

    levels: int = 256
    low: float = 0.0
    high: float = field(init=False)

    kind = "integers"
    default_likelihood = "interlaced"

    def __post_init__(self) -> None:
        object.__setattr__(self, "high", self.low + self.levels - 1)


@final
@dataclass(frozen=True)
class Symbols(Values):
    """Symbols without an order, `0 ... levels - 1`.

    Attributes:
        levels: size of the alphabet.
        high: the largest symbol.
    """

    levels: int
    high: float = field(init=False)

    kind = "symbols"
    default_likelihood = "categorical"
    low = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "high", self.levels - 1.0)


@final
@dataclass(frozen=True)
class Real(Values):
    """Real numbers; the range is ignored when two are compared.

    Attributes:
        low, high: the range in the training split.
    """

    low: float = field(default=-1.0, compare=False)
    high: float = field(default=1.0, compare=False)

    kind = "real"
    default_likelihood = "gaussian"
    levels = 0


UINT8 = Integers()
NAMED: dict[str, Values] = {"binary": Binary(), "uint8": UINT8, "real": Real()}
_KINDS: dict[str, type[Values]] = {of.kind: of for of in (Binary, Integers, Symbols, Real)}


@dataclass(frozen=True)
class Schema:
    """Description of one stored example: all that a model needs to know about the data.

    Examples are `[B, *shape]` with `shape = (channels, *spatial)`.

    Attributes:
        channels: numbers per position; for a vector, its number of features.
        spatial: `()` for a vector, `(T,)` for a signal, `(H, W)` for a picture.
        values: the values that one number can take.
        lengths: whether examples may be shorter than `spatial`; positions after the end are NaN in all channels.
        missing: whether values may be missing; these are NaN. What is NaN costs nothing and trains nothing.
        observed: share of the values in the training split that are not NaN.
        center, scale: mean and standard deviation of each channel in the training split for `real` data. Of sounds of
            integers, the scale is their root mean square around silence. Otherwise `(0.0,)` and `(1.0,)`.
        classes: names of the classes in the order of their labels; empty if there are none.
        depth: for pictures from files of more than 8 bits, the file values that were mapped to 0 and 255.
        columns: names of a table's columns, in order; empty if they have none.
        offset: integers subtracted from the columns because 32 bits could not distinguish their values; empty if none
            were.
        rate: samples per second of a sound; 0 for data that is no sound.
        mu_law: whether the 256 levels of a sound are its mu-law codes (ITU-T G.711), from the lowest pressure up.
    """

    channels: int
    spatial: tuple[int, ...]
    values: Values
    lengths: bool = False
    missing: bool = False
    observed: float = field(default=1.0, compare=False)
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    depth: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()
    offset: tuple[int, ...] = ()
    rate: float = 0.0
    mu_law: bool = False

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        values: Values | str,
        center: tuple[float, ...] = (0.0,),
        scale: tuple[float, ...] = (1.0,),
        classes: tuple[str, ...] = (),
    ) -> Schema:
        """Make the schema of examples of a shape `(C, *spatial)`.

        Args:
            shape: `(C, *spatial)`.
            values: the values that one number can take, or their name: `binary`, `uint8`, `real`.
            center, scale, classes: as the attributes.
        """
        values = NAMED[values] if isinstance(values, str) else values
        return cls(shape[0], tuple(shape[1:]), values, center=center, scale=scale, classes=classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return `(C, *spatial)`."""
        return (self.channels, *self.spatial)

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """Return the shape of an encoder's input: with missing values, a channel more for each one, its mask."""
        return (self.channels * (2 if self.missing else 1), *self.spatial)

    @property
    def rank(self) -> int:
        """Return the number of spatial axes: 0 for vectors, 1 for signals, 2 for pictures."""
        return len(self.spatial)

    @property
    def dims(self) -> int:
        """Return the number of numbers in one example."""
        return math.prod(self.shape)

    @property
    def observed_dims(self) -> float:
        """Return the mean number of observed numbers in one example, to convert mean nats to bits per dimension."""
        return self.dims * self.observed

    @property
    def level(self) -> float:
        """Return the level of sounds of integers; 0 for other data, or if it was not measured."""
        return max(self.scale) if self.values.discrete and max(self.scale) > 1 else 0.0

    @property
    def partial(self) -> bool:
        """Return whether stored values may be NaN: after the end of a shorter example, or missing."""
        return self.lengths or self.missing

    @property
    def in_bytes(self) -> bool:
        """Return whether values are stored as uint8 instead of float32."""
        values = self.values
        return values.discrete and values.low >= 0 and values.high <= 255 and not self.partial

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "values": self.values.to_json()}

    @classmethod
    def from_json(cls, record: Any) -> Schema:
        """Read a record that `to_json` wrote.

        Raises:
            Malformed: if it is not such a record, or no model can be built for the schema.
        """
        schema: Schema = validation.fitted(cls, record, "schema")
        sides, values = schema.shape, schema.values
        if schema.rank > 2 or not all(1 <= side <= LARGEST for side in sides) or schema.dims > LARGEST:
            raise validation.Malformed(f"no model can be built for the shape {sides[:4]}")
        if schema.rank == 2 and schema.channels > 4:
            raise validation.Malformed(f"the shape {sides} has {schema.channels} channels, but a picture has at most 4")
        if values.discrete and not (2 <= values.levels <= MOST_LEVELS and abs(values.low) <= MOST_LEVELS):
            raise validation.Malformed(f"no model can be built for values from {values.low} to {values.high}")
        if schema.lengths and schema.rank != 1:
            raise validation.Malformed("only signals can end early")
        if not 0 < schema.observed <= 1:
            raise validation.Malformed(f"the share of observed values is {schema.observed}")
        if not 0 <= schema.rate <= MOST_LEVELS:
            raise validation.Malformed(f"no model can be built for sound of {schema.rate} samples per second")
        if not values.low <= values.high:
            raise validation.Malformed(f"the smallest value {values.low} is above the largest {values.high}")
        if any(len(numbers) not in (1, schema.channels) for numbers in (schema.center, schema.scale)):
            raise validation.Malformed(f"center and scale must have 1 or {schema.channels} numbers")
        if not all(number > 0 for number in schema.scale):
            raise validation.Malformed("scale must be above zero")
        if len(set(schema.classes)) < len(schema.classes):
            raise validation.Malformed("two classes have the same name")
        return schema


def bits_per_dim(nats: float, dims: float) -> float:
    """Convert nats per example to bits per dimension: `nats / (dims * ln 2)`."""
    return nats / (dims * math.log(2))
