"""Exact search in an index: the nearest to each query, and all pairs within a threshold, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tessella.foundation.errors import SpecError, option
from tessella.foundation.progress import tracking
from tessella.tasks.search.distances import BLOCK, Measure
from tessella.tasks.search.features import Features
from tessella.tasks.search.index_file import Index

SPARE = 16
"""Candidates beyond those asked for whose distances are computed once more, without cancellation."""


@final
@dataclass(frozen=True)
class Neighbours:
    """The nearest to each of Q examples, nearest first: `rows` `[Q, k]` of the index, and `distances` `[Q, k]`."""

    rows: Tensor
    distances: Tensor


@final
@dataclass(frozen=True)
class Pairs:
    """Rows of the index that lie near each other, nearest first.

    Attributes:
        rows: `[P, 2]`, the smaller first.
        distances: `[P]`.
        total: how many there are; more than P if the farther ones were left out.
        threshold: below which they lie.
    """

    rows: Tensor
    distances: Tensor
    total: int
    threshold: float


@torch.no_grad()
def nearest(index: Index, queries: Features, k: int, space: str = "latent", *, block: int = BLOCK) -> Neighbours:
    """Find the k examples of the index nearest to each query; of equally near ones those that come first.

    Args:
        queries: what `features` gives.
        k: more than the index holds means all.
        block: rows that are compared at once; it bounds the memory and changes nothing else.

    Raises:
        SpecError: if k is less than 1, or there is no such space.
    """
    if k < 1:
        raise SpecError(f"{option('count')} must be at least 1, got {k}", code="out-of-range", option="count")
    rows, measure = _of_space(index, space), Measure(space, index.scale)
    asked, kept = measure.ready(queries[space]), min(k + SPARE, len(index))
    best = torch.full((len(asked), 0), torch.inf, dtype=torch.float64)
    at = torch.zeros(len(asked), 0, dtype=torch.int64)
    for first in range(0, len(index), block):
        some = measure.ready(rows[first : first + block])
        here = torch.arange(first, first + len(some)).expand(len(asked), -1)
        best, at = torch.cat([best, measure.between(asked, some)], 1), torch.cat([at, here], 1)
        # what is added makes the first of equals the nearest
        order = (best + 1e-12 * at).topk(min(kept, best.shape[1]), largest=False).indices
        best, at = best.gather(1, order), at.gather(1, order)
    # each query by itself: how numbers are added hangs on how many queries there are
    near = [measure.exact(asked[i : i + 1], measure.ready(rows[some])[None]) for i, some in enumerate(at)]
    exact = torch.cat(near).double()
    order = (exact + 1e-12 * at).argsort(1)[:, :k]
    return Neighbours(at.gather(1, order), exact.gather(1, order).float())


@torch.no_grad()
def duplicates(
    index: Index,
    space: str = "latent",
    threshold: float | None = None,
    *,
    most: int = 10_000,
    block: int = BLOCK // 4,
) -> Pairs:
    """Find all pairs of the index that are not farther from each other than a threshold.

    Args:
        threshold: None: `index.copies`, so that 95 % of slightly altered copies would be found.
        most: pairs that are kept, the nearest.
        block: rows that are compared at once.

    Raises:
        SpecError: if there is no such space, or the threshold is negative.
    """
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise SpecError(
            f"{option('threshold')} must be a number from 0 up, got {threshold}",
            code="out-of-range",
            option="threshold",
        )
    rows, measure = _of_space(index, space), Measure(space, index.scale)
    limit = index.copies[space] if threshold is None else threshold
    starts = range(0, len(index), block)
    found, apart, total = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0), 0
    with tracking("comparing", len(starts) * (len(starts) + 1) // 2) as advance:
        for i in starts:
            a = measure.ready(rows[i : i + block])
            for j in starts[i // block :]:
                b = a if i == j else measure.ready(rows[j : j + block])
                slack = 0.0 if measure.codes else 1e-3 * float(a.square().mean().sqrt())
                near = (measure.between(a, b) <= limit + slack).nonzero()
                near = near[near[:, 0] + i < near[:, 1] + j]
                if len(near):
                    exact = torch.cat([measure.exact(a[p[:, 0]], b[p[:, 1]][:, None])[:, 0] for p in near.split(block)])
                    near, exact = near[exact <= limit], exact[exact <= limit]
                    total += len(near)
                    found = torch.cat([found, near + torch.tensor([i, j])])
                    apart = torch.cat([apart, exact])
                    order = apart.argsort(stable=True)[:most]
                    found, apart = found[order], apart[order]
                advance()
    return Pairs(found, apart, total, limit)


def _of_space(index: Index, space: str) -> Tensor:
    if space not in index.features:
        there = ", ".join(index.features)
        raise SpecError(f"the index has no space {space!r}; there are: {there}", code="no-such-space", space=space)
    return index.features[space]
