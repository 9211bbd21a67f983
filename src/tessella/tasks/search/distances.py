"""Distances between the features of examples, in one space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from tessella.tasks.search.features import Features

BLOCK = 1 << 13
"""Rows of an index that are looked at at once."""
FOUND_AGAIN = 0.95
"""Share of the altered copies that lie nearer to their originals than the threshold of near-duplicates."""


@final
class Measure:
    """Measures distances in one space; `scale` `[D]` multiplies latent numbers."""

    def __init__(self, space: str, scale: Tensor) -> None:
        self.codes, self.scale = space == "codes", scale

    def ready(self, rows: Tensor) -> Tensor:
        """Features as they are compared."""
        return rows if self.codes else rows.float() * self.scale

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """`[A, D]`, `[B, D]` to `[A, B]`; of real numbers by a product, which is less exact where they are near."""
        if self.codes:
            return torch.stack([(row != b).sum(1) for row in a]) / a.shape[1]
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
        return (squares.clamp_min(0) / a.shape[1]).sqrt()

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """`[A, D]`, `[A, n, D]` to `[A, n]`."""
        if self.codes:
            return (a[:, None] != b).sum(2) / a.shape[1]
        return (a[:, None] - b).square().mean(2).sqrt()


def distance_of_copies(space: str, copies: Iterable[tuple[Features, Features]], scale: Tensor) -> float:
    """The distance under which `FOUND_AGAIN` of altered copies lie from their originals."""
    measure = Measure(space, scale)
    each = [measure.exact(measure.ready(a[space]), measure.ready(b[space])[:, None])[:, 0] for a, b in copies]
    return float(torch.quantile(torch.cat(each).double(), FOUND_AGAIN))
