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
    """Options of sampling: the temperature is applied first, then the cut-offs, then a value is sampled.

    Attributes:
        temperature: randomness of samples: factor on the standard deviation of continuous latents, divisor of the
            logits of codes (0: always the most likely code).
        top_k: sample each code only from its k most likely values; None: from all.
        top_p: sample each code only from the most likely values that together hold this share of the probability
            (Holtzman et al. 2020, section 3.1); None: from all.
        steps: number of sampling steps of a diffusion; None: its own default.
        guidance: strength of classifier-free guidance towards the label, for diffusion: 0 ignores the label, 1 samples
            p(z | label), more gives more typical examples of the class (Ho & Salimans 2022); None: 1.

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
            raise SpecError(
                f"{option('temperature')} must be finite and at least 0, got {self.temperature}", code="out-of-range"
            )
        if self.top_k is not None and self.top_k < 1:
            raise SpecError(f"{option('top_k')} must be at least 1, got {self.top_k}", code="out-of-range")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SpecError(f"{option('top_p')} must be above 0 and at most 1, got {self.top_p}", code="out-of-range")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"{option('steps')} must be at least 1, got {self.steps}", code="out-of-range")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise SpecError(
                f"{option('guidance')} must be finite and at least 0, got {self.guidance}", code="out-of-range"
            )

    def reject_steps(self, sampler: str) -> None:
        """Raise SpecError if steps or guidance are given, for a sampler that takes no steps.

        Args:
            sampler: name of the sampler, for the message.
        """
        given = [option(name) for name in ("steps", "guidance") if asdict(self)[name] is not None]
        if given:
            raise SpecError(f"{sampler} samples in one step: leave out {' and '.join(given)}", code="no-steps")


@dataclass(frozen=True)
class Condition:
    """Condition of a prior over codes, p(codes | condition).

    Attributes:
        label: `[B]` int64, for a class-conditional prior.
        context: `[B, context_channels, *spatial]` float, a feature map on which all codes depend.
    """

    label: Tensor | None = None
    context: Tensor | None = None


UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class BottleneckOutput:
    """Output of a bottleneck: z, the posterior and the auxiliary loss.

    Attributes:
        z: `[B, *latent_shape]`, a sample from `posterior` (the features themselves if there is none).
        posterior: q(z | x) with batch shape `[B]`; None for a deterministic bottleneck, which has no rate.
        penalty: `[B]`, auxiliary loss such as the commitment loss; added in training, never part of a bound; or None.
    """

    z: Tensor
    posterior: Distribution | None
    penalty: Tensor | None = None


@dataclass(frozen=True)
class Latent:
    """Latents of a batch, the result of `Model.encode`.

    Attributes:
        z: `[B, *latent_shape]`.
        posterior: q(z | x) with batch shape `[B]`, for a model with continuous latents.
        penalty: `[B]` or None, as in `BottleneckOutput`.
        codes: codes of each level `[B, *code_shape]` int64, coarsest first, for a model with discrete latents.
        trace: further tensors that only the model's own `rate` reads.
    """

    z: Tensor
    posterior: Distribution | None = None
    penalty: Tensor | None = None
    codes: tuple[Tensor, ...] = ()
    trace: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Rate:
    """Cost of latents under the prior, in nats per example.

    Attributes:
        total: `[B]`, KL(q(z | x) || p(z)); for codes -log p(codes).
        per_unit: `[B, units]`, the KL of each latent dimension if the KL is a sum over dimensions; else None.
    """

    total: Tensor
    per_unit: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """Terms of the bound in nats per example.

    bound = rate + distortion = negative ELBO, an upper bound on the negative log-likelihood -log p(x).

    Attributes:
        distortion: `[B]`, -log p(x | z).
        rate: `[B]`, KL(q(z | x) || p(z)); None for an autoencoder.
        rate_per_unit: `[B, units]` or None.
        penalty: `[B]` or None; never part of the bound.
        log_weights: `[samples, B]`, log p(x, z_k) - log q(z_k | x) of several samples z_k; None if not requested.
    """

    distortion: Tensor
    rate: Tensor | None
    rate_per_unit: Tensor | None = None
    penalty: Tensor | None = None
    log_weights: Tensor | None = None

    @staticmethod
    def of(distortion: Tensor, rate: Rate | None, penalty: Tensor | None = None) -> Terms:
        """Combine distortion, rate and penalty of examples that were encoded once."""
        return Terms(distortion, rate and rate.total, rate and rate.per_unit, penalty)

    @property
    def bound(self) -> Tensor | None:
        """Return rate + distortion >= -log p(x), `[B]`; None if there is no rate."""
        return None if self.rate is None else self.rate + self.distortion
