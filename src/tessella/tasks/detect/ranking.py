"""How well scores rank anomalies above normals, where it is known which is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.stats import rankdata

from tessella.foundation.errors import DataError

RESAMPLES = 200


@final
@dataclass(frozen=True)
class Ranking:
    """How well a score separates anomalies from normals; each figure with its standard error.

    Attributes:
        auroc: the probability that an anomaly scores above a normal, ties counting half.
        average_precision: the mean, over the anomalies, of the share of anomalies among all that score as high.
        normals, anomalies: their numbers.
    """

    auroc: float
    auroc_error: float
    average_precision: float
    average_precision_error: float
    normals: int
    anomalies: int

    @property
    def figures(self) -> tuple[str, str]:
        """AUROC and average precision in print."""
        return (
            f"{self.auroc:.4f} ± {self.auroc_error:.4f}",
            f"{self.average_precision:.4f} ± {self.average_precision_error:.4f}",
        )


def ranking(scores: np.ndarray, anomalous: np.ndarray, seed: int = 0) -> Ranking:
    """Judge scores `[N]` by which examples are anomalous `[N]`.

    Raises:
        DataError: if all are normal, or all anomalous.
    """
    anomalous = np.asarray(anomalous, dtype=bool)
    counts = int((~anomalous).sum()), int(anomalous.sum())
    if 0 in counts:
        raise DataError(
            f"all {len(anomalous)} examples are {'normal' if counts[0] else 'anomalous'}, so no score can be judged: "
            "give examples of both",
            code="one-kind-alone",
        )
    area, error = auroc(scores[~anomalous], scores[anomalous])
    precision = average_precision(scores, anomalous)
    generator = np.random.Generator(np.random.PCG64(seed))
    again = [
        average_precision(scores, anomalous, generator.multinomial(len(scores), np.full(len(scores), 1 / len(scores))))
        for _ in range(RESAMPLES)
    ]
    spread = float(np.nanstd(again, ddof=1)) if min(counts) > 1 else float("nan")
    return Ranking(area, error, precision, spread, *counts)


def auroc(normals: np.ndarray, anomalies: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve, and its standard error (DeLong et al. 1988, eq. 5; NaN of a single example)."""
    n, m = len(normals), len(anomalies)
    both = rankdata(np.concatenate([normals, anomalies]))
    above = (both[n:] - rankdata(anomalies)) / n  # of each anomaly, the share of normals below it
    below = 1 - (both[:n] - rankdata(normals)) / m  # of each normal, the share of anomalies above it
    error = float("nan")
    if min(n, m) > 1:
        error = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return float(above.mean()), error


def average_precision(scores: np.ndarray, anomalous: np.ndarray, weights: np.ndarray | None = None) -> float:
    """sum_k (R_k - R_(k-1)) P_k over the thresholds in falling order; `weights` count each example so often."""
    weight = np.ones(len(scores)) if weights is None else weights.astype(float)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # equal scores are one threshold
    found = np.cumsum((weight * anomalous)[order])[ends]
    seen = np.cumsum(weight[order])[ends]
    if not found[-1]:
        return float("nan")
    return float((np.diff(found, prepend=0.0) * found / np.maximum(seen, 1e-300)).sum() / found[-1])
