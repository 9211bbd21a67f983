"""Made-up anomalies: normal pictures with a defect or with other content, on which scores are compared without labels.

Defects as in Li et al. 2021, "CutPaste"; Zavrtanik et al. 2021, "DRAEM"; Schlüter et al. 2022, "Natural Synthetic
Anomalies". All functions take and return pictures `[C, H, W]` float32 in stored units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.ndimage import gaussian_filter

DEFECTS = ("blob", "scratch", "cut-paste", "noise", "flat part", "blurred part")
"""Kinds that change a part of a picture."""
CONTENTS = ("turned", "exchanged quarters", "blend of two", "drawing")
"""Kinds that change the whole picture."""
SMALLEST, LARGEST = 0.02, 0.25
"""Range of the half axes of defects, as shares of the picture's sides."""
TRIALS = 20
"""Attempts to make a change that is visible."""

Pick = np.random.Generator


@final
@dataclass(frozen=True)
class MadeUp:
    """Made-up anomalies.

    Attributes:
        x: `[N, C, H, W]` float32 in stored units.
        mask: which positions were changed, `[N, H, W]` bool.
        kind, of: name of the kind of each, and the number of the normal picture that was changed, `[N]`.
    """

    x: np.ndarray
    mask: np.ndarray
    kind: np.ndarray
    of: np.ndarray


def make_up(inliers: np.ndarray, kinds: tuple[str, ...], each: int, levels: tuple[float, float], seed: int) -> MadeUp:
    """Make `each` anomalies of each kind from normal pictures `[N, C, H, W]`.

    Args:
        levels: lowest and highest stored value.
        seed: seed of all choices.
    """
    pick = np.random.default_rng(seed)
    names = np.repeat(kinds, each)
    of, others = pick.integers(len(inliers), size=(2, len(names)))
    made = [
        _changed(kind, inliers[one].astype(np.float32), inliers[other].astype(np.float32), levels, pick)
        for kind, one, other in zip(names.tolist(), of, others, strict=True)
    ]
    return MadeUp(np.stack([x for x, _ in made]), np.stack([mask for _, mask in made]), names, of)


def _changed(
    kind: str, x: np.ndarray, other: np.ndarray, levels: tuple[float, float], pick: Pick
) -> tuple[np.ndarray, np.ndarray]:
    """Change a picture, and mark where; the last trial counts even if nothing is visible."""
    low, high = levels
    visible = max(0.1 * float(x.std()), 0.01 * (high - low))
    y, mask = x, np.zeros(x.shape[1:], bool)
    for _ in range(TRIALS):
        if kind in CONTENTS:
            y = _CONTENTS[kind](x, other, pick)
        else:
            where = _WHERE.get(kind, _part)(x.shape[1:], pick)
            soft = gaussian_filter(where.astype(np.float32), pick.uniform(0, 0.8))
            y = x * (1 - soft) + _DEFECTS[kind](x, other, where, levels, pick) * soft
        y = np.clip(y, low, high).astype(np.float32)
        mask = np.abs(y - x).max(0) > visible
        if mask.sum() > 1:
            break
    return y, mask


# where


def _axes(shape: tuple[int, ...], pick: Pick) -> np.ndarray:
    return np.maximum(np.exp(pick.uniform(math.log(SMALLEST), math.log(LARGEST), 2)) * shape, 1.0)


def _blob(shape: tuple[int, ...], pick: Pick) -> np.ndarray:
    """Mark a turned ellipse, `[H, W]` bool."""
    a, b = _axes(shape, pick)
    angle, centre = pick.uniform(0, np.pi), pick.uniform(0, 1, 2) * shape
    rows, columns = np.mgrid[: shape[0], : shape[1]] - centre[:, None, None]
    along, across = rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def _line(shape: tuple[int, ...], pick: Pick, longest: float = 0.5, wide: int = 2) -> np.ndarray:
    """Mark a bent line."""
    steps, width = int(2 * pick.uniform(0.08, longest) * max(shape)) + 4, pick.integers(1, wide + 1)
    angles = pick.uniform(0, 2 * np.pi) + 0.15 * pick.normal(size=steps).cumsum()
    path = pick.uniform(0, 1, 2) * shape + 0.5 * np.stack([np.sin(angles), np.cos(angles)], 1).cumsum(0)
    rows, columns = np.round(path).astype(int).T
    mask = np.zeros(shape, bool)
    for row in range(width):
        for column in range(width):
            r, c = rows + row, columns + column
            inside = (r >= 0) & (r < shape[0]) & (c >= 0) & (c < shape[1])
            mask[r[inside], c[inside]] = True
    return mask


