"""Anomaly scores of table rows that stay right when some of the training rows are anomalous.

Two scores are fitted on reference rows. The *global* one asks how far a row lies from most rows; anomalies that are few
cannot change it, even if they are alike. The *local* one asks how far a row lies from its nearest rows; it is sharper,
but rows like each other look normal to it. So rows that are far from most and yet close together are trimmed from the
reference of the local score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.ensemble import IsolationForest
from torch import Tensor

from tessella.core.batches import Batch
from tessella.tasks.detect.ranking import auroc

ROWS, NUMBERS, FEWEST = 5000, 150_000, 1500
"""Most reference rows; most numbers in them, unless that leaves fewer than `FEWEST` rows."""
NEIGHBOURS = 5
SUBSETS, IN_SUBSET = 200, 8
OUTLYING, CLUMPED = 0.75, 0.1
"""Rows above this share of the global score are trimmed if their local rank is lower by this share."""
GLOBAL, LOCAL, COMBINED = "global", ("neighbours", "rank-neighbours"), "combined"
"""Names of the scores; the local ones are distances of values and of ranks."""
SUMMARIES = {
    GLOBAL: "distance from most training {examples}, in nats",
    "neighbours": "distance from the nearest training {examples} by values, in nats",
    "rank-neighbours": "distance from the nearest training {examples} by ranks, in nats",
    COMBINED: "global score and twice the mean of {local}",
}
AT_ONCE = 1024
FAR, NOVEL = 1e6, 3.0
"""Limit on coordinates, in ranges of their column; normal score of another value in a constant column."""


@final
class Ranges:
    """Scales each column by its range; in a constant column other values are one range away."""

    def __init__(self, x: np.ndarray) -> None:
        self.low, width = x.min(0), np.ptp(x, 0)
        self.constant = width == 0
        self.width = np.where(self.constant, 1.0, width)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        away = x - self.low
        return np.where(self.constant, np.sign(away), away / self.width).clip(-FAR, FAR)


@final
class NormalScores:
    """Maps each column to standard normal quantiles of its mid-ranks, linearly beyond its range.

    Equal values keep one rank, so discrete columns stay discrete.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.columns = [_quantiles(column) for column in x.T]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.stack([_normal(x[:, i], *known) for i, known in enumerate(self.columns)], 1)


