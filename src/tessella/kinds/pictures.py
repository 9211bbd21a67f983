"""Examples made visible: stored values to 8-bit pictures, contact sheets, files and data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
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


def images(x: Tensor, schema: Schema, most: int | None = None) -> list[Image.Image]:
    """Examples `[B, *shape]` as pictures, transparency laid on white; none has more than `most` pixels a side."""
    found = []
    for picture in to_uint8(x, schema):
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.shape[2]]
        image = Image.fromarray(picture[..., 0] if mode == "L" else picture)
        if mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        if most is not None:
            image.thumbnail((most, most))
        found.append(image)
    return found


def altered_copies(x: Tensor, schema: Schema, noise: Noise) -> list[Tensor]:
    """Copies of examples `[B, *shape]` as they come about: with noise of 1 % of the range, and saved again as JPEG."""
    if schema.values == Binary():
        return [torch.where(noise.uniform(*x.shape) < 0.01, 1 - x, x)]
    low, high = schema.values.low, schema.values.high
    copy = x.float() + 0.01 * (high - low) * noise.normal(*x.shape)
    if not schema.values.discrete:
        return [copy]
    copies = [copy.clamp(low, high).round().to(torch.uint8)]
    if schema.is_picture and schema.shape[0] in (1, 3):
        again = [np.asarray(from_jpeg(to_jpeg(picture))) for picture in images(x, schema)]
        copies.append(torch.from_numpy(np.stack(again).reshape(len(x), *x.shape[2:], -1)).movedim(3, 1).contiguous())
    return copies


def to_jpeg(image: Image.Image) -> bytes:
    """Encode a picture as JPEG of a fixed quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def from_jpeg(data: bytes, most: int | None = None) -> Image.Image:
    """Decode a JPEG.

    Args:
        most: pixels a side that it may have.

    Raises:
        DataError: if it is none, or larger.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if most is None or max(image.size) <= most:
                image.load()
                return image.convert("RGB") if most else image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("a picture is damaged", code="damaged-picture") from error
    raise DataError(f"a picture is larger than {most} pixels a side", code="damaged-picture")
