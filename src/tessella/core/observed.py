"""Examples that are observed in part: NaN stands for values that are missing or after the end of an example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def observed(x: Tensor) -> Tensor | None:
    """Return which values are observed, a bool tensor of the same shape; None if the type of x cannot hold NaN."""
    return ~x.isnan() if x.is_floating_point() else None


def zero_filled(x: Tensor) -> Tensor:
    """Replace the values that are not observed by 0."""
    return x.nan_to_num(0.0, torch.inf, -torch.inf) if x.is_floating_point() else x


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


def trimmed(x: Tensor, block: int) -> Tensor:
    """Cut off the blocks of `block` positions after the end of all signals `[B, C, T]`."""
    return x[..., : block * int(before_end(x, block).any(0).sum())]
