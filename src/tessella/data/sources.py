"""Where data comes from: one function a format, and the table that finds it. Nothing is ever unpickled."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from tessella.core.schema import Schema
from tessella.data import limits
from tessella.data.folders.read import folder
from tessella.data.hub import hub
from tessella.data.members import Members, sorted_out
from tessella.data.raw import WHOLE, RawDataset, RawSplit, abridged, index_keys, one_line, shown
from tessella.data.tables.read import PARQUET, table
from tessella.foundation import registry
from tessella.foundation.errors import DataError
from tessella.foundation.registry import register

Size = tuple[int, int] | None
T = TypeVar("T")


def find(
    spec: str, size: Size, channels: int | None, label: str | None = None, like: Schema | None = None
) -> RawDataset:
    """What a SPEC names: a registered source, `hf:NAME`, a folder or a file.

    Args:
        label: the column or array that holds the class.
        like: what the columns of a table are matched with, and how pictures of more than 8 bits become bytes.

    Raises:
        DataError: if there is no such thing, or it cannot be read.
    """
    if spec.startswith(HUB):
        return hub(spec.removeprefix(HUB), size, channels, label, like)
    path, named = Path(spec), registry.names("data")
    try:
        if spec not in named and path.is_file() and _ending(spec) == ".npz":
            return npz(spec, size, channels, label)
        if spec not in named and path.is_file() and _ending(spec) in TABLES:
            return table(spec, label, like)
        if label is not None:
            raise DataError(f"{spec} has no columns or arrays by name: leave out the label {shown(label)}")
        if spec in named:
            return registry.find("data", spec).load()(size)
        if path.is_dir():
            return _folder(spec, size, channels, like and like.depth)
        if path.is_file():
            return _file(spec)
    except PermissionError as error:
        raise DataError(f"{error.filename or spec} may not be read: change its permissions") from None
    raise DataError(f"no such data: {shown(spec)}; give {', '.join(named)}, hf:NAME, a folder of pictures or a file")


@register("data", "digits", summary="1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998)")
def digits(size: Size) -> RawDataset:
    """1,797 handwritten digits of 8x8, from scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x, y = bunch.data, bunch.target
    grey = np.round(x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = RawSplit(grey, y, index_keys(len(grey), "digits"))
    return RawDataset({WHOLE: part}, notes=["values 0 ... 16 scaled to bytes 0 ... 255"])


HUB = "hf:"


def _folder(path: str, size: Size, channels: int | None, depth: tuple[float, float] | None) -> RawDataset:
    names = sorted(os.listdir(path))
    files = [name for name in names if os.path.isfile(os.path.join(path, name))]
    if any(_IDX.search(name) for name in files):
        return idx_folder(path, files)
    if any(_CIFAR.fullmatch(name) for name in files):
        return cifar_binary(path, files)
    if any(_CIFAR_PICKLE.fullmatch(name) for name in files):
        raise _pickled(path)
    return folder(path, size, channels, depth)


def _ending(path: str) -> str:
    """The ending that says of what kind a file is; that of a packed table is what it was packed from."""
    stem, ending = os.path.splitext(os.path.basename(path).lower())
    inner = os.path.splitext(stem)[1]
    return inner if ending == ".gz" and inner in TABLES else ending


def _file(path: str) -> RawDataset:
    name = os.path.basename(path).lower()
    if _IDX.search(name):
        return idx_folder(os.path.dirname(path), [os.path.basename(path)])
    if _CIFAR_PICKLE.fullmatch(name):
        raise _pickled(path)
    ending = _ending(path)
    if ending == ".bin":
        return cifar_binary(os.path.dirname(path), [os.path.basename(path)])
    if ending == ".npy":
        return npy(path)
    if ending in PICKLES:
        raise _pickled(path)
    known = ", ".join((".npz", ".npy", ".bin", "idx", *TABLES))
    raise DataError(f"{path} is of no known kind: give a folder of pictures, or a file of the kind {known}")


TABLES = (".csv", ".tsv", ".txt", ".dat", ".data", *PARQUET)
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt")


def _pickled(path: str) -> DataError:
    return DataError(
        f"{path} is a Python pickle, which could run anything when opened: use the binary version "
        "(CIFAR: data_batch_*.bin) or save the arrays with numpy.savez"
    )


# numpy


class NumpyArchive(Mapping[str, np.ndarray]):
    """The arrays of an `.npz`, each read when asked for; nothing in it is unpickled.

    Raises:
        DataError: if the file, or a member when it is asked for, is missing, damaged, of a size that does not fit, or
            holds pickled objects.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        loaded = _guarded(path, lambda: np.load(path, allow_pickle=False))
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is no .npz archive: save it with numpy.savez")
        self._archive = loaded

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Read the shape and type of an array, and check that its promised size fits.

        Raises:
            KeyError: if there is no such array.
            DataError: as reading it.
        """
        if key not in self._archive.files:
            raise KeyError(key)
        where = f"{self._path}: {key}"
        return _guarded(where, lambda: self._header(key, where))

    def _header(self, key: str, where: str) -> tuple[tuple[int, ...], np.dtype]:
        archive: Any = self._archive.zip
        info = archive.getinfo(key if key in archive.NameToInfo else f"{key}.npy")
        packed = info.compress_size if info.compress_type != zipfile.ZIP_STORED else None
        limits.check_size(where, info.file_size, packed, "save it with numpy.savez, not compressed")
        with archive.open(info) as file:
            return npy_header(file, where, info.file_size)

    def __getitem__(self, key: str) -> np.ndarray:
        self.header(key)
        where = f"{self._path}: {key}"
        member = _guarded(where, lambda: self._archive[key])
        if not isinstance(member, np.ndarray):
            raise DataError(f"{where} is no array: save it with numpy.savez")
        return member

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)


