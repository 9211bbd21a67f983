"""Examples made visible: stored values to 8-bit pictures, contact sheets, files and data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.errors import DataError
from tessella.foundation.files import write_atomic

PLOT_HEIGHT, PLOT_WIDTH, FEW_BARS = 48, 96, 32
VIEWABLE, WIDEST = 64, 1600
GAP_SHADE = 200


def to_uint8(x: Tensor, schema: Schema) -> np.ndarray:
    """Stored values `[B, *shape]` to displayable ones `[B, H, W, C]`, uint8.

    Bytes stay, binary values are multiplied by 255, real ones mapped from `[low, high]`; a vector becomes a small
    plot: a line, or bars for few features. Values outside the range are clipped.
    """
    unit = np.nan_to_num((x.detach().to("cpu").float().numpy() - schema.values.low) / schema.values.span)
    unit = np.clip(unit, 0, 1)
    if schema.is_picture:
        return np.ascontiguousarray(np.moveaxis(np.round(unit * 255).astype(np.uint8), 1, -1))
    return _plots(unit)


def _plots(unit: np.ndarray) -> np.ndarray:
    """Vectors `[B, D]` in `[0, 1]` as dark on white `[B, PLOT_HEIGHT, W, 1]`."""
    features = unit.shape[1]
    width = features * max(1, PLOT_WIDTH // features) if features <= FEW_BARS else PLOT_WIDTH
    at = np.linspace(0, features - 1, width)
    height = (1 - unit) * (PLOT_HEIGHT - 1)
    if features <= FEW_BARS:
        curve = np.repeat(height, width // features, axis=1)
        top, bottom = curve, np.full_like(curve, PLOT_HEIGHT)
    else:
        left = np.floor(at).astype(int)
        right = np.minimum(left + 1, features - 1)
        curve = height[:, left] + (height[:, right] - height[:, left]) * (at - left)
        before = np.concatenate([curve[:, :1], curve[:, :-1]], axis=1)
        top, bottom = np.minimum(curve, before), np.maximum(curve, before)
    rows = np.arange(PLOT_HEIGHT)[None, :, None]
    ink = (rows >= np.floor(top)[:, None]) & (rows <= np.ceil(bottom)[:, None])
    return np.where(ink, 40, 255).astype(np.uint8)[..., None]


def grid(x: Tensor, schema: Schema, columns: int, gap: int = 2, scale: int | None = None) -> Image.Image:
    """Examples `[B, *shape]` as one picture, row by row.

    Args:
        columns: examples in a row; a last row may be shorter.
        gap: pixels between them.
        scale: enlargement by repeated pixels; by default as much as makes small pictures viewable.
    """
    tiles = to_uint8(x, schema)
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


def save(image: Image.Image, path: str | Path) -> None:
    """Write a picture, whole or not at all; the format follows from the file name's ending.

    Raises:
        DataError: if no picture format has that ending.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"{path} has no picture's ending: let it end in .png")
    write_atomic(path, image.save)


def png_data_uri(image: Image.Image) -> str:
    """A picture as a `data:` address for an HTML page that stands alone."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
