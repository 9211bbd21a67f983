"""Interface of all models: encode, rate, decode, sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tessella.core.contracts import Likelihood, Quantizer, StoredValues
from tessella.core.observed import before_end, hide
from tessella.core.outputs import Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise, seeded
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option, task_name
from tessella.models.spec import ModelConfig, Objective


class Model(nn.Module, ABC):
    """Joint distribution p(x, z) with an inference network q(z | x).

    Args:
        name: name of the composition, in the registry or your own.
        likelihood: p(x | z); it holds the schema of an example.
        config: options that the model was built from, to build it again; None for your own composition.
        conditional: whether the model needs labels.
    """

    latent_shape: tuple[int, ...]
    """Shape of one example's z."""
    has_prior: bool = True
    """Whether there is a prior p(z), so that new examples can be sampled."""
    has_bound: bool = True
    """Whether z has a rate, so that rate + distortion bounds -log p(x)."""
    levels: Sequence[Quantizer] = ()
    """Quantizers of a model with discrete codes, coarsest first; empty for other models."""
    fitted: bool = False
    """Whether a prior over codes was fitted; until then all codes are equally probable."""
    downsampling: tuple[int, ...] = (1,)
    """Number of data positions, along each axis, per position of each level's latent grid, coarsest level first."""
    prior_part: Literal["prior", "code-prior"] | None = None
    """Kind of part that can be fitted as its prior after training; None: the model has its own prior."""
    networks_see_labels: bool = False
    """Whether encoder or decoder take the label; a prior may take it as well."""
    has_decoder: bool = False
    """Whether a decoder maps z to x, so that z may be small and get another prior; otherwise z is as large as x."""
    sequential_density: bool = False
    """Whether log q(z | x) at another example's z is computed number by number, which is slow."""
    learning_rate: float = 2e-3
    """Default peak learning rate."""

    def __init__(self, name: str, likelihood: Likelihood, config: ModelConfig | None, *, conditional: bool) -> None:
        super().__init__()
        self.name, self.likelihood, self.config = name, likelihood, config
        self.conditional = conditional

    @abstractmethod
    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        """Encode stored values `[B, *shape]` to z `[B, *latent_shape]`, without the prior.

        With `noise` z is a sample from q(z | x), otherwise its mean.
        """

    @abstractmethod
    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate | None:
        """Compute the cost of encoded examples under the prior; None if z has no rate (an autoencoder).

        Args:
            latent: result of `encode`.
            label: `[B]`, for a conditional model.
            noise: the noise given to `encode`, for priors that estimate `log_prob` at random steps.
        """

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
        """Return p(x | z) over stored values for z `[B, *latent_shape]`, with batch shape `[B]`."""

    @abstractmethod
    def sample_prior(
        self,
        count: int,
        label: Tensor | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Sample z ~ p(z), `[count, *latent_shape]`.

        Args:
            count: number of samples.
            label: `[count]`, for a conditional model.
            seed: seed of all randomness.
            sampling: temperature, cut-offs, steps and guidance.

        Raises:
            SpecError: if there is no prior, or cut-offs are given for continuous latents.
        """

    @abstractmethod
    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Compute the terms of the bound for stored values `[B, *shape]`, in nats per example.

        With `noise` the distortion is a one-sample estimate of -E_q log p(x | z) (Kingma & Welling 2013, eq. 10).
        Without noise it is computed at the posterior's mean, and the sum is not a bound. With `draws` it is the mean
        over that many samples z_k ~ q(z | x), and the result contains log p(x, z_k) - log q(z_k | x); the encoder runs
        once.

        Raises:
            SpecError: if draws are requested from a model without a prior.
        """

    def use_codes(self, count: int | None) -> None:
        """Use only the first codes of each position, of a model with nested codes; None: all.

        Raises:
            SpecError: if the codes of a position are not nested, or there are not so many.
        """
        if count is not None:
            raise SpecError(f"the model {self.name} has no codes: leave out {option('codes_used')}", code="codes-used")

    @abstractmethod
    def compile_networks(self) -> None:
        """Compile the networks by `torch.compile` at first use; likelihood and rate are not compiled."""

    @property
    def schema(self) -> Schema:
        """Return the description of one example."""
        return self.likelihood.schema

    @property
    def code_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of one example's codes at each level; empty without codes."""
        return tuple(q.code_shape for q in self.levels)

    @property
    def objective(self) -> Objective:
        """Return the training objective; no bound depends on it."""
        return Objective() if self.config is None else self.config.objective

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encoder_input(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Convert stored values `[B, *shape]` to the encoder's input `[B, *encoder_shape]`.

        If values may be missing, the input says which are observed. In training, with `noise`, more of them are hidden:
        q(z | x) then learns to infer z from a part of x, and the bound stays one, for any q gives a bound.
        """
        if not self.schema.missing:
            return self.likelihood.to_network(x)
        seen = hide(x, noise.split("hide")) if self.training and noise is not None else x
        return torch.cat([self.likelihood.to_network(seen), (~seen.isnan()).float()], 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the mean of p(x | z) at the posterior's mean, float32 `[B, *shape]` in stored units.

        Missing values are imputed; positions after the end of an example are NaN.
        """
        mean = self.decode(self.encode(x, label).z, label).mean
        return mean.masked_fill(~before_end(x, 1).unsqueeze(1), torch.nan) if self.schema.lengths else mean

    @torch.no_grad()
    def sample(
        self,
        count: int,
        label: Tensor | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        draw: bool = False,
    ) -> Tensor:
        """Sample new examples `[count, *shape]`, float32 in stored units.

        z is sampled from the prior; x is the mean of p(x | z), or a sample from it.

        Args:
            count: number of examples.
            label: `[count]`, for a conditional model.
            seed: seed of all randomness.
            sampling: temperature, cut-offs, steps and guidance of the prior.
            draw: whether to sample x ~ p(x | z) instead of returning its mean.

        Raises:
            SpecError: if there is no prior.
        """
        z = self.sample_prior(count, label, seed=seed, sampling=sampling)
        with seeded(seed, self.device):
            drawing = self.decode(z, label)
            return drawing.sample() if draw else drawing.mean

    def check_label(self, label: Tensor | None) -> Tensor | None:
        """Return the label if the model is conditional, else None.

        Raises:
            SpecError: if the model is conditional and there is no label.
        """
        if not self.conditional:
            return None
        if label is None:
            raise SpecError(f"the model {self.name} is conditional: each example needs a label", code="no-label")
        return label

    def reject_truncation(self, sampling: Sampling | None) -> Sampling:
        """Return the sampling options of continuous latents, which have no cut-offs.

        Raises:
            SpecError: if top-k or top-p is given.
        """
        sampling = sampling or Sampling()
        if sampling.top_k is not None or sampling.top_p is not None:
            raise SpecError(
                f"{option('top_k')} and {option('top_p')} need discrete codes, which the model {self.name} does not "
                f"have: use {option('temperature')} instead",
                code="no-codes",
            )
        return sampling

    def no_prior_error(self) -> SpecError:
        """Make the error for a missing prior or rate."""
        if self.has_prior:
            return SpecError(
                f"the model {self.name} has a prior, but its z is deterministic and has no rate: train a vae instead",
                code="no-rate",
            )
        fitting = task_name("fit-prior", f"RUN {option('kind')} flow")
        return SpecError(
            f"the model {self.name} has no prior, so no rate and no samples: train a vae instead, or fit a prior for "
            f"sampling ({fitting})",
            code="no-prior",
        )


class LatentModel(Model, ABC):
    """Model whose prior can be replaced by one that is fitted to its latents."""

    @abstractmethod
    def build_priors(
        self, config: Any, classes: int = 0, examples: Callable[[int], Tensor] | None = None
    ) -> Sequence[nn.Module]:
        """Build priors of the model's latents with new weights, one per level.

        Args:
            config: a `CodePriorConfig` or `PriorConfig`, as `prior_part` says.
            classes: number of labels; 0: the priors take no labels.
            examples: as in `InferenceNetwork`.
        """

    @abstractmethod
    def set_prior(self, priors: Sequence[Any]) -> None:
        """Replace the priors, one per level; class-conditional ones make the model conditional."""
