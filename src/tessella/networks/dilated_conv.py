"""Dilated causal convolutions: features of each sample of a signal from the thousands of samples before it.

This is the WaveNet of van den Oord et al. 2016 ("WaveNet: a generative model for raw audio", sections 2.1, 2.3 and 2.5)
without skip connections: the residual sum itself is the output. Each layer is a matrix product of a sample, an earlier
sample and the context. Its gradient is written by hand: nothing is joined or padded, which takes a quarter less time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FIRST = 16
"""Samples before the current one that the first layer sees."""
CYCLE = 11
"""Layers after which the dilations 1, 2, 4, ... start again: 2^11 samples."""


@final
class DilatedLayer(nn.Module):
    """Layer `h_t + gate(K_0 h_(t - dilation) + K_1 h_t + C c_t)`, with gate(a, b) = a sigmoid(b) and the context c.

    Args:
        width: channels of h.
        context: channels of c.
        dilation: distance of the earlier sample.
        scale: factor on the initial weights; 1 / sqrt(layers) keeps the variance of the sum.
    """

    def __init__(self, width: int, context: int, dilation: int, scale: float) -> None:
        super().__init__()
        self.dilation = dilation
        self.mix = nn.Conv1d(2 * width + context, 2 * width, 1)
        with torch.no_grad():
            self.mix.weight.mul_(scale)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        return cast(Tensor, _GatedSum.apply(h, context, self.mix.weight.squeeze(2), self.mix.bias, self.dilation))


class _GatedSum(torch.autograd.Function):
    """The function of `DilatedLayer`, for weights `[2 width, 2 width + context]`: K_0, K_1 and C side by side."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, context: Tensor | None, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        early, late, of_context = _by_input(weight, h)
        past = h[..., : max(0, h.shape[-1] - dilation)]
        y = torch.baddbmm(bias[:, None], late, h)
        if past.shape[-1]:
            y[..., dilation:].baddbmm_(early, past)
        if context is not None:
            y.baddbmm_(of_context, context)
        ctx.save_for_backward(h, context, weight, y)
        ctx.dilation = dilation
        return F.glu(y, 1).add_(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (by_sum,) = grad_outputs
        h, context, weight, y = ctx.saved_tensors
        early, late, of_context = _by_input(weight, h)
        width, past = h.shape[1], h[..., : max(0, h.shape[-1] - ctx.dilation)]
        by_y = torch.ops.aten.glu_backward(by_sum, y, 1)
        by_h, by_weight, by_context = torch.baddbmm(by_sum, late.mT, by_y), torch.zeros_like(weight), None
        if past.shape[-1]:
            later = by_y[..., ctx.dilation :]
            by_h[..., : past.shape[-1]].baddbmm_(early.mT, later)
            by_weight[:, :width] = (later @ past.mT).sum(0)
        by_weight[:, width : 2 * width] = (by_y @ h.mT).sum(0)
        if context is not None:
            by_weight[:, 2 * width :] = (by_y @ context.mT).sum(0)
            by_context = of_context.mT @ by_y
        return by_h, by_context, by_weight, by_y.sum((0, 2)), None


def _by_input(weight: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """Divide the weights of a layer into K_0, K_1 and C, for each example of `h` `[B, width, T]`."""
    return weight.expand(len(h), -1, -1).tensor_split((h.shape[1], 2 * h.shape[1]), 2)


@final
class DilatedConv(nn.Module):
    """Maps values `[B, inputs, T]` to features `[B, width, T]` of the values before each sample.

    It runs in float32 whatever the autocast: the eight bits of a bfloat16 blur what tells loud samples apart.

    Args:
        inputs: channels of the values.
        width: channels of the layers and of the features.
        depth: number of layers; their dilations are 1, 2, 4, ..., 1024, 1, 2, ...
        context: channels of a feature map that each layer sees at each sample; 0: none.
    """

    def __init__(self, inputs: int, width: int, depth: int, *, context: int = 0) -> None:
        super().__init__()
        self.inputs, self.width = inputs, width
        self.first = nn.Conv1d(inputs, width, FIRST)
        layers = [DilatedLayer(width, context, 2 ** (i % CYCLE), 1 / math.sqrt(depth)) for i in range(depth)]
        self.layers = cast(Sequence[DilatedLayer], nn.ModuleList(layers))
        self.last = nn.Conv1d(width, width, 1)

    @property
    def receptive_field(self) -> int:
        """Return the number of samples before a sample that its features depend on."""
        return FIRST + sum(layer.dilation for layer in self.layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Compute the features of all samples at once.

        Args:
            x: `[B, inputs, T]`, or `[B, inputs, 1, T]` for a result with such an axis.
            context: `[B, context, T]`, or `[B, context, 1, T]`.
        """
        if x.dim() == 4:
            return self(x.squeeze(2), None if context is None else context.squeeze(2)).unsqueeze(2)
        with torch.autocast(x.device.type, enabled=False):
            dtype = self.last.weight.dtype
            seen = None if context is None else context.to(dtype)
            h = self.first(F.pad(x.to(dtype), (FIRST, -1)))
            for layer in self.layers:
                h = layer(h, seen)
            return F.silu(self.last(F.silu(h)))

    def incremental(self, batch: int, height: int, width: int, context: Tensor | None) -> IncrementalDilatedConv:
        """Make an incremental decoder of `batch` signals `[inputs, 1, width]`; the height must be 1."""
        return IncrementalDilatedConv(self, batch, None if context is None else context.squeeze(2))


@final
class IncrementalDilatedConv:
    """`DilatedConv` one sample at a time: each layer keeps its last inputs in a ring. No gradients.

    Args:
        network: the network; its weights are copied now.
        batch: B.
        context: `[B, context, T]`.
    """

    @torch.no_grad()
    def __init__(self, network: DilatedConv, batch: int, context: Tensor | None = None) -> None:
        like = network.last.weight
        self._t = 0
        self._first, self._last = _matrix(network.first), _matrix(network.last)
        self._layers = [_matrix(layer.mix) for layer in network.layers]
        self._rings = [like.new_zeros(layer.dilation, batch, network.width) for layer in network.layers]
        self._values = like.new_zeros(batch, FIRST, network.inputs)
        self._context = None if context is None else context.to(like.dtype).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def step(self) -> Tensor:
        """Compute the features `[B, width]` of the next sample, equal to those of `DilatedConv.forward`."""
        with torch.autocast(self._values.device.type, enabled=False):
            context = [] if self._context is None else [self._context[self._t]]
            h = _product(self._first, self._values.flatten(1))
            for matrix, ring in zip(self._layers, self._rings, strict=True):
                place = ring[self._t % len(ring)]
                seen = torch.cat([place, h, *context], 1)
                place.copy_(h)
                h = h + F.glu(_product(matrix, seen), 1)
            return F.silu(_product(self._last, F.silu(h)))

    @torch.no_grad()
    def append(self, vectors: Tensor) -> None:
        """Append the values `[B, inputs]` of this sample and move to the next."""
        self._values = torch.cat([self._values[:, 1:], vectors[:, None].to(self._values.dtype)], 1)
        self._t += 1


def _matrix(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """Return a convolution as a matrix `[size * inputs, outputs]` and its bias `[outputs]`."""
    weight = conv.weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous()
    return weight, cast(Tensor, conv.bias).detach()


def _product(matrix: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return torch.addmm(matrix[1], x, matrix[0])
