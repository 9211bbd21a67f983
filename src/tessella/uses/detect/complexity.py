"""How complex a picture is: the shortest file that a general lossless compressor makes of it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, features
from torch import Tensor

from tessella import pictures
from tessella.data.folders import MODES
from tessella.records import Schema


def file_nats(x: Tensor, schema: Schema) -> np.ndarray:
    """Nats of the shorter of a picture's PNG and lossless WebP files, `[B]` float64: 8 ln 2 a byte.

    It bounds the Kolmogorov complexity of the picture from above, headers and all (Serra et al. 2020, section 3).

    Args:
        x: bytes or binary values `[B, C, H, W]`.
    """
    tiles = pictures.to_uint8(x, schema)
    mode = MODES[tiles.shape[-1]]
    return np.array([_shortest(Image.fromarray(tile.squeeze(), mode)) for tile in tiles]) * 8 * math.log(2)


def _shortest(picture: Image.Image) -> int:
    """Bytes. Without WebP in Pillow, of the PNG alone."""
    png = _bytes(picture, format="PNG", optimize=True)
    if not features.check("webp"):
        return png
    colour = picture.convert("RGBA" if "A" in picture.mode else "RGB")
    return min(png, _bytes(colour, format="WEBP", lossless=True, exact=True))


def _bytes(picture: Image.Image, **options: object) -> int:
    buffer = io.BytesIO()
    picture.save(buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.tell()
