"""Arrays as they come, made into examples: shape, type, labels, size and channels. Imports torch only to resize."""

from __future__ import annotations

import re

import numpy as np

from tessella.data.found import abridged
from tessella.errors import DataError
from tessella.records import Values

CHANNELS = (1, 2, 3, 4)
CHUNK_BYTES = 64 << 20


def natural(text: str) -> tuple:
    """A key that sorts `9` before `10`."""
    pieces = re.split(r"([0-9]{1,4000})", text)  # ASCII digits: "①".isdigit() holds, and it is no number to int()
    return tuple((0, int(piece), "") if i % 2 else (1, 0, piece) for i, piece in enumerate(pieces))


def examples(x: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """An array of examples as `[N, D]` or `[N, C, H, W]`.

    Raises:
        DataError: if it is empty, holds no numbers, or has a shape that is neither vectors nor pictures.
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"{name} holds {x.dtype} and not numbers: convert it to numbers first")
    if x.size == 0:
        raise DataError(f"{name} is empty, of shape {_by(x.shape)}: give at least one example")
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    fitting = [axis for axis in (3, 1) if x.ndim == 4 and x.shape[axis] in CHANNELS]
    if fitting:
        axis = next((axis for axis in fitting if x.shape[axis] in (1, 3)), fitting[0])  # alpha is rare
        if len(fitting) > 1:
            order = "height, width, channels" if axis == 3 else "channels, height, width"
            notes.append(f"{name}: shape {_by(x.shape)} taken as (examples, {order})")
        return np.ascontiguousarray(np.moveaxis(x, axis, 1))
    raise DataError(
        f"{name} has shape {_by(x.shape)}: give vectors (N, D) or pictures (N, H, W), (N, H, W, C) or (N, C, H, W) "
        "with 1 to 4 channels"
    )


def stored(parts: dict[str, np.ndarray], notes: list[str]) -> tuple[dict[str, np.ndarray], Values]:
    """Arrays of one data set in the type that they are stored in, uint8 or float32, and what their values are.

    Raises:
        DataError: if values are not finite.
    """
    kinds = {x.dtype.kind for x in parts.values()}
    if "f" not in kinds:
        low = min(int(x.min()) for x in parts.values())
        high = max(int(x.max()) for x in parts.values())
        if low >= 0 and high <= 255:
            if "i" in kinds or any(x.dtype.itemsize > 1 for x in parts.values()):
                notes.append(f"whole numbers from {low} to {high} kept as bytes")
            done = {name: x.view(np.uint8) if x.dtype == bool else _cast(x, np.uint8) for name, x in parts.items()}
            return done, "binary" if high == 1 or kinds == {"b"} else "bytes"
        notes.append(f"whole numbers from {low} to {high} do not fit in a byte: kept as real values")
    done = {name: _cast(x, np.float32) for name, x in parts.items()}
    for name, x in done.items():
        _check_finite(x, name)
    return done, "real"


def _cast(x: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)


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
            f"{name} has {bad} values that are NaN or infinite in 32 bits, the first in example {first}: "
            "remove or replace them"
        )


def moments(x: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
    """Mean and standard deviation of rows of `[N, D]` (a feature) or `[N, C, H, W]` (a channel), lowest and highest.

    A constant feature gets the scale 1.
    """
    axes = (0, *range(2, x.ndim))
    step = max(1, CHUNK_BYTES // max(1, x[0].nbytes))
    pieces = [rows[i : i + step] for i in range(0, len(rows), step)]
    per_row = x[0].size // x.shape[1]
    total = len(rows) * per_row
    shape = (1, -1, *(1,) * (x.ndim - 2))
    mean = sum(x[p].sum(axes, dtype=np.float64) for p in pieces) / total
    variance = sum(((x[p] - mean.reshape(shape)) ** 2).sum(axes, dtype=np.float64) for p in pieces) / total
    low, high = min(float(x[p].min()) for p in pieces), max(float(x[p].max()) for p in pieces)
    scale = np.sqrt(variance)
    scale = np.where(scale > 1e-6 * np.maximum(1e-6, np.abs(mean)), scale, 1.0)
    return tuple(map(float, mean)), tuple(map(float, scale)), low, high


def label_numbers(
    parts: dict[str, np.ndarray | None], counts: dict[str, int], classes: tuple[str, ...], notes: list[str]
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Labels of any type as int64 `[N]` in `0 ... K - 1`, and the K names.

    Raises:
        DataError: if there are more or fewer labels than examples, or a label has no name among `classes`.
    """
    given: dict[str, np.ndarray] = {}
    for name, y in parts.items():
        if y is None:
            continue
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.shape != (counts[name],):
            raise DataError(
                f"the labels of {name} have shape {_by(y.shape)} for {counts[name]} examples: give one label an example"
            )
        if y.dtype.kind not in "buifSU":
            raise DataError(f"the labels of {name} are of type {y.dtype}: give numbers or texts")
        if y.dtype.kind == "f" and not np.all(np.isfinite(y) & (y == np.round(y))):
            notes.append(f"the labels of {name} are not whole numbers, so they are no classes: left out")
            return dict.fromkeys(parts), ()
        given[name] = np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y
    if not given:
        return dict.fromkeys(parts), ()
    notes.extend(f"{name} has no labels" for name in parts if name not in given)
    if classes:
        low, high = min(int(y.min()) for y in given.values()), max(int(y.max()) for y in given.values())
        if low < 0 or high >= len(classes):
            raise DataError(f"labels run from {low} to {high}, but {len(classes)} classes are named")
        return {name: None if y is None else given[name].astype(np.int64) for name, y in parts.items()}, classes
    found = {str(int(v)) if isinstance(v, float) else str(v) for y in given.values() for v in np.unique(y).tolist()}
    names = tuple(sorted(found, key=_numeric))
    return {name: _numbered(given.get(name), names) for name in parts}, names


def _numeric(name: str) -> tuple:
    return (0, int(name), ()) if re.fullmatch(r"-?[0-9]{1,4000}", name) else (1, 0, natural(name))


def _numbered(y: np.ndarray | None, names: tuple[str, ...]) -> np.ndarray | None:
    if y is None:
        return None
    place = {name: number for number, name in enumerate(names)}
    values, inverse = np.unique(y, return_inverse=True)
    texts = [str(int(v)) if isinstance(v, float) else str(v) for v in values.tolist()]
    return np.array([place[text] for text in texts], dtype=np.int64)[inverse.reshape(-1)]


def recoloured(x: np.ndarray, channels: int, values: Values, name: str) -> np.ndarray:
    """`[N, C, H, W]` with another number of channels: grey is luma (ITU-R 601), alpha is laid on white or opaque.

    Raises:
        DataError: for the alpha of real values, whose opaque value nobody knows.
    """
    have = x.shape[1]
    if have == channels:
        return x
    alpha_in, alpha_out = have in (2, 4), channels in (2, 4)
    if values == "real" and (alpha_in or alpha_out):
        raise DataError(f"{name}: real values have no known opacity: convert them to {channels} channels first")
    top = {"bytes": 255.0, "binary": 1.0, "real": 1.0}[values]
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
        done[start : start + step] = colour if values == "real" else np.round(colour)
    return done


def resized(x: np.ndarray, size: tuple[int, int], values: Values) -> np.ndarray:
    """`[N, C, H, W]` cropped at its centre to the aspect of `size` (height, width) and resampled to it."""
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
        done[start : start + step] = new if values == "real" else np.round(new)
    return done


def centre_box(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box of aspect `want` in a picture of (height, width) `have`: top, left, height, width."""
    height = min(have[0], max(1, round(have[1] * want[0] / want[1])))
    width = min(have[1], max(1, round(have[0] * want[1] / want[0])))
    return (have[0] - height) // 2, (have[1] - width) // 2, height, width


def same_shape(parts: dict[str, np.ndarray]) -> tuple[int, ...]:
    """The shape of an example, the same in all parts.

    Raises:
        DataError: if it is not.
    """
    shapes = {name: x.shape[1:] for name, x in parts.items()}
    if len(set(shapes.values())) > 1:
        found = abridged([f"{name} {_by(shape)}" for name, shape in shapes.items()])
        raise DataError(f"the splits hold examples of different shapes: {found}")
    return next(iter(shapes.values()))


def _by(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
