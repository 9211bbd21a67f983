"""Find the pixels that a latent can change, exactly, by one pass of the decoder.

Latents are set to NaN, and every pixel that depends on them becomes NaN, whatever the decoder is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel

GRIDS = (9, 17, 33, 65)
"""Positions a side of the grids that the decoder is probed on."""


@torch.no_grad()
def receptive_field(model: Model, level: int = -1) -> tuple[int, int, int, int] | None:
    """Find how many pixels above, below, left and right of its cell a latent can change; None: all of them.

    The decoder is probed on grids of growing size.

    Args:
        level: level of codes, 0 being the coarsest.
    """
    if len(model.latent_shape) == 1:
        return None
    widths, number = [model.latent_shape[0]], 0
    if isinstance(model, CodeModel):
        widths = [q.latent_shape[0] for q in model.levels]
        number = range(len(widths))[level]
    times = 1 << (len(widths) - 1 - number)
    channels = slice(sum(widths[:number]), sum(widths[: number + 1]))
    label = torch.zeros(1, dtype=torch.int64, device=model.device)
    for side in GRIDS:
        z = torch.zeros(1, model.latent_shape[0], side * times, side * times, device=model.device)
        cell = slice(side // 2 * times, (side // 2 + 1) * times)
        z[:, channels, cell, cell] = torch.nan
        far = undecided(model, z, label)
        rows, columns = far.any(1).nonzero().flatten().tolist(), far.any(0).nonzero().flatten().tolist()
        pixels = far.shape[0] // side
        top, end = side // 2 * pixels, (side // 2 + 1) * pixels
        if rows[0] and columns[0] and rows[-1] + 1 < far.shape[0] and columns[-1] + 1 < far.shape[1]:
            return top - rows[0], rows[-1] + 1 - end, top - columns[0], columns[-1] + 1 - end
    return None


def undecided(model: Model, z: Tensor, label: Tensor | None) -> Tensor:
    """Pixels `[H, W]` whose parameters are NaN when z `[1, D, h, w]` is decoded."""
    assert isinstance(model, CodeModel | LatentVariableModel)
    sees = model.conditional and not model.levels
    return model.decoder(z, label if sees else None)[0].isnan().any(0)
