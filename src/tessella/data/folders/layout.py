"""Files below a folder that hold one example each, and the meaning of its sub-folders: official splits, classes, or a
wrapper of these.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from tessella.data.raw import SPLIT_WORDS, WHOLE
from tessella.foundation.errors import DataError
from tessella.foundation.text import abridged
from tessella.kinds.base import Kind, kinds_in_files, reader_of

SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
"""Files and folders that operating systems create, some with copies of pictures; ignored without a note."""

FOLDER_WORDS = SPLIT_WORDS | {"eval": "eval", "evaluation": "eval"}
"""Words in folder names and the splits that they mean; `eval` means test, or valid if there is a test split."""

STRAY = 0.1
"""Largest share of files beside the class folders that is ignored; with more, the folders are not classes."""

_SPLIT = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(FOLDER_WORDS, key=len, reverse=True))})(?=set|data|images|imgs|[^a-z]|$)"
)

_PASSED_OVER = {
    "closed": "{} folders or files could not be opened: {}",
    "broken": "{} links are broken: {}",
    "circles": "{} links point back to a folder above them and were not followed: {}",
    "special": "{} named pipes, sockets or devices were ignored: {}",
    "others": "{} files that are not {examples} were ignored: {}",
}

Rows = list[int]
"""Row numbers of files."""


# finding them


class Names(Sequence[str]):
    """Sequence of paths, stored in one compact array."""

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


def example_files(path: str, unnoted: tuple[str, ...] = ()) -> tuple[list[str], type[Kind], list[str]]:
    """Find the files below a folder that hold examples: relative paths in order, their kind, and notes.

    Of several kinds, the one with most files is chosen. The notes name everything that is ignored. Links are followed,
    except to a folder above them.

    Args:
        path: the folder.
        unnoted: endings of other files that are ignored without a note.

    Raises:
        DataError: if the folder has no such files.
    """
    kinds = kinds_in_files()
    names: list[str] = []
    passed: dict[str, list[str]] = {what: [] for what in _PASSED_OVER}
    visited: set[tuple[int, int]] = set()
    waiting: list[tuple[str, str, frozenset[tuple[int, int]], bool]] = [(path, "", frozenset(), False)]
    while waiting:  # the files of a folder come before its sub-folders
        folder, inside, above, linked = waiting.pop()
        try:
            at = os.stat(folder)
            entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            passed["closed"].append(inside.rstrip("/") or path)
            continue
        here = (at.st_dev, at.st_ino)
        link = linked or (os.path.islink(folder) and bool(inside))
        if here in above or (linked and os.path.islink(folder) and here in visited):
            passed["circles"].append(inside.rstrip("/"))
            continue
        visited.add(here)
        inner = []
        for entry in entries:
            what = _what(entry, kinds)
            if what == "folder":
                inner.append((entry.path, f"{inside}{entry.name}/", above | {here}, link))
            elif what and not (what == "others" and entry.name.lower().endswith(unnoted)):
                (names if what == "example" else passed[what]).append(inside + entry.name)
        waiting += reversed(inner)
    of_kind: dict[type[Kind], list[str]] = {kind: [] for kind in kinds.values()}
    for name in names:
        of_kind[kinds[_ending(name)]].append(name)
    kind = max(of_kind, key=lambda kind: len(of_kind[kind]))
    passed["others"] += [name for other, found in of_kind.items() if other is not kind for name in found]
    examples = " or ".join(reader_of(each).examples for each in ([kind] if names else of_kind))
    notes = {
        what: text.format(len(passed[what]), abridged(passed[what]), examples=examples)
        for what, text in _PASSED_OVER.items()
        if passed[what]
    }
    if not names:
        others = notes.pop("others", None) and f"it holds {abridged(passed['others'], 3)}"
        held = "".join(f"; {note}" for note in (others, *notes.values()) if note)
        raise DataError(f"{path} has no {examples} ({', '.join(kinds)}){held}", code="no-pictures")
    return of_kind[kind], kind, list(notes.values())


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _what(entry: os.DirEntry[str], endings: Container[str]) -> str:
    """Classify an entry as folder, example or a key of `_PASSED_OVER`. The result is empty if it is ignored."""
    if entry.name.lower() in SYSTEM:
        return ""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "broken" if entry.is_symlink() else "closed"
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        return "special"
    return "example" if _ending(entry.name) in endings else "others"


# what their folders mean


@dataclass
class Layout:
    """Split and class of each file, and their origins.

    Attributes:
        splits: split of each file: `whole` without official splits; empty if the file is ignored.
        labels: class name of each file, or None.
        origins: origin of each split, in words.
        labelling: origin of the classes, in words.
        factors: values of what else is known of each file, by name.
        notes: what was ignored, one line each.
    """

    splits: list[str]
    labels: list[str | None]
    origins: dict[str, str] = field(default_factory=dict)
    labelling: str = ""
    factors: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def arranged(names: Sequence[str], kind: type[Kind], *, by_folder: bool = True) -> Layout:
    """Find the splits and classes of files from their paths `folder/.../file` below the common folder.

    Args:
        kind: kind of data, for the words of the notes.
        by_folder: whether sub-folders may be classes.
    """
    arranging = _Arranging([name.split("/") for name in names], kind, by_folder)
    arranging.decide()
    return arranging.layout


class _Arranging:
    """Search for splits and classes from the outermost folder inwards; `depth` is the number of folders above."""

    def __init__(self, paths: list[list[str]], kind: type[Kind], by_folder: bool) -> None:
        self.paths, self.reader, self.by_folder = paths, reader_of(kind), by_folder
        self.layout = Layout([WHOLE] * len(paths), [None] * len(paths))

    def decide(self) -> None:
        paths, layout = self.paths, self.layout
        rows, depth = list(range(len(paths))), 0
        while True:
            loose, folders = self._opened(rows, depth)
            if pairs := _pairs(folders):
                self._take_splits(rows, folders, pairs, depth)
                return
            holders = {name: of for name, of in folders.items() if self._holds_pairs(of, depth + 1)}
            if len(holders) > 1 and all(_pairs(self._opened(of, depth + 1)[1]) for of in holders.values()):
                self._take_splits_of_classes(rows, holders, depth)
                return
            inner = self._wrapper(rows, loose, folders, holders, depth)
            if inner is None:
                break
            at = "/".join(paths[folders[inner][0]][: depth + 1])
            self._leave_out(rows, set(folders[inner]), f"outside {at}/")
            if FOLDER_WORDS.get(inner.lower(), "train") != "train":
                examples = self.reader.examples
                layout.notes.append(f"there is {inner}/ but no training folder: its {examples} are split at random")
            rows, depth = folders[inner], depth + 1
        if holders:
            layout.notes.append(
                f"the train and test folders in {abridged([f'{n}/' for n in holders])} are not used as splits, because "
                "there are other folders beside it: open that folder alone to use them"
            )
        if folders and not loose and {FOLDER_WORDS.get(name.lower()) for name in folders} <= {"test", "valid", "eval"}:
            rows_of = {f"{name}/": of for name, of in folders.items()}
            layout.origins[WHOLE] = found = " and ".join(rows_of)
            layout.notes.append(
                f"there is {found} but no training folder: all {self.reader.examples} are split at random"
            )
            self._take_classes(rows_of, depth + 1)
            return
        self._take_classes({"": rows}, depth)
        if depth and not layout.origins:
            layout.origins[WHOLE] = f"folder {'/'.join(paths[rows[0]][:depth])}/"

    def _opened(self, rows: Rows, depth: int) -> tuple[Rows, dict[str, Rows]]:
        """Separate the files directly in this folder from those of each sub-folder."""
        loose: Rows = []
        folders: dict[str, Rows] = {}
        for row in rows:
            here = len(self.paths[row]) == depth + 1
            (loose if here else folders.setdefault(self.paths[row][depth], [])).append(row)
        return loose, folders

    def _holds_pairs(self, rows: Rows, depth: int) -> bool:
        folders = self._opened(rows, depth)[1]
        return bool(_pairs(folders)) or any(self._holds_pairs(of, depth + 1) for of in folders.values())

    def _wrapper(
        self, rows: Rows, loose: Rows, folders: dict[str, Rows], holders: dict[str, Rows], depth: int
    ) -> str | None:
        """Find the sub-folder that this folder only wraps: it alone has splits, or nearly all files and folders."""
        if len(holders) == 1:
            only, of = next(iter(holders.items()))
            return only if 2 * len(of) > len(rows) - len(loose) else None
        training = [n for n in folders if FOLDER_WORDS.get(n.lower()) == "train"]
        for name in folders if len(folders) == 1 else training if len(training) == 1 else ():
            beside = [row for other, of in folders.items() if other != name for row in of]
            nested = len(self._opened(folders[name], depth + 1)[1]) > (len(folders) > 1)
            flat = all(len(self.paths[row]) == depth + 2 for row in beside)
            if nested and flat and len(loose) <= STRAY * len(rows):
                return name
        return None

    def _leave_out(self, rows: Rows, kept: set[int], where: str) -> None:
        left = [row for row in rows if row not in kept]
        for row in left:
            self.layout.splits[row] = ""
        if left:
            named = abridged(["/".join(self.paths[row]) for row in left], 3)
            what = f"1 {self.reader.example}" if len(left) == 1 else f"{len(left):,} {self.reader.examples}"
            self.layout.notes.append(f"{what} {where} {'was' if len(left) == 1 else 'were'} left out: {named}")

    def _take_splits(self, rows: Rows, folders: dict[str, Rows], pairs: dict[str, str], depth: int) -> None:
        by_split: dict[str, Rows] = {}
        origins = self.layout.origins
        for name, split in pairs.items():
            by_split.setdefault(split, []).extend(folders[name])
            at = "/".join([*self.paths[folders[name][0]][:depth], name])
            origins[split] = f"{origins[split]} and {at}/" if split in origins else f"folder {at}/"
            for row in folders[name]:
                self.layout.splits[row] = split
        kept = {row for of in by_split.values() for row in of}
        self._leave_out(rows, kept, f"beside {abridged([f'{name}/' for name in pairs])}")
        depth += 1
        while all(self._lone_folder(of, depth) for of in by_split.values()):
            depth += 1
        self._take_classes(by_split, depth)

    def _lone_folder(self, rows: Rows, depth: int) -> bool:
        """Return whether all files are in one sub-folder, each within a folder of it."""
        loose, folders = self._opened(rows, depth)
        return not loose and len(folders) == 1 and all(len(self.paths[row]) > depth + 2 for row in rows)

    def _take_splits_of_classes(self, rows: Rows, holders: dict[str, Rows], depth: int) -> None:
        """Set splits and classes from folders `cat/train`, `cat/test`, `dog/train`, ...: classes above splits."""
        layout, kept = self.layout, set[int]()
        for label, of in holders.items():
            folders = self._opened(of, depth + 1)[1]
            for name, split in _pairs(folders).items():
                layout.origins.setdefault(split, f"folders {name}/ in each class")
                for row in folders[name]:
                    layout.splits[row], layout.labels[row] = split, label
                kept.update(folders[name])
        self._leave_out(rows, kept, "outside these folders")
        layout.labelling = "by the folders around train and test"

    def _take_classes(self, by_split: dict[str, Rows], depth: int) -> None:
        """Label files by their sub-folder at this depth; a split without sub-folders has no labels."""
        layout = self.layout
        if not self.by_folder:
            return
        labels: dict[int, str] = {}
        strays: Rows = []
        for split, rows in by_split.items():
            loose, folders = self._opened(rows, depth)
            if loose and folders and len(loose) > STRAY * len(rows):
                where = f"in {split} " if len(by_split) > 1 else ""
                named = abridged([f"{name}/" for name in folders], 3)
                beside = f"{len(loose):,} {self.reader.examples} are beside the sub-folders {where}({named})"
                layout.notes.append(f"{beside}, so the sub-folders are not used as classes")
                return
            if folders:
                strays += loose
            for name, of in folders.items():
                labels.update(dict.fromkeys(of, name))
        counts = Counter(labels.values())
        if len(counts) < 2:
            if counts:
                layout.labelling = f"all {self.reader.examples} are in one folder, {next(iter(counts))}/"
            return
        if not any(row in labels for row in by_split.get("train", next(iter(by_split.values())))):
            layout.notes.append("training has no sub-folders, so sub-folders of other splits are not used as classes")
            return
        every = [row for rows in by_split.values() for row in rows]
        self._leave_out(every, set(every) - set(strays), "beside the class folders")
        for row, name in labels.items():
            layout.labels[row] = name
        deeper = any(len(self.paths[row]) > depth + 2 for row in labels)
        layout.labelling = "by the first sub-folder" if deeper else "by sub-folder"


def _pairs(folders: dict[str, Rows]) -> dict[str, str]:
    """Find a train folder with its test or valid folders, and map each to its split.

    Their names may differ only in the word for the split (`train2017` and `val2017`). If there are several such sets,
    plain names (`train`) come first, then the set with most files.
    """
    sets: dict[str, dict[str, str]] = {}
    for name in folders:
        found = _SPLIT.findall(name.lower())
        if len(found) == 1:
            sets.setdefault(_SPLIT.sub("*", name.lower()), {})[name] = FOLDER_WORDS[found[0]]
    complete = {form: of for form, of in sets.items() if "train" in of.values() and len(set(of.values())) > 1}
    if not complete:
        return {}
    plainest = min(complete, key=lambda form: (form != "*", -sum(len(folders[n]) for n in complete[form]), form))
    chosen = complete[plainest]
    other = "valid" if "test" in chosen.values() else "test"
    return {name: other if split == "eval" else split for name, split in chosen.items()}
