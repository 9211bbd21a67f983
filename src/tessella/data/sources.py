"""Where data comes from: one function a format, and the table that finds it. Nothing is ever unpickled."""

from __future__ import annotations

import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tessella.data.clothes import clothes
from tessella.data.folders import folder
from tessella.data.found import WHOLE, Found, Part, abridged, index_keys, one_line, shown
from tessella.data.hub import hub
from tessella.data.packed import PACKED
from tessella.data.sprites import sprites
from tessella.data.tables import table
from tessella.errors import DataError

Size = tuple[int, int] | None
T = TypeVar("T")


def find(spec: str, size: Size, channels: int | None, depth: tuple[float, float] | None = None) -> Found:
    """What a SPEC names: a built-in, `hf:NAME`, a folder or a file.

    Args:
        depth: of pictures of more than 8 bits in a folder, the values that become 0 and 255.

    Raises:
        DataError: if there is no such thing, or it cannot be read.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec](size)
    if spec.startswith(HUB):
        return hub(spec.removeprefix(HUB), size, channels)
    path = Path(spec)
    try:
        if path.is_dir():
            return _folder(spec, size, channels, depth)
        if path.is_file():
            return _file(spec, size, channels)
    except PermissionError as error:
        raise DataError(f"{error.filename or spec} may not be read: change its permissions") from None
    raise DataError(f"no such data: {shown(spec)}; give {', '.join(BUILT_IN)}, hf:NAME, a folder of pictures or a file")


def digits(size: Size) -> Found:
    """1,797 handwritten digits of 8x8, from scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x, y = bunch.data, bunch.target
    grey = np.round(x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = Part(grey, y, index_keys(len(grey), "digits"))
    return Found({WHOLE: part}, notes=["values 0 ... 16 scaled to bytes 0 ... 255"])


HUB = "hf:"
BUILT_IN: dict[str, Callable[[Size], Found]] = {"clothes": clothes, "digits": digits, "sprites": sprites}


def _folder(path: str, size: Size, channels: int | None, depth: tuple[float, float] | None) -> Found:
    names = sorted(os.listdir(path))
    files = [name for name in names if os.path.isfile(os.path.join(path, name))]
    if any(_IDX.search(name) for name in files):
        return idx_folder(path, files)
    if any(_CIFAR.fullmatch(name) for name in files):
        return cifar_binary(path, files)
    if any(_CIFAR_PICKLE.fullmatch(name) for name in files):
        raise _pickled(path)
    return folder(path, size, channels, depth)


def _file(path: str, size: Size, channels: int | None) -> Found:
    name = os.path.basename(path).lower()
    if _IDX.search(name):
        return idx_folder(os.path.dirname(path), [os.path.basename(path)])
    if _CIFAR_PICKLE.fullmatch(name):
        raise _pickled(path)
    stem, suffix = os.path.splitext(name)
    if suffix == ".gz" and os.path.splitext(stem)[1] in (".csv", ".tsv"):
        return table(path)
    if suffix == ".bin":
        return cifar_binary(os.path.dirname(path), [os.path.basename(path)])
    if suffix == ".npz":
        return npz(path, size, channels)
    if suffix in FILES:
        return FILES[suffix](path)
    if suffix in PICKLES:
        raise _pickled(path)
    raise DataError(f"{path} is of no known kind: give a folder of pictures, .npz, .bin, idx or {', '.join(FILES)}")


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
        DataError: if the file, or a member when it is asked for, is missing, damaged, or holds pickled objects.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        loaded = _guarded(path, lambda: np.load(path, allow_pickle=False))
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is no .npz archive: save it with numpy.savez")
        self._archive = loaded

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._archive.files:
            raise KeyError(key)
        member = _guarded(f"{self._path}: {key}", lambda: self._archive[key])
        if not isinstance(member, np.ndarray):
            raise DataError(f"{self._path}: {key} is no array: save it with numpy.savez")
        return member

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)


def _guarded(where: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, PermissionError):
            raise
        if "pickled data" in str(error):
            raise DataError(f"{where} is no numpy file (and nothing is unpickled): save it with numpy.savez") from None
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise DataError(f"{where} holds pickled Python objects (ragged lists?): save a plain array") from None
        raise DataError(f"{where} is damaged or cut short: {one_line(error)}; fetch or save it again") from None
    except MemoryError:
        raise DataError(f"{where} does not fit in memory") from None


