"""Mutations of compressed files, and what must hold of each: it is refused in one line, or gives the same examples.

Bits are flipped, bytes inserted, dropped, repeated and made up, ends cut off, pieces of other files spliced in, the
header's fields edited and a chunk's: and of half of them the checksums are then made right again, so that what lies
behind them is reached. `benchmarks/compression.py` counts ten thousand; the tests a few hundred.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch import Tensor

from tessella.coding import files
from tessella.coding.container import MAGIC, Container
from tessella.coding.weights import check
from tessella.foundation.errors import TessellaError

START = len(MAGIC) + 5
"""Bytes before the header: magic, version, length."""


def mutated(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One mutation of a valid file."""
    kinds: list[Callable[[bytearray, Sequence[bytes], np.random.Generator], bytearray]]
    kinds = [_flip, _flip, _cut, _insert, _drop, _repeat, _noise, _splice, _header_byte, _header_byte, _chunk_byte]
    draft = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        draft = kinds[int(rng.integers(len(kinds)))](draft, others, rng)
    return mended(bytes(draft)) if rng.random() < 0.5 else bytes(draft)


def mended(data: bytes) -> bytes:
    """The same with right lengths and checksums of the header and of every chunk that can be found."""
    if len(data) < START + 8:
        return data
    (length,) = struct.unpack("<I", data[START - 4 : START])
    length = min(length, len(data) - START - 8)
    head = data[: START - 4] + struct.pack("<I", length) + data[START : START + length]
    body = bytearray(data[START + length + 8 :])
    first = _chunk_head(bytes(body))
    if first is not None and first[1] + 4 <= len(body):
        body[first[1] : first[1] + 4] = struct.pack("<I", zlib.crc32(bytes(body[: first[1]])))
    return head + blake2b(head, digest_size=8).digest() + bytes(body)


def judged(path: Path, model, weights: files.Weights, originals: Sequence[Tensor]) -> str:
    """Read a file as the command line does: `refused`, or `same`.

    Raises:
        AssertionError: if examples come out that are not the originals.
    """
    number = -1
    try:
        container = Container(str(path))
        check(container, model, weights)
        for number, (_, x) in enumerate(files.read_compressed(container, model, workers=1)):
            same = number < len(originals) and x.shape == originals[number].shape
            if not (same and bool((x == originals[number]).all())):
                raise AssertionError(f"example {number} of {path} is not the original")
    except TessellaError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from error
        return "refused"
    if number + 1 != len(originals):
        raise AssertionError(f"{path} gave {number + 1} of {len(originals)} examples and said nothing")
    return "same"


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, the first bytes more often."""
    most = len(data) if rng.random() < 0.5 else min(len(data), 200)
    return int(rng.integers(max(1, most)))


def _flip(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    for _flips in range(int(rng.integers(1, 4))):
        if data:
            data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def _cut(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    return data[: _place(data, rng)]


def _insert(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    return data[:at] + bytearray(rng.bytes(int(rng.integers(1, 20)))) + data[at:]


def _drop(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 20)) :]


def _repeat(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    return data[:at] + data[at : at + int(rng.integers(1, 300))] + data[at:]


def _noise(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    at = _place(data, rng)
    some = rng.bytes(min(len(data) - at, int(rng.integers(1, 300))))
    return data[:at] + bytearray(some) + data[at + len(some) :]


def _splice(data: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    other = others[int(rng.integers(len(others)))]
    at = int(rng.integers(max(1, min(len(data), len(other)))))
    return data[:at] + bytearray(other[at:])


def _header_byte(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    if len(data) > START:
        (length,) = struct.unpack("<I", bytes(data[START - 4 : START]))
        at = START + int(rng.integers(max(1, min(length, len(data) - START))))
        data[at] = int(rng.choice([0, 1, 2, 127, 128, 255, int(rng.integers(256))]))
    return data


def _chunk_byte(data: bytearray, _: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    (length,) = struct.unpack("<I", bytes(data[START - 4 : START])) if len(data) >= START else (0,)
    at = START + length + 8 + int(rng.integers(30))
    if at < len(data):
        data[at] = int(rng.choice([0, 1, 2, 127, 128, 255, int(rng.integers(256))]))
    return data


def _chunk_head(body: bytes) -> tuple[int, int] | None:
    """Where the words of the first chunk begin and end, if its numbers can be read."""
    at, numbers = 0, []
    try:
        several, at = _varint(body, at)
        for _ in range(min(several, len(body)) + 2):
            number, at = _varint(body, at)
            numbers.append(number)
    except IndexError:
        return None
    return at + 8, at + 8 + 4 * numbers[-2]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return number, at
