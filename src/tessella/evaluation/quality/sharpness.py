"""Measures sharpness: the high-frequency energy of samples relative to that of data.

The cosine transform of a picture (DCT-II, orthonormal: the squares of the coefficients sum to those of the pixels, and
edges are not wrapped round) has the coefficient c_kl at the frequency (k / H, l / W), in units of the Nyquist
frequency, the finest stripes that pixels can show. **High-frequency energy** is the energy above a quarter of it,

    sum over sqrt((k / H)^2 + (l / W)^2) > 1/4 of c_kl^2, per pixel and channel, in squared units of the range,

and **sharpness** is its mean over samples divided by its mean over data: 1 as sharp, below 1 blurred, above 1 noisy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella.core.schema import Schema
from tessella.evaluation.results import Against
from tessella.foundation.errors import SpecError

CUT = 0.25
"""Cut-off, as a fraction of the Nyquist frequency."""
FEWEST = 2


def high_frequency_energy(x: Tensor, schema: Schema) -> Tensor:
    """Compute the energy above the cut-off, `[B]` float64, of stored values `[B, C, *spatial]`.

    Values are scaled to a range of length 1.

    Raises:
        SpecError: if the examples are vectors, or too small to have such frequencies.
    """
    sides = schema.spatial
    if max(sides, default=0) < FEWEST:
        raise SpecError("vectors and pictures of one pixel have no frequencies", code="no-frequencies")
    unit = (x.detach().cpu().double() - schema.values.low) / schema.values.span
    across = (torch.arange(sides[-1]) / sides[-1]).double()
    for side in sides[:-1]:
        unit = _cosines(side) @ unit
        across = torch.hypot((torch.arange(side) / side)[:, None].double(), across)
    coefficients = unit @ _cosines(sides[-1]).T
    return coefficients.square()[:, :, across > CUT].sum((1, 2)) / schema.dims


def sharpness(samples: Tensor, data: Tensor, others: Tensor, schema: Schema) -> Against:
    """Compute the sharpness of samples against data, and of other data against the same data.

    Args:
        samples: `[N, C, H, W]` in stored units.
        data: `[M, C, H, W]`, the reference of both.
        others: `[K, C, H, W]`, more of the data.

    Returns:
        Ratios with their standard errors, to first order.
    """
    ours, theirs, held = (high_frequency_energy(x, schema) for x in (samples, data, others))
    value, error = _share(ours, theirs)
    floor, floor_error = _share(held, theirs)
    return Against(value, error, floor, floor_error)


def _share(above: Tensor, below: Tensor) -> tuple[float, float]:
    """Compute the ratio of two means and its standard error (delta method)."""
    a, b = float(above.mean()), float(below.mean())
    if b == 0:
        return (1.0 if a == 0 else math.inf), 0.0
    spread = float(above.var() / len(above) + (a / b) ** 2 * below.var() / len(below))
    return a / b, math.sqrt(spread) / b


def _cosines(size: int) -> Tensor:
    """Compute the DCT-II as an orthogonal matrix `[size, size]`, one frequency per row."""
    k, n = torch.arange(size).double()[:, None], torch.arange(size).double()
    rows = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
