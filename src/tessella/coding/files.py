"""Examples to a file and back, a chunk at a time."""

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

from tessella.coding import codes_file
from tessella.coding.coders import (
    BitsBack,
    Coder,
    CodesOnly,
    Lossless,
    single_threaded,
    software_versions,
)
from tessella.coding.codes_file import Named
from tessella.coding.container import (
    Chunk,
    Container,
    Exactly,
    Header,
    Kept,
    Method,
    pack_chunk,
    pack_file,
    pack_header,
    sealed,
)
from tessella.coding.originals import Originals
from tessella.core.entropy_coding import WORD
from tessella.core.precision import autocast, lowers
from tessella.core.schema import Precision
from tessella.data.raw import shown
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.files import write_atomic
from tessella.foundation.registry import names
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.training.checkpoint import SPEC, build, fingerprint
from tessella.training.fitted_priors import TRAINED, prior_home, prior_in_use
from tessella.training.run import load

MOST_AT_ONCE = 4
"""Chunks that are coded side by side at most, unless told: each takes some hundred megabytes."""
A = TypeVar("A")
B = TypeVar("B")


@final
@dataclass(frozen=True)
class Weights:
    """Which weights a file is of.

    Attributes:
        run: where they lie.
        model: fingerprint of the model's (`checkpoint.fingerprint`).
        prior, prior_fingerprint: the kind of prior and the fingerprint of its weights; of one without weights its name
            and nothing.
    """

    run: str
    model: str
    prior: str
    prior_fingerprint: str = ""


@final
@dataclass(frozen=True)
class Compressed:
    """What compressing gave.

    Attributes:
        examples: how many.
        numbers: values in all of them.
        bytes: of the file.
        kept, kept_bytes: files that are kept as they are, and how much of it they take.
        bound: nats that the model says: of codes alone their rate.
        seconds: from the first example that was read to the finished file.
    """

    method: Method
    examples: int
    numbers: int
    bytes: int
    bound: float
    seconds: float
    kept: int = 0
    kept_bytes: int = 0


def coder_for(model: Model, *, lossy: bool) -> Coder:
    """How this model's examples are coded.

    Raises:
        SpecError: if they cannot be.
    """
    if model.conditional:
        raise SpecError(
            f"the model {model.name} needs a label for every example, which no file says: "
            "give --prior another (or uniform) for a prior that sees labels, or train a vae"
        )
    if isinstance(model, CodeModel):
        return CodesOnly(model) if lossy else Lossless(model)
    if lossy:
        raise SpecError(f"the model {model.name} has no codes to keep: leave out --lossy, or train a vqvae")
    if not isinstance(model, LatentVariableModel):
        raise SpecError(f"the z of the model {model.name} is as large as its examples and cannot be coded: train a vae "
                        "or vqvae to compress")  # fmt: skip
    return BitsBack(model)


# to a file


