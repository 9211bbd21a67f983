"""Tasks `index` and `search`: indexes many examples once, then finds nearest examples or near-duplicates."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from tyro.conf import Positional, arg

from tessella.foundation.blocks import Block, Grid, Page, Table, Text, Tile
from tessella.foundation.errors import DataError, SpecError, option, task_name
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from PIL.Image import Image

    from tessella.tasks.search.index_file import Index
    from tessella.training.run import Run

INDEX = "index.safetensors"
"""Name of the index in a run folder."""
LISTED, PAIRS_SHOWN = 20, 100
"""Number of pairs to list by name, and number of pairs to show as pictures."""
ENLARGED = 112
"""Side in pixels to which small pictures are enlarged."""


@dataclass(frozen=True)
class IndexConfig:
    """Index many examples once, so that they can be searched: one file, stored in the run.

    Attributes:
        inputs: folders, files, numbers of examples (7, 3:20), names of splits (valid), or other
            data; by default the whole split.
        out: file to write; by default index.safetensors in the run.
        data: data set to use for numbers and splits instead of the run's own; it is read with the run's options.
        split: split that numbers refer to, and that is used of other data with several splits.
    """

    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str | None, arg(aliases=("-o",))] = None
    data: str | None = None
    split: str = "train"


@final
@dataclass(frozen=True)
class IndexResult(Result):
    """Description of the index that was written.

    Attributes:
        run: the run folder.
        path: path of the file.
        elsewhere: whether it is outside the run.
        examples: number of examples in it.
        widths: length of an example's features in each space.
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
        find, twice = (task_name("search", f"{shlex.quote(self.run)} {what}") for what in ("QUERY", ""))
        said = f"wrote {self.path}: {self.examples:,} examples, {spaces} each, {size}"
        return Page("Index", [Text(said), Text(f"next: {find}{named}, {twice} {option('duplicates')}{named}", "soft")])


@task("index", summary="index many examples so that they can be searched", group="use")
def index(run: Run, config: IndexConfig) -> IndexResult:
    """Index examples.

    Raises:
        DataError: if the examples are missing, or the file cannot be written.
        SpecError: if the model is conditional.
    """
    from tessella.tasks.search.features import widths
    from tessella.tasks.search.index_file import write_index

    out = config.out or str(run.path / INDEX)
    if Path(out).suffix.lower() != ".safetensors":
        raise DataError(f"the index must be a .safetensors file, got {out}", code="wrong-ending", path=out)
    if os.path.isdir(out):
        raise DataError(f"{out} is a folder: give the path of a file", code="is-a-folder", path=out)
    model = run.model("trained")
    inputs = run.inputs(model, config.inputs, data=config.data, split=config.split, keep_endings=True)
    count = write_index(out, model, inputs.track("indexing"), run.fingerprint)
    return IndexResult(str(run.path), out, config.out is not None, count, widths(model), os.path.getsize(out))


@dataclass(frozen=True)
class SearchConfig:
    """Search an index for the nearest examples to some queries, or for the near-duplicates in it.

    Attributes:
        queries: files, folders, numbers of examples (7, 3:20), names of splits, or other data.
        count: number of examples to find for each query.
        index: index file, written by the task `index`; by default index.safetensors in the run.
        space: latent, for distances in latent space; or codes, for the share of codes that differ.
        duplicates: find pairs of nearly equal examples in the index, instead of searching for queries.
        threshold: for duplicates, largest distance; by default one that finds 95 % of slightly altered copies.
        data: data set to use for numbers and splits instead of the run's own; it is read with the run's options.
        split: split that numbers refer to, and that is used of other data with several splits.
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
        """Raise if options contradict each other."""
        if not self.duplicates and not self.queries:
            raise SpecError(f"nothing to search for: give examples, or {option('duplicates')}", code="no-queries")
        if self.duplicates and self.queries:
            raise SpecError(
                f"{option('duplicates')} searches the whole index: leave out the queries", code="queries-and-duplicates"
            )
        if not self.duplicates and self.threshold is not None:
            raise SpecError(
                f"{option('threshold')} can only be used with {option('duplicates')}", code="threshold-alone"
            )


@final
@dataclass(frozen=True)
class Found:
    """An example in a search result.

    Attributes:
        distance: distance to the query, or to the first of the pair; None for the query or the first of the pair
            itself.
    """

    name: str
    image: Image
    distance: float | None = None


@final
@dataclass(frozen=True)
class SearchResult(Result):
    """Rows of similar examples: a query and its nearest, or a pair of near-duplicates.

    Attributes:
        run: name of the run.
        examples: number of examples that were searched.
        space: space of the distances.
        rows: the query or the first of a pair, followed by the others, nearest first.
        total: for duplicates, number of pairs, of which `rows` are the nearest; else None.
        threshold, own_threshold: for duplicates, the largest distance, and whether the user chose it.
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
        why = "the chosen threshold" if self.own_threshold else "95 % of slightly altered copies are nearer"
        number = f"{self.total:,} pair{'s' * (self.total != 1)}"
        shown, listed = self.rows[:PAIRS_SHOWN], self.rows[:LISTED]
        lead = f"Near-duplicates among {self.examples:,} examples, nearest first."
        text = f"{number} of {self.examples:,} examples have a distance of at most {self.threshold:.4g} ({why})"
        table = Table(("distance", "first", "second"), [(f"{b.distance:.3g}", a.name, b.name) for a, b in listed], (0,))
        if self.total > LISTED:
            text += f"; the nearest {len(listed)} are listed, and the pictures of {len(shown)} are shown"
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
            raise DataError("no pairs are this near, so there is no picture to write", code="no-pairs")
        return _sheet(rows)


@task(
    "search",
    summary="find the nearest examples in an index, or its near-duplicates",
    group="use",
    out="found.html",
    endings=(".html", ".png"),
)
def search(run: Run, config: SearchConfig) -> SearchResult:
    """Search the index of a run.

    Raises:
        SpecError: if options contradict each other.
        DataError: if the index or the queries are missing, or the index was made with other weights.
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
    """Enlarge a small picture by a whole factor."""
    from PIL.Image import Resampling

    times = max(1, ENLARGED // max(image.size))
    return image.resize((times * image.width, times * image.height), Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Found]]) -> Image:
    """Draw rows of pictures with their distances below."""
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
