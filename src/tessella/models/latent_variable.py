"""The composed model p(x, z) = p(z) p(x | z) with its inference network q(z | x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tessella.contracts import Bottleneck, Decoder, Encoder, Likelihood, Prior
from tessella.divergences import kl, kl_per_unit
from tessella.errors import SpecError
from tessella.noise import Noise
from tessella.records import Latent, Passage, Schema, Terms
from tessella.spec import ModelOptions, Objective


class LatentVariableModel(nn.Module):
    """One latent z between an encoder and a decoder.

    Args:
        name: of the composition: its name in the catalogue, or any other for one of your own.
        options: what the composition was made with; kept so that a run can be built again.
        prior: p(z), or None for an autoencoder, which then has no rate and no bound.
        conditional: whether encoder, decoder and prior see the label.
    """

    def __init__(
        self,
        name: str,
        *,
        likelihood: Likelihood,
        encoder: Encoder,
        bottleneck: Bottleneck,
        prior: Prior | None,
        decoder: Decoder,
        conditional: bool = False,
        options: ModelOptions | None = None,
    ) -> None:
        super().__init__()
        self.name, self.conditional, self.options = name, conditional, options or ModelOptions()
        self.likelihood, self.encoder, self.bottleneck = likelihood, encoder, bottleneck
        self.prior, self.decoder = prior, decoder

    @property
    def objective(self) -> Objective:
        """What training minimises; no bound depends on it."""
        return self.options.objective

    @property
    def schema(self) -> Schema:
        """What one example looks like."""
        return self.likelihood.schema

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one example's z."""
        return self.bottleneck.latent_shape

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Terms:
        """The bound's terms of stored values `[B, *shape]`, nats per example.

        With `noise` the distortion is a one-sample estimate of -E_q log p(x | z) (Kingma & Welling 2013, eq. 10);
        without, it is taken at the posterior's mean, which is no bound.
        """
        latent = self.encode(x, label, noise=noise)
        distortion = -self.decode(latent.z, label).log_prob(x)
        return Terms(distortion, latent.rate, latent.rate_per_unit, latent.penalty)

    def infer(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Passage:
        """q(z | x) and a z of it (a draw given `noise`, else its mean), for stored values `[B, *shape]`."""
        features = self.encoder(self.likelihood.to_network(x), self._seen(label))
        return self.bottleneck(features, noise)

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        """Stored values `[B, *shape]` to z `[B, *latent_shape]` and its rate `[B]` in nats."""
        passage = self.infer(x, label, noise=noise)
        if self.prior is None or passage.posterior is None:
            return Latent(passage.z, None, None, passage.penalty)
        prior = self.prior(self._seen(label))
        per_unit = kl_per_unit(passage.posterior, prior)
        rate = kl(passage.posterior, prior, passage.z) if per_unit is None else per_unit.sum(1)
        return Latent(passage.z, rate, per_unit, passage.penalty)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Distribution:
        """p(x | z) over stored values, batch shape `[B]`, for z `[B, *latent_shape]`."""
        return self.likelihood(self.decoder(z, self._seen(label)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean of p(x | z) at the posterior's mean: stored units, float32, `[B, *shape]`."""
        return self.decode(self.infer(x, label).z, label).mean

    @torch.no_grad()
    def sample(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, temperature: float = 1.0, draw: bool = False
    ) -> Tensor:
        """New examples `[count, *shape]`, float32 in stored units: z ~ p(z), then the mean of p(x | z).

        Args:
            label: `[count]`, for a conditional model.
            temperature: factor on the prior's standard deviation.
            draw: draw x ~ p(x | z) too, instead of taking its mean.

        Raises:
            SpecError: if there is no prior to sample from.
        """
        z = self.sample_prior(count, label, seed=seed, temperature=temperature)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            drawing = self.decode(z, label)
            return drawing.sample() if draw else drawing.mean

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, temperature: float = 1.0
    ) -> Tensor:
        """z ~ p(z), `[count, *latent_shape]`."""
        if self.prior is None:
            raise SpecError(f"the model {self.name} has no prior to sample from: train a vae instead")
        prior = self.prior(self._seen(label))
        eps = Noise(seed, stream="prior").normal(count, *self.latent_shape, device=self.device)
        return prior.mean + temperature * prior.stddev * eps

    def _seen(self, label: Tensor | None) -> Tensor | None:
        """The label if the parts may see it."""
        if not self.conditional:
            return None
        if label is None:
            raise SpecError(f"the model {self.name} is conditional: it needs a label for every example")
        return label
