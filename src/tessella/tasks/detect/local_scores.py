"""Local scores: maps of how unusual each place of a picture is, standardised by normal pictures, and pooled.

The last part of the module has the heat maps of examples of any kind: what each position costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tessella.core.batches import READ, Batch, FixedBatch, fixed_batches
from tessella.core.schema import Schema
from tessella.foundation.errors import DataError
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.tasks.detect.local import (
    GRID,
    Coreset,
    LocalFeatures,
    LocalGaussian,
    Normalization,
    nearest_distance,
    smooth,
)

ALIGNED = 0.1
"""Pictures are aligned if knowing the place saves so many nats per feature (tiles 0.17, clothes 0.31, flowers 0.03)."""
POSITIONS = 1_500_000
"""Most positions of normal pictures, over all of them, whose features are fitted on."""
NUMBERS_COMPARED = 40_000_000
"""Most numbers of all the normal pictures with which whole pictures are compared."""
FEWEST_PICTURES = 10
"""Fewest normal pictures to fit local scores on."""
REST = 4
"""One of so many normal pictures standardises the maps and decides on alignment; the statistics are of the others."""
SMOOTHED = 1.0
"""Scale in positions by which maps are smoothed before they are pooled, and features before pictures are compared."""
TOP = 0.01
"""Share of the positions whose mean is the score of the pool `top`."""
POOLS = ("max", "top")
SOURCES = {
    "local": "features of a place against those of normal {examples}{where}",
    "latent": "latent of a place against those of normal {examples}",
    "distortion": "-log p(x | z) of a place by itself against that of normal {examples}",
    "rate": "cost of the latent of a place against that of normal {examples}",
}
NEAREST = "nearest"
COARSE = 16
"""Positions per axis at which whole pictures are compared."""


@final
class LocalScorer:
    """Computes maps and pooled scores of pictures, relative to normal pictures.

    A map is standardised by its mean and deviation over normal pictures: of each place if they are aligned, else of
    all places, after the part that the local features explain (bright, rough, edge) has been subtracted from those of
    the model.

    Args:
        model: model trained on normal pictures.
        inliers: normal pictures `[N, *shape]`; they may be those of the training.
        normalize: what the local features ignore.
        compare_rest: whether `nearest` compares with `rest` too, which then says nothing of new normal pictures.

    Attributes:
        aligned: whether places correspond between normal pictures.
        names: names of the pooled scores, in the order of `pooled`.
        rest: the normal pictures that standardise the maps; the statistics of features were not fitted on them.

    Raises:
        DataError: if there are too few pictures.
    """

    def __init__(
        self, model: Model, inliers: Batch, normalize: Normalization = "local-contrast", *, compare_rest: bool = True
    ) -> None:
        if len(inliers) < FEWEST_PICTURES:
            raise DataError(
                f"local scores need at least {FEWEST_PICTURES} normal pictures, and {len(inliers)} are given",
                code="too-few-normal-examples",
                needed=FEWEST_PICTURES,
            )
        self.model, schema = model, model.schema
        self._features = LocalFeatures(schema.shape, levels_of(schema), normalize)
        count = fitting_rows(len(inliers), schema.shape)
        found, networks = self._joined([self._measured(part) for part in self._parts(inliers[:count])], count)
        rest = np.arange(count) % REST == REST - 1
        fitted, held_out = found[~rest], found[rest]
        self.rest = inliers[:count][torch.from_numpy(rest)]
        by_place, everywhere = LocalGaussian.fit(fitted, True), LocalGaussian.fit(fitted, False)
        saved = everywhere.nats(held_out) - by_place.nats(held_out)
        self.aligned = saved > ALIGNED * held_out.shape[-1]
        self._normal = by_place if self.aligned else Coreset(fitted)
        self._latent = LocalGaussian.fit(networks["latent"][~rest], self.aligned) if "latent" in networks else None
        self._coarse = -(-max(found.shape[1:3]) // COARSE)
        more = [self._flat(self._features(part.x.numpy())) for part in inliers[count:].split(READ)]
        self._whole = np.concatenate([self._flat(found if compare_rest else fitted), *more])
        raw = self._raw(held_out, {name: values[rest] for name, values in networks.items()})
        self._standards = {
            name: _Standard(values, held_out, self.aligned, explained=name != "local") for name, values in raw.items()
        }
        self.names = (*(f"{name}-{pool}" for name in self._standards for pool in POOLS), NEAREST)

    def maps(self, batch: Batch) -> dict[str, np.ndarray]:
        """Compute the standardised maps of pictures, each `[B, h, w]`; higher is more unusual."""
        found = [self._maps(*self._measured(part)) for part in self._parts(batch)]
        return {name: np.concatenate([of[name] for of in found])[: len(batch)] for name in found[0]}

    def full_maps(self, batch: Batch, source: str) -> np.ndarray:
        """Compute one smoothed map at every pixel, `[B, H, W]`; its maximum is about the score `SOURCE-max`."""
        maps = torch.from_numpy(smooth(self.maps(batch)[source], SMOOTHED))[:, None]
        return F.interpolate(maps, self.model.schema.spatial, mode="nearest")[:, 0].numpy()

    def pooled(self, batch: Batch) -> np.ndarray:
        """Compute the scores `names` of pictures, `[B, scores]` float64."""
        return np.concatenate([self._pooled(*self._measured(part)) for part in self._parts(batch)])[: len(batch)]

    def _pooled(self, features: np.ndarray, networks: dict[str, np.ndarray]) -> np.ndarray:
        found = self._maps(features, networks).values()
        columns = [pool(smooth(values, SMOOTHED)) for values in found for pool in _POOLS]
        return np.stack([*columns, nearest_distance(self._flat(features), self._whole)], 1).astype(np.float64)

    def summary(self, name: str, examples: str) -> str:
        """Describe one of the scores in a line."""
        if name == NEAREST:
            return f"features of all places together against the most similar of the normal {examples}"
        source, _, pool = name.rpartition("-")
        where = " at the same place" if self.aligned else ", the most similar ones wherever they are"
        pooled = "the highest value" if pool == "max" else f"the mean of the highest {100 * TOP:g} %"
        return f"{SOURCES[source].format(examples=examples, where=where)}: {pooled}"

    def _flat(self, features: np.ndarray) -> np.ndarray:
        """Return the features of a coarser grid as rows, smoothed so that small shifts do not matter."""
        half = self._coarse // 2
        smoothed = gaussian_filter(features, (0, SMOOTHED, SMOOTHED, 0), mode="nearest", truncate=2)
        return smoothed[:, half :: self._coarse, half :: self._coarse].reshape(len(features), -1)

    def _parts(self, batch: Batch) -> Iterator[FixedBatch]:
        return fixed_batches(batch, self.model.device)

    def _measured(self, part: FixedBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute the features, and distortion, rate and latent of each place as far as the model has them.

        Of all rows, copies included, so that the result does not depend on the number of examples.
        """
        local = maps(self.model, Batch(part.x, part.label))
        values = {"distortion": local.error, "rate": local.surprise, "latent": local.latent}
        networks = {name: v.float().numpy() for name, v in values.items() if v is not None}
        return self._features(part.x.cpu().numpy()), networks

    @staticmethod
    def _joined(
        measured: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]], count: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Join what was measured, without the copies that fill the last part."""
        networks = {name: np.concatenate([of[name] for _, of in measured])[:count] for name in measured[0][1]}
        return np.concatenate([features for features, _ in measured])[:count], networks

    def _maps(self, features: np.ndarray, networks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: self._standards[name](v, features) for name, v in self._raw(features, networks).items()}

    def _raw(self, features: np.ndarray, networks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the maps before they are standardised, on the grid of the features."""
        of_model = {name: values for name, values in networks.items() if name != "latent"}
        if self._latent is not None:
            of_model["latent"] = self._latent.distance(networks["latent"])
        return {
            "local": self._normal.distance(features),
            **{name: self._resized(values, features) for name, values in of_model.items()},
        }

    @staticmethod
    def _resized(values: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Bring maps `[B, H, W]` to the grid of the features."""
        size, maps = features.shape[1:3], torch.from_numpy(values)[:, None]
        smaller = maps.shape[2] >= size[0] and maps.shape[3] >= size[1]
        resized = F.adaptive_avg_pool2d(maps, size) if smaller else F.interpolate(maps, size, mode="bilinear")
        return resized[:, 0].numpy()


def _top(values: np.ndarray) -> np.ndarray:
    """Return the mean of the highest share of the positions, `[B]`."""
    flat = values.reshape(len(values), -1)
    count = max(1, round(TOP * flat.shape[1]))
    return np.partition(flat, -count, 1)[:, -count:].mean(1)


_POOLS = (lambda values: values.reshape(len(values), -1).max(1), _top)


@final
class _Standard:
    """Standardises maps `[B, h, w]` by those of normal pictures.

    Args:
        values, features: maps and features of normal pictures.
        by_place: whether each place has its own mean and deviation.
        explained: whether the part that the features explain is subtracted first, if not `by_place`.
    """

    def __init__(self, values: np.ndarray, features: np.ndarray, by_place: bool, *, explained: bool) -> None:
        self._weights = _explained_by(features, values) if explained and not by_place else None
        left = self._less_explained(values, features)
        overall = float(left.std()) + 1e-6
        if by_place:
            self._mean = gaussian_filter(left.mean(0), 1.5, mode="nearest")
            self._deviation = gaussian_filter(left.std(0), 1.5, mode="nearest") + 0.3 * overall
        else:
            self._mean, self._deviation = left.mean(), overall

    def __call__(self, values: np.ndarray, features: np.ndarray) -> np.ndarray:
        return (self._less_explained(values, features) - self._mean) / self._deviation

    def _less_explained(self, values: np.ndarray, features: np.ndarray) -> np.ndarray:
        return values if self._weights is None else values - _with_sizes(features) @ self._weights


def _with_sizes(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.abs(features), np.ones_like(features[..., :1])], -1)


def _explained_by(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fit maps by the local features and their sizes: ridge regression."""
    known = _with_sizes(features).reshape(-1, 2 * features.shape[-1] + 1)
    gram = known.T @ known
    ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram + ridge, known.T @ values.ravel()).astype(np.float32)


