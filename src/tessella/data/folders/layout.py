"""What the sub-folders of a folder of pictures mean: official splits, classes, or a wrapper around them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tessella.data.raw import WHOLE, abridged

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "valid"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
"""Words in folder names and the split that each stands for; `eval` is test where there is no other, else valid."""

STRAY = 0.1
"""Pictures beside the folders that mean something are left out up to this share; more of them mean something too."""

_SPLIT = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?=set|data|images|imgs|[^a-z]|$)"
)

Rows = list[int]


@dataclass
class Layout:
    """What was decided about each picture.

    Attributes:
        splits: of each picture, `whole` for all that are not divided yet; empty if it is left out.
        labels: of each picture, the name of its class, if any.
        origins: where each split was found, in words.
        labelling: what the classes are, in words.
        notes: what was left out, a line each.
    """

    splits: list[str]
    labels: list[str | None]
    origins: dict[str, str] = field(default_factory=dict)
    labelling: str = ""
    notes: list[str] = field(default_factory=list)


def arranged(names: Sequence[str]) -> Layout:
    """Decide on splits and classes of pictures by their paths `folder/.../file` below the common folder."""
    paths = [name.split("/") for name in names]
    layout = Layout([WHOLE] * len(paths), [None] * len(paths))
    rows, depth = list(range(len(paths))), 0
    while True:
        loose, folders = _opened(paths, rows, depth)
        pairs = _pairs(folders)
        if pairs:
            _take_splits(layout, paths, rows, folders, pairs, depth)
            return layout
        holders = {name: of for name, of in folders.items() if _holds_pairs(paths, of, depth + 1)}
        if len(holders) > 1 and all(_pairs(_opened(paths, of, depth + 1)[1]) for of in holders.values()):
            _take_splits_of_classes(layout, paths, rows, holders, depth)
            return layout
        inner = _wrapper(paths, rows, loose, folders, holders, depth)
        if inner is None:
            break
        at = "/".join(paths[folders[inner][0]][: depth + 1])
        _leave_out(layout, paths, rows, set(folders[inner]), f"outside {at}/")
        if SPLIT_WORDS.get(inner.lower(), "train") != "train":
            layout.notes.append(f"there is {inner}/ and no training folder: all its pictures are divided anew")
        rows, depth = folders[inner], depth + 1
    if holders:
        layout.notes.append(f"{abridged([f'{n}/' for n in holders])} has train and test folders of its own, which are "
                            "not taken for splits, for there are other folders beside it: open it alone")  # fmt: skip
    if folders and not loose and {SPLIT_WORDS.get(name.lower()) for name in folders} <= {"test", "valid", "eval"}:
        rows_of = {f"{name}/": of for name, of in folders.items()}
        found = " and ".join(rows_of)
        layout.origins[WHOLE] = found
        layout.notes.append(f"there is {found} and no training folder: all pictures are divided anew")
        _take_classes(layout, paths, rows_of, depth + 1)
        return layout
    _take_classes(layout, paths, {"": rows}, depth)
    if depth and not layout.origins:
        layout.origins[WHOLE] = f"folder {'/'.join(paths[rows[0]][:depth])}/"
    return layout


def _opened(paths: list[list[str]], rows: Rows, depth: int) -> tuple[Rows, dict[str, Rows]]:
    """The pictures that lie right here, and those of each sub-folder."""
    loose: Rows = []
    folders: dict[str, Rows] = {}
    for row in rows:
        if len(paths[row]) == depth + 1:
            loose.append(row)
        else:
            folders.setdefault(paths[row][depth], []).append(row)
    return loose, folders


def _pairs(folders: dict[str, Rows]) -> dict[str, str]:
    """The folders that are train and at least one of test and valid, and which each is.

    Their names must be alike but for the word (`train2017` and `val2017`); of several such sets the plainest is taken.
    """
    sets: dict[str, dict[str, str]] = {}
    for name in folders:
        found = _SPLIT.findall(name.lower())
        if len(found) == 1:
            sets.setdefault(_SPLIT.sub("*", name.lower()), {})[name] = SPLIT_WORDS[found[0]]
    complete = {form: of for form, of in sets.items() if "train" in of.values() and len(set(of.values())) > 1}
    if not complete:
        return {}
    chosen = complete[
        min(complete, key=lambda form: (form != "*", -sum(len(folders[n]) for n in complete[form]), form))
    ]
    other = "valid" if "test" in chosen.values() else "test"
    return {name: other if split == "eval" else split for name, split in chosen.items()}


def _holds_pairs(paths: list[list[str]], rows: Rows, depth: int) -> bool:
    _, folders = _opened(paths, rows, depth)
    return bool(_pairs(folders)) or any(_holds_pairs(paths, of, depth + 1) for of in folders.values())


def _wrapper(
    paths: list[list[str]], rows: Rows, loose: Rows, folders: dict[str, Rows], holders: dict[str, Rows], depth: int
) -> str | None:
    """The sub-folder that is meant by this folder: it alone has splits, or nearly all pictures and folders in it."""
    if len(holders) == 1:
        only, of = next(iter(holders.items()))
        return only if 2 * len(of) > len(rows) - len(loose) else None
    training = [n for n in folders if SPLIT_WORDS.get(n.lower()) == "train"]
    for name in folders if len(folders) == 1 else training if len(training) == 1 else ():
        beside = [row for other, of in folders.items() if other != name for row in of]
        nested = len(_opened(paths, folders[name], depth + 1)[1]) > (len(folders) > 1)
        flat = all(len(paths[row]) == depth + 2 for row in beside)
        if nested and flat and len(loose) <= STRAY * len(rows):
            return name
    return None


def _leave_out(layout: Layout, paths: list[list[str]], rows: Rows, kept: set[int], where: str) -> None:
    left = [row for row in rows if row not in kept]
    for row in left:
        layout.splits[row] = ""
    if left:
        named = abridged(["/".join(paths[row]) for row in left], 3)
        what = "1 picture" if len(left) == 1 else f"{len(left):,} pictures"
        layout.notes.append(f"{what} {where} {'was' if len(left) == 1 else 'were'} left out: {named}")


def _take_splits(
    layout: Layout, paths: list[list[str]], rows: Rows, folders: dict[str, Rows], pairs: dict[str, str], depth: int
) -> None:
    by_split: dict[str, Rows] = {}
    for name, split in pairs.items():
        by_split.setdefault(split, []).extend(folders[name])
        at = "/".join([*paths[folders[name][0]][:depth], name])
        before = f"{layout.origins[split]} and " if split in layout.origins else "folder "
        layout.origins[split] = f"{before}{at}/"
        for row in folders[name]:
            layout.splits[row] = split
    kept = {row for of in by_split.values() for row in of}
    _leave_out(layout, paths, rows, kept, f"beside {abridged([f'{name}/' for name in pairs])}")
    depth += 1
    while all(_lone_folder(paths, of, depth) for of in by_split.values()):
        depth += 1
    _take_classes(layout, paths, by_split, depth)


def _lone_folder(paths: list[list[str]], rows: Rows, depth: int) -> bool:
    """Whether all lies in one sub-folder, and in folders of that."""
    loose, folders = _opened(paths, rows, depth)
    return not loose and len(folders) == 1 and all(len(paths[row]) > depth + 2 for row in rows)


def _take_splits_of_classes(
    layout: Layout, paths: list[list[str]], rows: Rows, holders: dict[str, Rows], depth: int
) -> None:
    """`cat/train`, `cat/test`, `dog/train`, ...: the classes are above the splits."""
    kept: set[int] = set()
    for label, of in holders.items():
        folders = _opened(paths, of, depth + 1)[1]
        for name, split in _pairs(folders).items():
            layout.origins.setdefault(split, f"folders {name}/ in each class")
            for row in folders[name]:
                layout.splits[row], layout.labels[row] = split, label
            kept.update(folders[name])
    _leave_out(layout, paths, rows, kept, "outside these folders")
    layout.labelling = "by the folders around train and test"


def _take_classes(layout: Layout, paths: list[list[str]], by_split: dict[str, Rows], depth: int) -> None:
    """Label pictures by their sub-folder at this depth; a split without sub-folders has no labels."""
    labels: dict[int, str] = {}
    strays: Rows = []
    for split, rows in by_split.items():
        loose, folders = _opened(paths, rows, depth)
        if loose and folders and len(loose) > STRAY * len(rows):
            where = f"in {split} " if len(by_split) > 1 else ""
            named = abridged([f"{name}/" for name in folders], 3)
            beside = f"{len(loose):,} pictures lie beside the sub-folders {where}({named})"
            layout.notes.append(f"{beside}, so these are not taken for classes")
            return
        if folders:
            strays += loose
        for name, of in folders.items():
            labels.update(dict.fromkeys(of, name))
    counts = Counter(labels.values())
    if len(counts) < 2:
        if counts:
            layout.labelling = f"all pictures lie in one folder, {next(iter(counts))}/"
        return
    if not any(row in labels for row in by_split.get("train", next(iter(by_split.values())))):
        layout.notes.append("training has no sub-folders, so those of the other splits are not taken for classes")
        return
    kept = {row for rows in by_split.values() for row in rows} - set(strays)
    _leave_out(layout, paths, [row for rows in by_split.values() for row in rows], kept, "beside the class folders")
    for row, name in labels.items():
        layout.labels[row] = name
    deeper = any(len(paths[row]) > depth + 2 for row in labels)
    layout.labelling = "by the first sub-folder" if deeper else "by sub-folder"
