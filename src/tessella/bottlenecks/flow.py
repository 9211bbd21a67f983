"""Flow posterior: a diagonal Gaussian followed by inverse autoregressive steps (Kingma et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import BoolTensor, Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions.constraints import Constraint
from torch.types import _size
from zuko.nn import MaskedMLP

from tessella.bottlenecks.gaussian import DiagonalGaussianModule, position_head
from tessella.core.contracts import Bottleneck
from tessella.core.outputs import BottleneckOutput
from tessella.core.rng import Noise
from tessella.networks.conv import conv, convolve, start_small

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
SETTLED = 1e-5
"""Relative change at which the inversion stops; float32 rounding is below it."""
FAR = 1e4
"""Bound on the inversion's estimates, so that a wrong one cannot overflow."""


@final
class FlowPosteriorModule(Bottleneck):
    """q(z | x) by inverse autoregressive flow: z_0 = mu + sigma * eps, z_t = m_t + g_t * z_{t-1} for t = 1 ... T.

    The shift m_t and the gate g_t depend on the preceding numbers, in an order that is reversed at each step, and on a
    context from the encoder (Kingma et al. 2016, section 3). The gate g_t = 2 sigmoid(s_t) is bounded, and 1 at the
    start. So

        log q(z_T | x) = sum log N(z_0; mu, sigma^2) - sum_t sum log g_t

    is known for each sample without further cost; sampling takes T passes whatever the size. Without noise z is the
    image of mu. At the start the posterior is nearly the plain Gaussian.

    Args:
        feature_shape: `(F,)` or `(F, *spatial)`; with spatial axes the steps are masked convolutions in raster order.
        channels: D, numbers in z (per position).
        flow_steps: number of steps T.
        width: channels of the steps' networks; doubled for vectors.
        context: number of channels of the context.
    """

    sequential_density = True

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        channels: int,
        *,
        flow_steps: int,
        width: int = 160,
        context: int = 128,
    ) -> None:
        super().__init__()
        self.base = DiagonalGaussianModule(feature_shape, channels)
        self.context = position_head(feature_shape, context)
        self.latent_shape = self.base.latent_shape
        if len(feature_shape) == 1:
            steps: list[nn.Module] = [_VectorStep(channels, context, 2 * width) for _ in range(flow_steps)]
        else:
            steps = [_GridStep(channels, context, width, len(feature_shape) - 1) for _ in range(flow_steps)]
        self.steps = nn.ModuleList(steps)

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            start = self.base(features.float(), noise)
            base = start.posterior
            assert isinstance(base, Independent)
            posterior = FlowDistribution(base, list(self.steps), F.silu(self.context(features.float())), start.z)
        return BottleneckOutput(posterior.z, posterior)


