"""Scores many examples in batches, keeping only the scores and the examples to show; computes heat maps."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

import numpy as np

from tessella.core.batches import Batch
from tessella.data.inputs import Inputs
from tessella.foundation.errors import DataError
from tessella.foundation.notes import note
from tessella.tasks.detect.prepared import Prepared
from tessella.tasks.detect.regions import Regions


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
        seconds: time that reading and scoring took.
        interrupted: whether only the first examples were scored.
    """

    names: list[str]
    classes: list[str | None]
    anomalous: list[bool | None]
    scores: dict[str, np.ndarray]
    highest: list[Extreme]
    lowest: list[Extreme]
    seconds: float
    interrupted: bool


def score_inputs(
    ready: Prepared,
    inputs: Inputs,
    anomalies: Inputs | None,
    regions: Regions | None,
    *,
    normal: Sequence[str],
    top: int,
) -> Scored:
    """Score all examples. If it is interrupted, the examples scored so far are the result.

    Args:
        anomalies: examples known to be anomalous; those of `inputs` are then known to be normal, unless their class is
            not.
        regions: collects the maps of the examples.
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
    started, total = time.perf_counter(), len(inputs) + (len(anomalies) if anomalies is not None else 0)
    limit = None if ready.calibration is None else ready.calibration.thresholds[ready.by]
    interrupted = False
    try:
        for known, source in ((False, inputs), (True, anomalies)):
            for named in source.track("scoring") if source is not None else ():
                scores = ready.detector.score(named.batch)
                extremes.add(len(names), named.batch, scores[ready.by])
                if regions is not None:
                    regions.add(len(names), named.batch, None if limit is None else scores[ready.by] > limit)
                parts.append(scores)
                names += named.names
                classes += named.classes
                anomalous += [True] * len(named.names) if known else by_class(named.classes, normal, otherwise)
    except KeyboardInterrupt:
        if not names:
            raise
        interrupted = True
        note(f"interrupted: the result has the {len(names):,} of {total:,} examples that were scored")
    seconds = time.perf_counter() - started
    missing = [name for name in normal if name not in classes]
    if missing:
        there = sorted({c for c in classes if c is not None})
        raise DataError(
            f"no example is of class {', '.join(missing)}; there are: {', '.join(there[:12]) or 'no classes'}",
            code="no-such-class",
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Scored(names, classes, anomalous, joined, extremes.highest(), extremes.lowest(), seconds, interrupted)


def by_class(classes: Sequence[str | None], normal: Sequence[str], otherwise: bool | None = None) -> list[bool | None]:
    """Mark examples of classes that are not normal as anomalous; `otherwise` without a class."""
    return [otherwise if name is None or not normal else name not in normal for name in classes]


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
