"""Reader of vectors from tables: text tables such as csv, and parquet. Rows are examples, columns are features.

Its cells decide what a table leaves open: whether the first line names the columns, which columns are row numbers,
which one holds the labels, and whether commas are decimal commas. Each decision is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import final

import numpy as np
import pyarrow
from pyarrow import parquet

from tessella.core.schema import Schema
from tessella.data import limits
from tessella.data.arrays import EXACT_IN_DOUBLE, LARGEST_FLOAT, rounding
from tessella.data.raw import WHOLE, RawDataset, RawSplit, index_keys
from tessella.data.tables import PARQUET
from tessella.data.tables.columns import (
    Column,
    Style,
    arrow_columns,
    is_header,
    is_pandas_index,
    is_unnamed,
    style_of,
    text_column,
)
from tessella.data.tables.delimited import read_cells
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged, one_line, shown

LABEL_COLUMNS = ("label", "class", "target")
MOST_CLASSES = 100


@final
@dataclass(frozen=True)
class Read:
    """Columns of a table, before selection.

    Attributes:
        columns: columns of one length.
        named: whether the names come from the file; otherwise they are `column 1`, `column 2`, ...
        index: names of the columns that pandas stored as the index.
    """

    columns: list[Column]
    named: bool = True
    index: tuple[str, ...] = ()


def table(path: str, label: str | None = None, like: Schema | None = None) -> RawDataset:
    """Read a text table or a parquet file whose rows are examples.

    Args:
        path: file; a text table may be gzipped.
        label: name of the column with the labels.
        like: schema to match the columns with, by name.

    Raises:
        DataError: if it cannot be read, a column is not numeric or has empty cells, or the columns do not match `like`.
    """
    notes: list[str] = []
    read = read_columns(path, notes, like.columns if like is not None else ())
    return _vectors(read, {WHOLE: slice(None)}, path, notes, label, like)


def read_columns(path: str, notes: list[str], known: Sequence[str] = ()) -> Read:
    """Read the columns of a text table or a parquet file.

    Args:
        notes: receives a line for each decision.
        known: names of columns that the first line is known to hold.

    Raises:
        DataError: if it cannot be read.
    """
    return _parquet(path) if Path(path).suffix.lower() in PARQUET else _text(path, notes, known)


def vectors(reads: Mapping[str, pyarrow.Table], where: str, notes: list[str], label: str | None = None,
            like: Schema | None = None) -> RawDataset:  # fmt: skip
    """Convert tables with the same columns, one per split, to vectors.

    Raises:
        DataError: if the columns differ, are not numeric, have empty cells, or do not match `like`.
    """
    try:
        together = pyarrow.concat_tables(list(reads.values()), promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{where}: the splits have different columns: {one_line(error)}", code="other-columns"
        ) from None
    ends = np.cumsum([read.num_rows for read in reads.values()]).tolist()
    rows = {name: slice(a, b) for name, a, b in zip(reads, [0, *ends], ends, strict=False)}
    return _vectors(Read(arrow_columns(together, where)), rows, where, notes, label, like)


# reading


def _text(path: str, notes: list[str], known: Sequence[str]) -> Read:
    cells = read_cells(path, notes)
    first = [column[0].as_py().strip() for column in cells.columns]

    def columns(names: Sequence[str], start: int, style: Style) -> list[Column]:
        return [
            text_column(name, column.slice(start), style) for name, column in zip(names, cells.columns, strict=True)
        ]

    below = columns(first, 1, "plain")
    style = style_of(below, cells, path, notes)
    if style != "plain":
        below = columns(first, 1, style)
    if (known and set(known) <= set(first)) or is_header(first, below, notes):
        return Read(below)
    if cells.comment:
        notes.append("the column names are read from the comment line above the table")
        return Read(columns(cells.comment, 0, style))
    notes.append("the first line is read as data: the columns have no names")
    return Read(columns([f"column {k + 1}" for k in range(len(first))], 0, style), named=False)


def _parquet(path: str) -> Read:
    try:
        file = parquet.ParquetFile(path)
        meta = file.metadata
        limits.check_size(path, 8 * meta.num_rows * meta.num_columns, Path(path).stat().st_size, "save it as .npy")
        read = file.read()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path} cannot be read: {one_line(error)}", code="unreadable") from None
    index = [name for name in (read.schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]
    return Read(arrow_columns(read, path), index=tuple(index))


# columns to vectors


def _vectors(
    read: Read, rows: Mapping[str, slice], where: str, notes: list[str], label: str | None, like: Schema | None
) -> RawDataset:
    if not read.columns or not len(read.columns[0].values):
        raise DataError(f"{where} has no rows: give at least one example", code="empty")
    known = like.columns if like is not None else ()
    columns = _without_row_numbers(read, known, notes) if read.named else read.columns
    chosen = _class_column(columns, where, label, like, notes)
    data = [column for column in columns if column is not chosen]
    if not data:
        raise DataError(f"{where} has no columns of numbers besides the labels: add numeric columns", code="no-numbers")
    if known:
        data = _matched(data, known, where, notes) if read.named else _in_place(data, known, where, notes)
    _check_numbers(data, where)
    x = _joined(data, where, notes)
    if like is not None and not like.values.discrete:
        x = x if x.dtype.kind == "f" or any(like.offset) else x.astype(np.float64)
    if not known and len(data) > 1 and len(x) > 2 and data[0].whole and (np.diff(data[0].values) == 1).all():
        notes.append(
            f"{data[0].name} numbers the rows but is read as data: remove this column if it has no "
            f"meaning, or give {option('kind')} series if the rows are consecutive times"
        )
    labels = None if chosen is None else _labels(chosen, where)
    parts = {}
    for name, of in rows.items():
        part = x[of]
        parts[name] = RawSplit(part, None if labels is None else labels[of], index_keys(len(part), name), name=where)
    return RawDataset(parts, notes=notes, columns=tuple(column.name for column in data) if read.named else known)


def _without_row_numbers(read: Read, known: tuple[str, ...], notes: list[str]) -> list[Column]:
    """Remove empty columns and row numbers, and make the column names distinct."""
    left = [c.name for c in read.columns if c.name not in known and (c.name in read.index or is_pandas_index(c.name))]
    columns = [column for column in read.columns if column.name not in set(left)]
    held = [c for c in columns if not is_unnamed(c.name) or len(c.missing) < len(c.values)]
    if len(held) < len(columns):
        notes.append(f"{len(columns) - len(held)} columns without name and values were ignored")
        columns = held
    while len(columns) > 1 and columns[0].name not in known and _is_row_numbers(columns[0]):
        left.append(columns.pop(0).name or "the first column, which has no name")
    if left:
        notes.append(f"columns of row numbers or row names were ignored: {abridged(left)}")
    names: dict[str, None] = {}
    for place, column in enumerate(columns):
        name = column.name or f"column {place + 1}"
        again = name if name not in names else next(n for k in count(1) if (n := f"{name}.{k}") not in names)
        if again != name:
            notes.append(f"several columns are named {shown(name)}: a later one is renamed {shown(again)}")
        elif not column.name:
            notes.append(f"a column without a name is read as data and named {name}")
        names[again] = None
    return [replace(column, name=name) for column, name in zip(columns, names, strict=True)]


def _is_row_numbers(column: Column) -> bool:
    """Return whether a first column is an index that pandas or R wrote, named or not."""
    if is_unnamed(column.name):
        return column.whole or column.kind in ("text", "dates")
    if column.name.lower() not in ("index", "level_0") or not column.whole:
        return False
    return np.array_equal(np.sort(column.values) - column.values.min(), np.arange(len(column.values)))


def _class_column(
    columns: list[Column], where: str, label: str | None, like: Schema | None, notes: list[str]
) -> Column | None:
    """Find the column with the labels: the requested one, or one whose name and values both fit."""
    if label is not None:
        chosen = [c for c in columns if c.name == label] or [c for c in columns if c.name.lower() == label.lower()]
        if not chosen and like is None:
            names = abridged([column.name for column in columns], 12)
            raise DataError(
                f"{where} has no column {shown(label)!r} with the labels; its columns are {names}", code="no-such-label"
            )
        return chosen[0] if chosen else None
    known = like.columns if like is not None else ()
    named = [c for name in LABEL_COLUMNS for c in columns if c.name.lower() == name and c.name not in known]
    for column in named:
        if like is not None and (known or len(columns) - 1 == like.dims):
            return column
        against = _no_class(column)
        if not against:
            notes.append(f"column {column.name} is read as the labels")
            return column
        remedy = f"to use it as labels, give {option('label')} {column.name}"
        notes.append(f"column {column.name} {against}, so it is read as data; {remedy}")
    return None


def _no_class(column: Column) -> str:
    """Describe why a column cannot hold the labels; empty if it can."""
    values = np.delete(column.values, column.missing)
    if column.kind != "numbers":
        return "" if len(set(values.tolist())) <= max(20, len(values) // 2) else "holds too many different texts"
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        return "holds fractions"
    different, most = len(np.unique(values)), max(2, min(MOST_CLASSES, len(values) // 3))
    return "" if different <= most else f"holds {different} different numbers in {len(values)} rows"


def _labels(column: Column, where: str) -> np.ndarray:
    if len(column.missing):
        raise DataError(
            f"{where} has {len(column.missing)} empty cells in the label column {column.name}, the first in row "
            f"{column.missing[0] + 1}: fill or remove these rows",
            code="empty-cells",
        )
    if column.kind == "numbers" and column.values.dtype != object:
        if column.values.dtype.kind == "f" and not np.array_equal(column.values, np.round(column.values)):
            raise DataError(
                f"{where}: column {column.name} holds fractions, not classes: choose another column with "
                f"{option('label')}",
                code="bad-labels",
            )
        return column.values
    return np.array([str(value) for value in column.values])


def _matched(data: list[Column], known: tuple[str, ...], where: str, notes: list[str]) -> list[Column]:
    """Sort the columns in the order of `known`.

    Raises:
        DataError: if columns are missing or unknown.
    """
    by_name = {column.name: column for column in data}
    missing = [name for name in known if name not in by_name]
    unknown = [name for name in by_name if name not in set(known)]
    if missing or unknown:
        lacks = [f"lacks {abridged(missing)}"] if missing else []
        has = [f"has the unknown {abridged(unknown)}"] if unknown else []
        raise DataError(
            f"{where} does not have the columns that the model was trained on: it {' and '.join(lacks + has)}; rename, "
            "add or remove columns",
            code="other-columns",
        )
    if tuple(by_name) != known:
        notes.append("the columns are sorted in the order of the training data, by name")
    return [by_name[name] for name in known]


def _in_place(data: list[Column], known: tuple[str, ...], where: str, notes: list[str]) -> list[Column]:
    if len(data) != len(known):
        raise DataError(
            f"{where} has {len(data)} columns without names, but the model was trained on {len(known)}: "
            f"{abridged(known)}; add their names as the first line",
            code="other-columns",
        )
    notes.append(f"the columns have no names: they are read in the order of the training data, {abridged(known)}")
    return [replace(column, name=name) for column, name in zip(data, known, strict=True)]


def _check_numbers(data: list[Column], where: str) -> None:
    """Check that all columns are numeric and have no empty cells.

    Raises:
        DataError: if columns are not, with all of them and what to do.
    """
    troubles: dict[str, list[str]] = {}
    for column in data:
        for trouble, said in _troubles(column):
            troubles.setdefault(trouble, []).append(said.removeprefix("column "))
    if troubles:
        said = "; ".join(f"{t} {abridged(troubles[t])}: {remedy}" for t, remedy in REMEDIES.items() if t in troubles)
        raise DataError(f"{where} has {said}", code="bad-columns")


TOO_LARGE = "whole numbers too large to store exactly in columns"
REMEDIES = {
    "dates or times in columns": f"if the rows are consecutive times, give {option('kind')} series; else write them as "
    "numbers, such as days since the first date, or remove them",
    "values that are not numbers in columns": f"remove them, write them as numbers, or choose one as the labels with "
    f"{option('label')}",
    "empty cells in columns": "fill or remove these rows",
    "infinite values in columns": "replace them or remove these rows",
    "values too large for 32 bits in columns": "give them in larger units",
    TOO_LARGE: "remove them if they are identifiers, or subtract a constant",
}


def _troubles(column: Column) -> list[tuple[str, str]]:
    """List the problems of a column and their places; rows are counted from 1."""
    dates, texts, empty, infinite, large, whole = REMEDIES
    values, found = column.values, []
    if column.kind != "numbers":
        held = dict.fromkeys(str(value) for value in values[:1000] if value is not None)
        what = f"{column.name} ({', '.join(list(held)[:3])}{', ...' if len(held) > 3 else ''})"
        found.append((dates if column.kind == "dates" else texts, what))
    if len(column.missing):
        found.append((empty, f"{column.name} ({len(column.missing):,}, the first in row {column.missing[0] + 1:,})"))
    if column.kind != "numbers" or values.dtype.kind in "bui":
        return found
    if values.dtype == object:
        row = next(i for i, value in enumerate(values) if value is not None and abs(value) > EXACT_IN_DOUBLE)
        return [*found, (whole, f"{column.name} ({values[row]} in row {row + 1:,})")]
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        found.append((infinite, f"{column.name} ({len(wrong):,}, the first in row {wrong[0] + 1:,})"))
    wrong = np.flatnonzero(np.isfinite(values) & (np.abs(values) > LARGEST_FLOAT))
    if len(wrong):
        found.append((large, f"{column.name} ({values[wrong[0]]:g} in row {wrong[0] + 1:,})"))
    return found


def _joined(data: list[Column], where: str, notes: list[str]) -> np.ndarray:
    """Stack columns to `[N, D]`: int64 or uint64 if all numbers are whole, else float64.

    Raises:
        DataError: if whole numbers of a column are too large for float64.
    """
    arrays = [column.values for column in data]
    if all(column.whole for column in data):
        if all(a.dtype != np.uint64 for a in arrays):
            return np.stack([a.astype(np.int64, copy=False) for a in arrays], axis=1)
        if all(a.dtype == np.uint64 or not (a < 0).any() for a in arrays):
            return np.stack([a.astype(np.uint64, copy=False) for a in arrays], axis=1)
    changed = [c for c in data if c.values.dtype.kind in "iu" and _beyond_double(c.values)]
    merged = [c for c in changed if c.values.min() < c.values.max()]
    if merged:
        named = abridged([f"{c.name} (up to {c.values.max()})" for c in merged])
        raise DataError(f"{where} has {TOO_LARGE} {named}: {REMEDIES[TOO_LARGE]}", code="numbers-too-large")
    if changed:
        notes.append(rounding([c.name for c in changed]))
    return np.stack([a.astype(np.float64, copy=False) for a in arrays], axis=1)


def _beyond_double(values: np.ndarray) -> bool:
    """Return whether whole numbers are so large that float64 may change them."""
    return max(abs(int(values.min())), int(values.max())) > EXACT_IN_DOUBLE
