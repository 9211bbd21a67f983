"""Describes data before anything is trained: what was understood of it, in words and as a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from tessella.foundation.blocks import Figure, Page, Table
from tessella.foundation.files import write_atomic
from tessella.foundation.text import shown
from tessella.models.spec import DataOptions
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from PIL import Image

    from tessella.data import Data

COLUMNS, MOST_CLASSES, UNSORTED = 10, 12, 80
"""Of the contact sheet: examples in a row, rows at most, examples where there are no classes."""
MARGIN = 8
"""Pixels beside the names of classes."""


@dataclass(frozen=True, kw_only=True)
class DescribeConfig(DataOptions):
    """Describe data before training: shape, values, splits and classes as they were understood, and a contact sheet.

    Attributes:
        spec: clothes, digits, sprites, tones, hf:NAME, a folder of pictures or sounds, or a file.
    """

    spec: Positional[str]


@dataclass(frozen=True)
class DataDescription(Result):
    """What was understood of some data.

    Attributes:
        data: the data.
        files: measures of the content of its files, such as rates and levels of sounds: names and texts.
    """

    data: Data
    files: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        data = self.data
        return {
            "version": 1,
            "data": data.spec,
            "schema": data.schema.to_json(),
            "splits": {name: len(split) for name, split in data.splits.items()},
            "classes": class_counts(data),
            "files": dict(self.files),
            "notes": list(data.notes),
            "fingerprint": data.fingerprint,
        }

    def page(self) -> Page:
        facts = Table(("", ""), data_facts(self.data, self.files), figures=())
        return Page(f"What {self.data.spec} holds", [facts, contact_figure(self.data)])

    def save(self, out: Path) -> None:
        sheet = contact_sheet(self.data)
        write_atomic(out, lambda draft: sheet.save(draft, format="PNG"))


@task(
    "describe",
    summary="show what is understood of some data, and write a contact sheet",
    group="start here",
    out="contact-sheet.png",
    endings=(".png", ".html"),
)
def describe_data(config: DescribeConfig) -> DataDescription:
    """Open data and describe it."""
    data = config.open(config.spec)
    return DataDescription(data, tuple(data.measure_files()))


def data_facts(data: Data, files: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """What was understood of some data, and measures of its files: names and texts, a line each."""
    from tessella.core.schema import Binary
    from tessella.foundation.text import abridged
    from tessella.kinds.base import kind_of

    schema, binarize, counts = data.schema, data.options["binarize"], class_counts(data)
    low, high = (f"{v:,.0f}" if schema.values.discrete else f"{v:.4g}" for v in (schema.values.low, schema.values.high))
    values = f"{schema.values.words}, {low} ... {high}{'' if schema.values.discrete else ' in training'}"
    splits = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    classes = f"none{_aside(data.labelling)}"
    if counts is not None:
        how = f" {data.labelling}" if data.labelling else ""
        named = abridged([f"{name} ({count:,})" for name, count in counts.items()], 12)
        classes = f"{len(counts)}{how}: {named}; counted in training"
    return [
        ("data", shown(data.spec)),
        ("examples", kind_of(schema).description),
        ("values", values + (f" ({binarize} binarisation)" if binarize and schema.values == Binary() else "")),
        ("splits", f"{splits}{_aside(data.division)}"),
        ("classes", classes),
        *files,
        *(("note", note) for note in data.notes),
    ]


def class_counts(data: Data) -> dict[str, int] | None:
    """Training examples of each class; None without labels."""
    import numpy as np

    labels = data.splits["train"].labels
    if labels is None:
        return None
    counts = np.bincount(labels, minlength=len(data.schema.classes)).tolist()
    return dict(zip(data.schema.classes, counts, strict=True))


def _aside(text: str) -> str:
    return f" ({shown(text)})" if text else ""


def contact_figure(data: Data) -> Figure:
    """Show the contact sheet with its caption."""
    rows = " Each row is a class." if data.schema.classes and data.split("train").labels is not None else ""
    sheet = contact_sheet(data)
    return Figure(sheet, f"Some of the training data, as stored.{rows}", width=860 if sheet.width > 700 else 560)


def contact_sheet(data: Data) -> Image.Image:
    """Training examples: a row for each class, its name on the left, or just some where there are none."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    from tessella.kinds.base import kind_of
    from tessella.kinds.figures import examples_in_a_row
    from tessella.kinds.pictures import image_grid

    split, columns = data.split("train"), COLUMNS
    if kind_of(data.schema).audible:  # its tiles are wide
        columns = examples_in_a_row(data.schema)
    if split.labels is None:
        first = split.batch(split.random_rows(UNSORTED)).x
        return image_grid(first, data.schema, columns)
    rows = []
    for number, name in enumerate(data.schema.classes[:MOST_CLASSES]):
        of = np.flatnonzero(split.labels == number)
        of = of[np.argsort(split.example_ids[of])[:columns]]  # hash order: neighbours are often alike
        if len(of):
            x = split.batch(of).x
            blank = torch.full((columns - len(of), *x.shape[1:]), math.nan)
            rows.append((name, image_grid(torch.cat([x.float(), blank]), data.schema, columns)))
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
