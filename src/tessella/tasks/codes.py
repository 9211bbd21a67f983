"""Tasks `encode` and `decode`: examples to codes in a file of plain arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, final

from tyro.conf import Positional, arg

from tessella.foundation.blocks import Page, Text
from tessella.foundation.errors import DataError, SpecError, option
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from tessella.coding.codes_file import StoredCodes
    from tessella.models.codes import CodeModel
    from tessella.training.run import Run


@dataclass(frozen=True)
class EncodeConfig:
    """Encode examples to codes: a few integers each, in a file of plain arrays that numpy reads.

    Attributes:
        inputs: files, folders, numbers of examples, names of splits, or other data; by default the whole split.
        native_size: keep pictures at their own size, instead of cropping and resizing them.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split to encode, or that numbers of examples refer to.
    """

    inputs: Positional[tuple[str, ...]] = ()
    native_size: bool = False
    data: str | None = None
    split: str = "test"


@final
@dataclass(frozen=True)
class EncodeResult(Result):
    """Codes of examples.

    Attributes:
        stored: the codes.
        codebook_sizes: codebook size of each level.
    """

    stored: StoredCodes
    codebook_sizes: tuple[int, ...]

    @property
    def bytes_per_example(self) -> float:
        """Return the mean size of an example's codes before entropy coding."""
        levels = zip(self.stored.levels, self.codebook_sizes, strict=True)
        bits = sum(sum(codes.size for codes in level) * math.log2(size) for level, size in levels)
        return bits / len(self.stored) / 8

    def to_json(self) -> Mapping[str, Any]:
        return {
            "version": 1,
            "model": self.stored.model,
            "examples": len(self.stored),
            "codes_per_example": self.stored.codes_per_example,
            "codebook_sizes": self.codebook_sizes,
            "bytes_per_example": self.bytes_per_example,
        }

    def page(self) -> Page:
        text = (
            f"{len(self.stored):,} examples, {self.stored.codes_per_example:g} codes and {self.bytes_per_example:.4g} "
            "bytes each before entropy coding"
        )
        return Page("Codes", (Text(text),))

    def save(self, out: Path) -> None:
        from tessella.coding.codes_file import write_codes

        write_codes(out, self.stored)


@task("encode", summary="encode examples as integers, in a file of plain arrays", group="codes", out="codes.npz")
def encode(run: Run, config: EncodeConfig) -> EncodeResult:
    """Encode examples with the model of a run."""
    from tessella.coding.codes_file import encode_codes

    model = _code_model(run)
    options: dict[str, Any] = {"data": config.data, "split": config.split, "native_size": config.native_size}
    if model.conditional:
        options["label"] = model.schema.classes[0]  # an encoder of codes does not see it
    examples = run.inputs(model, config.inputs, **options).track("encoding")
    stored = encode_codes(model, examples, run.fingerprint)
    return EncodeResult(stored, tuple(q.codebook_size for q in model.levels))


@dataclass(frozen=True)
class DecodeConfig:
    """Decode codes: to a picture per example, for signals and vectors to an array.

    Attributes:
        codes: file of codes that the task `encode` wrote.
        out: folder to write into; examples keep their names.
        label: class to decode as, by name or number, for a model whose decoder takes the label.
        sample: sample from p(x | z), noise included, instead of taking its mean.
        seed: seed of the samples.
        overwrite: replace existing files.
    """

    codes: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "decoded"
    label: str | None = None
    sample: bool = False
    seed: int = 0
    overwrite: bool = False


@final
@dataclass(frozen=True)
class DecodeResult(Result):
    """Examples decoded into a folder; `kind` names them."""

    examples: int
    kind: str
    out: str

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, **asdict(self)}

    def page(self) -> Page:
        return Page("Decoded codes", (Text(f"wrote {self.examples:,} {self.kind} into {Path(self.out)}"),))


@task("decode", summary="decode a file of codes to pictures", group="codes")
def decode(run: Run, config: DecodeConfig) -> DecodeResult:
    """Decode a file of codes with the model of a run."""
    from tessella.coding.codes_file import check_codes, decode_codes, read_codes
    from tessella.data.folders.read import windows_of
    from tessella.data.inputs import joined_windows, label_number
    from tessella.foundation.output_folder import Outputs, check_folder
    from tessella.kinds.base import kind_of

    check_folder(config.out)
    model, stored = _code_model(run), read_codes(config.codes)
    try:
        check_codes(stored, model, run.fingerprint)
    except DataError as error:
        raise DataError(f"{config.codes}: {error.message}", code=error.code) from error
    if model.networks_see_labels != (config.label is not None):
        takes = "decodes by the class: give it with" if model.networks_see_labels else "takes no class: leave out"
        raise SpecError(f"the model {model.name} {takes} {option('label')}", code="label-needed")
    label = None if config.label is None else label_number(model.schema, config.label)
    kind = kind_of(model.schema)
    windowed = kind.files is not None and kind.files.windowed
    parts = windows_of(stored.names) if windowed else dict.fromkeys(stored.names, 1)
    files = Outputs(config.out, list(parts), kind.file_ending, overwrite=config.overwrite)
    if len(set(stored.names)) < len(stored):
        raise DataError(f"{config.codes} has several examples with the same name: encode again", code="equal-names")
    with files as outputs:
        decoded = decode_codes(model, stored, label=label, sample=config.sample, seed=config.seed)
        for name, windows in joined_windows(decoded, parts):
            outputs.write(name + kind.file_ending, partial(kind.write_joined, windows=windows))
    return DecodeResult(len(parts), kind.examples, config.out)


def _code_model(run: Run) -> CodeModel:
    """Load the model of a run without a fitted prior.

    Raises:
        SpecError: `no-codes` if the model has no codes.
    """
    model = run.model("trained")
    if not model.levels:
        raise SpecError(f"the model {model.name} of {run.path} has no codes: train a vqvae", code="no-codes")
    return cast("CodeModel", model)
