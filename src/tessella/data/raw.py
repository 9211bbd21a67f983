"""Raw data of a source, before splitting, resizing and binarization. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from tessella.core.schema import Schema

WHOLE = "whole"
"""Name of the only part of a source without official splits."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Words in the names of folders, arrays and hub splits, and the splits that they mean."""


class Reader(Protocol):
    """Reader of examples that are decoded or rendered on access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one example `(C, *spatial)`."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the examples with row numbers `[B]` as stored values `[B, *shape]`.

        Raises:
            DataError: if an example cannot be read.
        """
        ...


class SelectedRows:
    """Reader of selected rows of another reader."""

    def __init__(self, reader: Reader, rows: np.ndarray) -> None:
        self.shape = reader.shape
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._reader.read(self._rows[rows])


@dataclass
class RawSplit:
    """Part of a raw data set: all examples, or an official split.

    Attributes:
        x: stored values `[N, ...]`, or a reader of N examples.
        labels: labels `[N]` of any type, or None.
        example_ids: keys `[N]` uint64 that do not depend on the order and number of examples.
        groups: group numbers `[N]` uint64; a group stays within one split. None if each example is its own group.
        name, labels_name: names of x and of the labels in their source, for messages.
        factors: ground-truth factors of variation by name, each `[N]`.
        content: content hashes `[N]` uint64; None to hash the rows of x.
        continued: whether the next example continues each one, as the windows of a recording do, `[N]` bool; training
            then takes windows at random offsets. None: none does.
        lengths: positions of each example before its end `[N]`; None if all are whole, or it is not known.
    """

    x: np.ndarray | Reader
    labels: np.ndarray | None
    example_ids: np.ndarray
    groups: np.ndarray | None = None
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    content: np.ndarray | None = None
    name: str = ""
    labels_name: str = ""
    continued: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the examples with row numbers `[B]`."""
        return self.x[rows] if isinstance(self.x, np.ndarray) else self.x.read(rows)

    def read_shifted(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Read windows that begin later than the examples with row numbers `[B]`, by these shares of a window."""
        x = self.read(rows)
        later = np.zeros(len(rows), bool) if self.continued is None else self.continued[rows]
        if later.any():
            length = x.shape[-1]
            joined = np.concatenate([x[later], self.read(rows[later] + 1)], -1)
            first = (shares[later] * length).astype(np.int64)
            x = x.copy()
            x[later] = np.stack([one[..., i : i + length] for one, i in zip(joined, first.tolist(), strict=True)])
        return x

    def select(self, rows: np.ndarray) -> RawSplit:
        """Select examples by their row numbers."""
        continued = self.continued
        if continued is not None:
            continued = continued[rows] & np.append(np.diff(rows) == 1, False)
        return replace(
            self,
            x=self.x[rows] if isinstance(self.x, np.ndarray) else SelectedRows(self.x, rows),
            labels=None if self.labels is None else self.labels[rows],
            example_ids=self.example_ids[rows],
            groups=None if self.groups is None else self.groups[rows],
            factors={name: values[rows] for name, values in self.factors.items()},
            content=None if self.content is None else self.content[rows],
            continued=continued,
            lengths=None if self.lengths is None else self.lengths[rows],
        )


@dataclass
class RawDataset:
    """Raw data set: the parts of a source and their description.

    Attributes:
        parts: parts by name: `whole`, or `train` and optionally `valid` and `test`.
        classes: class names of the labels 0, 1, ..., if the source has them.
        notes: what was skipped or converted, one line each.
        columns: column names of a table, in order.
        schema: schema without classes to which files were converted; None to judge the examples by their values.
        by_content: whether keys are content hashes, so that splits do not depend on file names.
        origins: origin of each official split, in words.
        labelling: origin of the labels, in words.
        measure_files: measures the content of its files when called: names and texts, a line each.
        everything: all examples in the order of their source, if `parts` were divided by the source itself.
    """

    parts: dict[str, RawSplit]
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    schema: Schema | None = None
    by_content: bool = False
    origins: dict[str, str] = field(default_factory=dict)
    labelling: str = ""
    columns: tuple[str, ...] = ()
    measure_files: Callable[[], list[tuple[str, str]]] = list
    everything: RawSplit | None = None


def number_of(text: str) -> int:
    """Hash a text to 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def mixed(x: np.ndarray) -> np.ndarray:
    """Hash uint64 to uint64, one to one (finaliser of SplitMix64; Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def index_keys(count: int, stream: str) -> np.ndarray:
    """Make keys `[count]` uint64 of examples without names, from their row numbers."""
    return mixed(np.arange(count, dtype=np.uint64) ^ np.uint64(number_of(stream)))


def name_keys(names: Sequence[str]) -> np.ndarray:
    """Make keys `[len(names)]` uint64 of examples from their names."""
    return np.array([number_of(name) for name in names], dtype=np.uint64)
