"""Readers of array files: .npz, .npy, idx (MNIST) and binary CIFAR. Nothing is ever unpickled."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from tessella.data import limits
from tessella.data.raw import SPLIT_WORDS, WHOLE, RawDataset, RawSplit, index_keys
from tessella.foundation.errors import DataError
from tessella.foundation.text import abridged, one_line, shown

T = TypeVar("T")

_OBJECTS = "holds pickled Python objects (ragged lists or pandas strings): save plain arrays, strings with .astype(str)"
_DAMAGES = (OSError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile)
_DAMAGES = (*_DAMAGES, SyntaxError, TypeError, RuntimeError, OverflowError, struct.error, tokenize.TokenError)
"""Exceptions that a damaged or hostile file can cause, for example by deep brackets or an encrypted member."""


def _guarded(where: str, read: Callable[[], T]) -> T:
    """Call `read`, and turn what damaged files raise into a DataError."""
    try:
        return read()
    except PermissionError:
        raise
    except _DAMAGES as error:
        said = str(error)
        if "pickled data" in said:
            why, code = "is not a numpy file (pickles are never read): save it with numpy.savez", "no-numpy-file"
        elif ("allow_pickle" in said and "max_header_size" not in said) or "Python objects" in said:
            why, code = _OBJECTS, "pickled"
        else:
            why, code = f"is damaged or incomplete: {one_line(error)}; download or save it again", "damaged"
    except MemoryError:
        why, code = "does not fit in memory, or its header is damaged", "too-large"
    raise DataError(f"{where} {why}", code=code)


# numpy


class NumpyArchive(Mapping[str, np.ndarray]):
    """Arrays of an `.npz` file, each read on access; nothing is unpickled.

    Raises:
        DataError: if the file, or an array on access, is missing, damaged, too large for memory, or holds pickled
            objects.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        loaded = _guarded(path, lambda: np.load(path, allow_pickle=False))
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is not an .npz archive: save it with numpy.savez", code="no-archive")
        self._archive = loaded

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Read an array's shape and type, and check that the array fits in memory.

        Raises:
            KeyError: if there is no such array.
            DataError: if the array is damaged, too large, or holds pickled objects.
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
            return _npy_header(file, where, info.file_size)

    def __getitem__(self, key: str) -> np.ndarray:
        self.header(key)
        where = f"{self._path}: {key}"
        member = _guarded(where, lambda: self._archive[key])
        if not isinstance(member, np.ndarray):
            raise DataError(f"{where} is not an array: save it with numpy.savez", code="no-array")
        return member

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)


def _npy_header(file: IO[bytes], where: str, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and type of an `.npy` file, and check them against its `size` in bytes.

    Raises:
        ValueError: if the file has no `.npy` header.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where} holds records with named fields: save a plain array", code="records")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        raise DataError(f"{where} {_OBJECTS}", code="pickled")
    promised = file.tell() - start + int(np.prod(shape, dtype=object)) * kind.itemsize
    if min(shape, default=0) < 0 or promised > size:
        raise DataError(
            f"{where} is damaged or incomplete: its header announces {limits.human(promised)}, but the file has "
            f"{limits.human(size)}; download or save it again",
            code="damaged",
        )
    return shape, kind


def npy(path: str) -> RawDataset:
    """Read one array whose rows are the examples."""

    def read() -> Any:
        with open(path, "rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                _npy_header(file, path, os.path.getsize(path))
        return np.load(path, allow_pickle=False, mmap_mode="r")

    x = _guarded(path, read)
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path} is an archive: rename it so that it ends in .npz", code="is-archive")
    return RawDataset({WHOLE: RawSplit(x, None, _keys(x, WHOLE), name=path)})


def npz(path: str, label: str | None = None) -> RawDataset:
    """Read arrays of examples and labels by their usual names (`x_train`, `y_train`, `val_images`, ...)."""
    archive = NumpyArchive(path)
    heads = {name: _head(archive, name) for name in archive}
    if label is not None and label not in heads:
        raise DataError(
            f"{path} has no array {shown(label)!r} with the labels; its arrays are {abridged(list(heads))}",
            code="no-such-label",
            label=label,
        )
    notes: list[str] = []
    names = _sorted_out(list(heads), [name for name, (_, kind) in heads.items() if kind in "SUT"], label)
    data, labels = _by_split(names, heads, path, notes)
    parts = {}
    for split, name in data.items():
        x = archive[name]
        if split in ("valid", "test") and x.shape[:1] == (0,):
            notes.append(f"{name} is empty and was ignored")
            continue
        y = archive[labels[split]] if split in labels else None
        called = f"{path}: {labels.get(split)}"
        parts[split] = RawSplit(x, y, _keys(x, split), name=f"{path}: {name}", labels_name=called)
    classes = _class_names(archive, names.classes, path) if names.classes and labels else ()
    left = [name for name in heads if name not in {*data.values(), *labels.values(), names.classes}]
    if left:
        notes.append(f"ignored arrays: {abridged(left)}")
    return RawDataset(parts, classes, notes)


