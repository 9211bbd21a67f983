"""Tensors in files: safetensors with numbers and a checksum, and a memory limit for the modules built from them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tessella.foundation import validation
from tessella.foundation.errors import RunError, TessellaError, option
from tessella.foundation.files import write_atomic

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
SPARE_BYTES, SPARE_TENSORS = 1 << 26, 4_000
"""Bytes and tensors that a small model may use beyond those of its file."""
MOST_SIDE, MOST_NEW = 1 << 16, 1 << 31
"""Limits for a model without a file: the largest side of a tensor, and the bytes (8 per number)."""
T = TypeVar("T")
Kind = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""


@dataclass(frozen=True)
class State:
    """Tensors by name, and the numbers stored with them."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


@final
@dataclass(frozen=True)
class TensorsHeader:
    """Header of a file of tensors, checked against the file's size.

    Attributes:
        path: path of the file.
        kinds: type and shape of each tensor.
        progress: numbers stored with the tensors.
        digest: the checksum, 64 hexadecimal digits.
    """

    path: Path
    kinds: dict[str, Kind]
    progress: dict[str, Any]
    digest: str

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.kinds.values())

    @property
    def largest(self) -> int:
        """Return an upper bound of any size in the model: the largest side of a tensor, or the number of tensors."""
        return max([len(self.kinds), *(side for _, shape in self.kinds.values() for side in shape)])


# files


