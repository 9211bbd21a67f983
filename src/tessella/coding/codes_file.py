"""Codes of examples in an .npz file of plain arrays.

version   int           version of this format
model     str           fingerprint of the weights that made the codes
names     str [N]       path of each example without ending
sizes     int [N, rank] height and width of each picture, length of each signal; [N, 0] for vectors
level0    int [N, C, *grid], the coarsest level; level1, ...; -1 after the end of a signal
level0.i  instead, if pictures differ in size: array [C, *grid] of example i
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.core import observed
from tessella.core.batches import Batch, filled, fixed_batches, size_of
from tessella.core.rng import chunks, seeded
from tessella.data.array_files import NumpyArchive
from tessella.data.inputs import NamedBatch
from tessella.foundation.errors import DataError, SpecError, task_name
from tessella.foundation.files import write_atomic
from tessella.foundation.progress import tracking
from tessella.foundation.text import abridged, shown
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.networks.conv import crop

VERSION = 1
Level = np.ndarray | list[np.ndarray]
"""Codes of one level, one array per example; stacked if all have one shape."""


@final
@dataclass(frozen=True)
class StoredCodes:
    """Codes of named examples.

    Attributes:
        model: fingerprint of the weights that made the codes.
        names: path of each example without its ending.
        sizes: `[N, rank]`, height and width of each picture, length of each signal.
        levels: codes of each level, coarsest first: an array `[C, *grid]` for each example.
    """

    model: str
    names: tuple[str, ...]
    sizes: np.ndarray
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def codes_per_example(self) -> float:
        """Return the mean number of codes of an example."""
        return sum(codes.size for level in self.levels for codes in level) / len(self)


@torch.inference_mode()
def encode_codes(model: CodeModel, examples: Iterable[NamedBatch], fingerprint: str) -> StoredCodes:
    """Encode all examples to codes.

    Args:
        examples: batches of one size each; pictures may differ in size from the training pictures.
        fingerprint: fingerprint of the model's weights.
    """
    names: list[str] = []
    sizes: list[tuple[int, ...]] = []
    levels: list[list[np.ndarray]] = [[] for _ in model.levels]
    for named in examples:
        x = named.batch.x
        for stored, quantizer, c in zip(levels, model.levels, codes_of(model, x), strict=True):
            most = quantizer.codebook_size
            stored.extend(c.numpy().astype(np.min_scalar_type(-most if bool((c < 0).any()) else most - 1)))
        names += named.names
        sizes += observed.extents(x, model.schema)
    if not names:
        raise DataError("there are no examples to encode", code="no-examples")
    stacked = all(len({c.shape for c in stored}) == 1 for stored in levels)
    whole = tuple(np.stack(stored) if stacked else stored for stored in levels)
    return StoredCodes(fingerprint, tuple(names), np.array(sizes, np.int64).reshape(len(names), -1), whole)


@torch.inference_mode()
def codes_of(model: CodeModel, x: Tensor) -> tuple[Tensor, ...]:
    """Encode examples `[B, *shape]` to the codes of all levels, `[B, *code_shape]` int64, in fixed batches.

    Pictures that differ in size from the training pictures are encoded one by one.
    """
    size = None if x.shape[1:] == model.schema.shape else 1
    parts = [
        [level[: batch.count].cpu() for level in model.encode(batch.x).codes]
        for batch in fixed_batches(Batch(x), model.device, size)
    ]
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


@torch.inference_mode()
def decode_codes(
    model: CodeModel, stored: StoredCodes, *, label: int | None = None, sample: bool = False, seed: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Decode codes that `check_codes` accepts, yielding each name and example `[*shape]`.

    Examples are float32 in stored units and have their original sizes.

    Args:
        label: class to decode as, for a model whose decoder takes it.
        sample: whether to sample from p(x | z) rather than take its mean.
        seed: seed of the samples.
    """
    whole = model.schema.lengths or bool((stored.sizes == model.schema.shape[1:]).all())
    at_once = size_of(model.schema.shape, model.device) if whole else 1
    with tracking("decoding", len(stored)) as advance:
        for rows, chunk_seed in chunks(len(stored), at_once, seed):
            z = model.lookup([filled(_tensor(level[rows]), at_once, model.device) for level in stored.levels])
            sizes = [tuple(size) for size in stored.sizes[rows].tolist()]
            labels = None if label is None else torch.full((len(z),), label, device=model.device)
            p_x = model.decode(pad_latent(model, z, sizes[0]), labels)
            with seeded(chunk_seed, model.device):
                x = (p_x.sample() if sample else p_x.mean)[: len(sizes)].cpu()
            for name, size, one in zip(stored.names[rows], sizes, x, strict=True):
                yield name, crop(one[None], size)[0]
            advance(len(sizes))


