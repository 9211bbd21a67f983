"""Anomaly score of whole signals: distance from the nearest normal ones. It is the default, and needs no training."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from tessella.core.batches import Batch
from tessella.tasks.detect.series.scores import NEIGHBOURS

SCALES = (0.0, 1.0, 2.0)
"""Standard deviations of the smoothing, in samples."""
NEAREST_SIGNALS, RIDGE = 5, 0.1
"""Nearest normal signals whose combinations count as normal too, and the penalty on their weights."""
MOST_SIGNALS, AT_ONCE = 5000, 512
"""Most normal signals that others are compared with, and signals per batch."""


@final
class SignalScorer:
    """Distance of signals from the combinations of their nearest normal signals, summed over smoothings.

    A signal's distance is the residual of a ridge regression on its nearest normal signals (a local hyperplane; Vincent
    & Bengio 2001, "K-local hyperplane and convex distance nearest neighbor algorithms"), divided by the median distance
    of normal signals. A normal signal that equals it is passed over. So normal signals are scored as new ones are, and
    `of_normal` can set thresholds.

    Args:
        x: normal signals `[N, C, T]`; missing values count as the mean.

    Attributes:
        names: names of the scores.
        of_normal: scores of the normal signals, `[N]`.
    """

    names = (NEIGHBOURS,)

    def __init__(self, x: np.ndarray) -> None:
        x = x[:MOST_SIGNALS].astype(np.float64)
        self._center = np.nanmean(x, (0, 2), keepdims=True)
        spread = np.nanstd(x, (0, 2), keepdims=True)
        self._spread = np.where(spread > 0, spread, 1.0)
        self._normal = [self._smoothed(x, scale) for scale in SCALES]
        own = [_from_combinations(normal, normal) for normal in self._normal]
        self._usual = [max(float(np.median(distance)), 1e-9) for distance in own]
        self.of_normal = self._sum(own)

    def pooled(self, batch: Batch) -> np.ndarray:
        """Compute the scores `names` of signals, `[B, scores]` float64."""
        x = batch.x.cpu().double().numpy()
        of = zip(SCALES, self._normal, strict=True)
        return self._sum([_from_combinations(self._smoothed(x, scale), normal) for scale, normal in of])[:, None]

    def summary(self, name: str, examples: str) -> str:
        """Describe the score in a line."""
        return f"distance from combinations of the nearest normal {examples}, in medians of normal {examples}"

    def _smoothed(self, x: np.ndarray, scale: float) -> Tensor:
        """Return standardised signals after smoothing, `[N, C * T]`."""
        x = np.nan_to_num((x - self._center) / self._spread)
        x = gaussian_filter1d(x, scale, axis=2, mode="nearest") if scale else x
        return torch.from_numpy(x.reshape(len(x), -1))

    def _sum(self, distances: list[np.ndarray]) -> np.ndarray:
        return sum((d / usual for d, usual in zip(distances, self._usual, strict=True)), np.zeros(len(distances[0])))


def _from_combinations(x: Tensor, normal: Tensor) -> np.ndarray:
    """Compute the distances `[N]` of signals from combinations of their nearest normal signals."""
    count, found = min(NEAREST_SIGNALS, len(normal)), []
    for some in x.split(AT_ONCE):
        distance = torch.cdist(some, normal, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.masked_fill(distance == 0, torch.inf)
        nearest = normal[distance.topk(count, 1, largest=False).indices]
        center = nearest.mean(1, keepdim=True)
        apart, target = nearest - center, some[:, None] - center
        products = apart @ apart.mT
        ridge = RIDGE * products.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
        weights = torch.linalg.solve(products + ridge[:, None, None] * torch.eye(count).double(), apart @ target.mT)
        found.append((target - weights.mT @ apart)[:, 0].norm(dim=1))
    return torch.cat(found).numpy()
