"""Compresses examples into a file and decompresses them, one chunk at a time."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.coding.coders import (
    BitsBack,
    Coder,
    CodesOnly,
    Lossless,
    software_versions,
)
from tessella.coding.codes_file import StoredCodes, decode_codes
from tessella.coding.container import (
    Chunk,
    ComputePrecision,
    Container,
    Header,
    KeptFile,
    Method,
    pack_chunk,
    pack_file,
    pack_header,
    sealed,
)
from tessella.coding.originals import Originals
from tessella.coding.weights import Weights
from tessella.core import observed
from tessella.core.device import autocast, lowers, thread_count
from tessella.core.entropy_coding import WORD
from tessella.core.schema import Precision, Schema
from tessella.data.inputs import NamedBatch
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.files import write_atomic
from tessella.foundation.progress import track
from tessella.foundation.text import shown
from tessella.kinds.base import kinds_in_files
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.networks.conv import crop

MOST_WORKERS = 4
"""Default limit of chunks coded in parallel; each takes some hundred megabytes."""
A = TypeVar("A")
B = TypeVar("B")


@final
@dataclass(frozen=True)
class Compressed:
    """Result of compression.

    Attributes:
        examples: number of examples.
        numbers: number of values in all examples.
        bytes: size of the file.
        kept, kept_bytes: number of files stored unchanged, and the bytes that they take in the file.
        bound: the model's bound in nats; for codes alone, their rate.
        seconds: time from reading the first example to the finished file.
    """

    method: Method
    examples: int
    numbers: int
    bytes: int
    bound: float
    seconds: float
    kept: int = 0
    kept_bytes: int = 0

    @property
    def coded_bytes(self) -> int:
        """Return the size of the file without the files stored unchanged."""
        return self.bytes - self.kept_bytes

    @property
    def bound_bytes(self) -> float:
        """Return the bound in bytes."""
        return self.bound / math.log(2) / 8


def coder_for(model: Model, *, lossy: bool) -> Coder:
    """Choose the coder for a model's examples.

    Raises:
        SpecError: if the model cannot compress them.
    """
    if model.conditional:
        raise SpecError(
            f"the model {model.name} needs a label for every example, and compressed files hold no labels: "
            f"choose an unconditional {option('prior')} (such as uniform), or train a vae",
            code="conditional",
        )
    if model.levels:
        return (CodesOnly if lossy else Lossless)(cast(CodeModel, model))
    if lossy:
        raise SpecError(f"the model {model.name} has no codes to keep: leave out {option('lossy')}, or train a vqvae",
                        code="no-codes")  # fmt: skip
    if not model.has_decoder:
        raise SpecError(f"the z of the model {model.name} is as large as its examples and cannot be coded: train a vae "
                        "or vqvae to compress", code="no-coder")  # fmt: skip
    return BitsBack(cast(LatentVariableModel, model))


def write_compressed(
    model: Model,
    examples: Iterable[NamedBatch],
    out: str,
    weights: Weights,
    *,
    lossy: bool = False,
    precision: Precision = "auto",
    originals: Originals | None = None,
    notes: str = "",
    workers: int | None = None,
) -> Compressed:
    """Compress examples into a file.

    Args:
        examples: names and stored values; pictures of another size than the model's are cut into tiles of its size
            (or, if lossy, encoded whole).
        out: path of the file.
        weights: weights of `model`.
        lossy: whether to keep only the codes.
        precision: precision of encoder and decoder, which affects the bound. `auto` is bfloat16 where the processor
            supports it, for lossless files of models with codes.
        originals: has judged the files that the examples are read from.
        notes: further notes on what is not restored.
        workers: number of chunks coded in parallel; None: one per processor, up to a limit.

    Raises:
        SpecError: if the model cannot compress.
        RunError: if the file cannot be written.
    """
    started, coder = time.perf_counter(), coder_for(model, lossy=lossy)
    method: Method = "bits-back" if isinstance(coder, BitsBack) else "codes" if lossy else "lossless"
    names: list[str] = []
    sizes: list[tuple[int, ...]] = []

    def noted() -> Iterator[Tensor]:
        for some in examples:
            names.extend(some.names)
            sizes.extend(observed.extents(some.batch.x, model.schema))
            yield some.batch.x + 0  # no negative zeros, which checksums would tell from zeros

    computed: ComputePrecision = "float32"
    worth = precision == "bfloat16" or method == "lossless"  # to round a narrow q(z | x) costs 0.5 %
    if not lossy and worth and lowers(precision, model.schema, model.device):
        computed = "bfloat16"
    encode = _in_precision(coder.encode, model, computed)
    tiled = not lossy or model.schema.lengths
    batches = _tiled(noted(), model.schema, coder.at_once) if tiled else _of_one_size(noted(), coder.at_once)
    folder = Path(out).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    bound = 0.0
    chunks: list[tuple[Chunk, int]] = []
    with tempfile.TemporaryFile(dir=folder) as body, thread_count(1):
        for coded in _in_parallel(encode, batches, workers):
            words = coded.chunk.words
            body.write(words.tobytes())
            chunks.append((replace(coded.chunk, words=words[:0]), words.nbytes))
            bound += coded.bound
        kept = originals.files if originals else []
        if not names and not kept:
            raise DataError("there are no examples to compress", code="no-examples")
        modes = [originals.modes.get(name, "") for name in names] if originals else []
        said = "; ".join(shown(note) for note in (notes, *(originals.notes if originals else ())) if note)
        trained = model.schema.shape[1:]
        other = np.array(sizes if any(size != trained for size in sizes) else [], np.int64)
        other = other.reshape(-1, max(1, model.schema.rank))
        header = Header(
            method, model.name, weights.model, weights.prior, weights.prior_fingerprint, model.schema.values.name,
            model.schema.shape, len(names), names, other, computed, os.path.relpath(weights.run, folder),
            software_versions(), modes if any(modes) else [], len(kept), said, tiled,
            next((q.codes_used or 0 for q in model.levels), 0),
        )  # fmt: skip

        start, kept_bytes = pack_header(header), 0

        def save(draft: Path) -> None:
            nonlocal kept_bytes
            body.seek(0)
            with draft.open("wb") as file:
                file.write(start)
                for chunk, length in chunks:
                    words = np.frombuffer(body.read(length), WORD)
                    file.write(pack_chunk(replace(chunk, words=words, checksum=sealed(chunk.checksum, start[-8:]))))
                for name, original in kept:
                    kept_bytes += file.write(pack_file(KeptFile(name, Path(original).read_bytes()), start[-8:]))

        write_atomic(Path(out), save)
    numbers = sum(model.schema.shape[0] * math.prod(size) for size in sizes)
    seconds = time.perf_counter() - started
    return Compressed(method, len(names), numbers, os.path.getsize(out), bound, seconds, len(kept), kept_bytes)


def _of_one_size(xs: Iterable[Tensor], at_once: int) -> Iterator[Tensor]:
    """Regroup examples into batches of one size."""
    kept: list[Tensor] = []
    for x in xs:
        for one in x.split(at_once):
            if kept and (kept[0].shape[1:] != one.shape[1:] or sum(map(len, kept)) + len(one) > at_once):
                yield torch.cat(kept)
                kept = []
            kept.append(one)
    if kept:
        yield torch.cat(kept)


def _tiled(xs: Iterable[Tensor], schema: Schema, at_once: int) -> Iterator[Tensor]:
    """Cut all examples into tiles, and regroup the tiles into full batches; the last may be smaller."""
    kept, count = [], 0
    for x in xs:
        for tiles in cut(x, schema).split(at_once):
            kept, count = [*kept, tiles], count + len(tiles)
            while count >= at_once:
                whole = torch.cat(kept)
                yield whole[:at_once].clone()
                kept, count = [whole[at_once:]], count - at_once
    if count:
        yield torch.cat(kept)


def cut(x: Tensor, schema: Schema) -> Tensor:
    """Cut examples `[B, C, *spatial]` into tiles of the shape of a schema, in raster order.

    The last positions along each axis are repeated to fill the tiles at the edge, or NaN if examples may end early.
    """
    shape = schema.shape
    if x.shape[1:] == shape:
        return x
    missing = [n for side, tile in reversed(list(zip(x.shape[2:], shape[1:], strict=True))) for n in (0, -side % tile)]
    whole = F.pad(x, missing, value=math.nan) if schema.lengths else F.pad(x.float(), missing, mode="replicate")
    tiles = whole.to(x.dtype)
    for axis, side in enumerate(shape[1:], 2):
        tiles = tiles.unfold(axis, side, side)
    return tiles.movedim(1, len(shape)).reshape(-1, *shape)


def assembled(tiles: Tensor, size: tuple[int, ...]) -> Tensor:
    """Invert `cut` for one example: `[tiles, C, *tile]` to `[C, *size]`."""
    if tuple(tiles.shape[2:]) == size:
        return tiles[0]
    rank, counts = len(size), [-(-side // tile) for side, tile in zip(size, tiles.shape[2:], strict=True)]
    grid = tiles.unflatten(0, counts).movedim(rank, 0)  # [C, *counts, *tile]
    pairs = [axis for i in range(1, rank + 1) for axis in (i, i + rank)]
    sides = [count * tile for count, tile in zip(counts, tiles.shape[2:], strict=True)]
    return crop(grid.permute(0, *pairs).reshape(1, -1, *sides), size)[0]


def _in_parallel(work: Callable[[A], B], items: Iterable[A], workers: int | None) -> Iterator[B]:
    """Yield results in order, computing a few items ahead."""
    many = workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if many == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(many) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > many:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def kept_names(container: Container) -> list[str]:
    """List the names of the files stored unchanged.

    Raises:
        DataError: if a name does not have the ending of a picture, as all kept files have.
    """
    names, known = [file.name for file in container.files()], kinds_in_files()
    for name in names:
        if os.path.splitext(name)[1].lower() not in known:
            raise DataError(f"{container.path} holds a file {name} that is no picture: tessella did not write it",
                            code="kept-no-picture")  # fmt: skip
    return names


def read_compressed(
    container: Container, model: Model, *, workers: int | None = None, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Decompress the examples of a file that `check` accepts, yielding each name and example.

    Examples are `[*shape]` in stored units; only those with a correct checksum are returned.

    Args:
        workers: as in `write_compressed`.
        device: device that decodes codes to pictures; entropy coding stays on the CPU.

    Raises:
        DataError: if the file is damaged, or decodes to other values on this machine.
    """
    header, coder = container.header, coder_for(model, lossy=container.header.method == "codes")
    if header.codes_used:
        model.use_codes(header.codes_used)
    parts = (
        _decoded_codes(container, model, coder, workers, device)
        if isinstance(coder, CodesOnly) and not header.tiled
        else _tiles(container, model, coder, workers, device)
    )
    number = -1
    for number, x in enumerate(track(parts, "decompressing", header.count)):
        yield header.names[number], x
    if number + 1 < header.count:
        raise container.damaged(f"it ends after {number + 1} of {header.count} examples")


