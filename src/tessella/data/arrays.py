"""Conversion of raw arrays to examples: shape, type, labels, size and channels. Imports torch only to resize."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tessella.core.schema import UINT8, Binary, Integers, Real, Schema, Values
from tessella.data.raw import RawSplit, Reader
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged
from tessella.kinds.image_files import centre_box

CHANNELS = (1, 2, 3, 4)
CHUNK_BYTES = 64 << 20
EXACT_IN_SINGLE, EXACT_IN_DOUBLE = 1 << 24, 1 << 53
WIDE = Integers(1 << 16, -(2.0**15)), Integers(1 << 16)
"""Value types of integer signals that do not fit in a byte."""
LARGEST_FLOAT = float(np.finfo(np.float32).max)
RESOLVED, FAR = 2.0**-14, 1024
"""`RESOLVED`: share of a column's range that float32 must resolve. `FAR`: a column whose largest absolute value is more
than this many times its range gets an offset."""


def natural(text: str) -> tuple:
    """Return a sort key that puts `9` before `10`."""
    pieces = re.split(r"([0-9]{1,4000})", text)  # ASCII digits: "①".isdigit() holds, and it is no number to int()
    return tuple((0, int(piece), "") if i % 2 else (1, 0, piece) for i, piece in enumerate(pieces))


_NO_NUMBERS = {
    "c": "complex numbers: save real and imaginary parts, or magnitudes, as real numbers",
    "M": "dates: save them as numbers, such as days or seconds since the first date",
    "m": "time differences: save them as numbers of days or seconds",
    "V": "records with named fields: save a plain array (numpy.lib.recfunctions), or a table",
}


def as_examples(x: np.ndarray, name: str, notes: list[str], kind: str | None = None) -> np.ndarray:
    """Reshape an array of examples to `[N, D]`, `[N, C, T]` or `[N, C, H, W]`.

    Args:
        kind: `signal` to read `[N, T]` and `[N, C, T]` as signals instead of vectors and grey images.

    Raises:
        DataError: if the array is empty, holds no numbers, or has a shape that is not supported.
    """
    if x.dtype.kind not in "buif":
        raise DataError(
            f"{name} holds {_NO_NUMBERS.get(x.dtype.kind, f'{x.dtype}, not numbers: convert it first')}",
            code="no-numbers",
        )
    if x.size == 0:
        raise DataError(f"{name} is empty, with shape {_by(x.shape)}: give at least one example", code="empty")
    if kind == "signal":
        if x.ndim in (2, 3):
            return x[:, None] if x.ndim == 2 else x
        raise DataError(
            f"{name} has shape {_by(x.shape)}: signals must have shape (N, T) or (N, C, T)", code="no-signals"
        )
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        if x.dtype != np.uint8:  # bytes are pictures as a rule
            notes.append(f"{name}: read as grey pictures; for signals (N, C, T), give {option('kind')} signal")
        return x[:, None]
    fitting = [axis for axis in (3, 1) if x.ndim == 4 and x.shape[axis] in CHANNELS]
    if fitting:
        axis = next((axis for axis in fitting if x.shape[axis] in (1, 3)), fitting[0])  # alpha is rare
        if len(fitting) > 1:
            order = "height, width, channels" if axis == 3 else "channels, height, width"
            notes.append(f"{name}: shape {_by(x.shape)} is read as (examples, {order})")
        return np.ascontiguousarray(np.moveaxis(x, axis, 1))
    raise DataError(
        f"{name} has shape {_by(x.shape)}: give vectors (N, D) or pictures (N, H, W), (N, H, W, C) or (N, C, H, W) "
        "with 1 to 4 channels",
        code="bad-shape",
    )


def stored(
    parts: dict[str, np.ndarray],
    called: Mapping[str, str],
    notes: list[str],
    columns: Sequence[str] = (),
    like: Schema | None = None,
) -> tuple[dict[str, np.ndarray], Values, tuple[int, ...]]:
    """Convert the arrays of a data set to uint8 or float32.

    Returns:
        The arrays, the type of their values, and the offset subtracted from each column of vectors.

    Args:
        parts: arrays `[N, D]` or `[N, C, H, W]` by the name of the part.
        called: name of each part in messages.
        columns: names of the D columns, if they have any.
        like: schema to store them by: with its offset, and as bytes even if all values are 0 or 1.

    Raises:
        DataError: if values are not finite, or whole numbers are too large for float32.
    """
    kinds = {x.dtype.kind for x in parts.values()}
    if "f" not in kinds:
        low = min(int(x.min()) for x in parts.values())
        high = max(int(x.max()) for x in parts.values())
        fitting = [v for v in WIDE if v.low <= low and high <= v.high and all(x.ndim == 3 for x in parts.values())]
        if like is not None:
            fitting = [v for v in fitting if v == like.values]
        if low >= 0 and high <= 255 and (like is None or not like.offset) and not (like is not None and fitting):
            if "i" in kinds or any(x.dtype.itemsize > 1 for x in parts.values()):
                notes.append(f"whole numbers from {low} to {high} are stored as bytes")
            done = {name: x.view(np.uint8) if x.dtype == bool else _cast(x, np.uint8) for name, x in parts.items()}
            binary = (high == 1 or kinds == {"b"}) and (like is None or like.values != UINT8)
            return done, Binary() if binary else UINT8, ()
        if fitting:
            notes.append(f"whole numbers from {low} to {high} are stored as 16-bit values")
            return {name: _cast(x, np.float32) for name, x in parts.items()}, fitting[0], ()
        notes.append(f"whole numbers from {low} to {high} do not fit in a byte: they are stored as real values")
    if like is not None:
        offset = like.offset
    else:
        offset = _offset(list(parts.values()), columns, " and ".join(called.values()), notes)
    done = {name: _shifted(x, offset) for name, x in parts.items()}
    for name, x in done.items():
        _check_finite(x, called[name])
    return done, Real(), offset


def _cast(x: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)


def _offset(parts: list[np.ndarray], columns: Sequence[str], where: str, notes: list[str]) -> tuple[int, ...]:
    """Choose the offset to subtract from each column, so that float32 keeps its values distinct.

    The result is empty if no column needs one.
    Whole numbers stay exact if the range of their column is at most 2^24; other columns far from zero are stored to
    2^-14 of their range. Otherwise numbers are rounded, with a note, or refused as probable identifiers.
    """
    if all(x.dtype.kind in "bf" and x.dtype.itemsize <= 4 for x in parts):
        return ()
    axes = 0 if parts[0].ndim == 2 else None
    low = np.min([x.min(axes).astype(np.float64) for x in parts], axis=0).reshape(-1)
    high = np.max([x.max(axes).astype(np.float64) for x in parts], axis=0).reshape(-1)
    size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    offset, rounded, refused = [0] * len(size), [], []
    suspects = (size <= LARGEST_FLOAT) & ((size > EXACT_IN_SINGLE) | (size > FAR * spread) & (spread > 0))
    for j in np.flatnonzero(suspects).tolist():
        name = (columns[j] if columns else f"number {j + 1} of an example") if axes == 0 else "all values"
        values = np.unique(np.concatenate([x[:, j] if axes == 0 else x.reshape(-1) for x in parts]))
        first, last = int(np.floor(values[0])), int(np.ceil(values[-1]))
        far = axes == 0 and first < last and size[j] > FAR * (last - first)
        if values.dtype.kind != "f" or (size[j] <= EXACT_IN_DOUBLE and np.array_equal(values, np.round(values))):
            if _exact(values):
                continue
            if axes == 0 and 0 < last - first <= EXACT_IN_SINGLE:
                far = True
            elif size[j] > EXACT_IN_DOUBLE and first < last:
                refused.append(f"{name} (up to {last})")
            else:
                rounded.append(name)
        elif np.abs(values - _cast(values, np.float32)).max() <= RESOLVED * spread[j]:
            continue
        if far:
            offset[j] = _round_below(first, last)
    if refused:
        raise DataError(
            f"{where} has whole numbers too large to store exactly: {abridged(refused)}; remove them if they are "
            "identifiers, or convert them to larger units",
            code="numbers-too-large",
        )
    if any(offset):
        taken = [f"{o} from {columns[j] if columns else f'number {j + 1}'}" for j, o in enumerate(offset) if o]
        notes.append(f"subtracted, to keep the values distinct in float32: {abridged(taken)}")
    if rounded:
        notes.append(rounding(rounded))
    return tuple(offset) if any(offset) else ()


def rounding(columns: Sequence[str]) -> str:
    """Return the note that whole numbers were rounded."""
    return f"whole numbers above {EXACT_IN_SINGLE:,} are rounded to 24 bits: {abridged(columns)}"


def _exact(values: np.ndarray) -> bool:
    """Return whether float32 represents these whole numbers exactly."""
    if values.dtype.kind == "f":
        return np.array_equal(_cast(values, np.float32).astype(values.dtype), values)
    size = np.where(values < 0, np.uint64(0) - values.astype(np.uint64), values.astype(np.uint64))
    lowest_bit = size & (np.uint64(0) - size)
    return bool((size // np.maximum(lowest_bit, 1) < EXACT_IN_SINGLE).all())


def _round_below(first: int, last: int) -> int:
    """Find a round number up to `first` from which all differences to `last` are exact in float32."""
    step = 10 ** len(str(last - first))
    base = first // step * step
    return base if last - base <= EXACT_IN_SINGLE else first


def _shifted(x: np.ndarray, offset: tuple[int, ...]) -> np.ndarray:
    """Convert `x` to float32 after subtracting the offset of each column."""
    done = _cast(x, np.float32)
    if x.ndim != 2 or len(offset) != x.shape[1] or not any(offset):
        return done
    done = done.copy() if done is x else done
    for j, o in enumerate(offset):
        if o:
            done[:, j] = _difference(x[:, j], o)
    return done


def _difference(x: np.ndarray, o: int) -> np.ndarray:
    if x.dtype.kind == "u" and 0 <= o < 1 << 64:
        large, base = x.astype(np.uint64), np.uint64(o)
        return np.where(large >= base, (large - base).astype(np.float64), -(base - large).astype(np.float64))
    if x.dtype.kind in "iub" and abs(o) < 1 << 62 and (np.abs(x.astype(np.float64)) < 1 << 62).all():
        return (x.astype(np.int64) - o).astype(np.float64)
    return x.astype(np.float64) - float(o)


def _check_finite(x: np.ndarray, name: str) -> None:
    bad, first = 0, None
    step = max(1, CHUNK_BYTES // max(1, x[0].nbytes))
    for start in range(0, len(x), step):
        wrong = ~np.isfinite(x[start : start + step])
        if wrong.any():
            bad += int(wrong.sum())
            first = start + int(np.argwhere(wrong)[0, 0]) if first is None else first
    if bad:
        raise DataError(
            f"{name} has {bad} values that are NaN or infinite in float32, the first in example {first}: "
            "remove or replace them",
            code="not-finite",
        )


def moments(x: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
    """Compute the mean and standard deviation per feature, and the lowest and highest value.

    Features are the columns of `[N, D]` or the channels of `[N, C, H, W]`. A constant feature gets the scale 1. Values
    that are NaN are left out.
    """
    axes = (0, *range(2, x.ndim))
    step = max(1, CHUNK_BYTES // max(1, x[0].nbytes))
    pieces = [rows[i : i + step] for i in range(0, len(rows), step)]
    total = np.maximum(sum((~np.isnan(x[p])).sum(axes) for p in pieces), 1)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    mean = sum(np.nansum(x[p], axes, dtype=np.float64) for p in pieces) / total
    variance = sum(np.nansum((x[p] - mean.reshape(shape)) ** 2, axes, dtype=np.float64) for p in pieces) / total
    low, high = (
        min(float(np.fmin.reduce(x[p], None)) for p in pieces),
        max(float(np.fmax.reduce(x[p], None)) for p in pieces),
    )
    scale = np.sqrt(variance)
    scale = np.where(scale > 1e-6 * np.maximum(1e-6, np.abs(mean)), scale, 1.0)
    return tuple(map(float, mean)), tuple(map(float, scale)), low, high


def label_numbers(
    parts: Mapping[str, RawSplit], classes: tuple[str, ...], notes: list[str]
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Convert labels of any type to int64 `[N]` in `0 ... K - 1`, and return the K class names.

    Args:
        parts: parts with labels that are numbers, strings or one-hot rows.
        classes: class names, if they are known; string labels must be among them.

    Raises:
        DataError: if the numbers of labels and examples differ, or a label is not among `classes`.
    """
    given: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        if part.labels is None:
            continue
        y, called = np.asarray(part.labels), part.labels_name or f"the labels of {part.name or name}"
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.shape[:1] != (len(part.example_ids),):
            raise DataError(
                f"{called} has shape {_by(y.shape)} for {len(part.example_ids)} examples in {part.name or name}: give "
                "one label per example",
                code="bad-labels",
            )
        if y.dtype.kind not in "buifSUT":
            raise DataError(f"{called} has type {y.dtype}: give numbers or strings", code="bad-labels")
        if y.ndim > 1:
            if not _is_one_hot(y):
                notes.append(f"{called} has shape {_by(y.shape)} and is not one-hot: the labels are ignored")
                return dict.fromkeys(parts), ()
            classes = classes or tuple(map(str, range(y.shape[1])))
            notes.append(f"{called}: one-hot rows are converted to classes")
            y = y.argmax(1)
        if y.dtype.kind == "f" and not np.all(np.isfinite(y) & (y == np.round(y))):
            notes.append(f"{called}: values are not whole numbers, so they are ignored as labels")
            return dict.fromkeys(parts), ()
        if y.dtype.kind == "S":
            y = np.char.decode(y, "utf-8", "replace")
        given[name] = _by_name(y, classes, called) if classes else y
    if not given:
        return dict.fromkeys(parts), ()
    notes.extend(f"{name} has no labels" for name in parts if name not in given)
    if classes:
        return {name: given.get(name) for name in parts}, classes
    found = {str(int(v)) if isinstance(v, float) else str(v) for y in given.values() for v in np.unique(y).tolist()}
    names = tuple(sorted(found, key=_numeric))
    return {name: _numbered(given[name], names) if name in given else None for name in parts}, names


