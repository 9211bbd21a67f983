"""Read INPUTS, the examples given to a task. All tasks use one grammar:

    FILE                a file of one example, such as a picture, recognised by its ending; all windows of a recording
    FOLDER              all such files below a folder; sub-folders are classes
    7    3:20           example 7 of `split`; examples 3 to 19
    valid    valid:7    a split of the run's data (train, valid, test); example 7 of it
    SPEC                all examples of other data, or its `split` if it has official splits: a file of arrays (.npz,
                        .npy, idx, .bin), a table (.csv, .parquet, ...), a folder of such files, a built-in, hf:NAME
    (nothing)           all of `split`

An existing file or folder has precedence over a number or a name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.batches import Batch, to_read
from tessella.core.schema import Schema
from tessella.data.dataset import SPLITS, Data
from tessella.data.folders.labels import TABLES, find_labels
from tessella.data.folders.layout import arranged, example_files
from tessella.data.folders.read import part_name
from tessella.data.sources import HUB
from tessella.data.splits import Split
from tessella.foundation import registry
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.notes import note
from tessella.foundation.progress import tracking
from tessella.foundation.text import abridged, shown
from tessella.kinds.base import kind_of, kinds_in_files

GRAMMAR = (
    f"give files of pictures or sounds, folders of these, example numbers (7, 3:20, valid:7), splits "
    f"({', '.join(SPLITS)}), or other data (files of arrays, tables, {', '.join(registry.names('data'))}, hf:NAME)"
)
"""Grammar of INPUTS, for messages."""
_NUMBERED = re.compile(r"@(?=\d+$)", re.ASCII)
"""Sign that numbers the examples of a file, in the name of a file itself."""
_NUMBERS = re.compile(rf"(?:({'|'.join(SPLITS)}):)?(\d+)?(:(\d+)?)?", re.ASCII)


class InputModel(Protocol):
    """Model whose schema the examples must fit; each `Model` satisfies this protocol."""

    @property
    def name(self) -> str: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def conditional(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...


@final
@dataclass(frozen=True)
class NamedBatch:
    """Batch of examples of one size with their names.

    Attributes:
        names: name of each example.
        batch: stored values, and the labels for a conditional model.
        classes: class name of each example; None if unknown.
    """

    names: Sequence[str]
    batch: Batch
    classes: Sequence[str | None]


@dataclass
class _Rows:
    """Examples of a split, selected by row number."""

    prefix: str
    split: Split
    rows: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def whole(self) -> bool:
        """Return whether no row number occurs twice, so that names are distinct."""
        return len(np.unique(self.rows)) == len(self.rows)


@dataclass
class _Files:
    """Examples in files: path, and number in the file. Unreadable ones are skipped if `found` in a folder, and an
    error otherwise.
    """

    names: list[str]
    paths: list[str]
    parts: list[int]
    classes: list[str | None]
    found: bool

    def __len__(self) -> int:
        return len(self.paths)


def _names(group: _Rows | _Files) -> Sequence[str]:
    """List the names of a group; rows without names are numbered."""
    return group.names or [f"{group.prefix}-{row}" for row in group.rows] if isinstance(group, _Rows) else group.names


@final
class Inputs:
    """Examples named by INPUTS, in their order. Iterating reads them batch by batch.

    Args:
        model: model whose schema the examples must fit.
        words: INPUTS in the grammar of this module; none for all of `split`.
        data: opens the run's own data (None), or other data by its SPEC, with the reading options of the run.
        split: split for example numbers, and for a SPEC with official splits.
        label: class of files for a conditional model, by name or number; None for their own.
        labelled_by: pattern of file names, or column of a CSV file beside them, with the classes of files, as
            `open_data` takes it; None for the name of the sub-folder.
        native_size: keep the size of picture files instead of resizing them to the model's size.
        keep_endings: name picture files by their full path instead of their path below the folder without ending.
        skip: called with the name and path of each picture file before reading; true leaves the file out.

    Raises:
        DataError: if a word names no examples (`no-such-input`), or the data does not fit the model.
        SpecError: if `label` is not a class, a conditional model needs a class that is unknown, or `native_size` is
            used for examples of a data set.
    """

    def __init__(
        self,
        model: InputModel,
        words: Sequence[str],
        data: Callable[[str | None], Data],
        *,
        split: str = "test",
        label: str | None = None,
        labelled_by: str | None = None,
        native_size: bool = False,
        keep_endings: bool = False,
        skip: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._model, self._data, self._split, self._words = model, data, split, words
        self._reader = kind_of(model.schema)
        self._label = None if label is None else label_number(model.schema, label)
        self._labelled_by = labelled_by
        self._native_size, self._keep_endings = native_size, keep_endings
        self._own: Data | None = None
        self._groups: list[_Rows | _Files] = []
        for kind, together in groupby(words or (split,), key=self._kind):
            self._add(kind, list(together))
        if native_size and (self.from_data or (self._reader.files is not None and self._reader.files.windowed)):
            raise SpecError(
                f"{option('native_size')} works only for picture files and folders: leave it out for other examples",
                code="native-size-of-data",
            )
        unknown = any(isinstance(group, _Files) and None in group.classes for group in self._groups)
        if model.conditional and label is None and unknown:
            raise SpecError(
                f"the model {model.name} is conditional: give the class of these pictures with {option('label')}",
                code="label-needed",
            )
        self._name_apart()
        self._left_out = self._leave_out(skip) if skip else 0

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    @property
    def names(self) -> list[str]:
        """List the names of the examples, without reading them."""
        return [name for group in self._groups for name in _names(group)]

    @property
    def from_data(self) -> bool:
        """Return whether some examples come from a data set, not from picture files."""
        return any(isinstance(group, _Rows) for group in self._groups)

    def __iter__(self) -> Iterator[NamedBatch]:
        return self.track("reading")

    def track(self, phase: str) -> Iterator[NamedBatch]:
        """Iterate over the examples, and report progress.

        Unreadable pictures of a folder are skipped and named in a note at the end.

        Raises:
            DataError: if a picture file that was named directly, or every picture, cannot be read.
        """
        with tracking(phase, len(self)) as advance:
            broken: list[str] = []
            done = 0
            for group in self._groups:
                for batch in self._of_rows(group) if isinstance(group, _Rows) else self._of_files(group, broken):
                    yield batch
                    done += len(batch.names)
                    advance(len(batch.names))
        if broken:
            of = f"{len(broken)} of {len(self)} {self._reader.examples}"
            note(f"{of} could not be read and were skipped: {abridged(broken)}")
        if not done and not self._left_out:
            raise DataError(
                f"none of the {self._reader.examples} in {abridged(self._words)} can be read: check the files",
                code="nothing-readable",
            )

    def batch(self) -> Batch:
        """Read all examples, which must be few and of one size, as one batch."""
        return Batch.cat([named.batch for named in self])

    # which examples

    def _kind(self, word: str) -> str:
        if os.path.isdir(word):
            try:
                example_files(word)
            except DataError:
                return "data"  # idx files and the like; or its complaint
            return "folder"
        if os.path.isfile(word):
            return "file" if Path(word).suffix.lower() in kinds_in_files() else "data"
        if word in registry.names("data") or word.startswith(HUB):
            return "data"
        if word in (*SPLITS, self._split):
            return word
        numbers = _NUMBERS.fullmatch(word)
        if numbers and (numbers[2] or numbers[4]):
            return numbers[1] or self._split
        raise DataError(f"no such input: {shown(word)}; {GRAMMAR}", code="no-such-input", input=word)

    def _add(self, kind: str, words: list[str]) -> None:
        if kind == "file":
            names = [word if self._keep_endings else Path(word).stem for word in words]
            whole = map(os.path.abspath, words)
            classes = [self._classes([path], os.path.dirname(path))[0] for path in whole]
            self._groups.append(self._examples(names, words, classes, found=False))
        elif kind == "folder":
            self._groups += map(self._folder, words)
        elif kind == "data":
            self._groups += map(self._other_data, words)
        else:
            self._own = self._own or self._data(None)
            split = self._own.split(kind)
            rows = np.concatenate([_row_numbers(word, kind, len(split)) for word in words])
            self._groups.append(_Rows(kind, split, rows, self._own.schema.classes))

    def _folder(self, folder: str) -> _Files:
        below, kind, notes = example_files(folder, TABLES if self._labelled_by else ())
        for line in notes:
            note(f"{folder}: {line}")
        paths, of = [os.path.join(folder, name) for name in below], list(map(os.path.dirname, below))
        names = list(paths) if self._keep_endings else [os.path.splitext(name)[0] for name in below]
        if self._labelled_by is not None:
            return self._examples(names, paths, self._classes(below, folder), found=True)
        classes: dict[str, str | None] = dict(zip(of, arranged(below, kind).labels, strict=True))
        if not any(classes.values()):  # no classes as data sets have them: the first folder
            classes = {place: place.partition("/")[0] or None for place in of}
        return self._examples(names, paths, [classes[place] for place in of], found=True)

    def _classes(self, names: list[str], folder: str) -> list[str | None]:
        """Find the classes of files by their names or a table beside them."""
        try:
            return find_labels(names, self._labelled_by, folder)[0] if self._labelled_by else [None] * len(names)
        except DataError:
            return [None] * len(names)

    def _examples(self, names: list[str], paths: list[str], classes: list[str | None], *, found: bool) -> _Files:
        """Expand files to their examples, and note how they are converted."""
        files, schema = self._reader.files, self._model.schema
        if files is None or not files.windowed or not self._reader.in_files:
            return _Files(names, paths, [0] * len(paths), classes, found)
        headers = [files.header(path) for path in paths]
        for line in files.changes([header for header in headers if not header.trouble], schema):
            note(line)
        rows = [
            (i, part)
            for i, header in enumerate(headers)
            for part in range(1 if header.trouble else files.parts(header, schema))
        ]
        return _Files(
            [part_name(_NUMBERED.sub("-", names[i]), part) for i, part in rows],
            [paths[i] for i, _ in rows],
            [part for _, part in rows],
            [classes[i] for i, _ in rows],
            found,
        )

    def _other_data(self, spec: str) -> _Rows:
        data, name = self._data(spec), PurePosixPath(spec).stem or spec
        if (split := data.all_examples) is None:
            split, name = data.split(self._split), f"{name}-{self._split}"
        return _Rows(name, split, np.arange(len(split)), data.schema.classes)

    def _name_apart(self) -> None:
        """Make the names distinct: append a number to the second example with a name."""
        if len(self._groups) == 1 and isinstance(self._groups[0], _Rows) and self._groups[0].whole:
            return  # their names are distinct, and need not all be in memory
        taken: set[str] = set()
        for group in self._groups:
            names = _names(group)
            group.names = apart = []
            for name in names:
                new, number = name, 2
                while new in taken:
                    new, number = f"{name}-{number}", number + 1
                taken.add(new)
                apart.append(new)

    def _leave_out(self, skip: Callable[[str, str], bool]) -> int:
        """Remove the files for which `skip` is true, and return their number."""
        before = len(self)
        for group in self._groups:
            if isinstance(group, _Files):
                kept = [i for i, each in enumerate(zip(group.names, group.paths, strict=True)) if not skip(*each)]
                group.names, group.paths = [group.names[i] for i in kept], [group.paths[i] for i in kept]
                group.parts, group.classes = [group.parts[i] for i in kept], [group.classes[i] for i in kept]
        return before - len(self)

    # their values

    def _of_rows(self, group: _Rows) -> Iterator[NamedBatch]:
        at_once = to_read(self._model.schema.shape, self._model.device)
        for start in range(0, len(group), at_once):
            rows = group.rows[start : start + at_once]
            names = group.names[start : start + at_once] or [f"{group.prefix}-{row}" for row in rows]
            batch = group.split.batch(rows)
            classes = [group.class_names[k] for k in batch.label.tolist()] if batch.label is not None else None
            yield NamedBatch(names, batch, classes or [None] * len(rows))

    def _of_files(self, group: _Files, broken: list[str]) -> Iterator[NamedBatch]:
        fitted = self._model.schema.shape[1:]
        at_once = to_read(self._model.schema.shape, self._model.device)

        def size(i: int) -> tuple[int, ...]:
            files = self._reader.files if self._native_size else None
            header = files and files.header(group.paths[i])
            return fitted if header is None or header.trouble else header.spatial

        for of_size, numbers in groupby(range(len(group)), key=size):
            while some := list(islice(numbers, at_once if of_size == fitted else 1)):
                x, rows = self._read(group, some, of_size, broken)
                if rows:
                    classes = [group.classes[i] for i in rows]
                    yield NamedBatch([group.names[i] for i in rows], Batch(x, self._labels(classes)), classes)

    def _read(
        self, group: _Files, numbers: Sequence[int], size: tuple[int, ...], broken: list[str]
    ) -> tuple[Tensor, list[int]]:
        """Read the readable files `[B, *shape]`, and return their numbers too."""
        parts, rows = [], []
        for i in numbers:
            try:
                parts.append(self._reader.read(group.paths[i], group.parts[i], spatial=size))
                rows.append(i)
            except DataError as error:
                if not group.found or error.code != "unreadable":
                    raise
                broken.append(f"{group.names[i]} ({error.parameters['reason']})")
        return torch.stack(parts) if parts else torch.empty(0), rows

    def _labels(self, classes: Sequence[str | None]) -> Tensor | None:
        """Return the class numbers of picture files for a conditional model, else None."""
        if not self._model.conditional:
            return None
        if self._label is not None:
            return torch.full((len(classes),), self._label)
        return torch.tensor([label_number(self._model.schema, str(name)) for name in classes])


def _row_numbers(word: str, split: str, examples: int) -> np.ndarray:
    """Return the row numbers that a word names: `7`, `3:20`, `valid`, `valid:7`, `valid:3:20`."""
    numbers = None if word == split else _NUMBERS.fullmatch(word)
    if numbers is None:
        return np.arange(examples)
    first = int(numbers[2] or 0)
    after = first + 1 if numbers[3] is None else int(numbers[4] or examples)
    if not first < after <= examples:
        raise DataError(
            f"the {split} split has no example {shown(word)}: give numbers from 0 to {examples - 1}",
            code="no-such-example",
            input=word,
            split=split,
        )
    return np.arange(first, after)


def joined_windows(
    examples: Iterable[tuple[str, Tensor]], parts: Mapping[str, int]
) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Group consecutive windows of one file; of another example the group has one part.

    A group must be used up before the next one is asked for.

    Args:
        examples: names and examples `[*shape]`.
        parts: number of windows of each file, from `windows_of`.
    """
    waiting = iter(examples)
    for name, x in waiting:
        rest = islice(waiting, parts.get(name, 1) - 1)
        yield name, chain([x], (window for _, window in rest))


def label_number(schema: Schema, given: str) -> int:
    """Return the number of a class, given by name or number.

    Raises:
        SpecError: if there is no such class (`no-such-class`).
    """
    if given in schema.classes:
        return schema.classes.index(given)
    if given.isdecimal() and int(given) < len(schema.classes):
        return int(given)
    there = abridged(schema.classes, 12)
    remedy = f"there are: {there}" if schema.classes else "the model was trained on data without labels"
    raise SpecError(f"there is no class '{shown(given)}'; {remedy}", code="no-such-class", label=given)