def _tiles(
    container: Container, model: Model, coder: Coder, workers: int | None, device: torch.device | None
) -> Iterator[Tensor]:
    """Decode examples that were cut into tiles, and assemble them."""
    header, shape = container.header, model.schema.shape
    decoder = _on(device, cast(CodeModel, model))
    lengths = torch.from_numpy(header.tile_lengths) if model.schema.lengths else None

    def decode(item: tuple[Chunk, Tensor | None]) -> Tensor:
        if not isinstance(coder, CodesOnly):
            return coder.decode(*item)
        codes = coder.decode_codes(item[0], shape[1:], item[1])
        return torch.stack([x for _, x in decode_codes(decoder, _stored(codes, shape[1:]))])

    def with_lengths() -> Iterator[tuple[Chunk, Tensor | None]]:
        first = 0
        for chunk in container.chunks():
            count = sum(chunk.batches)
            if lengths is not None and first + count > len(lengths):
                raise container.damaged("its chunks do not fit its header")
            yield chunk, None if lengths is None else lengths[first : first + count]
            first += count

    kept = torch.empty(0, *shape, dtype=torch.float32 if isinstance(coder, CodesOnly) else coder.dtype)
    number = 0
    with thread_count(1):
        in_precision = _in_precision(decode, model, header.precision)
        for x in _in_parallel(_guarded(container, in_precision), with_lengths(), workers):
            kept = torch.cat([kept, x])
            while number < header.count:
                size, needed = header.size(number), header.tiles(number)
                if needed > len(kept):
                    break
                yield assembled(kept[:needed], size) if len(shape) > 1 else kept[0]
                kept, number = kept[needed:], number + 1
            if len(kept) and number == header.count:
                raise container.damaged("it holds more than its header says")


