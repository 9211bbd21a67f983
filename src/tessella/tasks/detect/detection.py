"""Scores many examples in batches, keeping only the scores and the examples to show; computes heat maps."""

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
from tessella.data.inputs import Inputs
from tessella.foundation.errors import DataError, option
from tessella.models.base import Model
from tessella.tasks.detect.detector import FEWEST, Calibration, Detector, check_rate, needed, too_few
from tessella.tasks.detect.statistics import Statistics

SHARE = 2
"""If scores need a fit, one of so many normal examples sets the thresholds; the scores are fitted on the others."""


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


def calibrate(
    detector_for: Callable[[Statistics | None], Detector], inliers: Inputs, false_positives: float
) -> tuple[Detector, Calibration]:
    """Make a detector and its thresholds from the same normal examples.

    Scores that need a fit are fitted on every other normal example, and the rest set the thresholds. If no score needs
    a fit, or half of the examples is too few, all set the thresholds, and scores that need a fit are left out.

    Args:
        detector_for: makes the detector from normal examples to fit scores on.

    Raises:
        SpecError, DataError: as `Calibration`.
    """
    check_rate(false_positives)
    plain = detector_for(None)
    total = len(inliers)
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
    found = Statistics.cat([plain.extract(named.batch) for named in inliers.track("calibrating")])
    if not fits:
        return plain, plain.calibrate(found, false_positives)
    detector = detector_for(found.rows(slice(0, None, SHARE)))
    return detector, detector.calibrate(found.rows(slice(1, None, SHARE)), false_positives)


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


@final
@dataclass(frozen=True)
class Maps:
    """Heat maps of a batch, in nats.

    Attributes:
        error: -log p(x | z) of each position, `[B, *spatial]`, or of each value of vectors, `[B, D]`; it sums to the
            distortion at the latent's mean.
        surprise: rate of the latent at each position, `[B, *spatial]`, which sums to the rate: -log p(code) for codes,
            KL for a grid of latents, spread evenly over the positions of each cell. None if the latent has no positions
            (vectors, one latent for the whole example) or no rate (an autoencoder).
        reconstruction: mean of p(x | z), `[B, *shape]` in stored units; None if that takes a pass over all positions.
    """

    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None


@torch.no_grad()
def maps(model: Model, batch: Batch) -> Maps:
    """Compute the heat maps of a batch at the posterior mean."""
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
    """Divide the nats of positions `[B, *grid]` evenly among the nearest positions of the example."""
    among = torch.ones((), device=grid.device)
    for axis, side in enumerate(size, 1):
        nearest = torch.arange(side, device=grid.device) * grid.shape[axis] // side
        grid = grid.index_select(axis, nearest)
        among = among[..., None] * torch.bincount(nearest)[nearest]
    return grid * (1.0 / among)
