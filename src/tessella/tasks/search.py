"""Finding examples that are alike: an index of many, the nearest of it to others, and what it holds twice.

Two examples are compared in one of two spaces:

    latent  z of each (of a model of codes the codes' vectors, of others the posterior's mean), a grid averaged to at
            most `GRID` x `GRID` positions; the distance is the root mean square of the differences, each number
            weighted by its use: sqrt(1 - the posterior's mean variance), which is 0 for a unit that says nothing;
            under another prior than N(0, I) in units of the number's own deviation
    codes   of a model of codes, position by position; the distance is the share of codes that differ

The search is exact: all distances are computed, a block at a time. The index is one file of plain arrays with its own
checksum, and holds a small picture of each example, so that what is found can be shown.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tessella.bottlenecks.flow import variance_of
from tessella.coding.codes_file import Named
from tessella.core.batches import Batch, FixedBatch, fixed_batches
from tessella.core.rng import Noise, example_keys
from tessella.core.schema import Binary, Schema
from tessella.core.tensor_files import TensorWriter
from tessella.core.tensors import read_tensors
from tessella.data.raw import shown
from tessella.foundation.errors import DataError, RunError, SpecError
from tessella.kinds import pictures
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors.normal import StandardNormalModule

VERSION = 1
GRID = 7
"""Positions a side that a grid of vectors is averaged to, at most."""
BLOCK = 1 << 13
"""Rows of the index that distances are computed to at once."""
COPIED = 256
"""Examples that altered copies are made of, at most."""
FOUND_AGAIN = 0.95
"""Share of the altered copies that lie nearer to their originals than the threshold of near-duplicates."""
SPARE = 16
"""Candidates beyond those asked for whose distances are computed once more, without cancellation."""
THUMB, QUALITY = 96, 85
Progress = Callable[[int, int], None]
Features = dict[str, Tensor]
"""Examples as rows of numbers in each space: `latent` `[N, D]` float16, `codes` `[N, P]` of the smallest integers."""


@final
@dataclass(frozen=True)
class Index:
    """Examples to be searched.

    Attributes:
        model: fingerprint of the weights that looked at them (`checkpoint.fingerprint`).
        names: what each is called; of picture files the path.
        features: of each space.
        scale: `[D]`, what the latent numbers are multiplied by.
        copies: of each space the distance under which 95 % of altered copies lie from their originals: with a little
            noise, or saved again as JPEG.
        thumbs: a small picture of each, JPEG.
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
        """The small picture of an example."""
        return _thumb(self.thumbs[row])


@final
@dataclass(frozen=True)
class Neighbours:
    """The nearest to each of Q examples, nearest first: `rows` `[Q, k]` of the index, and `distances` `[Q, k]`."""

    rows: Tensor
    distances: Tensor


@final
@dataclass(frozen=True)
class Pairs:
    """Rows of the index that lie near each other, nearest first.

    Attributes:
        rows: `[P, 2]`, the smaller first.
        distances: `[P]`.
        total: how many there are; more than P if the farther ones were left out.
        threshold: below which they lie.
    """

    rows: Tensor
    distances: Tensor
    total: int
    threshold: float


# making


@final
@dataclass(frozen=True)
class Written:
    """What an index file was given: how many examples, and how many numbers of each in each space."""

    examples: int
    widths: dict[str, int]


def index(model: Model, examples: Iterable[Named], fingerprint: str) -> Index:
    """Look at all examples, and keep what an index holds of them in memory.

    Args:
        examples: names and stored values, a batch at a time; they are not kept.
        fingerprint: of the model's weights.

    Raises:
        SpecError: if the model sees labels.
        DataError: if there are no examples.
    """
    unit_statistics, names, thumbs = _Survey(model), [], []
    parts: dict[str, list[Tensor]] = {}
    for called, x in examples:
        for space, rows in unit_statistics.look(x).items():
            parts.setdefault(space, []).append(rows)
        names += called
        thumbs += [_jpeg(picture) for picture in small(x, model.schema)]
    scale, copies = unit_statistics.results()
    features = {space: torch.cat(rows) for space, rows in parts.items()}
    return Index(fingerprint, tuple(names), features, scale, copies, tuple(thumbs))


