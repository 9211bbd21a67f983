"""Dequantisation: y = x + u with u ~ q(u | x) on [0, 1), so that a density of y bounds p(x).

log p(x) >= E_q [log p(x + u) - log q(u | x)] (Theis et al. 2016, section 3.1; Ho et al. 2019, section 3.1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.rng import Noise
from tessella.networks.conv import ResidualBlock, checkerboard, conv
from tessella.networks.mlp import Perceptron

EDGE = 2.0**-12
"""Smallest distance of u to 0 and 1: float32 still distinguishes x + u from the next value after a flow."""


class Dequantizer(nn.Module, ABC):
    """Distribution q(u | x) on the unit cube."""

    @abstractmethod
    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample u ~ q(u | x) in (0, 1), `[B, *shape]`, with log q(u | x) `[B]` in nats.

        `x` is `[B, *shape]` in network units.
        """


@final
class UniformDequantizer(Dequantizer):
    """Uniform dequantisation: u ~ U(0, 1)^D for any x."""

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return _inside(noise.uniform(*x.shape, device=x.device)), x.new_full((len(x),), _log_density(x))


@final
class VariationalDequantizer(Dequantizer):
    """Variational dequantisation by a flow given x: u = sigmoid(a + exp(b) e), with e standard logistic.

    For half of the numbers (a checkerboard, or every other position or number) a and b depend on x alone, for the
    others on x and the first half's u. It starts near uniform dequantisation, which is a = b = 0.

    Args:
        shape: `(C, *spatial)`.
        width, depth: size of the two networks.
    """

    board: Tensor

    def __init__(self, shape: tuple[int, ...], *, width: int, depth: int) -> None:
        super().__init__()
        channels, rank = shape[0], len(shape) - 1
        board = checkerboard(shape[1:] or shape)
        self.register_buffer("board", board.float(), persistent=False)
        self.first = _network(channels, 2 * channels, width, depth, rank)
        self.second = _network(2 * channels, 2 * channels, width, depth, rank) if board.any() else None

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        e = noise.uniform(*x.shape, device=x.device).clamp(1e-7, 1 - 1e-7).logit()
        shift, log_scale = _bounded(self.first(x), x)
        if self.second is not None:
            u = torch.sigmoid(shift + log_scale.exp() * e) * (1 - self.board)
            later = _bounded(self.second(torch.cat([x, u], 1)), x)
            shift, log_scale = (torch.lerp(a, b, self.board) for a, b in zip((shift, log_scale), later, strict=True))
        t = shift + log_scale.exp() * e
        log_q = F.logsigmoid(e) + F.logsigmoid(-e) - log_scale - F.logsigmoid(t) - F.logsigmoid(-t)
        return _inside(t.sigmoid()), log_q.flatten(1).sum(1) + _log_density(x)


def _inside(u: Tensor) -> Tensor:
    """Map `[0, 1]` to `[EDGE, 1 - EDGE]`."""
    return EDGE + (1 - 2 * EDGE) * u


def _log_density(x: Tensor) -> float:
    """Return the nats that `_inside` adds to the log-density of an example."""
    return -math.log1p(-2 * EDGE) * x[0].numel()


def _bounded(raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Split into shift and log scale, float32, bounded so that u stays away from the edges."""
    shift, log_scale = raw.to(x.dtype).chunk(2, 1)
    return 3 * (shift / 3).tanh(), log_scale.tanh()


def _network(inputs: int, outputs: int, width: int, depth: int, rank: int) -> nn.Module:
    if not rank:
        network = _OfVectors(inputs, outputs, width, depth)
        last: nn.Module = network.network.exit
    else:
        blocks = [ResidualBlock(width, 1 / math.sqrt(depth), rank) for _ in range(depth)]
        last = conv(rank, width, outputs, 3, padding=1)
        network = nn.Sequential(conv(rank, inputs, width, 3, padding=1), *blocks, nn.SiLU(), last)
    with torch.no_grad():
        last.weight.mul_(0.1)  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    return network


class _OfVectors(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.network = Perceptron(inputs, outputs, width=width, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, None)
