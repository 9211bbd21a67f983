"""Made-up anomalies in normal stretches of a series, and the default score, chosen on them without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from tessella.foundation.progress import track
from tessella.tasks.detect.ranking import average_precision
from tessella.tasks.detect.series.scores import COMBINED, RowScores

EACH, MOST_COPIES, MOST_ROWS = 8, 6, 20_000
"""Wanted anomalies of each kind, most copies of the normal rows to hold them, and most rows of a copy."""
APART = 4
"""An anomaly begins in every so many windows."""
LOSS = 0.1
"""Most that the combined score may lose to the best one and still be chosen."""

Change = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Makes an anomaly: from the rows `[L, C]` to change, all rows `[T, C]`, deviations `[C]`, and random numbers."""


def _spike(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed, at = rows.copy(), int(rng.integers(len(rows)))
    changed[at : at + 3] += rng.choice([-1, 1]) * rng.uniform(2, 5) * scale
    return changed


def _shifted(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows + rng.choice([-1, 1]) * rng.uniform(0.5, 2) * scale


def _noisy(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows + rng.uniform(0.2, 0.6) * scale * rng.standard_normal(rows.shape)


def _flat(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(np.isnan(rows), np.nan, np.nan_to_num(rows[:1]))


def _scaled(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    center = np.nanmean(rows, 0) if not np.isnan(rows).all() else 0.0
    return center + (rows - center) * rng.choice([rng.uniform(0.2, 0.5), rng.uniform(1.5, 2.5)])


def _moved(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(max(1, len(x) - len(rows))))
    return x[start : start + len(rows)]


def _reversed(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows[::-1]


def _faster(rows: np.ndarray, x: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    speed = rng.choice([rng.uniform(0.4, 0.7), rng.uniform(1.5, 2.5)])
    at = (np.arange(len(rows)) * speed).astype(int) % len(rows)
    return rows[at]


CHANGES: Mapping[str, Change] = {
    "spike": _spike,
    "shifted": _shifted,
    "noisy": _noisy,
    "flat": _flat,
    "scaled": _scaled,
    "moved": _moved,
    "reversed": _reversed,
    "faster": _faster,
}
"""Kinds of made-up anomalies: a few extreme rows, and stretches with an offset, with noise, of one value, of another
amplitude, from another time, in reverse order, and of another speed."""


def insert_anomalies(
    x: np.ndarray, change: Change, window: int, scale: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Copy rows `[T, C]` with an anomaly in every few windows; return also which rows were changed, `[T]`."""
    changed, anomalous = np.array(x, np.float64), np.zeros(len(x), bool)
    for start in range(0, len(x), APART * window):
        length = min(int(rng.integers(max(2, window // 8), max(3, window // 2))), len(x) // 2)
        at = start + int(rng.integers(max(1, min((APART - 1) * window, len(x) - start - length))))
        if at + length <= len(x):
            changed[at : at + length] = change(x[at : at + length], x, scale, rng)
            anomalous[at : at + length] = True
    return changed, anomalous


@final
@dataclass(frozen=True)
class RowChoice:
    """The score that separates made-up anomalies best from normal rows.

    Attributes:
        score: its name.
        figures: average precision of each score for each kind of made-up anomalies.
        rows: normal rows that were changed.
    """

    score: str
    figures: Mapping[str, Mapping[str, float]]
    rows: int

    def mean(self, score: str) -> float:
        """Return the mean average precision of a score over the kinds."""
        return float(np.mean(list(self.figures[score].values())))

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "rows": self.rows, "average_precision": self.figures}


def choose_score(scores: RowScores, calibration: Sequence[np.ndarray], window: int, seed: int) -> RowChoice:
    """Choose a score on copies of held-out normal rows with made-up anomalies.

    It is the combined one, unless its mean average precision is lower than the best one's by more than `LOSS`.
    """
    longest = max(calibration, key=len)[:MOST_ROWS]
    copies = min(MOST_COPIES, max(1, -(-EACH * APART * window // len(longest))))
    scale = np.nanstd(longest, 0)
    figures: dict[str, dict[str, float]] = {name: {} for name in scores.names}
    for number, (kind, change) in enumerate(track(list(CHANGES.items()), "comparing scores")):
        rng = np.random.default_rng((seed, number))
        made = [insert_anomalies(longest, change, window, scale, rng) for _ in range(copies)]
        found = [scores(x, calibration=True) for x, _ in made]
        anomalous = np.concatenate([labels for _, labels in made])
        for name, by_kind in figures.items():
            by_kind[kind] = average_precision(np.concatenate([one[name] for one in found]), anomalous)
    mean = {name: float(np.mean(list(by_kind.values()))) for name, by_kind in figures.items()}
    best = max(mean, key=lambda name: mean[name])
    if COMBINED in mean and mean[COMBINED] >= mean[best] - LOSS:
        best = COMBINED
    return RowChoice(best, figures, len(longest))
