"""Which arrays of an archive are examples and labels, and of which split: told by their names, and noted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from tessella.data.raw import WHOLE

SPLIT_WORDS = (
    dict.fromkeys(("train", "training", "tr", "trn"), "train")
    | dict.fromkeys(("valid", "validation", "val", "vali", "dev", "va"), "valid")
    | dict.fromkeys(("test", "testing", "te", "tst"), "test")
)
DATA_WORDS = ("x", "images", "image", "data", "samples", "inputs", "features", "imgs", "img", "pictures", "vectors")
DATA_WORDS = (*DATA_WORDS, "series", "signals", "dataset", "input", "sample", "array", "xs", "arr0", "")
LABEL_WORDS = ("y", "labels", "label", "targets", "target", "class", "classes", "ys", "arr1")
CLASS_WORDS = (*(f"{a}names" for a in ("class", "classes", "label", "labels", "target", "category")),)
CLASS_WORDS = (*CLASS_WORDS, "classlabels", "classes", "categories")

_GLUED = re.compile(rf"([xy])({'|'.join(SPLIT_WORDS)})|({'|'.join(SPLIT_WORDS)})([xy])")


@final
@dataclass(frozen=True)
class Members:
    """The names of an archive's arrays by what they hold.

    Attributes:
        data, labels: by split; `whole` where the name says none.
        classes: the array that names the classes, or None.
    """

    data: dict[str, str]
    labels: dict[str, str]
    classes: str | None


def sorted_out(names: Sequence[str], texts: Sequence[str], label: str | None = None) -> Members:
    """Sort the arrays of an archive by what their names say.

    Args:
        names: all names.
        texts: those that hold texts: only these can name the classes.
        label: the name of the labels; those of other splits may have the same name but for the split's.
    """
    data: dict[str, list[tuple[int, str]]] = {}
    labels: dict[str, list[tuple[int, str]]] = {}
    classes = [name for name in names if _words(name)[1] in CLASS_WORDS and name in texts]
    for name in names:
        split, stem = _words(name)
        if stem == _words(label)[1] if label else stem in LABEL_WORDS and name not in classes:
            labels.setdefault(split, []).append((0 if label else LABEL_WORDS.index(stem), name))
        elif stem in DATA_WORDS and (stem or split != WHOLE):
            data.setdefault(split, []).append((DATA_WORDS.index(stem), name))
    return Members(_first(data), _first(labels), classes[0] if classes else None)


def _first(found: dict[str, list[tuple[int, str]]]) -> dict[str, str]:
    return {split: min(ranked)[1] for split, ranked in found.items()}


def _words(name: str) -> tuple[str, str]:
    """The split that a name tells, and what is left of the name: `trainImages` gives `train` and `images`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    if len(words) == 1 and (glued := _GLUED.fullmatch(words[0])):
        words = [word for word in glued.groups() if word]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    if len(splits) > 1:
        return WHOLE, "".join(words)
    return (splits or [WHOLE])[0], "".join(word for word in words if word not in SPLIT_WORDS)
