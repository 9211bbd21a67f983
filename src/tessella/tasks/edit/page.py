"""Sheet and page blocks of an edit: before, after, and where they differ."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.blocks import Block, Cards, Code, Details, Figure, Heading, Table
from tessella.kinds.sheets import GAP, enlarged, heat_map, on_white, titled_rows
from tessella.tasks.edit.result import Edited

SHEET_WIDTH = 1600
ORANGE, GREY = (255, 140, 0), (150, 150, 150)
LISTED = 200
"""Changed codes that a page lists at most."""


def sheet(edited: Edited, schema: Schema) -> Image.Image:
    """Compose the picture with its region, its reconstruction, the edited pictures, and the differences.

    One variant stands in a row; several stand each above its difference. Differences are the root of the squared
    change, brighter where it is larger, all on one scale; the grey line is the reach of the edit.
    """
    count = len(edited.after)
    columns = 4 if count == 1 else 1 + count
    side = max(96, min(320, SHEET_WIDTH // columns - GAP))
    original = _outlined(on_white(enlarged(edited.x, schema, side)), edited.region, ORANGE)
    before = on_white(enlarged(edited.before, schema, side))
    after = [on_white(enlarged(x, schema, side)) for x in edited.result]
    change = edited.change.sqrt()
    largest = float(change.max()) or 1.0
    difference = [
        _outlined(_outlined(heat_map(c / largest, side), edited.reach, GREY), edited.region, ORANGE) for c in change
    ]
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
        (f"{shares['region']:.3g} %", "of the squared change lies outside the region that was asked for"),
        (beyond, "lies beyond the reach of the edit, which is the decoder's receptive field"),
    ]
    if edited.levels:
        changed = f"{edited.codes_changed:,.4g} of {edited.code_count:,}"
        cards.insert(0, (changed, "codes changed" + (", mean over the variants" * (count > 1))))
        if shares["cells"] != shares["region"]:
            cards.insert(2, (f"{shares['cells']:.3g} %", "lies outside the cells of the edited codes, which are whole"))
    elif edited.moved is not None:
        cards.insert(0, (f"{100 * edited.moved.mean():.3g} %", "of its length is how far z moved"))
    caption = (
        "The input, with the region; its reconstruction before the edit; the edited picture; and the difference of "
        "the two, on one scale, light where it is large"
        + ("." if bool(edited.reach.all()) else "; the grey line is how far the edit could reach.")
    )
    rows = [
        ("picture", f"{edited.x.shape[2]} x {edited.x.shape[1]}", "pixels, width and height, as the model sees it"),
        ("region", f"{int(edited.region.sum()):,}", "pixels that were asked for"),
        ("cells", f"{int(edited.cells.sum()):,}", "pixels of the cells of the edited codes"),
        ("reach", f"{int(edited.reach.sum()):,}", "pixels that the edited codes can change at all"),
        *(
            (
                f"level {number}",
                f"{int(v.chosen.sum()):,} of {v.chosen.numel():,}",
                f"positions edited, each of {v.cell}x{v.cell} pixels",
            )
            for number, v in enumerate(edited.levels)
        ),
    ]
    listed = (_listed(edited),) if edited.levels else ()
    return (
        Cards(cards),
        Figure(sheet(edited, schema), caption),
        Heading("Numbers"),
        Table(("", "", ""), rows),
        *listed,
    )


def _listed(edited: Edited) -> Details:
    """List the codes that changed in the first variant."""
    lines = [
        f"level {c['level']} slot {c['slot']} ({c['row']}, {c['column']}): {c['from']} -> {c['to']}"
        for c in edited.changed(0)
    ]
    more = [f"... and {len(lines) - LISTED} more, in edit.json"] if len(lines) > LISTED else []
    which = "" if len(edited.after) == 1 else " in the first variant"
    return Details(f"codes that changed{which}", (Code("\n".join([*lines[:LISTED], *more])),))


def _outlined(image: Image.Image, mask: Tensor, colour: tuple[int, int, int]) -> Image.Image:
    """Draw a line of two points along the inside of a mask `[H, W]`, except where it meets the border."""
    pixels, times = np.array(image), image.width // mask.shape[1]
    large = mask.repeat_interleave(times, 0).repeat_interleave(times, 1)
    outside = F.max_pool2d(F.pad((~large).float()[None], (2, 2, 2, 2)), 5, stride=1)[0] > 0
    pixels[torch.logical_and(outside, large).numpy()] = colour
    return Image.fromarray(pixels)
