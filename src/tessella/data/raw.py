"""Data as its source hands it over, before anything is divided, fitted or binarised. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from tessella.foundation.text import shown as shown

WHOLE = "whole"
"""The name of a part that its source has not divided into train and test."""


class Reader(Protocol):
    """Pictures that are decoded, composed or drawn only when asked for."""

    shape: tuple[int, int, int]
    """`(C, H, W)`."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows `[B]` as uint8 `[B, C, H, W]`.

        Raises:
            DataError: naming what could not be read.
        """
        ...


class SelectedRows:
    """Some rows of another reader."""

    def __init__(self, reader: Reader, rows: np.ndarray) -> None:
        self.shape = reader.shape
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._reader.read(self._rows[rows])


@dataclass
class RawSplit:
    """One part of a data set: all of it, or an official split.

    Attributes:
        x: `[N, ...]` as stored, or a reader of N pictures.
        labels: `[N]` of any type that names a class, or None.
        example_ids: `[N]` uint64, what identifies an example whatever the order and number of the others.
        groups: `[N]` uint64; examples of one group stay on one side of a split. None: each its own.
        name, labels_name: what x and the labels are called where they come from, for messages.
        factors: ground-truth factors of variation by name, each `[N]`.
        content: `[N]` uint64, a hash of each example's content, where its source knows it better than by its array.
    """

    x: np.ndarray | Reader
    labels: np.ndarray | None
    example_ids: np.ndarray
    groups: np.ndarray | None = None
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    content: np.ndarray | None = None
    name: str = ""
    labels_name: str = ""

    def select(self, rows: np.ndarray) -> RawSplit:
        """Select examples by their row numbers."""
        return replace(
            self,
            x=self.x[rows] if isinstance(self.x, np.ndarray) else SelectedRows(self.x, rows),
            labels=None if self.labels is None else self.labels[rows],
            example_ids=self.example_ids[rows],
            groups=None if self.groups is None else self.groups[rows],
            factors={name: values[rows] for name, values in self.factors.items()},
            content=None if self.content is None else self.content[rows],
        )


@dataclass
class RawDataset:
    """Examples of a source by part, with what it knows of them.

    Attributes:
        parts: by name: `whole`, or `train` and perhaps `valid` and `test`.
        classes: names of the labels 0, 1, ... where the source knows them; labels are then such numbers.
        notes: what was skipped or converted, a line each.
        columns: the names of a table's columns, in order.
        decoded: whether arrays are decoded picture files: `[N, C, H, W]` and bytes, whatever their values.
        by_content: whether keys are of the examples' content, so that splits are in their order whatever files are
            called.
        origins: where a given split was found, in words, by its name.
        labelling: where the labels come from, in words.
        depth: the values of 16-bit, 32-bit and float picture files that became 0 and 255.
    """

    parts: dict[str, RawSplit]
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    decoded: bool = False
    by_content: bool = False
    origins: dict[str, str] = field(default_factory=dict)
    labelling: str = ""
    depth: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()


def number_of(text: str) -> int:
    """Hash a text to 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def mixed(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 one to one (the finaliser of SplitMix64; Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def index_keys(count: int, stream: str) -> np.ndarray:
    """Make keys for examples that have no name but their place in a file: `[count]` uint64."""
    return mixed(np.arange(count, dtype=np.uint64) ^ np.uint64(number_of(stream)))


def name_keys(names: Sequence[str]) -> np.ndarray:
    """Make keys for examples that have names: `[len(names)]` uint64."""
    return np.array([number_of(name) for name in names], dtype=np.uint64)


def abridged(items: Sequence[str], most: int = 5) -> str:
    """List the first of many names: `a, b, c ... and 12 more`."""
    more = len(items) - most
    return ", ".join(map(shown, items[:most])) + (f" ... and {more} more" if more > 0 else "")


def one_line(error: BaseException, most: int = 160) -> str:
    """Cut what an exception of another library says to a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