def write_tensors(path: Path, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write tensors and numbers to a safetensors file that contains its own checksum."""
    plain: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().to("cpu", copy=False).contiguous()
        at = t.untyped_storage().data_ptr()
        plain[name] = t.clone() if at in memory else t  # safetensors refuses two names of the same memory
        memory.add(at)
    note = {"progress": json.dumps(numbers), "sha256": digest_of(plain)}
    write_atomic(path, lambda draft: save_file(plain, draft, note))


def read_header(path: Path) -> TensorsHeader:
    """Read the header of a file written by `write_tensors`.

    Raises:
        RunError: if the file is missing or is not such a file.
    """
    try:
        return _header(path)
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is missing: the run has no checkpoint yet; wait for it, or continue it with {option('resume')}",
            code="no-weights",
        ) from error
    except (validation.Malformed, OSError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from error


def read_tensors(path: Path, header: TensorsHeader | None = None) -> State:
    """Read a file written by `write_tensors`.

    Args:
        path: path of the file.
        header: the file's header, if it was read before.

    Raises:
        RunError: if the file is missing, truncated or changed.
    """
    header = header or read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.kinds}
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if header.digest != digest_of(tensors):
        raise _damaged(path, "its checksum does not match")
    return State(tensors, header.progress)


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"{path} is damaged ({why}): copy it again or train again", code="damaged")


def _header(path: Path) -> TensorsHeader:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(file, "rb") as opened:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise validation.Malformed("it is not a regular file")
        start = opened.read(8)
        length, rest = int.from_bytes(start, "little"), status.st_size - 8
        if len(start) < 8 or length > rest or length > validation.MOST_BYTES:
            raise validation.Malformed("its header is longer than the file or the limit")
        text = opened.read(length)
    try:
        record = validation.parse(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise validation.Malformed("its header is not text") from error
    if not isinstance(record, dict):
        raise validation.Malformed("its header names no tensors")
    notes = record.pop("__metadata__", {})
    entries: dict[str, _Entry] = validation.fitted(dict[str, _Entry], record, "its header")
    if not isinstance(notes, dict) or not isinstance(notes.get("progress"), str):
        raise validation.Malformed("its header has no progress")
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        numel = math.prod(entry.shape)
        if entry.dtype not in DTYPES or any(side < 0 for side in entry.shape) or len(entry.shape) > 16:
            raise validation.Malformed(f"{name[:80]!r} has an unknown type or an impossible shape")
        if first != at or last - first != numel * DTYPES[entry.dtype].itemsize:
            raise validation.Malformed(
                f"the position of {name[:80]!r} does not agree with its shape {_by(entry.shape)}"
            )
        at = last
    if at != rest - length:
        raise validation.Malformed(f"its tensors need {at:,} bytes, but the file has {rest - length:,}")
    progress = validation.fitted(dict[str, Any], validation.parse(notes["progress"]), "progress")
    kinds = {name: (DTYPES[entry.dtype], entry.shape) for name, entry in entries.items()}
    digest = notes.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise validation.Malformed("its header has no checksum")
    return TensorsHeader(path, kinds, progress, digest)


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8])) or "()"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of the names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# modules built from files


def load_weights(module: torch.nn.Module, header: TensorsHeader, *, what: str = "run", exactly: bool = True) -> None:
    """Load a file's weights into a module, after checking names, shapes and types.

    Args:
        module: the module to load into.
        header: header of the file.
        what: `run` or `prior`, for messages.
        exactly: whether the types must match too.

    Raises:
        RunError: if they do not match, are not finite, or the file is damaged.
    """
    own = {name: (t.dtype, tuple(t.shape)) for name, t in module.state_dict().items()}
    foreign = RunError(
        f"{header.path} does not match spec.json beside it: one of them comes from another {what}", code="does-not-fit"
    )
    if own.keys() != header.kinds.keys():
        raise foreign
    for name, (dtype, shape) in own.items():
        given, size = header.kinds[name]
        if size != shape or (exactly and given != dtype):
            raise foreign
    weights = read_tensors(header.path, header).tensors
    bad = next((name for name, t in weights.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
    if bad is not None:
        where = f"{header.path} contains weights that are NaN or infinite, first in {bad}"
        raise RunError(f"{where}: train again", code="not-finite")
    module.load_state_dict(weights)


def built(make: Callable[[], T], header: TensorsHeader | None, *, of: Path, options: Mapping[str, Any]) -> T:
    """Build the object that will hold a file's tensors, unless it would be much larger than they are.

    Args:
        make: function that builds it.
        header: header of the file; None if there is none yet.
        of: file with the options, for messages.
        options: options in that file; no integer among them may exceed the largest side of a tensor.

    Raises:
        RunError: if it would be larger, or cannot be built.
    """
    name = "the limits of a model" if header is None else f"{header.path.name} beside it"
    other = f"{of} does not match {name}; it was edited or comes from another run"
    largest, room, count = MOST_SIDE, MOST_NEW, SPARE_TENSORS
    if header is not None:
        largest, room = 2 * header.largest, SPARE_BYTES + 16 * header.bytes
        count += 64 * len(header.kinds)
    for name, value in options.items():
        if type(value) is int and value > largest:
            what = f"{option(name)} {value:,} is too large for its tensors"
            raise RunError(f"{other}: {what}", code="does-not-fit")
    try:
        with _Budget(room, count):
            return make()
    except TessellaError as error:
        raise RunError(f"{of}: {error}", code="does-not-fit") from error
    except _OverBudget as error:
        raise RunError(f"{other}: the model would be larger than its tensors", code="does-not-fit") from error
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise RunError(f"{other}: the model cannot be built ({why})", code="does-not-fit") from error


class _OverBudget(Exception):
    pass


class _Budget(TorchDispatchMode):
    """Counts tensors and their bytes before they are allocated, and raises at the limit."""

    def __init__(self, most_bytes: int, tensors: int) -> None:
        super().__init__()
        self.bytes, self.tensors = most_bytes, tensors

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Avoid importing the compiler, which takes two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(made.alias_info is None for made in func._schema.returns):
            self.tensors -= 1
            self.bytes -= _size(func, args, kwargs)
            if self.tensors < 0 or self.bytes < 0:
                raise _OverBudget
        return func(*args, **kwargs)


STEADY = (
    "all", "any", "clone", "_to_copy", "_local_scalar_dense", "flip", "linalg_lu", "nonzero", "sum", "tril", "triu",
    "unique_dim", "_unsafe_view",
)  # fmt: skip
"""Operations whose result has at most one number per number of their inputs and axis."""


def _size(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Compute the bytes of an operation's result, or slightly more, without running it."""
    name = func.overloadpacket.__name__
    said = {a.name: one for a, one in zip(func._schema.arguments, args, strict=False)} | kwargs
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    wide = max([8, *(t.itemsize for t in given)])
    if not given and "size" in said:
        return 8 * math.prod(said["size"])
    if not given and {"end", "steps", "n"} & said.keys():
        span = math.ceil(abs(said.get("end", 0) - said.get("start", 0)) / (said.get("step") or 1))
        return 8 * (said["steps"] if "steps" in said else said["n"] * said.get("m", 1) if "n" in said else span)
    if torch.Tag.pointwise in func.tags:
        return wide * _broadcast(given)
    if name in ("mm", "bmm"):
        return wide * given[0].shape[:-1].numel() * given[1].shape[-1]
    if name in ("cat", "stack", *STEADY):
        return wide * sum(t.numel() * (max(1, t.dim()) if name in STEADY else 1) for t in given)
    if name == "repeat":
        return wide * given[0].numel() * math.prod(said["repeats"])
    if name == "index":
        chosen = said["indices"]
        rest = [side for at, side in enumerate(given[0].shape) if at >= len(chosen) or chosen[at] is None]
        return wide * _broadcast([t for t in chosen if t is not None]) * math.prod(rest)
    places = {"device": "meta"} if any(argument.name == "device" for argument in func._schema.arguments) else {}
    bare, named = tree_map_only(Tensor, lambda t: t.to("meta"), (tuple(args), {**kwargs, **places}))
    return sum(t.numel() * t.itemsize for t in tree_leaves(func(*bare, **named)) if isinstance(t, Tensor))


def _broadcast(tensors: Sequence[Tensor]) -> int:
    """Return the number of elements of the broadcast tensor."""
    return math.prod(map(max, zip_longest(*(reversed(t.shape) for t in tensors), fillvalue=1)))


KINDS = {"uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32"}
"""Names of number types in numpy, with their names in safetensors."""
BLOCK = 1 << 20


@dataclass
class _Column:
    """A tensor while it is written: its file, type, row shape and number of rows."""

    file: IO[bytes]
    kind: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int = 0


@final
class TensorWriter:
    """Writes the same file as `write_tensors`, from rows that arrive in batches.

    Rows wait in nameless temporary files beside the target, which vanish when the process ends.

    Args:
        path: the file to write; an existing one is kept until `finish`.

    Raises:
        RunError: if the folder cannot be written.

    Example:
        >>> with TensorWriter(path) as writer:  # doctest: +SKIP
        ...     for rows in batches:
        ...         writer.append("features", rows)
        ...     writer.finish({"version": 1})
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, _Column] = {}
        with self._saving():
            path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in self._columns.values():
            column.file.close()

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append rows `[B, ...]` to a tensor; the first ones fix its type and row shape.

        Raises:
            ValueError: if the rows differ in type or shape from those before.
            RunError: if the disk is full.
        """
        with self._saving():
            if name not in self._columns:
                file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
                self._columns[name] = _Column(file, rows.dtype, rows.shape[1:])
            column = self._columns[name]
            if (rows.dtype, rows.shape[1:]) != (column.kind, column.shape):
                raise ValueError(
                    f"{name} has rows {column.shape} of {column.kind}, got {rows.shape[1:]} of {rows.dtype}"
                )
            column.file.write(np.ascontiguousarray(rows).data)
            column.rows += len(rows)

    def finish(self, numbers: Mapping[str, Any]) -> None:
        """Move the file into place, with its checksum and these numbers.

        Raises:
            RunError: if the disk is full; an existing file is kept.
        """
        header: dict[str, Any] = {}
        digest, end = hashlib.sha256(), 0
        for name in sorted(self._columns):
            column = self._columns[name]
            shape, start = (column.rows, *column.shape), end
            end += column.rows * int(np.prod(column.shape, dtype=np.int64)) * column.kind.itemsize
            header[name] = {"dtype": KINDS[column.kind.name], "shape": shape, "data_offsets": (start, end)}
            digest.update(f"{name} {torch.from_numpy(np.empty(0, column.kind)).dtype} {shape}\n".encode())
            column.file.seek(0)
            while block := column.file.read(BLOCK):
                digest.update(block)
        header["__metadata__"] = {"progress": json.dumps(numbers), "sha256": digest.hexdigest()}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)

        def write(draft: Path) -> None:
            with draft.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in sorted(self._columns):
                    self._columns[name].file.seek(0)
                    shutil.copyfileobj(self._columns[name].file, file, BLOCK)

        write_atomic(self._path, write)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self._path} cannot be written: {error.strerror or error}") from error
