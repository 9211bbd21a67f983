"""Result of an edit: examples, codes and masks before and after, how far the change reached, and its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.blocks import Block, Cards, Code, Details, Figure, Heading, Table
from tessella.kinds.base import kind_of
from tessella.kinds.pictures import heat_map
from tessella.kinds.sheets import GAP, enlarged, on_white, titled_rows
from tessella.tasks.edit.operations import bounding_box, in_words

SHEET_WIDTH = 1600
ORANGE, GREY = (255, 140, 0), (150, 150, 150)
LISTED = 200
"""Maximum number of changed codes that a page lists."""


@final
@dataclass(frozen=True)
class EditedLevel:
    """One level of codes before and after an edit.

    Attributes:
        chosen: `[*grid]` bool, positions that were edited.
        before, after: `[C, *grid]` and `[N, C, *grid]` int64.
        cell: length of a position's cell along each axis of the example.
    """

    chosen: Tensor
    before: Tensor
    after: Tensor
    cell: int


@final
@dataclass(frozen=True)
class Edited:
    """An example before and after N variants of an edit, float32 in stored units, on the CPU.

    Attributes:
        x: `[C, *spatial]`, the example as stored.
        before: `[C, *spatial]`, its reconstruction.
        after: `[N, C, *spatial]`, the decoded edited latents.
        result: `[N, C, *spatial]`, `after`, or `x` with `after` blended in.
        region: `[*spatial]` bool, the requested region.
        cells: `[*spatial]` bool, cells of the edited positions; the region, if latents have no grid.
        reach: `[*spatial]` bool, all positions that the edited latents can change: cells and receptive field.
        levels: each level of codes, coarsest first; empty for a model without codes.
        moved: `[N]`, for a model without codes the relative distance |z' - z| / |z|.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    result: Tensor
    region: Tensor
    cells: Tensor
    reach: Tensor
    levels: tuple[EditedLevel, ...] = ()
    moved: Tensor | None = None

    @property
    def change(self) -> Tensor:
        """Compute the squared change from `before` to `after`, summed over channels, `[N, *spatial]`; 0 where NaN."""
        return (self.after.double() - self.before.double()).nan_to_num().square().sum(1)

    def share_outside(self, mask: Tensor) -> Tensor:
        """Compute the share of the squared change outside `mask` `[*spatial]`, `[N]`.

        It is 0 if nothing changed.
        """
        change = self.change
        total = change.flatten(1).sum(1)
        return (change * ~mask).flatten(1).sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny)

    def changed(self, variant: int) -> list[dict[str, int]]:
        """List the codes that changed: level, slot, row (pictures only), column, from, to."""
        found = []
        for number, level in enumerate(self.levels):
            now, axes = level.after[variant], ("slot", *("row", "column")[-self.region.dim() :])
            for place in map(tuple, (now != level.before).nonzero().tolist()):
                where = {"level": number, **dict(zip(axes, place, strict=True))}
                found.append({**where, "from": int(level.before[place]), "to": int(now[place])})
        return found

    @property
    def codes_changed(self) -> float:
        """Return the mean number of codes that changed in a variant."""
        return sum(len(self.changed(n)) for n in range(len(self.after))) / len(self.after)

    @property
    def code_count(self) -> int:
        """Return the number of codes of the example."""
        return sum(level.before.numel() for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """Return what changed, and how far the change reached, as plain data."""
        box = bounding_box(self.region)[::-1]  # x first
        ends = dict(zip(("x", "y"), (first for first, _ in box), strict=False))
        lengths = dict(zip(("width", "height"), (length for _, length in box), strict=False))
        shares = {name: self.share_outside(getattr(self, name)).tolist() for name in ("region", "cells", "reach")}
        peak = self.change.flatten(1).amax(1).sqrt().tolist()
        return {
            "size": dict(zip(("width", "height"), reversed(self.region.shape), strict=False)),
            "region": {**ends, **lengths, "pixels": int(self.region.sum())},
            "cells": {"pixels": int(self.cells.sum())},
            "reach": {"pixels": int(self.reach.sum())},
            "levels": [
                {"grid": list(v.chosen.shape), "cell": v.cell, "positions_edited": int(v.chosen.sum())}
                for v in self.levels
            ],
            "variants": [
                {
                    "squared_change": float(self.change[n].sum()),
                    "largest_change": peak[n],
                    **{f"share_outside_{name}": share[n] for name, share in shares.items()},
                    **({"moved": float(self.moved[n])} if self.moved is not None else {}),
                    "codes_changed": self.changed(n),
                }
                for n in range(len(self.after))
            ],
        }


def edit_sheet(edited: Edited, schema: Schema) -> Image.Image:
    """Compose the example with its region, its reconstruction, the edited variants, and the differences.

    One variant is shown in a row; several variants are shown each above its difference. A difference is the root of the
    squared change, brighter where it is larger, all on one scale; the grey line is the reach of the edit.
    """
    count = len(edited.after)
    columns = 4 if count == 1 else 1 + count
    side = max(96, min(320, SHEET_WIDTH // columns - GAP))
    original = _outlined(on_white(enlarged(edited.x, schema, side)), edited.region, ORANGE)
    before = on_white(enlarged(edited.before, schema, side))
    after = [on_white(enlarged(x, schema, side)) for x in edited.result]
    change = edited.change.sqrt()
    change = change.view(count, -1, change.shape[-1]).numpy() / (float(change.max()) or 1.0)
    difference = []
    for one in change:
        heat = heat_map(one, 0, 1).resize(before.size, Image.Resampling.NEAREST)
        difference.append(_outlined(_outlined(heat, edited.reach, GREY), edited.region, ORANGE))
    if count == 1:
        titles = ["input", "reconstruction", "after the edit", "difference"]
        return titled_rows([[original, before, *after, *difference]], titles)
    return titled_rows([[original, *after], [before, *difference]], ["input; before", *map(str, range(1, count + 1))])


def blocks(edited: Edited, schema: Schema) -> tuple[Block, ...]:
    """Make the blocks of an edit's page."""
    count = len(edited.after)
    shares = {
        name: 100 * edited.share_outside(where).mean()
        for name, where in (("region", edited.region), ("cells", edited.cells), ("reach", edited.reach))
    }
    beyond = "exactly 0" if shares["reach"] == 0 else f"{float(shares['reach']):.3g} %"
    cards = [
        (f"{shares['region']:.3g} %", "of the squared change lies outside the requested region"),
        (beyond, "lies beyond the reach of the edit, which is the decoder's receptive field"),
    ]
    if edited.levels:
        changed = f"{edited.codes_changed:,.4g} of {edited.code_count:,}"
        cards.insert(0, (changed, "codes changed" + (", mean over the variants" * (count > 1))))
        if shares["cells"] != shares["region"]:
            cards.insert(2, (f"{shares['cells']:.3g} %", "lies outside the cells of the edited codes"))
    elif edited.moved is not None:
        cards.insert(0, (f"{100 * edited.moved.mean():.3g} %", "relative change of z, |z' - z| / |z|"))
    caption = (
        "The input, with the region; its reconstruction before the edit; the edited example; and the difference of "
        "the last two, on one scale, light where it is large"
        + ("." if bool(edited.reach.all()) else "; the grey line is how far the edit could reach.")
    )
    rows = [
        (kind_of(schema).example, in_words(edited.region.shape), "size at the model, width first"),
        ("region", f"{int(edited.region.sum()):,}", "positions in the requested region"),
        ("cells", f"{int(edited.cells.sum()):,}", "positions in the cells of the edited codes"),
        ("reach", f"{int(edited.reach.sum()):,}", "positions that the edited codes can change at all"),
    ]
    for number, v in enumerate(edited.levels):
        meaning = f"codes edited, each with a cell of {in_words([v.cell] * edited.region.dim())} positions"
        rows.append((f"level {number}", f"{int(v.chosen.sum()):,} of {v.chosen.numel():,}", meaning))
    listed = (_listed(edited),) if edited.levels else ()
    return (
        Cards(cards),
        Figure(edit_sheet(edited, schema), caption),
        Heading("Numbers"),
        Table(("", "", ""), rows),
        *listed,
    )


def _listed(edited: Edited) -> Details:
    """List the codes that changed in the first variant."""
    lines = []
    for c in edited.changed(0):
        place = ", ".join(str(c[axis]) for axis in ("row", "column") if axis in c)
        lines.append(f"level {c['level']} slot {c['slot']} ({place}): {c['from']} -> {c['to']}")
    more = [f"... and {len(lines) - LISTED} more, in edit.json"] if len(lines) > LISTED else []
    which = "" if len(edited.after) == 1 else " in the first variant"
    return Details(f"codes that changed{which}", (Code("\n".join([*lines[:LISTED], *more])),))


def _outlined(image: Image.Image, mask: Tensor, colour: tuple[int, int, int]) -> Image.Image:
    """Draw a line two pixels wide along the inside of a mask `[*spatial]`, except at the border."""
    cells = Image.fromarray(np.uint8(255) * mask.view(-1, mask.shape[-1]).numpy().astype(np.uint8))
    large = torch.from_numpy(np.array(cells.resize(image.size, Image.Resampling.NEAREST))) > 0
    outside = F.max_pool2d(F.pad((~large).float()[None], (2, 2, 2, 2)), 5, stride=1)[0] > 0
    pixels = np.array(image)
    pixels[torch.logical_and(outside, large).numpy()] = colour
    return Image.fromarray(pixels)
