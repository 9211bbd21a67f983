"""Examples that are observed in part: NaN stands for values that are missing or after the end of an example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Schema

MOST_HIDDEN = 0.5
"""Largest share of the values of an example that is hidden from an encoder in training."""


def observed(x: Tensor) -> Tensor | None:
    """Return which values are observed, a bool tensor of the same shape; None if the type of x cannot hold NaN."""
    return ~x.isnan() if x.is_floating_point() else None


def zero_filled(x: Tensor) -> Tensor:
    """Replace the values that are not observed by 0."""
    return x.nan_to_num(0.0, torch.inf, -torch.inf) if x.is_floating_point() else x


def hide(x: Tensor, noise: Noise) -> Tensor:
    """Replace values of `[B, C, *spatial]` by NaN at random, so that an encoder learns to do without them.

    Of each example up to half is hidden: single values, or one stretch along the first spatial axis in all channels.
    """
    share = MOST_HIDDEN * noise.split("share").uniform(len(x), device=x.device).view(-1, *(1,) * (x.dim() - 1))
    hidden = noise.split("values").uniform(*x.shape, device=x.device) < share
    if x.dim() > 2:
        rows, how = x.shape[2], noise.split("stretch").uniform(len(x), 2, device=x.device)
        length = (share.flatten() * rows).round()
        start = (how[:, 0] * (rows - length + 1)).floor()
        row = torch.arange(rows, device=x.device)
        stretch = (row >= start[:, None]) & (row < (start + length)[:, None])
        stretch = stretch.view(len(x), 1, rows, *(1,) * (x.dim() - 3)).expand_as(hidden)
        hidden = torch.where((how[:, 1] < 0.5).view(share.shape), stretch, hidden)
    return x.masked_fill(hidden, torch.nan)


def count_observed(x: Tensor) -> int:
    """Count the values that are observed."""
    return x.numel() if (seen := observed(x)) is None else int(seen.sum())


def before_end(x: Tensor, block: int) -> Tensor:
    """Return which blocks of `block` positions of signals `[B, C, T]` begin before the signal's end: `[B, blocks]`.

    The end is after the last position with an observed value; gaps before it belong to the signal.
    """
    seen = (~x.isnan()).any(1)
    blocks = F.pad(seen, (0, -seen.shape[1] % block)).unflatten(1, (-1, block)).any(2)
    return blocks.flip(1).cummax(1).values.flip(1)


def extents(x: Tensor, schema: Schema) -> list[tuple[int, ...]]:
    """Return the size of each example `[B, *shape]`: height and width, or the length up to its end."""
    if not schema.lengths:
        return [tuple(x.shape[2:])] * len(x)
    return [(length,) for length in before_end(x, 1).sum(1).tolist()]


def trimmed(x: Tensor, block: int) -> Tensor:
    """Cut off the blocks of `block` positions after the end of all signals `[B, C, T]`."""
    return x[..., : block * int(before_end(x, block).any(0).sum())]
