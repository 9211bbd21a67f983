"""The page's part on codes: over their pictures, what each stands for, how they are used, and under which prior."""

from __future__ import annotations

import html
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tessella.coding import code_atlas
from tessella.coding.code_atlas import CodedExamples
from tessella.core.batches import Batch
from tessella.data import Split
from tessella.evaluation.codebook import level_name
from tessella.evaluation.results import CodesEvaluation
from tessella.evaluation.samples import reconstruct_rows, sample_rows
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.kinds.sheets import enlarged
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.pages import blocks
from tessella.pages.svg import bar_chart, over_time

HALF = (blocks.WIDTH - 12) // 2
ROW, SMALL = 6, 112
"""Examples in the rows of mosaics, and points a side of each."""
TILES, TILES_EACH, BOOKS = 60, 24, 3
"""Codes in an atlas of one codebook; in each of several; and how many codebooks are shown at most."""
SIDE_BY_SIDE = 36


def section(model: CodeModel, split: Split, name: str, codes: CodesEvaluation, metrics: list[dict[str, Any]]) -> str:
    """What the codes of a split look like; nothing of signals, whose patches are no pictures."""
    if model.schema.rank == 1:
        return ""
    seen = code_atlas.encode_examples(model, split)
    one = kind_of(model.schema).example
    parts = [f"<h2>Codes</h2><p>{html.escape(_introduction(codes, seen, one))}</p>"]
    if seen.grids and model.schema.rank == 2:
        parts += [_over_one(model, seen), strips(model, seen, name)]
    parts += [_atlases(seen, one), _usage(seen)]
    charts = over_time(metrics, [("code_usage", "share of the codes that occur"), ("perplexity", "perplexity")])
    if charts:
        caption = "How many codes were in use while it trained, in some of the validation split" + (
            "; of the level that uses least of them." if len(codes.levels) > 1 else "."
        )
        parts.append(f"<h3>Usage over training</h3><figure>{charts}<figcaption>{caption}</figcaption></figure>")
    return "".join(parts)


def samples(model: CodeModel) -> str:
    """Samples from the uniform prior over codes and from the learned one, side by side."""
    classes = len(model.schema.classes) if model.conditional else 0
    few, many = (9, SIDE_BY_SIDE) if classes < 2 else (classes, classes * min(classes, 8))
    learned = sample_rows(model, few if blocks.slow(model) else many)
    if classes and len(learned) > learned.shape[1]:
        learned = learned.transpose(0, 1)  # a class a column, so that the panels are not tall
    rows, columns = learned.shape[:2]
    uniform = model.sample_uniform(rows * columns).cpu()
    panels = [
        (_fitting(uniform, model, columns), "uniform prior: each code as likely as any other"),
        (_fitting(learned.flatten(0, 1), model, columns), "learned prior"),
    ]
    caption = (
        "Samples: none of these exists. The same decoder made both halves; the only difference is the prior that the "
        "codes were sampled from."
    )
    return f"<h2>Samples</h2>{_panels(panels, caption)}"


def _introduction(codes: CodesEvaluation, seen: CodedExamples, one: str) -> str:
    said = []
    for level, (of, c) in enumerate(zip(codes.levels, seen.codes, strict=True)):
        slots, rows, columns = c.shape[1:]
        where = f"a grid of {columns}x{rows} positions" if seen.grids else "one position"
        each = f"{slots} codes each" if slots > 1 else "a code each"
        name = level_name(level, len(codes.levels))
        said.append(f"{name + ': ' if name else ''}{where}, {each}, out of {of.codebook_size:,}")
    return (
        f"Between encoder and decoder a {one} is nothing but integers: {'; '.join(said)}. Each integer names a vector, "
        "which the decoder draws from. What the integers mean was learned; here is what they came to stand for."
    )


def _over_one(model: CodeModel, seen: CodedExamples) -> str:
    """One picture, large: its codes over it, what they cost, and the mosaic that they make."""
    books = [(level, slot) for level, c in enumerate(seen.codes) for slot in range(c.shape[1])]
    panels = []
    for level, slot in books[:2]:
        grid = code_atlas.code_map(seen, 0, code_atlas.code_colours(model, level, slot), level=level, slot=slot)
        panels.append((grid, _called(seen, level, slot, "code map of a picture")))
    mosaics = enlarged(code_atlas.patch_reconstruction(seen, slice(0, 1))[0], seen.schema, 2 * HALF)
    panels.append((mosaics, "the mean patch of each code in its place: what the codes say by themselves"))
    if model.fitted:
        rates = costs(model, seen.batch(slice(0, 1)))
        cost = code_atlas.rate_map(seen, 0, rates[-1][0], level=len(rates) - 1)
        panels.append((cost, _called(seen, len(rates) - 1, None, "what each code costs under the learned prior, bits")))
    if len(panels) % 2:
        panels.insert(0, (enlarged(seen.x[0], seen.schema, 2 * HALF), "input"))
    caption = (
        "A colour is a code: codes whose vectors are alike have colours that are alike. A number is the code's; where "
        "cells are too small for it, it is left out."
    )
    return _panels(panels, caption)