@final
class FlowDistribution(Distribution):
    """Distribution of z_T; the density of its own sample `z` is known, any other needs the inverse steps.

    Args:
        base: distribution of z_0, batch shape `[B]`.
        steps: functions of `(z, context)` that return the shift m and log g.
        context: `[B, ...]`, features of x on which the steps depend.
        start: `[B, *event_shape]`, the z_0 whose image is `z`.
    """

    def __init__(self, base: Independent, steps: Sequence[Step], context: Tensor, start: Tensor) -> None:
        self.base, self.start, self.steps, self.context = base, start, steps, context
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.z, self._log_prob = self.carried(start)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log q of `[..., B, *event_shape]`, `[..., B]`; free of cost for `z` itself."""
        if value is self.z:
            return self._log_prob
        with torch.autocast(value.device.type, enabled=False):
            shape = torch.broadcast_shapes(value.shape, self.z.shape)
            lead = shape[: len(shape) - len(self.event_shape)]
            wide, context = self._widened(value.float().expand(shape), lead)
            start, change = self._inverted(wide, context)
            return self.base.log_prob(start.view(shape)) - change.view(lead)

    def carried(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Map z_0 `[..., B, *event_shape]` to z_T, with log q(z_T | x) `[..., B]`."""
        with torch.autocast(start.device.type, enabled=False):
            lead = start.shape[: start.dim() - len(self.event_shape)]
            wide, context = self._widened(start, lead)
            z, change = self._forwards(wide, context)
            return z.view(start.shape), self.base.log_prob(start) - change.view(lead)

    def rebased(self, base: Independent, start: Tensor) -> FlowDistribution:
        """Return the distribution with these steps and another diagonal Gaussian, at its sample `start`."""
        return FlowDistribution(base, self.steps, self.context, start)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        return self.carried(self.base.rsample(torch.Size(sample_shape)))[0]

    def _widened(self, value: Tensor, lead: _size) -> tuple[Tensor, Tensor]:
        """Flatten all leading axes of values and repeat the context for each."""
        context = self.context.expand(*lead, *self.context.shape[1:])
        return value.reshape(-1, *self.event_shape), context.reshape(-1, *self.context.shape[1:])

    def _forwards(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map z_0 to z_T, with the sum of log g over all steps."""
        total = z.new_zeros(len(z))
        for number, step in enumerate(self.steps):
            shift, log_gate = _in_order(step, z, context, number)
            z, total = shift + log_gate.exp() * z, total + log_gate.flatten(1).sum(1)
        return z, total

    def _inverted(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map z_T to z_0, with the sum of log g over all steps.

        Fixed-point iteration updates all numbers in parallel (Song et al. 2021, "Accelerating feedforward
        computation"): after k rounds the first k numbers are exact, and usually all are after far fewer rounds than
        numbers.
        """
        total = z.new_zeros(len(z))
        for number in reversed(range(len(self.steps))):
            step, image, guess = self.steps[number], z, z
            log_gate = torch.zeros_like(z)
            for _ in range(image[0].numel() + 1):
                shift, log_gate = _in_order(step, guess, context, number)
                better = ((image - shift) * torch.exp(-log_gate)).clamp(-FAR, FAR)
                moved = (better - guess).detach().abs().amax() if len(z) else z.new_zeros(())
                guess = better
                if moved <= SETTLED * (1 + guess.detach().abs().amax()):
                    break
            z, total = guess, total + log_gate.flatten(1).sum(1)
        return z, total


def _in_order(step: Step, z: Tensor, context: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Compute shift and log gate of step `number`; every second step takes the numbers in reverse order."""
    if number % 2 == 0:
        return step(z, context)
    axes = tuple(range(1, z.dim()))
    shift, log_gate = step(z.flip(axes), context.flip(axes[1:]) if len(axes) > 1 else context)
    return shift.flip(axes), log_gate.flip(axes)


def _log_gate(s: Tensor) -> Tensor:
    """Compute log(2 sigmoid(s))."""
    return F.logsigmoid(s) + 0.6931471805599453


def variance_of(posterior: Distribution, draws: int = 16) -> Tensor:
    """Compute the variance of each number of z, `[B, *event_shape]`.

    For a flow it is estimated from `draws` samples with fixed noise.
    """
    if not isinstance(posterior, FlowDistribution):
        return posterior.variance
    base = posterior.base
    eps = Noise(0, stream="variance").normal(draws, 1, *base.event_shape, device=base.mean.device)
    return posterior.carried(base.mean + base.stddev * eps)[0].var(0)


@final
class _VectorStep(nn.Module):
    """Masked MLP (MADE) that computes each number's shift and log gate `[B, D]` from those before it."""

    def __init__(self, channels: int, context: int, width: int) -> None:
        super().__init__()
        before = torch.ones(channels, channels).tril(-1)
        adjacency = torch.cat([before, torch.ones(channels, context)], 1).bool()
        self.network = MaskedMLP(cast(BoolTensor, adjacency.repeat(2, 1)), (width, width), activation=nn.SiLU)
        start_small(self.network[-1].parameters())

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        shift, s = self.network(torch.cat([z, context], 1)).chunk(2, 1)
        return shift, _log_gate(s)


@final
class _GridStep(nn.Module):
    """Masked convolutions that compute each number's shift and log gate `[B, D, *grid]` from those before it.

    The order is positions in raster order, then channels. Two convolutions have size 3 (van den Oord et al. 2016,
    "Pixel recurrent neural networks", section 3.4), the last one size 1. Hidden channel k depends on the channels of
    its own position below its degree.
    """

    def __init__(self, channels: int, context: int, width: int, rank: int) -> None:
        super().__init__()
        width = max(width, channels)
        inputs, hidden = torch.arange(channels), torch.arange(width) % channels
        self.entry = _MaskedConv(inputs[None] < hidden[:, None], 3, rank)
        self.told = conv(rank, context, width)
        self.middle = _MaskedConv(hidden[None] <= hidden[:, None], 3, rank)
        self.exit = _MaskedConv((hidden[None] <= inputs[:, None]).repeat(2, 1), 1, rank)
        start_small(self.exit.parameters())

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.entry(z) + self.told(context))
        shift, s = self.exit(F.silu(h + self.middle(h))).chunk(2, 1)
        return shift, _log_gate(s)


class _MaskedConv(nn.Module):
    """Convolution over the preceding positions and the channels of its own that `own` `[out, in]` allows."""

    mask: Tensor

    def __init__(self, own: Tensor, size: int, rank: int) -> None:
        super().__init__()
        self.conv, positions = conv(rank, own.shape[1], own.shape[0], size, padding=size // 2), size**rank
        mask = torch.zeros(*own.shape, positions)
        mask[..., : positions // 2] = 1
        mask[..., positions // 2] = own.float()
        self.register_buffer("mask", mask.view(*own.shape, *(size,) * rank), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.mask * self.conv.weight, self.conv.bias, padding=self.conv.padding)  # pyright: ignore[reportArgumentType]
