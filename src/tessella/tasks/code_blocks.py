"""Page blocks for discrete codes: code maps, images from mean patches, the atlas, usage, and samples."""

from __future__ import annotations

from collections.abc import Sequence

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
from tessella.foundation.blocks import Block, Chart, Charts, Grid, Heading, Rows, Series, Text, Tile, joined
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.kinds.figures import named_examples, players
from tessella.kinds.sheets import enlarged, strip
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.tasks.signal_code_blocks import codes_along, sounds_of_codes

HALF = 424
"""Pixels of half a page."""
STRIP, SIDE = 6, 112
"""Number of examples in a strip, and side of each in pixels."""
PATCHES, PATCHES_EACH, BOOKS = 60, 24, 3
"""Codes in the atlas if there is one codebook, codes of each if there are several, and maximum number of codebooks."""
SAMPLES, SLOW_SAMPLES = 36, 9


def code_blocks(
    model: CodeModel, split: Split, name: str, codes: CodesEvaluation, over_training: Sequence[Chart] = ()
) -> tuple[Block, ...]:
    """Show the codes of a split.

    Args:
        over_training: charts of usage and perplexity during training.
    """
    kind = kind_of(model.schema)
    coded = code_atlas.encode_examples(model, split)
    one = kind.example
    found: list[Block] = [Heading("Codes"), Text(_introduction(codes, coded, one))]
    if coded.grids and kind.pixels:
        found += [_one_picture(model, coded), *code_strips(model, coded, name)]
    elif coded.grids:
        found += codes_along(model, coded)
    if kind.audible:
        found += sounds_of_codes(model, coded)
    if kind.pixels or not coded.grids:
        found += _atlas(coded, one)
    found += _usage(coded)
    if over_training:
        caption = "Codes in use during training, on part of the validation split" + (
            "; of the level that uses least of them." if len(codes.levels) > 1 else "."
        )
        found += [Heading("Usage over training", 3), Charts(over_training, caption)]
    return tuple(found)


def prior_samples(model: CodeModel) -> tuple[Block, ...]:
    """Show samples from the uniform prior over codes and from the learned one, side by side."""
    classes = len(model.schema.classes) if model.conditional else 0
    few, many = (SLOW_SAMPLES, SAMPLES) if classes < 2 else (classes, classes * min(classes, 8))
    learned = sample_rows(model, few if _slow(model) else many)
    if classes and len(learned) > learned.shape[1]:
        learned = learned.transpose(0, 1)  # a class a column, so that the panels are not tall
    rows, columns = learned.shape[:2]
    uniform = model.sample_uniform(rows * columns).cpu()
    panels = [
        (_half(uniform, model, columns), "uniform prior: each code as likely as any other"),
        (_half(learned.flatten(0, 1), model, columns), "learned prior"),
    ]
    caption = (
        "Samples: none of these exists. The same decoder made both halves; the only difference is the prior that the "
        "codes were sampled from."
    )
    heard = players(named_examples(learned, ["sample"] * rows), model.schema, "Samples from the learned prior.")
    return joined(Heading("Samples"), _panels(panels, caption), heard)


def code_strips(model: CodeModel, coded: CodedExamples, name: str) -> tuple[Block, ...]:
    """Show some pictures, each above its code map, its mean patches and its reconstruction."""
    rows = slice(1, 1 + STRIP)
    batch = coded.batch(rows)
    numbers = range(1, 1 + len(batch))
    if not numbers:
        return ()
    lines = {"input": [enlarged(x, coded.schema, 2 * SIDE) for x in batch.x]}
    for level in range(len(coded.codes)):
        palette = code_atlas.code_colours(model, level)
        label = level_name(level, len(coded.codes)).removeprefix("the ").replace(" level", " codes") or "code map"
        lines[label] = [code_atlas.code_map(coded, n, palette, level=level, side=2 * SIDE) for n in numbers]
    rebuilt = code_atlas.patch_reconstruction(coded, rows)
    lines["mean patches"] = [enlarged(x, coded.schema, 2 * SIDE) for x in rebuilt]
    if not _slow(model):
        decoded = reconstruct_rows(model, batch, len(batch))[1]
        lines["reconstruction"] = [enlarged(x, coded.schema, 2 * SIDE) for x in decoded]
    caption = f"Pictures of the {name} split; their codes; the mean patch of each code in its place" + (
        "." if _slow(model) else "; and the decoder's reconstruction, which sees all codes together."
    )
    return (Rows([(label, strip(images)) for label, images in lines.items()], caption, pixelated=False),)


def _introduction(codes: CodesEvaluation, coded: CodedExamples, one: str) -> str:
    said = []
    for level, (of, c) in enumerate(zip(codes.levels, coded.codes, strict=True)):
        slots, rows, columns = c.shape[1:]
        positions = f"{columns} positions" if rows == 1 else f"a grid of {columns}x{rows} positions"
        where = positions if coded.grids else "one position"
        each = f"{slots} codes each" if slots > 1 else "a code each"
        name = level_name(level, len(codes.levels))
        said.append(f"{name + ': ' if name else ''}{where}, {each}, out of {of.codebook_size:,}")
    return (
        f"Between encoder and decoder a {one} is a set of integers: {'; '.join(said)}. Each integer selects a vector "
        "that the decoder sees. What each stands for was learned; here is what it is used for."
    )


