"""Residual MLP that denoises vectors."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.networks.unet import NoiseLevel


class _Layer(nn.Module):
    """Residual layer `x + linear(silu(scale * linear(silu(x)) + shift))`; scale and shift depend on the noise level."""

    def __init__(self, width: int, features: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.level = nn.Linear(features, 2 * width)
        self.second = nn.Linear(width, width)
        with torch.no_grad():
            self.second.weight.mul_(scale)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale = self.level(level).chunk(2, dim=1)
        return x + self.second(F.silu(self.first(F.silu(x)) * (1 + scale) + shift))


@final
class DenoisingPerceptron(nn.Module):
    """Maps z_t `[B, D]` and its noise level gamma `[B]` to `[B, outputs]`.

    Args:
        dims: D.
        outputs: number of outputs.
        width: units per layer.
        depth: number of layers.
        classes: number of labels; 0: no labels.
    """

    def __init__(self, dims: int, outputs: int, *, width: int, depth: int, classes: int = 0) -> None:
        super().__init__()
        features = min(width, 128)
        self.level = NoiseLevel(features, classes)
        self.entry = nn.Linear(dims, width)
        self.trunk = nn.ModuleList([_Layer(width, features, 1 / math.sqrt(depth)) for _ in range(depth)])
        self.exit = nn.Linear(width, outputs)
        with torch.no_grad():
            self.exit.weight.mul_(0.1)
            nn.init.zeros_(self.exit.bias)

    def forward(self, z: Tensor, gamma: Tensor, label: Tensor | None = None) -> Tensor:
        level, h = self.level(gamma, label), self.entry(z)
        for layer in self.trunk:
            h = layer(h, level)
        return self.exit(F.silu(h))
