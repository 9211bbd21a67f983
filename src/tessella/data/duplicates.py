"""Duplicate examples: found by content hashes, counted, and kept within one split."""

from __future__ import annotations

import hashlib
import os
import stat

import numpy as np

from tessella.core.schema import Schema
from tessella.data.raw import WHOLE, RawDataset, RawSplit, mixed
from tessella.kinds.base import kind_of

WHOLE_BYTES, PIECE, PIECES = 1 << 20, 1 << 16, 10
"""Files up to `WHOLE_BYTES` are hashed whole; larger ones by `PIECES` evenly spaced pieces of `PIECE` bytes."""

CHUNK_BYTES = 1 << 20


def file_hash(item: str | bytes) -> int:
    """Hash the content of a file to 64 bits.

    Args:
        item: path, or content. Of a file above `WHOLE_BYTES`, the length and `PIECES` pieces are hashed.

    Raises:
        OSError: if the file cannot be read, or is not a regular file.
    """
    if isinstance(item, bytes):
        return int.from_bytes(hashlib.blake2b(item, digest_size=8).digest(), "little")
    with open_regular(item) as file:
        length = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(digest_size=8)
        if length <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(length.to_bytes(8, "little"))
            for at in np.linspace(0, length - PIECE, PIECES).astype(np.int64).tolist():
                file.seek(at)
                digest.update(file.read(PIECE))
    return int.from_bytes(digest.digest(), "little")


def whole_hash(path: str) -> int:
    """Hash all bytes of a file to 64 bits."""
    with open_regular(path) as file:
        return int.from_bytes(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest(), "little")


def open_regular(path: str):
    """Open a regular file for reading. (A named pipe would block forever.)

    Raises:
        OSError: if the file is not a regular file, or cannot be opened.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def row_hashes(x: np.ndarray) -> np.ndarray:
    """Hash the bytes of each row of `[N, ...]` to uint64 `[N]`.

    The hash is `mixed(sum_j mixed(word_j ^ a_j) * b_j)` over the 8-byte words of the row.
    """
    count, width = len(x), x[0].nbytes
    words = -(-width // 8)
    salts = mixed(np.arange(words, dtype=np.uint64))
    factors = mixed(salts) | np.uint64(1)
    done = np.empty(count, np.uint64)
    step = max(1, CHUNK_BYTES // max(1, 8 * words))
    for start in range(0, count, step):
        piece = np.ascontiguousarray(x[start : start + step])
        padded = np.zeros((len(piece), 8 * words), np.uint8)
        padded[:, :width] = piece.reshape(len(piece), -1).view(np.uint8)
        done[start : start + step] = (mixed(padded.view(np.uint64) ^ salts) * factors).sum(1, dtype=np.uint64)
    return mixed(done)


def distinct_keys(content: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Make a distinct key `[N]` of each example from its content hash `[N]`, also for duplicates.

    Args:
        order: row numbers `[N]`; of duplicates, the first in this order keeps its content hash as key.
    """
    by = order[np.argsort(content[order], kind="stable")]
    ordered = content[by]
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    at = np.arange(len(by))
    nth = at - np.maximum.accumulate(np.where(starts, at, 0))
    keys = np.empty_like(content)
    keys[by] = np.where(nth == 0, ordered, mixed(ordered ^ mixed(nth.astype(np.uint64))))
    return keys


def alike(content: np.ndarray, x: np.ndarray, of: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return content hashes `[N]` of files that are equal if the files (`content`) or their decoded values are equal.

    Args:
        x: decoded examples of all files.
        of, part: for each example, the place of its file in `content`, and its number in the file.
    """
    decoded = np.zeros_like(content)
    np.add.at(decoded, of, mixed(row_hashes(x) ^ mixed(part.astype(np.uint64))))
    _, inverse = np.unique(decoded, return_inverse=True)
    least = np.full(int(inverse.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, inverse, content)
    return least[inverse]


def mark_duplicates(found: RawDataset, classes: tuple[str, ...], schema: Schema) -> None:
    """Find duplicate examples by content: set `content` and `groups` of all parts, and note the duplicates.

    Files of an official test or validation split are removed if training contains them too; validation files also if
    the test split contains them. Duplicate rows of arrays and tables are only counted.

    Args:
        classes: class names of the labels.
        schema: description of one example.
    """
    for part in found.parts.values():
        if part.content is None and isinstance(part.x, np.ndarray):
            part.content = row_hashes(part.x)
    if any(part.content is None for part in found.parts.values()):
        return
    kind = kind_of(schema)
    alone = found.schema is not None or kind.pixels  # an example by itself, not a row of an array
    what = "rows" if not alone else kind.examples if found.everything is None else "windows"
    for name, earlier in (("test", ("train",)), ("valid", ("train", "test"))):
        for other in earlier:
            if name in found.parts and other in found.parts:
                _keep_apart(found, name, other, what)
    for name, part in found.parts.items():
        _count_repeats(found, name, part, what, classes)
        if alone and part.groups is None:
            part.groups = _groups(part, found.by_content)


def _keep_apart(found: RawDataset, name: str, other: str, what: str) -> None:
    part, seen = found.parts[name], found.parts[other].content
    assert part.content is not None
    assert seen is not None
    same = np.isin(part.content, seen)
    number, where = int(same.sum()), "training" if other == "train" else other
    if not number:
        return
    if what in ("rows", "windows"):
        found.notes.append(f"{number:,} of {len(same):,} {name} {what} also occur in {where}")
        return
    said = f"{number:,} of {len(same):,} {name} {what} are byte-identical to {where} {what}"
    if not found.by_content:  # rows of arrays are known by their numbers
        found.notes.append(f"{said}: {name} results may be too good")
        return
    if number == len(same):
        del found.parts[name]
        found.origins.pop(name, None)
        found.notes.append(f"{said}: the {name} split is taken from training instead")
        return
    found.parts[name] = part.select(np.flatnonzero(~same))
    found.notes.append(f"{said}: they were removed from the {name} split")


def _count_repeats(found: RawDataset, name: str, part: RawSplit, what: str, classes: tuple[str, ...]) -> None:
    assert part.content is not None
    values, inverse, counts = np.unique(part.content, return_inverse=True, return_counts=True)
    repeats = len(part.content) - len(values)
    if not repeats:
        return
    of = f"{len(part.content):,} {what}" if name == WHOLE else f"{len(part.content):,} {name} {what}"
    if what in ("rows", "windows"):
        found.notes.append(f"{repeats:,} of {of} repeat an earlier one exactly")
        return
    said = f"{repeats:,} of {of} are byte-identical to others ({len(values):,} different ones)"
    found.notes.append(f"{said}: all copies are put in the same split")
    if part.labels is None:
        return
    low, high = np.full(len(values), np.iinfo(np.int64).max), np.full(len(values), np.iinfo(np.int64).min)
    np.minimum.at(low, inverse, part.labels)
    np.maximum.at(high, inverse, part.labels)
    torn = np.flatnonzero((counts > 1) & (low != high))
    if len(torn):
        first, second = (classes[int(end[torn[0]])] for end in (low, high))
        found.notes.append(
            f"{what} that occur in more than one class: {len(torn):,}; the first is in {first} and {second}"
        )


def _groups(part: RawSplit, by_content: bool) -> np.ndarray | None:
    assert part.content is not None
    _, first, inverse = np.unique(part.content, return_index=True, return_inverse=True)
    if len(first) == len(part.content):
        return None
    return part.content if by_content else part.example_ids[first][inverse]
