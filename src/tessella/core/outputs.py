"""Records that parts and models take and return; rates, distortions and bounds are in nats per example."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tessella.foundation.errors import SpecError, option

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution


@dataclass(frozen=True)
class Sampling:
    """How freely is drawn: probabilities are sharpened by the temperature, then cut off, then drawn from.

    Attributes:
        temperature: of real numbers a factor on the deviation; of codes the logits are divided by it (0: the
            likeliest).
        top_k: of codes, only the k likeliest values of each; None: all.
        top_p: of codes, only the likeliest values that hold this share of the probability (Holtzman et al. 2020,
            section 3.1); None: all.
        steps: of what draws in many steps (diffusion), how many; None: its own number.
        guidance: of diffusion that sees labels, how far it is led towards the class: 0 is not at all, 1 is p(z | label)
            itself, above that more typical of the class (Ho & Salimans 2022); None: 1.

    Raises:
        SpecError: if a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SpecError(f"temperature must be a number from 0 up, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise SpecError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SpecError(f"top-p must lie above 0 and up to 1, not {self.top_p}")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"steps must be at least 1, not {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise SpecError(f"guidance must be a number from 0 up, not {self.guidance}")

    def reject_steps(self, sampler: str) -> None:
        """Refuse steps and guidance for a sampler that takes no steps.

        Raises:
            SpecError: naming those that are given.
        """
        given = [option(name) for name in ("steps", "guidance") if asdict(self)[name] is not None]
        if given:
            raise SpecError(f"{sampler} takes no steps and has no {' and '.join(given)}: leave it out", code="no-steps")


@dataclass(frozen=True)
class Condition:
    """What a prior over codes is conditional on.

    Attributes:
        label: `[B]` int64, of a class-conditional prior.
        context: `[B, context_channels, *spatial]` float, a feature map that all codes may look at.
    """

    label: Tensor | None = None
    context: Tensor | None = None


UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class BottleneckOutput:
    """What a bottleneck lets through.

    Attributes:
        z: `[B, *latent_shape]`, a draw from `posterior` (or the features themselves where there is none).
        posterior: q(z | x) with batch shape `[B]`; None for a deterministic bottleneck, which has no rate.
        penalty: `[B]`, what training adds to the loss and no bound ever contains (commitment, ...); or None.
    """

    z: Tensor
    posterior: Distribution | None
    penalty: Tensor | None = None


@dataclass(frozen=True)
class Latent:
    """What a batch is encoded to.

    Attributes:
        z: `[B, *latent_shape]`.
        posterior: q(z | x) of a model with continuous latents, batch shape `[B]`.
        penalty: `[B]` or None, as in `BottleneckOutput`.
        codes: of a model with discrete latents, the codes of each level `[B, *code_shape]` int64, coarsest first.
        trace: what else `Model.rate` needs; the model's own affair.
    """

    z: Tensor
    posterior: Distribution | None = None
    penalty: Tensor | None = None
    codes: tuple[Tensor, ...] = ()
    trace: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Rate:
    """What latents cost under the prior, in nats per example.

    Attributes:
        total: `[B]`, KL(q(z | x) || p(z)); of codes -log p(codes).
        per_unit: `[B, units]`, its parts where the KL is a sum over units; None otherwise.
    """

    total: Tensor
    per_unit: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """The terms of the bound in nats, one number an example.

    bound = rate + distortion = negative ELBO, an upper bound on the negative log-likelihood -log p(x).

    Attributes:
        distortion: `[B]`, -log p(x | z).
        rate: `[B]`, KL(q(z | x) || p(z)); None for an autoencoder.
        rate_per_unit: `[B, units]` or None.
        penalty: `[B]` or None; never part of the bound.
        log_weights: `[samples, B]`, log p(x, z_k) - log q(z_k | x) of several draws, if they were asked for.
    """

    distortion: Tensor
    rate: Tensor | None
    rate_per_unit: Tensor | None = None
    penalty: Tensor | None = None
    log_weights: Tensor | None = None

    @staticmethod
    def of(distortion: Tensor, rate: Rate | None, penalty: Tensor | None = None) -> Terms:
        """Put together the terms of examples that were encoded once."""
        return Terms(distortion, rate and rate.total, rate and rate.per_unit, penalty)

    @property
    def bound(self) -> Tensor | None:
        """`[B]`, rate + distortion >= -log p(x); None where there is no rate."""
        return None if self.rate is None else self.rate + self.distortion
