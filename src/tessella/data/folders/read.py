"""Pictures in files, of any size and mode: surveyed, fitted, kept in memory when few and streamed when many."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import TypeVar, overload

import numpy as np
from PIL import Image, ImageOps

from tessella.data.arrays import centre_box, natural
from tessella.data.folders.depth import DEEP, Depth, Range, extremes, how, rule, stored_values, to_bytes
from tessella.data.folders.duplicates import WHOLE_BYTES, alike, distinct_keys, file_hash, whole_hash
from tessella.data.folders.layout import arranged
from tessella.data.folders.readers import Rows
from tessella.data.raw import RawDataset, RawSplit, abridged, mixed, name_keys, one_line, shown
from tessella.foundation.errors import DataError
from tessella.foundation.notes import note

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), ("PPM",)),
    **dict.fromkeys((".png", ".apng"), ("PNG",)),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
    ".tga": ("TGA",),
    ".avif": ("AVIF",),
}
"""File endings that are taken for pictures, and what they may hold; no other decoder is ever run."""

SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
"""What systems put beside pictures, among it copies of them; passed over without a word."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
DEFAULT_SIZE, LARGEST_UNASKED = (64, 64), 256
MEMORY_PICTURES, MEMORY_BYTES = 10_000, 512 << 20
SURVEYED, MEASURED = 20_000, 2_000
"""Headers that are looked at, and pictures of more than 8 bits that are decoded for the range of their values."""
MOST_PIXELS = 1 << 26
"""A picture of more pixels than this is not opened: decoded it takes 4 bytes a pixel and as much for a copy."""
LARGE = 1 << 22
"""Pictures of more pixels are decoded one at a time, so that threads do not multiply what they take."""
AT_ONCE = 64

Item = str | bytes
"""A picture file's path, or its content."""
A = TypeVar("A")

_one_large = Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS is lower than its limit


@dataclass(frozen=True)
class ImageHeader:
    """What a file's header says: (height, width) upright and number of channels; or why it cannot be read.

    Attributes:
        deep: whether it is grey and of more than 8 bits or of floats, all of which can be read.
        cut: whether it is in colour and of more than 8 bits a channel, of which the decoder keeps the upper 8.
    """

    size: tuple[int, int] = (0, 0)
    channels: int = 0
    deep: bool = False
    cut: bool = False
    trouble: str = ""


def folder(path: str, size: tuple[int, int] | None, channels: int | None, depth: Depth | None = None) -> RawDataset:
    """All pictures below a folder; its sub-folders are the classes, or the official splits.

    Args:
        depth: the values of 16-bit, 32-bit and float pictures that become 0 and 255; None: found in the data.

    Raises:
        DataError: if there is not one readable picture.
    """
    names, notes = picture_files(path)
    layout = arranged(names)
    rows = [row for row, split in enumerate(layout.splits) if split]
    labels = [layout.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}, key=natural))
    place = {name: number for number, name in enumerate(classes)}
    numbers = np.array([-1 if label is None else place[label] for label in labels]) if classes else None
    found = pictures(
        partial(_path, os.path.abspath(path), Names([names[row] for row in rows])),
        Names([names[row] for row in rows]),
        [layout.splits[row] for row in rows],
        numbers,
        classes,
        size=size,
        channels=channels,
        notes=notes + layout.notes,
        where=path,
        depth=depth,
        by_content=True,
    )
    found.origins, found.labelling = layout.origins, layout.labelling
    return found


