"""The parts that every model is made of. Read this page first.

A model is a joint distribution p(x, z) = p(z) p(x | z) with an inference network q(z | x):

    x --Likelihood.to_network--> Encoder --> Bottleneck --> z --> Decoder --Likelihood--> p(x | z)
                                                 |
                                             q(z | x)  against  Prior p(z)

Networks return parameters; likelihoods, bottlenecks and priors turn parameters into
`torch.distributions.Distribution` objects whose batch shape is `[B]`, so `log_prob` is nats per example.
`shape` is the data's, `(C, H, W)` or `(D,)`; `spatial` is `(H, W)` or `()`; `label` is `[B]` int64 or None.
A class is abstract (this page) or final (everything else): to vary behaviour, compose.

Where z is discrete, a `Quantizer` is the bottleneck: q(z | x) is a point mass on a grid of codes, integers from 0 to
K - 1, and the decoder is given the vectors that the codes stand for. A `CodePrior` says which grids are plausible.

Imports beside it: noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution

from tessella.core.outputs import BottleneckOutput, Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema


class SymbolCoder(ABC):
    """Where symbols are told under tables that both ends know: by a sender who knows them, or to a receiver.

    Whatever can be entropy coded has a method `code(wire, ..., value)` which is walked through alike at both ends: the
    sender gives the value, the receiver None, and both get it back.
    """

    @abstractmethod
    def code(self, table: Tensor, symbols: Tensor | None) -> Tensor:
        """Symbols `[n]` int64 from 0 to k - 1, each under its own integer edges `[k + 1, n]` (`entropy_coding`)."""

    @abstractmethod
    def code_uniform(self, size: int, count: int, symbols: Tensor | None) -> Tensor:
        """`count` symbols from 0 to size - 1, all equally probable."""


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
    stochastic = True
    """Whether `BottleneckOutput.posterior` is a distribution, so that z has a rate."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        """Features `[B, *feature_shape]` to z and its distribution.

        With `noise` z is a reparameterised draw; without it z is the distribution's mode (its mean).
        """


class Prior(nn.Module, ABC):
    """Which latents are plausible: p(z), or p(z | label)."""

    exact = True
    """Whether `log_prob` is the log-density itself; a prior made of many steps has a lower bound on it instead."""

    @abstractmethod
    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        """A distribution with event shape `latent_shape`; batch shape `()` or, given labels, `[B]`.

        Args:
            noise: for priors that estimate their `log_prob` by random steps; without it the steps are fixed.
        """

    @abstractmethod
    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        *,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """z ~ p(z), `[count, *latent_shape]` float32.

        Args:
            noise: all randomness comes from it.
            label: `[count]`, for a class-conditional prior.
            temperature: a factor on the deviation of what is drawn; 1 draws from the prior itself.
            progress: told (steps done, steps in all) by a prior that draws in many steps.
        """


class Quantizer(Bottleneck, ABC):
    """A bottleneck of codes: q(z | x) is a point mass on integers, so the rate is -log p(codes).

    `BottleneckOutput.posterior` is a `PointMass` on the codes `[B, *code_shape]` (int64); `z` are the vectors that they
    stand for, with the gradient passed straight through to the features. Any number of positions is taken: a grid
    larger than the one that it was made with is quantised just the same. Computed in float32 whatever the autocast.
    In training mode a codebook that is kept by statistics (rather than gradients) is updated in `forward`.
    """

    codebook_size: int
    """K: a code is 0 ... K - 1."""
    code_shape: tuple[int, ...]
    """Shape of one example's codes: `(C,)` or `(C, h, w)`, C codes a position."""

    @abstractmethod
    def soften(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Codes `[B, *code_shape]` drawn about those that `forward` chooses, and their log-probabilities `[B]`.

        A proposal for importance sampling: any distribution makes a bound, and a good one is near p(codes | x).
        """

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Codes `[B, C, *spatial]` to the vectors that they stand for, `[B, D, *spatial]`: what `forward` gave as z."""


class CodePrior(nn.Module, ABC):
    """Which grids of codes are plausible: p(codes | label, context).

    Args:
        code_shape: `(C, h, w)`: C codes a position. Of vectors' codes, a row of them: `(1, 1, C)`.
        codebook_size: K.
        context_channels: channels of a feature map that all codes may look at (the coarser levels' vectors); 0: none.
        classes: number of labels, for a class-conditional prior; 0: none.
    """

    any_order = False
    """Whether `fill` looks at all known codes, and not at those before each code alone."""

    @abstractmethod
    def forward(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        """log p of each code given those before it, `[B, C, h, w]` float32 nats: the sum is log p(codes), or below it.

        Args:
            codes: `[B, C, h, w]` int64.
            label: `[B]`, if it is class-conditional.
            context: `[B, context_channels, h, w]` float, if it has one.
            noise: for priors that estimate their bound by a random order; without it the order is fixed.
        """

    @abstractmethod
    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Codes `[count, C, h, w]` int64, drawn position by position.

        Args:
            noise: all randomness comes from it.
            sampling: temperature and cut-offs.
            progress: told (positions done, positions in all).
        """

    @abstractmethod
    def fill(
        self,
        codes: Tensor,
        known: Tensor,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw the codes that are not known, given all known ones or those before each (`any_order`): `[B, C, h, w]`.

        Args:
            codes: `[B, C, h, w]` int64; those not known may be any number.
            known: `[B, C, h, w]` bool; these come back as they were.
            noise, label, context, sampling, progress: as of `sample`.
        """

    @abstractmethod
    def code(
        self,
        wire: SymbolCoder,
        count: int,
        codes: Tensor | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Codes `[count, C, h, w]` int64 over the wire at the price of -log p, in the order in which they are drawn."""
