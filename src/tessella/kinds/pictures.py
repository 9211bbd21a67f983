"""Sheets of rendered examples, picture files and data URIs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.errors import DataError
from tessella.foundation.files import write_atomic
from tessella.kinds.base import kind_of

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's modes of pictures, by number of channels."""
VIEWABLE, WIDEST = 64, 1600
GAP_SHADE = 200


def image_grid(x: Tensor, schema: Schema, columns: int, gap: int = 2, scale: int | None = None) -> Image.Image:
    """Arrange examples `[B, *shape]` in one picture, row by row.

    Args:
        x: the examples.
        schema: description of one example.
        columns: examples per row; the last row may be shorter.
        gap: pixels between examples.
        scale: enlargement by repeated pixels. Default: large enough to view small pictures.
    """
    tiles = kind_of(schema).render(x)
    count, height, width, channels = tiles.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    if scale is None:
        scale = max(1, min(-(-VIEWABLE // min(height, width)), WIDEST // (columns * width)))
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), GAP_SHADE, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def picture(x: Tensor, schema: Schema, mode: str = "") -> Image.Image:
    """Render one example `[*shape]` as a picture, in the given Pillow mode if any."""
    image = image_grid(x[None], schema, columns=1, scale=1)
    return image.convert(mode, dither=Image.Dither.NONE) if mode and image.mode != mode else image


def save(image: Image.Image, path: str | Path) -> None:
    """Write a picture atomically, in the format of the file name's ending.

    Raises:
        DataError: if the ending is not that of a picture format.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"{path} does not have the ending of a picture format: use .png", code="bad-ending")
    write_atomic(path, image.save)


def images(x: Tensor, schema: Schema, most: int | None = None) -> list[Image.Image]:
    """Convert examples `[B, *shape]` to pictures, with white behind transparent parts.

    Args:
        x: the examples.
        schema: description of one example.
        most: most pixels per side; larger pictures are reduced. None: no limit.
    """
    found = []
    for tile in kind_of(schema).render(x):
        mode = MODES[tile.shape[2]]
        image = Image.fromarray(tile[..., 0] if mode == "L" else tile)
        if mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        if most is not None:
            image.thumbnail((most, most))
        found.append(image)
    return found


def to_jpeg(image: Image.Image) -> bytes:
    """Encode a picture as JPEG of a fixed quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def from_jpeg(data: bytes, most: int | None = None) -> Image.Image:
    """Decode a JPEG.

    Args:
        data: the file's bytes.
        most: most pixels per side.

    Raises:
        DataError: if it is not a JPEG, or is larger.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if most is None or max(image.size) <= most:
                image.load()
                return image.convert("RGB") if most else image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("a picture is damaged", code="damaged-picture") from error
    raise DataError(f"a picture has more than {most} pixels per side", code="damaged-picture")


HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])
"""Colours from black through red to yellow, in order of lightness."""


def heat_map(values: np.ndarray, low: float, high: float, scale: int = 1) -> Image.Image:
    """Colour values `[H, W]`: black up to `low`, yellow from `high` on.

    Each value becomes a square of `scale` pixels per side.
    """
    level = np.clip((values - low) / (high - low), 0, 1) * (len(HEAT) - 1)
    step = np.minimum(np.floor(level).astype(int), len(HEAT) - 2)
    part = (level - step)[..., None]
    colours = np.round(HEAT[step] * (1 - part) + HEAT[step + 1] * part).astype(np.uint8)
    return Image.fromarray(colours.repeat(scale, 0).repeat(scale, 1))
