"""Sharpness: how much of the fine detail of data its samples have.

A picture's cosine transform (DCT-II, orthonormal, so the squares of its coefficients sum to those of the pixels, and no
edge is wrapped round) has the coefficient (k, l) at the frequency (k / H, l / W), counted in units of Nyquist's, the
finest stripes that the pixels can show. **High-frequency energy** is what lies above a quarter of it,

    sum over sqrt((k / H)^2 + (l / W)^2) > 1/4 of c_kl^2, per pixel and channel, in squared units of the range,

and **sharpness** is its mean over the samples as a share of its mean over data: 1 as sharp, below blurred, above noisy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella.core.schema import Schema
from tessella.evaluation.results import Against
from tessella.foundation.errors import SpecError

CUT = 0.25
"""Of Nyquist's frequency."""
FEWEST = 2


def high_frequency_energy(x: Tensor, schema: Schema) -> Tensor:
    """Stored values `[B, C, *spatial]` to their energy above the cut `[B]`, float64, of a range of length 1.

    Raises:
        SpecError: if the examples are vectors, or too small to have such frequencies.
    """
    sides = schema.spatial
    if max(sides, default=0) < FEWEST:
        raise SpecError("vectors, and pictures of one pixel, have no frequencies", code="no-frequencies")
    unit = (x.detach().cpu().double() - schema.values.low) / schema.values.span
    across = (torch.arange(sides[-1]) / sides[-1]).double()
    if schema.rank == 2:
        unit = _cosines(sides[0]) @ unit
        across = torch.hypot((torch.arange(sides[0]) / sides[0])[:, None].double(), across)
    coefficients = unit @ _cosines(sides[-1]).T
    return coefficients.square()[:, :, across > CUT].sum((1, 2)) / schema.dims


def sharpness(samples: Tensor, data: Tensor, others: Tensor, schema: Schema) -> Against:
    """High-frequency energy of samples over that of data; beside it that of other data over the same.

    Args:
        samples: `[N, C, H, W]` in stored units.
        data: `[M, C, H, W]`, what both are compared with.
        others: `[K, C, H, W]`, more of the data.

    Returns:
        Shares with their standard errors, to first order.
    """
    ours, theirs, held = (high_frequency_energy(x, schema) for x in (samples, data, others))
    value, error = _share(ours, theirs)
    floor, floor_error = _share(held, theirs)
    return Against(value, error, floor, floor_error)


def _share(above: Tensor, below: Tensor) -> tuple[float, float]:
    """The ratio of two means and its standard error (the delta method)."""
    a, b = float(above.mean()), float(below.mean())
    if b == 0:
        return (1.0 if a == 0 else math.inf), 0.0
    spread = float(above.var() / len(above) + (a / b) ** 2 * below.var() / len(below))
    return a / b, math.sqrt(spread) / b


def _cosines(size: int) -> Tensor:
    """The DCT-II as an orthogonal matrix `[size, size]`, a row a frequency."""
    k, n = torch.arange(size).double()[:, None], torch.arange(size).double()
    rows = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
