"""Flow of vectors: autoregressive affine maps and rational-quadratic splines (Durkan et al. 2019), by zuko."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.transforms import MonotonicRQSTransform

from tessella.flows.transforms import Transform

LAYERS = 2


@final
class VectorFlow(Transform):
    """Flow from vectors `[B, D]` of about unit scale to independent standard normal numbers.

    Each layer has an affine and a spline map, each number's given those before it; the order is reversed from layer to
    layer. The networks use ReLUs, which learn sharp edges of a conditional density in half the updates that SiLUs take.
    A spline acts within [-5, 5] and is the identity outside. The inverse takes D passes per map.

    Args:
        dims: D.
        width, depth: units and hidden layers of each masked MLP.
        bins: bins of each spline.
        steps: number of layers.
    """

    def __init__(self, dims: int, *, width: int, depth: int, bins: int, steps: int = LAYERS) -> None:
        super().__init__()
        shared: dict[str, Any] = {"hidden_features": (width,) * depth, "activation": nn.ReLU, "residual": depth > 1}
        splines = (torch.Size((bins,)), torch.Size((bins,)), torch.Size((bins - 1,)))
        layers = []
        for number in range(steps):
            order: Any = torch.arange(dims).flip(0) if number % 2 else torch.arange(dims)
            layers.append(MaskedAutoregressiveTransform(dims, order=order, **shared))
            layers.append(
                MaskedAutoregressiveTransform(
                    dims, order=order, univariate=MonotonicRQSTransform, shapes=splines, **shared
                )
            )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        with torch.autocast(x.device.type, enabled=False):
            for layer in self.layers:
                x, log_det = layer().call_and_ladj(x)
                total = total + log_det
        return x, total

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            for layer in reversed(list(self.layers)):
                z = layer().inv(z)
        return z
