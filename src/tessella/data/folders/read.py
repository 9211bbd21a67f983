"""Files that hold one example each, converted to one schema: kept in memory when few, streamed when many."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from tessella.data.arrays import natural
from tessella.data.duplicates import WHOLE_BYTES, alike, distinct_keys, file_hash, whole_hash
from tessella.data.folders.labels import TABLES, is_pattern, set_labels
from tessella.data.folders.layout import Names, arranged, example_files
from tessella.data.raw import RawDataset, RawSplit, SelectedRows, mixed, name_keys
from tessella.foundation.errors import DataError
from tessella.foundation.text import abridged
from tessella.kinds.base import File, Kind, ReadOptions, reader_of

MEMORY_FILES, MEMORY_BYTES = 10_000, 512 << 20
"""Most files, and most bytes of their examples, that are kept in memory."""
SURVEYED = 20_000
"""Most headers that are read in advance."""
AT_ONCE = 64

A = TypeVar("A")


def folder(path: str, options: ReadOptions, label: str | None = None) -> RawDataset:
    """Read all examples below a folder, whose sub-folders are classes or official splits.

    Args:
        label: pattern of the file names, or column of a CSV file in the folder, with the classes instead.

    Raises:
        DataError: if no file can be read, or gets a class by `label`.
    """
    names, kind, notes = example_files(path, () if label is None or is_pattern(label) else TABLES)
    layout = arranged(names, kind, by_folder=label is None)
    if label is not None:
        set_labels(layout, names, label, path, reader_of(kind).examples, known=options.like is not None)
    rows = [row for row, split in enumerate(layout.splits) if split]
    labels = [layout.labels[row] for row in rows]
    classes = tuple(sorted({label for label in labels if label is not None}, key=natural))
    place = {name: number for number, name in enumerate(classes)}
    kept = Names([names[row] for row in rows])
    found = read_files(
        kind,
        partial(_path, os.path.abspath(path), kept),
        kept,
        [layout.splits[row] for row in rows],
        np.array([-1 if label is None else place[label] for label in labels]) if classes else None,
        classes,
        options=options,
        notes=notes + layout.notes,
        where=path,
        by_content=True,
        factors={name: np.array(values)[rows] for name, values in layout.factors.items()},
    )
    found.origins, found.labelling = layout.origins, layout.labelling
    return found


def _path(home: str, names: Names, i: int) -> File:
    return os.path.join(home, names[i])


def read_files(
    kind: type[Kind],
    file: Callable[[int], File],
    names: Sequence[str],
    splits: Sequence[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    *,
    options: ReadOptions,
    notes: list[str],
    where: str,
    by_content: bool = False,
    factors: Mapping[str, np.ndarray] | None = None,
) -> RawDataset:
    """Read files of one kind from any source, converted to one schema.

    Args:
        file: returns file number i, `0 <= i < len(names)`.
        names: names of the files, from which their keys are made.
        splits: split of each file.
        labels: class numbers `[N]`, or None; a split with only -1 has no labels.
        where: name of the source, for messages.
        by_content: make the keys from the content of the files, not from their names.
        factors: values of what else is known of the files, by name, each `[N]`.

    Raises:
        DataError: if no file can be read.
    """
    files, count = reader_of(kind), len(names)
    content = np.zeros(count, np.uint64)
    x: np.ndarray | None = None
    reader: FilesOnAccess | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        most = count if files.windowed else min(count, SURVEYED)
        surveyed = np.unique(np.linspace(0, count - 1, most).astype(np.int64))
        headers = dict(_each(threads, lambda i: files.header(file(i)), surveyed))
        trouble = {i: found.trouble for i, found in headers.items() if found.trouble}
        for i, found in _each(threads, lambda i: _hash_or_error(file(i)), np.arange(count)):
            if isinstance(found, OSError):
                trouble.setdefault(i, files.trouble(found))
            else:
                content[i] = found
        kept = np.array([i for i in range(count) if i not in trouble], dtype=np.int64)
        by_hash = kept[np.argsort(content[kept], kind="stable")].tolist()
        if good := [(partial(file, i), headers[i]) for i in by_hash if i in headers]:
            schema = files.schema(good, options, notes)
            parts = np.array([files.parts(headers[i], schema) if files.windowed else 1 for i in kept.tolist()])
            if files.windowed and options.whole_windows:
                parts = np.array([files.length(headers[i], schema) // schema.spatial[0] for i in kept.tolist()])
            reader = FilesOnAccess(kind(schema), file, names, kept, parts)
            if len(reader) <= MEMORY_FILES and len(reader) * reader.nbytes <= MEMORY_BYTES:
                x = np.empty((len(reader), *reader.shape), reader.dtype)
                for row, done in _each(threads, reader.example_or_error, np.arange(len(reader))):
                    if isinstance(done, DataError):
                        trouble[int(reader.files[row])] = done.parameters["reason"]
                    else:
                        x[row] = done
                fine = np.array([i not in trouble for i in kept.tolist()])
                if not fine.all():
                    x = x[np.repeat(fine, parts)]
                    kept, reader = kept[fine], FilesOnAccess(kind(schema), file, names, kept[fine], parts[fine])
    if trouble:
        named = abridged([f"{names[i]} ({trouble[i]})" for i in sorted(trouble)])
        if not len(kept):
            raise DataError(
                f"none of the {count} {files.examples} in {where} can be read: {named}",
                code="nothing-readable",
                count=count,
            )
        notes.append(f"{len(trouble)} of {count} {files.examples} could not be read and were skipped: {named}")
    if reader is None or not len(kept):
        raise DataError(f"{where} has no {files.examples}", code="no-pictures")
    content, keys = _identified(file, names, content[kept], kept, labels, by_content)
    at, part = np.searchsorted(kept, reader.files), reader.parts
    if x is not None:
        content = alike(content, x, at, part)
    of_example = _of_part(content[at], part)
    keys, groups = _of_part(keys[at], part), content[at] if part.any() else None
    parted, lengths = np.array(splits)[reader.files], None
    if reader.schema.lengths:
        (window,) = reader.schema.spatial
        whole = np.array([0 if i in trouble else files.length(headers[i], reader.schema) for i in range(count)])
        lengths = np.clip(whole[reader.files] - part * window, 1, window)
    found = RawDataset({}, classes, notes, schema=reader.schema, by_content=by_content)
    for name in dict.fromkeys(splits):
        chosen = np.flatnonzero(parted == name)
        if len(chosen):
            holders = reader.files[chosen]
            of = None if labels is None else labels[holders]
            found.parts[name] = RawSplit(
                SelectedRows(reader, chosen) if x is None else x if len(chosen) == len(x) else x[chosen],
                None if of is None or (of == -1).all() else of,
                keys[chosen],
                None if groups is None else groups[chosen],
                {name: values[holders] for name, values in (factors or {}).items()},
                content=of_example[chosen],
                continued=_continued(holders, part[chosen]) if part.any() else None,
                lengths=None if lengths is None else lengths[chosen],
            )
    known = [(partial(file, i), headers[i]) for i in kept.tolist() if i in headers]
    found.measure_files = partial(files.facts, known, reader.schema)
    return found


def _each(threads: ThreadPoolExecutor, work: Callable[[int], A], rows: np.ndarray) -> Iterator[tuple[int, A]]:
    """Call `work` for each row in threads, in portions: very many waiting calls would take much memory."""

    def some(at: np.ndarray) -> list[tuple[int, A]]:
        return [(i, work(i)) for i in at.tolist()]

    pieces = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    for start in range(0, len(pieces), AT_ONCE):
        for done in threads.map(some, pieces[start : start + AT_ONCE]):
            yield from done


def _hash_or_error(file: File) -> int | OSError:
    try:
        return file_hash(file)
    except OSError as error:
        return error


def part_name(name: str, part: int) -> str:
    """Name an example of a file: `clip` for the first one, then `clip@1`, `clip@2`, ..."""
    return f"{name}@{part}" if part else name


def windows_of(names: Iterable[str]) -> dict[str, int]:
    """Count the consecutive examples `clip`, `clip@1`, ... of each file, by the name of the first one."""
    found: dict[str, int] = {}
    file = ""
    for name in names:
        if file and name == part_name(file, found[file]):
            found[file] += 1
        else:
            file, found[name] = name, 1
    return found


def _continued(files: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return whether the next example is the next one of the same file, `[N]` bool."""
    return np.append((np.diff(files) == 0) & (np.diff(part) == 1), False)


