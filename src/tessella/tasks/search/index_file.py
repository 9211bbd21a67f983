"""Index file of plain arrays with a checksum, written batch by batch.

It also holds a thumbnail of each example, to show search results.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.core.tensors import TensorWriter, read_tensors
from tessella.data.inputs import NamedBatch
from tessella.foundation.errors import DataError, RunError, SpecError, option, task_name
from tessella.foundation.progress import tracking
from tessella.foundation.text import shown
from tessella.kinds.pictures import from_jpeg, images, to_jpeg
from tessella.models.base import Model
from tessella.tasks.search.features import BLOCK, Features, FeatureSurvey, Measure, distance_of_copies, widths

VERSION = 1
THUMB = 96
"""Largest side of a thumbnail in pixels."""
AGAIN = f"make it again with {task_name('index', 'RUN INPUTS')}"


@final
@dataclass(frozen=True)
class Index:
    """Examples that can be searched.

    Attributes:
        model: fingerprint of the weights that computed the features (`Run.fingerprint`).
        names: name of each example; the path of a picture file.
        features: features in each space.
        scale: `[D]`, factors of the latent values.
        copies: for each space, the distance below which 95 % of altered copies are from their originals; the copies
            have a little noise, or are compressed again as JPEG.
        thumbs: thumbnail of each example, JPEG.
    """

    model: str
    names: tuple[str, ...]
    features: Features
    scale: Tensor
    copies: dict[str, float]
    thumbs: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.names)

    def thumb(self, row: int) -> Image.Image:
        """Decode the thumbnail of an example."""
        try:
            return from_jpeg(self.thumbs[row], THUMB)
        except DataError as error:
            raise DataError(f"the index is damaged ({error.message}): {AGAIN}", code="damaged-index") from error


def write_index(path: str | os.PathLike[str], model: Model, examples: Iterable[NamedBatch], fingerprint: str) -> int:
    """Compute the features of all examples and write them to a file, with one batch in memory.

    Args:
        fingerprint: fingerprint of the model's weights.

    Returns:
        The number of examples.

    Raises:
        SpecError: if the model is conditional.
        DataError: if there are no examples.
        RunError: if the file cannot be written.
    """
    survey, count = FeatureSurvey(model), 0
    with TensorWriter(Path(path)) as writer:
        names, thumbs = _Items(writer, "names"), _Items(writer, "thumbs")
        for named in examples:
            x = named.batch.x
            for space, rows in survey.add(x).items():
                writer.append(f"features.{space}", rows.numpy())
            names.add([name.encode("utf-8", "surrogateescape") for name in named.names])
            thumbs.add([to_jpeg(picture) for picture in images(x, model.schema, THUMB)])
            count += len(x)
        scale, altered = survey.scale, survey.altered()
        writer.append("scale", scale.numpy())
        copies = {space: distance_of_copies(space, altered, scale) for space in altered[0][0]}
        writer.finish({"version": VERSION, "model": fingerprint, "copies": copies})
    return count


@final
class _Items:
    """Byte strings written as one concatenated tensor and one of their end positions."""

    def __init__(self, writer: TensorWriter, name: str) -> None:
        self._writer, self._name, self._end = writer, name, 0

    def add(self, items: Sequence[bytes]) -> None:
        ends = self._end + np.cumsum([len(item) for item in items], dtype=np.int64)
        self._end = int(ends[-1])
        self._writer.append(self._name, np.frombuffer(b"".join(items), np.uint8))
        self._writer.append(f"{self._name}.ends", ends)


def read_index(path: str | os.PathLike[str], model: Model, fingerprint: str) -> Index:
    """Read an index of this model; nothing in it is unpickled.

    Raises:
        DataError: if it is missing, damaged, of another kind or version, made with other weights, or does not fit the
            model.
    """
    if not os.path.isfile(path):
        raise DataError(f"there is no index {path}: make one with {task_name('index', 'RUN INPUTS')}", code="no-index")
    try:
        state = read_tensors(Path(path))
        note: dict[str, Any] = state.progress
        if note["version"] != VERSION:
            raise ValueError(f"it has version {note['version']}, but this tessella reads version {VERSION}")
        kept = {n.removeprefix("features."): t for n, t in state.tensors.items() if n.startswith("features.")}
        names = tuple(item.decode("utf-8", "surrogateescape") for item in _cut(state.tensors, "names"))
        thumbs = tuple(_cut(state.tensors, "thumbs"))
        copies = {space: float(note["copies"][space]) for space in kept}
        if not names or "latent" not in kept or {len(names)} != {len(thumbs), *(len(rows) for rows in kept.values())}:
            raise ValueError("its parts have different lengths")
        _check_features(kept, state.tensors["scale"], copies)
        index = Index(str(note["model"]), names, kept, state.tensors["scale"], copies, thumbs)
    except (RunError, KeyError, TypeError, ValueError, IndexError) as error:
        reason = error.message.partition(" (")[2].partition("):")[0] if isinstance(error, RunError) else error
        raise DataError(f"{path} is damaged or not an index ({reason}): {AGAIN}", code="damaged-index") from error
    if index.model != fingerprint:
        raise DataError(
            f"{path} was made by the weights {shown(index.model)}, but this run, a {model.name}, has {fingerprint}: "
            f"search with the run that made it, or {AGAIN}",
            code="index-of-another-model",
        )
    _check_model(path, index, model)
    return index


def _check_model(path: str | os.PathLike[str], index: Index, model: Model) -> None:
    """Check that the index fits the model."""
    if {space: rows.shape[1] for space, rows in index.features.items()} != widths(model):
        raise DataError(f"{path} has features of other sizes than this model's: {AGAIN}", code="damaged-index")
    if (codes := index.features.get("codes")) is not None:
        largest = max(q.codebook_size for q in model.levels)
        if not all(bool(((some >= 0) & (some < largest)).all()) for some in codes.split(BLOCK)):
            raise DataError(f"{path} has codes that this model does not have: {AGAIN}", code="damaged-index")


def _check_features(features: Features, scale: Tensor, copies: dict[str, float]) -> None:
    """Check that the features have the types, shapes and values that `features` returns.

    Raises:
        ValueError: if they do not.
    """
    kinds = {"latent": (torch.float16,), "codes": (torch.uint8, torch.int16, torch.int32)}
    if any(rows.dim() != 2 or rows.dtype not in kinds.get(space, ()) for space, rows in features.items()):
        raise ValueError("its parts have the wrong type or shape")
    if scale.shape != features["latent"].shape[1:] or scale.dtype != torch.float32:
        raise ValueError("its parts have different widths")
    if not all(0 <= number < math.inf for number in copies.values()):
        raise ValueError("its thresholds are out of range")
    if not bool((scale.isfinite() & (scale >= 0)).all() & features["latent"].isfinite().all()):
        raise ValueError("it has numbers that are not finite")


def _cut(tensors: dict[str, Tensor], name: str) -> list[bytes]:
    """Split a concatenated tensor into the byte strings that `_Items` wrote."""
    kinds = [(t.dtype, t.dim()) for t in (tensors[name], tensors[f"{name}.ends"])]
    whole, ends = tensors[name].numpy().tobytes(), tensors[f"{name}.ends"].tolist()
    ordered = [0, *ends] == sorted([0, *ends]) and ends[-1:] in ([], [len(whole)])
    if kinds != [(torch.uint8, 1), (torch.int64, 1)] or not ordered:
        raise ValueError(f"the positions of its {name} are inconsistent")
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


SPARE = 16
"""Additional candidates whose distances are computed again, without cancellation."""


@final
@dataclass(frozen=True)
class Neighbours:
    """Nearest examples to each of Q queries, nearest first: `rows` `[Q, k]` of the index, and `distances` `[Q, k]`."""

    rows: Tensor
    distances: Tensor


@final
@dataclass(frozen=True)
class Pairs:
    """Pairs of near rows of the index, nearest first.

    Attributes:
        rows: `[P, 2]`, the smaller row number first.
        distances: `[P]`.
        total: number of pairs within the threshold; more than P if the farther ones were left out.
        threshold: largest distance.
    """

    rows: Tensor
    distances: Tensor
    total: int
    threshold: float


@torch.no_grad()
def nearest(index: Index, queries: Features, k: int, space: str = "latent", *, block: int = BLOCK) -> Neighbours:
    """Find the k examples of the index that are nearest to each query.

    Of equal distances the earlier row comes first.

    Args:
        queries: features from `features`.
        k: number of examples; a number larger than the index returns all.
        block: rows compared at once; it limits the memory and does not change the result.

    Raises:
        SpecError: if k is less than 1, or there is no such space.
    """
    if k < 1:
        raise SpecError(f"{option('count')} must be at least 1, got {k}", code="out-of-range", option="count")
    rows, measure = _of_space(index, space), Measure(space, index.scale)
    asked, kept = measure.ready(queries[space]), min(k + SPARE, len(index))
    best = torch.full((len(asked), 0), torch.inf, dtype=torch.float64)
    at = torch.zeros(len(asked), 0, dtype=torch.int64)
    for first in range(0, len(index), block):
        some = measure.ready(rows[first : first + block])
        here = torch.arange(first, first + len(some)).expand(len(asked), -1)
        best, at = torch.cat([best, measure.between(asked, some)], 1), torch.cat([at, here], 1)
        # the term added makes the first of equals the nearest
        order = (best + 1e-12 * at).topk(min(kept, best.shape[1]), largest=False).indices
        best, at = best.gather(1, order), at.gather(1, order)
    # each query by itself: the order of summation depends on the number of queries
    near = [measure.exact(asked[i : i + 1], measure.ready(rows[some])[None]) for i, some in enumerate(at)]
    exact = torch.cat(near).double()
    order = (exact + 1e-12 * at).argsort(1)[:, :k]
    return Neighbours(at.gather(1, order), exact.gather(1, order).float())


@torch.no_grad()
def duplicates(
    index: Index,
    space: str = "latent",
    threshold: float | None = None,
    *,
    most: int = 10_000,
    block: int = BLOCK // 4,
) -> Pairs:
    """Find all pairs of the index with a distance of at most a threshold.

    Args:
        threshold: None: `index.copies`, which finds 95 % of slightly altered copies.
        most: maximum number of pairs to return, the nearest.
        block: rows compared at once.

    Raises:
        SpecError: if there is no such space, or the threshold is negative.
    """
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise SpecError(
            f"{option('threshold')} must be a number of at least 0, got {threshold}",
            code="out-of-range",
            option="threshold",
        )
    rows, measure = _of_space(index, space), Measure(space, index.scale)
    limit = index.copies[space] if threshold is None else threshold
    starts = range(0, len(index), block)
    found, apart, total = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), 0
    with tracking("comparing", len(starts) * (len(starts) + 1) // 2) as advance:
        for i in starts:
            a = measure.ready(rows[i : i + block])
            for j in starts[i // block :]:
                b = a if i == j else measure.ready(rows[j : j + block])
                slack = 0.0 if measure.codes else 1e-3 * float(a.square().mean().sqrt())
                near = (measure.between(a, b) <= limit + slack).nonzero()
                near = near[near[:, 0] + i < near[:, 1] + j]
                if len(near):
                    exact = torch.cat([measure.exact(a[p[:, 0]], b[p[:, 1]][:, None])[:, 0] for p in near.split(block)])
                    near, exact = near[exact <= limit], exact[exact <= limit]
                    total += len(near)
                    found = torch.cat([found, near + torch.tensor([i, j])])
                    apart = torch.cat([apart, exact])
                    order = apart.argsort(stable=True)[:most]
                    found, apart = found[order], apart[order]
                advance()
    return Pairs(found, apart, total, limit)


def _of_space(index: Index, space: str) -> Tensor:
    if space not in index.features:
        there = ", ".join(index.features)
        raise SpecError(f"the index has no space {space!r}; there are: {there}", code="no-such-space", space=space)
    return index.features[space]
