"""Anomaly scores of the rows of a series: distance to normal stretches, and cost of hidden rows under a model.

Each is computed for stretches of rows, and a row gets the mean over all stretches that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.batches import to_read
from tessella.foundation.errors import DataError
from tessella.models.base import Model
from tessella.tasks.detect.tables import Surprise

NEIGHBOURS, SURPRISE, RATE, COMBINED = "neighbours", "surprise", "rate", "combined"
SUMMARIES = {
    NEIGHBOURS: "distance of the stretches that hold the row from the nearest normal ones, each standardised",
    SURPRISE: "cost of the row given the rows around it, -log p(x | z), where z is inferred with the row hidden",
    RATE: "how unusual the latents of the windows that hold the row are: KL(q || p)",
    COMBINED: "sum of neighbours and surprise, each as -log of the share of normal rows that score as high, in nats",
}
MOST_NORMAL, AT_ONCE = 8192, 2048
"""Most normal stretches that others are compared with, and stretches per batch."""
PLACES = 16
"""Stretches of `m` rows begin every `m / PLACES` rows."""
FLATTEST = 0.1
"""Stretches are not scaled up from below this share of the normal standard deviation."""
PATCHES = 8
"""Patches of a window, each of which is hidden once."""


class Cover:
    """Means over the stretches that hold a row.

    Args:
        rows: number of rows.
    """

    def __init__(self, rows: int) -> None:
        self._sums, self._counts = np.zeros(rows + 1), np.zeros(rows + 1)

    def add(self, starts: np.ndarray, length: int, values: np.ndarray) -> None:
        """Add one value for each stretch of `length` rows."""
        for total, amounts in ((self._sums, values), (self._counts, np.ones(len(starts)))):
            np.add.at(total, starts, amounts)
            np.add.at(total, np.minimum(starts + length, len(total) - 1), -amounts)

    def mean(self) -> np.ndarray:
        """Return the mean of each row `[T]`."""
        return (self._sums.cumsum() / np.maximum(self._counts.cumsum(), 1))[:-1]


@final
class NeighbourDistance:
    """Distance of stretches from the nearest normal ones, as in a matrix profile (Yeh et al. 2016).

    A stretch of `length` rows is centered and scaled to standard deviation 1, each channel by itself. Missing values
    count as the mean.

    Args:
        inliers: normal rows, `[T, C]` each.
        length: rows of a stretch.
    """

    def __init__(self, inliers: Sequence[np.ndarray], length: int) -> None:
        self.length = length
        self.step = next(step for step in range(max(1, length // PLACES), 0, -1) if length % step == 0)
        self.scale = np.nanstd(np.concatenate(inliers), 0)
        long = [x for x in inliers if len(x) >= length]
        starts = [np.arange(len(x) - length + 1) for x in long]
        count = sum(map(len, starts))
        if not count:
            raise DataError(f"no normal stretch has {length} rows", code="too-few-normal-examples")
        every = -(-count // MOST_NORMAL)
        found = [self._stretches(x, at[::every]) for x, at in zip(long, starts, strict=True)]
        self.reference = torch.cat(found)
        self._squares = self.reference.square().sum(1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Compute the score of each row `[T]` of `[T, C]`."""
        last = len(x) - self.length
        starts = np.unique(np.append(np.arange(0, last + 1, self.step), last))
        cover = Cover(len(x))
        for first in range(0, len(starts), AT_ONCE):
            some = starts[first : first + AT_ONCE]
            stretches = self._stretches(x, some)
            products = stretches @ self.reference.T
            squared = (self._squares - 2 * products).amin(1) + stretches.square().sum(1)
            cover.add(some, self.length, (squared.clamp_min(0) / stretches.shape[1]).sqrt().double().numpy())
        return cover.mean()

    def _stretches(self, x: np.ndarray, starts: np.ndarray) -> Tensor:
        """Return standardised stretches `[N, C * length]`."""
        views = np.lib.stride_tricks.sliding_window_view(x, self.length, 0)[starts]
        stretches = torch.from_numpy(views.astype(np.float64))
        seen = ~stretches.isnan()
        count = seen.sum(2, keepdim=True).clamp_min(1)
        centered = stretches.nan_to_num(0.0)
        centered = torch.where(seen, centered - centered.sum(2, keepdim=True) / count, 0.0)
        spread = (centered.square().sum(2, keepdim=True) / count).sqrt()
        least = torch.from_numpy(np.where(self.scale > 0, FLATTEST * self.scale, 1.0))[:, None]
        return (centered / torch.maximum(spread, least)).flatten(1).float()