def _one_picture(model: CodeModel, coded: CodedExamples) -> Block:
    """Show one picture, large: its code maps, the rate of its codes, and its mean patches."""
    books = [(level, slot) for level, c in enumerate(coded.codes) for slot in range(c.shape[1])]
    panels = []
    for level, slot in books[:2]:
        palette = code_atlas.code_colours(model, level, slot)
        image = code_atlas.code_map(coded, 0, palette, level=level, slot=slot)
        panels.append((image, _label(coded, level, slot, "code map of a picture")))
    rebuilt = enlarged(code_atlas.patch_reconstruction(coded, slice(0, 1))[0], coded.schema, 2 * HALF)
    panels.append((rebuilt, "mean patches: the mean patch of each code in its place"))
    if model.fitted:
        rates = rate_maps(model, coded.batch(slice(0, 1)))
        image = code_atlas.rate_map(coded, 0, rates[-1][0], level=len(rates) - 1)
        panels.append((image, _label(coded, len(rates) - 1, None, "rate of each code under the learned prior, bits")))
    if len(panels) % 2:
        panels.insert(0, (enlarged(coded.x[0], coded.schema, 2 * HALF), "input"))
    caption = (
        "Each code has a colour; codes with similar vectors have similar colours. The number is the code's; it is left "
        "out where cells are too small for it."
    )
    return _panels(panels, caption)


def _atlas(coded: CodedExamples, one: str) -> list[Block]:
    """Show the codes that occur most often with their patches."""
    books = [(level, slot) for level, c in enumerate(coded.codes) for slot in range(c.shape[1])]
    around = ", with faded surroundings" if coded.grids and kind_of(coded.schema).pixels else ""
    left = f" Of {len(books)} codebooks the first {BOOKS} are shown." if len(books) > BOOKS else ""
    caption = (
        f"The codes that occur most often, with their share of all positions in {len(coded.x):,} {one}s. Large, the "
        f"mean patch of a code; small, some of its patches{around}. A code depends on more than its patch, and may "
        f"stand for what surrounds it.{left}"
    )
    found: list[Block] = [Heading("What each code stands for", 3)]
    for level, slot in books[:BOOKS]:
        patches = code_atlas.atlas(coded, level, slot, most=PATCHES if len(books) == 1 else PATCHES_EACH)
        if len(books) > 1:
            found.append(Text(_label(coded, level, slot, ""), "soft"))
        tiles = [
            Tile(
                [code_atlas.patch_card(patch, coded, level)],
                str(patch.code),
                f"{100 * patch.share:.{2 if patch.share < 0.001 else 1}f} %",
            )
            for patch in patches
        ]
        found.append(Grid(tiles))
    return [*found, Text(caption, "soft")]


def _usage(coded: CodedExamples) -> list[Block]:
    """Chart how often each code occurs."""
    charts = []
    for level, used in enumerate(coded.used):
        shares = 100 * used.double() / used.sum(1, keepdim=True)
        ranked = shares.sort(1, descending=True).values.mean(0)
        name = level_name(level, len(coded.used))
        title = "share of all positions, %" + (f", {name}" if name else "")
        series = Series(range(1, len(ranked) + 1), ranked.tolist())
        charts.append(Chart(title, [series], "bar", "codes, sorted", used=int((ranked > 0).sum()), wide=True))
    caption = f"How often each code occurs in {len(coded.x):,} examples, sorted. Even use is a level line." + (
        " With several codes a position, the mean over them." if any(len(u) > 1 for u in coded.used) else ""
    )
    return [Heading("How often", 3), Charts(charts, caption)]


@torch.inference_mode()
def rate_maps(model: CodeModel, batch: Batch) -> list[Tensor]:
    """Compute the rate of the codes at each position under the model's prior, `[B, h, w]` nats for each level."""
    batch = batch.to(model.device)
    codes = model.encode(batch.x, batch.label).codes
    return [-log_p.sum(1).cpu() for log_p in model.log_prob_codes(codes, batch.label)]


def _label(coded: CodedExamples, level: int, slot: int | None, what: str) -> str:
    """Append level and slot to `what`, if there are several."""
    name, slots = level_name(level, len(coded.codes)), coded.codes[level].shape[1]
    place = f"code {slot + 1} of the {slots} at each position" if slot is not None and slots > 1 else ""
    return ", ".join(part for part in (what, name, place) if part)


def _slow(model: Model) -> bool:
    """Return whether decoding takes a pass over all pixels, so that few examples should be decoded."""
    return model.likelihood.sequential_mean


def _half(examples: Tensor, model: Model, columns: int) -> Image.Image:
    """Render examples as a sheet that fills half the page."""
    return pictures.image_grid(
        examples, model.schema, columns, scale=max(1, 2 * HALF // (columns * kind_of(model.schema).tile_size[1]))
    )


def _panels(panels: Sequence[tuple[Image.Image, str]], caption: str) -> Grid:
    """Arrange captioned pictures two in a row."""
    return Grid([Tile([image], text) for image, text in panels], caption, HALF, pixelated=False)
