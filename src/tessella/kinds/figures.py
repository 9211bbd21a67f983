"""Blocks of a page that show examples: sheets, and rows with labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.blocks import Figure, Rows
from tessella.kinds import pictures
from tessella.kinds.base import kind_of

PAGE, TILE, LABELS = 860, 64, 150
"""Widths in pixels: of a page, smallest width of an example, and width of the labels before rows."""


def examples_in_a_row(schema: Schema) -> int:
    """Return the number of examples that fill the width of a page."""
    return max(3, min(11, PAGE // max(kind_of(schema).tile_size[1], TILE)))


def sheet_figure(examples: Tensor, schema: Schema, caption: str) -> Figure:
    """Show examples `[R, C, *shape]` as a sheet of R rows."""
    scale = _scale(schema, examples.shape[1], PAGE)
    image = pictures.image_grid(examples.flatten(0, 1), schema, examples.shape[1], scale=scale)
    return Figure(image, caption, pixelated=scale > 1)


def labelled_rows(examples: Tensor, labels: Sequence[str], schema: Schema, caption: str) -> Rows:
    """Show examples `[R, C, *shape]` as R rows, each with a label before it."""
    columns = examples.shape[1]
    scale = _scale(schema, columns, PAGE - LABELS)
    images = [pictures.image_grid(row, schema, columns, scale=scale) for row in examples]
    return Rows(list(zip(labels, images, strict=True)), caption, pixelated=scale > 1)


def _scale(schema: Schema, columns: int, room: int) -> int:
    """Return the factor by which a row of examples is enlarged to fill the width."""
    height, width = kind_of(schema).tile_size
    return max(1, min(-(-TILE // min(height, width)), room // (columns * width)))
