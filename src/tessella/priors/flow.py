"""Flow prior: N(0, I) transformed by invertible couplings, with an exact density and fast sampling."""

from __future__ import annotations

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.transforms import MonotonicRQSTransform

from tessella.core.contracts import Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.networks.conv import checkerboard, conv, over_positions, start_small

BINS = 8
VECTOR = 256
"""Largest number of latents of a grid that is treated as one vector."""


@final
class FlowPriorModule(Prior):
    """p(z) = N(f(z); 0, I) |det df/dz|, f a sequence of invertible couplings (Durkan et al. 2019, "Neural spline
    flows").

    Vectors, and grids of up to 256 numbers treated as vectors, use splines of 8 bins on [-5, 5]: each step transforms
    one half of the numbers elementwise, then the other half with splines that depend on the first; the halves differ
    from step to step. Larger grids use affine couplings: each step scales and shifts one half of the numbers (half of
    the channels, or every second position) by a convolutional network of the other half (Dinh et al. 2017, section
    3.4). The flow starts near N(0, I).

    Args:
        latent_shape: shape of one example's z, `(D, *spatial)`.
        classes: number of labels of p(z | label); 0: the prior takes no labels.
        flow_steps: number of couplings.
        width: units of the two hidden layers of each coupling.
    """

    zero: Tensor

    def __init__(self, latent_shape: tuple[int, ...], classes: int, *, flow_steps: int | None, width: int) -> None:
        super().__init__()
        self.latent_shape, self.classes = latent_shape, classes
        dims, rank = math.prod(latent_shape), len(latent_shape) - 1
        self.as_vector = not rank or dims <= VECTOR
        if self.as_vector:
            count = flow_steps or 4
            steps: list[nn.Module] = [_SplineCoupling(dims, classes, width, number) for number in range(count)]
        else:
            count = flow_steps or 8
            steps = [_GridCoupling(latent_shape, classes, width, number) for number in range(count)]
        self.steps = nn.ModuleList(steps)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> FlowDensity:
        return FlowDensity(self, self._context(label))

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        eps = sampling.temperature * noise.normal(count, *self.latent_shape, device=self.zero.device)
        return self.inverse(eps, self._context(label))

    def inverse(self, eps: Tensor, context: Tensor | None) -> Tensor:
        """Compute the z whose image is `eps` `[n, *latent_shape]`, given one-hot labels `[n, classes]`."""
        with torch.autocast(eps.device.type, enabled=False):
            z = eps.flatten(1) if self.as_vector else eps
            for step in reversed(self.steps):
                z = step.inverse(z, context)  # pyright: ignore[reportCallIssue]
            return z.view_as(eps)

    def log_density(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Compute log p(z) `[n]` of z `[n, *latent_shape]`, given one-hot labels `[n, classes]`."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float().flatten(1) if self.as_vector else z.float()
            total = z.new_zeros(len(z))
            for step in self.steps:
                z, change = step(z, context)
                total = total + change
            return total - 0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def _context(self, label: Tensor | None) -> Tensor | None:
        label = self.check_label(label)
        return None if label is None else F.one_hot(label, self.classes).float()


@final
class FlowDensity(Distribution):
    """Distribution of a flow prior: batch shape `[B]` given one-hot labels `[B, classes]`, else `()`."""

    def __init__(self, prior: FlowPriorModule, context: Tensor | None) -> None:
        self._prior, self._context = prior, context
        batch = torch.Size() if context is None else context.shape[:1]
        super().__init__(batch, torch.Size(prior.latent_shape), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log p `[...]` of values `[..., *event_shape]`, in nats."""
        lead = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        wide = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        return self._prior.log_density(wide, self._rows(lead)).view(lead)

    def _rows(self, lead: torch.Size) -> Tensor | None:
        context = self._context
        return None if context is None else context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])


@final
class _SplineCoupling(nn.Module):
    """Spline coupling of vectors; a random order, fixed for each step, decides which half is transformed first."""

    def __init__(self, dims: int, classes: int, width: int, number: int) -> None:
        super().__init__()
        order = torch.randperm(dims, generator=torch.Generator().manual_seed(number // 2))
        self.transform = MaskedAutoregressiveTransform(
            dims,
            classes,
            passes=2,
            order=order if number % 2 == 0 else dims - 1 - order,  # pyright: ignore[reportArgumentType]
            univariate=MonotonicRQSTransform,
            shapes=((BINS,), (BINS,), (BINS - 1,)),  # pyright: ignore[reportArgumentType]
            **({"hidden_features": (width, width), "activation": nn.SiLU} if dims > 1 or classes else {}),
        )
        start_small(_last_layer(self.transform))

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._of(context).call_and_ladj(z)

    def inverse(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self._of(context).inv(z)

    def _of(self, context: Tensor | None) -> Any:
        return self.transform(context)


@final
class _GridCoupling(nn.Module):
    """Affine coupling: z' = z on half of the numbers, exp(s) z + t on the rest, with |s| < 2 and s, t from the first
    half.
    """

    def __init__(self, latent_shape: tuple[int, ...], classes: int, width: int, number: int) -> None:
        super().__init__()
        self.number, channels, rank = number, latent_shape[0], len(latent_shape) - 1
        self.entry = conv(rank, channels + 1, width, 3, padding=1)
        self.label = nn.Linear(classes, width, bias=False) if classes else None
        self.middle = conv(rank, width, width)
        self.exit = conv(rank, width, 2 * channels, 3, padding=1)
        start_small(self.exit.parameters())

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._change(z, context)
        return log_scale.exp() * z + shift, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None) -> Tensor:
        log_scale, shift = self._change(z, context)
        return (z - shift) * torch.exp(-log_scale)

    def _change(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = self._kept(z)
        h = self.entry(torch.cat([kept * z, kept[:, :1].expand(len(z), 1, *z.shape[2:])], 1))
        if self.label is not None:
            h = h + over_positions(self.label(context), z.dim() - 2)
        log_scale, shift = self.exit(F.silu(self.middle(F.silu(h)))).chunk(2, 1)
        return (1 - kept) * 2 * torch.tanh(log_scale / 2), (1 - kept) * shift

    def _kept(self, z: Tensor) -> Tensor:
        """Return a mask `[1, D, *grid]` of the unchanged numbers: every second position, or half of the channels."""
        channels, *grid = z.shape[1:]
        if self.number // 2 % 2 or channels == 1:
            first = checkerboard(grid) == 0
        else:
            first = over_positions(torch.arange(channels) < channels // 2, len(grid))
        kept = first if self.number % 2 == 0 else ~first
        return kept.to(z.device, z.dtype).expand(1, channels, *grid)


def _last_layer(transform: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the last layer of the splines' network."""
    hyper = getattr(transform, "hyper", None)  # a single number without context has no network
    return list((hyper[-1] if isinstance(hyper, nn.Sequential) else transform).parameters())
