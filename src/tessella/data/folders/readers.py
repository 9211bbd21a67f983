"""Readers made of other readers: some of their rows, or their pictures at another size."""

from __future__ import annotations

import numpy as np

from tessella.core.schema import UINT8
from tessella.data.arrays import recoloured, resized
from tessella.data.raw import Reader


class Rows:
    """Some rows of another reader."""

    def __init__(self, reader: Reader, rows: np.ndarray) -> None:
        self.shape = reader.shape
        self._reader, self._rows = reader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._reader.read(self._rows[rows])


class Fitted:
    """The pictures of another reader with `shape` `(C, H, W)`: recoloured, cropped at the centre and resized."""

    def __init__(self, reader: Reader, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, rows: np.ndarray) -> np.ndarray:
        channels, height, width = self.shape
        x = recoloured(self._reader.read(rows), channels, UINT8, "pictures")
        return resized(x, (height, width), UINT8)
