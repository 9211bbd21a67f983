"""Reader of series: text tables, parquet and `.npy` files whose rows are consecutive times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from tessella.core.schema import Schema
from tessella.data.array_files import npy
from tessella.data.raw import WHOLE
from tessella.data.series import ENDINGS, UCR, series_files
from tessella.data.series.times import TimeAxis, take_times
from tessella.data.tables.columns import Column
from tessella.data.tables.read import read_columns
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged, shown

LABEL_NAMES = ("label", "labels", "is_anomaly", "anomaly", "anomalies", "is_outlier", "outlier", "anomalous")


@final
@dataclass(frozen=True)
class TimeSeries:
    """Values at T consecutive times.

    Attributes:
        path: its file.
        x: values `[T, C]`, whole numbers or floats; NaN where they are missing.
        columns: names of the channels; empty if they have none.
        times: times of the rows; None if they are only counted.
        labels: whether each row is anomalous, `[T]` bool; None if unknown.
        train_end: number of rows that are for training by the name of the file; None if it does not say.
    """

    path: str
    x: np.ndarray
    columns: tuple[str, ...] = ()
    times: TimeAxis | None = None
    labels: np.ndarray | None = None
    train_end: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def written_times(self) -> list[str] | list[float]:
        """Return the times of the rows as result files show them: those of the file, or row numbers from 0."""
        return list(range(len(self))) if self.times is None else self.times.written


def read_series(
    path: str, notes: list[str], *, label: str | None = None, like: Schema | None = None
) -> list[TimeSeries]:
    """Read the series of a file, or of all files of a folder, with the same channels.

    Args:
        notes: receives a line for each decision.
        label: name of the column that says which rows are anomalous; by default `label`, `is_anomaly` and the like.
        like: schema whose channels are read.

    Raises:
        DataError: if there are no files, they cannot be read, they hold no numbers, their channels differ, values are
            infinite or all missing, or time goes backwards.
    """
    paths = series_files(path)
    if not paths:
        raise DataError(f"{path} has no files of series ({', '.join(ENDINGS)})", code="no-series")
    if Path(paths[0]).suffix.lower() == ".npy":
        found = _arrays([one for one in paths if one.lower().endswith(".npy")], notes, like)
    else:
        alike = [one for one in paths if not one.lower().endswith(".npy")]
        known = like.columns if like is not None else ()
        found = [_table(one, notes if i == 0 else [], label, known) for i, one in enumerate(alike)]
        found = _with_same_channels(found, known, notes)
    if len(found) < len(paths):
        notes.append(f"{len(paths) - len(found):,} files of another type than {Path(found[0].path).name} are left out")
    for series in found:
        _check(series)
    if like is not None and found[0].x.shape[1] != like.channels:
        raise DataError(
            f"{path} has {found[0].x.shape[1]} channels, but the model was trained on {like.channels}",
            code="other-columns",
        )
    return found


def _check(series: TimeSeries) -> None:
    x = series.x
    if len(x) < 2:
        raise DataError(f"{series.path} has {len(x)} row: a series takes at least 2", code="too-short")
    if x.dtype.kind != "f":
        return
    if np.isnan(x).all():
        raise DataError(f"{series.path}: all values are missing", code="all-missing")
    wrong = np.flatnonzero(np.isinf(x).any(1))
    if len(wrong):
        raise DataError(
            f"{series.path} has {len(wrong):,} rows with infinite values, the first is row {wrong[0] + 1:,}: leave "
            "such cells empty",
            code="not-finite",
        )


# arrays


def _arrays(paths: Sequence[str], notes: list[str], like: Schema | None) -> list[TimeSeries]:
    """Read arrays `[T]`, `[T, C]` or `[C, T]`, the same way for all files."""
    read = [npy(path).parts[WHOLE].x for path in paths]
    arrays = [np.asarray(x)[:, None] if x.ndim == 1 else np.asarray(x) for x in read if isinstance(x, np.ndarray)]
    for path, x in zip(paths, arrays, strict=True):
        if x.ndim != 2 or x.dtype.kind not in "buif" or not x.size:
            raise DataError(
                f"{path} holds an array of {x.dtype} with shape {'x'.join(map(str, x.shape))}: a series is an array of "
                f"numbers (T), (T, C) or (C, T); for an array (N, C, T) give {option('kind')} signal",
                code="no-series",
            )
    if _channels_first([x.shape for x in arrays], like):
        notes.append(f"{arrays[0].shape[0]} channels of {arrays[0].shape[1]:,} times: the first axis are the channels")
        arrays = [x.T for x in arrays]
    if len({x.shape[1] for x in arrays}) > 1:
        held = abridged([f"{Path(path).name} {x.shape[1]}" for path, x in zip(paths, arrays, strict=True)], 4)
        raise DataError(f"the series have different numbers of channels: {held}", code="different-shapes")
    return [TimeSeries(path, x) for path, x in zip(paths, arrays, strict=True)]


def _channels_first(shapes: Sequence[tuple[int, ...]], like: Schema | None) -> bool:
    """Return whether arrays are `[C, T]`: by the known number of channels, the axis that agrees, or the shorter one."""
    first, second = {shape[0] for shape in shapes}, {shape[1] for shape in shapes}
    if like is not None and (first == {like.channels}) != (second == {like.channels}):
        return first == {like.channels}
    if (len(first) == 1) != (len(second) == 1):
        return len(first) == 1
    return sum(first) < sum(second)


# tables


def _table(path: str, notes: list[str], label: str | None, known: Sequence[str]) -> TimeSeries:
    """Read a table whose rows are times; text columns are left out."""
    read = read_columns(path, notes)
    columns = read.columns
    if not columns or not len(columns[0].values):
        raise DataError(f"{path} has no rows: give at least two", code="empty")
    ucr = UCR.search(os.path.basename(path))
    if ucr and len(columns[0].values) == 1 and not read.named:  # all values in one line
        joined = np.array([column.values[0] for column in columns], np.float64)
        columns = [Column("column 1", "numbers", joined, np.flatnonzero(np.isnan(joined)))]
    times, columns = take_times(columns, path, notes) if read.named else (None, columns)
    labels, columns = _take_labels(columns, path, notes, label, known, named=read.named)
    texts = [column.name for column in columns if column.kind != "numbers" and column.name not in known]
    if texts:
        notes.append(f"columns that hold no numbers are left out: {abridged(texts)}")
    columns = [column for column in columns if column.name not in texts]
    if not columns:
        raise DataError(
            f"{path} has no columns of numbers" + (f", only text in {abridged(texts)}" if texts else ""),
            code="no-numbers",
        )
    if any(column.kind != "numbers" for column in columns):
        wrong = [column.name for column in columns if column.kind != "numbers"]
        raise DataError(f"{path} has text in columns of the training data: {abridged(wrong)}", code="no-numbers")
    whole = all(column.whole for column in columns)
    x = np.stack([np.asarray(c.values, np.int64 if whole else np.float64) for c in columns], 1)
    series = TimeSeries(path, x, tuple(c.name for c in columns) if read.named else (), times, labels)
    if ucr is None:
        return series
    end, first, last = (int(number) for number in ucr.groups())
    rows = np.arange(len(x))
    return replace(series, labels=(rows >= first) & (rows <= last), train_end=end if 0 < end < len(x) else None)


def _take_labels(
    columns: list[Column], path: str, notes: list[str], label: str | None, known: Sequence[str], *, named: bool
) -> tuple[np.ndarray | None, list[Column]]:
    """Separate the column that says which rows are anomalous from the others."""
    chosen: Column | None = None
    if label is not None:
        chosen = next((column for column in columns if column.name.lower() == label.lower()), None)
        if chosen is None and not known:
            raise DataError(
                f"{path} has no column {shown(label)!r} with the labels; its columns are "
                f"{abridged([column.name for column in columns], 12)}",
                code="no-such-label",
            )
    elif named:
        chosen = next((c for c in columns if c.name.lower() in LABEL_NAMES and c.name not in known), None)
    elif path.lower().endswith(".out") and len(columns) > 1:
        chosen = columns[-1]
    if chosen is None:
        return None, columns
    rest = [column for column in columns if column is not chosen]
    if chosen.kind != "numbers":
        notes.append(f"column {chosen.name} holds labels that are not numbers: it is left out")
        return None, rest
    labels = np.nan_to_num(np.asarray(chosen.values, np.float64)) != 0
    notes.append(f"{chosen.name} is read as labels: {int(labels.sum()):,} of {len(labels):,} rows are anomalous")
    return labels, rest


def _with_same_channels(found: list[TimeSeries], known: Sequence[str], notes: list[str]) -> list[TimeSeries]:
    """Select the same channels of all series: the known ones, or all that are not constant.

    Raises:
        DataError: if the series have different channels.
    """
    first = found[0]
    if known:
        return [_selected(series, known) for series in found]
    for series in found[1:]:
        if series.columns != first.columns or series.x.shape[1] != first.x.shape[1]:
            raise DataError(
                f"{series.path} has other channels than {first.path}: {abridged(series.columns)} and "
                f"{abridged(first.columns)}; give all files the same columns",
                code="other-columns",
            )
    if not first.columns:
        return found
    low = np.fmin.reduce([np.fmin.reduce(series.x, 0) for series in found])
    high = np.fmax.reduce([np.fmax.reduce(series.x, 0) for series in found])
    constant = ~(low < high)  # also where all is missing
    if not constant.any() or constant.all():
        return found
    notes.append(f"constant and empty columns are left out: {abridged(np.array(first.columns)[constant].tolist())}")
    return [_selected(series, np.array(first.columns)[~constant].tolist()) for series in found]


def _selected(series: TimeSeries, names: Sequence[str]) -> TimeSeries:
    missing = [name for name in names if name not in series.columns]
    if missing:
        raise DataError(
            f"{series.path} lacks the columns {abridged(missing)} that the model was trained on; it has "
            f"{abridged(series.columns)}",
            code="other-columns",
        )
    return replace(series, x=series.x[:, [series.columns.index(name) for name in names]], columns=tuple(names))
