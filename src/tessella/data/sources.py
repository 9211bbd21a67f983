"""Sources that a SPEC can name: a registered source, a data set of the Hugging Face hub, a folder, or a file."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tessella.data.array_files import CIFAR, CIFAR_PICKLE, IDX, cifar_binary, idx_folder, npy, npz
from tessella.data.folders.read import folder, read_files
from tessella.data.raw import SPLIT_WORDS, WHOLE, RawDataset
from tessella.data.series import is_unmistakable, series_files
from tessella.data.tables import PARQUET
from tessella.foundation import registry
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged, one_line, shown
from tessella.kinds.base import File, ReadOptions
from tessella.kinds.images import Images

HUB = "hf:"
TABLES = (".csv", ".tsv", ".txt", ".dat", ".data", *PARQUET)
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt")


def known_sources() -> str:
    """List the possible SPECs, for messages."""
    return f"{', '.join(registry.names('data'))}, hf:NAME, a folder of pictures or sounds, or a file"


def find_raw(spec: str, options: ReadOptions, label: str | None = None) -> RawDataset:
    """Read the raw data set that a SPEC names.

    Args:
        label: name of the table column or `.npz` array with the labels; of a folder, as `folder` takes it.

    Raises:
        DataError: if the data does not exist or cannot be read.
    """
    if spec.startswith(HUB):
        return _hub(spec.removeprefix(HUB), options, label)
    path, named = Path(spec), spec in registry.names("data")
    try:
        ending = _ending(spec) if not named and path.is_file() else ""
        if options.kind != "signal" and not named and path.exists() and (options.kind or is_unmistakable(spec)):
            from tessella.data.series.windows import open_series

            return open_series(spec, options, label)
        if ending == ".npz":
            return npz(spec, label)
        if ending in TABLES:
            from tessella.data.tables.read import table

            return table(spec, label, options.like)
        if not named and path.is_dir():
            return _folder(spec, options, label)
        if label is not None:
            raise DataError(
                f"{spec} has no named columns or arrays, so {shown(label)!r} cannot be found: leave out "
                f"{option('label')}",
                code="no-such-label",
            )
        if named:
            return registry.find("data", spec).load()(options.size)
        if path.is_file():
            return _file(spec, ending)
    except PermissionError as error:
        raise DataError(
            f"{error.filename or spec} cannot be read without permission: change its permissions", code="no-permission"
        ) from None
    raise DataError(f"no such data: {shown(spec)}; give {known_sources()}", code="no-such-data")


def _folder(path: str, options: ReadOptions, label: str | None) -> RawDataset:
    files = [name for name in sorted(os.listdir(path)) if os.path.isfile(os.path.join(path, name))]
    if any(IDX.search(name) for name in files):
        return idx_folder(path, files)
    if any(CIFAR.fullmatch(name) for name in files):
        return cifar_binary(path, files)
    if any(CIFAR_PICKLE.fullmatch(name) for name in files):
        raise _pickled(path)
    try:
        return folder(path, options, label)
    except DataError as error:
        if error.code != "no-pictures" or not series_files(path):
            raise
        hint = f"for a folder of series, one a file, give {option('kind')} series"
        raise DataError(f"{error.message}; {hint}", error.code, **error.parameters) from None


def _ending(path: str) -> str:
    """Return the file ending; for a gzipped table, the ending before `.gz`."""
    stem, ending = os.path.splitext(os.path.basename(path).lower())
    inner = os.path.splitext(stem)[1]
    return inner if ending == ".gz" and inner in TABLES else ending


def _file(path: str, ending: str) -> RawDataset:
    home, name = os.path.split(path)
    if IDX.search(name.lower()):
        return idx_folder(home, [name])
    if CIFAR_PICKLE.fullmatch(name.lower()) or ending in PICKLES:
        raise _pickled(path)
    if ending == ".bin":
        return cifar_binary(home, [name])
    if ending == ".npy":
        return npy(path)
    known = ", ".join((".npz", ".npy", ".bin", "idx", *TABLES))
    raise DataError(
        f"{path} has an unknown file type: give a folder of pictures or sounds, or a file of type {known}",
        code="no-known-kind",
    )


def _pickled(path: str) -> DataError:
    return DataError(
        f"{path} is a Python pickle, which can run any code when it is opened: use the binary version "
        "(CIFAR: data_batch_*.bin) or save the arrays with numpy.savez",
        code="pickled",
    )


# data sets of the Hugging Face hub, or saved by its `datasets` library in a local folder (an extra)

_PICTURE_COLUMNS = ("image", "img", "picture", "pixel_values")
_CLASS_COLUMNS = ("label", "labels", "class", "target", "y", "fine_label")
_SAVED = ("dataset_dict.json", "state.json")


def _hub(name: str, options: ReadOptions, label: str | None) -> RawDataset:
    """Read images with labels, or columns of numbers, from the hub or from a local folder."""
    where = f"hf:{name}"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{where} needs the datasets extra: pip install 'tessella[datasets]'", code="extra-missing"
        ) from None
    try:
        local = any(os.path.isfile(os.path.join(name, file)) for file in _SAVED)
        loaded: Any = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except Exception as error:  # its readers and network layers raise nearly anything
        raise DataError(f"{where} cannot be loaded: {one_line(error)}", code="not-loaded") from None
    given = dict(loaded.items()) if isinstance(loaded, dict) else {WHOLE: loaded}
    notes: list[str] = []
    known = {SPLIT_WORDS[key]: part for key, part in given.items() if key in SPLIT_WORDS}
    if "train" not in known:
        known = {WHOLE: next(iter(given.values()))}
    left = [key for key, part in given.items() if all(part is not used for used in known.values())]
    if left:
        notes.append(f"ignored splits: {abridged(left)}")
    features = next(iter(known.values())).features
    if label is not None and label not in features and options.like is None:
        raise DataError(
            f"{where} has no column {shown(label)!r} with the labels; its columns are {abridged(list(features))}",
            code="no-such-label",
            label=label,
        )
    picture = next((c for c in _PICTURE_COLUMNS if isinstance(features.get(c), datasets.Image)), None)
    if picture is None:
        from tessella.data.tables.read import vectors

        tables = {part: rows.with_format("arrow")[:] for part, rows in known.items()}
        return vectors(tables, where, notes, label, options.like)
    columns = _CLASS_COLUMNS if label is None else (label,)
    label = next((c for c in columns if all(c in part.features for part in known.values())), None)
    parts = [part.cast_column(picture, datasets.Image(decode=False)) for part in known.values()]
    values = [np.asarray(part.with_format("numpy")[label][:]) for part in known.values()] if label else []
    return read_files(
        Images,
        partial(_hub_item, parts, np.cumsum([0, *map(len, parts)]), picture),
        [f"{split}/{i}" for split, part in known.items() for i in range(len(part))],
        [split for split, part in known.items() for _ in range(len(part))],
        np.concatenate(values) if label else None,
        tuple(getattr(features[label], "names", None) or ()) if label else (),
        options=options,
        notes=notes,
        where=where,
    )


def _hub_item(parts: list[Any], starts: np.ndarray, column: str, i: int) -> File:
    part = int(np.searchsorted(starts, i, side="right")) - 1
    record = parts[part][int(i - starts[part])][column] or {}
    return record.get("bytes") or record.get("path") or b""
