"""Scores many examples, a batch at a time: only scores are kept, and the examples to show."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.batches import Batch
from tessella.data.inputs import Inputs, NamedBatch
from tessella.foundation.errors import DataError, option
from tessella.models.base import Model
from tessella.tasks.detect.detector import FEWEST, Calibration, Detector, check_rate, needed, too_few
from tessella.tasks.detect.statistics import Statistics

SHARE = 2
"""Where scores need a fit, one normal example in so many sets the thresholds; the scores are fitted on the others."""


@final
@dataclass(frozen=True)
class Extreme:
    """An example that scores high or low: its row among all, and itself, `[1, *shape]`."""

    row: int
    batch: Batch


@final
@dataclass(frozen=True)
class Scored:
    """N examples with their scores, in the order of the inputs.

    Attributes:
        names, classes: what they are called, and their classes' names (None where unknown).
        anomalous: whether they are known to be anomalous; None where that is not known.
        scores: each score of each, `[N]` nats.
        highest, lowest: those that fit least and best, in that order.
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
        anomalies: examples that are known to be anomalous; those of `inputs` are then known to be normal, unless their
            class says otherwise.
        by: the score that decides which are the highest and the lowest.
        normal: names of the classes that are normal; examples of others are anomalous.
        top: how many of the highest and of the lowest examples to keep.

    Raises:
        DataError: if an input cannot be read, or no example is of a class that is said to be normal.
    """
    names: list[str] = []
    classes: list[str | None] = []
    anomalous: list[bool | None] = []
    parts: list[dict[str, np.ndarray]] = []
    extremes = _Extremes(top)
    for known, source in ((False, inputs), (True, anomalies)):
        for named in source.track("scoring") if source is not None else ():
            scores = detector.score(named.batch)
            extremes.add(len(names), named.batch, scores[by])
            parts.append(scores)
            names += named.names
            classes += named.classes
            anomalous += [True] * len(named.names) if known else _known(named, normal, told=anomalies is not None)
    missing = [name for name in normal if name not in classes]
    if missing:
        there = sorted({c for c in classes if c is not None})
        raise DataError(
            f"no example is of class {', '.join(missing)}; there are: {', '.join(there[:12]) or 'no classes'}",
            code="no-such-class",
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Scored(names, classes, anomalous, joined, extremes.highest(), extremes.lowest())


def _known(named: NamedBatch, normal: Sequence[str], *, told: bool) -> list[bool | None]:
    of_classes = by_class(named.classes, normal)
    return [False if told and known is None else known for known in of_classes]


def by_class(classes: Sequence[str | None], normal: Sequence[str]) -> list[bool | None]:
    """Tell which examples are anomalous: of a class that is not among the normal ones; None where it has no class."""
    return [None if name is None or not normal else name not in normal for name in classes]


def calibrate(
    detector_for: Callable[[Statistics | None], Detector], normals: Inputs, false_positives: float
) -> tuple[Detector, Calibration]:
    """Make a detector, and thresholds for it, from the same normal examples.

    Scores that need a fit are fitted on half of them, every other one, and the other half set the thresholds; where no
    score needs a fit, or halves are too few, all set thresholds, and scores that need a fit are left out.

    Args:
        detector_for: makes the detector, given normal examples to fit scores on.

    Raises:
        SpecError, DataError: as of `Calibration`.
    """
    check_rate(false_positives)
    plain = detector_for(None)
    total = len(normals)
    fits = bool(plain.left_out) and total // SHARE >= max(FEWEST, needed(false_positives))
    share = SHARE if fits else 1
    if not (fits or plain.scores):
        raise DataError(
            f"scores that are fitted on normal examples need at least {SHARE * FEWEST} of them, half for the fit, and "
            f"{total} are given: give more with {option('calibration_data')}, or choose other {option('scores')}",
            code="too-few-normal-examples",
            needed=SHARE * FEWEST,
        )
    if total // share < needed(false_positives):
        raise too_few(total, false_positives, share)
    found = Statistics.cat([plain.extract(named.batch) for named in normals.track("calibrating")])
    if not fits:
        return plain, plain.calibrate(found, false_positives)
    detector = detector_for(found.rows(slice(0, None, SHARE)))
    return detector, detector.calibrate(found.rows(slice(1, None, SHARE)), false_positives)


@final
class _Extremes:
    """Keeps the examples that score highest and lowest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._order = count()
        self._high: list[tuple[float, int, Extreme]] = []
        self._low: list[tuple[float, int, Extreme]] = []

    def add(self, first: int, batch: Batch, scores: np.ndarray) -> None:
        """Consider a batch whose examples are rows `first` and on."""
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


@final
@dataclass(frozen=True)
class Maps:
    """Where examples cost how much, in nats.

    Attributes:
        error: -log p(x | z) of each position, `[B, *spatial]` or of vectors `[B, D]`; the sum is the distortion at the
            latent's mean.
        surprise: rate of the latent there: of codes -log p(code), of a grid of latents the KL, spread evenly
            over the positions that one of the grid stands for, `[B, *spatial]`; the sum is the rate. None where the
            latent has no place: of vectors, of a latent that is one for the whole example, and of an autoencoder.
        reconstruction: the mean of p(x | z), `[B, *shape]` in stored units; None where that takes a pass over all
            positions.
    """

    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None


@torch.no_grad()
def maps(model: Model, batch: Batch) -> Maps:
    """Compute the heat maps of a batch at the posterior's mean."""
    batch = batch.to(model.device)
    latent = model.encode(batch.x, batch.label)
    rate, p_x = model.rate(latent, batch.label), model.decode(latent.z, batch.label)
    reconstruction = None if model.likelihood.sequential_mean else p_x.mean.cpu()
    return Maps(-p_x.by_position(batch.x).cpu(), _surprise(model, rate and rate.per_unit), reconstruction)


def _surprise(model: Model, per_unit: Tensor | None) -> Tensor | None:
    """Spread the rate of each unit of a grid, `[B, units]`, over the example: `[B, *spatial]`."""
    if per_unit is None or len(model.latent_shape) == 1:
        return None
    shapes = model.code_shapes or (model.latent_shape,)
    parts = per_unit.split([math.prod(shape) for shape in shapes], 1)
    grids = [part.unflatten(1, shape).sum(1) for part, shape in zip(parts, shapes, strict=True)]
    return torch.stack([_spread(grid, model.schema.spatial) for grid in grids]).sum(0).cpu()


def _spread(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Share the nats of positions `[B, *grid]` out evenly among the positions of the example nearest to each."""
    among = torch.ones((), device=grid.device)
    for axis, side in enumerate(size, 1):
        nearest = torch.arange(side, device=grid.device) * grid.shape[axis] // side
        grid = grid.index_select(axis, nearest)
        among = among[..., None] * torch.bincount(nearest)[nearest]
    return grid * (1.0 / among)
