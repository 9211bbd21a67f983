"""Principal components as a lossy codec: the baseline of reconstructions from a number of bits."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from tessella.data import Split

EXAMPLES = 2000
"""Largest number of training examples for the components."""
LEAST = 1e-7
"""Least variance of a component, as a share of the largest; float32 does not resolve smaller ones."""
HALVINGS = 40
MOST_BITS = 60.0


def principal_components(train: Split) -> PrincipalComponents:
    """Compute mean, axes and variances of training examples."""
    return PrincipalComponents(train.batch(train.random_rows(EXAMPLES)).x)


@final
class PrincipalComponents:
    """Codec that quantises principal components with one step and prices them under Gaussians.

    One step for all components is reverse water-filling: the components with the largest variances take most of the
    bits (Cover & Thomas 2006, section 10.3.3).

    Args:
        x: training examples `[N, *shape]`.
    """

    def __init__(self, x: Tensor) -> None:
        rows = x.flatten(1).float()
        self.mean = rows.mean(0)
        centred = rows - self.mean
        if wide := rows.shape[1] > len(rows):  # of the two matrices of products the smaller has all the variances
            squares, vectors = torch.linalg.eigh((centred @ centred.T).double())
        else:
            squares, vectors = torch.linalg.eigh((centred.T @ centred).double())
        kept = squares > LEAST * squares.max().clamp_min(1e-12)
        lengths, vectors = squares[kept].sqrt().float(), vectors[:, kept].float()
        self.axes = (vectors.T @ centred) / lengths[:, None] if wide else vectors.T
        self.deviations = lengths / math.sqrt(max(len(rows) - 1, 1))

    def error(self, x: Tensor, bits: float) -> float:
        """Compute the mean squared error per value of examples `[N, *shape]` coded with so many bits per example."""
        centred = x.flatten(1).float() - self.mean
        values = centred @ self.axes.T
        outside = float(centred.square().sum() - values.square().sum())
        if not len(self.axes):
            return outside / x.numel()
        low, high = -20.0, math.log2(max(float(self.deviations.max()), 1e-6)) + 10
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._bits(values, 2.0**middle) > bits else (low, middle)
        coded = (values / 2.0**high).round() * 2.0**high
        return (outside + float((values - coded).square().sum())) / x.numel()

    def _bits(self, values: Tensor, step: float) -> float:
        """Compute the mean bits per example of values quantised with a step."""
        half = step / 2
        centre = (values / step).round().abs() * step
        scale = self.deviations * math.sqrt(2)
        inside = torch.erf((centre + half) / scale) - torch.erf((centre - half) / scale)
        price = -(inside / 2).log2().clamp_min(-MOST_BITS)
        return float(price.sum() / len(values))
