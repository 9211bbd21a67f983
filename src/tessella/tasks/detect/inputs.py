"""What is to be scored: picture files, folders of them, other data, splits, numbers of examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import final

import numpy as np

from tessella.core.batches import Batch, to_read
from tessella.data import Data, Split
from tessella.data.folders.layout import arranged
from tessella.data.folders.read import FORMATS, picture_files
from tessella.data.raw import shown
from tessella.data.sources import BUILT_IN, HUB
from tessella.foundation.errors import DataError
from tessella.models.base import Model
from tessella.training.run import Run


@final
@dataclass(frozen=True)
class Lot:
    """Some examples: what they are called, as stored, and the names of their classes (None where unknown)."""

    names: Sequence[str]
    batch: Batch
    classes: Sequence[str | None]


@final
@dataclass(frozen=True)
class Source:
    """Examples of one kind of input, read as they are asked for: how many, and what gives them."""

    count: int
    lots: Callable[[], Iterator[Lot]]


@final
class Inputs:
    """Finds what inputs name.

    Args:
        model: what they must fit.
        run: whose data splits and numbers are of.
        split: the split that numbers refer to, and that is taken of data that comes divided into splits.
        label: the class of picture files, for a model that needs one; without it, the name of their sub-folder.
        place: where the run's own data lies now, if it was moved.
    """

    def __init__(
        self,
        model: Model,
        run: Run,
        split: str = "test",
        label: str | None = None,
        place: str | None = None,
    ) -> None:
        self.model, self.run, self.split, self.place = model, run, split, place
        self._given_label = label
        self._own: Data | None = None

    @property
    def own(self) -> Data:
        """The run's own data."""
        self._own = self._own or self.run.data(self.place, self.model)
        return self._own

    def find(self, given: Sequence[str]) -> list[Source]:
        """Where the examples of all inputs come from.

        Args:
            given: each a picture file, a folder of them (sub-folders are classes), other data by its SPEC, the name of
                a split of the run's data, or the number of an example of `split`.

        Raises:
            DataError: if there is no such thing, or it does not fit the model.
        """
        found: list[Source] = []
        for kind, some in groupby(given, key=self._kind):
            together = list(some)
            if kind == "number":
                found.append(self._numbers(together))
            elif kind == "file":
                found.append(self._pictures(together, ""))
            elif kind == "folder":
                found += [self._pictures([one], f"{one}/" if len(given) > 1 else "") for one in together]
            elif kind == "split":
                found += [self._split(self.own, self.own.split(one), one) for one in together]
            else:
                found += [self._data(one) for one in together]
        return found

    def _kind(self, given: str) -> str:
        if os.path.isdir(given):
            try:
                picture_files(given)
            except DataError:
                return "data"  # idx files and the like; or its complaint
            return "folder"
        if os.path.isfile(given):
            return "file" if Path(given).suffix.lower() in FORMATS else "data"
        if given.isdecimal():
            return "number"
        if given in BUILT_IN or given.startswith(HUB):
            return "data"
        if given in ("train", "valid", "test"):
            return "split"
        raise DataError(
            f"no such input: {shown(given)}; give picture files, folders or data that exist, train, valid or test, or "
            "numbers of examples"
        )

    def _data(self, spec: str) -> Source:
        data = self.run.data(spec, self.model)
        name = PurePosixPath(spec).stem or spec
        if data.all_examples is not None:
            return self._split(data, data.all_examples, name)
        return self._split(data, data.split(self.split), f"{name}-{self.split}")

    def _split(self, data: Data, split: Split, name: str) -> Source:
        return self._rows(data, split, name, np.arange(len(split)))

    def _numbers(self, given: Sequence[str]) -> Source:
        split = self.own.split(self.split)
        wrong = next((number for number in given if int(number) >= len(split)), None)
        if wrong is not None:
            raise DataError(
                f"there is no example {wrong} in the {self.split} split: give a number up to {len(split) - 1}"
            )
        return self._rows(self.own, split, self.split, np.array([int(number) for number in given]))

    def _rows(self, data: Data, split: Split, name: str, rows: np.ndarray) -> Source:
        classes = data.schema.classes

        def lots() -> Iterator[Lot]:
            at_once = to_read(self.model.schema.shape, self.model.device)
            for first in range(0, len(rows), at_once):
                at = rows[first : first + at_once]
                batch = split.batch(at)
                of = [None] * len(at) if batch.label is None else [classes[i] for i in batch.label.tolist()]
                yield Lot([f"{name}-{i}" for i in at], batch, of)

        return Source(len(rows), lots)

    def _pictures(self, given: Sequence[str], prefix: str) -> Source:
        """Of picture files, or of one folder."""
        names = picture_files(given[0])[0] if os.path.isdir(given[0]) else []
        count, known = len(names) or len(given), _classes_by_folder(names)

        def lots() -> Iterator[Lot]:
            reader = self.run.inputs(self.model, given, data=self.place, split=self.split, label=self._given_label)
            for named in reader:
                classes = [known.get(os.path.dirname(name)) for name in named.names]
                yield Lot([prefix + name for name in named.names], named.batch, classes)

        return Source(count, lots)


def _classes_by_folder(names: Sequence[str]) -> dict[str, str | None]:
    """The class of the pictures in each sub-folder: as the data is read, or else by its first part."""
    labels = dict(zip(map(os.path.dirname, names), arranged(names).labels, strict=True))
    if any(label is not None for label in labels.values()):
        return labels
    return {folder: folder.partition("/")[0] or None for folder in labels}


def truth(classes: Sequence[str | None], normal: Sequence[str]) -> list[bool | None]:
    """Whether each example is anomalous: of a class that is not among the normal ones; None where it has no class."""
    return [None if name is None or not normal else name not in normal for name in classes]
