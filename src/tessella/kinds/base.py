"""Kind of data: what differs between pictures, signals and vectors and is not a network.

A kind of another package is a final subclass of `Kind`, registered with the rank of its examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import entries


@final
@dataclass(frozen=True)
class Codec:
    """Codec with which compressed files are compared.

    Attributes:
        name: name shown to users.
        size: function that returns the number of bytes for examples `[*shape]`.
    """

    name: str
    size: Callable[[Sequence[Tensor]], int]


class Kind(ABC):
    """Rendering, files and words of one kind of data.

    Args:
        schema: description of one example.

    Attributes:
        example, examples: words for one example and for several.
        dimension: word for one number of an example.
        file_ending: ending of the files that `write` makes.
        pixels: whether positions are pixels, so that patches and maps of an example are pictures too.
    """

    example: ClassVar[str] = "example"
    examples: ClassVar[str] = "examples"
    dimension: ClassVar[str] = "number"
    file_ending: ClassVar[str] = ".npy"
    pixels: ClassVar[bool] = False

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    @property
    @abstractmethod
    def description(self) -> str:
        """Describe the examples in a few words."""

    @property
    @abstractmethod
    def tile_size(self) -> tuple[int, int]:
        """Return height and width of a rendered example, in pixels."""

    @property
    @abstractmethod
    def image_files(self) -> bool:
        """Return whether examples are read from picture files and written to them without loss."""

    @property
    @abstractmethod
    def probe(self) -> str:
        """Return the name of the small classifier's task for data without classes."""

    @abstractmethod
    def poses(self, x: Tensor) -> list[Tensor]:
        """Return transformed copies of `[B, *shape]` that the classifier learns to distinguish.

        The list is empty if an autoencoder is used instead.
        """

    @abstractmethod
    def render(self, x: Tensor) -> np.ndarray:
        """Render stored values `[B, *shape]` as pictures `[B, H, W, channels]` uint8."""

    @abstractmethod
    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        """Write stored values `[*shape]` of one example to a file.

        Args:
            path: the file.
            x: the example.
            form: format of the restored file, if the kind has several: the mode of a picture.
        """

    @abstractmethod
    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        """List the installed codecs with which files of such examples are compared."""

    @abstractmethod
    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Make copies of `[B, *shape]` with small changes, as near-duplicates have.

        Args:
            x: the examples.
            noise: source of random numbers for these examples.
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
        """Scale stored values to `[0, 1]`, clipping those outside the range."""
        values = self.schema.values
        return np.clip(np.nan_to_num((x.detach().to("cpu").float().numpy() - values.low) / values.span), 0, 1)


@lru_cache(256)
def kind_of(schema: Schema) -> Kind:
    """Find the registered kind of data with the rank of this schema.

    Raises:
        SpecError: if there is none.
    """
    for entry in entries("kind"):
        if entry.facts["rank"] == schema.rank:
            return entry.load()(schema)
    raise SpecError(f"there is no kind of data with {schema.rank} spatial axes", code="no-such-kind")