def npz(path: str, size: Size, channels: int | None) -> Found:
    """`x_train` (`y_train`, `x_valid`, `y_valid`, `x_test`, `y_test`), `x` (`y`), or a packed form."""
    members = NumpyArchive(path)
    for keys, read in PACKED.items():
        if keys <= members.keys():
            return read(members, path, size, channels)
    ends = {name: f"_{name}" for name in ("train", "valid", "test")} if "x_train" in members else {WHOLE: ""}
    classes = tuple(map(str, members["class_names"])) if "class_names" in members else ()
    notes, parts = [], {}
    for name, end in ends.items():
        if f"x{end}" not in members:
            continue
        x = members[f"x{end}"]
        if name in ("valid", "test") and x.shape[:1] == (0,):
            notes.append(f"x{end} is empty: left out")
            continue
        parts[name] = Part(x, members.get(f"y{end}"), _keys(x, name))
    if not parts:
        raise DataError(f"{path} has neither x nor x_train; it has {abridged(list(members)) or 'nothing'}")
    return Found(parts, classes, notes)


def npy(path: str) -> Found:
    """One array, an example a row."""
    x = _guarded(path, lambda: np.load(path, allow_pickle=False, mmap_mode="r"))
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path} is an archive: let its name end in .npz")
    return Found({WHOLE: Part(x, None, _keys(x, WHOLE))})


def _keys(x: np.ndarray, name: str) -> np.ndarray:
    return index_keys(len(x) if x.ndim else 0, name)


# idx, the format of MNIST

_IDX = re.compile(r"(idx\d-ubyte|\.idx\d?)(\.gz)?$", re.IGNORECASE)
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_SPLITS = (("train", "train"), ("t10k", "test"), ("test", "test"))


def idx_array(path: str) -> np.ndarray:
    """An idx file, gzipped or not, of any type and shape (LeCun, "The IDX file format").

    Raises:
        DataError: if it is cut short or no idx file.
    """

    def read() -> bytes:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            return file.read()

    data = _guarded(path, read)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise DataError(f"{path} is no idx file: it does not start with an idx header")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else ()
    kind = np.dtype(_IDX_TYPES[data[2]])
    if len(shape) != data[3] or len(data) - start != int(np.prod(shape, dtype=object)) * kind.itemsize:
        raise DataError(f"{path} is damaged or cut short: {len(data)} bytes do not fit its header; fetch it again")
    return np.frombuffer(data, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def idx_folder(path: str, names: list[str]) -> Found:
    """idx files: pictures or vectors, their labels beside them, official splits by their names."""
    beside = set(os.listdir(path or "."))
    parts: dict[str, Part] = {}
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
        labels = idx_array(os.path.join(path, twins[0])) if twins else None
        parts[split] = Part(x, labels, _keys(x, split))
    if not parts:
        raise DataError(f"no idx file of pictures or vectors in {path}")
    if "train" not in parts or WHOLE in parts:
        parts = {WHOLE: next(iter(parts.values()))}
    return Found(parts, notes=notes)


# CIFAR, the binary version

_CIFAR = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")
_CIFAR_PICKLE = re.compile(r"data_batch_\d+|test_batch|batches\.meta")
_CIFAR_LABEL_BYTES = (1, 2)  # CIFAR-10: the class; CIFAR-100: the coarse class, then the class


def cifar_binary(path: str, names: list[str]) -> Found:
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
        parts[split] = Part(x, labels, index_keys(len(x), split))
    if "train" not in parts:
        parts = {WHOLE: parts["test"]}
    names_file = next((f for f in ("batches.meta.txt", "fine_label_names.txt") if (Path(path) / f).is_file()), None)
    classes = (Path(path) / names_file).read_text("utf-8", "replace").split() if names_file else []
    return Found(parts, tuple(classes))


FILES: dict[str, Callable[[str], Found]] = {".npy": npy, ".csv": table, ".tsv": table, ".parquet": table}
"""Files of vectors or pictures by their ending."""
