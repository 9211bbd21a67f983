"""Residual MLPs for vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.contracts import Decoder, Encoder


class ResidualLayer(nn.Module):
    """Residual layer `x + linear(silu(linear(silu(x))))`; the last linear map starts small."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        with torch.no_grad():
            self.second.weight.mul_(scale)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Perceptron(nn.Module):
    """Maps `[B, inputs]`, and a label if any, to `[B, outputs]` through `depth` residual layers."""

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, classes: int = 0) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, width)
        self.label = nn.Embedding(classes, width) if classes else None
        self.trunk = nn.Sequential(*[ResidualLayer(width, 1 / math.sqrt(depth)) for _ in range(depth)])
        self.exit = nn.Linear(width, outputs)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.entry(x)
        if self.label is not None:
            h = h + self.label(label)
        return self.exit(F.silu(self.trunk(h)))


class VectorEncoder(Encoder):
    """Maps vectors `[B, D]` to features `[B, width]`."""

    def __init__(self, dims: int, *, width: int, depth: int, classes: int = 0) -> None:
        super().__init__()
        self.network = Perceptron(dims, width, width=width, depth=depth, classes=classes)
        self.feature_shape = (width,)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return F.silu(self.network(x, label))


class VectorDecoder(Decoder):
    """Maps latents `[B, D]` to parameters `[B, channels]`."""

    def __init__(self, latent: int, channels: int, *, width: int, depth: int, classes: int = 0) -> None:
        super().__init__()
        self.network = Perceptron(latent, channels, width=width, depth=depth, classes=classes)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        return self.network(z, label)

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Set the initial output to `bias` `[channels]`, nearly independent of z."""
        self.network.exit.weight.mul_(0.1)
        self.network.exit.bias.copy_(bias)
