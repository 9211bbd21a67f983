r"""File format of compressed examples: a header, then chunks of examples that are coded together.

Little endian; integers without a given size are varints.

    magic, version           b"\xf1TES", 1 byte
    length, header           4 bytes, then the fields of `Header`
    checksum                 BLAKE2b-64 of everything before
    chunk, chunk, ...        the fields of `Chunk`, until the end of the file:
        batches, words, spare
        checksum             BLAKE2b-64 of the decoded values, keyed by the header's checksum
        the words            4 bytes each
        checksum             CRC-32 of the chunk so far
    file, file, ...          pictures that the model cannot represent, the fields of `KeptFile`:
        0                    in the place of the number of batches
        name, length, bytes  compressed by zlib if that is shorter; `length` is the uncompressed length
        checksum             BLAKE2b-64 of name and bytes, keyed by the header's checksum
        checksum             CRC-32 of the kept file so far

A chunk is decoded as a whole, since its examples share one stack of bits. The inner checksum covers the examples (or
codes) and the header, so it detects every error in decoding. The CRC distinguishes a damaged file from a machine that
rounds differently. Every length is compared with the bytes that remain before memory is allocated for it.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import BinaryIO, Literal, cast, final, get_args

import numpy as np

from tessella.core.entropy_coding import WORD
from tessella.foundation.errors import DataError, task_name

MAGIC, VERSION = b"\xf1TES", 4
Method = Literal["codes", "lossless", "bits-back"]
ComputePrecision = Literal["float32", "bfloat16"]
METHODS, PRECISIONS = get_args(Method), get_args(ComputePrecision)
HEADER_MOST, TEXT_MOST, SIDE_MOST, LENGTH_MOST = 1 << 26, 1 << 12, 1 << 20, (1 << 32) - 1
NAMES_MOST = 1 << 25
"""Maximum bytes of all names, or of all sizes, uncompressed."""
FILE_MOST = 1 << 28
"""Largest kept file, in bytes, that is compressed."""
MODES = ("1", "L", "LA", "RGB", "RGBA")
"""Picture modes that can be restored, as Pillow names them."""


@final
@dataclass(frozen=True)
class Header:
    """Header of a compressed file.

    Attributes:
        method: the codes alone; codes and then pixels; or latents by bits-back coding and then pixels.
        model, fingerprint: name of the model, and fingerprint of its weights, 12 hexadecimal digits.
        prior, prior_fingerprint: kind of prior, and fingerprint of its weights; empty for a prior without weights.
        values, shape: values and shape of an example, as in the model's schema.
        count: number of examples.
        names: path of each example without its ending.
        sizes: `[N, rank]`, height and width of each picture or length of each signal; empty if all have the model's
            size.
        modes: mode of `MODES` in which each picture is restored, "" for the model's own; empty if all are "".
        kept: number of files stored unchanged, in addition to the examples.
        notes: what is not restored.
        codes_used: number of codes of each position that are used, if not all of them; else 0.
        tiled: whether examples of another size are cut into tiles of the model's; else their codes form one grid.
        precision: precision of encoder and decoder.
        run: path of the run relative to the file, a hint.
        made: versions and machine that wrote the file.
    """

    method: Method
    model: str
    fingerprint: str
    prior: str
    prior_fingerprint: str
    values: str
    shape: tuple[int, ...]
    count: int
    names: Sequence[str]
    sizes: np.ndarray
    precision: ComputePrecision
    run: str
    made: str
    modes: Sequence[str] = ()
    kept: int = 0
    notes: str = ""
    tiled: bool = True
    codes_used: int = 0

    @property
    def rank(self) -> int:
        """Return the number of spatial axes of an example: 2 for a picture."""
        return len(self.shape) - 1

    def tiles(self, number: int) -> int:
        """Return the number of tiles of the model's size that an example is cut into."""
        if not self.tiled or not len(self.sizes):
            return 1
        return math.prod(-(-side // tile) for side, tile in zip(self.size(number), self.shape[1:], strict=True))

    @property
    def all_tiles(self) -> int:
        """Return the number of tiles of all examples."""
        return sum(map(self.tiles, range(self.count))) if self.tiled and len(self.sizes) else self.count

    @property
    def tile_lengths(self) -> np.ndarray:
        """Return the number of positions of each tile of signals, `[all_tiles]` int64."""
        (window,) = self.shape[1:]
        lengths = self.sizes[:, 0].astype(np.int64) if len(self.sizes) else np.full(self.count, window)
        tiles = -(-lengths // window)
        found = np.full(int(tiles.sum()), window)
        found[tiles.cumsum() - 1] = lengths - (tiles - 1) * window
        return found

    def size(self, number: int) -> tuple[int, ...]:
        """Return height and width of a picture, or the length of a signal; () for a vector."""
        return tuple(self.sizes[number].tolist()) if len(self.sizes) else self.shape[1:]

    def mode(self, number: int) -> str:
        """Return the mode in which a picture is restored; "" for the model's own."""
        return self.modes[number] if self.modes else ""


@final
@dataclass(frozen=True)
class Chunk:
    """Examples coded together.

    Attributes:
        batches: sizes of the batches that go through the networks, in the order in which they were coded.
        words: the entropy coded bits, `[n]` uint32.
        spare: initial words of the coder, which bits-back decoding restores.
        checksum: 8 bytes, of the decoded values; `sealed` if it is in a file.
        key: the header's checksum.
    """

    batches: tuple[int, ...]
    words: np.ndarray
    spare: int
    checksum: bytes
    key: bytes = b""

    def is_of(self, values: np.ndarray) -> bool:
        """Check whether these values were coded under this header."""
        return sealed(checksum(values), self.key) == self.checksum


@final
@dataclass(frozen=True)
class KeptFile:
    """File stored unchanged: its name with its ending, and its bytes."""

    name: str
    data: bytes


@final
@dataclass(frozen=True)
class Contents:
    """Contents of a file: numbers of chunks, of their batches and of coded bytes, and names of kept files."""

    chunks: int
    batches: int
    coded_bytes: int
    kept: tuple[str, ...]


@final
class Numbered(Sequence[str]):
    """Consecutively numbered names `stem-first`, ... that take no memory."""

    def __init__(self, stem: str, first: int, count: int) -> None:
        self.stem, self.first, self._count = stem, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride, reportMissingParameterType]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return f"{self.stem}-{self.first + index % self._count}"


def checksum(values: np.ndarray) -> bytes:
    """Compute 8 bytes of BLAKE2b over the values in their order."""
    return blake2b(np.ascontiguousarray(values).data, digest_size=8).digest()


def sealed(plain: bytes, key: bytes) -> bytes:
    """Bind the checksum of values to a header, so that it holds under this header only."""
    return blake2b(plain, key=key, digest_size=8).digest() if key else plain


# writing


def pack_header(header: Header) -> bytes:
    """Pack everything before the first chunk; the last 8 bytes are its checksum.

    Raises:
        DataError: if there are more names or sizes than a header can hold.
    """
    out = bytearray([METHODS.index(header.method), PRECISIONS.index(header.precision)])
    out += _varint(len(header.shape)) + b"".join(_varint(side) for side in header.shape)
    for text in (header.values, header.model, header.prior, header.run, header.made, header.notes):
        data = text.encode("utf-8", "replace")
        out += _blob(data if text.isprintable() and len(data) <= TEXT_MOST else b"")
    out += bytes.fromhex(header.fingerprint) + _blob(bytes.fromhex(header.prior_fingerprint))
    out += _varint(header.count) + _packed_names(header.names)
    out += _packed(header.sizes.astype(WORD).tobytes())
    out += _packed(bytes(MODES.index(mode) + 1 if mode else 0 for mode in header.modes)) + _varint(header.kept)
    out += _varint(header.tiled) + _varint(header.codes_used)
    plain = MAGIC + bytes([VERSION]) + struct.pack("<I", len(out)) + bytes(out)
    return plain + blake2b(plain, digest_size=8).digest()


def pack_chunk(chunk: Chunk) -> bytes:
    head = _varint(len(chunk.batches)) + b"".join(_varint(batch) for batch in chunk.batches)
    head += _varint(len(chunk.words)) + _varint(chunk.spare) + chunk.checksum
    whole = head + chunk.words.astype(WORD).tobytes()
    return whole + struct.pack("<I", zlib.crc32(whole))


def pack_file(kept: KeptFile, key: bytes) -> bytes:
    """Pack a kept file under the header whose checksum is `key`."""
    name, packed = kept.name.encode("utf-8", "surrogateescape"), b""
    if len(kept.data) <= FILE_MOST:
        packed = zlib.compress(kept.data, 9)
    shorter = packed if packed and len(packed) < len(kept.data) else kept.data
    whole = b"\0" + _blob(name) + _varint(len(kept.data)) + _blob(shorter) + sealed(_sum(name, kept.data), key)
    return whole + struct.pack("<I", zlib.crc32(whole))


def _sum(name: bytes, data: bytes) -> bytes:
    return blake2b(len(name).to_bytes(8, "little") + name + data, digest_size=8).digest()


def _packed_names(names: Sequence[str]) -> bytes:
    stem, dash, first = names[0].rpartition("-") if names else ("", "", "")
    if dash and first.isdecimal() and len(first) < 10 and stem.isprintable() and len(stem.encode()) <= TEXT_MOST:
        counted = Numbered(stem, int(first), len(names))
        if all(a == b for a, b in zip(names, counted, strict=True)):
            return b"\x01" + _blob(stem.encode()) + _varint(int(first))
    return b"\x00" + _packed("\0".join(names).encode("utf-8", "surrogateescape"))


def _packed(data: bytes) -> bytes:
    if len(data) > NAMES_MOST:
        raise DataError(f"the names or sizes exceed the limit of a file ({NAMES_MOST >> 20} MiB): compress in parts",
                        code="too-many-names")  # fmt: skip
    return _blob(zlib.compress(data, 9))


def _varint(number: int) -> bytes:
    """Encode a number in groups of seven bits, least significant first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _blob(data: bytes) -> bytes:
    return _varint(len(data)) + data


# reading


class _Damaged(Exception):
    """What is wrong, in a few words."""


@final
class Container:
    """Reader of a compressed file: reads the header at once, and chunks on demand.

    Args:
        path: path of the file.

    Raises:
        DataError: if the file is missing, damaged, of another kind, or of a newer version.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not os.path.isfile(path):
            raise DataError(f"no such file: {path}; make one with {task_name('compress', 'RUN PICTURES -o FILE')}",
                            code="no-such-file")  # fmt: skip
        self.bytes = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(len(MAGIC) + 5)
            if not self.bytes or start[: len(MAGIC)] != MAGIC[: len(start)]:
                what = "is empty" if not self.bytes else "is not a compressed file"
                raise DataError(f"{path} {what}: make one with {task_name('compress')}", code="no-container")
            try:
                if len(start) < len(MAGIC) + 5:
                    raise _Damaged("it ends within its header")
                if (version := start[len(MAGIC)]) != VERSION:
                    remedy = "upgrade tessella" if version > VERSION else "decompress it by the version that made it"
                    raise DataError(f"{path} has version {version}; this tessella reads version {VERSION}: {remedy}",
                                    code="version")  # fmt: skip
                (length,) = struct.unpack("<I", start[-4:])
                if length > min(HEADER_MOST, self.bytes):
                    raise _Damaged("it ends within its header")
                body, sum_ = file.read(length), file.read(8)
                if blake2b(start + body, digest_size=8).digest() != sum_:
                    raise _Damaged("its header's checksum does not match")
                self.header = _header(_Reader(io.BytesIO(body), length))
            except _Damaged as error:
                raise self.damaged(str(error)) from error
            self._first, self._key = file.tell(), sum_

    def audit(self) -> Contents:
        """Read the whole file and count what it holds.

        Raises:
            DataError: if it is damaged, or ends early.
        """
        chunks = batches = examples = words = 0
        for chunk in self.chunks():
            chunks, batches = chunks + 1, batches + len(chunk.batches)
            examples, words = examples + sum(chunk.batches), words + len(chunk.words)
        kept = tuple(file.name for file in self.files())
        if (short := self.header.all_tiles - examples) > 0:
            raise self.damaged(f"it ends {short} examples early")
        return Contents(chunks, batches, WORD.itemsize * words, kept)

    def chunks(self) -> Iterator[Chunk]:
        """Read the chunks one by one.

        Raises:
            DataError: if one is damaged, or the file ends early.
        """
        return (part for part in self._parts() if isinstance(part, Chunk))

    def files(self) -> Iterator[KeptFile]:
        """Read the kept files one by one, checking all chunks before them.

        Raises:
            DataError: if one is damaged, or their number differs from the header's.
        """
        number = 0
        for part in self._parts():
            if isinstance(part, KeptFile):
                number += 1
                yield part
        if number != self.header.kept:
            raise self.damaged(f"it holds {number} kept files, but its header says {self.header.kept}")

    def _parts(self) -> Iterator[Chunk | KeptFile]:
        with open(self.path, "rb") as file:
            file.seek(self._first)
            reader, number, coded = _Reader(file, self.bytes - self._first), 0, True
            while reader.left:
                try:
                    part = _part(reader, self._key)
                except _Damaged as error:
                    raise self.damaged(f"chunk {number}: {error}") from error
                if isinstance(part, Chunk) > coded or (isinstance(part, KeptFile) and not self.header.kept):
                    raise self.damaged(f"chunk {number}: it is in the wrong place")
                coded, number = isinstance(part, Chunk), number + 1
                yield part

    def damaged(self, how: str) -> DataError:
        """Make the error for a damaged file."""
        return DataError(f"{self.path} is damaged ({how}): copy it again or compress again", code="damaged")


@final
class _Reader:
    """Reads consecutive bytes, never more than remain."""

    def __init__(self, file: BinaryIO | io.BytesIO, left: int) -> None:
        self._file, self.left, self.crc = file, left, 0

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Damaged("it ends early")
        self.left -= count
        data = self._file.read(count)
        if len(data) < count:
            raise _Damaged("it ends early")
        self.crc = zlib.crc32(data, self.crc)
        return data

    def varint(self, most: int = 1 << 48) -> int:
        number = shift = 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 127) << shift
            shift += 7
            if number > most or shift > 63:
                raise _Damaged("a number is out of range")
            if byte < 128:
                return number

    def blob(self, most: int) -> bytes:
        return self.take(self.varint(most))

    def text(self, most: int = TEXT_MOST) -> str:
        text = _text(self.blob(most))
        if not text.isprintable():
            raise _Damaged("a text cannot be read")
        return text


def _header(reader: _Reader) -> Header:
    method, precision = (reader.varint(len(known) - 1) for known in (METHODS, PRECISIONS))
    dims = reader.varint(3)
    shape = tuple(reader.varint(SIDE_MOST) for _ in range(dims))
    values, model, prior, run, made, notes = (reader.text() for _ in range(6))
    fingerprint, prior_fingerprint = reader.take(6).hex(), reader.blob(6).hex()
    count = reader.varint()
    if reader.varint(1):
        stem, first = reader.text(), reader.varint()
        names: Sequence[str] = Numbered(stem, first, count)
    else:
        joined = _unpacked(reader.blob(HEADER_MOST))
        names = _text(joined).split("\0") if joined.count(b"\0") == count - 1 else []
    packed = _unpacked(reader.blob(HEADER_MOST))
    rank = max(1, dims - 1)
    each = WORD.itemsize * rank
    sizes = np.frombuffer(packed[: len(packed) // each * each], WORD).reshape(-1, rank)
    numbers, kept, tiled = _unpacked(reader.blob(HEADER_MOST)), reader.varint(), bool(reader.varint(1))
    codes_used = reader.varint()
    modes = [("", *MODES)[number] for number in numbers] if max(numbers, default=0) <= len(MODES) else ["?"]
    sound = len(shape) in (1, 2, 3) and 0 not in shape and count + kept and len(names) == count and not reader.left
    sound = sound and len(modes) in (0, count) and (len(shape) - 1 == 2 or not (modes or kept))
    most = SIDE_MOST if rank > 1 else LENGTH_MOST
    fitting = not packed or (dims > 1 and len(packed) == each * count and 0 < sizes.min() <= sizes.max() < most)
    if not sound or not fitting:
        raise _Damaged("its header is inconsistent")
    return Header(
        cast(Method, METHODS[method]), model, fingerprint, prior, prior_fingerprint, values,
        shape, count, names, sizes, cast(ComputePrecision, PRECISIONS[precision]), run, made,
        modes, kept, notes, tiled, codes_used,
    )  # fmt: skip


def _part(reader: _Reader, key: bytes) -> Chunk | KeptFile:
    reader.crc = 0
    several = reader.varint(reader.left)
    return _chunk(reader, key, several) if several else _kept(reader, key)


def _kept(reader: _Reader, key: bytes) -> KeptFile:
    name, length = reader.blob(HEADER_MOST), reader.varint()
    data, sum_, expected = reader.blob(reader.left), reader.take(8), reader.crc
    if reader.take(4) != struct.pack("<I", expected):
        raise _Damaged("its checksum does not match")
    if length != len(data):
        if length > FILE_MOST:
            raise _Damaged("a number is out of range")
        data = _unpacked(data, length)
    if sealed(_sum(name, data), key) != sum_:
        raise _Damaged("it belongs to another file")
    return KeptFile(_text(name), data)


def _chunk(reader: _Reader, key: bytes, several: int) -> Chunk:
    batches = tuple(reader.varint(1 << 24) for _ in range(several))
    length, spare = reader.varint(reader.left // WORD.itemsize), reader.varint()
    sum_ = reader.take(8)
    words = reader.take(length * WORD.itemsize)
    expected = reader.crc
    if reader.take(4) != struct.pack("<I", expected):
        raise _Damaged("its checksum does not match")
    if 0 in batches or spare > length:
        raise _Damaged("it is inconsistent")
    return Chunk(batches, np.frombuffer(words, WORD), spare, sum_, key)


def _unpacked(data: bytes, most: int = NAMES_MOST) -> bytes:
    """Decompress by zlib, up to a limit."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, most)
    except zlib.error as error:
        raise _Damaged("its names cannot be unpacked") from error
    if not unpacker.eof or unpacker.unused_data:
        raise _Damaged("its names cannot be unpacked")
    return plain


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise _Damaged("a text cannot be read") from error
