"""`tessella compress`, `tessella decompress` and `tessella inspect`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, progress
from tessella.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.models.model import Model
    from tessella.uses.coding import Named
    from tessella.uses.compress.container import Header
    from tessella.uses.compress.files import Compressed
    from tessella.uses.compress.rivals import Rival, Rivals

METHODS = {
    "codes": "codes alone, under the prior: what is drawn from them is like the original, not the same",
    "lossless": "lossless: codes under the prior, then the values given the codes",
    "bits-back": "lossless: latents by bits-back coding, then the values given them",
}


@dataclass(frozen=True)
class Compress:
    """Write examples into one file, as short as the model's bound, and give them back exactly.

    Attributes:
        run: the run folder.
        inputs: picture files, folders of them, or numbers of examples of the split; none: all of the split.
        out: the file to write.
        lossy: keep the codes alone, of a model of codes.
        full_size: leave pictures the size that they have, instead of fitting them to the size trained on.
        data: other data than the run's own, read as the run's was.
        split: the split that is compressed, or that numbers refer to.
        prior: the kind of a fitted prior, or `trained` (of codes `uniform`, which is fast): the model's own.
        precision: what encoder and decoder compute in; `auto`: of lossless codes bfloat16 where the processor has it.
        compare: code the first pictures as PNG, WebP and JPEG XL too.
        quiet: no progress bar.
    """

    run: Positional[str]
    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "compressed.tes"
    lossy: bool = False
    full_size: bool = False
    data: str | None = None
    split: str = "test"
    prior: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compare: Literal["yes", "no"] = "yes"
    quiet: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def compress(o: Compress) -> int:
    if os.path.isdir(o.out):
        raise DataError(f"{o.out} is a folder: give a file to write with -o")
    from tessella import checkpoint
    from tessella.uses import coding
    from tessella.uses.compress import files
    from tessella.uses.compress.rivals import Rivals
    from tessella.uses.look import data_for

    _coding_device(o.where)
    model, source = checkpoint.load(o.run, prior=o.prior), checkpoint.read_spec(o.run).data
    weights = files.weights_of(o.run, model, o.prior)
    files.coder_for(model, lossy=o.lossy)
    split = cache(lambda: data_for(model, source, o.data).split(o.split))
    if not o.full_size and (fitted := _fitted(model, o.inputs)):
        size = "x".join(map(str, model.schema.shape[1:]))
        warnings.warn(
            f"pictures of other sizes ({fitted:,}) are fitted to {size} pixels: --full-size keeps them", stacklevel=2
        )
    rivals = Rivals(model.schema, lossy=o.lossy)
    read = {"all": 0}

    def told(done: int, total: int) -> None:
        read["all"] = total

    with progress("compressing", quiet=o.quiet) as tell:
        found = coding.examples(model, o.inputs, split, o.split, full_size=o.full_size, progress=told)
        result = files.compress(
            model,
            _seen(found, rivals) if o.compare == "yes" else found,
            o.out,
            weights,
            lossy=o.lossy,
            precision=o.precision,
            progress=lambda done: tell(min(done, read["all"]), max(read["all"], 1)),
        )
        compared = rivals.measured()
    _print_result(result, o.out, compared, rivals)
    return 0


def _coding_device(where: Where) -> None:
    """Say where coding runs: on the processor, whatever else there is."""
    from tessella.device import resolve

    if resolve(where.device).type == "cpu":
        where.say()
    else:
        print("device   cpu: coding runs on the processor, where both ends round alike", flush=True)


def _fitted(model: Model, inputs: Iterable[str]) -> int:
    """How many picture files are of another size than the model's."""
    from tessella.data.folders import look, picture_files

    files: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            files += [os.path.join(given, name) for name in picture_files(given)[0]]
        elif os.path.isfile(given):
            files.append(given)
    headers = map(look, files) if model.schema.is_picture else ()
    return sum(not header.trouble and tuple(header.size) != model.schema.shape[1:] for header in headers)


def _seen(examples: Iterable[Named], rivals: Rivals) -> Iterator[Named]:
    for names, x in examples:
        rivals.see(x)
        yield names, x


