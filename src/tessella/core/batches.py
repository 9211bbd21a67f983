"""Batches of examples, and batches of one fixed size.

Fixed batches make what a network computes for an example depend on that example alone. The number of rows decides which
kernel multiplies two matrices and in which order it adds, so a score would change in its last digits with the number of
examples beside it. With a constant number of rows it does not, and neither the row nor the other examples matter
(tests/test_neighbours.py). So every measurement of examples goes through `fixed_batches`, which pads the last batch
with copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from tessella.core.rng import example_keys

NUMBERS = {"cpu": 1 << 15}
"""Largest size of a batch in numbers on the processor; small, because one example alone also takes a full batch."""
NUMBERS_ELSEWHERE = 1 << 21
"""Largest size of a batch in numbers on an accelerator, which needs large batches."""
MOST = 256
"""Largest number of examples in a batch."""
READ = 100
"""Smallest number of examples to read at a time."""


@dataclass(frozen=True)
class Batch:
    """Stored examples `x` `[B, *shape]` (uint8 or float32), with their labels `[B]` (int64) or None."""

    x: Tensor
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Select examples by a slice, row numbers or a mask."""
        return Batch(self.x[rows], None if self.label is None else self.label[rows])

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to a device."""
        return Batch(self.x.to(device), None if self.label is None else self.label.to(device))

    def split(self, size: int) -> Iterator[Batch]:
        """Iterate over parts of at most `size` examples."""
        return (self[start : start + size] for start in range(0, len(self), size))

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """Concatenate batches; labels are kept only if all batches have them."""
        labels = [batch.label for batch in batches if batch.label is not None]
        x = torch.cat([batch.x for batch in batches])
        return Batch(x, torch.cat(labels) if len(labels) == len(batches) else None)


@final
@dataclass(frozen=True)
class FixedBatch:
    """Examples on the model's device, padded to a fixed number of rows.

    Attributes:
        x, label: `[size, *shape]` and `[size]`; rows from `count` on are copies.
        count: number of examples.
    """

    x: Tensor
    label: Tensor | None
    count: int
    _stored: Tensor

    @cached_property
    def example_ids(self) -> Tensor:
        """Return the key of each row for `Noise.of`, `[size]`: a hash of the stored values."""
        own = example_keys(self._stored)
        return torch.cat([own, own[-1:].expand(len(self.x) - self.count)])


def size_of(shape: Sequence[int], device: torch.device) -> int:
    """Return the number of examples of this shape in a fixed batch: a power of two."""
    numbers = NUMBERS.get(device.type, NUMBERS_ELSEWHERE)
    return 1 << max(0, min(MOST, numbers // math.prod(shape)).bit_length() - 1)


def to_read(shape: Sequence[int], device: torch.device) -> int:
    """Return the number of examples to read at a time: some full batches."""
    size = size_of(shape, device)
    return size * -(-READ // size)


def fixed_batches(batch: Batch, device: torch.device, size: int | None = None) -> Iterator[FixedBatch]:
    """Divide stored examples into batches of exactly `size` rows (default: `size_of`), the last one padded."""
    x, size = batch.x, size or size_of(batch.x.shape[1:], device)
    for first in range(0, len(x), size):
        some = x[first : first + size]
        label = None if batch.label is None else filled(batch.label[first : first + size], size, device)
        yield FixedBatch(filled(some, size, device), label, len(some), some)


def filled(rows: Tensor, size: int, device: torch.device) -> Tensor:
    """Pad rows to `size` with copies of the last one, in a new tensor.

    The new tensor fixes the memory layout, which also decides how kernels add.
    """
    full = torch.empty((size, *rows.shape[1:]), dtype=rows.dtype, device=device)
    full[: len(rows)] = rows
    full[len(rows) :] = full[len(rows) - 1]
    return full


def even_block(rows: int, most: int) -> int:
    """Return how many of `rows` to process at once: `most`, or fewer if a power of two then gives equal parts."""
    parts = 1 << max(0, -(-rows // most) - 1).bit_length()
    return rows // parts if rows and rows % parts == 0 else most
