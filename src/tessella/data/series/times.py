"""Time columns of a series: found by name and type, checked, and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import final

import numpy as np

from tessella.data.tables.columns import Column, is_unnamed
from tessella.foundation.errors import DataError
from tessella.foundation.text import abridged, shown

TIME_NAMES = ("timestamp", "time", "date", "datetime", "date_time", "ds", "t", "seconds")
"""Names of columns whose rising numbers are times."""
DATE_PARTS = ("year", "month", "day", "hour", "minute", "second")
"""Names of columns that together make a date; the first three are needed."""
FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d/%m/%y", "%m/%d/%y"),
)
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %H:%M:%S.%f", " %H.%M.%S")
UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


@final
@dataclass(frozen=True)
class TimeAxis:
    """TimeAxis of the T rows of a series.

    Attributes:
        name: name of the column, or of the columns.
        values: times `[T]`: datetime64 in microseconds, or numbers.
        texts: times as they are in the file, or as ISO dates; None to write `values`.
    """

    name: str
    values: np.ndarray
    texts: Sequence[str] | None = None

    @property
    def written(self) -> list[str] | list[float]:
        """Return the times as result files show them."""
        return list(self.texts) if self.texts is not None else self.values.tolist()

    @property
    def steps(self) -> np.ndarray:
        """Return the differences of successive times `[T - 1]`, of dates in seconds."""
        if self.values.dtype.kind == "M":
            return np.diff(self.values.astype(np.int64)) / 1e6
        return np.diff(self.values)

    @property
    def step(self) -> float:
        """Return the most frequent step, of dates in seconds."""
        steps, counts = np.unique(self.steps, return_counts=True)
        return float(steps[counts.argmax()]) if len(steps) else 0.0

    def span(self, step: float) -> str:
        """Describe a step in words: `5 minutes`."""
        if self.values.dtype.kind != "M":
            return f"{step:g}"
        size, unit = next(((size, unit) for size, unit in UNITS if step >= size), UNITS[-1])
        return f"{step / size:g} {unit}{'' if step == size else 's'}"


def take_times(columns: list[Column], where: str, notes: list[str]) -> tuple[TimeAxis | None, list[Column]]:
    """Find the time columns, and return the times with the other columns.

    They are columns of year, month and day, or one of dates (with one of the time of day), or one of rising numbers
    with a usual name, or a first column that counts the rows.

    Raises:
        DataError: if time goes backwards, or is missing in a row.
    """
    names = {column.name.lower(): column for column in columns}
    dates = [column for column in columns if column.kind == "dates"]
    counting = columns[0] if columns and _counts(columns[0]) else None
    used: list[Column] = [] if counting is None else [counting]
    if all(name in names and names[name].whole for name in DATE_PARTS[:3]):
        parts = [names[name] for name in DATE_PARTS if name in names and names[name].whole]
        used += parts
        times = _from_parts(parts, where)
    elif dates:
        together = dates[:2] if {c.name.lower() for c in dates[:2]} == {"date", "time"} else dates[:1]
        together.sort(key=lambda column: column.name.lower())
        used += together
        times = _from_texts(together, where)
    else:
        numbers = [c for c in columns if c.name.lower() in TIME_NAMES and c.kind == "numbers" and c is not counting]
        if numbers:
            used.append(numbers[0])
            _check_present(numbers[:1], where)
            times = TimeAxis(numbers[0].name, numbers[0].values)
        elif counting is not None:
            times = TimeAxis(counting.name or "row", counting.values)
        else:
            return None, columns
    _check_forwards(times, where)
    notes.append(_said(times, [column.name for column in used if column.name not in times.name.split(", ")]))
    return times, [column for column in columns if column not in used]


def _counts(column: Column) -> bool:
    """Return whether a column with a name of row numbers, or of times, rises by 1 in each row."""
    named = is_unnamed(column.name) or column.name.lower() in ("no", "no.", "index", "row", "id", "step", *TIME_NAMES)
    return named and column.whole and len(column.values) > 2 and bool((np.diff(column.values) == 1).all())


def _check_present(columns: Sequence[Column], where: str) -> None:
    for column in columns:
        if len(column.missing):
            raise DataError(
                f"{where} has no time in row {column.missing[0] + 1:,} (column {shown(column.name)}): fill or remove "
                "such rows",
                code="no-time",
                row=int(column.missing[0]) + 1,
            )


def _from_parts(parts: Sequence[Column], where: str) -> TimeAxis:
    _check_present(parts, where)
    year, month, day, *clock = (np.asarray(column.values).astype(np.int64) for column in parts)
    months = (year - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1)
    values = months.astype("M8[D]") + (day - 1)
    seconds = sum((part * 60 ** (2 - k) for k, part in enumerate(clock)), np.zeros_like(day))
    values = values.astype("M8[us]") + seconds * 1_000_000
    texts = [text.replace("T", " ") for text in values.astype("M8[s]").astype(str).tolist()]
    return TimeAxis(", ".join(column.name for column in parts), values, texts)


def _from_texts(columns: Sequence[Column], where: str) -> TimeAxis:
    _check_present(columns, where)
    texts = [" ".join(row) for row in zip(*(column.values.tolist() for column in columns), strict=True)]
    name = ", ".join(column.name for column in columns)
    found = None
    for values in _readings(texts):
        found = TimeAxis(name, values, texts)
        if (np.diff(values.astype(np.int64)) >= 0).all():
            return found
    if found is None:
        raise DataError(
            f"{where}: the dates in column {shown(name)} cannot be read ({abridged(texts[:2])}): write them as "
            "2024-01-31 23:59:00",
            code="unknown-dates",
        )
    return found


def _readings(texts: Sequence[str]) -> list[np.ndarray]:
    """Read dates in each format that fits all of them."""
    try:
        return [np.array([text.strip().removesuffix("Z") for text in texts], "M8[us]")]
    except ValueError:
        pass
    found = []
    for form in (day + clock for day in FORMATS for clock in CLOCKS):
        try:
            datetime.strptime(texts[-1].strip(), form)
            found.append(np.array([datetime.strptime(text.strip(), form) for text in texts], "M8[us]"))
        except ValueError:
            continue
    return found


def _check_forwards(times: TimeAxis, where: str) -> None:
    back = np.flatnonzero(times.steps < 0)
    if len(back):
        row, written = int(back[0]) + 2, times.written
        raise DataError(
            f"{where}: time goes backwards in row {row:,}, from {written[row - 2]} to {written[row - 1]} (column "
            f"{shown(times.name)}): sort the rows by time",
            code="time-goes-backwards",
            row=row,
        )


def _said(times: TimeAxis, others: Sequence[str]) -> str:
    steps, step = times.steps, times.step
    uneven = np.flatnonzero(~np.isclose(steps, step, rtol=1e-4, atol=0))
    text = f"time is read from {shown(times.name)}: {times.written[0]} to {times.written[-1]}, a row every "
    text += times.span(step)
    if len(uneven):
        first = int(uneven[0])
        text += (
            f", but {len(uneven):,} of {len(steps):,} steps differ, the first to row {first + 2:,} "
            f"({times.span(float(steps[first]))}); rows are read as consecutive"
        )
    return f"{text}; {abridged(others)} only counts the rows" if others else text
