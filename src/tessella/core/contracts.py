"""The parts that every model is made of. Read this page first.

A model is a joint distribution p(x, z) = p(z) p(x | z) with an inference network q(z | x):

    x --Likelihood.to_network--> Encoder --> Bottleneck --> z --> Decoder --Likelihood--> p(x | z)
                                                 |
                                             q(z | x)  against  Prior p(z)

Networks return parameters; likelihoods, bottlenecks and priors turn parameters into
`torch.distributions.Distribution` objects with batch shape `[B]`, so `log_prob` is in nats per example.
`shape` is the shape of one stored example, `(C, *spatial)`; `label` is `[B]` int64 or None.
A class is abstract (this page) or final (everything else): to vary behaviour, compose.

With discrete latents the bottleneck is a `Quantizer`: q(z | x) is a point mass on a grid of codes (integers from 0 to
K - 1), and the decoder takes the codes' vectors. A `CodePrior` is the distribution over such grids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from tessella.core.distributions import PointMass
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.outputs import UNCONDITIONAL, BottleneckOutput, Condition, Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.core.selectors import Coded, Draw, Selector


class StoredValues(Distribution, ABC):
    """Distribution p(x | z) over stored values, with batch shape `[B]` and event shape `shape`.

    `log_prob` takes stored values of any dtype; `mean` and `sample()` return floating-point numbers in stored units.
    A value that is NaN is not observed: it is marginalised, so it costs nothing and has no gradient.
    """

    def __init__(self, batch: int, shape: torch.Size | tuple[int, ...]) -> None:
        super().__init__(torch.Size((batch,)), torch.Size(shape), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Constraint]:
        return {}

    @abstractmethod
    def by_position(self, value: Tensor) -> Tensor:
        """Compute log p of each position, `[B, *spatial]` nats. Its sum is `log_prob`."""

    @property
    def independent(self) -> StoredValues:
        """Return the distribution of each position given z alone, if there is a cheap one; else itself."""
        return self

    @abstractmethod
    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """Write `value` to an encoder or read it from a decoder, at a cost of -log p; SpecError for densities.

        Args:
            coder: the encoder or the decoder.
            value: stored values to write; None to read them.
            observed: `[B, *spatial]` bool, the positions that are coded; the others are NaN in `value` and in the
                result. None: all positions.
        """

    def encode(self, coder: SymbolCoder, value: Tensor, observed: Tensor | None = None) -> Tensor:
        """Write `value` to an encoder, as `code` does, and compute its log p `[B]`."""
        self.code(coder, value, observed)
        return self.log_prob(value)


class Likelihood(nn.Module, ABC):
    """Maps parameters to p(x | z), normalised over stored values; SpecError if they do not suit the schema."""

    sequential_mean: bool = False
    """Whether the mean is computed position by position, which is slow."""
    detached: bool = False
    """Whether its own parameters have a loss of their own, of which the decoder gets no gradient in training mode."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    @property
    @abstractmethod
    def parameter_channels(self) -> int:
        """Return the number of channels of the decoder's output `[B, parameter_channels, *spatial]`."""

    @abstractmethod
    def to_network(self, x: Tensor) -> Tensor:
        """Convert stored values `[B, *shape]` to the encoder's input: float32 of about unit scale, 0 where x is NaN."""

    @abstractmethod
    def initial_bias(self) -> Tensor | None:
        """Return the initial bias `[parameter_channels]` of the decoder's last layer, or None for the default."""

    @abstractmethod
    def forward(self, parameters: Tensor) -> StoredValues:
        """Map parameters `[B, parameter_channels, *spatial]` to p(x | z), in float32 whatever the autocast."""


