"""Nearest codebook vectors and statistics of the codes, without storing N x K numbers.

Codebooks have G independent groups: vectors `[N, G, D]` are compared with tables `[G, K, D]`.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.core.batches import even_block

BLOCK = 2**19
"""Scores per thread and block, 2 MB: they stay in the cache until the maximum is found."""
SPAN = 2048
"""Largest number of codes per block."""

TRITON = find_spec("triton") is not None


@torch.no_grad()
def nearest_codes(z: Tensor, table: Tensor) -> Tensor:
    """Compute argmin_k |z_n - e_k|^2 = argmax_k (z_n . e_k - |e_k|^2 / 2), block by block.

    Args:
        z: `[N, G, D]` float32.
        table: `[G, K, D]` float32.

    Returns:
        `[N, G]` int64 in 0 ... K - 1, even if z is not finite. Ties are broken arbitrarily.
    """
    if z.is_cuda and TRITON and len(z):
        from tessella.bottlenecks.nearest_triton import fused_nearest_codes

        return fused_nearest_codes(z, table)
    count, groups, dims = z.shape
    size = table.shape[1]
    half = table.square().sum(2, keepdim=True).mul_(-0.5)
    codes = torch.empty(count, groups, dtype=torch.int64, device=z.device)
    threads = torch.get_num_threads() if groups == 1 and z.device.type == "cpu" else 1
    span = min(size, SPAN)
    rows = even_block(count, max(1, BLOCK // (groups * span)) * threads)
    space = z.new_empty(groups * span * min(rows, count))
    for first in range(0, count, rows):
        block = z[first : first + rows]
        lanes = threads if len(block) % threads == 0 else 1
        right = block.view(lanes, -1, groups, dims).permute(2, 0, 3, 1).reshape(groups * lanes, dims, -1)
        best: list[tuple[Tensor, Tensor]] = []
        for at in range(0, size, span):
            left, bias = table[:, at : at + span], half[:, at : at + span]
            if lanes > 1:
                left, bias = left.expand(lanes, -1, -1), bias.expand(lanes, -1, -1)
            shape = (len(left), left.shape[1], right.shape[2])
            scores = torch.baddbmm(bias, left, right, out=space[: math.prod(shape)].view(shape))
            value, place = _largest(scores)
            best.append((value, place + at if at else place))
        place = best[0][1] if len(best) == 1 else _first_of(best)
        codes[first : first + rows] = place.view(groups, -1).mT
    return codes


def _first_of(best: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the position of the maximum over spans, given maxima and positions of each, `[G, n]`."""
    values, places = (torch.stack(parts, 1) for parts in zip(*best, strict=True))
    return places.gather(1, _largest(values)[1][:, None])[:, 0]


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value over K and its position: `[G, K, n]` to `[G, n]` each.

    On a CPU this is max pooling of an image of K x 1 pixels and n channels, the only reduction of torch that finds the
    position as fast as the value.
    """
    if scores.device.type != "cpu":
        values, places = scores.max(1)
        return values, places
    picture = scores[:, :, None].permute(0, 3, 1, 2)
    values, places = F.max_pool2d_with_indices(picture, (scores.shape[1], 1))
    return values[:, :, 0, 0], places[:, :, 0, 0]


@torch.no_grad()
def per_code(z: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Count the uses of each code, `[G, K]` float32, and sum its vectors, `[G, K, D]`.

    Args:
        z: vectors `[N, G, D]`.
        codes: codes of the vectors, `[N, G]`.
        size: K.
    """
    _, groups, dims = z.shape
    flat = in_one_table(codes, size).flatten()
    count = torch.bincount(flat, minlength=groups * size).to(z.dtype)
    total = z.new_zeros(groups * size, dims).index_add_(0, flat, z.reshape(-1, dims))
    return count.view(groups, size), total.view(groups, size, dims)


def in_one_table(codes: Tensor, size: int) -> Tensor:
    """Convert codes `[N, G]` to rows of one table `[G * K, D]` of all groups."""
    groups = codes.shape[1]
    return codes if groups == 1 else codes + size * torch.arange(groups, device=codes.device)
