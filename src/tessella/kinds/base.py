"""Kind of data: what differs between pictures, signals and vectors and is no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import entries

Probe = Literal["rotation", "flip", "autoencoder"]


class Kind(ABC):
    """Rendering, files and words of one kind of data.

    Args:
        schema: what one example is.

    Attributes:
        example, examples: words for one and for several.
        place: word for one position.
        image_files: whether examples are read from picture files and written to them.
    """

    example: ClassVar[str] = "example"
    examples: ClassVar[str] = "examples"
    place: ClassVar[str] = "number"
    image_files: ClassVar[bool] = False

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @property
    @abstractmethod
    def description(self) -> str:
        """What the examples are, in a few words."""

    @property
    @abstractmethod
    def tile_size(self) -> tuple[int, int]:
        """Height and width of a rendered example, in pixels."""

    @property
    @abstractmethod
    def probe(self) -> Probe:
        """Task of the small classifier where there are no classes."""

    @abstractmethod
    def tiles(self, x: Tensor) -> np.ndarray:
        """Render stored values `[B, *shape]` as pictures `[B, H, W, channels]` uint8."""

    @abstractmethod
    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Make copies of `[B, *shape]` with the small changes by which near-duplicates come about.

        Args:
            noise: of each example.
        """

    @final
    def noisy_copy(self, x: Tensor, noise: Noise) -> Tensor:
        """Add noise of one hundredth of the range; flip one binary value in a hundred."""
        values = self.schema.values
        if values == Binary():
            return torch.where(noise.uniform(*x.shape) < 0.01, 1 - x, x)
        copy = x.float() + 0.01 * (values.high - values.low) * noise.normal(*x.shape)
        return copy.clamp(values.low, values.high).round().to(x.dtype) if values.discrete else copy

    @final
    def unit(self, x: Tensor) -> np.ndarray:
        """Scale stored values to `[0, 1]`; those outside the range are clipped."""
        values = self.schema.values
        return np.clip(np.nan_to_num((x.detach().to("cpu").float().numpy() - values.low) / values.span), 0, 1)


@lru_cache(256)
def kind_of(schema: Schema) -> Kind:
    """Find the kind of such examples among the registered ones, by their rank.

    Raises:
        SpecError: if there is none.
    """
    for entry in entries("kind"):
        if entry.facts["rank"] == schema.rank:
            return entry.load()(schema)
    raise SpecError(f"no kind of data has {schema.rank} spatial axes", code="no-such-kind")
