"""Scores many examples in batches, keeping only the scores and the examples to show; computes heat maps."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

import numpy as np

from tessella.core.batches import Batch
from tessella.data.inputs import Inputs
from tessella.foundation.errors import DataError, option
from tessella.tasks.detect.detector import FEWEST, Detector, check_rate, needed, too_few
from tessella.tasks.detect.statistics import Statistics

SHARE = 3
"""One of so many normal examples serves to fit and choose scores; the others set thresholds."""
SAMPLE = 100
"""Most normal examples that scores are chosen on."""


@final
@dataclass(frozen=True)
class Extreme:
    """An example with a high or low score: its row among all, and the example itself, `[1, *shape]`."""

    row: int
    batch: Batch


@final
@dataclass(frozen=True)
class Scored:
    """N examples with their scores, in the order of the inputs.

    Attributes:
        names, classes: names of the examples and of their classes (None if unknown).
        anomalous: whether each is known to be anomalous; None if unknown.
        scores: `[N]` nats for each score.
        highest, lowest: examples with the highest and the lowest scores, most extreme first.
    """

    names: list[str]
    classes: list[str | None]
    anomalous: list[bool | None]
    scores: dict[str, np.ndarray]
    highest: list[Extreme]
    lowest: list[Extreme]


def score_inputs(
    detector: Detector, inputs: Inputs, anomalies: Inputs | None, *, by: str, normal: Sequence[str], top: int
) -> Scored:
    """Score all examples.

    Args:
        anomalies: examples known to be anomalous; those of `inputs` are then known to be normal, unless their class is
            not.
        by: score that determines the highest and the lowest.
        normal: names of normal classes; examples of other classes are anomalous.
        top: number of highest and of lowest examples to keep.

    Raises:
        DataError: if an input cannot be read, or no example belongs to a class named in `normal`.
    """
    names: list[str] = []
    classes: list[str | None] = []
    anomalous: list[bool | None] = []
    parts: list[dict[str, np.ndarray]] = []
    extremes, otherwise = _Extremes(top), None if anomalies is None else False
    for known, source in ((False, inputs), (True, anomalies)):
        for named in source.track("scoring") if source is not None else ():
            scores = detector.score(named.batch)
            extremes.add(len(names), named.batch, scores[by])
            parts.append(scores)
            names += named.names
            classes += named.classes
            anomalous += [True] * len(named.names) if known else by_class(named.classes, normal, otherwise)
    missing = [name for name in normal if name not in classes]
    if missing:
        there = sorted({c for c in classes if c is not None})
        raise DataError(
            f"no example is of class {', '.join(missing)}; there are: {', '.join(there[:12]) or 'no classes'}",
            code="no-such-class",
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Scored(names, classes, anomalous, joined, extremes.highest(), extremes.lowest())


def by_class(classes: Sequence[str | None], normal: Sequence[str], otherwise: bool | None = None) -> list[bool | None]:
    """Mark examples of classes that are not normal as anomalous; `otherwise` without a class."""
    return [otherwise if name is None or not normal else name not in normal for name in classes]


@final
@dataclass(frozen=True)
class HeldOut:
    """Held-out normal examples in two parts: one to fit and choose scores on, one to set thresholds.

    Attributes:
        fit: statistics of the first part; None if there are too few examples for two parts.
        thresholds: statistics of the others, or of all.
        sample: examples of the first part, at most `SAMPLE`.
    """

    fit: Statistics | None
    thresholds: Statistics
    sample: Batch | None


def measure_held_out(plain: Detector, inliers: Inputs, false_positives: float, *, choosing: bool) -> HeldOut:
    """Compute the statistics of held-out normal examples, in two parts if there are enough of them.

    Args:
        plain: detector whose scores are not fitted yet.
        choosing: whether a part is also needed to choose the score.

    Raises:
        SpecError, DataError: if the rate is out of range, or there are too few examples for it.
    """
    check_rate(false_positives)
    total = len(inliers)
    least = max(SHARE * FEWEST, math.ceil(needed(false_positives) * SHARE / (SHARE - 1)))
    divided = total >= least and (choosing or bool(plain.left_out))
    if not (divided or plain.scores):
        raise DataError(
            f"scores that are fitted on normal examples need at least {least} of them, a third for the fit, and "
            f"{total} are given: give more with {option('calibration_data')}, or choose other {option('scores')}",
            code="too-few-normal-examples",
            needed=least,
        )
    if total < needed(false_positives):
        raise too_few(total, false_positives)
    parts: list[Statistics] = []
    sample: list[Batch] = []
    done, kept = 0, 0
    for named in inliers.track("calibrating"):
        parts.append(plain.extract(named.batch))
        if divided and kept < SAMPLE:
            sample.append(named.batch[slice(-done % SHARE, None, SHARE)])
            kept += len(sample[-1])
        done += len(named.batch)
    found = Statistics.cat(parts)
    if not divided:
        return HeldOut(None, found, None)
    first = np.arange(total) % SHARE == 0
    return HeldOut(found.rows(first), found.rows(~first), Batch.cat(sample)[:SAMPLE])


@final
class _Extremes:
    """The examples with the highest and the lowest scores so far."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._order = count()
        self._high: list[tuple[float, int, Extreme]] = []
        self._low: list[tuple[float, int, Extreme]] = []

    def add(self, first: int, batch: Batch, scores: np.ndarray) -> None:
        """Add a batch whose first example is row `first`."""
        for i, score in enumerate(scores.tolist()) if self.most else ():
            for heap, rank in ((self._high, score), (self._low, -score)):
                if len(heap) < self.most or rank > heap[0][0]:
                    one = batch[i : i + 1]
                    own = Batch(one.x.clone(), None if one.label is None else one.label.clone())
                    heapq.heappush(heap, (rank, next(self._order), Extreme(first + i, own)))
                    if len(heap) > self.most:
                        heapq.heappop(heap)

    def highest(self) -> list[Extreme]:
        return list(_descending(self._high))

    def lowest(self) -> list[Extreme]:
        return list(_descending(self._low))


def _descending(heap: list[tuple[float, int, Extreme]]) -> Iterator[Extreme]:
    return (one for _, _, one in sorted(heap, reverse=True, key=lambda kept: kept[0]))
