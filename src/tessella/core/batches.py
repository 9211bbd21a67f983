"""Batches of examples, and batches of one fixed size.

The latter are there so that what a network computes of an example depends on the example alone.

Which kernel multiplies two matrices, and in which order it adds, depends on how many rows there are: a score moves in
its last digits with the number of examples that happen to come along. With as many rows every time it does not, and at
which row an example stands, and beside which others, makes no difference (tests/test_neighbours.py). So whatever
measures examples looks at them through `fixed_batches`; a batch that is not full is filled up with copies.
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
"""Numbers of data in a batch, at most: so few that one example alone, whose batch is copies of it, is quick."""
NUMBERS_ELSEWHERE = 1 << 21
"""The same of accelerators, which large batches keep busy."""
MOST = 256
"""Examples in a batch, at most."""
READ = 100
"""Examples that are read at a time, at least."""


@dataclass(frozen=True)
class Batch:
    """Examples as stored, `x` `[B, *shape]` (uint8 or float32), and their labels `[B]` (int64) if there are any."""

    x: Tensor
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Select examples by a slice, or by their row numbers or a mask."""
        return Batch(self.x[rows], None if self.label is None else self.label[rows])

    def to(self, device: torch.device) -> Batch:
        """Move to a device."""
        return Batch(self.x.to(device), None if self.label is None else self.label.to(device))

    def split(self, size: int) -> Iterator[Batch]:
        """Iterate over parts of at most `size` examples."""
        return (self[start : start + size] for start in range(0, len(self), size))

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """Concatenate; labels are kept only if all batches have them."""
        labels = [batch.label for batch in batches if batch.label is not None]
        x = torch.cat([batch.x for batch in batches])
        return Batch(x, torch.cat(labels) if len(labels) == len(batches) else None)


@final
@dataclass(frozen=True)
class FixedBatch:
    """Examples on the model's device, filled up to a fixed number of rows.

    Attributes:
        x, label: `[size, *shape]` and `[size]`; rows from `count` on are copies.
        count: how many examples there are.
    """

    x: Tensor
    label: Tensor | None
    count: int
    _stored: Tensor

    @cached_property
    def example_ids(self) -> Tensor:
        """`[size]`, each row's key for `Noise.of`: a hash of the stored values."""
        own = example_keys(self._stored)
        return torch.cat([own, own[-1:].expand(len(self.x) - self.count)])


def size_of(shape: Sequence[int], device: torch.device) -> int:
    """How many examples of that shape a batch holds: a power of two."""
    numbers = NUMBERS.get(device.type, NUMBERS_ELSEWHERE)
    return 1 << max(0, min(MOST, numbers // math.prod(shape)).bit_length() - 1)


def to_read(shape: Sequence[int], device: torch.device) -> int:
    """How many examples to read at a time: some full batches."""
    size = size_of(shape, device)
    return size * -(-READ // size)


def fixed_batches(batch: Batch, device: torch.device, size: int | None = None) -> Iterator[FixedBatch]:
    """A batch of stored values, of any length, in parts of `size_of`, or of another size that is always the same."""
    x, size = batch.x, size or size_of(batch.x.shape[1:], device)
    for first in range(0, len(x), size):
        some = x[first : first + size]
        label = None if batch.label is None else filled(batch.label[first : first + size], size, device)
        yield FixedBatch(filled(some, size, device), label, len(some), some)


def filled(rows: Tensor, size: int, device: torch.device) -> Tensor:
    """The rows and copies of the last one, in memory of their own: how they lie decides how kernels add, too."""
    full = torch.empty((size, *rows.shape[1:]), dtype=rows.dtype, device=device)
    full[: len(rows)] = rows
    full[len(rows) :] = full[len(rows) - 1]
    return full


def even_block(rows: int, most: int) -> int:
    """How many of so many rows to take at once, `most` or fewer: if a power of two divides them so, parts are alike."""
    parts = 1 << max(0, -(-rows // most) - 1).bit_length()
    return rows // parts if rows and rows % parts == 0 else most
