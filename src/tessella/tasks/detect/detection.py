"""All that is found of many examples, read a lot at a time: only scores are kept, and the examples to show."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, final

import numpy as np
import torch

from tessella.core.batches import Batch
from tessella.foundation.errors import DataError
from tessella.tasks.detect import Calibration, Detector
from tessella.tasks.detect.calibration import check_rate, needed, too_few
from tessella.tasks.detect.inputs import Lot, Source, truth
from tessella.tasks.detect.ranking import Ranking, ranking
from tessella.tasks.detect.scores import FEWEST
from tessella.tasks.detect.statistics import Statistics

Progress = Callable[[int, int], None]
SHARE = 2
"""Where scores are learned, one normal in so many sets the thresholds; the others teach."""


@final
@dataclass(frozen=True)
class Shown:
    """An example to show: its row among all, and itself, `[1, *shape]`."""

    row: int
    batch: Batch


@final
@dataclass
class DetectionResult:
    """What is known of N examples, in the order of the inputs.

    Attributes:
        by: the score that examples are sorted and flagged by.
        names, classes: what they are called, and their classes' names (None where unknown).
        anomalous: whether they are known to be anomalous; None where that is not known.
        scores: each score of each, `[N]` nats.
        highest, lowest: those that fit least and best, in that order.
    """

    by: str
    names: list[str] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)
    anomalous: list[bool | None] = field(default_factory=list)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    highest: list[Shown] = field(default_factory=list)
    lowest: list[Shown] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def rankings(self) -> dict[str, Ranking]:
        """How well each score separates those that are known to be anomalous from those known to be normal.

        Raises:
            DataError: if the known ones are all of one kind.
        """
        known = np.array([a is not None for a in self.anomalous])
        anomalous = np.array([bool(a) for a in self.anomalous])[known]
        return {name: ranking(values[known], anomalous) for name, values in self.scores.items()}

    def records(self, calibration: Calibration | None) -> Iterator[dict[str, Any]]:
        """Each example as a flat record: name, class, whether it is anomalous, p-value and flag, and its scores."""
        p = flagged = None
        if calibration is not None:
            p, flagged = calibration.p_values(self.by, self.scores[self.by]), self.flagged(calibration)
        for i, name in enumerate(self.names):
            record: dict[str, Any] = {"name": name, "class": self.classes[i], "anomalous": self.anomalous[i]}
            if p is not None and flagged is not None:
                record |= {"p": float(p[i]), "flagged": bool(flagged[i])}
            yield record | {name: float(values[i]) for name, values in self.scores.items()}

    def flagged(self, calibration: Calibration) -> np.ndarray:
        """Which examples exceed the threshold, `[N]`."""
        return self.scores[self.by] > calibration.thresholds[self.by]


def find(
    detector: Detector,
    inputs: Sequence[Source],
    anomalies: Sequence[Source] = (),
    *,
    by: str,
    normal: Sequence[str] = (),
    show: int = 0,
    progress: Progress | None = None,
) -> DetectionResult:
    """Score all examples.

    Args:
        anomalies: examples that are known to be anomalous; those of `inputs` are then known to be normal, unless their
            class says otherwise.
        by: the score to sort and flag by.
        normal: names of the classes that are normal; examples of others are anomalous.
        show: how many of the highest and of the lowest examples to keep.

    Raises:
        DataError: if an input cannot be read, or no example is of a class that is said to be normal.
    """
    found = DetectionResult(by)
    parts: list[dict[str, np.ndarray]] = []
    extremes = _Extremes(show)
    total = sum(source.count for source in (*inputs, *anomalies))
    for known, source in [*((False, s) for s in inputs), *((True, s) for s in anomalies)]:
        for lot in source.lots():
            scores = detector.score(lot.batch)
            extremes.see(len(found), lot, scores[by])
            parts.append(scores)
            found.names += lot.names
            found.classes += lot.classes
            found.anomalous += _known(lot, normal, anomalous=known, told=bool(anomalies))
            if progress:
                progress(min(len(found), total), total)
    missing = [name for name in normal if name not in found.classes]
    if missing:
        there = sorted({c for c in found.classes if c is not None})
        raise DataError(
            f"no example is of class {', '.join(missing)}; there are: {', '.join(there[:12]) or 'no classes'}"
        )
    if progress:
        progress(total, total)
    found.scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found.highest, found.lowest = extremes.highest(), extremes.lowest()
    return found


def _known(lot: Lot, normal: Sequence[str], *, anomalous: bool, told: bool) -> list[bool | None]:
    if anomalous:
        return [True] * len(lot.names)
    of_classes = truth(lot.classes, normal)
    return [False if told and t is None else t for t in of_classes]


def held_out(
    detector_for: Callable[[Statistics | None], Detector],
    normals: Sequence[Source],
    false_positives: float,
    progress: Progress | None = None,
) -> tuple[Detector, Calibration]:
    """A detector, and thresholds for it, from the same normals.

    Half of them, every other one, teach the scores that learn, and the other half set the thresholds; where no score
    learns, or halves are too few, all set thresholds, and scores that learn are left out.

    Args:
        detector_for: what makes the detector, given normals to learn from.

    Raises:
        SpecError, DataError: as of `Calibration`.
    """
    check_rate(false_positives)
    taught = detector_for(None)
    total = sum(source.count for source in normals)
    learns = bool(taught.left_out) and total // SHARE >= max(FEWEST, needed(false_positives))
    share = SHARE if learns else 1
    if not (learns or taught.scores):
        raise DataError(
            f"scores that are learned from normals need at least {SHARE * FEWEST} of them, half to learn from, and "
            f"{total} are given: give more by --calibrate, or choose other scores by --scores"
        )
    if total // share < needed(false_positives):
        raise too_few(total, false_positives, share)
    parts: list[Statistics] = []
    for source in normals:
        for lot in source.lots():
            parts.append(taught.examine(lot.batch))
            if progress:
                progress(min(sum(map(len, parts)), total), total)
    found = Statistics.joined(parts)
    if not learns:
        return taught, taught.calibrate(found, false_positives)
    detector = detector_for(found.rows(slice(0, None, SHARE)))
    return detector, detector.calibrate(found.rows(slice(1, None, SHARE)), false_positives)


@final
class _Extremes:
    """Keeps the examples that score highest and lowest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._order = count()
        self._high: list[tuple[float, int, Shown]] = []
        self._low: list[tuple[float, int, Shown]] = []

    def see(self, first: int, lot: Lot, scores: np.ndarray) -> None:
        """A lot whose examples are rows `first` and on."""
        for i, score in enumerate(scores.tolist()) if self.most else ():
            for heap, rank in ((self._high, score), (self._low, -score)):
                if len(heap) < self.most or rank > heap[0][0]:
                    label = lot.batch.label
                    one = Batch(lot.batch.x[i : i + 1].clone(), None if label is None else label[i : i + 1].clone())
                    heapq.heappush(heap, (rank, next(self._order), Shown(first + i, one)))
                    if len(heap) > self.most:
                        heapq.heappop(heap)

    def highest(self) -> list[Shown]:
        return [shown for _, _, shown in sorted(self._high, reverse=True, key=lambda kept: kept[0])]

    def lowest(self) -> list[Shown]:
        return [shown for _, _, shown in sorted(self._low, reverse=True, key=lambda kept: kept[0])]


def joined(shown: Sequence[Shown]) -> Batch:
    """Examples to show as one batch."""
    labels = [s.batch.label for s in shown if s.batch.label is not None]
    x = torch.cat([s.batch.x for s in shown])
    return Batch(x, torch.cat(labels) if len(labels) == len(shown) else None)