def pad_latent(model: Model, z: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pad z `[B, D, *grid]` by one position per axis if it would decode to less than `size`.

    A grid of the trained size decodes to the trained size, so a larger example needs one more position.
    """
    as_trained = tuple(z.shape[2:]) == model.latent_shape[1:]
    larger = any(a > b for a, b in zip(size, model.schema.shape[1:], strict=True))
    return F.pad(z, (0, 1) * len(size), mode="replicate") if as_trained and larger else z


def check_codes(stored: StoredCodes, model: CodeModel, fingerprint: str) -> None:
    """Check that these are codes of this model with its present weights.

    Raises:
        DataError: if they are of other weights, out of range, or do not fit the sizes of their pictures.
    """
    if stored.model != fingerprint:
        raise DataError(
            f"these codes were made by the weights {shown(stored.model)}, but this run has {fingerprint}: "
            "decode with the run that made them, or encode again",
            code="other-weights",
        )
    stacked = all(isinstance(level, np.ndarray) for level in stored.levels)
    try:
        for rows in [slice(None)] if stacked else [slice(i, i + 1) for i in range(len(stored))]:
            model.checked_codes([_tensor(level[rows]) for level in stored.levels])
    except SpecError as error:
        raise DataError(error.message, code="codes-of-another-model") from error
    stride, window = model.downsampling[-1], list(model.schema.spatial)
    for name, size, codes in zip(stored.names, stored.sizes.tolist(), stored.levels[-1], strict=True):
        grid, cells = list(codes.shape[1:]), [-(-side // stride) for side in size]
        fits = cells == grid
        if model.schema.lengths:  # all have the grid of a whole window, with -1 after the end
            fits = size <= window and [-(-side // stride) for side in window] == grid
            fits = fits and [int((codes[0] >= 0).sum())] == cells
        if not fits or 0 in size:
            raise DataError(
                f"{shown(name)} has codes that do not fit its size {size}: encode it again", code="codes-and-size"
            )


def _tensor(codes: Level) -> Tensor:
    return torch.from_numpy(np.asarray(codes).astype(np.int64))


def write_codes(path: str | Path, stored: StoredCodes) -> None:
    """Write a file of codes atomically."""
    arrays = {"version": np.array(VERSION), "model": np.array(stored.model)}
    arrays |= {"names": np.array(stored.names, dtype=str), "sizes": stored.sizes}
    for number, level in enumerate(stored.levels):
        if isinstance(level, np.ndarray):
            arrays[f"level{number}"] = level
        else:
            arrays |= {f"level{number}.{i}": codes for i, codes in enumerate(level)}

    def save(draft: Path) -> None:
        with draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

    write_atomic(Path(path), save)


def read_codes(path: str) -> StoredCodes:
    """Read a file of codes; nothing in it is unpickled.

    Raises:
        DataError: if the file is missing, damaged, of another kind or version.
    """
    if not os.path.isfile(path):
        raise DataError(
            f"no such file: {path}; make one with {task_name('encode', 'RUN INPUTS -o FILE')}", code="no-such-file"
        )
    archive = NumpyArchive(path)
    if not {"version", "model", "names", "sizes"} <= set(archive):
        held = abridged(list(archive))
        raise DataError(f"{path} holds no codes (but {held}): make a file with {task_name('encode')}", code="no-codes")

    def array(key: str, kinds: str, dims: int) -> np.ndarray:
        found = archive.get(key)
        if found is None or found.dtype.kind not in kinds or found.ndim != dims:
            raise _damaged(path, f"the array {key} is missing or has the wrong type")
        return found

    if (version := array("version", "iu", 0)) != VERSION:
        raise DataError(
            f"{path} has version {version}, but this tessella reads version {VERSION}: encode again", code="version"
        )
    names, sizes = tuple(map(str, array("names", "U", 1).tolist())), array("sizes", "iu", 2)
    dims, levels = sizes.shape[1] + 1, []
    while f"level{len(levels)}" in archive or f"level{len(levels)}.0" in archive:
        key = f"level{len(levels)}"
        stacked = key in archive
        levels.append(
            array(key, "iu", dims + 1) if stacked else [array(f"{key}.{i}", "iu", dims) for i in range(len(names))]
        )
    if not names or not levels or any(len(part) != len(names) for part in (sizes, *levels)):
        raise _damaged(path, "its arrays are empty or have different lengths")
    return StoredCodes(str(array("model", "U", 0)), names, sizes, tuple(levels))


def _damaged(path: str, why: str) -> DataError:
    return DataError(f"{path} is damaged or was edited ({why}): encode again", code="damaged")
