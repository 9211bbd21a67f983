"""Random examples of each kind of data for conformance tests; the caller sets the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tessella.core.schema import NAMED, Integers, Schema, Symbols, Values
from tessella.foundation.errors import TessellaError

CLASSES = ("cat", "dog", "owl")
BATCH = 3
SHAPES = [
    *[(c, h, w) for c in (1, 2, 3, 4) for h, w in ((1, 1), (5, 3), (8, 8))],
    (1, 7),
    (3, 9),
    *[(d,) for d in (1, 2, 100)],
]
"""Shapes of images, signals and vectors."""

VALUES: dict[str, Values] = {**NAMED, "integers": Integers(300, -7.0), "symbols": Symbols(9)}
"""Types of values by their names in the registry of likelihoods."""


def schema_of(values: str, shape: tuple[int, ...], classes: tuple[str, ...] = CLASSES) -> Schema:
    if values == "real":
        moments = tuple(10.0 + c for c in range(shape[0])), tuple(1.0 + c for c in range(shape[0]))
        return Schema.of(shape, values, *moments, classes)
    return Schema.of(shape, VALUES[values], classes=classes)


def random_examples(schema: Schema, count: int = BATCH) -> Tensor:
    if schema.values.name == "real":
        return 10 + 2 * torch.randn(count, *schema.shape)
    drawn = torch.randint(schema.values.levels, (count, *schema.shape)) + schema.values.low
    return drawn.to(torch.uint8 if schema.in_bytes else torch.float32)


def in_range(x: Tensor, schema: Schema, count: int = BATCH) -> bool:
    """Return whether x has the shape, type and range of `count` examples, or of means of examples."""
    inside = schema.values.name == "real" or bool(x.min() >= schema.values.low and x.max() <= schema.values.high)
    return x.shape == (count, *schema.shape) and x.dtype == torch.float32 and bool(x.isfinite().all()) and inside


def refuses(call: Callable[[], object], code: str) -> None:
    """Check that a call raises a TessellaError with a given code."""
    try:
        call()
    except TessellaError as error:
        found = error.code
    else:
        found = "nothing"
    assert found == code, f"expected the error {code}, got {found}"
