"""The bound of knowing only how often each value occurs: what every model must beat."""

from __future__ import annotations

import math

import numpy as np

from tessella.core.schema import Schema
from tessella.data import Split
from tessella.foundation.progress import track

EXAMPLES = 500
CHUNK = 250


def marginal_bound(train: Split, schema: Schema, measured: Split | None = None) -> float:
    """Compute -log p(x) of independent values with the frequencies of the training split, in nats per example.

    Each channel has a distribution of its own, which all its positions share: of discrete values the frequencies with
    one more count for each level, of real values a Gaussian.

    Args:
        train: split whose values are counted; at most 500 examples of it.
        measured: split whose mean is returned, also of at most 500 examples; the training split by default.
    """
    counted = _values(train)
    x = counted if measured is None else _values(measured)
    levels = schema.values.levels
    channels = [_channel(_observed(counted[:, c]), _observed(x[:, c]), levels) for c in range(x.shape[1])]
    return sum(channels) / len(x)


def _values(split: Split) -> np.ndarray:
    """Read examples spread over the split, `[N, C, positions]`."""
    rows = split.random_rows(EXAMPLES)
    parts = [split.batch(rows[i : i + CHUNK]).x.numpy() for i in track(range(0, len(rows), CHUNK), "reading")]
    x = np.concatenate(parts)
    return x.reshape(*x.shape[:2], -1)


def _observed(x: np.ndarray) -> np.ndarray:
    """Select the values that are not NaN."""
    return x[~np.isnan(x)] if x.dtype.kind == "f" else x.ravel()


def _channel(counted: np.ndarray, x: np.ndarray, levels: int) -> float:
    """Compute the sum of -log p of the values of one channel."""
    if not levels:
        variance = max(float(counted.var(dtype=np.float64)), 1e-12)
        far = float(np.square(x - counted.mean(dtype=np.float64), dtype=np.float64).sum())
        return 0.5 * (x.size * math.log(2 * math.pi * variance) + far / variance)
    values, counts = np.unique(counted, return_counts=True)
    place = np.searchsorted(values, x).clip(max=len(values) - 1)
    seen = np.where(values[place] == x, counts[place], 0)
    return float((math.log(counted.size + levels) - np.log(seen + 1.0)).sum())