def _decoded_codes(
    container: Container, model: Model, coder: CodesOnly, workers: int | None, device: torch.device | None
) -> Iterator[Tensor]:
    """Decode files of codes to the mean of p(x | codes)."""
    header, decoder = container.header, _on(device, cast(CodeModel, model))

    def sized() -> Iterator[tuple[Chunk, tuple[int, ...]]]:
        first = 0
        for chunk in container.chunks():
            size, count = header.size(min(first, header.count - 1)), sum(chunk.batches)
            if first + count > header.count or any(header.size(i) != size for i in range(first, first + count)):
                raise container.damaged("its chunks do not fit its header")
            first += count
            yield chunk, size

    def decode(item: tuple[Chunk, tuple[int, ...]]) -> list[Tensor]:
        chunk, size = item
        return [x for _, x in decode_codes(decoder, _stored(coder.decode_codes(chunk, size), size))]

    with thread_count(1):
        for xs in _in_parallel(_guarded(container, decode), sized(), workers):
            yield from xs


def _on(device: torch.device | None, model: CodeModel) -> CodeModel:
    """Return the model, or a copy of it on another device."""
    return model if device is None or device == model.device else copy.deepcopy(model).to(device)


def _stored(codes: tuple[Tensor, ...], size: tuple[int, ...]) -> StoredCodes:
    """Make a record of the codes of examples of one size, without names."""
    count = len(codes[0])
    sizes = np.array([size] * count, np.int64).reshape(count, -1)
    return StoredCodes("", ("",) * count, sizes, tuple(c.numpy() for c in codes))