def _quantiles(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values and the normal quantiles of their mid-ranks."""
    values, counts = np.unique(column, return_counts=True)
    return values, ndtri((np.cumsum(counts) - counts / 2) / len(column))


def _normal(x: np.ndarray, values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    if len(values) == 1:
        return NOVEL * np.sign(x - values[0])
    unit = (values[-1] - values[0]) / (quantiles[-1] - quantiles[0])
    beyond = (x - x.clip(values[0], values[-1])) / unit
    return np.interp(x, values, quantiles) + beyond.clip(-FAR, FAR)


@final
class Surprise:
    """Maps scores to -log of the share of reference scores that are as high.

    The upper tail is an exponential, so that higher scores stay distinct.
    """

    def __init__(self, reference: np.ndarray) -> None:
        self.reference = np.sort(reference)
        count = len(self.reference)
        start = int((0.99 if count > 200 else 0.9) * (count - 1))
        self.start = self.reference[start]
        excess = self.reference[int(0.9 * (count - 1)) :]
        floor = 1e-6 * (1 + abs(self.start))
        self.scale = max((self.reference[start:] - self.start).mean(), (excess - excess[0]).mean() / 2, floor)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        within, beyond = scores.clip(max=self.start), (scores - self.start).clip(0)
        above = len(self.reference) - np.searchsorted(self.reference, within, "left")
        return beyond / self.scale - np.log((above + 0.5) / (len(self.reference) + 1))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return the mid-ranks of scores, in (0, 1)."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(scores))


def _nearest(x: np.ndarray, reference: np.ndarray, neighbours: int) -> np.ndarray:
    """Compute the distance of each row to its n-th nearest reference row, `[N]`.

    One reference row that equals the row is passed over, so that reference rows do not count themselves.
    """
    one = min(neighbours + 1, len(reference))

    def of(distances: Tensor) -> Tensor:
        least = distances.topk(one, dim=1, largest=False).values
        return torch.where(least[:, 0] == 0, least[:, -1], least[:, max(0, min(neighbours, one) - 1)])

    return _by_distances(x, reference, of)


def _by_distances(x: np.ndarray, reference: np.ndarray, of: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Reduce the distances `[rows, reference]` of some rows at a time.

    Not by a matrix product, whose rounding depends on the number of rows.
    """
    known = torch.from_numpy(reference).float()
    parts = torch.from_numpy(x).float().split(AT_ONCE)
    found = [of(torch.cdist(some, known, compute_mode="donot_use_mm_for_euclid_dist")) for some in parts]
    return torch.cat(found).double().numpy()


@final
class SubsetDistance:
    """Mean distance to the nearest row of many small random subsets (Pang et al. 2015, "LeSiNN")."""

    def __init__(self, x: np.ndarray, generator: np.random.Generator) -> None:
        self.size = min(IN_SUBSET, max(1, len(x) // IN_SUBSET))
        self.rows = np.concatenate([x[generator.permutation(len(x))[: self.size]] for _ in range(SUBSETS)])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return _by_distances(x, self.rows, lambda d: d.view(len(d), SUBSETS, self.size).amin(2).mean(1))


@final
class Tails:
    """Sum over the columns of -log of the smaller tail probability (as ECOD: Li et al. 2022)."""

    def __init__(self, x: np.ndarray) -> None:
        self.columns = np.sort(x, 0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        total, count = np.zeros(len(x)), len(self.columns)
        for column, values in zip(self.columns.T, x.T, strict=True):
            below = np.searchsorted(column, values, "right")
            above = count - np.searchsorted(column, values, "left")
            total -= np.log(np.minimum(1, (2 * np.minimum(below, above) + 1) / (count + 1)))
        return total


@final
class TableScores:
    """The scores of rows, fitted on reference rows of which some may be anomalous.

    Args:
        x: `[n, D]` finite reference rows.
        seed: seed of the random parts.

    Attributes:
        kept: which reference rows the local score takes for normal, `[n]`.
        ranges: the view of rows in which each column has range 1.
    """

    def __init__(self, x: np.ndarray, *, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.ranges, self.quantiles = Ranges(x), NormalScores(x)
        views = self._views(x)
        self.forest, self.tails = IsolationForest(random_state=seed).fit(x), Tails(x)
        self.distances = [SubsetDistance(rows, generator) for rows in views]
        self.votes = [_center_and_spread(values) for values in self._global_parts(x, views)]
        outlying = self._global(x, views)
        self.global_surprise = Surprise(outlying)
        near = sum((Surprise(d)(d) for d in (_nearest(rows, rows, NEIGHBOURS) for rows in views)), np.zeros(len(x)))
        rank = _ranks(outlying)
        self.kept = ~((rank > OUTLYING) & (_ranks(near) < rank - CLUMPED))
        self.reference = [rows[self.kept].astype(np.float32) for rows in views]
        self.local_surprises = [
            Surprise(_nearest(rows, reference, NEIGHBOURS))
            for rows, reference in zip(views, self.reference, strict=True)
        ]

    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the scores `GLOBAL` and `LOCAL` of rows, `[N]`, in nats; higher is more anomalous."""
        views = self._views(x)
        local = zip(LOCAL, self.local_surprises, views, self.reference, strict=True)
        near = {name: surprise(_nearest(rows, known, NEIGHBOURS)) for name, surprise, rows, known in local}
        return {GLOBAL: self.global_surprise(self._global(x, views)), **near}

    def _views(self, x: np.ndarray) -> Sequence[np.ndarray]:
        return self.ranges(x), self.quantiles(x)

    def _global_parts(self, x: np.ndarray, views: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        near = [distance(rows) for distance, rows in zip(self.distances, views, strict=True)]
        return -self.forest.score_samples(x), self.tails(x), near[0] + near[1]

    def _global(self, x: np.ndarray, views: Sequence[np.ndarray]) -> np.ndarray:
        """Add the parts, each centered and scaled by the reference rows."""
        total = np.zeros(len(x))
        for (center, spread), values in zip(self.votes, self._global_parts(x, views), strict=True):
            total += (values - center) / spread
        return total


def _center_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Return the median, and the standard deviation without the extreme 2 %."""
    inner = values.clip(*np.quantile(values, [0.02, 0.98]))
    return float(np.median(values)), float(max(inner.std(), 1e-9 * (1 + np.abs(values).max())))


def most_rows(columns: int) -> int:
    """Return how many reference rows a table with so many columns may have."""
    return min(ROWS, max(FEWEST, NUMBERS // columns))


def reference_rows(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return random rows to fit scores on, in their order; all if they are few."""
    return x[np.sort(generator.permutation(len(x))[: most_rows(x.shape[1])])]


def make_up_rows(x: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Make one anomaly of each kind from each row `[N, D]`.

    Permuted: half of the cells come from other rows. Scaled: the row is two to four times as far from the medians.
    Resampled: a fifth of the cells, at least one, is uniform in the column's range.
    """
    rows, columns = x.shape
    center, low, high = np.median(x, 0), x.min(0), x.max(0)
    order = generator.random(x.shape).argsort(1)
    others = np.stack([generator.permutation(column) for column in x.T], 1)
    uniform = low + (high - low) * generator.random(x.shape)
    return {
        "permuted": np.where(order < max(1, columns // 2), others, x),
        "scaled": center + (x - center) * generator.uniform(2, 4, (rows, 1)),
        "resampled": np.where(order < max(1, columns // 5), uniform, x),
    }


COMPARED = 1000
"""Most rows on which scores are compared."""
SMOOTHING, SMOOTHED_ROWS = 0.1, 8000
"""Deviation of the noise in a model's training rows, in ranges of the columns; least number of such rows."""


def smoothed(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return copies of rows with noise, `[M, D]` float32, whose density is finite for discrete columns too."""
    copies = np.tile(x, (-(-SMOOTHED_ROWS // len(x)), 1))
    return (copies + SMOOTHING * generator.standard_normal(copies.shape)).astype(np.float32)


@final
@dataclass(frozen=True)
class TableChoice:
    """The local scores that are part of the combined one, chosen by held-out rows against made-up anomalies.

    Attributes:
        local: their names.
        figures: AUROC of each score for each kind of made-up anomalies; empty if rows are too few to compare.
        rows: number of held-out rows.
    """

    local: tuple[str, ...] = LOCAL
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: int = 0

    def combined(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Add the global score and twice the mean of the local ones, `[N]`."""
        local = sum((scores[name] for name in self.local), np.zeros(len(scores[GLOBAL])))
        return scores[GLOBAL] + 2 / len(self.local) * local


def choose_local(
    score: Callable[[np.ndarray], Mapping[str, np.ndarray]], rows: np.ndarray, generator: np.random.Generator
) -> TableChoice:
    """Choose the local scores without labels.

    They are the neighbours by values and by ranks, unless one of these is better than the other by more than two
    standard errors of its AUROC; and the bound, if it is better than each of them by as much.

    Args:
        score: computes the scores of rows, also `bound` if there is a model.
        rows: normal rows that the model was not trained on.
    """
    normal = score(rows)
    made_up = {kind: score(made) for kind, made in make_up_rows(rows, generator).items()}
    figures = {
        name: {kind: auroc(values, other[name])[0] for kind, other in made_up.items()}
        for name, values in normal.items()
    }
    mean = {name: float(np.mean(list(kinds.values()))) for name, kinds in figures.items()}

    def better(one: str, other: str) -> bool:
        return mean[one] - mean[other] > 2 * np.sqrt(mean[one] * (1 - mean[one]) / len(rows))

    kept = tuple(name for name in LOCAL if not any(better(other, name) for other in LOCAL))
    added = ("bound",) if "bound" in mean and all(better("bound", name) for name in kept) else ()
    return TableChoice((*kept, *added), figures, len(rows))


@final
class RowScorer:
    """Computes the scores of rows relative to the training rows of a run.

    Args:
        rows: training rows, of which some may be anomalous.
        seed: seed of the random parts.

    Attributes:
        names: names of the scores, in the order of `pooled`.
    """

    def __init__(self, rows: Batch, seed: int = 0) -> None:
        generator, x = np.random.default_rng(seed), rows.x.double().numpy()
        self._scores = TableScores(x, seed=seed)
        compared = generator.permutation(x[self._scores.kept])[:COMPARED]
        self._choice = choose_local(self._scores, compared, generator)
        self.names = (GLOBAL, *LOCAL, COMBINED)

    def pooled(self, batch: Batch) -> np.ndarray:
        """Compute the scores `names` of rows, `[B, scores]` float64."""
        scores = self._scores(batch.x.cpu().double().numpy())
        return np.stack([*(scores[name] for name in (GLOBAL, *LOCAL)), self._choice.combined(scores)], 1)

    def summary(self, name: str, examples: str) -> str:
        """Describe one of the scores in a line."""
        return SUMMARIES[name].format(examples=examples, local=" and ".join(self._choice.local))