class Names(Sequence[str]):
    """Many paths in one compact array."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array([os.fsencode(name) for name in names], dtype=bytes)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names([os.fsdecode(name) for name in self._names[index].tolist()])
        return os.fsdecode(bytes(self._names[index]))


def picture_files(path: str) -> tuple[list[str], list[str]]:
    """The picture files below a folder, as paths from there, in order; and notes on what else there is.

    Links are followed, but not round in circles.

    Raises:
        DataError: if there are none.
    """
    seen = _Seen()
    seen.walk(path)
    if not seen.names:
        held = f"; it holds {abridged(seen.others, 3)}" if seen.others else ""
        held += "".join(f"; {note}" for note in seen.notes() if not seen.others or "not pictures" not in note)
        raise DataError(f"no pictures in {path} ({', '.join(FORMATS)}){held}")
    return seen.names, seen.notes()


class _Seen:
    """What a walk through folders has met."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.others: list[str] = []
        self._closed: list[str] = []
        self._broken: list[str] = []
        self._special: list[str] = []
        self._circles: list[str] = []
        self._visited: set[tuple[int, int]] = set()

    def walk(self, path: str) -> None:
        """Go through a folder, its files before its sub-folders, both in the order of their names."""
        waiting: list[tuple[str, str, frozenset[tuple[int, int]], bool]] = [(path, "", frozenset(), False)]
        while waiting:
            folder, inside, above, linked = waiting.pop()
            try:
                at = os.stat(folder)
                entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
            except OSError:
                self._closed.append(inside.rstrip("/") or path)
                continue
            here = (at.st_dev, at.st_ino)
            link = linked or (os.path.islink(folder) and bool(inside))
            if here in above or (linked and os.path.islink(folder) and here in self._visited):
                self._circles.append(inside.rstrip("/"))
                continue
            self._visited.add(here)
            inner = [entry for entry in entries if self._is_folder(entry, inside)]
            waiting += [(e.path, f"{inside}{e.name}/", above | {here}, link) for e in reversed(inner)]

    def _is_folder(self, entry: os.DirEntry[str], inside: str) -> bool:
        """Whether it is a folder to go through; if not, it is put where it belongs."""
        if entry.name.lower() in SYSTEM:
            return False
        name = inside + entry.name
        try:
            mode = entry.stat().st_mode
        except OSError:
            (self._broken if entry.is_symlink() else self._closed).append(name)
            return False
        if stat.S_ISDIR(mode):
            return True
        picture = os.path.splitext(entry.name)[1].lower() in FORMATS
        (self._special if not stat.S_ISREG(mode) else self.names if picture else self.others).append(name)
        return False

    def notes(self) -> list[str]:
        """What was passed over, a line each."""
        said = (
            (self._closed, "{} folders or files could not be opened: {}"),
            (self._broken, "{} links lead nowhere: {}"),
            (self._circles, "{} links lead back to a folder on the way to them and were not followed: {}"),
            (self._special, "{} named pipes, sockets or devices were passed over: {}"),
            (self.others, "{} files that are not pictures were left: {}"),
        )
        return [text.format(len(names), abridged(names)) for names, text in said if names]


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
    depth: Depth | None = None,
    by_content: bool = False,
) -> RawDataset:
    """Picture files, whatever they come from, fitted to one size and mode.

    Args:
        item: the file number i, `0 <= i < len(names)`.
        names: what to call them, and their identity in the division into splits.
        splits: the split that each belongs to.
        labels: `[N]`, or None; a split whose labels are all -1 has none.
        where: what to call the whole.
        depth: the values of 16-bit, 32-bit and float pictures that become 0 and 255; None: found in the data.
        by_content: whether their content is their identity instead of their names.

    Raises:
        DataError: if there is not one readable picture.
    """
    count = len(names)
    content = np.zeros(count, np.uint64)
    trouble: dict[int, str] = {}
    x: np.ndarray | None = None
    reader: PictureReader | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        looked = np.unique(np.linspace(0, count - 1, min(count, SURVEYED)).astype(np.int64))
        looks = dict(_each(threads, lambda i: look(item(i)), looked))
        trouble |= {i: x.trouble for i, x in looks.items() if x.trouble}
        for i, told in _each(threads, lambda i: _hash_or_trouble(item(i)), np.arange(count)):
            if isinstance(told, str):
                trouble.setdefault(i, told)
            else:
                content[i] = told
        good = [x for x in looks.values() if not x.trouble]
        kept = np.array([i for i in range(count) if i not in trouble], dtype=np.int64)
        if good:
            size = size or _agreed_size(good, notes)
            channels = channels or _agreed_channels(good, notes)
            _note_cut(good, notes)
            deep = np.array([i for i in kept.tolist() if i in looks and looks[i].deep], np.int64)
            if len(deep):
                some = deep[np.argsort(content[deep], kind="stable")[:MEASURED]]
                measured = [m for _, m in _each(threads, lambda i: _range_or_none(item(i)), some) if m is not None]
                depth = _agreed_depth(measured, len(deep), depth, notes)
            fit = (size, channels, depth)
            reader = PictureReader(item, names, *fit)
            if len(kept) and len(kept) <= MEMORY_PICTURES and len(kept) * channels * math.prod(size) <= MEMORY_BYTES:
                x = np.empty((len(kept), channels, *size), np.uint8)
                place = {i: at for at, i in enumerate(kept.tolist())}
                for i, done in _each(threads, lambda i: _decoded_or_trouble(item(i), *fit), kept):
                    if isinstance(done, str):
                        trouble[i] = done
                    else:
                        x[place[i]] = done
                read = np.array([i not in trouble for i in kept.tolist()])
                x, kept = (x, kept) if read.all() else (x[read], kept[read])
    if trouble:
        named = abridged([f"{names[i]} ({trouble[i]})" for i in sorted(trouble)])
        if not len(kept):
            raise DataError(f"none of the {count} pictures in {where} can be read: {named}")
        notes.append(f"{len(trouble)} of {count} pictures could not be read and were skipped: {named}")
    if reader is None or not len(kept):
        raise DataError(f"no pictures in {where}")
    parted = np.array(splits)[kept]
    told, keys = _told_apart(item, names, content[kept], kept, labels, by_content)
    if x is not None:
        told = alike(told, x)
    parts = {}
    for name in dict.fromkeys(splits):
        chosen = np.flatnonzero(parted == name)
        if len(chosen):
            rows = kept[chosen]
            of = None if labels is None or (labels[rows] == -1).all() else labels[rows]
            fitted = Rows(reader, rows) if x is None else x if len(chosen) == len(x) else x[chosen]
            parts[name] = RawSplit(fitted, of, keys[chosen], content=told[chosen])
    return RawDataset(parts, classes, notes, decoded=True, by_content=by_content, depth=depth)