def _of_part(hashes: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Derive hashes `[N]` of examples from those of their files; the first example of a file has its file's."""
    return np.where(part == 0, hashes, mixed(hashes ^ mixed(part.astype(np.uint64))))


def _identified(
    file: Callable[[int], File],
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
        path = file(int(rows[at]))
        if isinstance(path, str) and os.path.getsize(path) > WHOLE_BYTES:
            original = file(int(rows[first[inverse[at]]]))
            if isinstance(original, str) and (whole := whole_hash(path)) != whole_hash(original):
                content[at] = mixed(values[inverse[at : at + 1]] ^ np.uint64(whole))[0]
    if not by_content:
        return content, name_keys(names)[rows]
    order = np.argsort(np.zeros(len(rows)) if labels is None else labels[rows], kind="stable")
    return content, distinct_keys(content, order)


class FilesOnAccess:
    """Reader that reads and converts files on access.

    Attributes:
        files, parts: for each example, the number of its file, and its own number in that file.
    """

    def __init__(
        self, kind: Kind, file: Callable[[int], File], names: Sequence[str], files: np.ndarray, counts: np.ndarray
    ) -> None:
        """Expand files to their examples.

        Args:
            names: names of all files.
            files: numbers of the files to read, in order.
            counts: number of examples in each of these.
        """
        self.schema, self.shape = kind.schema, kind.schema.shape
        self.dtype = np.dtype(np.uint8 if kind.schema.in_bytes else np.float32)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.files = np.repeat(files, counts)
        self.parts = np.arange(len(self.files)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._kind, self._file, self._names = kind, file, names

    def __len__(self) -> int:
        return len(self.files)

    def example_or_error(self, row: int) -> np.ndarray | DataError:
        """Read one example `[*shape]`, or return why it cannot be read."""
        i, part = int(self.files[row]), int(self.parts[row])
        try:
            return self._kind.read(self._file(i), part, name=part_name(self._names[i], part)).numpy()
        except DataError as error:
            return error

    def read(self, rows: np.ndarray) -> np.ndarray:
        done = None
        for place, row in enumerate(rows.tolist()):
            example = self.example_or_error(row)
            if isinstance(example, DataError):
                raise example
            done = np.empty((len(rows), *self.shape), self.dtype) if done is None else done  # it fits: one was read
            done[place] = example
        return np.empty((0, *self.shape), self.dtype) if done is None else done
