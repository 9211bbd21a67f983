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
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from tessella.core.entropy_coding import SymbolCoder
from tessella.core.outputs import UNCONDITIONAL, BottleneckOutput, Condition, Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.core.selectors import Coded, Draw, Selector
from tessella.foundation.errors import SpecError


class StoredValues(Distribution, ABC):
    """Distribution over stored values, p(x | z): batch shape `[B]`, event shape `shape`.

    `log_prob` takes stored values of any dtype; `mean` and `sample()` give stored units in floating point.
    """

    def __init__(self, batch: int, shape: torch.Size | tuple[int, ...]) -> None:
        super().__init__(torch.Size((batch,)), torch.Size(shape), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    @abstractmethod
    def by_position(self, value: Tensor) -> Tensor:
        """Compute log p of each position, its channels together: `[B, *spatial]` nats, whose sum is `log_prob`."""

    @abstractmethod
    def code(self, coder: SymbolCoder, value: Tensor | None = None) -> Tensor:
        """Write `value` to an encoder, or read it from a decoder, at the price of -log p: `[B, *event_shape]` float32.

        SpecError if values have a density and no probability.
        """


class Likelihood(nn.Module, ABC):
    """p(x | z), normalised over the stored values of a schema; SpecError if it is no distribution over such values."""

    sequential_mean: bool = False
    """Whether a mean takes a pass position by position, so that it is slow."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        if schema.lengths:
            raise SpecError("examples of different lengths are not modelled yet: cut or pad them", code="lengths")
        self.schema = schema

    @property
    @abstractmethod
    def parameter_channels(self) -> int:
        """Channels that the decoder must give: `[B, parameter_channels, *spatial]`."""

    @abstractmethod
    def to_network(self, x: Tensor) -> Tensor:
        """Convert stored values `[B, *shape]` to float32 of about unit scale, for the encoder."""

    @abstractmethod
    def initial_bias(self) -> Tensor | None:
        """Make a bias `[parameter_channels]` that the decoder's last layer starts at; None: any will do."""

    @abstractmethod
    def forward(self, parameters: Tensor) -> StoredValues:
        """Turn parameters `[B, parameter_channels, *spatial]` into a distribution, in float32 whatever the autocast."""


class Encoder(nn.Module, ABC):
    """Maps data to features."""

    feature_shape: tuple[int, ...]
    """Shape of one example's features: `(F, *spatial)`."""
    downsampling: int = 1
    """Positions a side of the data that one position of the features stands for."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Map `[B, *shape]`, as `Likelihood.to_network` gives it, to features `[B, *feature_shape]`."""


class Decoder(nn.Module, ABC):
    """Maps latents z to the parameters of the likelihood p(x | z)."""

    @abstractmethod
    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Map latents `[B, *latent_shape]` to the likelihood's parameters `[B, parameter_channels, *spatial]`."""

    @abstractmethod
    def start_at(self, bias: Tensor) -> None:
        """Set the last layer so that the parameters start at `bias` `[parameter_channels]`, nearly independent of z."""


class Bottleneck(nn.Module, ABC):
    """Maps encoder features to the approximate posterior q(z | x) and a sample of it."""

    latent_shape: tuple[int, ...]
    """Shape of one example's z: `(D, *spatial)`."""
    stochastic: bool = True
    """Whether `BottleneckOutput.posterior` is a distribution, so that z has a rate."""
    sequential_density: bool = False
    """Whether log q(z | x) of another example's z takes a pass number by number, so that it is slow."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        """Map features `[B, *feature_shape]` to z, a reparameterised sample or without noise the mean, and to q."""


class Prior(nn.Module, ABC):
    """Distribution over continuous latents: p(z), or p(z | label)."""

    classes: int = 0
    """Number of labels, of a class-conditional prior; 0: it sees none."""
    exact: bool = True
    """Whether `log_prob` is the log-density itself; a prior made of many steps has a lower bound on it instead."""
    iterative: bool = False
    """Whether it samples in many steps, so that `Sampling.steps` and `Sampling.guidance` apply."""

    @abstractmethod
    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        """Make the distribution, with event shape `latent_shape` and batch shape `()` or, given labels, `[B]`.

        `noise` is for priors that estimate `log_prob` by random steps; without it the steps are fixed.
        """

    @abstractmethod
    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        """Sample as `sample` does, which checks the arguments."""

    @torch.no_grad()
    def sample(
        self, count: int, noise: Noise, label: Tensor | None = None, *, sampling: Sampling | None = None
    ) -> Tensor:
        """Sample z ~ p(z), `[count, *latent_shape]` float32; all randomness comes from `noise`.

        The temperature is a factor on the deviation. SpecError if steps or guidance are given and it is not iterative.
        """
        sampling = sampling or Sampling()
        if not self.iterative:
            sampling.reject_steps(type(self).__name__)
        return self.draw(count, noise, self.check_label(label), sampling)

    def check_label(self, label: Tensor | None) -> Tensor | None:
        """Return the label if it sees labels, else None; ValueError if it needs one and there is none."""
        if self.classes and label is None:
            raise ValueError("a class-conditional prior needs labels")
        return label if self.classes else None


class Quantizer(Bottleneck, ABC):
    """Bottleneck of codes: q(z | x) is a point mass on integers, so the rate is -log p(codes).

    `BottleneckOutput.posterior` is a `PointMass` on the codes `[B, *code_shape]` (int64); `z` are their vectors, with
    the gradient passed straight through to the features. Grids of any size are taken. Computed in float32 whatever the
    autocast. In training mode `forward` updates a codebook that is kept by statistics (rather than gradients).
    """

    codebook_size: int
    """K: a code is 0 ... K - 1."""
    code_shape: tuple[int, ...]
    """Shape of one example's codes: `(C,)` or `(C, h, w)`, C codes a position."""

    @abstractmethod
    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample codes `[B, *code_shape]` near those that `forward` chooses, with their log-probabilities `[B]`.

        A proposal for importance sampling: any distribution makes a bound, and a good one is near p(codes | x).
        """

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes `[B, C, *spatial]` to their vectors `[B, D, *spatial]`: what `forward` gave as z."""


class CodePrior(nn.Module, ABC):
    """Distribution over grids of codes, `p(codes | condition)`.

    Made of (code_shape, codebook_size, context_channels=0, classes=0): the condition's context has so many channels.
    """

    code_shape: tuple[int, ...]
    """Shape of one example's codes: `(C, *spatial)`, C codes a position."""
    classes: int = 0
    any_order = False
    """Whether `inpaint` looks at all known codes, and not at those before each code alone."""

    @abstractmethod
    def forward(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        """Compute log p of each code given those before it, `[B, *code_shape]` float32 nats.

        The sum is log p(codes), or a lower bound on it. `codes` are `[B, *code_shape]` int64. `noise` is for priors
        that estimate their bound by a random order; without it the order is fixed.
        """

    @abstractmethod
    def generate(self, count: int, select: Selector, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Generate codes `[count, *code_shape]` int64, each chosen by `select` given those that it has chosen before.

        In raster order; or, if `any_order`, in a fixed or random one, given known codes from the start. Sampling,
        inpainting and coding are this one loop with three selectors.
        """

    def sample(
        self, count: int, noise: Noise, condition: Condition = UNCONDITIONAL, *, sampling: Sampling | None = None
    ) -> Tensor:
        """Sample codes `[count, *code_shape]` int64; all randomness comes from `noise`."""
        return self.generate(count, Draw(noise, shape=(count, *self.code_shape), sampling=sampling), condition)

    def inpaint(
        self,
        codes: Tensor,
        known: Tensor,
        noise: Noise,
        condition: Condition = UNCONDITIONAL,
        *,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Sample the codes that are not known given all known ones (`any_order`), or those before each.

        `codes` `[B, *code_shape]` int64 may be any number where `known`, bool, is not; the others come back.
        """
        select = Draw(noise, codes.masked_fill(~known, -1), tuple(codes.shape), sampling)
        return self.generate(len(codes), select, condition)

    def code(
        self, coder: SymbolCoder, count: int, codes: Tensor | None = None, condition: Condition = UNCONDITIONAL
    ) -> Tensor:
        """Write `codes` to an encoder, or read `count` of them from a decoder, at the price of -log p."""
        return self.generate(count, Coded(coder=coder, codes=codes), condition)