def npy_header(file: IO[bytes], where: str, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of an `.npy` of `size` bytes: shape and type, which must fit into that size.

    Raises:
        DataError: if they do not, or it holds pickled objects.
        ValueError: if it is no such header.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where} holds records with named fields: save a plain array")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        raise DataError(f"{where} {_OBJECTS}")
    promised = file.tell() - start + int(np.prod(shape, dtype=object)) * kind.itemsize
    if min(shape, default=0) < 0 or promised > size:
        raise DataError(
            f"{where} is damaged or cut short: its header promises {limits.human(promised)}, it has "
            f"{limits.human(size)}; fetch or save it again"
        )
    return shape, kind


_OBJECTS = "holds pickled Python objects (ragged lists, or texts of pandas): save a plain array, texts by .astype(str)"
_DAMAGES = (OSError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile)
_DAMAGES = (*_DAMAGES, SyntaxError, TypeError, RuntimeError, OverflowError, struct.error, tokenize.TokenError)
"""What reading a hostile file may raise: a header of a thousand brackets, a member that takes a password."""


def _guarded(where: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except _DAMAGES as error:
        if isinstance(error, PermissionError):
            raise
        if "pickled data" in str(error):
            raise DataError(f"{where} is no numpy file (and nothing is unpickled): save it with numpy.savez") from None
        if ("allow_pickle" in str(error) and "max_header_size" not in str(error)) or "Python objects" in str(error):
            raise DataError(f"{where} {_OBJECTS}") from None
        raise DataError(f"{where} is damaged or cut short: {one_line(error)}; fetch or save it again") from None
    except MemoryError:
        raise DataError(f"{where} does not fit in memory, or its header is damaged") from None


def npz(path: str, size: Size, channels: int | None, label: str | None = None) -> RawDataset:
    """Read arrays of examples and labels by the usual names (`x_train`, `y_train`, `val_images`, ...)."""
    archive = NumpyArchive(path)
    heads = {name: _head(archive, name) for name in archive}
    if label is not None and label not in heads:
        raise DataError(f"{path} has no array {shown(label)!r} to take the class from; it has {abridged(list(heads))}")
    notes: list[str] = []
    names = sorted_out(list(heads), [name for name, (_, kind) in heads.items() if kind in "SUT"], label)
    data, labels = _by_split(names, heads, path, notes)
    parts = {}
    for split, name in data.items():
        x = archive[name]
        if split in ("valid", "test") and x.shape[:1] == (0,):
            notes.append(f"{name} is empty: left out")
            continue
        y = archive[labels[split]] if split in labels else None
        parts[split] = RawSplit(
            x, y, _keys(x, split), name=f"{path}: {name}", labels_name=f"{path}: {labels.get(split)}"
        )
    classes = _class_names(archive, names.classes, path) if names.classes and labels else ()
    left = [name for name in heads if name not in {*data.values(), *labels.values(), names.classes}]
    if left:
        notes.append(f"arrays left out: {abridged(left)}")
    return RawDataset(parts, classes, notes)


def _head(archive: NumpyArchive, name: str) -> tuple[tuple[int, ...], str]:
    """The shape and kind of an array; kind `O` of what cannot be read, which matters only if it is asked for."""
    try:
        shape, kind = archive.header(name)
    except DataError:
        return (), "O"
    return shape, kind.kind


def _by_split(
    names: Members, heads: dict[str, tuple[tuple[int, ...], str]], path: str, notes: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the arrays of examples, and of labels, by split: all of them `whole`, or with a `train`."""
    data, labels = dict(names.data), dict(names.labels)
    if not data:
        used = {*labels.values(), names.classes}
        wide = [name for name, (shape, kind) in heads.items() if name not in used and len(shape) > 1 and kind in "buif"]
        if len(wide) != 1:
            held = abridged([f"{name} ({'x'.join(map(str, shape))})" for name, (shape, _) in heads.items()])
            raise DataError(
                f"{path} has neither x nor x_train, or another usual name of examples; it has {held or 'nothing'}"
            )
        data = {WHOLE: wide[0]}
        notes.append(f"{wide[0]} is taken for the examples: no other array can be")
    for known in (data, labels):
        if WHOLE in known and "train" not in known and len(data) > 1:
            known["train"] = known.pop(WHOLE)
    if "train" in data:
        data.pop(WHOLE, None)
    elif len(data) == 1 and WHOLE not in data:
        (split, name), *_ = data.items()
        notes.append(f"{name} alone holds examples: taken for all of them")
        data, labels = {WHOLE: name}, {WHOLE: labels[split]} if split in labels else {}
    data = {split: data[split] for split in (WHOLE, "train", "valid", "test") if split in data}
    return data, {split: name for split, name in labels.items() if split in data}


def _class_names(archive: NumpyArchive, name: str, path: str) -> tuple[str, ...]:
    listed = archive[name].reshape(-1)
    classes = [str(c.decode("utf-8", "replace") if isinstance(c, bytes) else c) for c in listed.tolist()]
    if len(set(classes)) < len(classes):
        twice = abridged([c for c in dict.fromkeys(classes) if classes.count(c) > 1])
        raise DataError(f"{path}: {name} names {twice} more than once: give every class a name of its own")
    return tuple(classes)


def npy(path: str) -> RawDataset:
    """One array, an example a row."""

    def read() -> Any:
        with open(path, "rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                npy_header(file, path, os.path.getsize(path))
        return np.load(path, allow_pickle=False, mmap_mode="r")

    x = _guarded(path, read)
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path} is an archive: let its name end in .npz")
    return RawDataset({WHOLE: RawSplit(x, None, _keys(x, WHOLE), name=path)})


def _keys(x: np.ndarray, name: str) -> np.ndarray:
    return index_keys(len(x) if x.ndim else 0, name)


# idx, the format of MNIST

_IDX = re.compile(r"(idx\d-ubyte|\.idx\d?)(\.gz)?$", re.IGNORECASE)
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_SPLITS = (("train", "train"), ("t10k", "test"), ("test", "test"))


def idx_array(path: str) -> np.ndarray:
    """An idx file, gzipped or not, of any type and shape (LeCun, "The IDX file format").

    Raises:
        DataError: if it is cut short, no idx file, or promises more than fits.
    """
    return _guarded(path, lambda: _idx_array(path))


def _idx_array(path: str) -> np.ndarray:
    packed = os.path.getsize(path)
    zipped = limits.is_gzipped(path)
    with gzip.open(path) if zipped else open(path, "rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
            raise DataError(f"{path} is no idx file: it does not start with an idx header")
        sides = file.read(4 * start[3])
        shape = tuple(np.frombuffer(sides[: len(sides) // 4 * 4], ">u4").tolist())
        kind = np.dtype(_IDX_TYPES[start[2]])
        promised = int(np.prod(shape, dtype=object)) * kind.itemsize
        if not zipped and (len(shape) != start[3] or 4 + len(sides) + promised != packed):
            raise DataError(f"{path} is damaged or cut short: {packed} bytes do not fit its header; fetch it again")
        limits.check_size(path, promised, packed if zipped else None)
        data = file.read(promised + 1)
    if len(shape) != start[3] or len(data) != promised:
        raise DataError(f"{path} is damaged or cut short: it does not hold what its header promises; fetch it again")
    return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="))


def idx_folder(path: str, names: list[str]) -> RawDataset:
    """idx files: pictures or vectors, their labels beside them, official splits by their names."""
    beside = set(os.listdir(path or "."))
    parts: dict[str, RawSplit] = {}
    notes: list[str] = []
    for name in (name for name in names if _IDX.search(name)):
        x = idx_array(os.path.join(path, name))
        if x.ndim < 2:
            if len(names) == 1:
                raise DataError(f"{os.path.join(path, name)} holds labels: give the file of pictures or the folder")
            continue
        split = next((split for mark, split in _IDX_SPLITS if mark in name.lower()), WHOLE)
        if split in parts:
            notes.append(f"{name} left: another file is the {split} part already")
            continue
        twin = name.replace("images", "labels").replace("idx3", "idx1")
        twins = [t for t in (twin, twin.removesuffix(".gz"), f"{twin}.gz") if t in beside and t != name]
        beside_it = os.path.join(path, twins[0]) if twins else ""
        labels = idx_array(beside_it) if twins else None
        parts[split] = RawSplit(x, labels, _keys(x, split), name=os.path.join(path, name), labels_name=beside_it)
    if not parts:
        raise DataError(f"no idx file of pictures or vectors in {path}")
    if "train" not in parts or WHOLE in parts:
        parts = {WHOLE: next(iter(parts.values()))}
    return RawDataset(parts, notes=notes)


# CIFAR, the binary version

_CIFAR = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")
_CIFAR_PICKLE = re.compile(r"data_batch_\d+|test_batch|batches\.meta")
_CIFAR_LABEL_BYTES = (1, 2)  # CIFAR-10: the class; CIFAR-100: the coarse class, then the class


def cifar_binary(path: str, names: list[str]) -> RawDataset:
    """Rows of label bytes and 3072 bytes of a 32x32 picture, channel by channel (Krizhevsky 2009)."""
    pieces: dict[str, list[np.ndarray]] = {}
    for name in (name for name in names if name.endswith(".bin")):
        data = np.fromfile(os.path.join(path, name), np.uint8)
        widths = [n for n in _CIFAR_LABEL_BYTES if len(data) and len(data) % (3072 + n) == 0]
        if not widths:
            raise DataError(f"{os.path.join(path, name)} is no CIFAR batch, or cut short: {len(data)} bytes")
        split = "test" if name.startswith("test") else "train"
        pieces.setdefault(split, []).append(data.reshape(-1, 3072 + widths[0]))
    parts = {}
    for split, rows in pieces.items():
        if len({r.shape[1] for r in rows}) > 1:
            raise DataError(f"{path} mixes CIFAR-10 and CIFAR-100 batches: keep one of them")
        joined = np.concatenate(rows)
        x, labels = joined[:, -3072:].reshape(-1, 3, 32, 32), joined[:, -3073]
        parts[split] = RawSplit(x, labels, index_keys(len(x), split))
    if "train" not in parts:
        parts = {WHOLE: parts["test"]}
    names_file = next((f for f in ("batches.meta.txt", "fine_label_names.txt") if (Path(path) / f).is_file()), None)
    classes = (Path(path) / names_file).read_text("utf-8", "replace").split() if names_file else []
    return RawDataset(parts, tuple(classes))
