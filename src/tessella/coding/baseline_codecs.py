"""Sizes of the same pictures under other codecs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, final

import numpy as np
from PIL import Image, features
from torch import Tensor

from tessella.core.schema import Binary, Schema
from tessella.kinds import pictures
from tessella.kinds.base import kind_of

MOST, NUMBERS = 1000, 1 << 26
"""Pictures that are compared at most, and values in all of them."""

LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "WebP": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
    "JPEG XL": ("JXL", {"lossless": True, "effort": 7}),
}
LOSSY: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG, quality 10": ("JPEG", {"quality": 10, "optimize": True}),
    "WebP, quality 10": ("WEBP", {"quality": 10, "method": 6}),
}


@final
@dataclass(frozen=True)
class CodecSize:
    """Bytes that one codec takes for all compared pictures, one file each."""

    name: str
    bytes: int


@final
class BaselineCodecs:
    """Collects the first pictures that pass, and codes them by the codecs that Pillow has here.

    Args:
        schema: schema of the pictures.
        lossy: compare with lossy codecs.

    Attributes:
        numbers: number of values in the pictures collected.
        count: number of pictures collected.
    """

    def __init__(self, schema: Schema, *, lossy: bool) -> None:
        self._schema, self._coders = schema, LOSSY if lossy else LOSSLESS
        self._kept: list[np.ndarray] = []
        self.numbers = 0

    @property
    def count(self) -> int:
        return len(self._kept)

    def collect(self, x: Tensor) -> None:
        """Collect examples `[B, *shape]`, as long as there are not too many."""
        if not kind_of(self._schema).image_files:
            return
        for one in x[: max(0, MOST - self.count)]:
            if self.numbers + one.numel() <= NUMBERS:
                self._kept.append(pictures.to_uint8(one[None], self._schema)[0])
                self.numbers += one.numel()

    def sizes(self) -> list[CodecSize]:
        """Code the collected pictures by each codec that is available."""
        images = [_image(picture, self._schema) for picture in self._kept]
        if not images:
            return []
        found = []
        for name, (form, options) in self._coders.items():
            if _available(form):
                plain = [image.convert("L") if image.mode == "1" and form == "JPEG" else image for image in images]
                found.append(CodecSize(name, sum(_bytes(image, form, options) for image in plain)))
        return found


def _image(picture: np.ndarray, schema: Schema) -> Image.Image:
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    return image.convert("1") if schema.values == Binary() and image.mode == "L" else image


def _bytes(image: Image.Image, form: str, options: dict[str, Any]) -> int:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.tell()


def _available(form: str) -> bool:
    if form == "JXL":
        if find_spec("pillow_jxl") is None:
            return False
        import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    return form != "WEBP" or bool(features.check("webp"))
