"""Causal convolutions: features of each position of a grid from those before it in raster order.

These are the two stacks of the gated PixelCNN (van den Oord et al. 2016, "Conditional image generation with PixelCNN
decoders", section 2.2 and figure 2), which together have no blind spot: a vertical stack over the rows above, and a
horizontal stack over the positions to the left, which gets the vertical features at every layer. Causality comes from
shifts instead of masks: convolutions are padded at the top and at the left only, as in PixelCNN++ (Salimans et al.
2017, section 2.3), so that nothing is multiplied by zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, SIDE, LEFT = 3, 3, 4
"""Receptive field of the first layer: rows above, positions to either side of the one above, positions to the left."""


@final
class GatedLayer(nn.Module):
    """Layer of both stacks: `v + gate(K_v * v)`, then `h + gate(K_h * h + W v)`, with `gate(a, b) = a sigmoid(b)`.

    K_v is 2 x 3 and covers the position's row and the one before (the stack starts a row above its position); K_h is 1
    x 2. The gate is that of PixelCNN++, without the tanh.

    Args:
        above: channels of the vertical stack.
        width: channels of the horizontal stack.
        scale: factor on the initial weights; 1 / sqrt(layers) keeps the variance of the sum.
    """

    def __init__(self, above: int, width: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Conv2d(above, 2 * above, (2, 3))
        self.right = nn.Conv2d(width, 2 * width, (1, 2))
        self.link = nn.Conv2d(above, 2 * width, 1, bias=False)
        with torch.no_grad():
            for conv in (self.down, self.right, self.link):
                conv.weight.mul_(scale)

    def forward(self, v: Tensor, h: Tensor, keep: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        dv = gate(self.down(F.pad(v, (1, 1, 1, 0))), 1)
        v = v + dv if keep is None else torch.addcmul(v, dv, keep[0].to(dv.dtype))
        dh = gate(self.right(F.pad(h, (1, 0))) + self.link(v), 1)
        return v, h + dh if keep is None else torch.addcmul(h, dh, keep[1].to(dh.dtype))


def gate(u: Tensor, axis: int) -> Tensor:
    """Compute `a * sigmoid(b)` for the two halves of `u`."""
    a, b = u.chunk(2, axis)
    return a * torch.sigmoid(b)


@final
class CausalConv(nn.Module):
    """Maps values `[B, inputs, H, W]` to features `[B, width, H, W]` of the values before each position.

    Args:
        inputs: channels of the values.
        width: channels of the horizontal stack and of the features.
        depth: number of layers.
        context: channels of a feature map added at each position; 0: none.
    """

    def __init__(self, inputs: int, width: int, depth: int, *, context: int = 0) -> None:
        super().__init__()
        self.inputs, self.width, self.above = inputs, width, width
        self.top = nn.Conv2d(inputs, self.above, (ROWS, 2 * SIDE + 1))
        self.left = nn.Conv2d(inputs, width, (1, LEFT))
        self.context = nn.Conv2d(context, self.above + width, 1) if context else None
        self.layers = nn.ModuleList([GatedLayer(self.above, width, 1 / math.sqrt(depth)) for _ in range(depth)])
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Compute the features of all positions at once.

        Args:
            x: `[B, inputs, H, W]`, or `[B, inputs, T]`.
            context: `[B, context, H, W]`; B, H or W may be 1 to share it.
            keep: dropout, `[B, depth, 2 width]`: factors on each layer's residual, for each channel of the two stacks.
        """
        if x.dim() == 3:  # a signal is a single row
            above = None if context is None else context.unsqueeze(2)
            return self(x.unsqueeze(2), above, keep).squeeze(2)
        x = x.contiguous(memory_format=torch.channels_last)
        v = self.top(F.pad(x, (SIDE, SIDE, ROWS, -1)))
        h = self.left(F.pad(x, (LEFT, -1)))
        if self.context is not None and context is not None:
            to_v, to_h = self.context(context).split([self.above, self.width], 1)
            v, h = v + to_v, h + to_h
        for number, layer in enumerate(self.layers):
            parts = None
            if keep is not None:
                of_v, of_h = keep[:, number, :, None, None].split([self.above, self.width], 1)
                parts = of_v, of_h
            v, h = layer(v, h, parts)
        return F.silu(self.last(F.silu(h)))

    def incremental(self, batch: int, height: int, width: int, context: Tensor | None) -> IncrementalCausalConv:
        """Make an incremental decoder of `batch` grids `[inputs, height, width]`."""
        return IncrementalCausalConv(self, batch, height, width, context)


