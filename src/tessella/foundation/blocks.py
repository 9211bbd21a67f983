"""Blocks that a page is made of: plain data, which HTML, a terminal or a studio renders.

A task's result says what there is to see by `page() -> Page`; how that looks is a matter of `tessella.pages` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Tone = Literal["", "best", "bad", "soft"]


@dataclass(frozen=True)
class Heading:
    """Title of a section.

    Attributes:
        level: 2 for a section, 3 for a part of one.
        anchor: a name that links lead to, as `#anchor`.
    """

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraph.

    Attributes:
        strong: words before it that stand out, such as "Warning:".
        link: an address that the whole paragraph leads to.
    """

    text: str
    style: Literal["plain", "soft", "warning"] = "plain"
    strong: str = ""
    link: str = ""


@dataclass(frozen=True)
class Cards:
    """Figures in large print: pairs of a value and its meaning."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """Cell of a table with more than its text.

    Attributes:
        note: words in small print below the text; a terminal leaves them out.
        tone: how it stands out; `best` is bold.
        link: an address that it leads to.
    """

    text: str
    note: str = ""
    tone: Tone = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Table.

    Attributes:
        heads: a name for each column; all empty where the rows explain themselves.
        figures: the numbers of the columns that hold figures, which no renderer breaks or cuts.
        title: the line above it on a terminal.
    """

    heads: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    figures: Sequence[int] = (1,)
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Picture with a caption.

    Attributes:
        pixelated: keep enlarged pixels sharp.
        width: the most pixels that it is shown wide.
    """

    image: Image
    caption: str = ""
    pixelated: bool = False
    width: int = 860


@dataclass(frozen=True)
class Rows:
    """Pictures below each other, each with a label before it."""

    rows: Sequence[tuple[str, Image]]
    caption: str = ""
    pixelated: bool = True


@dataclass(frozen=True)
class Tile:
    """One or several small pictures side by side, with words below.

    Attributes:
        value: a figure that stands out.
        details: more words, in small print.
        marked: whether it is one of those to look at.
    """

    images: Sequence[Image]
    label: str = ""
    value: str = ""
    details: Sequence[str] = ()
    marked: bool = False


@dataclass(frozen=True)
class Grid:
    """Tiles in as many columns as fit.

    Attributes:
        width: pixels that a tile takes at least.
    """

    tiles: Sequence[Tile]
    caption: str = ""
    width: int = 128
    pixelated: bool = True


@dataclass(frozen=True)
class Series:
    """Measurements of one thing.

    Attributes:
        x: positions, or names of bars, points or parts.
        error: standard errors of `y`, or nothing.
        faint: whether it is only there for comparison.
    """

    x: Sequence[float | str]
    y: Sequence[float | None]
    name: str = ""
    error: Sequence[float | None] = ()
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """Chart as data.

    Attributes:
        kind: `line`; `bar`, one series; `scatter`, where `y` goes up and points are called as `names`; `stack`, one
            bar of parts drawn to scale.
        x_label: what goes across.
        log_x, log_y: logarithmic axes.
        settled: let the first tenth of the lines not decide the scale.
        used: how many of the bars, the first, count as in use.
        names: of the points of a scatter.
        sums: dotted lines in a scatter on which x + y is the same.
        wide: fill the page, instead of standing beside other charts.
    """

    title: str
    series: Sequence[Series]
    kind: Literal["line", "bar", "scatter", "stack"] = "line"
    x_label: str = ""
    log_x: bool = False
    log_y: bool = False
    settled: bool = False
    used: int | None = None
    names: Sequence[str] = ()
    sums: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts beside each other with one caption."""

    charts: Sequence[Chart]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to type, or a record, in type of one width."""

    text: str


@dataclass(frozen=True)
class Call:
    """A task with its arguments, for each face to word.

    Attributes:
        arguments: its words, such as the run folder.
        options: fields of its config; None and False are left out, True stands for a switch.
        note: what to know of it.
    """

    task: str
    arguments: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Calls:
    """Tasks that make what is shown, in their order."""

    calls: Sequence[Call]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a line."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Text | Cards | Table | Figure | Rows | Grid | Charts | Code | Calls | Details


@dataclass(frozen=True)
class Page:
    """What a result shows.

    Attributes:
        lead: what this is about, in a sentence or two below the title.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""


def joined(*parts: Block | Sequence[Block] | None) -> tuple[Block, ...]:
    """Make one row of blocks of single ones, several, and none."""
    blocks: list[Block] = []
    for part in parts:
        if isinstance(part, Sequence):
            blocks += part
        elif part is not None:
            blocks.append(part)
    return tuple(blocks)