def compress(
    model: Model,
    examples: Iterable[Named],
    out: str,
    weights: Weights,
    *,
    lossy: bool = False,
    precision: Precision = "auto",
    originals: Originals | None = None,
    notes: str = "",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Compressed:
    """Write examples into a file.

    Args:
        examples: what each is called and its stored values; pictures larger or smaller than the model's are cut into
            tiles of its size (or, if lossy, encoded whole).
        out: the file.
        weights: what the file is of.
        lossy: keep the codes alone.
        precision: of encoder and decoder; the bound is of the model as it runs in it. `auto` is bfloat16 where the
            processor has it, for lossless files of codes alone.
        originals: what has judged the files that the examples are from.
        notes: what else is not given back, in words.
        workers: chunks that are coded side by side; None: one a processor.
        progress: told how many examples (tiles, if they are cut) are done.

    Raises:
        SpecError: if the model cannot code.
        RunError: if the file cannot be written.
    """
    started, coder = time.perf_counter(), coder_for(model, lossy=lossy)
    method: Method = "bits-back" if isinstance(coder, BitsBack) else "codes" if lossy else "lossless"
    called: list[str] = []
    sizes: list[tuple[int, ...]] = []

    def noted() -> Iterator[Tensor]:
        for some, x in examples:
            called.extend(some)
            sizes.extend([tuple(x.shape[2:])] * len(x))
            yield x

    exactly: Exactly = "float32"
    worth = precision == "bfloat16" or method == "lossless"  # to round a narrow q(z | x) costs 0.5 %
    if not lossy and worth and lowers(precision, model.schema, model.device):
        exactly = "bfloat16"
    encode = _in_precision(coder.encode, model, exactly)
    lots = _alike(noted(), coder.at_once) if lossy else _tiled(noted(), model.schema.shape, coder.at_once)
    folder = Path(out).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    bound, done = 0.0, 0
    chunks: list[tuple[Chunk, int]] = []
    with tempfile.TemporaryFile(dir=folder) as body, single_threaded():
        for coded in _side_by_side(encode, lots, workers):
            words = coded.chunk.words
            body.write(words.tobytes())
            chunks.append((replace(coded.chunk, words=words[:0]), words.nbytes))
            bound, done = bound + coded.bound, done + sum(coded.chunk.batches)
            if progress:
                progress(done)
        kept = originals.files if originals else []
        if not called and not kept:
            raise DataError("there are no examples to compress")
        modes = [originals.modes.get(name, "") for name in called] if originals else []
        said = "; ".join(shown(note) for note in (notes, *(originals.notes if originals else ())) if note)
        trained = model.schema.shape[1:]
        other = np.array(sizes if any(size != trained for size in sizes) else [], np.int64).reshape(-1, 2)
        header = Header(
            method, model.name, weights.model, weights.prior, weights.prior_fingerprint, model.schema.values.name,
            model.schema.shape, len(called), called, other, exactly, os.path.relpath(weights.run, folder),
            software_versions(), modes if any(modes) else [], len(kept), said,
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
                    kept_bytes += file.write(pack_file(Kept(name, Path(original).read_bytes()), start[-8:]))

        write_atomic(Path(out), save)
    numbers = sum(model.schema.shape[0] * math.prod(size) for size in sizes)
    seconds = time.perf_counter() - started
    return Compressed(method, len(called), numbers, os.path.getsize(out), bound, seconds, len(kept), kept_bytes)


def _alike(xs: Iterable[Tensor], at_once: int) -> Iterator[Tensor]:
    """The same examples in lots of one size."""
    kept: list[Tensor] = []
    for x in xs:
        for one in x.split(at_once):
            if kept and (kept[0].shape[1:] != one.shape[1:] or sum(map(len, kept)) + len(one) > at_once):
                yield torch.cat(kept)
                kept = []
            kept.append(one)
    if kept:
        yield torch.cat(kept)


def _tiled(xs: Iterable[Tensor], shape: tuple[int, ...], at_once: int) -> Iterator[Tensor]:
    """The tiles of all examples, in full lots but the last."""
    kept, count = [], 0
    for x in xs:
        for tiles in cut(x, shape).split(at_once):
            kept, count = [*kept, tiles], count + len(tiles)
            while count >= at_once:
                whole = torch.cat(kept)
                yield whole[:at_once].clone()
                kept, count = [whole[at_once:]], count - at_once
    if count:
        yield torch.cat(kept)


def cut(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pictures `[B, C, H, W]` as tiles `[B n m, C, h, w]` of a shape, each picture's row by row.

    The last row and column are repeated to fill what is left over.
    """
    if x.shape[1:] == shape:
        return x
    (height, width), (h, w) = x.shape[2:], shape[1:]
    whole = F.pad(x.float(), (0, -width % w, 0, -height % h), mode="replicate").to(x.dtype)
    return whole.unfold(2, h, h).unfold(3, w, w).permute(0, 2, 3, 1, 4, 5).reshape(-1, *shape)


def tiles_of(size: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many tiles of a shape a picture of that size is cut into."""
    return math.prod(-(-side // tile) for side, tile in zip(size, shape[1:], strict=True))


def laid(tiles: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse of `cut` for one picture: `[n m, C, h, w]` to `[C, *size]`."""
    if tuple(tiles.shape[2:]) == size:
        return tiles[0]
    columns = -(-size[1] // tiles.shape[3])
    rows = torch.cat([torch.cat(list(row), 2) for row in tiles.split(columns)], 1)
    return rows[:, : size[0], : size[1]]


def _side_by_side(work: Callable[[A], B], items: Iterable[A], workers: int | None) -> Iterator[B]:
    """The results in order, a few items ahead of whoever takes them."""
    many = workers or min(MOST_AT_ONCE, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
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


# and back


def weights_of(run: str, model: Model, prior: str | None = None) -> Weights:
    """Which weights a run's files are of.

    Args:
        model: of that run, as `tessella.load(run, prior=prior)` gives it.
        prior: the kind of prior that was asked for; None: the run's best.
    """
    now = fingerprint(run)
    if not isinstance(model, CodeModel):
        return Weights(run, now, "normal")
    if not model.fitted:
        return Weights(run, now, "uniform")
    if prior is None:
        kind, _, known = (prior_in_use(Path(run)) or "uniform").partition(" ")
        return Weights(run, now, kind, known)
    return Weights(run, now, prior, fingerprint(prior_home(Path(run), prior)))


def model_for(container: Container, run: str | None = None) -> Model:
    """The model that a file is of, with the prior that it was made with.

    Args:
        run: where its run lies; None: where the file says.

    Raises:
        DataError: if there is none, or it is another.
    """
    header = container.header
    hinted = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(container.path)), header.run))
    home = run or hinted
    if run is None and not os.path.isfile(os.path.join(hinted, SPEC)):
        raise DataError(f"{container.path} is of a run that is not at {hinted}: say where it is with --run")
    if header.fingerprint != (now := fingerprint(home)):
        raise _of_another(container, home, now)
    model = build(home)
    if isinstance(model, CodeModel):
        if header.prior not in names("code-prior"):
            raise DataError(
                f"{container.path} was made with the prior {shown(header.prior)}, which this tessella does not know: "
                "upgrade it"
            )
        load(home, into=model, prior=header.prior)
    else:
        load(home, into=model, prior=TRAINED)
    check(container, model, weights_of(home, model, header.prior))
    return model


def _of_another(container: Container, run: str, now: str) -> DataError:
    header = container.header
    return DataError(
        f"{container.path} is of a {header.model} whose weights are {header.fingerprint}, and those of {run} are "
        f"{now}: give the run that made it with --run"
    )


def check(container: Container, model: Model, weights: Weights) -> None:
    """Whether the file is of this model with this prior.

    Raises:
        DataError: if it is of another.
    """
    header = container.header
    if header.fingerprint != weights.model:
        raise _of_another(container, weights.run, weights.model)
    if (header.prior, header.prior_fingerprint) != (weights.prior, weights.prior_fingerprint):
        raise DataError(
            f"{container.path} was made with the prior {_called(header.prior, header.prior_fingerprint)}, and "
            f"{weights.run} has {_called(weights.prior, weights.prior_fingerprint)}: give the run that made it"
        )
    schema = model.schema
    wanted = "bits-back" if isinstance(model, LatentVariableModel) else "lossless"
    if (header.values, header.shape) != (schema.values.name, schema.shape) or header.method not in ("codes", wanted):
        raise DataError(
            f"{container.path} holds {header.method} of {header.values} values of shape {header.shape}, and the model "
            f"of {weights.run} has {schema.values} of shape {schema.shape}: give the run that made it with --run"
        )


def _called(kind: str, fingerprint: str) -> str:
    return f"{shown(kind)} {fingerprint}".strip()


def decompress(
    container: Container,
    model: Model,
    *,
    workers: int | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The examples one by one: what each is called, and `[*shape]` in stored units; only those whose checksum is right.

    Args:
        container: what `check` finds no fault with.
        workers, progress: as of `compress`.
        device: where pictures are drawn from codes; all that is coded stays on the processor.

    Raises:
        DataError: if the file is damaged, or this machine decodes it to something else than was written.
    """
    header, coder = container.header, coder_for(model, lossy=container.header.method == "codes")
    parts = (
        _drawn(container, model, coder, workers, device)
        if isinstance(coder, CodesOnly)
        else _exact(container, model, coder, workers)
    )
    number = -1
    for number, x in enumerate(parts):
        yield header.names[number], x
        if progress:
            progress(number + 1)
    if number + 1 < header.count:
        raise container.damaged(f"it ends after {number + 1} of {header.count} examples")


def _exact(container: Container, model: Model, coder: Lossless | BitsBack, workers: int | None) -> Iterator[Tensor]:
    """The examples of lossless files, of tiles as they come."""
    header, shape = container.header, model.schema.shape
    kept = torch.empty(0, *shape, dtype=torch.uint8)
    number = 0
    with single_threaded():
        decode = _in_precision(coder.decode, model, header.precision)
        for x in _side_by_side(_guarded(container, decode), container.chunks(), workers):
            kept = torch.cat([kept, x])
            while number < header.count:
                size = header.size(number)
                needed = tiles_of(size, shape) if len(shape) == 3 else 1
                if needed > len(kept):
                    break
                yield laid(kept[:needed], size) if len(shape) == 3 else kept[0]
                kept, number = kept[needed:], number + 1
            if len(kept) and number == header.count:
                raise container.damaged("it holds more than its header says")


def _drawn(
    container: Container, model: Model, coder: CodesOnly, workers: int | None, device: torch.device | None
) -> Iterator[Tensor]:
    """The examples of files of codes, each the mean of p(x | codes)."""
    header, drawing = container.header, cast(CodeModel, model)
    if device is not None and device != model.device:
        drawing = copy.deepcopy(drawing).to(device)

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
        codes = coder.decode_codes(chunk, size)
        count = len(codes[0])
        coded = codes_file.Coded("", ("",) * count, np.array([size] * count, np.int64), tuple(c.numpy() for c in codes))
        return [x for _, x in codes_file.decode(drawing, coded)]

    with single_threaded():
        for xs in _side_by_side(_guarded(container, decode), sized(), workers):
            yield from xs


def _in_precision(work: Callable[[A], B], model: Model, precision: Precision) -> Callable[[A], B]:
    """The same with networks in that precision, on whatever thread it runs."""

    def done(item: A) -> B:
        with autocast(precision, model.schema, model.device):
            return work(item)

    return done


def _guarded(container: Container, work: Callable[[A], B]) -> Callable[[A], B]:
    """What cannot be decoded, said of the file."""

    def guarded(item: A) -> B:
        try:
            return work(item)
        except (DataError, ValueError) as error:
            raise _otherwise(container, error) from error

    return guarded


def _otherwise(container: Container, error: Exception) -> DataError:
    """What to say of bits that are as they were written, for their checksum is right, and cannot be decoded."""
    here, made = software_versions(), shown(container.header.made)
    reason = " ".join(str(error).split()) if isinstance(error, DataError) else "the decoded values are impossible"
    start = f"{container.path} cannot be decoded here, though its bytes are as they were written: {reason}"
    if made == here:
        return DataError(
            f"{start}; it was made by this very software on such a machine ({made}), so the weights or the software "
            "have changed since, or it was edited: restore the run that made it, or compress again"
        )
    return DataError(
        f"{start}; it was made by {made}, and this is {here}, which rounds differently: decompress it by the software "
        "and on the kind of machine that made it, or compress again here"
    )
