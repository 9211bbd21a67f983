"""Tasks `compress`, `decompress` and `inspect`: examples in one file, about as short as the model's bound, and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from tessella.foundation.blocks import Page, Table, Text
from tessella.foundation.errors import DataError, option
from tessella.foundation.notes import note
from tessella.foundation.text import shown
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.coding.container import Contents, Header
    from tessella.coding.files import Compressed
    from tessella.coding.originals import Originals
    from tessella.core.schema import Schema
    from tessella.data.inputs import NamedBatch
    from tessella.training.run import Run

METHODS = {
    "codes": "codes alone, under the prior: decoding gives reconstructions, not the originals",
    "lossless": "lossless: codes under the prior, then the values given the codes",
    "bits-back": "lossless: latents by bits-back coding, then the values given them",
}


@dataclass(frozen=True)
class CompressConfig:
    """Compress examples into one file, about as short as the model's bound, that restores them exactly.

    Picture files that the model cannot represent exactly (with alpha, with 16 bits, colour for a grey model, ...) are
    stored in the file unchanged. A note says what is not restored of the others, such as their size without
    `native_size`.

    Attributes:
        inputs: files, folders, numbers of examples, names of splits, or other data; by default the whole split.
        out: file to write.
        lossy: store only the codes (for a model with codes), so that decompression gives reconstructions.
        native_size: keep pictures at their own size, instead of cropping and resizing them.
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split to compress, or that numbers of examples refer to.
        prior: kind of the fitted prior to use, or `trained` (for codes `uniform`, which is fast): the model's own.
        precision: precision of encoder and decoder; `auto` is bfloat16 for lossless codes if the CPU supports it.
        codes_used: number of codes of each position to use, of a model trained with the quantizer residual and its
            dropout; fewer codes take fewer bits. Default: all.
        compare: also code the first examples with other codecs: pictures with PNG, WebP and JPEG XL, numbers with xz.
        overwrite: replace an existing file.
    """

    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "compressed.tes"
    lossy: bool = False
    native_size: bool = False
    data: str | None = None
    split: str = "test"
    prior: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    codes_used: int | None = None
    compare: Literal["yes", "no"] = "yes"
    overwrite: bool = False


@final
@dataclass(frozen=True)
class CompressResult(Result):
    """A compressed file, beside the model's bound and other codecs.

    Attributes:
        out: path of the file.
        file: sizes and time.
        exactness: what decompression restores.
        codecs: sizes of the first pictures under other codecs.
        compared, compared_numbers: number of those pictures, and number of values in them.
    """

    out: str
    file: Compressed
    exactness: str
    codecs: Sequence[CodecSize]
    compared: int
    compared_numbers: int

    def to_json(self) -> Mapping[str, Any]:
        f = self.file
        return {
            "version": 1,
            "out": self.out,
            "method": f.method,
            "exactness": self.exactness,
            "examples": f.examples,
            "values": f.numbers,
            "bytes": f.bytes,
            "bits_per_dim": 8 * f.coded_bytes / f.numbers if f.numbers else None,
            "bound_bytes": f.bound_bytes,
            "kept_files": f.kept,
            "kept_bytes": f.kept_bytes,
            "seconds": f.seconds,
            "compared": self.compared,
            "codecs": [{**asdict(c), "bits_per_dim": 8 * c.bytes / self.compared_numbers} for c in self.codecs],
        }

    def page(self) -> Page:
        f, rows = self.file, []

        def add(what: str, size: float, numbers: int, relative: bool = True) -> None:
            bits, ours = 8 * size / numbers, 8 * f.coded_bytes / f.numbers
            longer = f"{abs(ours / bits - 1):.2%} {'longer' if ours > bits else 'shorter'}" if relative else ""
            rows.append((what, f"{size:,.0f}", f"{bits:.4f}", longer))

        if f.examples:
            add("this file", f.coded_bytes, f.numbers, relative=False)
            add("the model's rate" if f.method == "codes" else "the model's bound", f.bound_bytes, f.numbers)
            for codec in self.codecs:
                add(codec.name, codec.bytes, self.compared_numbers)
        if f.kept:
            rows.append((f"{f.kept:,} files stored unchanged", f"{f.kept_bytes:,}", "", ""))
        said = [f"{f.seconds:.1f} seconds, {f.numbers / 1e6 / f.seconds:.3g} MB/s of values"]
        if self.codecs and self.compared < f.examples:
            said.insert(0, f"other codecs code the first {self.compared:,} pictures, one file each")
        title = f"{self.out}: {f.examples:,} examples, {self.exactness}"
        table = Table(("what", "bytes", "bits/dim", "the file is"), rows, (1, 2, 3), title)
        return Page("Compressed file", (table, *map(Text, said)))


def _say_where(device: object) -> None:
    """Note that coding stays on the CPU, if another device was requested by name."""
    if device is not None and not str(device).startswith(("auto", "cpu")):
        note("coding runs on the CPU, so that encoder and decoder round in the same way")


@task("compress", summary="compress examples into one file, as short as the bound, lossless", group="use")
def compress(run: Run, config: CompressConfig) -> CompressResult:
    """Compress examples with the model of a run, on the CPU.

    There, encoder and decoder round in the same way.
    """
    from tessella.coding import files
    from tessella.coding.originals import Originals
    from tessella.coding.weights import Weights
    from tessella.kinds.base import kind_of

    if os.path.isdir(config.out):
        raise DataError(f"{config.out} is a folder: give the path of a file with {option('out')}", code="is-folder")
    if os.path.lexists(config.out) and not config.overwrite:
        raise DataError(
            f"{config.out} exists already: choose another file with {option('out')}, or give {option('overwrite')}",
            code="exists",
        )
    _say_where(run.device)
    model = run.model(config.prior, device="cpu", codes_used=config.codes_used)
    weights = Weights.of(str(run.path), model, config.prior)
    files.coder_for(model, lossy=config.lossy)
    originals = Originals(model.schema, lossy=config.lossy, native_size=config.native_size)
    inputs = run.inputs(
        model,
        config.inputs,
        data=config.data,
        split=config.split,
        native_size=config.native_size,
        skip=originals.keeps if kind_of(model.schema).pixels else None,
    )
    of_split = f"examples of the split {config.split} as the run reads its data" if inputs.from_data else ""
    codecs = BaselineCodecs(model.schema, lossy=config.lossy)
    examples = _noted(inputs.track("compressing"), originals, codecs if config.compare == "yes" else None)
    file = files.write_compressed(
        model,
        examples,
        config.out,
        weights,
        lossy=config.lossy,
        precision=config.precision,
        originals=originals,
        notes=of_split,
    )
    exactness = _exactness(file, originals, of_split)
    return CompressResult(config.out, file, exactness, codecs.sizes(), codecs.count, codecs.numbers)


MOST, NUMBERS = 1000, 1 << 26
"""Maximum number of examples to compare, and of values in all of them."""


@final
@dataclass(frozen=True)
class CodecSize:
    """Bytes that one codec takes for all compared examples."""

    name: str
    bytes: int


@final
class BaselineCodecs:
    """Collects the first examples, and codes them with other codecs for their kind of data.

    Attributes:
        numbers: number of observed values in the examples collected.
        count: number of examples collected.
    """

    def __init__(self, schema: Schema, *, lossy: bool) -> None:
        from tessella.kinds.base import kind_of

        self._codecs = kind_of(schema).baseline_codecs(lossy=lossy)
        self._kept: list[Tensor] = []
        self.numbers = 0

    @property
    def count(self) -> int:
        return len(self._kept)

    def collect(self, x: Tensor) -> None:
        """Collect examples `[B, *shape]`, up to the limit."""
        from tessella.core.observed import count_observed

        for one in x[: max(0, MOST - self.count)] if self._codecs else ():
            observed = count_observed(one)
            if self.numbers + observed <= NUMBERS:
                self._kept.append(one.clone())
                self.numbers += observed

    def sizes(self) -> list[CodecSize]:
        """Code the collected examples with each available codec."""
        return [CodecSize(codec.name, codec.size(self._kept)) for codec in self._codecs if self._kept]


def _noted(examples: Iterable[NamedBatch], originals: Originals, codecs: BaselineCodecs | None) -> Iterator[NamedBatch]:
    """Pass examples on, and collect them for other codecs.

    Before the first, when all files have been judged, note what is not restored.
    """
    rest = iter(examples)
    first = list(islice(rest, 1))
    for line in originals.notes:
        note(f"{line}: {option('native_size')} keeps their sizes" if "are fitted" in line else line)
    for named in chain(first, rest):
        if codecs is not None:
            codecs.collect(named.batch.x)
        yield named


def _exactness(file: Compressed, originals: Originals, of_split: str) -> str:
    """Describe what decompression restores."""
    said = METHODS[file.method].partition(", ")[0].partition(":")[0]
    if file.method == "codes":
        return said
    if originals.fitted:
        size = "x".join(map(str, originals.size))
        others = "" if originals.fitted == file.examples else f" ({originals.fitted:,} of them)"
        return f"{said} of the pictures resized to {size}{others}"
    return f"{said} of the {of_split}" if of_split else said


@dataclass(frozen=True)
class DecompressConfig:
    """Restore the examples of a file: a picture, a sound or an array each, if the checksums match.

    Consecutive windows of a recording are joined.

    Attributes:
        file: file that the task `compress` wrote.
        out: folder to write into; examples keep their names.
        run: run that made the file, if it has been moved.
        overwrite: replace existing files.
    """

    file: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "decompressed"
    run: str | None = None
    overwrite: bool = False


@final
@dataclass(frozen=True)
class DecompressResult(Result):
    """Examples restored into a folder.

    Attributes:
        examples: number of examples.
        kind: word for them.
        kept: number of files that were stored unchanged.
        out: the folder.
    """

    examples: int
    kind: str
    kept: int
    out: str

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, **asdict(self)}

    def page(self) -> Page:
        also = f" and {self.kept:,} files" if self.kept else ""
        return Page("Decompressed", (Text(f"wrote {self.examples:,} {self.kind}{also} into {Path(self.out)}"),))


@task("decompress", summary="restore the examples of a compressed file exactly", group="use")
def decompress(config: DecompressConfig, device: str | None = None) -> DecompressResult:
    """Decompress a file.

    Networks run on the CPU, except that codes alone are decoded to pictures on `device`.
    """
    from tessella.coding import files
    from tessella.coding.container import Container
    from tessella.coding.weights import model_for
    from tessella.core.device import resolve_device
    from tessella.data.folders.read import windows_of
    from tessella.data.inputs import joined_windows
    from tessella.foundation.output_folder import Outputs, check_folder
    from tessella.kinds.base import kind_of

    check_folder(config.out)
    container = Container(config.file)
    header = container.header
    if header.method != "codes":
        _say_where(device)
    model = model_for(container, config.run) if header.count else None
    kind = None if model is None else kind_of(model.schema)
    ending, words = (".png", "examples") if kind is None else (kind.file_ending, kind.examples)
    kept = files.kept_names(container)
    if isinstance(header.names, list) and len(set(header.names)) < header.count:
        raise container.damaged("several examples have the same name")
    windowed = kind is not None and kind.files is not None and kind.files.windowed
    parts = windows_of(header.names) if windowed and isinstance(header.names, list) else {}
    targets = Outputs(config.out, list(parts) or header.names, ending, kept, overwrite=config.overwrite)
    decoded = ()
    if model is not None:
        place = resolve_device(device) if header.method == "codes" else None
        decoded = files.read_compressed(container, model, device=place)
    with targets as outputs:
        for number, (name, windows) in enumerate(joined_windows(decoded, parts)):
            assert kind is not None
            outputs.write(name + ending, partial(kind.write_joined, windows=windows, form=header.mode(number)))
        for file in container.files():
            outputs.write(file.name, lambda draft, data=file.data: draft.write_bytes(data))
    if header.notes:
        note(header.notes)
    return DecompressResult(len(parts) or header.count, words, len(kept), config.out)


@dataclass(frozen=True)
class InspectConfig:
    """Describe the contents of a compressed file, and check that it is intact; the run is not needed.

    Attributes:
        file: file that the task `compress` wrote.
    """

    file: Positional[str]


@final
@dataclass(frozen=True)
class InspectResult(Result):
    """Header and contents of a compressed file.

    Attributes:
        header: its header.
        contents: counts of its parts.
        bytes: its size.
    """

    header: Header
    contents: Contents
    bytes: int

    def to_json(self) -> Mapping[str, Any]:
        h, c = self.header, self.contents
        fields = ("method", "model", "fingerprint", "prior", "prior_fingerprint", "precision", "run", "values", "shape")
        return {
            "version": 1,
            **{name: getattr(h, name) for name in fields},
            "examples": h.count,
            "sizes": [h.sizes.min(0).tolist(), h.sizes.max(0).tolist()] if len(h.sizes) else None,
            "kept_files": list(c.kept),
            "notes": h.notes,
            "bytes": self.bytes,
            "coded_bytes": c.coded_bytes,
            "chunks": c.chunks,
            "batches": c.batches,
            "made_by": h.made,
        }

    def page(self) -> Page:
        from tessella.foundation.text import abridged

        h, c = self.header, self.contents
        shape = "x".join(map(str, h.shape))
        prior = f"{h.prior} {h.prior_fingerprint}".strip()
        names = " ... ".join(dict.fromkeys((h.names[0], h.names[-1]))) if h.count else "none"
        sizes = ""
        if len(h.sizes):
            low, high = ("x".join(map(str, side.tolist())) for side in (h.sizes.min(0), h.sizes.max(0)))
            sizes = f"from {low} to {high} {'pixels' if h.rank > 1 else 'samples'}"
        rows = {
            "method": METHODS[h.method],
            "model": f"{h.model} {h.fingerprint}, prior {prior}, in {h.precision}",
            "run": h.run,
            "examples": f"{h.count:,} of {shape} {h.values} values: {names}",
            "sizes": sizes,
            "kept": f"{len(c.kept):,} files, unchanged: {abridged(c.kept)}" if c.kept else "",
            "notes": h.notes,
            "bytes": f"{self.bytes:,}, {c.coded_bytes:,} of them examples in {c.chunks:,} chunks of {c.batches:,} "
            "batches",
            "made by": h.made,
        }
        table = Table(("", ""), [(what, shown(said)) for what, said in rows.items() if said], figures=())
        return Page("Contents of a compressed file", (table,))


@task("inspect", summary="describe a compressed file, and check that it is intact", group="use")
def inspect(config: InspectConfig) -> InspectResult:
    """Inspect a compressed file."""
    from tessella.coding.container import Container

    container = Container(config.file)
    return InspectResult(container.header, container.audit(), container.bytes)
