"""Kind of data: what differs between pictures, signals and vectors and is no network.

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
    """Codec that compressed files are compared with.

    Attributes:
        name: name at the faces.
        size: counts the bytes that it takes for examples `[*shape]`.
    """

    name: str
    size: Callable[[Sequence[Tensor]], int]


class Kind(ABC):
    """Rendering, files and words of one kind of data.

    Args:
        schema: what one example is.

    Attributes:
        example, examples: words for one and for several.
        dimension: word for one number of an example.
        file_ending: ending of the files that `write` makes.
    """

    example: ClassVar[str] = "example"
    examples: ClassVar[str] = "examples"
    dimension: ClassVar[str] = "number"
    file_ending: ClassVar[str] = ".npy"

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
    def image_files(self) -> bool:
        """Whether examples are read from picture files, and written to them without loss."""

    @property
    @abstractmethod
    def probe(self) -> str:
        """Name of the task that a small classifier learns where there are no classes."""

    @abstractmethod
    def poses(self, x: Tensor) -> list[Tensor]:
        """Turn `[B, *shape]` in the ways that the classifier learns to tell apart; empty: it is an autoencoder."""

    @abstractmethod
    def render(self, x: Tensor) -> np.ndarray:
        """Render stored values `[B, *shape]` as pictures `[B, H, W, channels]` uint8."""

    @abstractmethod
    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        """Write stored values `[*shape]` of one example to a file.

        Args:
            form: the form that the file is restored to, where the kind knows several: the mode of a picture.
        """

    @abstractmethod
    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        """List the codecs that are installed and that files of such examples are compared with."""

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
