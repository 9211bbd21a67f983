"""Instruments that several claims share: principal components, and a classifier whose features compare examples."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tessella import Classifier, Schema, frechet_distance, image_grid, train_classifier
from tessella_experiments.runner import TrainingJob

if TYPE_CHECKING:
    from PIL.Image import Image

    from tessella_experiments.runner import ExperimentRunner

COMPONENTS = 32
SEEN = 30_000
"""Examples that are enough for the classifier."""
TRIED, BATCH = 5, 64
VIEWABLE = 40


@dataclass(frozen=True)
class Components:
    """Leading principal components of some data.

    Attributes:
        center: `[D]`.
        axes: `[D, k]`, orthonormal.
        deviations: `[k]`, of the data along each.
    """

    center: Tensor
    axes: Tensor
    deviations: Tensor

    def of(self, x: Tensor, *, whitened: bool = False) -> Tensor:
        """Project stored values `[B, *shape]` onto the axes, `[B, k]` float64, whitened to unit variance if asked."""
        at = (x.flatten(1).double() - self.center) @ self.axes
        return at / self.deviations if whitened else at


def principal(x: Tensor, count: int = COMPONENTS) -> Components:
    """Compute the `count` leading components of `x` `[N, *shape]` that have any variance."""
    flat = x.flatten(1).double()
    center = flat.mean(0)
    flat = flat - center
    wide = flat.shape[1] > len(flat)
    squares, vectors = torch.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    squares, vectors = squares.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = max(1, int((squares > 1e-9 * squares[0]).sum()))
    roots = squares[:kept].clamp_min(1e-24).sqrt()
    axes = flat.T @ vectors[:, :kept] / roots if wide else vectors[:, :kept]
    return Components(center, axes, roots / (len(x) - 1) ** 0.5)


def classifier(runner: ExperimentRunner) -> Classifier:
    """Return the network whose features compare samples with data: one for all seeds, of `train_classifier`."""
    return runner.get(CLASSIFIER, runner.seeds[0])


def features_named(runner: ExperimentRunner) -> str:
    """Name its features in words."""
    learned = {"class": "the class", "rotation": "how a picture was turned", "flip": "how a picture was mirrored"}
    task = classifier(runner).task
    return f"features of a small network that learned {learned.get(task, 'to give examples back')} on the same data"


def distance(runner: ExperimentRunner, a: Tensor, b: Tensor) -> float:
    """Compute the Frechet distance of stored values `[N, *shape]` and `[M, *shape]` in the classifier's features.

    The features of the training split have a total variance of 1. Never comparable with published "FID".
    """
    look = classifier(runner).features
    return frechet_distance(look(a).double().numpy(), look(b).double().numpy())


def row_of(x: Tensor, schema: Schema) -> Image:
    """Render examples `[N, *shape]` in a row; small pictures are enlarged."""
    scale = max(1, VIEWABLE // min(schema.shape[1:])) if schema.rank == 2 else 1
    return image_grid(x, schema, len(x), scale=scale)


def _classifier(runner: ExperimentRunner, seed: int, seconds: float) -> Classifier:
    started = time.perf_counter()
    train_classifier(runner.data, seen=TRIED * BATCH, seed=seed)
    pace = (time.perf_counter() - started) / (TRIED * BATCH)
    seen = SEEN if seconds == float("inf") else int(min(SEEN, max(seconds / pace, 20 * BATCH)))
    return train_classifier(runner.data, seen=seen, seed=seed)


CLASSIFIER = TrainingJob("classifier", _classifier, once=True)
