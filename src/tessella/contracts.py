"""The parts that every model is made of. Read this page first.

A model is a joint distribution p(x, z) = p(z) p(x | z) with an inference network q(z | x):

    x --Likelihood.to_network--> Encoder --> Bottleneck --> z --> Decoder --Likelihood--> p(x | z)
                                                 |
                                             q(z | x)  against  Prior p(z)

Networks return parameters; likelihoods, bottlenecks and priors turn parameters into
`torch.distributions.Distribution` objects whose batch shape is `[B]`, so `log_prob` is nats per example.
`shape` is the data's, `(C, H, W)` or `(D,)`; `spatial` is `(H, W)` or `()`; `label` is `[B]` int64 or None.
A class is abstract (this page) or final (everything else): to vary behaviour, compose.

Imports beside it: noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.distributions import Distribution

from tessella.noise import Noise
from tessella.records import Passage, Schema


class Likelihood(nn.Module, ABC):
    """p(x | z), normalised over the stored values.

    Args:
        schema: what the stored values are; its range and scale are the likelihood's to convert.

    Raises:
        SpecError: if the likelihood is not a distribution over such values.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    @property
    @abstractmethod
    def parameter_channels(self) -> int:
        """How many channels the decoder must give: `[B, parameter_channels, *spatial]`."""

    @abstractmethod
    def to_network(self, x: Tensor) -> Tensor:
        """Stored values `[B, *shape]` as float32 of about unit scale, for the encoder."""

    @abstractmethod
    def forward(self, parameters: Tensor) -> Distribution:
        """The decoder's output `[B, parameter_channels, *spatial]` as a distribution over stored values.

        Its event shape is `shape`; `log_prob` takes stored values (uint8 or float), `mean` and `sample()` return
        stored units as float32. Computed in float32 whatever the autocast.
        """


class Encoder(nn.Module, ABC):
    """How the data is looked at."""

    feature_shape: tuple[int, ...]
    """Shape of one example's features: `(F,)` or `(F, h, w)`."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """`[B, *shape]` as `Likelihood.to_network` gives it, to features `[B, *feature_shape]`."""


class Decoder(nn.Module, ABC):
    """How the data is drawn."""

    @abstractmethod
    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Latents `[B, *latent_shape]` to the likelihood's parameters `[B, parameter_channels, *spatial]`."""


class Bottleneck(nn.Module, ABC):
    """What may pass from the encoder to the decoder: q(z | x)."""

    latent_shape: tuple[int, ...]
    """Shape of one example's z: `(D,)` or `(D, h, w)`."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Noise | None) -> Passage:
        """Features `[B, *feature_shape]` to z and its distribution.

        With `noise` z is a reparameterised draw; without it z is the distribution's mode (its mean).
        """


class Prior(nn.Module, ABC):
    """Which latents are plausible: p(z), or p(z | label)."""

    @abstractmethod
    def forward(self, label: Tensor | None) -> Distribution:
        """A distribution with event shape `latent_shape`; batch shape `()` or, given labels, `[B]`."""
