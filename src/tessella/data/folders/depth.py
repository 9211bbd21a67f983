"""Pictures of more than 8 bits: the values that their files hold, and the one rule that makes bytes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of grey pictures of 16-bit and 32-bit whole numbers and of floats."""

Depth = tuple[float, float]
"""The values in the files that become 0 and 255."""

BITS = {255.0: 8, 4095.0: 12, 65535.0: 16}
"""The largest value of unsigned whole numbers, and of how many bits they are then taken to be."""

SAMPLE_FORMAT, UNSIGNED = 339, 1
STRIP = 1 << 20


@dataclass(frozen=True)
class Range:
    """What the values of a picture are.

    Attributes:
        low, high: the smallest and largest finite value.
        floats: whether they are floats.
        wide: whether they are of 32 bits.
        odd: whether some are not finite.
    """

    low: float
    high: float
    floats: bool
    wide: bool
    odd: bool


def stored_values(image: Image.Image) -> np.ndarray:
    """The values that a picture of a mode in `DEEP` holds, `[H, W]`."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and values.dtype.itemsize == 4 and int(values.min()) < 0:
        kind = tags.get(SAMPLE_FORMAT, UNSIGNED)
        if (kind[0] if isinstance(kind, tuple) else kind) == UNSIGNED:
            return values.view(np.uint32)  # Pillow has no unsigned mode and calls them signed
    return values


def extremes(values: np.ndarray) -> Range:
    """The range of a picture's values.

    Raises:
        ValueError: if none is finite.
    """
    floats = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if floats else values
    if finite.size == 0:
        raise ValueError("it holds no finite number")
    odd = finite.size < values.size
    return Range(float(finite.min()), float(finite.max()), floats, values.dtype.itemsize == 4, odd)


def rule(low: float, high: float, *, floats: bool) -> Depth:
    """What becomes 0 and 255: the range, or of unsigned whole numbers the range of their 8, 12 or 16 bits."""
    if not floats and low >= 0:
        for top in BITS:
            if high <= top:
                return 0.0, top
    return low, high


def how(depth: Depth) -> str:
    """The rule in words."""
    bits = BITS.get(depth[1]) if depth[0] == 0 else None
    if bits == 8:
        return "hold whole numbers up to 255, which are kept as they are"
    if bits is not None:
        return f"hold whole numbers of {bits} bits, up to {int(depth[1])}, and were cut to their upper 8 bits"
    return f"were scaled by the range of their values: {depth[0]:.6g} became 0 and {depth[1]:.6g} became 255"


def to_bytes(values: np.ndarray, depth: Depth) -> np.ndarray:
    """Values `[H, W]` as uint8: whole numbers of 8, 12 or 16 bits lose the lower ones, all else is scaled; NaN is 0.

    Raises:
        ValueError: if no value is finite.
    """
    low, high = depth
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        raise ValueError("it holds no finite number")
    bits = BITS.get(high) if low == 0 and values.dtype.kind != "f" else None
    done = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        strip = values[start : start + rows]
        if bits is not None:
            done[start : start + rows] = np.clip(strip.astype(np.int64), 0, int(high)) >> (bits - 8)
        else:
            scaled = (strip.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
            done[start : start + rows] = np.round(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255, neginf=0), 0, 255))
    return done
