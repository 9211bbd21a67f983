"""The nearest vectors of codebooks, and what each code was used for, without ever storing N x K numbers.

Codebooks come in groups that know nothing of one another: vectors `[G, N, D]` against tables `[G, K, D]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = 2**17
"""Numbers in a block of scores: as many as stay in a core's cache."""


@torch.no_grad()
def nearest(z: Tensor, table: Tensor) -> Tensor:
    """argmin_k |z_n - e_k|^2 = argmax_k (z_n . e_k - |e_k|^2 / 2), block by block.

    Args:
        z: `[G, N, D]` float32.
        table: `[G, K, D]` float32.

    Returns:
        `[G, N]` int64, all of them in 0 ... K - 1, whatever is not finite in z.
    """
    half = table.square().sum(2, keepdim=True).mul_(-0.5).mT
    rows = max(1, SCORES // (table.shape[0] * table.shape[1]))
    blocks = [torch.baddbmm(half, block, table.mT).argmax(2) for block in z.split(rows, 1)]
    return torch.cat(blocks, 1)


@torch.no_grad()
def per_code(z: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How often each code was used, `[G, K]` float32, and the sum of the vectors that it was used for, `[G, K, D]`.

    Args:
        z: `[G, N, D]`.
        codes: `[G, N]`.
        size: K.
    """
    groups, _, dims = z.shape
    flat = (codes + size * torch.arange(groups, device=z.device)[:, None]).flatten()
    count = torch.bincount(flat, minlength=groups * size).to(z.dtype)
    total = z.new_zeros(groups * size, dims).index_add_(0, flat, z.reshape(-1, dims))
    return count.view(groups, size), total.view(groups, size, dims)
