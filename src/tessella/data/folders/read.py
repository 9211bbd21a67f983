"""Image files of any size and mode, converted to one: kept in memory when few, streamed when many."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from tessella.data.folders.decode import (
    MODES,
    Depth,
    DepthRange,
    ImageHeader,
    Item,
    decoded_or_trouble,
    depth_range,
    depth_rule,
    depth_words,
    read_image_header,
    trouble_of,
)

from tessella.data.arrays import natural
from tessella.data.duplicates import WHOLE_BYTES, alike, distinct_keys, file_hash, whole_hash
from tessella.data.folders.layout import Names, arranged, picture_files
from tessella.data.raw import RawDataset, RawSplit, SelectedRows, mixed, name_keys
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged, shown

DEFAULT_SIZE, LARGEST_UNASKED = (64, 64), 256
MEMORY_PICTURES, MEMORY_BYTES = 10_000, 512 << 20
SURVEYED, MEASURED = 20_000, 2_000
"""Most headers that are read in advance, and most deep images that are decoded to measure their range."""
AT_ONCE = 64

A = TypeVar("A")


def folder(path: str, size: tuple[int, int] | None, channels: int | None, depth: Depth | None = None) -> RawDataset:
    """Read all images below a folder, whose sub-folders are classes or official splits.

    Args:
        depth: the two values of 16-bit, 32-bit and float images that become 0 and 255; None to measure them.

    Raises:
        DataError: if no image can be read.
    """
    names, notes = picture_files(path)
    layout = arranged(names)
    rows = [row for row, split in enumerate(layout.splits) if split]
    labels = [layout.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}, key=natural))
    place = {name: number for number, name in enumerate(classes)}
    kept = Names([names[row] for row in rows])
    found = pictures(
        partial(_path, os.path.abspath(path), kept),
        kept,
        [layout.splits[row] for row in rows],
        np.array([-1 if label is None else place[label] for label in labels]) if classes else None,
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


def _path(home: str, names: Names, i: int) -> Item:
    return os.path.join(home, names[i])


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
    """Read image files from any source, converted to one size and mode.

    Args:
        item: returns file number i, `0 <= i < len(names)`.
        names: names of the files, from which their keys are made.
        splits: split of each file.
        labels: class numbers `[N]`, or None; a split with only -1 has no labels.
        where: name of the source, for messages.
        depth: the two values of 16-bit, 32-bit and float images that become 0 and 255; None to measure them.
        by_content: make the keys from the content of the files, not from their names.

    Raises:
        DataError: if no image can be read.
    """
    count = len(names)
    content = np.zeros(count, np.uint64)
    x: np.ndarray | None = None
    reader: PictureReader | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        surveyed = np.unique(np.linspace(0, count - 1, min(count, SURVEYED)).astype(np.int64))
        headers = dict(_each(threads, lambda i: read_image_header(item(i)), surveyed))
        trouble = {i: header.trouble for i, header in headers.items() if header.trouble}
        for i, found in _each(threads, lambda i: _hash_or_trouble(item(i)), np.arange(count)):
            if isinstance(found, str):
                trouble.setdefault(i, found)
            else:
                content[i] = found
        good = [header for header in headers.values() if not header.trouble]
        kept = np.array([i for i in range(count) if i not in trouble], dtype=np.int64)
        if good:
            size = size or _agreed_size(good, notes)
            channels = channels or _agreed_channels(good, notes)
            if cut := sum(header.cut for header in good):
                notes.append(f"{cut} colour pictures of 16 bits per channel were reduced to the upper 8 bits")
            deep = np.array([i for i in kept.tolist() if i in headers and headers[i].deep], np.int64)
            if len(deep):
                some = deep[np.argsort(content[deep], kind="stable")[:MEASURED]]
                ranges = [m for _, m in _each(threads, lambda i: depth_range(item(i)), some) if m is not None]
                depth = _agreed_depth(ranges, len(deep), depth, notes)
            reader = PictureReader(item, names, size, channels, depth)
            if len(kept) and len(kept) <= MEMORY_PICTURES and len(kept) * math.prod(reader.shape) <= MEMORY_BYTES:
                x = np.empty((len(kept), *reader.shape), np.uint8)
                place = {i: at for at, i in enumerate(kept.tolist())}
                for i, done in _each(threads, reader.picture, kept):
                    if isinstance(done, str):
                        trouble[i] = done
                    else:
                        x[place[i]] = done
                read = np.array([i not in trouble for i in kept.tolist()])
                x, kept = (x, kept) if read.all() else (x[read], kept[read])
    if trouble:
        named = abridged([f"{names[i]} ({trouble[i]})" for i in sorted(trouble)])
        if not len(kept):
            raise DataError(
                f"none of the {count} pictures in {where} can be read: {named}", code="nothing-readable", count=count
            )
        notes.append(f"{len(trouble)} of {count} pictures could not be read and were skipped: {named}")
    if reader is None or not len(kept):
        raise DataError(f"{where} has no pictures", code="no-pictures")
    parted = np.array(splits)[kept]
    content, keys = _identified(item, names, content[kept], kept, labels, by_content)
    if x is not None:
        content = alike(content, x)
    parts = {}
    for name in dict.fromkeys(splits):
        chosen = np.flatnonzero(parted == name)
        if len(chosen):
            rows = kept[chosen]
            of = None if labels is None or (labels[rows] == -1).all() else labels[rows]
            fitted = SelectedRows(reader, rows) if x is None else x if len(chosen) == len(x) else x[chosen]
            parts[name] = RawSplit(fitted, of, keys[chosen], content=content[chosen])
    return RawDataset(parts, classes, notes, decoded=True, by_content=by_content, depth=depth)


def _each(threads: ThreadPoolExecutor, work: Callable[[int], A], rows: np.ndarray) -> Iterator[tuple[int, A]]:
    """Call `work` for each row in threads, in portions: very many waiting calls would take much memory."""

    def some(at: np.ndarray) -> list[tuple[int, A]]:
        return [(i, work(i)) for i in at.tolist()]

    pieces = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    for start in range(0, len(pieces), AT_ONCE):
        for done in threads.map(some, pieces[start : start + AT_ONCE]):
            yield from done


def _hash_or_trouble(item: Item) -> int | str:
    try:
        return file_hash(item)
    except OSError as error:
        return trouble_of(error)


def _identified(
    item: Callable[[int], Item],
    names: Sequence[str],
    content: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray | None,
    by_content: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return content hashes and keys of the files, both `[N]`. Large files with equal hashes are hashed whole."""
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