def _is_one_hot(y: np.ndarray) -> bool:
    return y.ndim == 2 and y.dtype.kind in "buif" and bool(np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all())


def _by_name(y: np.ndarray, classes: tuple[str, ...], called: str) -> np.ndarray:
    """Convert labels to class numbers: numbers stay, strings are looked up in `classes`."""
    if y.dtype.kind in "UT":
        words = np.unique(y).tolist()
        unknown = [word for word in words if word not in classes]
        if not unknown:
            return _numbered(y, classes)
        if not all(word.isdecimal() and word.isascii() for word in words):
            raise DataError(
                f"{called} holds {abridged(unknown)}, which are not among the class names {abridged(classes)}: list "
                "all class names",
                code="bad-labels",
            )
    numbers = y.astype(np.int64)
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"{called}: labels range from {low} to {high}, but there are {len(classes)} class names, counted from 0: "
            "list all class names",
            code="bad-labels",
        )
    return numbers


def _numeric(name: str) -> tuple:
    return (0, int(name), ()) if re.fullmatch(r"-?[0-9]{1,4000}", name) else (1, 0, natural(name))


def _numbered(y: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    place = {name: number for number, name in enumerate(names)}
    values, inverse = np.unique(y, return_inverse=True)
    texts = [str(int(v)) if isinstance(v, float) else str(v) for v in values.tolist()]
    return np.array([place[text] for text in texts], dtype=np.int64)[inverse.reshape(-1)]


def recoloured(x: np.ndarray, channels: int, values: Values, name: str) -> np.ndarray:
    """Convert images `[N, C, H, W]` to another number of channels.

    Grey is luma (ITU-R 601). Removed alpha is blended with white; added alpha is opaque.

    Raises:
        DataError: for alpha of real values, whose opaque value is unknown.
    """
    have = x.shape[1]
    if have == channels:
        return x
    alpha_in, alpha_out = have in (2, 4), channels in (2, 4)
    if not values.discrete and (alpha_in or alpha_out):
        raise DataError(
            f"{name}: alpha of real values has no known range: convert the pictures to {channels} channels first",
            code="real-opacity",
        )
    top = values.high if values.discrete else 1.0
    done = np.empty((len(x), channels, *x.shape[2:]), x.dtype)
    step = max(1, CHUNK_BYTES // max(1, 4 * x[0].nbytes))
    for start in range(0, len(x), step):
        piece = x[start : start + step].astype(np.float32)
        colour, alpha = (piece[:, :-1], piece[:, -1:]) if alpha_in else (piece, None)
        if alpha is not None and not alpha_out:
            colour = colour * (alpha / top) + (top - alpha)
        if channels <= 2 and colour.shape[1] == 3:
            colour = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), colour, (0, 1))[:, None]
        elif channels >= 3 and colour.shape[1] == 1:
            colour = np.repeat(colour, 3, 1)
        if alpha_out:
            colour = np.concatenate([colour, np.full_like(colour[:, :1], top) if alpha is None else alpha], 1)
        done[start : start + step] = colour if not values.discrete else np.round(colour)
    return done


