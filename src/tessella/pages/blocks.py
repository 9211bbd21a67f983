"""What a page is made of: figures, sheets of examples, rows of tables."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from PIL import Image
from torch import Tensor

import tessella
from tessella.core.schema import Schema
from tessella.foundation.files import write_atomic
from tessella.foundation.text import shown
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.models.base import Model

WIDTH, TILE = 860, 64


def write_page(path: Path, title: str, body: Sequence[str]) -> None:
    """Write a page that stands alone, whole or not at all."""
    footer = f"<footer>Written by tessella {tessella.__version__}. This page holds everything it shows.</footer>"
    template = Template(resources.files("tessella.pages").joinpath("report_template.html").read_text("utf-8"))
    page = template.substitute(title=html.escape(title), body="\n".join([*body, footer]))
    page = "\n".join(map(shown, page.split("\n")))  # names from outside
    write_atomic(path, lambda draft: draft.write_text(page, "utf-8"))


def slow(model: Model) -> bool:
    """Whether drawing one example takes a pass over all pixels, so that few should be drawn."""
    return model.likelihood.sequential_mean


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """Figures in large print, each with its meaning."""
    shown = "".join(f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(m)}</span></div>' for v, m in figures)
    return f'<div class="cards">{shown}</div>'


def row(name: str, *rest: str) -> str:
    """A table's row: a name, perhaps a value, and words."""
    classes = ("v", "m") if len(rest) > 1 else ("m",)
    cells = "".join(f"<td class={c}>{html.escape(text)}</td>" for c, text in zip(classes, rest, strict=True))
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def columns_of(schema: Schema) -> int:
    """How many examples fill a row."""
    width = kind_of(schema).tile_size[1]
    return max(3, min(11, WIDTH // max(width, TILE)))


def scale_of(schema: Schema, columns: int) -> int:
    """By how much a row of so many examples is enlarged."""
    height, width = kind_of(schema).tile_size
    return max(1, min(-(-TILE // min(height, width)), WIDTH // (columns * width)))


def sheet(examples: Tensor, schema: Schema, caption: str) -> str:
    """Examples `[R, C, *shape]` as a figure of R rows."""
    scale = scale_of(schema, examples.shape[1])
    image = pictures.grid(examples.flatten(0, 1), schema, examples.shape[1], scale=scale)
    return figure(image, caption, pixels=scale > 1)


def labelled_rows(examples: Tensor, labels: Sequence[str], schema: Schema, caption: str) -> str:
    """The same with a label before each row."""
    columns = examples.shape[1]
    scale = max(1, min(scale_of(schema, columns), (WIDTH - 150) // (columns * max(schema.shape[-1], 1))))
    images = [pictures.grid(row_of, schema, columns, scale=scale) for row_of in examples]
    rows = "".join(
        f"<span>{html.escape(label)}</span>{image_tag(image, label, scale > 1)}"
        for label, image in zip(labels, images, strict=True)
    )
    return f'<figure><div class="rows">{rows}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def figure(image: Image.Image, caption: str, *, pixels: bool = False, widest: int = WIDTH) -> str:
    """A picture with its caption; `pixels` are kept sharp."""
    return (
        f"<figure>{image_tag(image, caption, pixels, widest)}<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def image_tag(image: Image.Image, alt: str, pixels: bool, widest: int = WIDTH) -> str:
    """A picture inside the page itself."""
    kind = ' class="pixels"' if pixels else ""
    size = f'width="{min(image.width, widest)}" alt="{html.escape(alt, quote=True)}"'
    return f'<img{kind} src="{pictures.png_data_uri(image)}" {size}>'
