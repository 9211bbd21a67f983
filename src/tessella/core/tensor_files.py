"""Tensors that grow row by row on disk, so that no more than a batch of them is in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, final

import numpy as np
import torch

from tessella.foundation.errors import RunError
from tessella.foundation.files import write_atomic

KINDS = {"uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16", "float32": "F32"}
"""Types of numbers, as numpy and as safetensors call them."""
BLOCK = 1 << 20


@dataclass
class _Column:
    """A tensor so far: its rows' bytes, the shape of a row, and how many rows there are."""

    file: IO[bytes]
    kind: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int = 0


@final
class TensorWriter:
    """Writes the file that `tensors.write_tensors` would write, from rows that come a batch at a time.

    Rows wait in nameless files beside the target, which vanish with the process whatever becomes of it.

    Args:
        path: the file to write; what is there stays until `finish`.

    Raises:
        RunError: if nothing can be written there.

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
        """Add rows `[B, ...]` to a tensor; the first ones say its type and the shape of a row.

        Raises:
            ValueError: if they have another type or shape than those before.
            RunError: if the disk is full.
        """
        with self._saving():
            if name not in self._columns:
                file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
                self._columns[name] = _Column(file, rows.dtype, rows.shape[1:])
            column = self._columns[name]
            if (rows.dtype, rows.shape[1:]) != (column.kind, column.shape):
                raise ValueError(
                    f"{name} has rows {column.shape} of {column.kind}, and {rows.shape[1:]} of {rows.dtype}"
                )
            column.file.write(np.ascontiguousarray(rows).data)
            column.rows += len(rows)

    def finish(self, progress: Mapping[str, Any]) -> None:
        """Put the file in place, with its checksum and these numbers.

        Raises:
            RunError: if the disk is full; what was there before stays.
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
        header["__metadata__"] = {"progress": json.dumps(progress), "sha256": digest.hexdigest()}
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
            raise RunError(f"{self._path} cannot be saved: {error.strerror or error}") from error
