"""Kind of data: what differs between pictures, signals and vectors and is not a network.

A kind of another package is a final subclass of `Kind`, registered with the rank of its examples. If its examples come
in files of their own, such as pictures, its `files` reads them: folders, INPUTS and tasks then accept these files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary, Schema
from tessella.foundation.errors import DataError, SpecError
from tessella.foundation.registry import entries
from tessella.foundation.text import shown

File = str | bytes
"""Path of a file, or its content."""
SoundValues = Literal["pcm", "mu-law", "real"]
"""Values as which sounds are stored: whole numbers as in the file, mu-law codes, or floats."""
DataKind = Literal["signal", "series"]
"""How arrays and tables are read if not as pictures and vectors: each row a signal, or each row a time."""


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


@final
@dataclass(frozen=True)
class ReadOptions:
    """Options for reading the examples of a data set.

    Attributes:
        size: (height, width) to which pictures are cropped and resized.
        channels: number of channels to which pictures and sounds are converted.
        rate: samples per second to which sounds are resampled.
        seconds: length of the windows into which sounds are cut.
        values: values as which sounds are stored: `pcm`, `mu-law` or `real`.
        whole_windows: whether what is shorter than a window is left out of sounds.
        kind: `signal` to read arrays as signals, `series` to read rows as consecutive times.
        window, stride: rows of a window of a series, and from one training window to the next.
        valid_share, test_share: shares of a series that are cut out for validation and test.
        seed: seed of the division into splits.
        like: schema of the data that a model was trained on.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    rate: int | None = None
    seconds: float | None = None
    values: SoundValues | None = None
    whole_windows: bool = False
    kind: DataKind | None = None
    window: int | None = None
    stride: int | None = None
    valid_share: float | None = None
    test_share: float | None = None
    seed: int = 0
    like: Schema | None = None


@final
@dataclass(frozen=True)
class FileHeader:
    """Header of a file.

    Attributes:
        spatial: sides of its content: (height, width) of an upright picture, (samples,) of a sound.
        channels: channels that hold all of its content.
        deep: whether its values have more than 8 bits and are read in full.
        cut: whether its values have more than 8 bits, of which the decoder keeps the upper 8.
        rate: samples per second of a sound.
        coding: storage of a sound's samples, by the name in libsndfile, such as `PCM_16`.
        trouble: why it cannot be read; empty if it can.
    """

    spatial: tuple[int, ...] = ()
    channels: int = 0
    deep: bool = False
    cut: bool = False
    rate: int = 0
    coding: str = ""
    trouble: str = ""


class FileReader(ABC):
    """Reader of files that hold one example each, or several: consecutive windows of a recording.

    Attributes:
        endings: endings of these files, in small letters.
        example, examples: words for one file and for several.
        windowed: whether a file may hold several examples.
    """

    endings: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    examples: ClassVar[str]
    windowed: ClassVar[bool] = False

    @abstractmethod
    def header(self, file: File) -> FileHeader:
        """Read the header of a file. It raises nothing: its `trouble` says why a file cannot be read."""

    @abstractmethod
    def schema(
        self, files: Sequence[tuple[Callable[[], File], FileHeader]], options: ReadOptions, notes: list[str]
    ) -> Schema:
        """Choose one schema to which all files of a data set are converted.

        Args:
            files: readable files with their headers, at least one, in an order that does not depend on their names.
            options: options of the user.
            notes: receives a line for each decision.
        """

    @abstractmethod
    def holds(self, schema: Schema) -> bool:
        """Return whether such files hold these values without loss."""

    def parts(self, header: FileHeader, schema: Schema) -> int:
        """Return the number of examples in a file: 1, unless the reader is `windowed`."""
        return 1

    def length(self, header: FileHeader, schema: Schema) -> int:
        """Return the number of positions in all examples of a file, if the reader is `windowed`."""
        return 0

    def changes(self, headers: Sequence[FileHeader], schema: Schema) -> list[str]:
        """Describe how readable files are changed to fit a schema, a line for each change, if the reader says so."""
        return []

    def facts(self, files: Sequence[tuple[Callable[[], File], FileHeader]], schema: Schema) -> list[tuple[str, str]]:
        """Measure the content of readable files: names and texts, one line each."""
        return []

    @abstractmethod
    def read(self, file: File, schema: Schema, part: int = 0) -> Tensor:
        """Read an example as stored values `[*shape]`, converted to a schema. Decoders may raise any exception.

        Args:
            part: number of the example in the file, from 0.
        """

    @abstractmethod
    def trouble(self, error: Exception) -> str:
        """Describe in a few words why a file cannot be read."""


class Kind(ABC):
    """Rendering, files and words of one kind of data.

    Args:
        schema: description of one example.

    Attributes:
        example, examples: words for one example and for several.
        dimension: word for one number of an example.
        file_ending: ending of the files that `write` makes.
        files: reader of files that hold one example each; None if there are none.
        pixels: whether positions are pixels, so that patches and maps of an example are pictures too.
        timed: whether positions follow one another in time, so that examples may be parts of longer recordings.
        audible: whether the files of examples can be played as sound.
    """

    example: str = "example"
    examples: str = "examples"
    dimension: str = "number"
    file_ending: str = ".npy"
    files: ClassVar[FileReader | None] = None
    pixels: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    audible: bool = False

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

    @property
    @final
    def in_files(self) -> bool:
        """Return whether examples are read from files of their own and written to them without loss."""
        return self.files is not None and self.files.holds(self.schema)

    @final
    def read(self, file: File, part: int = 0, *, name: str = "", spatial: tuple[int, ...] | None = None) -> Tensor:
        """Read one example `[*shape]` from a file as stored values.

        Args:
            file: path of the file, or its content.
            part: number of the example in the file, from 0.
            name: name of the file in messages. Default: its path.
            spatial: sides to which it is converted. Default: those of the schema.

        Raises:
            DataError: if the file cannot be read (`unreadable`), or no such file holds these values (`no-pictures`).
        """
        schema = self.schema if spatial is None else replace(self.schema, spatial=spatial)
        if self.files is None or not self.in_files:
            shape = "x".join(map(str, schema.shape))
            raise DataError(
                f"the model expects {schema.values} values of shape {shape}, which no file of its own holds: give "
                "example numbers, or files of arrays or tables",
                code="no-pictures",
            )
        try:
            return self.files.read(file, schema, part)
        except Exception as error:  # decoders of broken files raise nearly anything
            name, reason = name or str(file), self.files.trouble(error)
            raise DataError(
                f"{shown(name)} cannot be read: {reason}", code="unreadable", name=name, reason=reason
            ) from None

    @abstractmethod
    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        """Write stored values `[*shape]` of one example to a file.

        Args:
            path: the file.
            x: the example.
            form: format of the restored file, if the kind has several: the mode of a picture.
        """

    def write_joined(self, path: Path, windows: Iterable[Tensor], form: str = "") -> None:
        """Write one example that comes as consecutive windows `[*shape]`, as `write` does."""
        self.write(path, torch.cat(list(windows), -1), form)

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


def kinds_in_files() -> dict[str, type[Kind]]:
    """List the kinds whose examples come in files of their own, by the endings of these files."""
    kinds: list[type[Kind]] = [entry.load() for entry in entries("kind")]
    return {ending: kind for kind in kinds if kind.files is not None for ending in kind.files.endings}


def reader_of(kind: type[Kind]) -> FileReader:
    """Return the reader of a kind whose examples come in files of their own."""
    assert kind.files is not None
    return kind.files


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
