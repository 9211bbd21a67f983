"""`tessella compress`, `tessella decompress` and `tessella inspect`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, progress, say, say_table
from tessella.foundation.errors import DataError
from tessella.foundation.notes import note
from tessella.foundation.text import shown

if TYPE_CHECKING:
    from torch import Tensor

    from tessella.coding.baseline_codecs import BaselineCodecs, Rival
    from tessella.coding.codes_file import Named
    from tessella.coding.container import Container, Header
    from tessella.coding.files import Compressed
    from tessella.coding.originals import Originals

METHODS = {
    "codes": "codes alone, under the prior: what is drawn from them is like the original, not the same",
    "lossless": "lossless: codes under the prior, then the values given the codes",
    "bits-back": "lossless: latents by bits-back coding, then the values given them",
}


@dataclass(frozen=True)
class Compress:
    """Write examples into one file, as short as the model's bound, and give them back exactly.

    Picture files that the model cannot hold exactly (with alpha, of 16 bits, in colour where it is grey, ...) are kept
    in the file as they are; what is not given back of the others, such as their size without --full-size, is said.

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
        overwrite: replace a file that is there.
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
    overwrite: bool = False
    quiet: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def compress(o: Compress) -> int:
    if os.path.isdir(o.out):
        raise DataError(f"{o.out} is a folder: give a file to write with -o")
    if os.path.lexists(o.out) and not o.overwrite:
        raise DataError(f"{o.out} exists already: choose another file with -o, or give --overwrite")
    from tessella.coding import codes_file, files
    from tessella.coding.baseline_codecs import BaselineCodecs
    from tessella.coding.originals import Originals
    from tessella.training.run import Run

    _coding_device(o.where)
    run = Run(o.run, "cpu")
    model = run.model(o.prior)
    weights = files.weights_of(o.run, model, o.prior)
    files.coder_for(model, lossy=o.lossy)
    split = cache(lambda: run.data(o.data, model).split(o.split))
    rivals = BaselineCodecs(model.schema, lossy=o.lossy)
    read = {"all": 0}

    def told(done: int, total: int) -> None:
        read["all"] = total

    originals = Originals(model.schema, lossy=o.lossy, full_size=o.full_size)
    keeps = originals.keeps if model.schema.is_picture and model.schema.values.discrete else None
    numbers = not o.inputs or any(one.isdecimal() and not os.path.exists(one) for one in o.inputs)
    of_split = f"examples of the split {o.split} as the run reads its data" if numbers else ""
    with progress("compressing", quiet=o.quiet) as tell:
        found = codes_file.examples(
            model, o.inputs, split, o.split, full_size=o.full_size, without=keeps, progress=told
        )
        result = files.compress(
            model,
            _seen(found, originals, rivals if o.compare == "yes" else None),
            o.out,
            weights,
            lossy=o.lossy,
            precision=o.precision,
            originals=originals,
            notes=of_split,
            progress=lambda done: tell(min(done, read["all"]), max(read["all"], 1)),
        )
        compared = rivals.measured()
    _print_result(result, o.out, compared, rivals, _exactness(result, originals, of_split))
    return 0


def _coding_device(where: Where) -> None:
    """Say where coding runs: on the processor, whatever else there is."""
    from tessella.core.device import resolve

    if resolve(where.device).type == "cpu":
        where.say()
    else:
        say("device   cpu: coding runs on the processor, where both ends round alike")


def _seen(examples: Iterable[Named], originals: Originals, rivals: BaselineCodecs | None) -> Iterator[Named]:
    """The same examples; what is not given back is said before the first, when all files have been judged."""
    rest = iter(examples)
    first = list(islice(rest, 1))
    for line in originals.notes:
        remedy = ": --full-size keeps them" if "are fitted" in line else ""
        note(f"{line}{remedy}")
    for names, x in chain(first, rest):
        if rivals is not None:
            rivals.see(x)
        yield names, x


def _print_result(result: Compressed, out: str, compared: list[Rival], rivals: BaselineCodecs, exact: str) -> None:
    title = f"{out}: {result.examples:,} examples, {exact}"
    coded, rows = result.bytes - result.kept_bytes, []

    def line(what: str, size: float, numbers: int) -> None:
        bits, ours = 8 * size / numbers, 8 * coded / result.numbers
        apart = "" if what == "this file" else f"{abs(ours / bits - 1):.2%} {'longer' if ours > bits else 'shorter'}"
        rows.append((what, f"{size:,.0f}", f"{bits:.4f}", apart))

    if result.examples:
        line("this file", coded, result.numbers)
        line(
            "the model's rate" if result.method == "codes" else "the model's bound",
            result.bound / math.log(2) / 8,
            result.numbers,
        )
        for rival in compared:
            line(rival.name, rival.bytes, rivals.numbers)
    if result.kept:
        rows.append((f"{result.kept:,} files kept beside them", f"{result.kept_bytes:,}", "", ""))
    say_table(title, ("what", "bytes", "bits/dim", "the file is"), rows, figures={1, 2, 3})
    if compared and rivals.count < result.examples:
        say(f"others are of the first {rivals.count:,} pictures, a file each")
    speed = result.numbers / 1e6 / result.seconds
    say(f"{result.seconds:.1f} seconds, {speed:.3g} MB/s of values")


