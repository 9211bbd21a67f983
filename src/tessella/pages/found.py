"""The sheet and the page of a search: each example beside the nearest, or pairs that are nearly the same."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tessella.pages import blocks

GAP, FOOT, LARGEST = 6, 18, 112


@dataclass(frozen=True)
class Shown:
    """A small picture, what it is called, and how far it is from the first in its row; None: it is the first."""

    image: Image.Image
    name: str
    distance: float | None = None


def sheet(rows: Sequence[Sequence[Shown]]) -> Image.Image:
    """Rows of pictures of one size, with their distances below."""
    tiles = [[_enlarged(one.image) for one in row] for row in rows]
    width, height = (max(getattr(t, side) for row in tiles for t in row) for side in ("width", "height"))
    columns = max(map(len, rows))
    whole = Image.new("RGB", (columns * (width + GAP) + GAP, len(rows) * (height + FOOT + GAP)), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for r, row in enumerate(rows):
        for c, one in enumerate(row):
            left, top = c * (width + GAP) + (GAP if c else 0), r * (height + FOOT + GAP)
            whole.paste(tiles[r][c], (left, top))
            text = "" if one.distance is None else f"{one.distance:.3g}"
            draw.text((left + width / 2, top + height + FOOT / 2), text, (93, 99, 107), font, anchor="mm")
    return whole


def write(path: Path, title: str, lead: str, cards: Sequence[tuple[str, str]], rows: Sequence[Sequence[Shown]]) -> None:
    """Write the page: every row a first example and those beside it, each with its name."""
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(lead)}</p>',
        blocks.cards(cards),
        *(f'<figure><div class="atlas">{"".join(_card(one) for one in row)}</div></figure>' for row in rows),
    ]
    blocks.write_page(path, title, body)


def _card(one: Shown) -> str:
    image = _enlarged(one.image)
    said = "" if one.distance is None else f"{one.distance:.3g}"
    name = html.escape(one.name if len(one.name) < 40 else f"...{one.name[-37:]}")
    tag = blocks.image_tag(image, one.name, image.width > one.image.width)
    return f'<div title="{html.escape(one.name, quote=True)}">{tag}<span>{name}<b>{said}</b></span></div>'


def _enlarged(image: Image.Image) -> Image.Image:
    """A picture with its pixels repeated as long as it stays small."""
    times = max(1, LARGEST // max(image.size))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