def _print_result(result: Compressed, out: str, compared: list[Rival], rivals: Rivals) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    bound = result.bound / math.log(2) / 8
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.title = f"{out}: {result.examples:,} examples, {METHODS[result.method].partition(', ')[0].partition(':')[0]}"
    for name in ("what", "bytes", "bits/dim", "the file is"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)

    def line(what: str, size: float, numbers: int) -> None:
        bits = 8 * size / numbers
        ours = 8 * result.bytes / result.numbers
        apart = "" if what == "this file" else f"{abs(ours / bits - 1):.2%} {'longer' if ours > bits else 'shorter'}"
        table.add_row(what, f"{size:,.0f}", f"{bits:.4f}", apart)

    line("this file", result.bytes, result.numbers)
    line("the model's rate" if result.method == "codes" else "the model's bound", bound, result.numbers)
    for rival in compared:
        line(rival.name, rival.bytes, rivals.numbers)
    console = Console(highlight=False)
    console.print(table)
    if compared and rivals.count < result.examples:
        console.print(f"others are of the first {rivals.count:,} pictures, a file each", soft_wrap=True)
    speed = result.numbers / 1e6 / result.seconds
    console.print(f"{result.seconds:.1f} seconds, {speed:.3g} MB/s of values", soft_wrap=True)


@dataclass(frozen=True)
class Decompress:
    """Give back what a file holds: a picture each (of vectors an array each), only if its checksum is right.

    Attributes:
        file: a file that `tessella compress` wrote.
        out: the folder to write into; examples keep their names.
        run: the run that made it, if it has moved.
        quiet: no progress bar.
    """

    file: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "decompressed"
    run: str | None = None
    quiet: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def decompress(o: Decompress) -> int:
    if os.path.exists(o.out) and not os.path.isdir(o.out):
        raise DataError(f"{o.out} is no folder: give one to write into")
    from tessella.uses.compress.container import Container

    container = Container(o.file)
    header = container.header
    import numpy as np

    from tessella import checkpoint, pictures
    from tessella.uses.coding import target
    from tessella.uses.compress import files

    if header.method == "codes":
        device = o.where.find()  # for drawing; the codes themselves are decoded on the processor
    else:
        device = None
        _coding_device(o.where)
    model = files.model_for(container, o.run)

    ending = ".png" if header.is_picture else ".npy"
    if isinstance(header.names, list):
        if len(set(header.names)) < header.count:
            raise container.damaged("several examples have one name")
        for name in header.names:
            target(o.out, name, ending)

    def save(draft: Path, x: Tensor) -> None:
        if header.is_picture:
            pictures.grid(x[None], model.schema, columns=1, scale=1).save(draft, format="PNG")
        else:
            with draft.open("wb") as file:
                np.save(file, x.numpy(), allow_pickle=False)

    count = 0
    with progress("decompressing", quiet=o.quiet) as tell:
        for name, x in files.decompress(container, model, device=device):
            checkpoint.write_atomic(target(o.out, name, ending), lambda draft, x=x: save(draft, x))
            tell(count := count + 1, header.count)
    print(f"wrote {header.count:,} {'pictures' if header.is_picture else 'arrays'} into {Path(o.out)}")
    return 0


@dataclass(frozen=True)
class Inspect:
    """Say what a compressed file holds, and whether it is whole; the run is not needed.

    Attributes:
        file: a file that `tessella compress` wrote.
    """

    file: Positional[str]


def inspect(o: Inspect) -> int:
    from tessella.uses.compress.container import Container

    container = Container(o.file)
    chunks = batches = examples = words = 0
    for chunk in container.chunks():
        chunks, batches = chunks + 1, batches + len(chunk.batches)
        examples, words = examples + sum(chunk.batches), words + len(chunk.words)
    header = container.header
    shape = "x".join(map(str, header.shape))
    prior = f"{header.prior} {header.prior_fingerprint}".strip()
    names = f"{header.names[0]} ... {header.names[-1]}" if header.count > 1 else header.names[0]
    rows = {
        "method": METHODS[header.method],
        "model": f"{header.model} {header.fingerprint}, prior {prior}, in {header.precision}",
        "run": header.run,
        "examples": f"{header.count:,} of {shape} {header.values} values: {names}",
        "sizes": _sizes(header),
        "bytes": f"{container.bytes:,}, {4 * words:,} of them examples in {chunks:,} chunks of {batches:,} batches",
        "made by": header.made,
    }
    if (short := _expected(header) - examples) > 0:
        raise container.damaged(f"it ends {short} examples early")
    for what, said in rows.items():
        if said:
            print(f"{what:<10}{said}".encode("utf-8", "replace").decode())
    return 0


def _expected(header: Header) -> int:
    """Examples, or tiles of them, that the chunks of a file must hold."""
    from tessella.uses.compress.files import tiles_of

    if header.method == "codes" or not len(header.sizes):
        return header.count
    return sum(tiles_of(header.size(i), header.shape) for i in range(header.count))


def _sizes(header: Header) -> str:
    if not len(header.sizes):
        return ""
    (h, w), (height, width) = header.sizes.min(0).tolist(), header.sizes.max(0).tolist()
    return f"from {h}x{w} to {height}x{width} pixels"