@final
class IncrementalCausalConv:
    """`CausalConv` one position at a time, reusing the results of earlier positions. No gradients.

    At the start of a row the vertical stack is computed for the whole row, then the horizontal stack position by
    position, in the weights' precision whatever the autocast.

    Args:
        network: the network; its weights are copied now.
        batch, height, width: B, H, W.
        context: as in `CausalConv.forward`.
    """

    @torch.no_grad()
    def __init__(self, network: CausalConv, batch: int, height: int, width: int, context: Tensor | None = None) -> None:
        like = network.last.weight
        self._network, self._width, self._row, self._column = network, width, 0, 0
        layers = cast(Iterable[GatedLayer], network.layers)
        self._cells = [_Cell(layer, batch, width) for layer in layers]
        self._entry = _flat(network.left)
        self._exit = _flat(network.last)
        self._rows = like.new_zeros(batch, ROWS, width + 2 * SIDE, network.inputs)
        self._values = like.new_zeros(batch, LEFT + width, network.inputs)
        self._contexts: Tensor | None = None
        if network.context is not None and context is not None:
            with torch.autocast(like.device.type, enabled=False):
                vectors = network.context(context.to(like.dtype)).expand(batch, -1, height, width)
            self._contexts = vectors.permute(2, 0, 3, 1)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Compute the features `[B, width]` of the next position, equal to those of `CausalConv.forward`."""
        with torch.autocast(self._rows.device.type, enabled=False):
            if self._column == 0:
                self._begin_row()
            c = self._column
            h = torch.addmm(self._lefts[:, c], self._values[:, c : c + LEFT].flatten(1), self._entry[0])
            for cell in self._cells:
                h = cell(h, c)
            bias, weight = self._exit[1], self._exit[0]
            return F.silu(torch.addmm(bias, F.silu(h), weight))

    @torch.no_grad()
    def append(self, vectors: Tensor) -> None:
        """Append the values `[B, inputs]` of this position and move to the next."""
        self._values[:, LEFT + self._column] = vectors
        self._column += 1
        if self._column == self._width:
            self._rows = self._rows.roll(-1, 1)
            self._rows[:, -1, SIDE : SIDE + self._width] = self._values[:, LEFT:]
            self._values.zero_()
            self._row, self._column = self._row + 1, 0

    def _begin_row(self) -> None:
        """Compute this row's vertical stack and its input to the horizontal stack."""
        v = self._network.top(self._rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, 0]
        lefts = self._entry[1].expand(*v.shape[:2], -1)
        if self._contexts is not None:
            to_v, to_h = self._contexts[self._row].split([self._network.above, self._network.width], 2)
            v, lefts = v + to_v, lefts + to_h
        self._lefts = lefts
        for cell in self._cells:
            v = cell.begin_row(v)