def _each(threads: ThreadPoolExecutor, work: Callable[[int], A], rows: np.ndarray) -> Iterator[tuple[int, A]]:
    """What the work gives for each row, some at a time: a hundred thousand waiting calls would take much memory."""

    def some(at: np.ndarray) -> list[tuple[int, A]]:
        return [(i, work(i)) for i in at.tolist()]

    pieces = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    for start in range(0, len(pieces), AT_ONCE):
        for done in threads.map(some, pieces[start : start + AT_ONCE]):
            yield from done


def _told_apart(
    item: Callable[[int], Item],
    names: Sequence[str],
    content: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray | None,
    by_content: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """What each file holds, as a number, and its key, both `[N]`; files that only seemed the same are told apart."""
    values, first, inverse, counts = np.unique(content, return_index=True, return_inverse=True, return_counts=True)
    content = content.copy()
    for at in np.flatnonzero(counts[inverse] > 1).tolist():
        path = item(int(rows[at]))
        if isinstance(path, str) and os.path.getsize(path) > WHOLE_BYTES:
            original = item(int(rows[first[inverse[at]]]))
            if isinstance(original, str) and (whole := whole_hash(path)) != whole_hash(original):
                content[at] = mixed(values[inverse[at : at + 1]] ^ np.uint64(whole))[0]
    if not by_content:
        return content, name_keys(names)[rows]
    order = np.argsort(np.zeros(len(rows)) if labels is None else labels[rows], kind="stable")
    return content, distinct_keys(content, order)


def _note_cut(looks: list[ImageHeader], notes: list[str]) -> None:
    number = sum(x.cut for x in looks)
    if number:
        notes.append(f"{number} colour pictures of 16 bits were cut to their upper 8 by the decoder")


def _agreed_depth(measured: list[Range], count: int, depth: Depth | None, notes: list[str]) -> Depth | None:
    """The one rule by which all deep pictures of a data set become bytes, and a note of it."""
    if not measured:
        return depth
    low, high = min(m.low for m in measured), max(m.high for m in measured)
    floats = any(m.floats for m in measured)
    of = f"{count} pictures of {'floats' if floats else '32 bits' if any(m.wide for m in measured) else '16 bits'}"
    depth = depth or rule(low, high, floats=floats)
    if low < depth[0] or high > depth[1]:
        notes.append(f"{of} hold values from {low:.6g} to {high:.6g}: cut to {depth[0]:.6g} ... {depth[1]:.6g}")
    notes.append(f"{of} {how(depth)}" + ("" if len(measured) == count else f"; measured on {len(measured)} of them"))
    odd = sum(m.odd for m in measured)
    if odd:
        notes.append(f"{odd} of these hold values that are not finite (NaN or infinite): NaN became 0")
    return depth


def _agreed_size(looks: list[ImageHeader], notes: list[str]) -> tuple[int, int]:
    sizes = Counter(x.size for x in looks)
    only = next(iter(sizes))
    if len(sizes) == 1 and max(only) <= LARGEST_UNASKED:
        return only
    what = f"of {len(sizes)} sizes" if len(sizes) > 1 else f"of {only[1]}x{only[0]}"
    notes.append(f"pictures {what} are fitted to {DEFAULT_SIZE[1]}x{DEFAULT_SIZE[0]}; --size chooses another")
    return DEFAULT_SIZE


def _agreed_channels(looks: list[ImageHeader], notes: list[str]) -> int:
    found = Counter(x.channels for x in looks)
    colour, alpha = any(c >= 3 for c in found), any(c in (2, 4) for c in found)
    richest = (3 if colour else 1) + alpha
    if len(found) > 1:
        held = ", ".join(f"{found[c]} {MODES[c]}" for c in sorted(found))
        notes.append(f"pictures of mixed modes ({held}) are read as {MODES[richest]}")
    return richest


class PictureReader:
    """Picture files decoded, cropped at the centre and resized when asked for.

    Args:
        depth: the values of 16-bit, 32-bit and float pictures that become 0 and 255; None: by each one's own range.
    """

    def __init__(
        self,
        item: Callable[[int], Item],
        names: Sequence[str],
        size: tuple[int, int],
        channels: int,
        depth: Depth | None = None,
    ) -> None:
        self.shape: tuple[int, int, int] = (channels, *size)
        self._fit = (size, channels, depth)
        self._item, self._names = item, names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, rows: np.ndarray) -> np.ndarray:
        done: np.ndarray | None = None
        for place, row in enumerate(rows.tolist()):
            picture = _decoded_or_trouble(self._item(row), *self._fit)
            if isinstance(picture, str):
                name = str(self._names[row])
                raise DataError(
                    f"{shown(name)} cannot be read: {picture}", code="unreadable", name=name, reason=picture
                )
            done = np.empty((len(rows), *self.shape), np.uint8) if done is None else done
            done[place] = picture
        return np.empty((0, *self.shape), np.uint8) if done is None else done