def write_index(path: str | os.PathLike[str], model: Model, examples: Iterable[Named], fingerprint: str) -> Written:
    """Look at all examples, and write what `write(path, index(...))` would; no more than a batch is in memory.

    Raises:
        SpecError, DataError: as of `index`.
        RunError: if the file cannot be written.
    """
    unit_statistics, count, widths = _Survey(model), 0, {}
    with TensorWriter(Path(path)) as writer:
        names, thumbs = _Items(writer, "names"), _Items(writer, "thumbs")
        for called, x in examples:
            for space, rows in unit_statistics.look(x).items():
                writer.append(f"features.{space}", rows.numpy())
                widths[space] = rows.shape[1]
            names.add([name.encode("utf-8", "surrogateescape") for name in called])
            thumbs.add([_jpeg(picture) for picture in small(x, model.schema)])
            count += len(x)
        scale, copies = unit_statistics.results()
        writer.append("scale", scale.numpy())
        writer.finish({"version": VERSION, "model": fingerprint, "copies": copies})
    return Written(count, widths)


@final
class _Survey:
    """What is found out of many examples on the way: the use of each number, and how far copies lie apart.

    Copies are made of the `COPIED` examples with the least keys, which are the same in whatever order they come.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._count = model, 0
        self._variance = self._center = self._sum = self._squares = torch.zeros((), dtype=torch.float64)
        self._keys, self._copied = torch.zeros(0, dtype=torch.int64), torch.zeros(0)

    @torch.no_grad()
    def look(self, x: Tensor) -> Features:
        """The features of examples `[B, *shape]`, which are taken note of."""
        looked = _look(self._model, x)
        z = looked.features["latent"].double()
        if not self._count:
            self._center, self._copied = z.mean(0), x[:0]
        apart = z - self._center
        self._count, self._variance = self._count + len(x), self._variance + looked.variance.sum(0)
        self._sum, self._squares = self._sum + apart.sum(0), self._squares + apart.square().sum(0)
        keys = example_keys(x)
        if len(self._keys) < COPIED or bool((keys < self._keys[-1]).any()):
            every, rows = np.unique(torch.cat([self._keys, keys]).numpy(), return_index=True)
            self._keys = torch.from_numpy(every[:COPIED])
            self._copied = torch.cat([self._copied, x])[torch.from_numpy(rows[:COPIED])]
        return looked.features

    @torch.no_grad()
    def results(self) -> tuple[Tensor, dict[str, float]]:
        """The scale, and of each space the distance under which most copies lie from their originals.

        Raises:
            DataError: if there were no examples.
        """
        if not self._count:
            raise DataError("there are no examples to index")
        model, x = self._model, self._copied
        moved = self._squares / self._count - (self._sum / self._count).square()
        scale = _scale(model, self._variance / self._count, moved)
        first = features(model, x)
        altered = [
            features(model, copy) for copy in _altered(x, model.schema, Noise(0, stream="copies").of(self._keys))
        ]
        copies = [(first, copy) for copy in altered]
        return scale, {space: _apart(space, copies, scale) for space in first}


def _scale(model: Model, variance: Tensor, moved: Tensor) -> Tensor:
    """What each latent number is multiplied by, `[D]`: its use, over its deviation where that need not be 1.

    Args:
        variance: the posterior's, on average.
        moved: the variance of the posterior's mean.
    """
    total = torch.ones_like(variance)
    if isinstance(model, LatentVariableModel) and model.has_bound and not isinstance(model.prior, StandardNormalModule):
        total = (variance + moved).clamp_min(1e-12)
    return ((1 - variance / total).clamp_min(1e-12) / total).sqrt().float()


@torch.no_grad()
def features(model: Model, x: Tensor) -> Features:
    """Examples `[B, *shape]` as an index holds them.

    Raises:
        SpecError: if the model sees labels.
    """
    return _look(model, x).features


@dataclass(frozen=True)
class _Look:
    """Features, and the posterior's variance of each latent number, `[B, D]`; zeros where there is none."""

    features: Features
    variance: Tensor


