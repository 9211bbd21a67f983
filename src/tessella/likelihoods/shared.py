"""Shared parts of the likelihoods: units, base classes of their distributions, and checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.types import _size

from tessella.core.contracts import StoredValues
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.observed import observed, zero_filled
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option


class Standardizer(nn.Module):
    """Affine map between stored and network units: `stored = center + scale * network`.

    Discrete values go to [-1, 1]. Real values are standardised with the schema's center and scale, per channel
    (pictures), per feature (vectors) or one for all. A scale of zero (a constant feature) counts as one.

    Args:
        schema: of one example.
        by_level: whether sounds of integers are divided by their level, the schema's scale, instead.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, schema: Schema, *, by_level: bool = False) -> None:
        super().__init__()
        if not schema.values.discrete:
            center, scale = schema.center, tuple(s if s > 0 else 1.0 for s in schema.scale)
        else:
            half = schema.values.span / 2
            center, scale = (schema.values.low + half,), ((by_level and schema.level) or half,)
        for name, numbers in (("center", center), ("scale", scale)):
            if len(numbers) not in (1, schema.shape[0]):
                raise SpecError(
                    f"the data's {name} has {len(numbers)} numbers, but data of shape {schema.shape} needs 1 or "
                    f"{schema.shape[0]}: prepare the data again",
                    code="other-channels",
                )
            tensor = torch.tensor(numbers, dtype=torch.float32).reshape(-1, *(1,) * (len(schema.shape) - 1))
            self.register_buffer(name, tensor, persistent=False)

    def to_network(self, x: Tensor) -> Tensor:
        """Convert stored values `[B, *shape]` to float32 of about unit scale, and what is not observed to 0."""
        y = (x.to(torch.float32) - self.center) / self.scale
        return zero_filled(y) if x.is_floating_point() else y

    def to_stored(self, y: Tensor) -> Tensor:
        """Invert `to_network`, in y's precision."""
        return self.center + self.scale * y


class IndependentValues(StoredValues, ABC):
    """Stored values that are independent given the parameters.

    Attributes:
        filler: a value that stands in for those that are not observed.
    """

    filler: float = 0.0

    @abstractmethod
    def each(self, value: Tensor) -> Tensor:
        """Compute log p of each value, `[B, *event_shape]`; all values are observed."""

    def log_prob(self, value: Tensor) -> Tensor:
        each = self._of_observed(value)
        return each.flatten(each.dim() - len(self.event_shape)).sum(-1)

    def by_position(self, value: Tensor) -> Tensor:
        return over_channels(self._of_observed(value))

    @final
    def each_observed(self, observed: Tensor | None) -> Tensor | None:
        """Expand the positions that are observed, `[B, *spatial]`, to the values `[B, *event_shape]`."""
        if observed is None or len(self.event_shape) == 1:
            return observed
        return observed.unsqueeze(1).expand(self.batch_shape + self.event_shape)

    def _of_observed(self, value: Tensor) -> Tensor:
        """Compute log p of each value, 0 where it is not observed."""
        seen = observed(value)
        return (
            self.each(value) if seen is None else self.each(value.masked_fill(~seen, self.filler)).masked_fill(~seen, 0)
        )


@final
class RealValues(IndependentValues):
    """Independent real values with a density, given by a distribution of batch shape `[B, *event_shape]`."""

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        super().__init__(distribution.batch_shape[0], distribution.batch_shape[1:])

    def each(self, value: Tensor) -> Tensor:
        return self.distribution.log_prob(value)

    @property
    def mean(self) -> Tensor:
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        return self.distribution.variance

    def sample(self, sample_shape: _size = ()) -> Tensor:
        return self.distribution.sample(sample_shape)

    def code(self, coder: SymbolCoder, value: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        raise SpecError(
            "real values have a density instead of probabilities, so they cannot be compressed without loss",
            code="density",
        )


def over_channels(each: Tensor) -> Tensor:
    """Sum log-probabilities of single values `[B, *shape]` over channels, to one per position."""
    return each.sum(1) if each.dim() > 2 else each


def require_values(schema: Schema, likelihood: str, *kinds: str) -> None:
    """Check that the data has values of one of these kinds.

    Raises:
        SpecError: if it has not; the message names a likelihood that suits the data.
    """
    if schema.values.kind not in kinds:
        binarize = (
            f"add {option('binarize')} dynamic, or " if "binary" in kinds and schema.values.name == "uint8" else ""
        )
        wanted = " or ".join(kind.removesuffix("s") for kind in kinds)
        raise SpecError(
            f"the {likelihood} likelihood needs {wanted} values, but this data holds "
            f"{schema.values.words} values: {binarize}use {option('likelihood')} {schema.values.default_likelihood}",
            code="wrong-values",
        )


def require_complete(schema: Schema, model: str) -> None:
    """Check that examples are observed in full.

    Raises:
        SpecError: if some may end early, or have missing values.
    """
    if schema.partial:
        what = "examples of different lengths" if schema.lengths else "missing values"
        whole = f"leave out what is shorter than a window ({option('whole_windows')} and {option('seconds')}), or "
        instead = f"{whole if schema.rate else ''}train a vae or a vqvae"
        raise SpecError(f"the {model} model takes no {what}: {instead}", code="partial")


def checked_parameters(parameters: Tensor, schema: Schema, channels: int) -> Tensor:
    """Return the decoder's output in float32 (float64 is kept), after a check of its shape.

    The shape is `[B, channels, *spatial]`. Pictures may have another size than the schema's, because convolutional
    networks decode any size.

    Raises:
        ValueError: if the shape is wrong.
    """
    if parameters.dim() != len(schema.shape) + 1 or parameters.shape[1] != channels:
        spatial = ", *spatial" if schema.rank else ""
        raise ValueError(
            f"the likelihood needs parameters of shape [B, {channels}{spatial}], but the decoder returned "
            f"{list(parameters.shape)}: its last layer must have {channels} outputs"
        )
    return parameters if parameters.dtype == torch.float64 else parameters.to(torch.float32)