@torch.no_grad()
def model_scores(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the scores `SURPRISE` and `RATE` of each row of `[T, C]`.

    Windows begin every half window. Each of their patches is hidden once, and costs -log p of its values given the rest
    of the window, at the mean of q(z | rest). A model that was trained on complete data sees the whole window instead.

    Args:
        model: model of windows `[C, window]`.
        x: rows; NaN where values are missing.
    """
    (window,), channels = model.schema.spatial, x.shape[1]
    starts = np.unique(
        np.append(np.arange(0, max(1, len(x) - window + 1), max(1, window // 2)), max(0, len(x) - window))
    )
    padded = np.full((max(len(x), window), channels), np.nan, np.float32)
    padded[: len(x)] = x
    views = np.lib.stride_tricks.sliding_window_view(padded, window, 0)
    surprise, rate = Cover(len(padded)), Cover(len(padded))
    edges = np.linspace(0, window, min(PATCHES, window) + 1).round().astype(int)
    patches = list(pairwise(edges))
    at_once = max(1, to_read(model.schema.shape, model.device))
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        windows = torch.from_numpy(views[some].copy()).to(model.device)
        latent = model.encode(windows)
        priced = model.rate(latent)
        if priced is not None:
            rate.add(some, window, priced.total.double().cpu().numpy())
        whole = None if model.schema.missing else model.decode(latent.z).by_position(windows)
        for a, b in patches:
            cost = whole
            if cost is None:
                hidden = windows.clone()
                hidden[:, :, a:b] = torch.nan
                cost = model.decode(model.encode(hidden).z).by_position(windows)
            for row in range(a, b):
                surprise.add(some + row, 1, -cost[:, row].double().cpu().numpy())
    return {SURPRISE: _smooth(surprise.mean(), edges[1])[: len(x)], RATE: rate.mean()[: len(x)]}


def _smooth(values: np.ndarray, rows: int) -> np.ndarray:
    """Return means over the surrounding rows, fewer at the ends."""
    sums = np.concatenate([[0.0], values.cumsum()])
    at = np.arange(len(values))
    first, last = np.maximum(at - rows // 2, 0), np.minimum(at + rows // 2 + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


@final
class RowScores:
    """The scores of the rows of series.

    Rows of other series are compared with all normal rows, held-out ones with the others only. More normal stretches
    make no distance larger, so thresholds set on held-out rows are not too low.

    Args:
        inliers: normal rows, `[T, C]` each.
        calibration: further normal rows that the model was not trained on.
        length: rows of the stretches that are compared.
        model: model of windows; None for the distance alone.
    """

    def __init__(
        self, inliers: Sequence[np.ndarray], calibration: Sequence[np.ndarray], length: int, model: Model | None
    ) -> None:
        self.model, self.neighbours = model, NeighbourDistance(inliers, length)
        found = [self._plain(x, self.neighbours) for x in calibration]
        self.normal = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        self._surprises = {name: Surprise(values) for name, values in self.normal.items()}
        self.normal |= self._combined(self.normal)
        self._compared_with_all = NeighbourDistance([*inliers, *calibration], length)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the scores."""
        return tuple(self.normal)

    def __call__(self, x: np.ndarray, *, calibration: bool = False) -> dict[str, np.ndarray]:
        """Compute all scores of the rows `[T, C]` of a series, `[T]` each; higher is more anomalous.

        Args:
            calibration: whether they are made of held-out rows.
        """
        plain = self._plain(x, self.neighbours if calibration else self._compared_with_all)
        return plain | self._combined(plain)

    def _plain(self, x: np.ndarray, neighbours: NeighbourDistance) -> dict[str, np.ndarray]:
        if len(x) < neighbours.length:
            raise DataError(
                f"a series of {len(x):,} rows is shorter than the stretches of {neighbours.length:,} rows that are "
                "compared",
                code="too-short",
            )
        return {NEIGHBOURS: neighbours(x), **({} if self.model is None else model_scores(self.model, x))}

    def _combined(self, plain: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.model is None:
            return {}
        return {COMBINED: self._surprises[NEIGHBOURS](plain[NEIGHBOURS]) + self._surprises[SURPRISE](plain[SURPRISE])}