def look(item: Item) -> ImageHeader:
    """Read a picture's size and mode, not its values."""
    try:
        with opened_picture(item) as image:
            deep, cut = image.mode in DEEP, _is_cut(image)
            with _one_large if math.prod(image.size) > LARGE else nullcontext():  # of a PNG all is read for its Exif
                return ImageHeader(_upright_size(image), _native(image), deep, cut)
    except Exception as error:  # decoders of broken files raise nearly anything
        return ImageHeader(trouble=_reason(error))


def decoded(item: Item, size: tuple[int, int], channels: int, depth: Depth | None = None) -> np.ndarray:
    """One picture as uint8 `[C, H, W]`, upright, cropped at its centre and resized; lost alpha is laid on white.

    Args:
        depth: the values of a 16-bit, 32-bit or float picture that become 0 and 255; None: by its own range, said in a
            warning.
    """
    with opened_picture(item) as image:
        box = centre_box((image.size[1], image.size[0]), size)
        if min(box[2] / size[0], box[3] / size[1]) > 4:
            image.draft(None, (image.size[0] * 2 * size[0] // box[2], image.size[1] * 2 * size[0] // box[2]))
        with _one_large if math.prod(image.size) > LARGE else nullcontext():
            return _fitted(image, size, channels, depth)


def _fitted(image: Image.Image, size: tuple[int, int], channels: int, depth: Depth | None) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in DEEP:
        values = stored_values(image)
        if depth is None:
            own = extremes(values)
            depth = rule(own.low, own.high, floats=own.floats)
            note(f"values of more than 8 bits {how(depth)}: one picture by itself")
        image = Image.fromarray(to_bytes(values, depth))
    picture = _as_mode(image, MODES[_native(image)])
    if picture.mode in ("LA", "RGBA") and channels in (1, 3):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = _as_mode(picture, MODES[channels])
    top, left, height, width = centre_box((picture.size[1], picture.size[0]), size)
    if picture.size != (size[1], size[0]):
        box = (left, top, left + width, top + height)
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.moveaxis(np.asarray(picture).reshape(*size, channels), -1, 0)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def _decoded_or_trouble(
    item: Item, size: tuple[int, int], channels: int, depth: Depth | None = None
) -> np.ndarray | str:
    try:
        return decoded(item, size, channels, depth)
    except Exception as error:  # decoders of broken files raise nearly anything
        return _reason(error)


def _range_or_none(item: Item) -> Range | None:
    try:
        with opened_picture(item) as image:
            return extremes(stored_values(image))
    except Exception:  # said when it is decoded
        return None


def _hash_or_trouble(item: Item) -> int | str:
    try:
        return file_hash(item)
    except OSError as error:
        return _reason(error)


@contextmanager
def opened_picture(item: Item) -> Iterator[Image.Image]:
    """Open a picture with its header read.

    It is opened as a stream: Pillow maps a file of that name into memory, and by the size as put upright, which garbles
    uncompressed TIFFs that lie on their side.

    Raises:
        ValueError: if its header promises too many pixels.
        OSError: if it is none, or no regular file.
    """
    if isinstance(item, str) and not stat.S_ISREG(os.stat(item).st_mode):
        raise OSError("no regular file")
    with open(item, "rb") if isinstance(item, str) else io.BytesIO(item) as stream:
        try:
            image = Image.open(stream, formats=picture_formats())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = re.search("[0-9]+", str(error))
            raise _too_large(int(pixels[0]) if pixels else MOST_PIXELS) from None
        with image:
            if math.prod(image.size) > MOST_PIXELS:
                raise _too_large(math.prod(image.size), image.size)
            yield image


def _too_large(pixels: int, size: tuple[int, int] | None = None) -> ValueError:
    of = f" ({size[0]} x {size[1]})" if size else ""
    most = MOST_PIXELS // 10**6
    return ValueError(f"{pixels / 1e6:,.0f} million pixels{of}, and at most {most} are read: make it smaller")


@cache
def picture_formats() -> list[str]:
    """Name Pillow's decoders of the formats that are read."""
    Image.init()
    return sorted({name for names in FORMATS.values() for name in names if name in Image.OPEN})


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture put upright."""
    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow say the size upright, others as stored
        width, height = image.tag_v2[256], image.tag_v2[257]  # pyright: ignore[reportAttributeAccessIssue]
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # lying on its side
        width, height = height, width
    return height, width


def _native(image: Image.Image) -> int:
    """The channels that hold all that a picture shows."""
    clear = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    return (1 if image.mode in ("1", "L", "LA", "La", *DEEP) else 3) + clear


def _is_cut(image: Image.Image) -> bool:
    """Whether it has more than 8 bits a channel and the decoder keeps 8."""
    tiles = getattr(image, "tile", ())
    return image.mode not in DEEP and any(";16" in str(tile[3]) or ";12" in str(tile[3]) for tile in tiles)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, PermissionError):
        return "no permission"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return one_line(error, 90)


def _path(home: str, names: Names, i: int) -> Item:
    return os.path.join(home, names[i])
