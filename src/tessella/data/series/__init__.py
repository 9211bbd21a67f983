"""Reader of series, values at consecutive times: files, their times and labels, and windows cut from them."""

from __future__ import annotations

import os
import re
from pathlib import Path

ENDINGS = (".csv", ".tsv", ".txt", ".dat", ".data", ".out", ".parquet", ".pq", ".npy")
"""Endings of files that may hold a series."""
UCR = re.compile(r"_(\d+)_(\d+)_(\d+)\.txt$", re.IGNORECASE)
"""End of the names of the UCR anomaly archive (Wu & Keogh 2021): end of training, first and last anomalous row."""


def is_unmistakable(path: str) -> bool:
    """Return whether a file is a series by its name alone, or a folder holds only such files."""
    if os.path.isdir(path):
        names = [entry.name for entry in os.scandir(path) if not entry.name.startswith(".")]
        return bool(names) and all(_by_name(name) for name in names)
    return os.path.isfile(path) and _by_name(os.path.basename(path))


def is_series(spec: str | None, kind: str | None) -> bool:
    """Return whether data is read as series: because it was asked for, or by the names of its files."""
    return kind == "series" or (kind is None and spec is not None and is_unmistakable(spec))


def _by_name(name: str) -> bool:
    return name.lower().endswith(".out") or UCR.search(name) is not None


def series_files(path: str) -> list[str]:
    """List the paths of the files below a folder, or of one file, that may hold a series, in order of their names."""
    if os.path.isfile(path):
        return [path]
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [os.path.join(folder, name) for name in sorted(names) if Path(name).suffix.lower() in ENDINGS]
    return found
