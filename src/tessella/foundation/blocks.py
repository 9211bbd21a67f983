"""Blocks of a page: plain data, which is rendered as HTML, on a terminal or in the studio.

A task's result describes its content with `page() -> Page`; `tessella.pages` renders it.
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
        anchor: target of links `#anchor`.
    """

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraph of text.

    Attributes:
        strong: bold words before the text, such as "Warning:".
        link: address that the paragraph links to.
    """

    text: str
    style: Literal["plain", "soft", "warning"] = "plain"
    strong: str = ""
    link: str = ""


@dataclass(frozen=True)
class Cards:
    """Metrics in large print: pairs of a value and its meaning."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """Cell of a table with note, tone or link.

    Attributes:
        note: small print below the text; omitted on a terminal.
        tone: emphasis; `best` is bold.
        link: address that the cell links to.
    """

    text: str
    note: str = ""
    tone: Tone = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Table of texts and numbers.

    Attributes:
        heads: column names; all empty for a table without header.
        figures: indices of the columns with numbers, which are never wrapped or cut.
        title: title above the table on a terminal.
    """

    heads: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    figures: Sequence[int] = (1,)
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Image with a caption.

    Attributes:
        pixelated: enlarge without smoothing.
        width: largest displayed width in pixels.
    """

    image: Image
    caption: str = ""
    pixelated: bool = False
    width: int = 860


@dataclass(frozen=True)
class Rows:
    """Images below each other, each with a label on its left."""

    rows: Sequence[tuple[str, Image]]
    caption: str = ""
    pixelated: bool = True


@dataclass(frozen=True)
class Tile:
    """Small images side by side, with text below.

    Attributes:
        value: emphasized number.
        details: more text, in small print.
        marked: whether the tile is highlighted.
    """

    images: Sequence[Image]
    label: str = ""
    value: str = ""
    details: Sequence[str] = ()
    marked: bool = False


@dataclass(frozen=True)
class Grid:
    """Grid of tiles in as many columns as fit.

    Attributes:
        width: least width of a tile in pixels.
    """

    tiles: Sequence[Tile]
    caption: str = ""
    width: int = 128
    pixelated: bool = True


@dataclass(frozen=True)
class Clip:
    """Sound with its picture.

    Attributes:
        audio: content of a WAV file.
    """

    audio: bytes
    image: Image
    label: str = ""


@dataclass(frozen=True)
class Clips:
    """Sounds side by side, each with its picture, its label and a player."""

    clips: Sequence[Clip]
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """Series of values in a chart.

    Attributes:
        x: positions, or names of bars, points or parts.
        error: standard errors of `y`; may be empty.
        faint: whether it is drawn pale, for comparison only.
    """

    x: Sequence[float | str]
    y: Sequence[float | None]
    name: str = ""
    error: Sequence[float | None] = ()
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """Data of a chart.

    Attributes:
        kind: `line`; `bar` for one series; `scatter` for points; `stack` for one bar of parts drawn to scale.
        x_label: label of the horizontal axis.
        log_x, log_y: whether an axis is logarithmic.
        settled: exclude the first tenth of the lines from the scale.
        used: number of first bars that count as in use.
        names: names of the points of a scatter.
        sums: draw dotted lines of constant x + y in a scatter.
        wide: use the full width of the page.
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
    """Charts side by side with one caption."""

    charts: Sequence[Chart]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Code or a record, in a monospaced font."""

    text: str


@dataclass(frozen=True)
class Call:
    """Call of a task, shown as a shell command or as Python.

    Attributes:
        arguments: positional arguments, such as the run folder.
        options: fields of its config; None and False are omitted, True is a flag without value.
        note: comment on the call.
    """

    task: str
    arguments: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Calls:
    """Calls of tasks that produce the content, in order."""

    calls: Sequence[Call]


@dataclass(frozen=True)
class Details:
    """Blocks that are collapsed under a summary line."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Text | Cards | Table | Figure | Rows | Grid | Clips | Charts | Code | Calls | Details


@dataclass(frozen=True)
class Page:
    """Page of a task's result.

    Attributes:
        lead: introduction of one or two sentences below the title.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""


def joined(*parts: Block | Sequence[Block] | None) -> tuple[Block, ...]:
    """Join blocks, sequences of blocks and None to one tuple of blocks."""
    blocks: list[Block] = []
    for part in parts:
        if isinstance(part, Sequence):
            blocks += part
        elif part is not None:
            blocks.append(part)
    return tuple(blocks)
