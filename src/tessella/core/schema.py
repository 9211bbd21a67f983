"""What one example looks like, and batches of examples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tessella.foundation import validation

if TYPE_CHECKING:
    pass

LARGEST = 1 << 26
"""Numbers in one example, at most."""
Values = Literal["binary", "bytes", "real"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Schema:
    """What one example looks like as it is stored: all that a model needs to know of the data.

    Attributes:
        shape: `(C, H, W)` for a picture, `(D,)` for a vector.
        values: `binary` (0 or 1), `bytes` (0 ... 255), or `real`.
        low, high: the range of the stored values (for `real`, as seen in the training split).
        center, scale: for `real` data the mean and standard deviation of the training split, one a feature for
            vectors and one a channel for pictures; `(0.0,)` and `(1.0,)` otherwise.
        classes: the names of the classes, in the order of their labels; empty if there are none.
        depth: of pictures read from files of more than 8 bits, the values in the files that became 0 and 255.
        columns: the names of a table's columns, in order; empty if they have none.
        offset: whole numbers that were subtracted from the columns, because 32 bits could not tell their values apart;
            empty if none were.
    """

    shape: tuple[int, ...]
    values: Values
    low: float = 0.0
    high: float = 255.0
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    depth: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()
    offset: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether an example has height and width."""
        return len(self.shape) == 3

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Schema:
        """What `to_json` gave.

        Raises:
            Malformed: if it is something else, or describes no data.
        """
        schema: Schema = validation.fitted(cls, record, "schema")
        sides = schema.shape
        if len(sides) not in (1, 3) or not all(1 <= side <= LARGEST for side in sides) or schema.dims > LARGEST:
            raise validation.Malformed(
                f"shape {sides[:4]} is of no picture and no vector that a model could be made for"
            )
        if len(sides) == 3 and sides[0] > 4:
            raise validation.Malformed(f"shape {sides} has {sides[0]} channels, more than a picture has")
        if not schema.low <= schema.high:
            raise validation.Malformed(f"low {schema.low} is above high {schema.high}")
        if any(len(numbers) not in (1, sides[0]) for numbers in (schema.center, schema.scale)):
            raise validation.Malformed(f"center and scale do not have 1 or {sides[0]} numbers")
        if not all(number > 0 for number in schema.scale):
            raise validation.Malformed("scale is not above zero")
        if len(set(schema.classes)) < len(schema.classes):
            raise validation.Malformed("two classes have one name")
        return schema


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats per example as bits per dimension: `nats / (dims * ln 2)`."""
    return nats / (dims * math.log(2))