def _look(model: Model, x: Tensor) -> _Look:
    if isinstance(model, CodeModel):
        model = model.with_uniform_prior()
    elif model.conditional:
        raise SpecError(f"the model {model.name} tells in z only what the label does not: search with a vae or vqvae")
    parts = [_of_batch(model, batch) for batch in fixed_batches(Batch(x), model.device)]
    spaces = {space: torch.cat([part.features[space] for part in parts]) for space in parts[0].features}
    return _Look(spaces, torch.cat([part.variance for part in parts]))


def _of_batch(model: Model, batch: FixedBatch) -> _Look:
    latent = model.encode(batch.x)
    z = _averaged(latent.z)
    variance = torch.zeros_like(z) if latent.posterior is None else _averaged(variance_of(latent.posterior))
    found = {"latent": z[: batch.count].half().cpu()}
    if isinstance(model, CodeModel):
        codes = torch.cat([c.flatten(1) for c in latent.codes], 1)[: batch.count].cpu()
        largest = max(q.codebook_size for q in model.levels) - 1
        found["codes"] = codes.to(torch.uint8 if largest < 256 else torch.int16 if largest < 1 << 15 else torch.int32)
    return _Look(found, variance[: batch.count].cpu().double())


def _averaged(z: Tensor) -> Tensor:
    """z `[B, *latent_shape]` as rows; of a grid the mean of each of at most `GRID` x `GRID` parts."""
    if z.dim() == 4:
        z = F.adaptive_avg_pool2d(z, (min(GRID, z.shape[2]), min(GRID, z.shape[3])))
    return z.flatten(1)


def _altered(x: Tensor, schema: Schema, noise: Noise) -> list[Tensor]:
    """Copies as they come about: with noise of one hundredth of the range, and saved again as JPEG."""
    if schema.values == Binary():
        return [torch.where(noise.uniform(*x.shape) < 0.01, 1 - x, x)]
    low, high = schema.values.low, schema.values.high
    copy = x.float() + 0.01 * (high - low) * noise.normal(*x.shape)
    if not schema.values.discrete:
        return [copy]
    copies = [copy.clamp(low, high).round().to(torch.uint8)]
    if schema.is_picture and schema.shape[0] in (1, 3):
        again = [np.asarray(_opened(_jpeg(picture))) for picture in images(x, schema)]
        copies.append(torch.from_numpy(np.stack(again).reshape(len(x), *x.shape[2:], -1)).movedim(3, 1).contiguous())
    return copies


def _apart(space: str, copies: Sequence[tuple[Features, Features]], scale: Tensor) -> float:
    """The distance under which most copies lie from their originals."""
    measure = _Measure(space, scale)
    each = [measure.exact(measure.ready(a[space]), measure.ready(b[space])[:, None])[:, 0] for a, b in copies]
    return float(torch.quantile(torch.cat(each).double(), FOUND_AGAIN))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _opened(jpeg: bytes) -> Image.Image:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        image.load()
        return image


