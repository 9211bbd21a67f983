"""Where an example does not fit: heat maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.core.batches import Batch
from tessella.models.base import Model
from tessella.models.codes import CodeModel


@final
@dataclass(frozen=True)
class Maps:
    """Where examples cost how much, in nats.

    Attributes:
        error: -log p(x | z) of each position, `[B, H, W]` or of vectors `[B, D]`; the sum is the distortion at the
            latent's mean.
        surprise: rate of the latent there: of codes -log p(code), of a grid of latents the KL, spread evenly
            over the pixels that a position stands for, `[B, H, W]`; the sum is the rate. None where the latent has no
            place: of vectors, of a latent that is one for the whole picture, and of an autoencoder.
        reconstruction: the mean of p(x | z), `[B, *shape]` in stored units; None where that takes a pass over all
            pixels.
    """

    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None


@torch.no_grad()
def maps(model: Model, batch: Batch) -> Maps:
    """The heat maps of a batch, at the posterior's mean."""
    x = batch.x.to(model.device)
    label = None if batch.label is None else batch.label.to(model.device)
    latent = model.encode(x, label)
    rate, drawing = model.rate(latent, label), model.decode(latent.z, label)
    sequential = model.likelihood.sequential_mean
    return Maps(
        -drawing.by_position(x).cpu(),
        _surprise(model, rate and rate.per_unit, x),
        None if sequential else drawing.mean.cpu(),
    )


def _surprise(model: Model, per_unit: Tensor | None, x: Tensor) -> Tensor | None:
    if per_unit is None or x.dim() != 4 or len(model.latent_shape) != 3:
        return None
    shapes = model.code_shapes if isinstance(model, CodeModel) else (model.latent_shape,)
    parts = per_unit.split([torch.Size(shape).numel() for shape in shapes], 1)
    found = x.new_zeros(len(x), *x.shape[2:], dtype=torch.float32)
    for part, shape in zip(parts, shapes, strict=True):
        found += _spread(part.reshape(len(x), *shape).sum(1), x.shape[2], x.shape[3])
    return found.cpu()


def _spread(grid: Tensor, height: int, width: int) -> Tensor:
    """Nats of positions `[B, h, w]` shared out evenly among the pixels that are nearest to each."""
    near = F.interpolate(grid[:, None], (height, width), mode="nearest")[:, 0]
    rows = torch.bincount((torch.arange(height) * grid.shape[1]) // height, minlength=grid.shape[1])
    columns = torch.bincount((torch.arange(width) * grid.shape[2]) // width, minlength=grid.shape[2])
    share = 1.0 / (rows[:, None] * columns[None]).clamp(min=1).to(grid)
    return near * F.interpolate(share[None, None], (height, width), mode="nearest")[:, 0]
