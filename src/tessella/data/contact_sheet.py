"""What was understood of a data set: in words, and as a contact sheet."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tessella.core.schema import Binary
from tessella.data.dataset import Data
from tessella.data.raw import abridged, shown
from tessella.kinds.base import kind_of
from tessella.kinds.pictures import grid

COLUMNS, MOST_CLASSES, UNSORTED = 10, 12, 80
MARGIN = 8


def describe(data: Data) -> str:
    """What was understood, as plain text of a few lines."""
    schema = data.schema
    binarize = data.options["binarize"]
    values = f"{schema.values.words}, {schema.values.low:.4g} ... {schema.values.high:.4g}"
    values += "" if schema.values.discrete else " in training"
    lines = [
        f"data     {shown(data.spec)}",
        f"examples {kind_of(schema).description}",
        f"values   {values}" + (f" ({binarize} binarisation)" if binarize and schema.values == Binary() else ""),
        "splits   "
        + ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
        + _aside(data.division),
    ]
    labels = data.splits["train"].labels
    if labels is None:
        lines.append(f"classes  none{_aside(data.labelling)}")
    else:
        counts = np.bincount(labels, minlength=len(schema.classes))
        named = [f"{name} ({count:,})" for name, count in zip(schema.classes, counts.tolist(), strict=True)]
        how = f" {data.labelling}" if data.labelling else ""
        lines.append(f"classes  {len(named)}{how}: {abridged(named, 12)}; counted in training")
    lines += [f"note     {note}" for note in data.notes]
    return "\n".join(lines)


def _aside(text: str) -> str:
    return f" ({shown(text)})" if text else ""


def contact_sheet(data: Data) -> Image.Image:
    """Training examples: a row for each class, its name on the left, or just some where there are none."""
    split = data.split("train")
    if split.labels is None:
        first = split.batch(split.random_rows(UNSORTED)).x
        return grid(first, data.schema, COLUMNS)
    rows = []
    for number, name in enumerate(data.schema.classes[:MOST_CLASSES]):
        of = np.flatnonzero(split.labels == number)
        of = of[np.argsort(split.example_ids[of])[:COLUMNS]]  # hash order: neighbours are often alike
        if len(of):
            x = split.batch(of).x
            blank = x.new_full((COLUMNS - len(of), *x.shape[1:]), data.schema.values.low)
            rows.append((name, grid(torch.cat([x, blank]), data.schema, COLUMNS)))
    font = ImageFont.load_default(14)
    texts = [name if len(name) <= 24 else name[:23] + "…" for name in (shown(name) for name, _ in rows)]
    left = int(max(font.getlength(text) for text in texts)) + 2 * MARGIN
    width, height = rows[0][1].size
    mode = "RGB" if rows[0][1].mode in ("L", "RGB") else "RGBA"
    sheet = Image.new(mode, (left + width, len(rows) * (height + 2) - 2), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (text, (_, row)) in enumerate(zip(texts, rows, strict=True)):
        top = number * (height + 2)
        sheet.paste(row.convert(mode), (left, top))
        pen.text((MARGIN, top + height // 2), text, fill="black", font=font, anchor="lm")
    return sheet