def _exactness(result: Compressed, originals: Originals, of_split: str) -> str:
    """What is given back, in words."""
    said = METHODS[result.method].partition(", ")[0].partition(":")[0]
    if result.method == "codes":
        return said
    if originals.fitted:
        size = "x".join(map(str, originals.size))
        others = "" if originals.fitted == result.examples else f" ({originals.fitted:,} of them)"
        return f"{said} of the pictures as fitted to {size}{others}"
    return f"{said} of the {of_split}" if of_split else said


@dataclass(frozen=True)
class Decompress:
    """Give back what a file holds: a picture each (of vectors an array each), only if its checksum is right.

    Attributes:
        file: a file that `tessella compress` wrote.
        out: the folder to write into; examples keep their names.
        run: the run that made it, if it has moved.
        overwrite: replace files that are there.
        quiet: no progress bar.
    """

    file: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "decompressed"
    run: str | None = None
    overwrite: bool = False
    quiet: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def decompress(o: Decompress) -> int:
    if os.path.exists(o.out) and not os.path.isdir(o.out):
        raise DataError(f"{o.out} is no folder: give one to write into")
    from tessella.coding.container import Container

    container = Container(o.file)
    header = container.header
    import numpy as np

    from tessella.coding import files
    from tessella.coding.originals import picture
    from tessella.foundation.output_folder import Outputs

    if header.method == "codes":
        device = o.where.find()  # for drawing; the codes themselves are decoded on the processor
    else:
        device = None
        _coding_device(o.where)
    model = files.model_for(container, o.run) if header.count else None
    ending = ".png" if header.is_picture else ".npy"
    kept = [file.name for file in container.files()]
    for name in kept:
        _check_kept(container, name)
    targets = Outputs(o.out, header.names, ending, kept, overwrite=o.overwrite)
    if isinstance(header.names, list) and len(set(header.names)) < header.count:
        raise container.damaged("several examples have one name")

    def save_array(draft: Path, x: Tensor) -> None:
        with draft.open("wb") as file:  # numpy would add an ending to a path
            np.save(file, x.numpy(), allow_pickle=False)

    count = 0
    with targets as outputs, progress("decompressing", quiet=o.quiet) as tell:
        for name, x in files.decompress(container, model, device=device) if model else ():
            if model and header.is_picture:
                image = picture(x, model.schema, header.mode(count))
                outputs.write(name + ending, lambda draft, image=image: image.save(draft, format="PNG"))
            else:
                outputs.write(name + ending, lambda draft, x=x: save_array(draft, x))
            tell(count := count + 1, header.count)
        for file in container.files():
            outputs.write(file.name, lambda draft, data=file.data: draft.write_bytes(data))
    if header.notes:
        note(header.notes)
    also = f" and {len(kept):,} files" if kept else ""
    say(f"wrote {header.count:,} {'pictures' if header.is_picture else 'arrays'}{also} into {Path(o.out)}")
    return 0


def _check_kept(container: Container, name: str) -> None:
    """Whether a kept file is called as a picture is: no other kind of file is ever written."""
    from tessella.data.folders.read import FORMATS

    if os.path.splitext(name)[1].lower() not in FORMATS:
        raise DataError(f"{container.path} holds a file {name}, which is no picture: no tessella wrote it")


@dataclass(frozen=True)
class Inspect:
    """Say what a compressed file holds, and whether it is whole; the run is not needed.

    Attributes:
        file: a file that `tessella compress` wrote.
    """

    file: Positional[str]


def inspect(o: Inspect) -> int:
    from tessella.coding.container import Container
    from tessella.data.raw import abridged

    container = Container(o.file)
    chunks = batches = examples = words = 0
    for chunk in container.chunks():
        chunks, batches = chunks + 1, batches + len(chunk.batches)
        examples, words = examples + sum(chunk.batches), words + len(chunk.words)
    header = container.header
    shape = "x".join(map(str, header.shape))
    prior = f"{header.prior} {header.prior_fingerprint}".strip()
    names = " ... ".join(dict.fromkeys((header.names[0], header.names[-1]))) if header.count else "none"
    kept = [file.name for file in container.files()]
    rows = {
        "method": METHODS[header.method],
        "model": f"{header.model} {header.fingerprint}, prior {prior}, in {header.precision}",
        "run": header.run,
        "examples": f"{header.count:,} of {shape} {header.values} values: {names}",
        "sizes": _sizes(header),
        "kept": f"{len(kept):,} files as they are: {abridged(kept)}" if kept else "",
        "notes": header.notes,
        "bytes": f"{container.bytes:,}, {4 * words:,} of them examples in {chunks:,} chunks of {batches:,} batches",
        "made by": header.made,
    }
    if (short := _expected(header) - examples) > 0:
        raise container.damaged(f"it ends {short} examples early")
    for what, said in rows.items():
        if said:
            say(f"{what:<10}{shown(said)}")
    return 0


def _expected(header: Header) -> int:
    """Examples, or tiles of them, that the chunks of a file must hold."""
    from tessella.coding.files import tiles_of

    if header.method == "codes" or not len(header.sizes):
        return header.count
    return sum(tiles_of(header.size(i), header.shape) for i in range(header.count))


def _sizes(header: Header) -> str:
    if not len(header.sizes):
        return ""
    (h, w), (height, width) = header.sizes.min(0).tolist(), header.sizes.max(0).tolist()
    return f"from {h}x{w} to {height}x{width} pixels"
