"""Examples as codes in a file, and back.

The file holds plain arrays, which `numpy.load(file, allow_pickle=False)` reads:

    version     1
    model       fingerprint of the weights that the codes are of
    names       [N], what each example is called: a path without ending
    sizes       [N, 2], height and width of each picture; [N, 0] of vectors
    level0 ...  [N, C, h, w], the codes of each level, coarsest first (of vectors [N, C])
                of pictures of several sizes level0.0, level0.1, ...: one array [C, h, w] a picture
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.core.batches import Batch, filled, fixed_batches, size_of, to_read
from tessella.core.rng import seeded
from tessella.data import Split
from tessella.data.folders.read import look as look_at
from tessella.data.folders.read import picture_files
from tessella.data.inputs import read_pictures
from tessella.data.raw import abridged, shown
from tessella.data.sources import NumpyArchive
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.files import write_atomic
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.tasks.generate import from_split

VERSION = 1
Progress = Callable[[int, int], None]
Named = tuple[Sequence[str], Tensor]
"""Examples of one size, `[B, *shape]`, and what they are called."""
Level = np.ndarray | list[np.ndarray]
"""The codes of one level, an array an example; stacked if they are of one shape."""


@final
@dataclass(frozen=True)
class Coded:
    """Examples as codes.

    Attributes:
        model: fingerprint of the weights that the codes are of (`checkpoint.fingerprint`).
        names: what each example is called: a path without ending.
        sizes: `[N, 2]`, height and width of each picture; `[N, 0]` of vectors.
        levels: the codes of each level, coarsest first: of each example an array `[C, h, w]` or `[C]`.
    """

    model: str
    names: tuple[str, ...]
    sizes: np.ndarray
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.names)


# examples


def examples(
    model: Model,
    inputs: Sequence[str],
    split: Callable[[], Split],
    split_name: str,
    *,
    full_size: bool = False,
    endings: bool = False,
    without: Callable[[str, str], bool] | None = None,
    progress: Progress | None = None,
) -> Iterator[Named]:
    """Examples to encode, read as they are asked for.

    Args:
        inputs: picture files, folders of them, or numbers of examples of the split; none for all of the split.
        split: opens the split.
        full_size: leave pictures in files the size that they have, instead of fitting them to what was trained on.
        endings: call a picture in a file by the path that opens it, instead of a name without ending.
        without: told each picture's name and file before the first is read; those for which it is true are left out.
        progress: told (examples given, examples in all).

    Raises:
        DataError: if there is no such input, or a file that is named cannot be read; those that cannot be read in a
            folder are left out with a warning.
    """
    items = _items(inputs, split, split_name, endings=endings)
    if full_size and any(item.file is None for item in items):
        raise SpecError("--full-size is for picture files and folders; a split's pictures are fitted already")
    _name_apart(items)
    every = len(items)
    items = [item for item in items if not (without and item.file is not None and without(item.name, item.file))]
    done, broken = 0, []
    trained, at_once = model.schema.shape[1:], to_read(model.schema.shape, model.device)

    def kind(item: _Item) -> tuple[bool, tuple[int, ...]]:
        """Whether it is read from a file, and its size: examples that are of one kind can be of one batch."""
        return item.file is not None, _size(item, trained) if full_size else trained

    for (from_file, size), run in groupby(items, key=kind):
        while some := list(islice(run, at_once if size == trained else 1)):
            if from_file:
                x, some = _read(model, some, broken, size)
            else:
                x = from_split(split(), [item.number for item in some], split_name).x
            done += len(some)
            if some:
                yield [item.name for item in some], x
            if progress:
                progress(done + len(broken), len(items))
    if broken:
        note(f"{len(broken)} of {len(items)} pictures could not be read and were skipped: {abridged(broken)}")
    if not done and len(items) == every:
        raise DataError(f"none of the pictures in {', '.join(inputs)} can be read")


@dataclass(slots=True)
class _Item:
    """A picture file, named or found in a folder, or an example of the split by its number."""

    name: str
    file: str | None = None
    number: str = ""
    found: bool = False


def _items(inputs: Sequence[str], split: Callable[[], Split], split_name: str, *, endings: bool) -> list[_Item]:
    if not inputs:
        return [_Item(f"{split_name}-{number}", number=str(number)) for number in range(len(split()))]
    items = []
    for given in inputs:
        if os.path.isdir(given):
            names, notes = picture_files(given)
            for line in notes:
                note(f"{given}: {line}")
            items += [
                _of_file(os.path.join(given, n), None if endings else os.path.splitext(n)[0], True) for n in names
            ]
        elif os.path.isfile(given):
            items.append(_of_file(given, None if endings else Path(given).stem))
        elif given.isdecimal():
            items.append(_Item(f"{split_name}-{int(given)}", number=given))
        else:
            raise DataError(
                f"no such picture: {shown(given)}; give files or folders that exist, or numbers of examples"
            )
    return items


def _of_file(path: str, name: str | None, found: bool = False) -> _Item:
    """Without a name it is called by its path: one text, of which there may be very many."""
    return _Item(path if name is None else name, path, found=found)


def _name_apart(items: Sequence[_Item]) -> None:
    """Give the second example of a name another one."""
    taken = set()
    for item in items:
        name, number = item.name, 2
        while item.name in taken:
            item.name, number = f"{name}-{number}", number + 1
        taken.add(item.name)


def _size(item: _Item, trained: tuple[int, ...]) -> tuple[int, ...]:
    """A picture's own size; of one that cannot be read the size trained on, and reading it will say so."""
    header = None if item.file is None else look_at(item.file)
    return trained if header is None or header.trouble else header.size


