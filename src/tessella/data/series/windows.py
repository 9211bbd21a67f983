"""Windows of series: a length chosen from the data, splits that are consecutive in time, and the raw data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from tessella.core.schema import UINT8, Binary, Real, Schema, Values
from tessella.data import limits
from tessella.data.arrays import WIDE
from tessella.data.folders.layout import arranged
from tessella.data.raw import WHOLE, RawDataset, RawSplit, index_keys, name_keys
from tessella.data.series.read import TimeSeries, read_series
from tessella.data.splits import TEST_FRACTION, VALID_FRACTION, divide
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged
from tessella.kinds.base import ReadOptions
from tessella.kinds.signals import Signals

SHORTEST, LONGEST, MULTIPLE = 32, 1024, 16
"""Range of the default length of windows, and its multiple."""
UNPERIODIC, CLEAR = 128, 0.2
"""Length without a clear period, and the autocorrelation from which a period is clear."""
SURVEYED = 1 << 16
"""Most rows on which the period is measured."""
FEW_WINDOWS, OVERLAP = 1000, 4
"""Training windows overlap by default if fewer would be left without it; `OVERLAP` windows hold each value."""

Segment = tuple[int, int, int]
"""Stretch of a series: its number, first row, and row after the last."""


@final
@dataclass(frozen=True)
class DividedSeries:
    """Series with their rows divided into splits.

    Attributes:
        series: the series.
        segments: stretches of rows of each split.
        window: rows of a window.
        origins: origin of each split, in words.
        labels: class of each series; None if unknown.
    """

    series: list[TimeSeries]
    segments: dict[str, list[Segment]]
    window: int
    origins: dict[str, str]
    labels: np.ndarray | None


def divide_series(spec: str, options: ReadOptions, label: str | None, notes: list[str]) -> DividedSeries:
    """Read series, choose the length of their windows, and divide their rows into splits.

    Args:
        spec: a file, or a folder of files with one series each.
        options: options of the user.
        label: name of the column that says which rows are anomalous.
        notes: receives a line for each decision.

    Raises:
        DataError: as `read_series`, or if a window is longer than all series.
    """
    like = options.like
    found = read_series(spec, notes, label=label, like=like)
    segments, origins, labels = _segments(spec, found, options, notes)
    window = like.spatial[0] if like is not None and like.spatial else _window(found, segments["train"], options)
    if options.window is not None or options.seconds is not None:
        _check_window(window, found)
    elif like is None:
        notes.append(_said(found, segments["train"], window))
    if set(segments) == {"train"}:
        segments = _divided(segments["train"], found, options, window, notes)
        by_name = any(series.train_end for series in found)
        origins = {"train": "the first rows", "valid": "the next ones", "test": "the last rows"}
        origins["test"] = "the rows after training, by the file name" if by_name else origins["test"]
    return DividedSeries(found, segments, window, origins, labels)


def open_series(spec: str, options: ReadOptions, label: str | None) -> RawDataset:
    """Read series as windows `[C, T]`, whose splits are consecutive in time; as `divide_series`."""
    notes: list[str] = []
    divided, like = divide_series(spec, options, label, notes), options.like
    found, segments, window, labels = divided.series, divided.segments, divided.window, divided.labels
    values = like.values if like is not None else _values(found, notes)
    cut = partial(_cut, found, window=window)
    stride = options.stride or training_stride(segments["train"], window)
    if options.stride is None and stride < window and like is None:
        notes.append(f"training windows overlap: one begins every {stride} rows")
    starts = {
        name: window_starts(of, window, stride if name == "train" else window, padded=name != "train")
        for name, of in segments.items()
    }
    count = sum(map(len, starts.values())) + sum(map(len, found)) // window
    limits.check_size(spec, 4 * count * window * found[0].x.shape[1], None, f"give a larger {option('stride')}")
    ends = {name: {(i, a): b for i, a, b in of} for name, of in segments.items()}
    parts = {name: cut(of, ends=_ends(of, ends[name])) for name, of in starts.items()}
    missing, lengths = any(_lacks(series) for series in found), _short(parts.values())
    if like is not None:
        missing, lengths = like.missing or missing, like.lengths
    schema = Schema(found[0].x.shape[1], (window,), values, lengths=lengths, missing=missing, columns=found[0].columns)

    def split(name: str, x: np.ndarray, of: Sequence[tuple[int, int]]) -> RawSplit:
        classes = None if labels is None else labels[[i for i, _ in of]]
        return RawSplit(_stored(x, schema, spec), classes, index_keys(len(x), name), name=spec)

    raw = RawDataset({name: split(name, parts[name], starts[name]) for name in starts}, notes=notes, schema=schema)
    everything = window_starts([(i, 0, len(series)) for i, series in enumerate(found)], window, window, padded=lengths)
    raw.everything = split(WHOLE, cut(everything, ends=[len(found[i]) for i, _ in everything]), everything)
    raw.origins = divided.origins
    raw.labelling = "by sub-folder" if labels is not None else ""
    raw.measure_files = partial(_facts, found)
    return raw


# splits in time


def _segments(
    spec: str, found: Sequence[TimeSeries], options: ReadOptions, notes: list[str]
) -> tuple[dict[str, list[Segment]], dict[str, str], np.ndarray | None]:
    """Assign series to splits, and return the classes of the series too; one series is divided later."""
    if len(found) == 1 and not os.path.isdir(spec):
        return {"train": [(0, 0, len(found[0]))]}, {}, None
    below = [os.path.relpath(series.path, spec).replace(os.sep, "/") for series in found]
    layout = arranged(below, Signals)
    notes += layout.notes
    labels = None if None in layout.labels else np.array(layout.labels)
    if set(layout.splits) - {WHOLE, ""}:
        segments: dict[str, list[Segment]] = {}
        for i, name in enumerate(layout.splits):
            if name:
                segments.setdefault(name, []).append((i, 0, len(found[i])))
        if "train" in segments:
            return segments, layout.origins, labels
    if all(series.train_end for series in found):  # of each series, a part is for training
        return {"train": [(i, 0, len(series)) for i, series in enumerate(found)]}, {}, labels
    test, valid = _shares(options)
    names = RawSplit(np.zeros((len(found), 1)), None, name_keys(below))
    rows = divide(names, test=test, valid=valid, seed=options.seed)
    origins = {name: f"{len(of):,} of {len(found):,} series" for name, of in rows.items()}
    return {name: [(i, 0, len(found[i])) for i in of.tolist()] for name, of in rows.items()}, origins, labels


def _shares(options: ReadOptions) -> tuple[float, float]:
    test, valid = options.test_share, options.valid_share
    return TEST_FRACTION if test is None else test, VALID_FRACTION if valid is None else valid


def _divided(
    segments: Sequence[Segment], found: Sequence[TimeSeries], options: ReadOptions, window: int, notes: list[str]
) -> dict[str, list[Segment]]:
    """Divide each segment: its first rows are for training, the next for validation, the last for the test."""
    test, valid = _shares(options)
    divided: dict[str, list[Segment]] = {"train": [], "valid": [], "test": []}
    for i, start, stop in segments:
        end = found[i].train_end
        if end is None:
            windows = _windows_of(stop - start, test, window)
            divided["test"] += [(i, stop - windows * window, stop)] if windows else []
            end = stop - windows * window
        else:
            divided["test"].append((i, end, stop))
        windows = _windows_of(end - start, valid, window)
        divided["valid"] += [(i, end - windows * window, end)] if windows else []
        divided["train"].append((i, start, end - windows * window))
    lacking = [name for name, share in (("valid", valid), ("test", test)) if share and not divided[name]]
    notes += [f"too few rows for a {name} split of windows of {window} rows" for name in lacking]
    return {name: of for name, of in divided.items() if of}


def _windows_of(rows: int, share: float, window: int) -> int:
    """Return how many whole windows a share of the rows holds, at least 1; 0 if less than one would be left."""
    return min(max(1, round(share * rows / window)), rows // window - 1) if share and rows >= 2 * window else 0


# the length of a window


def _window(found: Sequence[TimeSeries], train: Sequence[Segment], options: ReadOptions) -> int:
    if options.window is not None:
        return options.window
    first = found[train[0][0]]
    if options.seconds is not None:
        if first.times is None or first.times.values.dtype.kind != "M" or not first.times.step:
            raise DataError(
                f"{first.path} has no time column with dates: give {option('window')}, a number of rows, instead of "
                f"{option('seconds')}",
                code="no-rate",
            )
        return max(1, round(options.seconds / first.times.step))
    longest = max(stop - start for _, start, stop in train)
    if len(train) > 1 and longest <= LONGEST:
        return -(-longest // MULTIPLE) * MULTIPLE
    period = _longest_period(found, train)
    wanted = min(max(SHORTEST, 2 * period), LONGEST) if period else UNPERIODIC
    return min(-(-wanted // MULTIPLE) * MULTIPLE, max(2, longest // 2))


def _longest_period(found: Sequence[TimeSeries], train: Sequence[Segment]) -> int:
    number, start, stop = max(train, key=lambda of: of[2] - of[1])
    end = found[number].train_end or stop
    return dominant_period(np.asarray(found[number].x[start : min(end, stop)], np.float64))


def dominant_period(x: np.ndarray) -> int:
    """Find the period of a series `[T, C]` by its autocorrelation; 0 if there is no clear one.

    It is the lag of the first peak that is at least 90 % as high as the highest one, averaged over channels.
    """
    x = x[:SURVEYED]
    seen = ~np.isnan(x)
    count = np.maximum(seen.sum(0), 1)
    x = np.where(seen, x - _slow(np.where(seen, x, 0), seen), 0)
    spread = np.sqrt((x**2).sum(0) / count)
    x, seen = x[:, spread > 0] / spread[spread > 0], seen[:, spread > 0]
    if len(x) < 8 or not x.shape[1]:
        return 0
    lags = min(len(x) // 2, LONGEST // 2 + 2)
    products, pairs = (_autocorrelation(values)[:lags] for values in (x, seen.astype(np.float64)))
    r = products / np.maximum(pairs, 1)
    below = np.flatnonzero(r < 0)
    if not len(below):
        return 0
    peaks = np.flatnonzero((r[1:-1] > r[:-2]) & (r[1:-1] >= r[2:])) + 1
    peaks = peaks[(peaks > below[0]) & (peaks >= 4)]
    if not len(peaks) or r[peaks].max() < CLEAR:
        return 0
    return int(peaks[r[peaks] >= 0.9 * r[peaks].max()][0])


def _slow(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Compute the mean of the observed values in the surrounding `LONGEST` rows."""
    half = min(LONGEST, len(x)) // 2
    rows = np.arange(len(x))
    first, last = np.maximum(rows - half, 0), np.minimum(rows + half + 1, len(x))
    sums, counts = (np.concatenate([np.zeros_like(x[:1]), v.cumsum(0)]) for v in (x, seen.astype(np.float64)))
    return (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)


