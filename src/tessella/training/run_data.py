"""A run's data, opened again: its own as it was, or other data seen as the run's was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tessella.core.schema import Schema
from tessella.data import Data, open_data
from tessella.data.provenance import RECORDED, difference
from tessella.data.splits import Renumbered
from tessella.foundation import validation
from tessella.foundation.errors import DataError, option
from tessella.foundation.notes import note
from tessella.foundation.text import shown
from tessella.models.spec import Spec


def data_for(spec: Spec, other: str | None = None, *, labelled: bool) -> Data:
    """Open the data of a run, or `other` data seen as the run's was: same size, channels, binarisation, label numbers.

    Args:
        other: another SPEC.
        labelled: whether each example needs a label that the model knows.

    Raises:
        DataError: if it cannot be opened, or is not what the model was made for.
    """
    if other is None:
        data = own_data(spec, labelled=labelled)
        if (what := difference(spec.data, data)) is not None:
            note(f"{data.spec} is not what the run was trained on any more ({what})")
        return data
    schema, options = spec.schema, _reading(spec)
    if schema.is_picture:
        options |= {"size": schema.shape[1:], "channels": schema.shape[0]}
    data = _fitting(spec, other, options, labelled=labelled)
    for line in data.notes:
        note(line)
    return data


def own_data(spec: Spec, place: str | None = None, *, labelled: bool) -> Data:
    """Open the data that a run was trained on, read exactly as it was then.

    Args:
        place: where it lies now, if it was moved.

    Raises:
        DataError: as of `data_for`; asking for the place if none is given.
    """
    if place is not None:
        return _fitting(spec, place, _reading(spec), labelled=labelled)
    where, asked = spec.data.get("spec"), option("data")
    if where is None:
        raise DataError(f"the run does not say what data it was trained on: give {asked}", "no-data")
    try:
        return _fitting(spec, str(where), _reading(spec), labelled=labelled)
    except DataError as error:
        raise DataError(
            f"{error.message} (this is the data that the run was trained on; say with {asked} where it lies now)",
            error.code,
            **error.parameters,
        ) from error


def _reading(spec: Spec) -> dict[str, Any]:
    """The options that a run's data was read with."""
    return {name: value for name, value in spec.data.items() if name not in ("spec", *RECORDED)}


def _fitting(spec: Spec, place: str, options: Mapping[str, Any], *, labelled: bool) -> Data:
    """Open data that fits the model, its labels numbered as the model's."""
    schema, size = spec.schema, options.get("size")
    try:
        options = validation.arguments(open_data, options, "data")
    except validation.Malformed as error:
        raise DataError(f"the run's specification was edited: {error}", "edited") from error
    if size is not None and schema.is_picture and tuple(np.broadcast_to(size, 2)) != schema.shape[1:]:
        raise DataError(
            f"the run's data has size {size}, and its model is made for {_by(schema)}: one was edited", "edited"
        )
    data = open_data(place, **options, like=schema)
    if (data.schema.shape, data.schema.values) != (schema.shape, schema.values):
        raise DataError(
            f"{data.spec} has {data.schema.values} values of shape {_by(data.schema)}, the model is made for "
            f"{schema.values} values of shape {_by(schema)}: give data of that kind",
            "other-kind-of-data",
        )
    if not labelled or data.schema.classes == schema.classes:
        return data
    if not data.schema.classes:
        raise DataError(
            f"{data.spec} has no labels, and the model {spec.model} needs one for every example", "no-labels"
        )
    unknown = [name for name in data.schema.classes if name not in schema.classes]
    if unknown:
        raise DataError(
            f"{data.spec} has classes that the model was not trained on: {', '.join(map(shown, unknown[:8]))}; "
            f"it knows {', '.join(map(shown, schema.classes[:8]))}{', ...' if len(schema.classes) > 8 else ''}",
            "unknown-classes",
            unknown=unknown,
        )
    numbers = np.array([schema.classes.index(name) for name in data.schema.classes], dtype=np.int64)
    splits = {name: Renumbered(split, numbers) for name, split in data.splits.items()}
    all_examples = data.all_examples and Renumbered(data.all_examples, numbers)
    return replace(data, schema=schema, splits=splits, all_examples=all_examples)


def _by(schema: Schema) -> str:
    return "x".join(map(str, schema.shape))
