"""How well scores separate known anomalies from known normal examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from tessella.foundation.errors import DataError

RESAMPLES = 200


@final
@dataclass(frozen=True)
class Ranking:
    """How well a score separates anomalies from normal examples; each metric with its standard error.

    Attributes:
        auroc: probability that an anomaly scores above a normal example; ties count half.
        average_precision: mean over the anomalies of the share of anomalies among all that score as high.
        inliers, anomalies: numbers of examples.
    """

    auroc: float
    auroc_error: float
    average_precision: float
    average_precision_error: float
    inliers: int
    anomalies: int

    @property
    def figures(self) -> tuple[str, str]:
        """Format AUROC and average precision."""
        return (
            f"{self.auroc:.4f} ± {self.auroc_error:.4f}",
            f"{self.average_precision:.4f} ± {self.average_precision_error:.4f}",
        )


def ranking(scores: np.ndarray, anomalous: np.ndarray, seed: int = 0) -> Ranking:
    """Measure how well scores `[N]` separate anomalous examples `[N]`.

    Raises:
        DataError: if all are normal, or all anomalous.
    """
    anomalous = np.asarray(anomalous, dtype=bool)
    counts = int((~anomalous).sum()), int(anomalous.sum())
    if 0 in counts:
        raise DataError(
            f"all {len(anomalous)} examples are {'normal' if counts[0] else 'anomalous'}, so no score can be ranked: "
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


def _ranks(x: np.ndarray) -> np.ndarray:
    """Rank numbers from 1; equal ones share their mean rank."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def auroc(inliers: np.ndarray, anomalies: np.ndarray) -> tuple[float, float]:
    """Compute the area under the ROC curve and its standard error.

    DeLong et al. 1988, eq. 5; the error is NaN for a single example.
    """
    n, m = len(inliers), len(anomalies)
    both = _ranks(np.concatenate([inliers, anomalies]))
    above = (both[n:] - _ranks(anomalies)) / n  # of each anomaly, the share of inliers below it
    below = 1 - (both[:n] - _ranks(inliers)) / m  # of each normal, the share of anomalies above it
    error = float("nan")
    if min(n, m) > 1:
        error = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return float(above.mean()), error


def average_precision(scores: np.ndarray, anomalous: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute sum_k (R_k - R_(k-1)) P_k over the thresholds in falling order.

    Args:
        weights: how many times each example counts; once by default.
    """
    weight = np.ones(len(scores)) if weights is None else weights.astype(float)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # equal scores are one threshold
    found = np.cumsum((weight * anomalous)[order])[ends]
    counted = np.cumsum(weight[order])[ends]
    if not found[-1]:
        return float("nan")
    return float((np.diff(found, prepend=0.0) * found / np.maximum(counted, 1e-300)).sum() / found[-1])


@final
@dataclass(frozen=True)
class AtThreshold:
    """Figures of examples that are flagged or not.

    Attributes:
        precision, recall, f1: share of the flagged that are anomalous, share of the anomalous that are flagged, and
            their harmonic mean.
        flagged_normal: share of the normal examples that are flagged.
    """

    precision: float
    recall: float
    f1: float
    flagged_normal: float


def at_threshold(flagged: np.ndarray, anomalous: np.ndarray) -> AtThreshold:
    """Compare flags `[N]` with what is anomalous `[N]`."""
    hits, false = int((flagged & anomalous).sum()), int((flagged & ~anomalous).sum())
    missed, normal = int((~flagged & anomalous).sum()), int((~anomalous).sum())
    precision, recall = hits / max(1, hits + false), hits / max(1, hits + missed)
    return AtThreshold(precision, recall, 2 * hits / max(1, 2 * hits + false + missed), false / max(1, normal))