def _head(archive: NumpyArchive, name: str) -> tuple[tuple[int, ...], str]:
    """Read the shape and kind of an array. The kind is `O` if it cannot be read, an error only on use."""
    try:
        shape, kind = archive.header(name)
    except DataError:
        return (), "O"
    return shape, kind.kind


def _class_names(archive: NumpyArchive, name: str, path: str) -> tuple[str, ...]:
    listed = archive[name].reshape(-1)
    classes = [str(c.decode("utf-8", "replace") if isinstance(c, bytes) else c) for c in listed.tolist()]
    if len(set(classes)) < len(classes):
        twice = abridged([c for c in dict.fromkeys(classes) if classes.count(c) > 1])
        raise DataError(
            f"{path}: {name} lists {twice} more than once: give each class a different name", code="same-class-twice"
        )
    return tuple(classes)


def _keys(x: np.ndarray, name: str) -> np.ndarray:
    return index_keys(len(x) if x.ndim else 0, name)


# the names by which arrays of an archive are found to be examples or labels, and of which split

_SHORT_WORDS = {"tr": "train", "trn": "train", "vali": "valid", "va": "valid", "te": "test", "tst": "test"}
_SPLIT_WORDS = SPLIT_WORDS | _SHORT_WORDS
_DATA_WORDS = ("x", "images", "image", "data", "samples", "inputs", "features", "imgs", "img", "pictures", "vectors")
_DATA_WORDS = (*_DATA_WORDS, "series", "signals", "dataset", "input", "sample", "array", "xs", "arr0", "")
_LABEL_WORDS = ("y", "labels", "label", "targets", "target", "class", "classes", "ys", "arr1")
_CLASS_WORDS = (*(f"{a}names" for a in ("class", "classes", "label", "labels", "target", "category")),)
_CLASS_WORDS = (*_CLASS_WORDS, "classlabels", "classes", "categories")
_GLUED = re.compile(rf"([xy])({'|'.join(_SPLIT_WORDS)})|({'|'.join(_SPLIT_WORDS)})([xy])")


class _Members(NamedTuple):
    """Names of the arrays that hold examples and labels, by split (`whole` if undivided), and of the class names."""

    data: dict[str, str]
    labels: dict[str, str]
    classes: str | None


def _sorted_out(names: Sequence[str], texts: Sequence[str], label: str | None) -> _Members:
    """Find the arrays of examples, labels and class names by their names.

    Args:
        texts: names of the arrays of strings; only these can hold class names.
        label: name of the array of labels; the arrays of other splits may differ from it in the word for the split.
    """
    data: dict[str, list[tuple[int, str]]] = {}
    labels: dict[str, list[tuple[int, str]]] = {}
    classes = [name for name in names if _words(name)[1] in _CLASS_WORDS and name in texts]
    for name in names:
        split, stem = _words(name)
        if stem == _words(label)[1] if label else stem in _LABEL_WORDS and name not in classes:
            labels.setdefault(split, []).append((0 if label else _LABEL_WORDS.index(stem), name))
        elif stem in _DATA_WORDS and (stem or split != WHOLE):
            data.setdefault(split, []).append((_DATA_WORDS.index(stem), name))
    first = [{split: min(ranked)[1] for split, ranked in found.items()} for found in (data, labels)]
    return _Members(first[0], first[1], classes[0] if classes else None)


def _words(name: str) -> tuple[str, str]:
    """Divide a name into its split and the rest: `trainImages` gives `train` and `images`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]
    if len(words) == 1 and (glued := _GLUED.fullmatch(words[0])):
        words = [word for word in glued.groups() if word]
    splits = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
    if len(splits) > 1:
        return WHOLE, "".join(words)
    return (splits or [WHOLE])[0], "".join(word for word in words if word not in _SPLIT_WORDS)


def _by_split(
    names: _Members, heads: dict[str, tuple[tuple[int, ...], str]], path: str, notes: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Choose the arrays of examples and of labels by split: all of them `whole`, or with a `train`."""
    data, labels = names.data, names.labels
    if not data:
        used = {*labels.values(), names.classes}
        wide = [name for name, (shape, kind) in heads.items() if name not in used and len(shape) > 1 and kind in "buif"]
        if len(wide) != 1:
            held = abridged([f"{name} ({'x'.join(map(str, shape))})" for name, (shape, _) in heads.items()])
            raise DataError(
                f"{path} has no array with a usual name of examples, such as x or x_train: rename the array of "
                f"examples; the file has {held or 'no arrays'}",
                code="no-examples-array",
            )
        data = {WHOLE: wide[0]}
        notes.append(f"{wide[0]} is taken as the examples: it is the only array that fits")
    for known in (data, labels):
        if WHOLE in known and "train" not in known and len(data) > 1:
            known["train"] = known.pop(WHOLE)
    if "train" in data:
        data.pop(WHOLE, None)
    elif len(data) == 1 and WHOLE not in data:
        (split, name), *_ = data.items()
        notes.append(f"{name} is the only array of examples: it is split into training, validation and test")
        data, labels = {WHOLE: name}, {WHOLE: labels[split]} if split in labels else {}
    data = {split: data[split] for split in (WHOLE, "train", "valid", "test") if split in data}
    return data, {split: name for split, name in labels.items() if split in data}