def _in_precision(work: Callable[[A], B], model: Model, precision: Precision) -> Callable[[A], B]:
    """Wrap a function so that networks run in this precision on any thread."""

    def done(item: A) -> B:
        with autocast(precision, model.schema, model.device):
            return work(item)

    return done


def _guarded(container: Container, work: Callable[[A], B]) -> Callable[[A], B]:
    """Wrap a function so that decoding errors name the file."""

    def guarded(item: A) -> B:
        try:
            return work(item)
        except (DataError, ValueError) as error:
            raise _otherwise(container, error) from error

    return guarded


def _otherwise(container: Container, error: Exception) -> DataError:
    """Explain why bits with a correct checksum cannot be decoded."""
    here, made = software_versions(), shown(container.header.made)
    reason = " ".join(str(error).split()) if isinstance(error, DataError) else "the decoded values are impossible"
    start = f"{container.path} is intact, but cannot be decoded here: {reason}"
    if made == here:
        return DataError(
            f"{start}; it was made by this very software on a machine of this kind ({made}), so the weights or the "
            "software have changed since, or the file was edited: restore the run that made it, or compress again",
            code="undecodable",
        )
    return DataError(
        f"{start}; it was made by {made}, and this is {here}, which rounds differently: decompress it by the software "
        "and on the kind of machine that made it, or compress again here",
        code="other-rounding",
    )
