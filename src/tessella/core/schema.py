"""What one example is: channels, extent and values."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, final

from tessella.foundation import validation

LARGEST = 1 << 26
"""Numbers in one example, at most."""
MOST_LEVELS = 1 << 24
"""Different values of one number, at most: float32 keeps them apart."""
Precision = Literal["auto", "float32", "bfloat16"]


class Values(ABC):
    """Set of values that one number of an example can take.

    Attributes:
        kind: name of the class in files.
        default_likelihood: name of the likelihood that is used unless another is asked for.
        low, high: the smallest value and the largest.
        levels: how many there are; 0 for real numbers, which have a density.
    """

    kind: ClassVar[str]
    default_likelihood: ClassVar[str]
    low: float
    high: float
    levels: int

    @property
    def name(self) -> str:
        """Name that tells them apart: `binary`, `uint8`, `integer(-3..3)`, `symbol(27)` or `real`."""
        if self == UINT8:
            return "uint8"
        named = {"integers": f"integer({self.low:.0f}..{self.high:.0f})", "symbols": f"symbol({self.levels})"}
        return named.get(self.kind, self.kind)

    @property
    def words(self) -> str:
        """Adjective for messages and pages: `8-bit`, `7-level`."""
        if self.kind != "integers":
            return self.kind
        bits = self.levels.bit_length() - 1
        return f"{bits}-bit" if self.levels == 1 << bits else f"{self.levels}-level"

    @property
    def discrete(self) -> bool:
        """True if the values have probabilities, so that files of them can be lossless."""
        return self.levels > 0

    @property
    def in_bytes(self) -> bool:
        """True if they are stored as uint8, and not as float32."""
        return self.discrete and self.low >= 0 and self.high <= 255

    @property
    def span(self) -> float:
        """`high - low`, or 1 where that is 0."""
        return (self.high - self.low) or 1.0

    def __str__(self) -> str:
        return self.name

    def to_json(self) -> dict[str, Any]:
        """Record the kind and the fields that it is made from."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # pyright: ignore[reportArgumentType]
        return {"kind": self.kind, **own}

    @staticmethod
    def from_json(record: Any) -> Values:
        """Read what `to_json` gave.

        Raises:
            Malformed: if it is something else.
        """
        kind = _KINDS.get(str(record.get("kind"))) if isinstance(record, dict) else None
        if kind is None:
            raise validation.Malformed(f"values have no kind, of {', '.join(_KINDS)}")
        return validation.fitted(kind, {key: one for key, one in record.items() if key != "kind"}, "values")


@final
@dataclass(frozen=True)
class Binary(Values):
    """0 or 1."""

    kind = "binary"
    default_likelihood = "bernoulli"
    low, high, levels = 0.0, 1.0, 2


@final
@dataclass(frozen=True)
class Integers(Values):
    """Ordered integers `low ... low + levels - 1`; by default the bytes of a picture.

    Attributes:
        levels: how many there are.
        low: the smallest.
    """

    levels: int = 256
    low: float = 0.0
    high: float = field(init=False)

    kind = "integers"
    default_likelihood = "logistic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "high", self.low + self.levels - 1)


@final
@dataclass(frozen=True)
class Symbols(Values):
    """Symbols without an order, `0 ... levels - 1`.

    Attributes:
        levels: size of the alphabet.
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
    """Real numbers; two of them are equal whatever range was seen.

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
    """What one example looks like as it is stored: all that a model needs to know of the data.

    Examples are `[B, *shape]` with `shape = (channels, *spatial)`.

    Attributes:
        channels: numbers at each position; of a vector, its features.
        spatial: `()` for a vector, `(T,)` for a signal, `(H, W)` for a picture.
        values: what one number can be.
        lengths: whether examples may be shorter than `spatial`; a batch then says how long each is.
        center, scale: for `real` data the mean and standard deviation of each channel in the training split;
            `(0.0,)` and `(1.0,)` otherwise.
        classes: the names of the classes, in the order of their labels; empty if there are none.
        depth: of pictures read from files of more than 8 bits, the values in the files that became 0 and 255.
        columns: the names of a table's columns, in order; empty if they have none.
        offset: whole numbers that were subtracted from the columns, because 32 bits could not tell their values apart;
            empty if none were.
    """

    channels: int
    spatial: tuple[int, ...]
    values: Values
    lengths: bool = False
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    depth: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()
    offset: tuple[int, ...] = ()

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
            values: what one number can be, or its name: `binary`, `uint8`, `real`.
        """
        values = NAMED[values] if isinstance(values, str) else values
        return cls(shape[0], tuple(shape[1:]), values, center=center, scale=scale, classes=classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, *spatial)`."""
        return (self.channels, *self.spatial)

    @property
    def rank(self) -> int:
        """Number of spatial axes: 0 for vectors, 1 for signals, 2 for pictures."""
        return len(self.spatial)

    @property
    def dims(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "values": self.values.to_json()}

    @classmethod
    def from_json(cls, record: Any) -> Schema:
        """Read what `to_json` gave.

        Raises:
            Malformed: if it is something else, or describes no data.
        """
        schema: Schema = validation.fitted(cls, record, "schema")
        sides, values = schema.shape, schema.values
        if schema.rank > 2 or not all(1 <= side <= LARGEST for side in sides) or schema.dims > LARGEST:
            raise validation.Malformed(f"shape {sides[:4]} is none that a model could be made for")
        if schema.rank == 2 and schema.channels > 4:
            raise validation.Malformed(f"shape {sides} has {schema.channels} channels, more than a picture has")
        if values.discrete and not (2 <= values.levels <= MOST_LEVELS and abs(values.low) <= MOST_LEVELS):
            raise validation.Malformed(f"values from {values.low} to {values.high} are none that a model is made for")
        if not values.low <= values.high:
            raise validation.Malformed(f"low {values.low} is above high {values.high}")
        if any(len(numbers) not in (1, schema.channels) for numbers in (schema.center, schema.scale)):
            raise validation.Malformed(f"center and scale do not have 1 or {schema.channels} numbers")
        if not all(number > 0 for number in schema.scale):
            raise validation.Malformed("scale is not above zero")
        if len(set(schema.classes)) < len(schema.classes):
            raise validation.Malformed("two classes have one name")
        return schema


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats per example as bits per dimension: `nats / (dims * ln 2)`."""
    return nats / (dims * math.log(2))
