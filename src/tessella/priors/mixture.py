"""Mixture priors: of Gaussians, and of the posteriors of learned pseudo-inputs (VampPrior)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.constraints import Constraint

from tessella.core.contracts import Bottleneck, Encoder, Prior
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError, option

SPREAD = 0.5
"""Standard deviation of the initial means; the scales make the total variance one."""


@final
class MixtureDensity(Distribution):
    """Mixture of Gaussians sum_k pi_k N(z; mu_k, diag sigma_k^2), evaluated by log-sum-exp.

    Args:
        logits: `[*batch, K]`, log pi up to a constant; batch `()` or `[B]`.
        loc, scale: mu and sigma, `[K, *event_shape]`.
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.log_weights, self.loc, self.scale = F.log_softmax(logits.float(), -1), loc.float(), scale.float()
        super().__init__(logits.shape[:-1], loc.shape[1:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    @property
    def mean(self) -> Tensor:
        return torch.tensordot(self.log_weights.exp(), self.loc, 1)

    @property
    def variance(self) -> Tensor:
        square = torch.tensordot(self.log_weights.exp(), self.loc.square() + self.scale.square(), 1)
        return square - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log p `[...]` of values `[..., *event_shape]`, in nats."""
        with torch.autocast(value.device.type, enabled=False):
            dims = len(self.event_shape)
            each = (value.float().unsqueeze(-dims - 1) - self.loc) / self.scale
            nats = -0.5 * each.square().flatten(-dims).sum(-1) - self.scale.log().flatten(1).sum(1)
            constant = 0.5 * math.log(2 * math.pi) * math.prod(self.event_shape)
            return torch.logsumexp(self.log_weights + nats, -1) - constant

    def draw(self, count: int, noise: Noise, temperature: float) -> Tensor:
        """Sample `[count, *event_shape]`; the temperature multiplies the components' standard deviation."""
        uniform = noise.split("component").uniform(count, 1, device=self.loc.device)
        below = self.log_weights.exp().cumsum(-1)
        chosen = (uniform >= below).sum(-1).clamp_max(below.shape[-1] - 1)
        eps = noise.normal(count, *self.event_shape, device=self.loc.device)
        return self.loc[chosen] + temperature * self.scale[chosen] * eps


@final
class MixturePriorModule(Prior):
    """Mixture of Gaussians with learned weights, means and scales: p(z) = sum_k pi_k N(z; mu_k, diag sigma_k^2).

    With labels the Gaussians are shared and each label has its own weights: p(z | y) = sum_k pi_yk N(z; mu_k,
    sigma_k^2). The prior starts near N(0, I), with its means spread over it.

    Args:
        latent_shape: shape of one example's z, `(D, *spatial)`.
        classes: number of labels; 0: the prior takes no labels.
        components: K.
    """

    def __init__(self, latent_shape: tuple[int, ...], classes: int = 0, *, components: int) -> None:
        super().__init__()
        self.latent_shape, self.classes = latent_shape, classes
        spread = SPREAD if components > 1 else 0.0
        self.logits = nn.Parameter(0.1 * torch.randn(max(1, classes), components))
        self.loc = nn.Parameter(spread * torch.randn(components, *latent_shape))
        self.log_scale = nn.Parameter(torch.full((components, *latent_shape), 0.5 * math.log(1 - spread**2)))

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> MixtureDensity:
        return MixtureDensity(
            _of_class(self.logits, self.check_label(label)), self.loc, self.log_scale.clamp(-8, 4).exp()
        )

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        return self(label).draw(count, noise, sampling.temperature)


@final
class VampPriorModule(Prior):
    """VampPrior: p(z) = sum_k pi_k q(z | u_k) with learned pseudo-inputs u_k and weights pi_k.

    The source is Tomczak & Welling 2018, eq. 9. The encoder and the bottleneck belong to the model; unless frozen, they
    are trained in both roles. With labels, an encoder that takes labels gets pseudo-input k with label k mod classes,
    and each label has its own weights. The pseudo-inputs start as noise of unit scale, whose posteriors are near N(0,
    I) for an untrained encoder, or as examples from `examples`.

    Args:
        latent_shape: shape of one example's z, `(D, *spatial)`.
        classes: number of labels; 0: the prior takes no labels.
        encoder, bottleneck: networks of q(z | x), which must be a diagonal Gaussian.
        input_shape: shape of one example as the encoder's input.
        components: K.
        labelled: whether the encoder takes labels.
        examples: as in `InferenceNetwork`.

    Raises:
        SpecError: if q(z | x) is not a diagonal Gaussian.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int = 0,
        *,
        encoder: Encoder,
        bottleneck: Bottleneck,
        input_shape: tuple[int, ...],
        components: int,
        labelled: bool = False,
        examples: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not bottleneck.stochastic:
            raise SpecError(
                f"a vamp prior needs a posterior, but this model has none: use {option('prior')} mixture or flow",
                code="no-rate",
            )
        self.latent_shape, self.classes, self.labelled = latent_shape, classes, labelled
        self._q = (encoder, bottleneck)  # in a tuple, so that their weights are not registered as this module's
        self.logits = nn.Parameter(0.1 * torch.randn(max(1, classes), components))
        self.inputs = nn.Parameter(torch.randn(components, *input_shape))
        if examples is not None:
            x = examples(components)
            with torch.no_grad():
                self.inputs.copy_(x[torch.arange(components) % len(x)])  # fewer examples come in turn

    def forward(self, label: Tensor | None, noise: Noise | None = None) -> MixtureDensity:
        encoder, bottleneck = self._q
        shown = None
        if self.labelled:
            shown = torch.arange(len(self.inputs), device=self.inputs.device) % max(1, self.classes)
        q = bottleneck(encoder(self.inputs, shown), None).posterior
        if not isinstance(q, Independent) or not isinstance(q.base_dist, Normal):
            raise SpecError(
                "a vamp prior needs a Gaussian posterior: "
                f"leave out {option('posterior')}, or use {option('prior')} flow",
                code="needs-gaussian-posterior",
            )
        return MixtureDensity(_of_class(self.logits, self.check_label(label)), q.base_dist.loc, q.base_dist.scale)

    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        return self(label).draw(count, noise, sampling.temperature)


def _of_class(logits: Tensor, label: Tensor | None) -> Tensor:
    """Select logits: `[K]`, or `[B, K]` given the labels."""
    return logits[0] if label is None else logits[label]