def resized(x: np.ndarray, size: tuple[int, int], values: Values) -> np.ndarray:
    """Crop images `[N, C, H, W]` at the centre, and resize them to `size` (H, W)."""
    if x.shape[2:] == size:
        return x
    import torch
    from torch.nn.functional import interpolate

    top, left, height, width = centre_box((x.shape[2], x.shape[3]), size)
    done = np.empty((*x.shape[:2], *size), x.dtype)
    step = max(1, CHUNK_BYTES // max(1, 4 * x[0].nbytes, 4 * done[0].nbytes))
    for start in range(0, len(x), step):
        piece = torch.from_numpy(x[start : start + step, :, top : top + height, left : left + width].astype(np.float32))
        new = interpolate(piece, size, mode="bilinear", antialias=True, align_corners=False).numpy()
        done[start : start + step] = new if not values.discrete else np.round(new)
    return done


class Fitted:
    """Reader that converts another reader's images to `shape` `(C, H, W)`: channels, centre crop and size."""

    def __init__(self, reader: Reader, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, rows: np.ndarray) -> np.ndarray:
        channels, height, width = self.shape
        x = recoloured(self._reader.read(rows), channels, UINT8, "pictures")
        return resized(x, (height, width), UINT8)


def check_same_shape(parts: Mapping[str, np.ndarray], called: Mapping[str, str]) -> None:
    """Check that the examples of all parts have the same shape.

    Raises:
        DataError: if the shapes differ.
    """
    if len({x.shape[1:] for x in parts.values()}) > 1:
        found = abridged([f"{called[name]} {_by(x.shape[1:])}" for name, x in parts.items()])
        raise DataError(
            f"the splits hold examples of different shapes: {found}; give all examples the same shape",
            code="different-shapes",
        )


def _by(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
