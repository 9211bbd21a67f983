"""`tessella index` and `tessella search`.

Imports beside it: report.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from tessella.commands.shared import Shown, Where, check_file, inputs, loaded_without_prior, progress, quoted, say
from tessella.foundation.errors import DataError, SpecError

if TYPE_CHECKING:
    from tessella.core.batches import Batch
    from tessella.models.base import Model
    from tessella.pages.found import Shown as Tile
    from tessella.tasks.search import Index as Held

INDEX = "index.safetensors"
LISTED, PAIRS_SHOWN = 20, 100


@dataclass(frozen=True)
class Index:
    """Look at many examples once, so that they can be searched: one file, kept in the run.

    Attributes:
        run: the run folder.
        inputs: folders of pictures, picture files, or numbers of examples of the split; or else one SPEC of other data;
            none: all of the split.
        out: the file to write; by default index.safetensors in the run.
        data: other data than the run's own, read as the run's was.
        split: the split that is indexed, or that numbers refer to.
    """

    run: Positional[str]
    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    data: str | None = None
    split: str = "train"
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def index(o: Index) -> int:
    out = o.out or str(Path(o.run, INDEX))
    check_file(out, ".safetensors")
    model, run = loaded_without_prior(o.run, o.where)
    from tessella.coding import codes_file
    from tessella.tasks import search

    given, data = o.inputs, o.data
    if len(given) == 1 and _is_spec(given[0]):
        if data is not None:
            raise DataError(f"{given[0]} and --data {data} both name data: give one of them")
        given, data = (), given[0]
    split = cache(lambda: run.data(data, model).split(o.split))
    with progress("looking") as tell:
        found = codes_file.examples(model, given, split, o.split, endings=True, progress=tell)
        held = search.write_index(out, model, found, run.fingerprint)
    spaces = " and ".join(f"{width:,} {'numbers' if s == 'latent' else s}" for s, width in held.widths.items())
    say(f"wrote {out}: {held.examples:,} examples, {spaces} each, {os.path.getsize(out) / 2**20:,.1f} MiB")
    named = "" if o.out is None else f" --index {quoted(out)}"
    say(f"next: tessella search {quoted(o.run)} PICTURE{named}, tessella search {quoted(o.run)} --duplicates{named}")
    return 0


@dataclass(frozen=True)
class Search:
    """Find what is alike: the nearest of an index to some examples, or with --duplicates what the index holds twice.

    Attributes:
        run: the run folder.
        queries: picture files, or numbers of examples of the split.
        count: how many to find for each.
        index: the index; by default index.safetensors in the run, which `tessella index` writes.
        out: the page to write, or a sheet of pictures if it ends in .png.
        space: latent, or codes: the share of codes that differ.
        duplicates: find pairs that are nearly the same, instead.
        threshold: of --duplicates: how far apart they may be; by default as far as 95 % of slightly altered copies are.
    """

    run: Positional[str]
    queries: Positional[tuple[str, ...]] = ()
    count: Annotated[int, arg(aliases=("-k",))] = 10
    index: str | None = None
    out: Annotated[str, arg(aliases=("-o",))] = "found.html"
    space: Literal["latent", "codes"] = "latent"
    duplicates: bool = False
    threshold: float | None = None
    shown: Annotated[Shown, arg(name="")] = field(default_factory=Shown)
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def search(o: Search) -> int:
    if not o.duplicates and not o.queries:
        raise SpecError("nothing to search for is given: give pictures or numbers of examples, or --duplicates")
    if o.duplicates and o.queries:
        raise SpecError("--duplicates looks through the whole index: leave the queries out")
    if not o.duplicates and o.threshold is not None:
        raise SpecError("--threshold is of --duplicates: leave it out")
    check_file(o.out, ".html", ".png")
    model, run = loaded_without_prior(o.run, o.where)
    from tessella.tasks import search as searching

    held = searching.read(o.index or Path(o.run, INDEX))
    try:
        searching.check(held, model, run.fingerprint)
    except DataError as error:
        raise DataError(f"{o.index or Path(o.run, INDEX)}: {error}") from error
    if o.duplicates:
        _twice(o, held)
    else:
        _nearest(o, model, held, inputs(model, run, o.queries, o.shown))
    return 0


def _nearest(o: Search, model: Model, held: Held, asked: Batch) -> None:
    from tessella.pages.found import Shown as Tile
    from tessella.tasks import search as searching

    found = searching.nearest(held, searching.features(model, asked.x), o.count, o.space)
    rows: list[list[Tile]] = []
    images = searching.small(asked.x, model.schema)
    for query, image, at, apart in zip(o.queries, images, found.rows.tolist(), found.distances.tolist(), strict=True):
        near = [Tile(held.thumb(row), held.names[row], d) for row, d in zip(at, apart, strict=True)]
        rows.append([Tile(image.convert("RGB"), query), *near])
        say(f"{query}: {', '.join(f'{tile.name} ({tile.distance:.3g})' for tile in near)}")
    words = "latent space" if o.space == "latent" else "the space of codes"
    lead = f"Of {len(held):,} examples those that are nearest in {words}, nearest first, with their distances."
    _write(o, f"Nearest in {Path(o.run).name}", lead, [(f"{len(held):,}", "examples were searched, all of them")], rows)


def _twice(o: Search, held: Held) -> None:
    from tessella.pages.found import Shown as Tile
    from tessella.tasks import search as searching

    with progress("comparing") as tell:
        pairs = searching.duplicates(held, o.space, o.threshold, progress=tell)
    both = list(zip(pairs.rows.tolist(), pairs.distances.tolist(), strict=True))
    derived = "95 % of slightly altered copies lie nearer" if o.threshold is None else "as asked for"
    number = f"{pairs.total:,} pair{'s' * (pairs.total != 1)}"
    say(f"{number} of {len(held):,} examples lie within {pairs.threshold:.4g} ({derived})")
    for (a, b), apart in both[:LISTED]:
        say(f"{apart:.3g}  {held.names[a]}  {held.names[b]}")
    if pairs.total > LISTED:
        say(f"... and {pairs.total - LISTED:,} more")
    if not both:
        return
    rows = [
        [Tile(held.thumb(a), held.names[a]), Tile(held.thumb(b), held.names[b], d)] for (a, b), d in both[:PAIRS_SHOWN]
    ]
    rows = [[tile for pair in rows[n : n + 3] for tile in pair] for n in range(0, len(rows), 3)]
    part = f" The nearest {len(both[:PAIRS_SHOWN])} are shown." if pairs.total > PAIRS_SHOWN else ""
    lead = f"Pairs of {len(held):,} examples that are nearly the same, nearest first.{part}"
    cards = [
        (f"{pairs.total:,}", "pairs lie nearer to each other than the threshold"),
        (f"{pairs.threshold:.3g}", f"is the threshold: {derived}"),
    ]
    _write(o, f"Twice in {Path(o.run).name}", lead, cards, rows)


def _write(o: Search, title: str, lead: str, cards: list[tuple[str, str]], rows: list[list[Tile]]) -> None:
    from tessella.commands.shared import write_picture
    from tessella.pages import found

    if Path(o.out).suffix.lower() == ".png":
        write_picture(found.sheet(rows), o.out)
        return
    found.write(Path(o.out), title, lead, cards, rows)
    say(f"wrote {o.out}")


def _is_spec(given: str) -> bool:
    """Whether an input is data of some kind, and no picture, folder or number."""
    from tessella.data.folders.read import FORMATS

    return not (given.isdecimal() or os.path.isdir(given) or Path(given).suffix.lower() in FORMATS)
