"""Nearest codes on a CUDA device, in one kernel that stores no scores. Imported only if triton is installed.

Each program loops over all codes for a block of vectors and keeps the best score: memory is O(N + K D).
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


@triton.jit
def _search(z, table, half, codes, N, G, K, D, ROWS: tl.constexpr, SPAN: tl.constexpr, DEPTH: tl.constexpr):
    group = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    place = tl.zeros([ROWS], tl.int64)
    for first in range(0, K, SPAN):
        code = first + tl.arange(0, SPAN)
        score = tl.zeros([ROWS, SPAN], tl.float32)
        for start in range(0, D, DEPTH):
            d = start + tl.arange(0, DEPTH)
            at_z = z + (row[:, None] * G + group) * D + d[None, :]
            at_e = table + (group.to(tl.int64) * K + code[None, :]) * D + d[:, None]
            a = tl.load(at_z, mask=(row[:, None] < N) & (d[None, :] < D), other=0.0)
            b = tl.load(at_e, mask=(code[None, :] < K) & (d[:, None] < D), other=0.0)
            score += tl.dot(a, b, input_precision="ieee")
        offset = tl.load(half + group * K + code, mask=code < K, other=float("-inf"))
        top, at = tl.max(score + offset[None, :], 1, return_indices=True)
        place = tl.where(top > best, first + at, place)
        best = tl.where(top > best, top, best)
    tl.store(codes + row * G + group, place, mask=row < N)


def fused_nearest_codes(z: Tensor, table: Tensor) -> Tensor:
    """Compute `tessella.bottlenecks.nearest.nearest_codes` for float32 tensors on one CUDA device."""
    n, groups, dims = z.shape
    size = table.shape[1]
    z, table = z.contiguous(), table.contiguous()
    half = table.square().sum(2).mul_(-0.5)
    codes = torch.empty(n, groups, dtype=torch.int64, device=z.device)
    rows, span, depth = 64, 64, min(64, max(16, triton.next_power_of_2(dims)))
    with torch.cuda.device_of(z):
        grid = triton.cdiv(n, rows), groups
        _search[grid](z, table, half, codes, n, groups, size, dims, rows, span, depth)  # pyright: ignore[reportIndexIssue]
    return codes
