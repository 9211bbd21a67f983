"""KL(q || p) in nats per example: in closed form if torch's registry has it, else estimated from one sample.

To add the closed form of a new pair, register it with `torch.distributions.register_kl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence, register_kl
from torch.distributions.constraints import Constraint
from torch.types import _size


@final
class PointMass(Distribution):
    """Point mass: each example's distribution puts all probability on one value, as q(z | x) of codes does.

    Args:
        value: `[B, *event_shape]`.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute 0 for examples where all numbers equal the value, -inf for others; `[B]`."""
        same = (value == self.value).flatten(1).all(1)
        return torch.zeros(same.shape, device=same.device).masked_fill(~same, -torch.inf)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)


@register_kl(PointMass, Distribution)
def _kl_point_mass(q: PointMass, p: Distribution) -> Tensor:
    """Compute KL(q || p) = -log p(value): the entropy of a point mass is zero."""
    return -p.log_prob(q.value)


def kl(q: Distribution, p: Distribution, z: Tensor | None = None) -> Tensor:
    """Compute KL(q || p) = E_q[log q(z) - log p(z)], `[B]` in float32 nats.

    In closed form if `torch.distributions.kl_divergence` has one for the pair (it also looks inside `Independent`);
    otherwise log q(z) - log p(z) at the sample `z`, which is unbiased and may be negative for one sample.

    Args:
        q: batch shape `[B]`.
        p: event shape as q's; batch shape `[B]` or `()`.
        z: `[B, *event_shape]`, a sample from q; reparameterised if gradients must reach q through it.

    Raises:
        ValueError: if the pair has no closed form and `z` is None.
    """
    nats = kl_closed(q, p)
    if nats is None:
        with _full_precision():
            if z is None:
                raise ValueError(
                    f"KL({_name(q)} || {_name(p)}) has no closed form: pass a sample z, or use register_kl"
                )
            z = z if z.dtype == torch.float64 else z.float()
            nats = q.log_prob(z) - p.log_prob(z)
    return nats.float()


def kl_closed(q: Distribution, p: Distribution) -> Tensor | None:
    """Compute KL(q || p) `[B]` in closed form, in float32 nats; None if there is none."""
    with _full_precision():
        try:
            return kl_divergence(q, p).float()
        except NotImplementedError:
            return None


def kl_per_unit(q: Distribution, p: Distribution) -> Tensor | None:
    """Compute the terms of KL(q || p), one per latent dimension, in float32 nats.

    Returns `[B, units]`, or None if the KL is not such a sum: both distributions must be `Independent` over the whole
    event, with a closed form for one number.
    """
    if not (isinstance(q, Independent) and isinstance(p, Independent)) or q.event_shape != p.event_shape:
        return None
    if q.base_dist.event_shape or p.base_dist.event_shape:
        return None
    with _full_precision():
        try:
            terms = kl_divergence(q.base_dist, p.base_dist)
        except NotImplementedError:
            return None
    return terms.expand(*q.batch_shape, *q.event_shape).flatten(1).float()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Disable autocast on every type of device."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _name(distribution: Distribution) -> str:
    if isinstance(distribution, Independent):
        return f"Independent({_name(distribution.base_dist)})"
    return type(distribution).__name__
