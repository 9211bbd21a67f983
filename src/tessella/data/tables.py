"""Vectors in tables: csv and parquet. A column called label, class, target or y is the label."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tessella.data.found import WHOLE, Found, Part, abridged, index_keys, one_line
from tessella.errors import DataError

if TYPE_CHECKING:
    import pyarrow

LABEL_COLUMNS = ("label", "class", "target", "y")


def table(path: str) -> Found:
    """A csv, tsv or parquet file, a row an example.

    Raises:
        DataError: if it cannot be read, or a column other than the label is no numbers or has gaps.
    """
    notes: list[str] = []
    return vectors(_read(path, notes), path, notes)


def _read(path: str, notes: list[str]) -> pyarrow.Table:
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if Path(path).suffix.lower() == ".parquet":
            return parquet.ParquetFile(path).read()
        layout = csv.ParseOptions(delimiter="\t" if ".tsv" in os.path.basename(path).lower() else ",")
        read = csv.read_csv(path, parse_options=layout)
        if not all(_is_number(name) for name in read.column_names):
            return read
        notes.append("the first line holds numbers: no column has a name")
        return csv.read_csv(path, csv.ReadOptions(autogenerate_column_names=True), layout)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def vectors(read: pyarrow.Table, where: str, notes: list[str]) -> Found:
    """A table's numeric columns as vectors, and its labels.

    Raises:
        DataError: as `table`.
    """
    from pyarrow import types

    if read.num_rows == 0:
        raise DataError(f"{where} has no rows: give at least one example")
    lowered = {name.lower().strip(): name for name in reversed(read.column_names)}
    label = next((lowered[name] for name in LABEL_COLUMNS if name in lowered), None)
    chosen = [i for i, name in enumerate(read.column_names) if name != label]
    gaps = [f"{read.column_names[i]} ({read.column(i).null_count})" for i in chosen if read.column(i).null_count]
    if gaps:
        raise DataError(f"{where} has empty cells in columns {abridged(gaps)}: fill or remove these rows")
    numeric = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    texts = [read.column_names[i] for i in chosen if not any(test(read.schema.types[i]) for test in numeric)]
    if texts:
        raise DataError(f"{where} has columns that are no numbers: {abridged(texts)}; remove them or encode them")
    if not chosen:
        raise DataError(f"{where} has no columns of numbers beside the label")
    columns = [read.column(i).to_numpy(zero_copy_only=False) for i in chosen]
    whole = all(column.dtype.kind in "biu" for column in columns)
    x = np.stack([column.astype(np.int64 if whole else np.float64) for column in columns], axis=1)
    labels = None
    if label is not None:
        column = read.column(read.column_names.index(label))
        if column.null_count:
            raise DataError(f"{where} has {column.null_count} empty cells in the label column {label}")
        values = column.to_pylist()
        labels = np.array(values if isinstance(values[0], int | float) else [str(value) for value in values])
    return Found({WHOLE: Part(x, labels, index_keys(len(x), WHOLE))}, notes=notes)
