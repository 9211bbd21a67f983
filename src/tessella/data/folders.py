"""Pictures in files, of any size and mode: surveyed, fitted, kept in memory when few and streamed when many."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from tessella.data.arrays import centre_box, natural
from tessella.data.found import WHOLE, Found, Part, Reader, abridged, name_keys, one_line, shown
from tessella.data.readers import Rows
from tessella.errors import DataError

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
    ".png": ("PNG",),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
    ".tga": ("TGA",),
    ".avif": ("AVIF",),
}
"""File endings that are taken for pictures, and what they may hold; no other decoder is ever run."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
SPLIT_FOLDERS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("valid", "validation", "val"), "valid"
)
DEFAULT_SIZE, LARGEST_UNASKED = (64, 64), 256
MEMORY_PICTURES, MEMORY_BYTES = 10_000, 512 << 20
SURVEYED = 20_000

Item = str | bytes
"""A picture file's path, or its content."""


@dataclass(frozen=True)
class Look:
    """What a file's header says: (height, width) upright and number of channels; or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    channels: int = 0
    sixteen_bit: bool = False
    trouble: str = ""


def folder(path: str, size: tuple[int, int] | None, channels: int | None) -> Found:
    """All pictures below a folder; its sub-folders are the classes, or the official splits.

    Raises:
        DataError: if there is not one readable picture.
    """
    names, notes = picture_files(path)
    parts = {PurePosixPath(name).parts[0].lower() for name in names}
    official = parts <= SPLIT_FOLDERS.keys() and "train" in {SPLIT_FOLDERS[p] for p in parts}
    where = [PurePosixPath(name).parts for name in names]
    splits = [SPLIT_FOLDERS[w[0].lower()] if official else WHOLE for w in where]
    inner = [w[1:] if official else w for w in where]
    labels: list[str | None] = [w[0] if len(w) > 1 else None for w in inner]
    if len(set(labels)) < 2:
        labels = [None] * len(labels)
    elif None in labels:
        notes.append(f"{labels.count(None)} pictures lie beside the sub-folders, so these are not taken for classes")
        labels = [None] * len(labels)
    classes = tuple(sorted({label for label in labels if label is not None}, key=natural))
    numbers = np.array([classes.index(label) for label in labels if label is not None]) if classes else None
    paths = np.array([os.path.join(path, name) for name in names])
    return pictures(
        partial(_path, paths), names, splits, numbers, classes, size=size, channels=channels, notes=notes, where=path
    )


def picture_files(path: str) -> tuple[list[str], list[str]]:
    """The picture files below a folder, as paths from there, in order; and notes on what else there is.

    Raises:
        DataError: if there are none.
    """
    names, others, closed = [], [], []
    for at, folders, files in os.walk(path, onerror=lambda error: closed.append(str(error.filename))):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        inside = os.path.relpath(at, path).replace(os.sep, "/")
        for file in sorted(f for f in files if not f.startswith(".")):
            name = file if inside == "." else f"{inside}/{file}"
            (names if os.path.splitext(file)[1].lower() in FORMATS else others).append(name)
    if not names:
        held = f"; it holds {abridged(others, 3)}" if others else ""
        raise DataError(f"no pictures in {path} ({', '.join(FORMATS)}){held}")
    notes = [f"{len(closed)} folders could not be opened: {abridged(closed)}"] if closed else []
    notes += [f"{len(others)} files that are not pictures were left: {abridged(others)}"] if others else []
    return names, notes


def pictures(
    item: Callable[[int], Item],
    names: Sequence[str],
    splits: Sequence[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    notes: list[str],
    where: str,
) -> Found:
    """Picture files, whatever they come from, fitted to one size and mode.

    Args:
        item: the file number i, `0 <= i < len(names)`.
        names: what to call them, and their identity in the division into splits.
        splits: the split that each belongs to.
        labels: `[N]`, or None.
        where: what to call the whole.

    Raises:
        DataError: if there is not one readable picture.
    """
    count = len(names)
    looked = np.unique(np.linspace(0, count - 1, min(count, SURVEYED)).astype(np.int64))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        looks = dict(zip(looked.tolist(), threads.map(lambda i: look(item(int(i))), looked), strict=True))
        good = [x for x in looks.values() if not x.trouble]
        trouble = {i: x.trouble for i, x in looks.items() if x.trouble}
        if good:
            size = size or _agreed_size(good, notes)
            channels = channels or _agreed_channels(good, notes)
            if any(x.sixteen_bit for x in good):
                number = sum(x.sixteen_bit for x in good)
                notes.append(f"{number} pictures of 16 bits were cut to their upper 8")
        kept = np.array([i for i in range(count) if i not in trouble], dtype=np.int64)
        reader: Reader | np.ndarray | None = None
        if good and size and channels:
            fit = (size, channels)
            reader = PictureReader(item, names, *fit)
            if len(kept) <= MEMORY_PICTURES and len(kept) * channels * size[0] * size[1] <= MEMORY_BYTES:
                done = list(threads.map(lambda i: _decoded_or_trouble(item(int(i)), *fit), kept))
                trouble |= {int(i): x for i, x in zip(kept, done, strict=True) if isinstance(x, str)}
                arrays = [x for x in done if not isinstance(x, str)]
                kept = np.array([i for i in kept if int(i) not in trouble], dtype=np.int64)
                reader = np.stack(arrays) if arrays else None
    if trouble:
        named = abridged([f"{names[i]} ({trouble[i]})" for i in sorted(trouble)])
        if reader is None:
            raise DataError(f"none of the {count} pictures in {where} can be read: {named}")
        notes.append(f"{len(trouble)} of {count} pictures could not be read and were skipped: {named}")
    if reader is None:
        raise DataError(f"no pictures in {where}")
    keys, of = name_keys(names), np.array(splits)
    parts = {}
    for name in dict.fromkeys(splits):
        chosen = np.flatnonzero(of[kept] == name)
        if len(chosen):
            rows = kept[chosen]
            x = reader[chosen] if isinstance(reader, np.ndarray) else Rows(reader, rows)
            parts[name] = Part(x, None if labels is None else labels[rows], keys[rows])
    return Found(parts, classes, notes, decoded=True)


def _agreed_size(looks: list[Look], notes: list[str]) -> tuple[int, int]:
    sizes = Counter(x.size for x in looks)
    only = next(iter(sizes))
    if len(sizes) == 1 and max(only) <= LARGEST_UNASKED:
        return only
    what = f"of {len(sizes)} sizes" if len(sizes) > 1 else f"of {only[1]}x{only[0]}"
    notes.append(f"pictures {what} are fitted to {DEFAULT_SIZE[1]}x{DEFAULT_SIZE[0]}; --size chooses another")
    return DEFAULT_SIZE


def _agreed_channels(looks: list[Look], notes: list[str]) -> int:
    found = Counter(x.channels for x in looks)
    colour, alpha = any(c >= 3 for c in found), any(c in (2, 4) for c in found)
    richest = (3 if colour else 1) + alpha
    if len(found) > 1:
        held = ", ".join(f"{found[c]} {MODES[c]}" for c in sorted(found))
        notes.append(f"pictures of mixed modes ({held}) are read as {MODES[richest]}")
    return richest


class PictureReader:
    """Picture files decoded, cropped at the centre and resized when asked for."""

    def __init__(self, item: Callable[[int], Item], names: Sequence[str], size: tuple[int, int], channels: int) -> None:
        self.shape: tuple[int, int, int] = (channels, *size)
        self._fit = (size, channels)
        self._item, self._names = item, names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, rows: np.ndarray) -> np.ndarray:
        done = np.empty((len(rows), *self.shape), np.uint8)
        for place in range(len(rows)):
            row = int(rows[place])
            picture = _decoded_or_trouble(self._item(row), *self._fit)
            if isinstance(picture, str):
                raise DataError(f"{shown(self._names[row])} cannot be read: {picture}")
            done[place] = picture
        return done


def look(item: Item) -> Look:
    """A picture's size and mode from its header alone."""
    try:
        with _opened(item) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lying on its side
                width, height = height, width
            return Look((height, width), _native(image), image.mode in SIXTEEN_BIT)
    except Exception as error:  # decoders of broken files raise nearly anything
        return Look(trouble=_reason(error))