def _thumb(jpeg: bytes) -> Image.Image:
    """A small picture from a file, where it may be anything.

    Raises:
        DataError: if it is no JPEG, or not small.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if max(image.size) <= THUMB:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("the index has a damaged picture: make it again with tessella index") from error
    raise DataError("the index has a picture that is not small: make it again with tessella index")


def images(x: Tensor, schema: Schema) -> list[Image.Image]:
    """Examples `[B, *shape]` as pictures; what is transparent is laid on white."""
    found = []
    for picture in pictures.to_uint8(x, schema):
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.shape[2]]
        image = Image.fromarray(picture[..., 0] if mode == "L" else picture)
        if mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        found.append(image)
    return found


def small(x: Tensor, schema: Schema) -> list[Image.Image]:
    """The same, none of them large."""
    found = images(x, schema)
    for image in found:
        image.thumbnail((THUMB, THUMB))
    return found


# searching


@final
class _Measure:
    """Distances in one space."""

    def __init__(self, space: str, scale: Tensor) -> None:
        self.codes, self.scale = space == "codes", scale

    def ready(self, rows: Tensor) -> Tensor:
        """Features as they are compared."""
        return rows if self.codes else rows.float() * self.scale

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """`[A, D]`, `[B, D]` to `[A, B]`; of real numbers by a product, which is less exact where they are near."""
        if self.codes:
            return torch.stack([(row != b).sum(1) for row in a]) / a.shape[1]
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
        return (squares.clamp_min(0) / a.shape[1]).sqrt()

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """`[A, D]`, `[A, n, D]` to `[A, n]`."""
        if self.codes:
            return (a[:, None] != b).sum(2) / a.shape[1]
        return (a[:, None] - b).square().mean(2).sqrt()


@torch.no_grad()
def nearest(index: Index, queries: Features, k: int, space: str = "latent", *, block: int = BLOCK) -> Neighbours:
    """The k examples of the index nearest to each query; of equally near ones those that come first.

    Args:
        queries: what `features` gives.
        k: more than the index holds means all.
        block: rows that are compared at once; it bounds the memory and changes nothing else.

    Raises:
        SpecError: if k is less than 1, or there is no such space.
    """
    if k < 1:
        raise SpecError(f"{k} neighbours cannot be found: give at least 1")
    rows, measure = _of_space(index, space), _Measure(space, index.scale)
    asked, kept = measure.ready(queries[space]), min(k + SPARE, len(index))
    best = torch.full((len(asked), 0), torch.inf, dtype=torch.float64)
    at = torch.zeros(len(asked), 0, dtype=torch.int64)
    for first in range(0, len(index), block):
        some = measure.ready(rows[first : first + block])
        here = torch.arange(first, first + len(some)).expand(len(asked), -1)
        best, at = torch.cat([best, measure.between(asked, some)], 1), torch.cat([at, here], 1)
        # what is added makes the first of equals the nearest
        order = (best + 1e-12 * at).topk(min(kept, best.shape[1]), largest=False).indices
        best, at = best.gather(1, order), at.gather(1, order)
    # each query by itself: how numbers are added hangs on how many queries there are
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
    progress: Progress | None = None,
) -> Pairs:
    """All pairs of the index that are not farther from each other than a threshold.

    Args:
        threshold: None: `index.copies`, so that 95 % of slightly altered copies would be found.
        most: pairs that are kept, the nearest.
        block: rows that are compared at once.
        progress: told (blocks done, blocks in all).

    Raises:
        SpecError: if there is no such space, or the threshold is negative.
    """
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise SpecError(f"a threshold of {threshold} cannot be: give a number from 0 up")
    rows, measure = _of_space(index, space), _Measure(space, index.scale)
    limit = index.copies[space] if threshold is None else threshold
    starts = range(0, len(index), block)
    found, apart, total, done = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), 0, 0
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
            done += 1
            if progress:
                progress(done, len(starts) * (len(starts) + 1) // 2)
    return Pairs(found, apart, total, limit)


def _of_space(index: Index, space: str) -> Tensor:
    if space not in index.features:
        raise SpecError(f"the index has no space {space!r}; there are: {', '.join(index.features)}")
    return index.features[space]


# files


def write(path: str | os.PathLike[str], index: Index) -> None:
    """Keep an index in a file, whole or not at all."""
    with TensorWriter(Path(path)) as writer:
        for space, rows in index.features.items():
            writer.append(f"features.{space}", rows.numpy())
        writer.append("scale", index.scale.numpy())
        _Items(writer, "names").add([name.encode("utf-8", "surrogateescape") for name in index.names])
        _Items(writer, "thumbs").add(index.thumbs)
        writer.finish({"version": VERSION, "model": index.model, "copies": index.copies})


@final
class _Items:
    """Items of any length as one tensor of bytes, one after the other, and one of where each ends."""

    def __init__(self, writer: TensorWriter, name: str) -> None:
        self._writer, self._name, self._end = writer, name, 0

    def add(self, items: Sequence[bytes]) -> None:
        ends = self._end + np.cumsum([len(item) for item in items], dtype=np.int64)
        self._end = int(ends[-1])
        self._writer.append(self._name, np.frombuffer(b"".join(items), np.uint8))
        self._writer.append(f"{self._name}.ends", ends)


def read(path: str | os.PathLike[str]) -> Index:
    """An index from a file; nothing in it is unpickled.

    Raises:
        DataError: if it is missing, damaged, something else, or a newer version's.
    """
    if not os.path.isfile(path):
        raise DataError(f"there is no index {path}: tessella index RUN FOLDER makes one")
    try:
        state = read_tensors(Path(path))
        note: dict[str, Any] = state.progress
        if note["version"] > VERSION:
            raise DataError(f"{path} has version {note['version']}; this tessella reads up to {VERSION}: upgrade it")
        kept = {n.removeprefix("features."): t for n, t in state.tensors.items() if n.startswith("features.")}
        names = tuple(item.decode("utf-8", "surrogateescape") for item in _cut(state.tensors, "names"))
        thumbs = tuple(_cut(state.tensors, "thumbs"))
        copies = {space: float(note["copies"][space]) for space in kept}
        if not names or "latent" not in kept or {len(names)} != {len(thumbs), *(len(rows) for rows in kept.values())}:
            raise ValueError("its parts have different lengths")
        _check_features(kept, state.tensors["scale"], copies)
        return Index(str(note["model"]), names, kept, state.tensors["scale"], copies, thumbs)
    except (RunError, KeyError, TypeError, ValueError, IndexError) as error:
        reason = str(error).partition(" (")[2].partition("):")[0] if isinstance(error, RunError) else error
        raise DataError(f"{path} is damaged, or no index ({reason}): make it again with tessella index") from error


def _check_features(features: Features, scale: Tensor, copies: dict[str, float]) -> None:
    """Whether rows of each space are what `features` gives.

    Raises:
        ValueError: if they are of other types, shapes or values.
    """
    kinds = {"latent": (torch.float16,), "codes": (torch.uint8, torch.int16, torch.int32)}
    if any(rows.dim() != 2 or rows.dtype not in kinds.get(space, ()) for space, rows in features.items()):
        raise ValueError("its parts are of other types or shapes")
    if scale.shape != features["latent"].shape[1:] or scale.dtype != torch.float32:
        raise ValueError("its parts have different widths")
    if not all(0 <= number < math.inf for number in copies.values()):
        raise ValueError("its thresholds cannot be")
    if not bool((scale.isfinite() & (scale >= 0)).all() & features["latent"].isfinite().all()):
        raise ValueError("it has numbers that are not finite")


def check(index: Index, model: Model, fingerprint: str) -> None:
    """Whether this index is of this model, of its weights as they are.

    Raises:
        DataError: if it is of other weights, or holds what these cannot give.
    """
    if index.model != fingerprint:
        raise DataError(
            f"the index is of a model whose weights are {shown(index.model)}, and this run's, a {model.name}'s, are "
            f"{fingerprint}: search with the run that made it, or make it again with tessella index"
        )
    own = _widths(model)
    if {space: rows.shape[1] for space, rows in index.features.items()} != own:
        raise DataError("the index has other spaces than this model's: make it again with tessella index")
    if (codes := index.features.get("codes")) is not None and isinstance(model, CodeModel):
        largest = max(q.codebook_size for q in model.levels)
        if not all(bool(((some >= 0) & (some < largest)).all()) for some in codes.split(BLOCK)):
            raise DataError("the index has codes that this model has not: make it again with tessella index")


def _widths(model: Model) -> dict[str, int]:
    """Numbers that an index has of each example in each space."""
    units, *grid = model.latent_shape
    found = {"latent": units * math.prod(min(GRID, side) for side in grid)}
    if isinstance(model, CodeModel):
        found["codes"] = sum(math.prod(q.code_shape) for q in model.levels)
    return found


def _cut(tensors: dict[str, Tensor], name: str) -> list[bytes]:
    """Items that were written one after the other."""
    kinds = [(t.dtype, t.dim()) for t in (tensors[name], tensors[f"{name}.ends"])]
    whole, ends = tensors[name].numpy().tobytes(), tensors[f"{name}.ends"].tolist()
    ordered = [0, *ends] == sorted([0, *ends]) and ends[-1:] in ([], [len(whole)])
    if kinds != [(torch.uint8, 1), (torch.int64, 1)] or not ordered:
        raise ValueError(f"its {name} do not lie where they should")
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
