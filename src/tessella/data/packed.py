"""Data sets packed into one `.npz` each: bits, compressed pictures, layers to compose. Plain arrays, no pickles."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image

from tessella.data.folders.read import Item, pictures
from tessella.data.folders.readers import Rows
from tessella.data.raw import WHOLE, RawDataset, RawSplit, index_keys, mixed, one_line
from tessella.foundation.errors import DataError

Members = Mapping[str, np.ndarray]
Size = tuple[int, int] | None


def bits(z: Members, where: str, size: Size, channels: int | None) -> RawDataset | None:
    """`np.packbits` of square binary pictures, a row each, with official splits (the fixed binarised MNIST).

    None if they are plain arrays.
    """
    parts, side = {}, 0
    for name in ("train", "valid", "test"):
        packed = z[name]
        side = int(np.sqrt(packed.shape[1] * 8)) if packed.ndim == 2 and packed.dtype == np.uint8 else 0
        if side == 0 or -(-side * side // 8) != packed.shape[1]:
            return None
        x = np.unpackbits(packed, axis=1)[:, : side * side].reshape(-1, side, side)
        labels = z.get(f"{name}_label")
        parts[name] = RawSplit(x, labels, index_keys(len(x), name))
    return RawDataset(parts, notes=[f"rows of packed bits unpacked to {side}x{side}"])


def strips(z: Members, where: str, size: Size, channels: int | None) -> RawDataset:
    """Lossless WebP strips of square pictures one below the other, with official splits (CIFAR-10)."""
    parts = {}
    for name in ("train", "test"):
        data, offsets = z[f"{name}_webp"].tobytes(), z[f"{name}_offsets"].tolist()
        pieces = []
        for a, b in pairwise(offsets):
            try:
                with Image.open(io.BytesIO(data[a:b]), formats=["WEBP"]) as strip:
                    pieces.append(np.asarray(strip.convert("RGB")).reshape(-1, strip.width, strip.width, 3))
            except Exception as error:  # decoders of broken files raise nearly anything
                raise DataError(f"{where}: the strip at byte {a} of {name} is broken: {one_line(error)}") from None
        x = np.concatenate(pieces)
        parts[name] = RawSplit(x, z.get(f"y_{name}"), index_keys(len(x), name))
    return RawDataset(parts, _names(z))


def jpegs(z: Members, where: str, size: Size, channels: int | None) -> RawDataset:
    """JPEG files one after another, with `is_test` (flowers96)."""
    data, offsets = z["jpeg"].tobytes(), z["offsets"]
    count = len(offsets) - 1
    is_test = z.get("is_test", np.zeros(count, bool))
    names = (
        [name.decode("utf-8", "replace") for name in z["file_name"]]
        if "file_name" in z
        else list(map(str, range(count)))
    )
    splits = np.where(is_test, "test", "train" if is_test.any() else WHOLE).tolist()
    item = partial(_slice, data, offsets)
    labels = z["label"].astype(np.int64) if "label" in z else None
    return pictures(item, names, splits, labels, _names(z), size=size, channels=channels, notes=[], where=where)


def _slice(data: bytes, offsets: np.ndarray, i: int) -> Item:
    return data[offsets[i] : offsets[i + 1]]


class LayerReader:
    """Characters composed of body, bottomwear, topwear, hair and shoes, in 9 actions of 8 frames.

    Row number `(((body * 6 + bottom) * 6 + top) * 6 + hair) * 72 + action * 8 + frame`.
    """

    COUNTS = (6, 6, 6, 6, 9, 8)
    NAMES = ("body", "bottom", "top", "hair", "action", "frame")
    FIRST = (0, 6, 12, 18)
    SHOES = 24

    def __init__(self, layers: np.ndarray) -> None:
        self._layers = layers
        self.shape: tuple[int, int, int] = (3, layers.shape[3], layers.shape[4])

    def __len__(self) -> int:
        return int(np.prod(self.COUNTS))

    def factors(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.NAMES, np.unravel_index(rows, self.COUNTS), strict=True))

    def read(self, rows: np.ndarray) -> np.ndarray:
        *worn, action, frame = self.factors(rows).values()
        done = np.empty((len(rows), *self.shape), np.uint8)
        for i, (a, f) in enumerate(zip(action, frame, strict=True)):
            image = Image.new("RGBA", (self.shape[2], self.shape[1]), "black")
            for k in (*(first + part[i] for first, part in zip(self.FIRST, worn, strict=True)), self.SHOES):
                image.alpha_composite(Image.fromarray(self._layers[k, a, f]))
            done[i] = np.moveaxis(np.asarray(image)[..., :3], -1, 0)
        return done


def layers(z: Members, where: str, size: Size, channels: int | None) -> RawDataset:
    """Sprites composed of layers when asked for; the official split is by character, the class is the action."""
    stack = z["layers"]
    if stack.shape[:3] != (25, 9, 8) or stack.shape[5:] != (4,) or stack.dtype != np.uint8:
        raise DataError(f"{where}: layers have shape {stack.shape}, not (25, 9, 8, height, width, 4) of bytes")
    reader = LayerReader(stack)
    rows = np.arange(len(reader))
    keys, characters = index_keys(len(reader), WHOLE), mixed((rows // 72).astype(np.uint64))
    known = reader.factors(rows)
    parts, training = {}, z["is_train_character"].astype(bool)[rows // 72]
    for name, of in (("train", training), ("test", ~training)):
        factors = {factor: values[of] for factor, values in known.items()}
        parts[name] = RawSplit(Rows(reader, rows[of]), factors["action"], keys[of], characters[of], factors)
    return RawDataset(parts, tuple(map(str, z["action_direction"])) if "action_direction" in z else ())


def heartbeats(z: Members, where: str, size: Size, channels: int | None) -> RawDataset:
    """Vectors `x` with `is_official_train` and, as the class, `is_anomaly` (ECG5000)."""
    training = z["is_official_train"].astype(bool)
    labels, keys = z.get("is_anomaly"), index_keys(len(training), WHOLE)
    parts = {}
    for name, of in (("train", training), ("test", ~training)):
        parts[name] = RawSplit(z["x"][of], None if labels is None else labels[of].astype(np.int64), keys[of])
    return RawDataset(parts, ("normal", "anomalous") if labels is not None else ())


def sound(z: Members, where: str, size: Size, channels: int | None) -> RawDataset:
    """Sound of varying length."""
    raise DataError(f"{where} holds sound, which Tessella does not read yet: give pictures or vectors")


PACKED: dict[frozenset[str], Callable[[Members, str, Size, int | None], RawDataset | None]] = {
    frozenset({"train_webp", "train_offsets", "test_webp", "test_offsets"}): strips,
    frozenset({"jpeg", "offsets"}): jpegs,
    frozenset({"layers", "is_train_character"}): layers,
    frozenset({"x", "is_official_train"}): heartbeats,
    frozenset({"train", "valid", "test"}): bits,
    frozenset({"audio", "offsets"}): sound,
}
"""Packed forms by the members that tell them."""


def _names(z: Members) -> tuple[str, ...]:
    return tuple(map(str, z["class_names"])) if "class_names" in z else ()