def _read(model: Model, items: Sequence[_Item], broken: list[str], size: tuple[int, ...]) -> tuple[Tensor, list[_Item]]:
    """The pictures `[B, C, H, W]` that can be read, and which they are."""
    parts, good = [], []
    for item in items:
        assert item.file is not None
        try:
            parts.append(read_pictures(model.schema, [item.file], size))
            good.append(item)
        except DataError as error:
            if not item.found or not model.schema.is_picture or not model.schema.values.discrete:
                raise
            broken.append(f"{item.name} ({str(error).partition(' cannot be read: ')[2]})")
    return torch.cat(parts) if parts else torch.empty(0), good


# codes


@torch.inference_mode()
def encode(model: CodeModel, examples: Iterable[Named], fingerprint: str) -> Coded:
    """The codes of all examples.

    Args:
        examples: of one size each time; pictures may have other sizes than those trained on.
        fingerprint: of the model's weights.
    """
    names: list[str] = []
    sizes: list[tuple[int, ...]] = []
    levels: list[list[np.ndarray]] = [[] for _ in model.levels]
    for called, x in examples:
        for kept, quantizer, c in zip(levels, model.levels, codes_of(model, x), strict=True):
            kept.extend(c.numpy().astype(np.min_scalar_type(quantizer.codebook_size - 1)))
        names += called
        sizes += [tuple(x.shape[2:])] * len(x)
    if not names:
        raise DataError("there are no examples to encode")
    alike = all(len({c.shape for c in kept}) == 1 for kept in levels)
    whole = tuple(np.stack(kept) if alike else kept for kept in levels)
    return Coded(fingerprint, tuple(names), np.array(sizes, np.int64).reshape(len(names), -1), whole)


@torch.inference_mode()
def codes_of(model: CodeModel, x: Tensor) -> tuple[Tensor, ...]:
    """The codes of all levels, `[B, *code_shape]` int64 each, of examples `[B, *shape]`.

    Pictures of another size than those trained on are encoded one by one.
    """
    size = None if x.shape[1:] == model.schema.shape else 1
    parts = [
        [level[: batch.count].cpu() for level in model.encode(batch.x).codes]
        for batch in fixed_batches(Batch(x), model.device, size)
    ]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


