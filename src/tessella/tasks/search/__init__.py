"""Find examples that are alike: index many once, then search the nearest to others, or near-duplicates."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from tessella.foundation.blocks import Block, Grid, Page, Table, Text, Tile
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.errors import task as named_task
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from PIL.Image import Image

    from tessella.tasks.search.index_file import Index
    from tessella.training.run import Run

INDEX = "index.safetensors"
"""Name of the index in a run folder."""
LISTED, PAIRS_SHOWN = 20, 100
"""Pairs that are listed with their names, and pairs whose pictures are shown."""
ENLARGED = 112
"""Pixels a side that small pictures are enlarged to."""


@dataclass(frozen=True)
class IndexConfig:
    """Index many examples once, so that they can be searched: one file, kept in the run.

    Attributes:
        inputs: folders of pictures, picture files, numbers (7, 3:20), splits (valid) or SPECs; none: all of the split.
        out: the file to write; by default index.safetensors in the run.
        data: other data than the run's own, read as the run's was, for numbers and splits.
        split: the split that numbers refer to, and that is taken of a SPEC that comes divided.
    """

    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    data: str | None = None
    split: str = "train"


@final
@dataclass(frozen=True)
class IndexResult(Result):
    """The index that was written.

    Attributes:
        run: the run folder.
        path: of the file; `elsewhere` if that is not the run's own place for it.
        examples: how many it holds.
        widths: numbers of each example in each space.
        bytes: size of the file.
    """

    run: str
    path: str
    elsewhere: bool
    examples: int
    widths: Mapping[str, int]
    bytes: int

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, "file": self.path, "examples": self.examples, "widths": self.widths, "bytes": self.bytes}

    def page(self) -> Page:
        spaces = " and ".join(f"{width:,} {'numbers' if s == 'latent' else s}" for s, width in self.widths.items())
        size = f"{self.bytes / 2**20:,.1f} MiB"
        named = f" {option('index')} {shlex.quote(self.path)}" if self.elsewhere else ""
        find, twice = (named_task("search", f"{shlex.quote(self.run)} {what}") for what in ("QUERY", ""))
        said = f"wrote {self.path}: {self.examples:,} examples, {spaces} each, {size}"
        return Page("Index", [Text(said), Text(f"next: {find}{named}, {twice} {option('duplicates')}{named}", "soft")])


@task("index", summary="index many examples so that they can be searched", group="use")
def index(run: Run, config: IndexConfig) -> IndexResult:
    """Index examples.

    Raises:
        DataError: if there are no such examples, or the file cannot be written.
        SpecError: if the model sees labels.
    """
    from tessella.tasks.search.features import widths
    from tessella.tasks.search.index_file import write_index

    out = config.out or str(run.path / INDEX)
    if Path(out).suffix.lower() != ".safetensors":
        raise DataError(f"the index must be a .safetensors file, got {out}", code="wrong-ending", path=out)
    if os.path.isdir(out):
        raise DataError(f"{out} is a folder: give a file to write", code="is-a-folder", path=out)
    model = run.model("trained")
    inputs = run.inputs(model, config.inputs, data=config.data, split=config.split, keep_endings=True)
    count = write_index(out, model, inputs.track("indexing"), run.fingerprint)
    return IndexResult(str(run.path), out, config.out is not None, count, widths(model), os.path.getsize(out))


@dataclass(frozen=True)
class SearchConfig:
    """Search an index: the nearest to some examples, or the near-duplicates that it holds.

    Attributes:
        queries: picture files, folders of them, numbers (7, 3:20), splits or SPECs.
        count: how many to find for each.
        index: the index file; by default index.safetensors in the run, which the task `index` writes.
        space: latent, or codes: the share of codes that differ.
        duplicates: find pairs that are nearly the same, instead.
        threshold: for duplicates, the largest distance; by default that of 95 % of slightly altered copies.
        data: other data than the run's own, read as the run's was, for numbers and splits.
        split: the split that numbers refer to, and that is taken of a SPEC that comes divided.
    """

    queries: Positional[tuple[str, ...]] = ()
    count: Annotated[int, arg(aliases=("-k",))] = 10
    index: str | None = None
    space: Literal["latent", "codes"] = "latent"
    duplicates: bool = False
    threshold: float | None = None
    data: str | None = None
    split: str = "test"

    def check(self) -> None:
        """Refuse what contradicts itself."""
        if not self.duplicates and not self.queries:
            raise SpecError(f"nothing to search for: give examples, or {option('duplicates')}", code="no-queries")
        if self.duplicates and self.queries:
            raise SpecError(
                f"{option('duplicates')} searches the whole index: leave the queries out", code="queries-and-duplicates"
            )
        if not self.duplicates and self.threshold is not None:
            raise SpecError(
                f"{option('threshold')} can only be used with {option('duplicates')}", code="threshold-alone"
            )


@final
@dataclass(frozen=True)
class Found:
    """An example of a search.

    Attributes:
        distance: to the query, or to the other of the pair; None: it is the query, or the first of the pair.
    """

    name: str
    image: Image
    distance: float | None = None


@final
@dataclass(frozen=True)
class SearchResult(Result):
    """Rows of examples that are alike: a query and the nearest to it, or a pair of near-duplicates.

    Attributes:
        run: name of the run.
        examples: how many were searched.
        space: in which space.
        rows: the first of each row is what the others are compared with; nearest first.
        total: of duplicates, how many pairs there are, of which `rows` are the nearest; else None.
        threshold, own_threshold: of duplicates, the largest distance, and whether the caller chose it.
    """

    run: str
    examples: int
    space: str
    rows: Sequence[Sequence[Found]]
    total: int | None = None
    threshold: float | None = None
    own_threshold: bool = False

    def to_json(self) -> Mapping[str, Any]:
        rows = [[{"name": one.name, "distance": one.distance} for one in row] for row in self.rows]
        record: dict[str, Any] = {"version": 1, "examples": self.examples, "space": self.space}
        if self.total is None:
            return record | {"nearest": [{"query": first["name"], "found": rest} for first, *rest in rows]}
        pairs = [{"first": a["name"], "second": b["name"], "distance": b["distance"]} for a, b in rows]
        return record | {"threshold": self.threshold, "total": self.total, "pairs": pairs}

    def page(self) -> Page:
        return self._nearest() if self.total is None else self._duplicates()

    def _nearest(self) -> Page:
        space = "latent space" if self.space == "latent" else "the space of codes"
        lead = f"The nearest of {self.examples:,} examples in {space}, nearest first, with their distances."
        blocks: list[Block] = []
        for first, *rest in self.rows:
            near = ", ".join(f"{one.name} ({one.distance:.3g})" for one in rest)
            blocks += [Text(f"{first.name}: {near}", "soft"), _tiles([first, *rest])]
        return Page(f"Nearest in {self.run}", blocks, lead)

    def _duplicates(self) -> Page:
        assert self.total is not None
        why = "as asked for" if self.own_threshold else "95 % of slightly altered copies lie nearer"
        number = f"{self.total:,} pair{'s' * (self.total != 1)}"
        shown, listed = self.rows[:PAIRS_SHOWN], self.rows[:LISTED]
        lead = f"Near-duplicates among {self.examples:,} examples, nearest first."
        text = f"{number} of {self.examples:,} examples lie within {self.threshold:.4g} ({why})"
        table = Table(("distance", "first", "second"), [(f"{b.distance:.3g}", a.name, b.name) for a, b in listed], (0,))
        if self.total > LISTED:
            text += f"; the nearest {len(listed)} are listed, of {len(shown)} the pictures are shown"
        pairs = [_tile(b, (a, b)) for a, b in shown]
        return Page(f"Near-duplicates in {self.run}", [Text(text), table, Grid(pairs, width=2 * ENLARGED)], lead)

    def save(self, out: Path) -> None:
        """Write the rows as one picture."""
        from tessella.kinds.pictures import save

        save(self.sheet(), out)

    def sheet(self) -> Image:
        """Draw the rows as one picture.

        Raises:
            DataError: if there are none.
        """
        rows = self.rows
        if self.total is not None:
            pairs = [list(pair) for pair in rows[:PAIRS_SHOWN]]
            rows = [[one for pair in pairs[n : n + 3] for one in pair] for n in range(0, len(pairs), 3)]
        if not rows:
            raise DataError("no pairs lie so near, so there is no picture to write", code="no-pairs")
        return _sheet(rows)


@task(
    "search",
    summary="the nearest of an index, or its near-duplicates",
    group="use",
    out="found.html",
    endings=(".html", ".png"),
)
def search(run: Run, config: SearchConfig) -> SearchResult:
    """Search the index of a run.

    Raises:
        SpecError: if the options contradict each other.
        DataError: if there is no such index, or it is of other weights, or there are no such examples.
    """
    config.check()
    from tessella.kinds.pictures import images
    from tessella.tasks.search import index_file
    from tessella.tasks.search.features import features

    model = run.model("trained")
    held = index_file.read_index(config.index or run.path / INDEX, model, run.fingerprint)
    if config.duplicates:
        pairs = index_file.duplicates(held, config.space, config.threshold)
        rows = [
            (_found(held, a), _found(held, b, apart))
            for (a, b), apart in zip(pairs.rows[:PAIRS_SHOWN].tolist(), pairs.distances.tolist(), strict=False)
        ]
        own = config.threshold is not None
        return SearchResult(run.path.name, len(held), config.space, rows, pairs.total, pairs.threshold, own)
    inputs = run.inputs(model, config.queries, data=config.data, split=config.split)
    rows = []
    for named in inputs.track("searching"):
        x = named.batch.x
        near = index_file.nearest(held, features(model, x), config.count, config.space)
        for name, image, at, apart in zip(
            named.names,
            images(x, model.schema, index_file.THUMB),
            near.rows.tolist(),
            near.distances.tolist(),
            strict=True,
        ):
            found = [_found(held, row, distance) for row, distance in zip(at, apart, strict=True)]
            rows.append((Found(name, image.convert("RGB")), *found))
    return SearchResult(run.path.name, len(held), config.space, rows)


def _found(index: Index, row: int, distance: float | None = None) -> Found:
    return Found(index.names[row], index.thumb(row), distance)


def _tiles(row: Sequence[Found]) -> Grid:
    """Show examples beside each other, with their names and distances."""
    return Grid([_tile(one, (one,)) for one in row])


def _tile(one: Found, shown: Sequence[Found]) -> Tile:
    names = [one.name if len(one.name) < 40 else f"...{one.name[-37:]}" for one in shown]
    value = "" if one.distance is None else f"{one.distance:.3g}"
    return Tile([_enlarged(one.image) for one in shown], names[0], value, names[1:])


def _enlarged(image: Image) -> Image:
    """Repeat the pixels of a picture as long as it stays small."""
    from PIL.Image import Resampling

    times = max(1, ENLARGED // max(image.size))
    return image.resize((times * image.width, times * image.height), Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Found]]) -> Image:
    """Rows of pictures with their distances below."""
    from PIL import Image, ImageDraw, ImageFont

    gap, foot = 6, 18
    tiles = [[_enlarged(one.image) for one in row] for row in rows]
    width, height = (max(getattr(t, side) for row in tiles for t in row) for side in ("width", "height"))
    size = max(map(len, rows)) * (width + gap) + gap, len(rows) * (height + foot + gap)
    whole = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for r, row in enumerate(rows):
        for c, one in enumerate(row):
            left, top = c * (width + gap) + (gap if c else 0), r * (height + foot + gap)
            whole.paste(tiles[r][c], (left, top))
            text = "" if one.distance is None else f"{one.distance:.3g}"
            draw.text((left + width / 2, top + height + foot / 2), text, (93, 99, 107), font, anchor="mm")
    return whole


__all__ = ["Found", "IndexConfig", "IndexResult", "SearchConfig", "SearchResult", "index", "search"]
