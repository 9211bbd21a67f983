"""How complex a picture is: the shortest description that general lossless compressors find for it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, features
from scipy.special import betaln
from torch import Tensor

from tessella.core.schema import Binary, Schema
from tessella.data.folders.read import MODES
from tessella.kinds import pictures

BYTE = 8 * math.log(2)
"""Nats."""
SMALLEST_FILE = 26
"""Bytes: no PNG or WebP file is shorter."""
CAUSAL = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Rows and columns from a pixel to those that its context is made of: left, and the three above."""


def file_nats(x: Tensor, schema: Schema) -> np.ndarray:
    """Nats of the shortest lossless description of each picture, `[B]` float64.

    Of its PNG and its lossless WebP file (8 ln 2 a byte, headers and all), and of binary pictures an adaptive context
    code such as fax machines use: it bounds the Kolmogorov complexity from above (Serra et al. 2020, section 3). On
    small binary pictures the file formats spend several times what such a code does.

    Args:
        x: bytes or binary values `[B, C, H, W]`.
    """
    tiles = pictures.to_uint8(x, schema)
    mode = MODES[tiles.shape[-1]]
    least = context_nats(x.cpu().numpy()) if schema.values == Binary() else np.full(len(x), np.inf)
    for i in np.flatnonzero(least > SMALLEST_FILE * BYTE):
        least[i] = min(least[i], _shortest(Image.fromarray(tiles[i].squeeze(), mode)) * BYTE)
    return least


def context_nats(x: np.ndarray) -> np.ndarray:
    """Nats that an adaptive arithmetic coder spends on binary pictures `[B, C, H, W]`, `[B]` float64.

    A pixel is coded given its four neighbours before it (channels by themselves), each context's probabilities learned
    from the picture itself on the way by the estimator of Krichevsky & Trofimov (1981, eq. 2.2), (n_v + 1/2) / (n + 1).
    What that adds up to hangs on the counts alone: sum over contexts of -log B(n_0 + 1/2, n_1 + 1/2) / B(1/2, 1/2).
    """
    batch, channels, height, width = x.shape
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    cells = x.astype(np.int64)
    for bit, (row, column) in enumerate(CAUSAL, 1):
        cells = cells + (padded[:, :, 1 + row : 1 + row + height, 1 + column : 1 + column + width] << bit)
    each = 2 ** (1 + len(CAUSAL))
    cells = cells + each * np.arange(batch * channels).reshape(batch, channels, 1, 1)
    counts = np.bincount(cells.ravel(), minlength=batch * channels * each).reshape(batch, -1, 2) + 0.5
    return (betaln(0.5, 0.5) - betaln(counts[..., 0], counts[..., 1])).sum(1)


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