def _agreed_depth(ranges: list[DepthRange], count: int, depth: Depth | None, notes: list[str]) -> Depth | None:
    """Choose and note the rule that converts all deep images of a data set to bytes."""
    if not ranges:
        return depth
    depth = depth or depth_rule(ranges)
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    bits = "floats" if any(r.floats for r in ranges) else "32 bits" if any(r.wide for r in ranges) else "16 bits"
    of = f"{count} pictures of {bits}"
    if low < depth[0] or high > depth[1]:
        notes.append(f"{of} hold values from {low:.6g} to {high:.6g}: clipped to {depth[0]:.6g} ... {depth[1]:.6g}")
    notes.append(
        f"{of} {depth_words(depth)}" + ("" if len(ranges) == count else f"; measured on {len(ranges)} of them")
    )
    if odd := sum(r.odd for r in ranges):
        notes.append(f"{odd} of these hold values that are NaN or infinite: NaN became 0")
    return depth


def _agreed_size(headers: list[ImageHeader], notes: list[str]) -> tuple[int, int]:
    sizes = Counter(header.size for header in headers)
    only = next(iter(sizes))
    if len(sizes) == 1 and max(only) <= LARGEST_UNASKED:
        return only
    what = f"of {len(sizes)} sizes" if len(sizes) > 1 else f"of {only[1]}x{only[0]}"
    height, width = DEFAULT_SIZE
    notes.append(f"pictures {what} are resized to {width}x{height}; change this with {option('size')}")
    return DEFAULT_SIZE


def _agreed_channels(headers: list[ImageHeader], notes: list[str]) -> int:
    found = Counter(header.channels for header in headers)
    colour, alpha = any(c >= 3 for c in found), any(c in (2, 4) for c in found)
    richest = (3 if colour else 1) + alpha
    if len(found) > 1:
        held = ", ".join(f"{found[c]} {MODES[c]}" for c in sorted(found))
        notes.append(f"pictures of different modes ({held}) are converted to {MODES[richest]}")
    return richest


class PictureReader:
    """Reader that decodes, crops and resizes image files on access.

    Args:
        depth: the two values of 16-bit, 32-bit and float images that become 0 and 255; None for the range of each
            image.
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
        self._item, self._names, self._depth = item, names, depth

    def __len__(self) -> int:
        return len(self._names)

    def picture(self, row: int) -> np.ndarray | str:
        """Decode one image `[C, H, W]`, or return why it cannot be decoded."""
        return decoded_or_trouble(self._item(row), self.shape[1:], self.shape[0], self._depth)

    def read(self, rows: np.ndarray) -> np.ndarray:
        done = None
        for place, row in enumerate(rows.tolist()):
            picture = self.picture(row)
            if isinstance(picture, str):
                name = str(self._names[row])
                raise DataError(
                    f"{shown(name)} cannot be read: {picture}", code="unreadable", name=name, reason=picture
                )
            done = np.empty((len(rows), *self.shape), np.uint8) if done is None else done  # it fits: one was decoded
            done[place] = picture
        return np.empty((0, *self.shape), np.uint8) if done is None else done