def _part(shape: tuple[int, ...], pick: Pick) -> np.ndarray:
    """Mark a rectangle, or a ragged part of one."""
    size = np.minimum(2 * _axes(shape, pick).astype(int), shape)
    top, left = (pick.integers(0, n - side + 1) for n, side in zip(shape, size, strict=True))
    mask = np.zeros(shape, bool)
    mask[top : top + size[0], left : left + size[1]] = True
    if pick.random() < 0.5:
        field = gaussian_filter(pick.normal(size=shape), pick.uniform(0.03, 0.12) * min(shape))
        ragged = mask & (field > np.quantile(field[mask], 0.4))
        mask = ragged if ragged.any() else mask
    return mask


_WHERE: dict[str, Callable[[tuple[int, ...], Pick], np.ndarray]] = {"blob": _blob, "scratch": _line}


# what


def _shade(x: np.ndarray, other: np.ndarray, where: np.ndarray, levels: tuple[float, float], pick: Pick) -> np.ndarray:
    """Make the part darker or brighter."""
    return x + pick.choice([-1, 1]) * pick.uniform(0.4, 1.5) * _contrast(x, levels)


def _paste(x: np.ndarray, other: np.ndarray, where: np.ndarray, levels: tuple[float, float], pick: Pick) -> np.ndarray:
    return np.roll(other, pick.integers(0, x.shape[1:]), (1, 2))


def _noise(x: np.ndarray, other: np.ndarray, where: np.ndarray, levels: tuple[float, float], pick: Pick) -> np.ndarray:
    return x + pick.uniform(0.3, 1) * _contrast(x, levels) * pick.normal(size=x.shape)


def _flat(x: np.ndarray, other: np.ndarray, where: np.ndarray, levels: tuple[float, float], pick: Pick) -> np.ndarray:
    """Replace the part by the rest's median."""
    rest = x[:, ~where] if not where.all() else x.reshape(len(x), -1)
    return np.broadcast_to(np.median(rest, 1)[:, None, None], x.shape)


def _blur(x: np.ndarray, other: np.ndarray, where: np.ndarray, levels: tuple[float, float], pick: Pick) -> np.ndarray:
    sigma = pick.uniform(1, 3)
    return gaussian_filter(x, (0, sigma, sigma))


def _contrast(x: np.ndarray, levels: tuple[float, float]) -> float:
    return max(float(x.std()), 0.02 * (levels[1] - levels[0]))


_DEFECTS = {
    "blob": _shade,
    "scratch": _shade,
    "cut-paste": _paste,
    "noise": _noise,
    "flat part": _flat,
    "blurred part": _blur,
}


def _turned(x: np.ndarray, other: np.ndarray, pick: Pick) -> np.ndarray:
    """Turn by 90 degrees to either side; turn pictures that are not square by 180."""
    quarters = pick.choice([1, 3]) if x.shape[1] == x.shape[2] else 2
    return np.rot90(x, quarters, (1, 2))


def _exchanged(x: np.ndarray, other: np.ndarray, pick: Pick) -> np.ndarray:
    """Exchange opposite quarters, or the halves."""
    axes = [(1,), (2,), (1, 2)][pick.integers(3)]
    return np.roll(x, [x.shape[axis] // 2 for axis in axes], axes)


def _blend(x: np.ndarray, other: np.ndarray, pick: Pick) -> np.ndarray:
    """Take one half from another normal picture, turned upside down."""
    y = x.copy()
    half = x.shape[1] // 2
    y[:, half:] = other[:, ::-1][:, half:]
    return y


def _drawing(x: np.ndarray, other: np.ndarray, pick: Pick) -> np.ndarray:
    """Draw lines between the picture's extreme values on an even ground."""
    ground, ink = pick.permutation([x.min(), x.max()])
    lines = np.any([_line(x.shape[1:], pick, longest=1.0, wide=3) for _ in range(pick.integers(2, 5))], 0)
    return np.where(gaussian_filter(lines.astype(np.float32), 0.5) > 0.3, ink, ground) + np.zeros_like(x)


_CONTENTS: dict[str, Callable[[np.ndarray, np.ndarray, Pick], np.ndarray]] = {
    "turned": _turned,
    "exchanged quarters": _exchanged,
    "blend of two": _blend,
    "drawing": _drawing,
}