class Encoder(nn.Module, ABC):
    """Maps data, and a label if any, to features.

    Where values may be missing, its input has a mask for each channel besides: 1 where the value is observed, else 0.
    """

    feature_shape: tuple[int, ...]
    """Shape of one example's features: `(F, *spatial)`."""
    downsampling: int = 1
    """Number of data positions, along each axis, per position of the features."""
    margin: int | None = None
    """Largest distance to its own positions of data that a position of the features depends on; None: on all data."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Map the output of `Model.encoder_input` `[B, *encoder_shape]` to features `[B, *feature_shape]`."""


class Decoder(nn.Module, ABC):
    """Maps latents z to the parameters of the likelihood p(x | z)."""

    margin: int | None = None
    """Largest distance of latents, in data positions, that a position of the parameters depends on; None: on all."""

    @abstractmethod
    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Map latents `[B, *latent_shape]` to the likelihood's parameters `[B, parameter_channels, *spatial]`."""

    @abstractmethod
    def start_at(self, bias: Tensor) -> None:
        """Start the parameters at `bias` `[parameter_channels]`, nearly independent of z, by setting the last layer."""


class Bottleneck(nn.Module, ABC):
    """Maps encoder features to the approximate posterior q(z | x) and a sample of it."""

    latent_shape: tuple[int, ...]
    """Shape of one example's z: `(D, *spatial)`."""
    stochastic: bool = True
    """Whether `BottleneckOutput.posterior` is a distribution, so that z has a rate."""
    gaussian: bool = False
    """Whether it is a diagonal Gaussian, so that mean and standard deviation describe it fully."""
    sequential_density: bool = False
    """Whether log q(z | x) at another example's z is computed number by number, which is slow."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        """Map features `[B, *feature_shape]` to q and z: a reparameterised sample, or the mean if `noise` is None."""


class Prior(nn.Module, ABC):
    """Prior over continuous latents: p(z), or p(z | label)."""

    classes: int = 0
    """Number of labels of a class-conditional prior; 0: the prior takes no labels."""
    exact: bool = True
    """Whether `log_prob` is the exact log-density; for an iterative prior it is a lower bound."""
    iterative: bool = False
    """Whether sampling takes many steps, so that `Sampling.steps` and `Sampling.guidance` apply."""

    @abstractmethod
    def forward(self, label: Tensor | None, noise: Noise | None = None) -> Distribution:
        """Return the distribution of z: event shape `latent_shape`, batch shape `()`, or `[B]` given labels.

        `noise` is for priors that estimate `log_prob` at random steps; if it is None, the steps are fixed.
        """

    @abstractmethod
    def draw(self, count: int, noise: Noise, label: Tensor | None, sampling: Sampling) -> Tensor:
        """Sample z; `sample` checks the arguments and calls this method."""

    @torch.no_grad()
    def sample(
        self, count: int, noise: Noise, label: Tensor | None = None, *, sampling: Sampling | None = None
    ) -> Tensor:
        """Sample z ~ p(z), `[count, *latent_shape]` float32; all randomness comes from `noise`.

        The temperature multiplies the standard deviation. SpecError if a prior that is not iterative gets steps or
        guidance.
        """
        sampling = sampling or Sampling()
        if not self.iterative:
            sampling.reject_steps(type(self).__name__)
        return self.draw(count, noise, self.check_label(label), sampling)

    def check_label(self, label: Tensor | None) -> Tensor | None:
        """Return the label if the prior is class-conditional, else None; ValueError if it needs one and gets None."""
        if self.classes and label is None:
            raise ValueError("a class-conditional prior needs labels: pass one for each example")
        return label if self.classes else None


class Quantizer(Bottleneck, ABC):
    """Bottleneck with discrete codes: q(z | x) is a point mass, so the rate is -log p(codes).

    `BottleneckOutput.posterior` is a `PointMass` on the codes `[B, *code_shape]` (int64). `z` holds the codes' vectors;
    gradients pass straight through to the features. Grids of any size are accepted. Computed in float32 whatever the
    autocast. In training mode `forward` also updates a codebook that is learned from running statistics.

    An example may end before its grid does. The positions after its end have no codes: they hold -1, their vectors are
    0, and they have no penalty, no rate and no part in statistics.
    """

    codebook_size: int
    """K: codes are 0 ... K - 1."""
    code_shape: tuple[int, ...]
    """Shape of one example's codes: `(C, *spatial)`, C codes per position."""
    nested: bool = False
    """Whether the first codes of a position stand for z without the others, less closely."""
    codes_used: int | None = None
    """Number of codes of each position that are used, of nested ones; the others hold -1. None: all."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Noise | None, present: Tensor | None = None) -> BottleneckOutput:
        """Map features `[B, *feature_shape]` to codes and their vectors.

        Args:
            features: output of the encoder.
            noise: source of random numbers for learned codebooks.
            present: `[B, *spatial]` bool, the positions before the end of each example; None: all.
        """

    @final
    def output(self, z: Tensor, codes: Tensor, penalty: Tensor | None, present: Tensor | None) -> BottleneckOutput:
        """Make the output of `forward`, with 0 and -1 for the vectors and codes after the end of each example."""
        if present is not None:
            z, codes = (t.masked_fill(~present.unsqueeze(1), fill) for t, fill in ((z, 0), (codes, -1)))
        return BottleneckOutput(z, PointMass(codes), penalty)

    @abstractmethod
    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample codes near those of `forward` for importance sampling, with their log-probabilities.

        The closer to p(codes | x), the tighter the bound.

        Returns:
            Codes `[B, C, *spatial]`, and log q of the C codes of each position together, `[B, *spatial]`.
        """

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """Map codes `[B, C, *spatial]`, all at least 0, to their vectors `[B, D, *spatial]`."""

    @final
    def lookup(self, codes: Tensor) -> Tensor:
        """Map codes `[B, C, *spatial]` to their vectors `[B, D, *spatial]`, the z of `forward`: 0 for codes of -1."""
        return self.vectors(codes.clamp_min(0)).masked_fill(codes[:, :1] < 0, 0)


