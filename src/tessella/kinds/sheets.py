"""Composition of pictures: enlarging, and rows with titles."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tessella.core.schema import Schema
from tessella.kinds.base import kind_of

GAP, HEADER = 8, 26
"""Pixels between pictures, and height of the titles above them."""


def enlarged(x: Tensor, schema: Schema, side: int = 424) -> Image.Image:
    """Render one example `[*shape]` enlarged, with a longer side of about `side` pixels."""
    values = kind_of(schema).render(x[None].float())[0]
    times = max(1, round(side / max(values.shape[:2])))
    values = values.repeat(times, 0).repeat(times, 1)
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def on_white(image: Image.Image) -> Image.Image:
    """Convert to RGB, with white behind transparent parts."""
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def titled_rows(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Arrange pictures of one size in rows, with a title over each column."""
    width, height = rows[0][0].size
    wide = len(rows[0]) * (width + GAP) - GAP
    whole = Image.new("RGB", (wide, HEADER + len(rows) * (height + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(min(16.0, 1.7 * width / max(map(len, titles))))
    for column, title in enumerate(titles):
        middle = column * (width + GAP) + width / 2
        draw.text((middle, HEADER / 2), title, (70, 74, 80), font, anchor="mm")
        for row, images in enumerate(rows):
            whole.paste(images[column], (column * (width + GAP), HEADER + row * (height + GAP)))
    return whole


def strip(images: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Arrange pictures side by side on a transparent background."""
    wide, tall = max(i.width for i in images), max(i.height for i in images)
    whole = Image.new("RGBA", (len(images) * (wide + gap) - gap, tall))
    for k, image in enumerate(images):
        whole.paste(image.convert("RGB"), (k * (wide + gap), 0))
    return whole
