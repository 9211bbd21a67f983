"""Fills the gaps of series from a model and from the values beside them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch

from tessella.core.batches import to_read
from tessella.data.series.read import TimeSeries, read_series
from tessella.models.base import Model

OVERLAP = 4
"""Windows that hold each row; their means are averaged."""


@final
@dataclass(frozen=True)
class FilledSeries:
    """Series whose missing values were filled.

    Attributes:
        series: the series, complete.
        filled: which values were missing, `[T, C]`.
    """

    series: TimeSeries
    filled: np.ndarray

    def write_csv(self, path: Path) -> None:
        """Write the times and values as a table."""
        series, times = self.series, self.series.written_times
        names = series.columns or tuple(f"channel {c}" for c in range(series.x.shape[1]))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            time = "row" if series.times is None else series.times.name
            writer.writerow(["time" if "," in time else time, *names])
            for at, row in zip(times, series.x.tolist(), strict=True):
                writer.writerow([at, *(f"{value:.9g}" for value in row)])


@torch.no_grad()
def fill_gaps(model: Model, x: np.ndarray) -> np.ndarray:
    """Replace the values that are NaN in rows `[T, C]` from a model of windows and the values beside them.

    They become the mean of p(x | z), with z inferred from the observed values, plus what the mean misses at the
    observed values beside the gap, interpolated linearly: what z does not tell is alike at neighbouring times.
    """
    (window,), count = model.schema.spatial, len(x)
    padded = np.full((max(count, window), x.shape[1]), np.nan)
    padded[:count] = x
    last = len(padded) - window
    starts = np.unique(np.append(np.arange(0, last + 1, max(1, window // OVERLAP)), last))
    views = np.lib.stride_tricks.sliding_window_view(padded, window, 0)
    sums, counts = np.zeros_like(padded), np.zeros((len(padded), 1))
    at_once = to_read(model.schema.shape, model.device)
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        seen = torch.from_numpy(views[some].astype(np.float32)).to(model.device)
        mean = model.decode(model.encode(seen).z).mean.double().cpu().numpy()
        for start, one in zip(some, mean, strict=True):
            sums[start : start + window] += one.T
            counts[start : start + window] += 1
    mean, at = (sums / counts)[:count], np.arange(count)
    for column, known in zip(mean.T, x.T, strict=True):
        seen = ~np.isnan(known)
        if seen.any():
            column += np.interp(at, at[seen], (known - column)[seen])
    return np.where(np.isnan(x), mean, x)


def fill_series(model: Model, path: str) -> Sequence[FilledSeries]:
    """Fill the gaps of the series of a file or folder.

    Raises:
        DataError: as `read_series`.
    """
    found = []
    for series in read_series(path, [], like=model.schema):
        x = np.asarray(series.x, np.float64)
        found.append(FilledSeries(replace(series, x=fill_gaps(model, x)), np.isnan(x)))
    return found