@final
class _Cell:
    """Weights of one layer as matrices, with its inputs of the current row, `[B, columns, channels]`."""

    def __init__(self, layer: GatedLayer, batch: int, width: int) -> None:
        self.layer = layer
        self.weight, self.bias = _flat(layer.right)
        self.link = _flat(layer.link)[0]
        self.v = self.weight.new_zeros(batch, 2, width + 2, layer.link.in_channels)
        self.h = self.weight.new_zeros(batch, width + 1, layer.right.in_channels)

    def begin_row(self, v: Tensor) -> Tensor:
        """Compute the next row of the vertical stack: `[B, W, above]` to the next layer's input."""
        self.v[:, 0] = self.v[:, 1]
        self.v[:, 1, 1:-1] = v
        v = v + gate(self.layer.down(self.v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, 0], 2)
        self.told = v @ self.link + self.bias
        return v

    def __call__(self, h: Tensor, column: int) -> Tensor:
        """Compute the horizontal stack at one position: `[B, width]` to the next layer's input."""
        self.h[:, column + 1] = h
        seen = self.h[:, column : column + 2].flatten(1)
        return h + gate(torch.addmm(self.told[:, column], seen, self.weight), 1)


def _flat(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Convert a one-row convolution to a matrix `[columns * inputs, outputs]` and a bias `[outputs]`."""
    weight = conv.weight.detach()[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()
    return weight, weight.new_zeros(weight.shape[1]) if conv.bias is None else conv.bias.detach()


@final
class BlockHead(nn.Module):
    """Maps features f of a block and its previous pixels to the parameters of each pixel.

    Those of pixel j are `W_j silu(g_j(u_j + sum_(i<j) V_ji y_i))`, with `u = U f`, the pixels' values y and a residual
    layer g_j. They are computed for all j at once if the values are known, and one after another when sampling.

    Args:
        features: channels of f, `[B, features, h, w]`.
        values: channels of a pixel's value.
        pixels: number of pixels per block.
        outputs: number of parameters per pixel.
    """

    def __init__(self, features: int, values: int, pixels: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.values, self.pixels, self.outputs = features, values, pixels, outputs
        everything = pixels * features
        self.entry = nn.Conv2d(features, everything, 1)
        self.earlier = nn.Conv2d(values * pixels, everything, 1, bias=False)
        self.mix = nn.Conv2d(everything, everything, 1, groups=pixels)
        self.exit = nn.Conv2d(everything, pixels * outputs, 1, groups=pixels)
        j, i = torch.arange(pixels).repeat_interleave(features), torch.arange(pixels).repeat_interleave(values)
        self.register_buffer("mask", (i[None] < j[:, None]).float()[..., None, None], persistent=False)
        self.mask: Tensor
        with torch.no_grad():
            self.mix.weight.mul_(0.3)
            self.exit.weight.mul_(0.1)

    def start_at(self, bias: Tensor) -> None:
        """Set the initial parameters of each pixel to `bias` `[outputs]`, nearly independent of f."""
        with torch.no_grad():
            cast(Tensor, self.exit.bias).copy_(bias.repeat(self.pixels))

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        """Compute the parameters `[B, pixels * outputs, h, w]` of all pixels.

        Args:
            features: `[B, features, h, w]`.
            values: `[B, pixels * values, h, w]`, pixel by pixel.
        """
        h = self.entry(features) + F.conv2d(values, self.earlier.weight * self.mask)
        h = h + self.mix(F.silu(h))
        return self.exit(F.silu(h))

    @torch.no_grad()
    def begin(self, features: Tensor) -> Tensor:
        """Compute the part of all pixels that depends on the features `[B, features]`: `[B, pixels, hidden]`."""
        return F.linear(features, self.entry.weight.flatten(1), self.entry.bias).unflatten(1, (self.pixels, -1))

    @torch.no_grad()
    def pixel(self, begun: Tensor, before: Tensor, j: int) -> Tensor:
        """Compute the parameters `[B, outputs]` of pixel j given the previous values `[B, j * values]`."""
        mine, results = slice(j * self.hidden, (j + 1) * self.hidden), slice(j * self.outputs, (j + 1) * self.outputs)
        earlier = self.earlier.weight.flatten(1)[mine, : j * self.values]
        h = begun[:, j] + before @ earlier.T
        h = h + F.linear(F.silu(h), self.mix.weight.flatten(1)[mine], cast(Tensor, self.mix.bias)[mine])
        return F.linear(F.silu(h), self.exit.weight.flatten(1)[results], cast(Tensor, self.exit.bias)[results])
