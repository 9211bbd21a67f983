"""The nearest vectors of codebooks, and what each code was used for, without ever storing N x K numbers.

Codebooks come in G groups that know nothing of one another: vectors `[N, G, D]` against tables `[G, K, D]`.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**20
"""Scores in a block, 4 MB: enough work between two calls, and still in the cache when the largest are looked for."""
SPAN = 2048
"""Codes in a block, at most."""


@torch.no_grad()
def nearest(z: Tensor, table: Tensor) -> Tensor:
    """argmin_k |z_n - e_k|^2 = argmax_k (z_n . e_k - |e_k|^2 / 2), a block of vectors and codes at a time.

    Args:
        z: `[N, G, D]` float32.
        table: `[G, K, D]` float32.

    Returns:
        `[N, G]` int64, all of them in 0 ... K - 1, whatever in z is not finite. Of several that are nearest, any.
    """
    if z.is_cuda and find_spec("triton"):
        from tessella.bottlenecks.fused import nearest as fused

        return fused(z, table)
    groups, size, _ = table.shape
    half = table.square().sum(2, keepdim=True).mul_(-0.5)
    span = min(size, SPAN)
    rows = min(max(1, BLOCK // (groups * span)), max(1, len(z)))
    space = z.new_empty(groups * span * rows)
    codes = torch.empty(z.shape[:2], dtype=torch.int64, device=z.device)
    for first in range(0, len(z), rows):
        block = z[first : first + rows].permute(1, 2, 0)
        values, places = [], []
        for at in range(0, size, span):
            part = slice(at, at + span)
            shape = groups, table[:, part].shape[1], block.shape[2]
            scores = torch.baddbmm(half[:, part], table[:, part], block, out=space[: math.prod(shape)].view(shape))
            value, place = _largest(scores, -(-shape[1] // torch.get_num_threads()))
            values.append(value)
            places.append(place + at)
        _, best = _largest(torch.cat(values, 1), size)
        codes[first : first + rows] = torch.cat(places, 1).gather(1, best)[:, 0].mT
    return codes


def _largest(scores: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """The largest in each span of K, and where in K it is: `[G, K, n]` to `[G, K / span, n]` each.

    As max pooling of a picture of K x 1 pixels and n channels: of torch's reductions on a CPU the only one that finds
    a place as fast as a value, and the spans are shared by the threads.
    """
    picture = scores[:, :, None].permute(0, 3, 1, 2)
    values, places = F.max_pool2d_with_indices(picture, (min(span, scores.shape[1]), 1), ceil_mode=True)
    return values[..., 0].mT, places[..., 0].mT


@torch.no_grad()
def per_code(z: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How often each code was used, `[G, K]` float32, and the sum of the vectors that it was used for, `[G, K, D]`.

    Args:
        z: `[N, G, D]`.
        codes: `[N, G]`.
        size: K.
    """
    _, groups, dims = z.shape
    flat = in_one_table(codes, size).flatten()
    count = torch.bincount(flat, minlength=groups * size).to(z.dtype)
    total = z.new_zeros(groups * size, dims).index_add_(0, flat, z.reshape(-1, dims))
    return count.view(groups, size), total.view(groups, size, dims)


def in_one_table(codes: Tensor, size: int) -> Tensor:
    """Codes `[N, G]` as rows of the table `[G * K, D]` of all groups."""
    groups = codes.shape[1]
    return codes if groups == 1 else codes + size * torch.arange(groups, device=codes.device)