def decoded(item: Item, size: tuple[int, int], channels: int) -> np.ndarray:
    """One picture as uint8 `[C, H, W]`, upright, cropped at its centre and resized; lost alpha is laid on white."""
    with _opened(item) as image:
        box = centre_box((image.size[1], image.size[0]), size)
        if min(box[2] / size[0], box[3] / size[1]) > 4:
            image.draft(None, (image.size[0] * 2 * size[0] // box[2], image.size[1] * 2 * size[0] // box[2]))
        upright = _eight_bit(ImageOps.exif_transpose(image))
    picture = upright.convert(MODES[_native(upright)])
    if picture.mode in ("LA", "RGBA") and channels in (1, 3):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert(MODES[channels])
    top, left, height, width = centre_box((picture.size[1], picture.size[0]), size)
    if picture.size != (size[1], size[0]):
        box = (left, top, left + width, top + height)
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.moveaxis(np.asarray(picture).reshape(*size, channels), -1, 0)


def _decoded_or_trouble(item: Item, size: tuple[int, int], channels: int) -> np.ndarray | str:
    try:
        return decoded(item, size, channels)
    except Exception as error:  # decoders of broken files raise nearly anything
        return _reason(error)


def _opened(item: Item) -> Image.Image:
    return Image.open(item if isinstance(item, str) else io.BytesIO(item), formats=_allowed())


@cache
def _allowed() -> list[str]:
    Image.init()
    return sorted({name for names in FORMATS.values() for name in names if name in Image.OPEN})


def _native(image: Image.Image) -> int:
    """The channels that hold all that a picture shows."""
    if image.mode == "F":
        raise ValueError("32-bit float pictures are not supported")
    clear = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    return (1 if image.mode in ("1", "L", "LA", "La", *SIXTEEN_BIT) else 3) + clear


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in SIXTEEN_BIT:
        return image
    return Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, PermissionError):
        return "no permission"
    return one_line(error, 60)


def _path(paths: np.ndarray, i: int) -> Item:
    return str(paths[i])