def strips(model: CodeModel, seen: CodedExamples, name: str) -> str:
    """Some pictures, each above its code map, its mean patches and its reconstruction."""
    rows = slice(1, 1 + ROW)
    batch = seen.batch(rows)
    numbers = range(1, 1 + len(batch.x))
    if not numbers:
        return ""
    lines = {"input": [enlarged(x, seen.schema, 2 * SMALL) for x in batch.x]}
    for level in range(len(seen.codes)):
        palette = code_atlas.code_colours(model, level)
        label = level_name(level, len(seen.codes)).removeprefix("the ").replace(" level", " codes") or "code map"
        lines[label] = [code_atlas.code_map(seen, n, palette, level=level, side=2 * SMALL) for n in numbers]
    lines["mean patches"] = [enlarged(x, seen.schema, 2 * SMALL) for x in code_atlas.patch_reconstruction(seen, rows)]
    if not blocks.slow(model):
        drawn = reconstruct_rows(model, batch, len(batch.x))[1]
        lines["reconstruction"] = [enlarged(x, seen.schema, 2 * SMALL) for x in drawn]
    shown = "".join(
        f"<span>{html.escape(label)}</span>{blocks.image_tag(_strip(images), label, False, len(images) * (SMALL + 6))}"
        for label, images in lines.items()
    )
    caption = f"Pictures of the {name} split; their codes; the mean patch of each code in its place" + (
        "." if blocks.slow(model) else "; and the decoder's reconstruction, which sees all codes together."
    )
    return f'<figure><div class="rows">{shown}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def _atlases(seen: CodedExamples, one: str) -> str:
    """What the codes that occur most often stand for."""
    books = [(level, slot) for level, c in enumerate(seen.codes) for slot in range(c.shape[1])]
    parts = ["<h3>What each code stands for</h3>"]
    for level, slot in books[:BOOKS]:
        tiles = code_atlas.atlas(seen, level, slot, most=TILES if len(books) == 1 else TILES_EACH)
        if len(books) > 1:
            parts.append(f'<p class="soft">{_called(seen, level, slot, "")}</p>')
        cards = "".join(
            f"<div>{blocks.image_tag(code_atlas.patch_card(tile, seen, level), f'code {tile.code}', True)}"
            f"<span>{tile.code}<b>{100 * tile.share:.{2 if tile.share < 0.001 else 1}f} %</b></span></div>"
            for tile in tiles
        )
        parts.append(f'<div class="atlas">{cards}</div>')
    left = f" Of {len(books)} codebooks the first {BOOKS} are shown." if len(books) > BOOKS else ""
    around = ", with some of what surrounds them, faded" if seen.grids and seen.schema.rank == 2 else ""
    caption = (
        f"The codes that occur most often, with the share of all positions that they hold in {len(seen.x):,} {one}s. "
        f"Large, the mean patch of a code; small, some of its patches{around}. A code sees more than its patch, and "
        f"may stand for what is around it.{left}"
    )
    return f"{''.join(parts)}<p class='soft'>{html.escape(caption)}</p>"


def _usage(seen: CodedExamples) -> str:
    """How often each code occurs."""
    charts = []
    for level, used in enumerate(seen.used):
        shares = 100 * used.double() / used.sum(1, keepdim=True)
        ranked = shares.sort(1, descending=True).values.mean(0)
        name = level_name(level, len(seen.used))
        title = "share of all positions, %" + (f", {name}" if name else "")
        charts.append(bar_chart(ranked.tolist(), int((ranked > 0).sum()), title=title, across="codes, sorted"))
    caption = f"How often each code occurs in {len(seen.x):,} examples, sorted. Even use is a level line." + (
        " Of several codes a position the mean over them." if any(len(u) > 1 for u in seen.used) else ""
    )
    return f"<h3>How often</h3><figure>{''.join(charts)}<figcaption>{html.escape(caption)}</figcaption></figure>"


@torch.inference_mode()
def costs(model: CodeModel, batch: Batch) -> list[Tensor]:
    """What the codes at each position cost under the model's prior, `[B, h, w]` nats a level."""
    label = None if batch.label is None else batch.label.to(model.device)
    codes = model.encode(batch.x.to(model.device), label).codes
    return [-log_p.sum(1).cpu() for log_p in model.log_prob_codes(codes, label)]


def _called(seen: CodedExamples, level: int, slot: int | None, what: str) -> str:
    """`what`, and of which level and slot if there are several."""
    name, slots = level_name(level, len(seen.codes)), seen.codes[level].shape[1]
    place = f"code {slot + 1} of the {slots} at each position" if slot is not None and slots > 1 else ""
    return ", ".join(part for part in (what, name, place) if part)


def _fitting(examples: Tensor, model: Model, columns: int) -> Image.Image:
    """Examples as a sheet that fills half the page."""
    return pictures.grid(examples, model.schema, columns, scale=max(1, 2 * HALF // (columns * model.schema.shape[-1])))


def _panels(panels: list[tuple[Image.Image, str]], caption: str) -> str:
    """Pictures two in a row, each with its words."""
    shown = "".join(
        f"<div>{blocks.image_tag(image, text, False, HALF)}<span>{html.escape(text)}</span></div>"
        for image, text in panels
    )
    return f'<figure><div class="panels">{shown}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def _strip(images: list[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures beside each other."""
    wide, tall = max(i.width for i in images), max(i.height for i in images)
    strip = Image.new("RGBA", (len(images) * (wide + gap) - gap, tall))
    for k, image in enumerate(images):
        strip.paste(image.convert("RGB"), (k * (wide + gap), 0))
    return strip