def _autocorrelation(x: np.ndarray) -> np.ndarray:
    """Sum products of values that are a lag apart, over the columns of `[T, C]`."""
    power = np.abs(np.fft.rfft(x, 2 * len(x), axis=0)) ** 2
    return np.fft.irfft(power, axis=0).sum(1)


def _check_window(window: int, found: Sequence[TimeSeries]) -> None:
    longest = max(map(len, found))
    if window > longest:
        raise DataError(
            f"windows of {window:,} rows are longer than the series, which has {longest:,}: give a smaller "
            f"{option('window')}",
            code="window-too-long",
            longest=longest,
        )


def _said(found: Sequence[TimeSeries], train: Sequence[Segment], window: int) -> str:
    longest = max(stop - start for _, start, stop in train)
    if len(train) > 1 and longest <= LONGEST:
        return f"windows of {window} rows hold every series whole; the longest has {longest}"
    period = _longest_period(found, train)
    why = f"twice the period of {period} rows" if period else "there is no clear period"
    return f"the series is cut into windows of {window} rows ({why}); choose another length with {option('window')}"


def training_stride(train: Sequence[Segment], window: int) -> int:
    windows = sum(-(-(stop - start) // window) for _, start, stop in train)
    single = all(stop - start <= window for _, start, stop in train)
    return window if windows >= FEW_WINDOWS or single else max(1, window // OVERLAP)


# windows and their values


def window_starts(
    segments: Sequence[Segment], window: int, stride: int, *, padded: bool = True
) -> list[tuple[int, int]]:
    """List the windows of segments as (series, first row).

    Overlapping ones end where the segment ends; so does the last one of others if it is not `padded`.
    """
    found = []
    for i, start, stop in segments:
        last = stop - window
        if (stride == window and padded) or last < start:
            found += [(i, at) for at in range(start, stop, window)]
        else:
            found += [(i, at) for at in dict.fromkeys([*range(start, last + 1, stride), last])]
    return found


def _ends(windows: Sequence[tuple[int, int]], segments: Mapping[tuple[int, int], int]) -> list[int]:
    """Find the end of the segment that holds each window."""
    return [next(b for (j, a), b in segments.items() if i == j and a <= at < b) for i, at in windows]


def _cut(
    found: Sequence[TimeSeries], windows: Sequence[tuple[int, int]], *, window: int, ends: Sequence[int]
) -> np.ndarray:
    """Copy windows to `[N, C, window]` float32; rows from the end of their segment on are NaN."""
    x = np.full((len(windows), found[0].x.shape[1], window), np.nan, np.float32)
    for row, ((i, at), end) in enumerate(zip(windows, ends, strict=True)):
        piece = found[i].x[at : min(at + window, end)]
        x[row, :, : len(piece)] = piece.T
    return x


def _short(parts: Iterable[np.ndarray]) -> bool:
    """Return whether a window ends early."""
    return any(bool(np.isnan(x[..., -1]).all(1).any()) for x in parts)


def _lacks(series: TimeSeries) -> bool:
    return series.x.dtype.kind == "f" and bool(np.isnan(series.x).any())


def _values(found: Sequence[TimeSeries], notes: list[str]) -> Values:
    """Choose the values: bits, bytes or 16-bit numbers if all are whole and none is missing; else real numbers."""
    if any(series.x.dtype.kind == "f" for series in found):
        return Real()
    low, high = min(int(s.x.min()) for s in found), max(int(s.x.max()) for s in found)
    for values in (Binary(), UINT8, *WIDE):
        if values.low <= low and high <= values.high:
            notes.append(f"whole numbers from {low} to {high} are stored as {values.words} values")
            return values
    notes.append(f"whole numbers from {low} to {high} are stored as real values")
    return Real()


def _stored(x: np.ndarray, schema: Schema, where: str) -> np.ndarray:
    """Convert windows to the type in which a schema is stored.

    Raises:
        DataError: if they hold values that the schema lacks.
    """
    values = schema.values
    if values.discrete:
        wrong = x[~np.isnan(x) & ((x < values.low) | (x > values.high) | (x != np.round(x)))]
        if len(wrong):
            raise DataError(
                f"{where} holds the value {wrong[0]:g}, but the model was trained on {values.words} values from "
                f"{values.low:g} to {values.high:g}",
                code="other-values",
            )
    return x.astype(np.uint8) if schema.in_bytes else x


def _facts(found: Sequence[TimeSeries]) -> list[tuple[str, str]]:
    rows = np.array([len(series) for series in found])
    lines = [("series", f"{len(found):,} of {rows.min():,} to {rows.max():,} rows, {rows.sum():,} in all")]
    missing = sum(int(np.isnan(s.x).sum()) for s in found if s.x.dtype.kind == "f")
    if missing:
        lines.append(("missing", f"{missing:,} of {sum(s.x.size for s in found):,} values"))
    labelled = [s.labels for s in found if s.labels is not None]
    if labelled:
        stretches = sum(int((np.diff(of.astype(int), prepend=0) > 0).sum()) for of in labelled)
        lines.append(("labels", f"{sum(int(of.sum()) for of in labelled):,} anomalous rows in {stretches:,} stretches"))
    if len(found) > 1:
        lines.append(("files", abridged([Path(series.path).name for series in found], 4)))
    return lines
