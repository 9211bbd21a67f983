"""Blocks of a page that show examples: sheets, rows with labels, and players of sounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.blocks import Clip, Clips, Figure, Rows
from tessella.kinds import pictures, sounds
from tessella.kinds.base import kind_of

PAGE, TILE, LABELS = 860, 64, 150
"""Widths in pixels: of a page, smallest width of an example, and width of the labels before rows."""
MOST_CLIPS, MOST_SECONDS = 8, 5
"""Largest number of sounds with players, and largest duration of each."""


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


def named_examples(examples: Tensor, rows: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Name the examples of `[R, C, *shape]` by the labels of their rows, and number those with one label from 1.

    A label may occur again in later rows. One example of each label comes first, then a second of each, and so on.
    Blank examples, which are all NaN, are left out.

    Args:
        rows: label of each row; if empty, the examples have only numbers.
    """
    period = len(dict.fromkeys(rows)) or 1
    blocks = examples.unflatten(0, (-1, period)).transpose(1, 2).flatten(0, 1)  # [., period, *shape]
    names = rows[:period] or [""]
    found = [
        (f"{name} {number}".strip(), x)
        for number, group in enumerate(blocks, 1)
        for name, x in zip(names, group, strict=True)
    ]
    return [(name, x) for name, x in found if not x.isnan().all()]


def players(named: Sequence[tuple[str, Tensor]], schema: Schema, caption: str = "") -> Clips | None:
    """Make players of the first sounds; None if the examples are no sounds.

    Args:
        named: names and examples `[*shape]`.
    """
    if not kind_of(schema).audible or not named:
        return None
    most = round(MOST_SECONDS * schema.rate)
    some = named[:MOST_CLIPS]
    cut = f" Each player holds the first {MOST_SECONDS} seconds." if schema.spatial[0] > most else ""
    images = pictures.images(torch.stack([x for _, x in some]), schema)
    clips = [Clip(sounds.wav(x[:, :most], schema), image, name) for (name, x), image in zip(some, images, strict=True)]
    return Clips(clips, f"{caption}{cut}".strip())


def _scale(schema: Schema, columns: int, room: int) -> int:
    """Return the factor by which a row of examples is enlarged to fill the width."""
    height, width = kind_of(schema).tile_size
    return max(1, min(-(-TILE // min(height, width)), room // (columns * width)))
