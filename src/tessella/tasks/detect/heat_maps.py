"""Heat maps of examples: what each position costs given the latent, and under the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tessella.core.batches import Batch
from tessella.models.base import Model


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
    return Maps(-p_x.by_position(batch.x).cpu(), _surprise(model, rate and rate.per_unit), reconstruction, z)


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