@torch.inference_mode()
def decode(
    model: CodeModel, coded: Coded, *, draw: bool = False, seed: int = 0, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The examples one by one: what each is called, and `[*shape]` in stored units, float32, of its own size.

    Args:
        coded: what `check` finds no fault with.
        draw: draw from p(x | z) instead of taking its mean.
        seed: of the draws.
        progress: told (examples done, examples in all).
    """
    trained = model.schema.shape[1:]
    at_once = size_of(model.schema.shape, model.device) if (coded.sizes == trained).all() else 1
    for first in range(0, len(coded), at_once):
        rows = slice(first, first + at_once)
        z = model.lookup([filled(_tensor(level[rows]), at_once, model.device) for level in coded.levels])
        sizes = [tuple(size) for size in coded.sizes[rows].tolist()]
        drawing = model.decode(grown(model, z, sizes[0]))
        with seeded(seed + (first << 32), model.device):
            x = (drawing.sample() if draw else drawing.mean)[: len(sizes)].cpu()
        for name, size, one in zip(coded.names[rows], sizes, x, strict=True):
            yield name, one[:, : size[0], : size[1]] if size else one
        if progress:
            progress(min(first + at_once, len(coded)), len(coded))


def grown(model: Model, z: Tensor, size: tuple[int, ...]) -> Tensor:
    """z `[B, D, h, w]` such that it is drawn at least as large as `size`.

    A grid like the trained one is drawn as a picture like the trained ones; a larger one takes one more position.
    """
    alike = tuple(z.shape[2:]) == model.latent_shape[1:]
    larger = any(a > b for a, b in zip(size, model.schema.shape[1:], strict=True))
    return F.pad(z, (0, 1, 0, 1), mode="replicate") if alike and larger else z


def check(coded: Coded, model: CodeModel, fingerprint: str) -> None:
    """Whether these are codes of this model, of its weights as they are.

    Raises:
        DataError: if they are of other weights, out of range, or of another shape than their pictures' sizes demand.
    """
    if coded.model != fingerprint:
        raise DataError(
            f"these are codes of a model whose weights are {shown(coded.model)}, and this run's are {fingerprint}: "
            "decode with the run that made them, or encode again"
        )
    stacked = all(isinstance(level, np.ndarray) for level in coded.levels)
    try:
        for rows in [slice(None)] if stacked else [slice(i, i + 1) for i in range(len(coded))]:
            model.checked_codes([_tensor(level[rows]) for level in coded.levels])
    except SpecError as error:
        raise DataError(str(error)) from error
    stride = model.downsampling[-1]
    for name, size, codes in zip(coded.names, coded.sizes.tolist(), coded.levels[-1], strict=True):
        if [-(-side // stride) for side in size] != list(codes.shape[1:]) or 0 in size:
            raise DataError(f"{shown(name)} has codes that do not fit its size {size}: encode it again")


def _tensor(codes: Level) -> Tensor:
    return torch.from_numpy(np.asarray(codes).astype(np.int64))


# files


def write(path: str, coded: Coded) -> None:
    """Keep codes in a file, whole or not at all."""
    arrays = {"version": np.array(VERSION), "model": np.array(coded.model), "names": np.array(coded.names, dtype=str)}
    arrays["sizes"] = coded.sizes
    for number, level in enumerate(coded.levels):
        if isinstance(level, np.ndarray):
            arrays[f"level{number}"] = level
        else:
            arrays |= {f"level{number}.{i}": codes for i, codes in enumerate(level)}

    def save(draft: Path) -> None:
        with draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

    write_atomic(Path(path), save)


def read(path: str) -> Coded:
    """Codes from a file; nothing in it is unpickled.

    Raises:
        DataError: if the file is missing, damaged, something else, or a newer version's.
    """
    if not os.path.isfile(path):
        raise DataError(f"no such file: {path}; tessella encode RUN INPUTS -o FILE makes one")
    archive = NumpyArchive(path)
    if not {"version", "model", "names", "sizes"} <= set(archive):
        raise DataError(f"{path} holds no codes (but {abridged(list(archive))}): tessella encode makes such files")

    def array(key: str, kinds: str, dims: int) -> np.ndarray:
        found = archive.get(key)
        if found is None or found.dtype.kind not in kinds or found.ndim != dims:
            raise DataError(f"{path} is damaged or was edited ({key} is missing or no such array): encode again")
        return found

    version: Any = array("version", "iu", 0)
    if version > VERSION:
        raise DataError(f"{path} has version {version}; this tessella reads up to {VERSION}: upgrade it")
    names, sizes = tuple(map(str, array("names", "U", 1).tolist())), array("sizes", "iu", 2)
    dims, levels = sizes.shape[1] + 1, []
    while f"level{len(levels)}" in archive or f"level{len(levels)}.0" in archive:
        key = f"level{len(levels)}"
        whole = key in archive
        levels.append(
            array(key, "iu", dims + 1) if whole else [array(f"{key}.{i}", "iu", dims) for i in range(len(names))]
        )
    if not names or not levels or any(len(part) != len(names) for part in (sizes, *levels)):
        raise DataError(f"{path} is damaged or was edited (its arrays have no or different lengths): encode again")
    return Coded(str(array("model", "U", 0)), names, sizes, tuple(levels))
