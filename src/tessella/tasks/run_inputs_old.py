"""Open the data of a run, and read examples for its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data import Data, Split, open_data
from tessella.data.folders.read import PictureReader
from tessella.data.provenance import RECORDED, difference
from tessella.data.splits import Indices
from tessella.foundation import validation
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.notes import note
from tessella.foundation.text import shown
from tessella.models.base import Model


def label_number(schema: Schema, given: str) -> int:
    """A class by its name, or else by its number.

    Raises:
        SpecError: naming the classes there are.
    """
    if given in schema.classes:
        return schema.classes.index(given)
    if given.isdecimal() and int(given) < len(schema.classes):
        return int(given)
    if not schema.classes:
        raise SpecError(f"there is no class '{shown(given)}': the model was trained on data without labels")
    named = ", ".join(map(shown, schema.classes[:12])) + (", ..." if len(schema.classes) > 12 else "")
    raise SpecError(f"there is no class '{shown(given)}'; there are: {named}")


def data_for(model: Model, source: dict[str, Any], other: str | None = None) -> Data:
    """The data of a run, or `other` data seen as the run's was: same size, channels, binarisation, label numbers.

    Args:
        source: `{"spec": ..., **options}`, as a run's specification has it.
        other: another SPEC.

    Raises:
        DataError: if it cannot be opened, or is not what the model was made for.
    """
    if other is None:
        data = own_data(model, source)
        if (what := difference(source, data)) is not None:
            note(f"{data.spec} is not what the run was trained on any more ({what})")
        return data
    options = _reading(source)
    if model.schema.is_picture:
        options |= {"size": model.schema.shape[1:], "channels": model.schema.shape[0]}
    data = _fitting(model, other, options)
    for line in data.notes:
        note(line)
    return data


def own_data(model: Model, source: dict[str, Any], place: str | None = None) -> Data:
    """The data that a run was trained on, read exactly as it was then.

    Args:
        source: as of `data_for`.
        place: where it lies now, if it was moved.

    Raises:
        DataError: as of `data_for`; naming --data if no place is given.
    """
    if place is not None:
        return _fitting(model, place, _reading(source))
    if source.get("spec") is None:
        raise DataError("the run does not say what data it was trained on: give --data")
    try:
        return _fitting(model, str(source["spec"]), _reading(source))
    except DataError as error:
        raise DataError(f"{error} (this is the data that the run was trained on; say with --data where it lies now)"
                        ) from error  # fmt: skip


def _reading(source: dict[str, Any]) -> dict[str, Any]:
    """How a run's data was read."""
    return {name: value for name, value in source.items() if name not in ("spec", *RECORDED)}


def _fitting(model: Model, spec: str, options: dict[str, Any]) -> Data:
    """The data of that SPEC, if it fits the model, its labels numbered as the model's."""
    schema, size = model.schema, options.get("size")
    try:
        options = validation.arguments(open_data, options, "data")
    except validation.Malformed as error:
        raise DataError(f"the run's specification was edited: {error}") from error
    if size is not None and schema.is_picture and tuple(np.broadcast_to(size, 2)) != schema.shape[1:]:
        raise DataError(
            f"the run's data has size {size}, and its model is made for {_by(schema.shape)}: one was edited"
        )
    data = open_data(spec, **options, like=schema)
    if (data.schema.shape, data.schema.values) != (schema.shape, schema.values):
        raise DataError(
            f"{data.spec} has {data.schema.values} values of shape {_by(data.schema.shape)}, the model is made for "
            f"{schema.values} values of shape {_by(schema.shape)}: give data of that kind"
        )
    if not model.conditional or data.schema.classes == schema.classes:
        return data
    if not data.schema.classes:
        raise DataError(f"{data.spec} has no labels, and the model {model.name} needs one for every example")
    unknown = [name for name in data.schema.classes if name not in schema.classes]
    if unknown:
        raise DataError(
            f"{data.spec} has classes that the model was not trained on: {', '.join(map(shown, unknown[:8]))}; "
            f"it knows {', '.join(map(shown, schema.classes[:8]))}{', ...' if len(schema.classes) > 8 else ''}"
        )
    numbers = np.array([schema.classes.index(name) for name in data.schema.classes], dtype=np.int64)
    splits: dict[str, Split] = {name: _Renumbered(split, numbers) for name, split in data.splits.items()}
    all_examples = data.all_examples and _Renumbered(data.all_examples, numbers)
    return replace(data, schema=schema, splits=splits, all_examples=all_examples)


@final
class _Renumbered(Split):
    """A split whose label k is called `numbers[k]`."""

    def __init__(self, base: Split, numbers: np.ndarray) -> None:
        self._base, self._numbers = base, torch.from_numpy(numbers)
        self.example_ids, self.factors = base.example_ids, base.factors
        self.labels = None if base.labels is None else numbers[base.labels]

    @property
    def in_memory(self) -> bool:
        return self._base.in_memory

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        batch = self._base.batch(indices, noise)
        return Batch(batch.x, None if batch.label is None else self._numbers[batch.label])


def from_split(split: Split, inputs: Sequence[str], name: str) -> Batch:
    """Examples of a split by their numbers.

    Raises:
        DataError: if one is no number of an example.
    """
    for given in inputs:
        if not given.isdecimal() or int(given) >= len(split):
            raise DataError(
                f"{given} is no picture file and no example of the {name} split: give a file that exists, or a number "
                f"from 0 to {len(split) - 1}"
            )
    return split.batch([int(given) for given in inputs])


def from_files(model: Model, files: Sequence[str], label: int | None) -> Batch:
    """Picture files, cropped and resized to what the model was made for; binary models see them cut at half.

    Raises:
        DataError: if one cannot be read, or the model's values are not a picture file's.
        SpecError: if the model needs a label and there is none.
    """
    if model.conditional and label is None:
        raise SpecError(f"the model {model.name} is conditional: give the class of these pictures with --label")
    labels = torch.full((len(files),), label) if model.conditional and label is not None else None
    return Batch(read_pictures(model.schema, files, model.schema.shape[1:]), labels)


def read_pictures(schema: Schema, files: Sequence[str], size: tuple[int, ...]) -> Tensor:
    """Picture files as stored values `[B, C, *size]`, cropped and resized.

    Raises:
        DataError: if one cannot be read, or such values are not a picture file's.
    """
    if not schema.is_picture or schema.values == "real":
        raise DataError(f"the model is made for {schema.values} values of shape {_by(schema.shape)}, which no picture "
                        "file holds: give numbers of examples")  # fmt: skip
    height, width = size
    reader = PictureReader(lambda i: str(Path(files[i])), files, (height, width), schema.shape[0], schema.depth)
    x = torch.from_numpy(reader.read(np.arange(len(files))))
    return (x > 127).to(torch.uint8) if schema.values == "binary" else x






def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