def levels_of(schema: Schema) -> tuple[float, float]:
    """Return the lowest and the highest stored value."""
    return float(schema.values.low), float(schema.values.low + schema.values.span)


def say_alignment(scorer: LocalScorer) -> None:
    """Note what was decided about alignment."""
    if scorer.aligned:
        note("normal pictures are aligned: each place is compared with the same place of normal pictures")
    else:
        note("normal pictures are not aligned: places are compared with similar places of normal pictures")


def fitting_rows(count: int, shape: Sequence[int]) -> int:
    """Return how many of `count` normal pictures local scores are fitted on."""
    return min(count, max(FEWEST_PICTURES, POSITIONS // math.prod(_grid(shape, GRID))))


def useful_rows(count: int, shape: Sequence[int]) -> int:
    """Return how many of `count` normal pictures are of use: those to fit on, and more for the nearest pictures."""
    numbers = math.prod(_grid(shape, COARSE)) * 24 * shape[0]
    return min(count, max(fitting_rows(count, shape), NUMBERS_COMPARED // numbers))


def _grid(shape: Sequence[int], most: int) -> list[int]:
    stride = -(-max(shape[1:]) // most)
    return [-(-side // stride) for side in shape[1:]]


@final
@dataclass(frozen=True)
class Maps:
    """Heat maps of a batch, in nats.

    Attributes:
        error: -log p(x_i | z) of each position by itself, `[B, *spatial]`, or of each value of vectors, `[B, D]`. Its
            sum is the distortion at the latent's mean, if positions are independent given z.
        surprise: rate of the latent at each position, `[B, *spatial]`, which sums to the rate: -log p(code) for codes,
            KL for a grid of latents, spread evenly over the positions of each cell. None if the latent has no positions
            (vectors, one latent for the whole example) or no rate (an autoencoder).
        reconstruction: mean of p(x | z), `[B, *shape]` in stored units; None if that takes a pass over all positions.
        latent: latent of each position of its grid, `[B, *grid, D]`; None if it has no positions.
    """

    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None
    latent: Tensor | None


@torch.no_grad()
def maps(model: Model, batch: Batch) -> Maps:
    """Compute the heat maps of a batch at the posterior mean."""
    batch = batch.to(model.device)
    latent = model.encode(batch.x, batch.label)
    rate, p_x = model.rate(latent, batch.label), model.decode(latent.z, batch.label)
    reconstruction = None if model.likelihood.sequential_mean else p_x.mean.cpu()
    has_grid = len(model.latent_shape) == 1 + model.schema.rank > 1
    z = latent.z.movedim(1, -1).cpu() if has_grid else None
    # given its neighbours, what is smooth is ordinary, also inside a defect
    error = -p_x.independent.by_position(batch.x).cpu()
    return Maps(error, _surprise(model, rate and rate.per_unit), reconstruction, z)


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