# idx, the format of MNIST

IDX = re.compile(r"(idx\d-ubyte|\.idx\d?)(\.gz)?$", re.IGNORECASE)
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_SPLITS = (("train", "train"), ("t10k", "test"), ("test", "test"))


def _idx_array(path: str) -> np.ndarray:
    """Read an idx file, gzipped or not (LeCun, "The IDX file format")."""
    packed = os.path.getsize(path)
    zipped = limits.is_gzipped(path)
    with gzip.open(path) if zipped else open(path, "rb") as file:
        start = file.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
            raise DataError(f"{path} is not an idx file: it has no idx header", code="no-idx-file")
        sides = file.read(4 * start[3])
        shape = tuple(np.frombuffer(sides[: len(sides) // 4 * 4], ">u4").tolist())
        kind = np.dtype(_IDX_TYPES[start[2]])
        promised = int(np.prod(shape, dtype=object)) * kind.itemsize
        fits = len(shape) == start[3]
        if fits and (zipped or 4 + len(sides) + promised == packed):
            limits.check_size(path, promised, packed if zipped else None)
            data = file.read(promised + 1)
            if len(data) == promised:
                return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="))
    raise DataError(
        f"{path} is damaged or incomplete: its size does not match its header; download it again", code="damaged"
    )


def idx_folder(path: str, names: list[str]) -> RawDataset:
    """Read idx files of images or vectors with their label files. File names say the official splits."""
    beside = set(os.listdir(path or "."))
    parts: dict[str, RawSplit] = {}
    notes: list[str] = []

    def array(name: str) -> tuple[str, np.ndarray]:
        file = os.path.join(path, name)
        return file, _guarded(file, lambda: _idx_array(file))

    for name in (name for name in names if IDX.search(name)):
        file, x = array(name)
        if x.ndim < 2:
            if len(names) == 1:
                raise DataError(
                    f"{file} holds labels only: give the file of pictures, or the folder", code="labels-alone"
                )
            continue
        split = next((split for mark, split in _IDX_SPLITS if mark in name.lower()), WHOLE)
        if split in parts:
            notes.append(f"{name} was ignored: another file already holds the {split} split")
            continue
        twin = name.replace("images", "labels").replace("idx3", "idx1")
        twins = [t for t in (twin, twin.removesuffix(".gz"), f"{twin}.gz") if t in beside and t != name]
        called, labels = array(twins[0]) if twins else ("", None)
        parts[split] = RawSplit(x, labels, _keys(x, split), name=file, labels_name=called)
    if not parts:
        raise DataError(f"{path} holds no idx file of pictures or vectors", code="no-idx-file")
    if "train" not in parts or WHOLE in parts:
        parts = {WHOLE: next(iter(parts.values()))}
    return RawDataset(parts, notes=notes)


# CIFAR, the binary version

CIFAR = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")
CIFAR_PICKLE = re.compile(r"data_batch_\d+|test_batch|batches\.meta")
_PIXELS = 3 * 32 * 32
_LABEL_BYTES = (1, 2)
"""Label bytes per row. CIFAR-10: the class; CIFAR-100: the coarse class, then the class."""


def cifar_binary(path: str, names: list[str]) -> RawDataset:
    """Read binary CIFAR batches (Krizhevsky 2009).

    Each row holds the label bytes and then the 3072 bytes of a 32x32 image, channel by channel.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for name in (name for name in names if name.endswith(".bin")):
        data = np.fromfile(os.path.join(path, name), np.uint8)
        widths = [_PIXELS + n for n in _LABEL_BYTES if len(data) and len(data) % (_PIXELS + n) == 0]
        if not widths:
            where = os.path.join(path, name)
            raise DataError(
                f"{where} is not a complete CIFAR batch: it has {len(data)} bytes; download it again", code="damaged"
            )
        pieces.setdefault("test" if name.startswith("test") else "train", []).append(data.reshape(-1, widths[0]))
    parts = {}
    for split, rows in pieces.items():
        if len({r.shape[1] for r in rows}) > 1:
            raise DataError(f"{path} mixes CIFAR-10 and CIFAR-100 batches: keep only one kind", code="mixed-cifar")
        joined = np.concatenate(rows)
        x, labels = joined[:, -_PIXELS:].reshape(-1, 3, 32, 32), joined[:, -_PIXELS - 1]
        parts[split] = RawSplit(x, labels, index_keys(len(x), split))
    if "train" not in parts:
        parts = {WHOLE: parts["test"]}
    names_file = next((f for f in ("batches.meta.txt", "fine_label_names.txt") if (Path(path) / f).is_file()), None)
    classes = (Path(path) / names_file).read_text("utf-8", "replace").split() if names_file else []
    return RawDataset(parts, tuple(classes))
