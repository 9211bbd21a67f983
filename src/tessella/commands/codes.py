"""`tessella encode` and `tessella decode`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, check_file, loaded_without_prior, progress, say
from tessella.foundation.errors import DataError, SpecError

if TYPE_CHECKING:
    from tessella.models.codes import CodeModel
    from tessella.training.run import Run


@dataclass(frozen=True)
class Encode:
    """Turn examples into codes: a few integers each, in a file of plain arrays that numpy reads.

    Attributes:
        run: the run folder of a model of codes.
        inputs: picture files, folders of them, or numbers of examples of the split; none: all of the split.
        out: the file to write.
        full_size: leave pictures the size that they have, instead of fitting them to the size trained on.
        data: other data than the run's own, read as the run's was.
        split: the split that is encoded, or that numbers refer to.
    """

    run: Positional[str]
    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "codes.npz"
    full_size: bool = False
    data: str | None = None
    split: str = "test"
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def encode(o: Encode) -> int:
    check_file(o.out, ".npz")
    model, run = _model_of_codes(o.run, o.where)
    from tessella.coding import codes_file

    split = cache(lambda: run.data(o.data, model).split(o.split))
    with progress("encoding") as tell:
        found = codes_file.examples(model, o.inputs, split, o.split, full_size=o.full_size, progress=tell)
        coded = codes_file.encode(model, found, run.fingerprint)
    codes_file.write(o.out, coded)
    count, numbers = len(coded), [[c.size for c in level] for level in coded.levels]
    bits = sum(sum(each) * math.log2(q.codebook_size) for each, q in zip(numbers, model.levels, strict=True))
    each = sum(map(sum, numbers)) / count
    say(
        f"wrote {o.out}: {count:,} examples, {each:g} codes and {bits / count / 8:.4g} bytes each before entropy coding"
    )
    return 0


@dataclass(frozen=True)
class Decode:
    """Draw what codes stand for: a picture each.

    Attributes:
        run: the run folder whose codes they are.
        codes: a file that `tessella encode` wrote.
        out: the folder to write pictures into; they keep their names.
        draw: draw from p(x | z), noise and all, instead of taking its mean.
        seed: of the draws.
        overwrite: replace pictures that are there.
    """

    run: Positional[str]
    codes: Positional[str]
    out: Annotated[str, arg(aliases=("-o",))] = "decoded"
    draw: bool = False
    seed: int = 0
    overwrite: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def decode(o: Decode) -> int:
    if os.path.exists(o.out) and not os.path.isdir(o.out):
        raise DataError(f"{o.out} is no folder: give one to write pictures into")
    model, run = _model_of_codes(o.run, o.where)
    from tessella.coding import codes_file
    from tessella.foundation.output_folder import Outputs
    from tessella.kinds import pictures

    coded = codes_file.read(o.codes)
    try:
        codes_file.check(coded, model, run.fingerprint)
    except DataError as error:
        raise DataError(f"{o.codes}: {error}") from error
    files = Outputs(o.out, coded.names, ".png", overwrite=o.overwrite)
    if len(set(coded.names)) < len(coded):
        raise DataError(f"{o.codes} has several examples of one name: encode again")
    with files as outputs, progress("decoding") as tell:
        for name, x in codes_file.decode(model, coded, draw=o.draw, seed=o.seed, progress=tell):
            image = pictures.grid(x[None], model.schema, columns=1, scale=1)
            outputs.write(f"{name}.png", lambda draft, image=image: image.save(draft, format="PNG"))
    say(f"wrote {len(coded):,} pictures into {Path(o.out)}")
    return 0


def _model_of_codes(path: str, where: Where) -> tuple[CodeModel, Run]:
    from tessella.models.codes import CodeModel

    model, run = loaded_without_prior(path, where)
    if not isinstance(model, CodeModel):
        raise SpecError(f"the model {model.name} of {path} has no codes: train a vqvae")
    return model, run
