"""Kind of data: vectors, the rows of a table."""

from __future__ import annotations

import lzma
import zlib
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from tessella.core.rng import Noise
from tessella.foundation.registry import register
from tessella.kinds.base import Codec, Kind

PLOT_HEIGHT, PLOT_WIDTH, FEW_BARS = 48, 96, 32


class Arrays(Kind, ABC):
    """Kinds of data whose examples are arrays of numbers."""

    @final
    @property
    def probe(self) -> str:
        return "autoencoder"

    @final
    def poses(self, x: Tensor) -> list[Tensor]:
        return []

    @final
    def write_array(self, path: Path, x: Tensor) -> None:
        """Write the stored values of an example as a `.npy` file."""
        with path.open("wb") as file:  # numpy would add an ending to a path
            np.save(file, self._packed(x), allow_pickle=False)

    @final
    def general_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        """List general compressors, each applied to one file of all observed values; none of them is lossy."""
        packers = () if lossy else (("zlib", partial(zlib.compress, level=9)), ("xz", partial(lzma.compress, preset=9)))

        def size(examples: Sequence[Tensor], pack: Callable[[bytes], bytes]) -> int:
            return len(pack(b"".join(self._packed(x[~x.isnan()]).tobytes() for x in examples)))

        return tuple(Codec(name, partial(size, pack=pack)) for name, pack in packers)

    def _packed(self, x: Tensor) -> np.ndarray:
        """Convert stored values to the smallest type that holds them; float32 if some are NaN."""
        values, stored = self.schema.values, x.cpu().numpy()
        if not values.discrete or np.isnan(stored).any():
            return stored.astype(np.float32)
        whole = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
        fitting = (t for t in whole if np.iinfo(t).min <= values.low and values.high <= np.iinfo(t).max)
        return np.rint(stored).astype(next(fitting, np.float32))


@register("kind", "vector", summary="rows of numbers (D,)", rank=0)
@final
class Vectors(Arrays):
    """Rows of numbers `(D,)`, shown as small plots."""

    @property
    def description(self) -> str:
        return f"rows of {self.schema.dims} numbers"

    @property
    def tile_size(self) -> tuple[int, int]:
        return PLOT_HEIGHT, PLOT_WIDTH

    def render(self, x: Tensor) -> np.ndarray:
        return plots(self.unit(x))

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        return [self.noisy_copy(x, noise)]

    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        self.write_array(path, x)

    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        return self.general_codecs(lossy=lossy)


def plots(unit: np.ndarray, rows: int = PLOT_HEIGHT) -> np.ndarray:
    """Plot `[B, D]` in `[0, 1]` as lines, or as bars for few numbers: `[B, rows, W, 1]`, dark on white."""
    features = unit.shape[1]
    width = features * max(1, PLOT_WIDTH // features) if features <= FEW_BARS else PLOT_WIDTH
    at = np.linspace(0, features - 1, width)
    height = (1 - unit) * (rows - 1)
    if features <= FEW_BARS:
        curve = np.repeat(height, width // features, axis=1)
        top, bottom = curve, np.full_like(curve, rows)
    else:
        left = np.floor(at).astype(int)
        right = np.minimum(left + 1, features - 1)
        curve = height[:, left] + (height[:, right] - height[:, left]) * (at - left)
        before = np.concatenate([curve[:, :1], curve[:, :-1]], axis=1)
        top, bottom = np.minimum(curve, before), np.maximum(curve, before)
    y = np.arange(rows)[None, :, None]
    ink = (y >= np.floor(top)[:, None]) & (y <= np.ceil(bottom)[:, None])
    return np.where(ink, 40, 255).astype(np.uint8)[..., None]
