"""Some of a split's examples, as a split."""

from __future__ import annotations

from typing import final

import numpy as np

from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.data import Split
from tessella.data.splits import Indices


@final
class Part(Split):
    """Some of a split's examples, and their labels.

    Args:
        rows: which of them.
    """

    def __init__(self, base: Split, rows: np.ndarray) -> None:
        self._base, self._rows = base, rows
        self.example_ids, self.factors = base.example_ids[rows], {}
        self.labels = None if base.labels is None else base.labels[rows]

    @property
    def in_memory(self) -> bool:
        return self._base.in_memory

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        return self._base.batch(self._rows[np.asarray(indices, dtype=np.int64)], noise)