class CodePrior(nn.Module, ABC):
    """Prior over grids of codes, p(codes | condition).

    Made from (code_shape, codebook_size, context_channels=0, classes=0), with the channels of the condition's context.
    """

    code_shape: tuple[int, ...]
    """Shape of one example's codes: `(C, *spatial)`, C codes per position."""
    classes: int = 0
    any_order = False
    """Whether `inpaint` is conditional on all known codes, instead of only those before each code."""

    @abstractmethod
    def forward(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        """Compute log p of each code given the codes before it, `[B, *code_shape]` float32 nats.

        The sum is log p(codes), or a lower bound on it. `codes` are `[B, *code_shape]` int64. `noise` is for priors
        that estimate their bound with a random order; if it is None, the order is fixed.
        """

    @abstractmethod
    def generate(self, count: int, select: Selector, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Generate codes `[count, *code_shape]` int64, each chosen by `select` given the codes before it.

        In raster order, or with `any_order` in any, conditional on known codes from the start. Sampling, inpainting and
        coding are this loop with three selectors.
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
        """Sample the unknown codes given all known codes (`any_order`) or those before each.

        `codes` is `[B, *code_shape]` int64, `known` its bool mask; unknown entries are ignored, known ones are kept.
        """
        select = Draw(noise, codes.masked_fill(~known, -1), tuple(codes.shape), sampling)
        return self.generate(len(codes), select, condition)

    def code(
        self,
        coder: SymbolCoder,
        count: int,
        codes: Tensor | None = None,
        condition: Condition = UNCONDITIONAL,
        present: Tensor | None = None,
    ) -> Tensor:
        """Write `codes` to an encoder, or read `count` grids from a decoder, at a cost of -log p.

        Codes that are not `present` `[B, *code_shape]` take no bits, and are 0 in the result.
        """
        return self.generate(count, Coded(coder=coder, codes=codes, present=present), condition)
