"""Data sets of the Hugging Face hub, or saved by its `datasets` library in a local folder (an extra)."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from tessella.core.schema import Schema
from tessella.data.folders.read import Item, pictures
from tessella.data.raw import WHOLE, RawDataset, abridged, one_line, shown
from tessella.data.tables.read import vectors
from tessella.foundation.errors import DataError

PICTURE_COLUMNS = ("image", "img", "picture", "pixel_values")
CLASS_COLUMNS = ("label", "labels", "class", "target", "y", "fine_label")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "valid")
SAVED = ("dataset_dict.json", "state.json")


def hub(
    name: str,
    size: tuple[int, int] | None,
    channels: int | None,
    label: str | None = None,
    like: Schema | None = None,
) -> RawDataset:
    """`NAME` on the hub, or a local folder: pictures with their labels, or columns of numbers.

    Args:
        label: the column that holds the class.
        like: what the columns of numbers are matched with.

    Raises:
        DataError: if the extra is missing, there is no such data set, or no column fits.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name} needs the datasets extra: pip install 'tessella[datasets]'") from None
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in SAVED):
            loaded: Any = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except Exception as error:  # its readers and network layers raise nearly anything
        raise DataError(f"hf:{name} cannot be loaded: {one_line(error)}") from None
    given = dict(loaded.items()) if isinstance(loaded, dict) else {WHOLE: loaded}
    notes: list[str] = []
    known = {SPLITS[key]: part for key, part in given.items() if key in SPLITS}
    if "train" not in known:
        first = next(iter(given))
        known = {WHOLE: given[first]}
    left = [key for key, part in given.items() if all(part is not used for used in known.values())]
    if left:
        notes.append(f"splits left out: {abridged(left)}")
    names = list(next(iter(known.values())).features)
    if label is not None and label not in names and like is None:
        raise DataError(f"hf:{name} has no column {shown(label)!r} to take the class from; it has {abridged(names)}")
    if any(isinstance(next(iter(known.values())).features.get(c), datasets.Image) for c in PICTURE_COLUMNS):
        return _pictures(datasets, f"hf:{name}", known, size, channels, label, notes)
    read = {part: rows.with_format("arrow")[:] for part, rows in known.items()}
    return vectors(read, f"hf:{name}", notes, label, like)


def _pictures(
    datasets: Any,
    where: str,
    known: dict[str, Any],
    size: tuple[int, int] | None,
    channels: int | None,
    label: str | None,
    notes: list[str],
) -> RawDataset:
    features = next(iter(known.values())).features
    picture = next(c for c in PICTURE_COLUMNS if isinstance(features.get(c), datasets.Image))
    columns = CLASS_COLUMNS if label is None else (label,)
    label = next((c for c in columns if all(c in p.features for p in known.values())), None)
    parts, names, splits, values = [], [], [], []
    for name, part in known.items():
        parts.append(part.cast_column(picture, datasets.Image(decode=False)))
        names += [f"{name}/{i}" for i in range(len(part))]
        splits += [name] * len(part)
        values.append(np.asarray(part.with_format("numpy")[label][:]) if label else None)
    starts = np.cumsum([0, *map(len, parts)])
    labels = None if label is None else np.concatenate(values)
    classes = tuple(getattr(features[label], "names", None) or ()) if label else ()
    item = partial(_item, parts, starts, picture)
    return pictures(item, names, splits, labels, classes, size=size, channels=channels, notes=notes, where=where)


def _item(parts: list[Any], starts: np.ndarray, column: str, i: int) -> Item:
    part = int(np.searchsorted(starts, i, side="right")) - 1
    record = parts[part][int(i - starts[part])][column] or {}
    return record.get("bytes") or record.get("path") or b""
