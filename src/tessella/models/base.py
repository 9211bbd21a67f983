"""Interface of all models: encode, rate, decode, sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tessella.core.contracts import Likelihood, Quantizer, StoredValues
from tessella.core.outputs import Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise, seeded
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option, task
from tessella.models.spec import ModelConfig, Objective


class Model(nn.Module, ABC):
    """A joint distribution p(x, z) with its inference network q(z | x).

    Args:
        name: of the composition: its name in the catalogue, or any other for one of your own.
        likelihood: p(x | z); it knows what an example looks like.
        config: the options that it was made with, to build a run again; None for a composition of one's own.
        conditional: whether the parts see the label.
    """

    latent_shape: tuple[int, ...]
    """Shape of one example's z."""
    has_prior: bool = True
    """Whether there is a p(z), so that new examples can be sampled."""
    has_bound: bool = True
    """Whether z has a rate, so that rate + distortion bounds -log p(x)."""
    levels: Sequence[Quantizer] = ()
    """The quantisers of a model of codes, coarsest first; none of other models."""
    fitted: bool = False
    """Whether a prior over codes was learned; until then they are equally probable."""
    downsampling: tuple[int, ...] = (1,)
    """Positions a side of the data that one position of each level's latent grid stands for, coarsest level first."""
    prior_part: Literal["prior", "code-prior"] | None = None
    """The kind of part that can be fitted as its prior afterwards, over real numbers or codes; None: it is its own."""
    has_decoder: bool = False
    """Whether a decoder maps z to x, so that z may be small and given another prior; else z is as large as x."""
    sequential_density: bool = False
    """Whether log q(z | x) at another example's z takes a pass number by number, so that it is slow."""
    learning_rate: float = 2e-3
    """What suits it at the height of training, unless another is asked for."""

    def __init__(self, name: str, likelihood: Likelihood, config: ModelConfig | None, *, conditional: bool) -> None:
        super().__init__()
        self.name, self.likelihood, self.config = name, likelihood, config
        self.conditional = conditional

    @abstractmethod
    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        """Encode stored values `[B, *shape]` to z `[B, *latent_shape]`; the prior has no part in it.

        With `noise` z is a draw from q(z | x), else its mean.
        """

    @abstractmethod
    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate | None:
        """Compute what encoded examples cost under the prior; None where z has no rate (an autoencoder).

        Args:
            latent: as `encode` gave it.
            noise: that of `encode`; for priors that estimate their `log_prob` by random steps.
        """

    @abstractmethod
    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
        """p(x | z) over stored values, batch shape `[B]`, for z `[B, *latent_shape]`."""

    @abstractmethod
    def sample_prior(
        self,
        count: int,
        label: Tensor | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """z ~ p(z), `[count, *latent_shape]`.

        Args:
            label: `[count]`, for a conditional model.
            sampling: how freely is drawn.

        Raises:
            SpecError: if there is no prior, or cut-offs are asked of real numbers.
        """

    @abstractmethod
    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """The bound's terms of stored values `[B, *shape]`, nats per example.

        With `noise` the distortion is a one-sample estimate of -E_q log p(x | z) (Kingma & Welling 2013, eq. 10);
        without, it is taken at the posterior's mean, which is no bound. With `draws` it is the mean of that many
        z_k ~ q(z | x), whose log p(x, z_k) - log q(z_k | x) are given too; the encoder runs once.

        Raises:
            SpecError: if draws are asked of a model without a prior.
        """

    @abstractmethod
    def compile_networks(self) -> None:
        """Let `torch.compile` compile the networks when they are first used; likelihood and rate stay as they are."""

    @property
    def schema(self) -> Schema:
        """What one example looks like."""
        return self.likelihood.schema

    @property
    def code_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one example's codes at each level; none without codes."""
        return tuple(q.code_shape for q in self.levels)

    @property
    def objective(self) -> Objective:
        """What training minimises; no bound depends on it."""
        return Objective() if self.config is None else self.config.objective

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean of p(x | z) at the posterior's mean: stored units, float32, `[B, *shape]`."""
        return self.decode(self.encode(x, label).z, label).mean

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
        """New examples `[count, *shape]`, float32 in stored units: z ~ p(z), then the mean of p(x | z).

        Args:
            label: `[count]`, for a conditional model.
            sampling: how freely is drawn from the prior.
            draw: draw x ~ p(x | z) too, instead of taking its mean.

        Raises:
            SpecError: if there is no prior to sample from.
        """
        z = self.sample_prior(count, label, seed=seed, sampling=sampling)
        with seeded(seed, self.device):
            drawing = self.decode(z, label)
            return drawing.sample() if draw else drawing.mean

    def check_label(self, label: Tensor | None) -> Tensor | None:
        """The label if the parts may see it.

        Raises:
            SpecError: if they must and there is none.
        """
        if not self.conditional:
            return None
        if label is None:
            raise SpecError(f"the model {self.name} is conditional: each example needs a label", code="no-label")
        return label

    def reject_truncation(self, sampling: Sampling | None) -> Sampling:
        """How freely real numbers are drawn.

        Raises:
            SpecError: if cut-offs are asked for, which are of codes.
        """
        sampling = sampling or Sampling()
        if sampling.top_k is not None or sampling.top_p is not None:
            raise SpecError(f"the model {self.name} has no codes to cut off: give a temperature, no top-k or top-p")
        return sampling

    def no_prior_error(self) -> SpecError:
        """What to say when the rate is needed and there is none."""
        if self.has_prior:
            return SpecError(
                f"the model {self.name} has a prior, but its z is a point and has no rate: train a vae instead",
                code="no-rate",
            )
        return SpecError(
            f"the model {self.name} has no prior, so no rate and no samples: train a vae instead, or fit one to sample "
            f"from ({task('fit-prior', 'RUN ' + option('kind') + ' flow')})",
            code="no-prior",
        )


class LatentModel(Model, ABC):
    """A model whose prior can be exchanged for one that is fitted on its latents afterwards."""

    @abstractmethod
    def build_priors(
        self, config: Any, classes: int = 0, examples: Callable[[int], Tensor] | None = None
    ) -> Sequence[nn.Module]:
        """Make priors of its latents with fresh weights, one a level.

        Args:
            config: a `CodePriorConfig` or `PriorConfig`, as `prior_part` says.
            classes: number of labels that they see; 0: none.
            examples: as of `InferenceNetwork`.
        """

    @abstractmethod
    def set_prior(self, priors: Sequence[Any]) -> None:
        """Use these priors, one a level, from now on; class-conditional ones make the model conditional."""
