"""The sheet and the page of an edit: before, after, and where they differ."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tessella.core.schema import Schema
from tessella.pages import blocks
from tessella.tasks.code_atlas import enlarged
from tessella.tasks.edit import Edited

HEAT = np.array([(12, 10, 22), (120, 28, 109), (237, 105, 37), (252, 255, 164)])
"""Nothing to most: dark, purple, orange, light."""
ACROSS, GAP, HEADER = 1600, 8, 26
ORANGE, GREY = (255, 140, 0), (150, 150, 150)
LISTED = 200


def sheet(edited: Edited, schema: Schema) -> Image.Image:
    """The picture with its region, what the model draws of it before and after, and the difference.

    Of one variant they stand in a row; of several each stands above its difference. The differences are the root of
    the squared change, brighter where it is more, all on one scale; in grey what the edit could reach.
    """
    count = len(edited.after)
    columns = 4 if count == 1 else 1 + count
    side = max(96, min(320, ACROSS // columns - GAP))
    first = _outlined(enlarged(edited.x, schema, side), edited.region, ORANGE)
    before = enlarged(edited.before, schema, side).convert("RGB")
    after = [_outlined(enlarged(x, schema, side), edited.region, None) for x in edited.result]
    change = edited.change.sqrt()
    most = float(change.max()) or 1.0
    apart = [_outlined(_heat(c / most, side), edited.region, ORANGE, edited.reach) for c in change]
    if count == 1:
        return _laid([[first, before, *after, *apart]], ["input", "reconstruction", "after the edit", "difference"])
    return _laid([[first, *after], [before, *apart]], ["input; before", *map(str, range(1, count + 1))])


def write(path: Path, edited: Edited, schema: Schema, name: str, what: str) -> None:
    """Write the page.

    Args:
        name: what the picture is called.
        what: what was done, in words.
    """
    count = len(edited.after)
    shares = {
        name: 100 * edited.share_outside(where).mean()
        for name, where in (("region", edited.region), ("cells", edited.cells), ("reach", edited.reach))
    }
    cards = [
        (f"{shares['region']:.3g} %", "of the squared change lies outside the region that was asked for"),
        (_percent(shares["reach"]), "lies beyond the reach of what was edited, which is the decoder's receptive field"),
    ]
    if edited.levels:
        cards.insert(0, (_codes_changed(edited), "codes changed" + (", of several variants the mean" * (count > 1))))
        if shares["cells"] != shares["region"]:
            outside = "lies outside the cells of the edited codes, which are whole tiles"
            cards.insert(2, (f"{shares['cells']:.3g} %", outside))
    elif edited.moved is not None:
        cards.insert(0, (f"{100 * edited.moved.mean():.3g} %", "of its length is what z was moved by"))
    image = sheet(edited, schema)
    caption = (
        "The input, with the region; its reconstruction before the edit; the edited picture; and the difference of "
        "the two, on one scale, light where most"
        + ("." if bool(edited.reach.all()) else "; the line in grey is how far the edit could reach.")
    )
    rows = [
        blocks.row(
            "picture", f"{edited.x.shape[2]} x {edited.x.shape[1]}", "pixels, wide and high, as the model sees it"
        ),
        blocks.row("region", f"{int(edited.region.sum()):,}", "pixels that were asked for"),
        blocks.row("cells", f"{int(edited.cells.sum()):,}", "pixels of the cells that meet them: what was edited"),
        blocks.row("reach", f"{int(edited.reach.sum()):,}", "pixels that what was edited could change at all"),
        *(
            blocks.row(
                f"level {number}",
                f"{int(v.chosen.sum()):,} of {v.chosen.numel():,}",
                f"positions edited, each of {v.cell}x{v.cell} pixels",
            )
            for number, v in enumerate(edited.levels)
        ),
    ]
    body = [
        f"<h1>{html.escape(name)}, edited</h1>",
        f'<p class="lead">{html.escape(what)}</p>',
        blocks.cards(cards),
        blocks.figure(image, caption),
        f"<h2>The numbers</h2><table>{''.join(rows)}</table>",
        _listed(edited),
    ]
    blocks.write_page(path, f"{name}, edited", body)


def _codes_changed(edited: Edited) -> str:
    changed = sum(len(edited.changed(n)) for n in range(len(edited.after))) / len(edited.after)
    return f"{changed:,.4g} of {sum(v.before.numel() for v in edited.levels):,}"


def _listed(edited: Edited) -> str:
    """The codes that changed, of the first variant."""
    if not edited.levels:
        return ""
    changed = edited.changed(0)
    lines = [
        f"level {c['level']} slot {c['slot']} ({c['row']}, {c['column']}): {c['from']} -> {c['to']}" for c in changed
    ]
    more = f"\n... and {len(lines) - LISTED} more, in edit.json" if len(lines) > LISTED else ""
    of = "" if len(edited.after) == 1 else " of the first variant"
    text = html.escape("\n".join(lines[:LISTED]) + more)
    return f"<details><summary>the codes that changed{of}</summary><pre>{text}</pre></details>"


def _percent(share: float | Tensor) -> str:
    return "exactly 0" if share == 0 else f"{float(share):.3g} %"


def _heat(share: Tensor, side: int) -> Image.Image:
    """`[H, W]` from 0 to 1 as colours."""
    times = max(1, round(side / max(share.shape)))
    at = share.clamp(0, 1).numpy().repeat(times, 0).repeat(times, 1) * (len(HEAT) - 1)
    channels = [np.interp(at, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return Image.fromarray(np.round(np.stack(channels, -1)).astype(np.uint8))


def _outlined(
    image: Image.Image, region: Tensor, colour: tuple[int, int, int] | None, reach: Tensor | None = None
) -> Image.Image:
    """A picture with a line around the region, and one around the reach unless that is all of it."""
    shown = Image.new("RGB", image.size, "white")
    alpha = image.convert("RGBA") if image.mode in ("RGBA", "LA") else None
    shown.paste(image.convert("RGB"), mask=alpha and alpha.getchannel("A"))
    pixels = np.array(shown)
    times = image.width // region.shape[1]
    for mask, line in ((reach, GREY), (region, colour)):
        if mask is not None and line is not None:
            pixels[_border(mask, times)] = line
    return Image.fromarray(pixels)


def _border(mask: Tensor, times: int) -> np.ndarray:
    """The outermost two points inside a mask that is enlarged."""
    outside = F.pad((~mask).float()[None].repeat_interleave(times, 1).repeat_interleave(times, 2), (2, 2, 2, 2))
    near = F.max_pool2d(outside, 5, stride=1)[0] > 0
    return torch.logical_and(near, mask.repeat_interleave(times, 0).repeat_interleave(times, 1)).numpy()


def _laid(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Pictures of one size in rows, with a title over each column."""
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
