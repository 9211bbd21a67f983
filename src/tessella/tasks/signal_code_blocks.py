"""Page blocks for the codes of signals: codes and rate along an example, and what each code of sounds sounds like."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tessella.coding import code_atlas
from tessella.coding.code_atlas import CodedExamples
from tessella.core.observed import extents
from tessella.evaluation.codebook import level_name
from tessella.foundation.blocks import Block, Chart, Charts, Heading, Rows, Series, joined
from tessella.kinds import pictures, sounds
from tessella.kinds.base import kind_of
from tessella.kinds.figures import LABELS, PAGE, players
from tessella.models.codes import CodeModel

BAND = 16
"""Height of a band of codes in pixels."""
BOOKS, HEARD, PLACES = 4, 8, 5
"""Largest number of codebooks that are drawn, codes that are heard, and places of each."""
AROUND, HELD = 0.06, 0.4
"""Seconds that are heard on both sides of a place, and for which a code alone is decoded."""


def codes_along(model: CodeModel, coded: CodedExamples) -> list[Block]:
    """Show the longest of the first examples with its codes below it, and the rate along it if a prior is fitted."""
    kind, schema = kind_of(model.schema), model.schema
    lengths = [size[0] for size in extents(coded.x[:50], schema)]
    at = int(np.argmax(lengths))
    x = coded.x[at : at + 1, :, : lengths[at]]
    width = PAGE - LABELS
    picture = pictures.images(x, schema)[0].resize((width, round(width * kind.tile_size[0] / kind.tile_size[1] / 2)))
    rows = [(kind.example, picture)]
    books = [(level, slot) for level, codes in enumerate(coded.codes) for slot in range(codes.shape[1])]
    for level, slot in books[:BOOKS]:
        palette = code_atlas.code_colours(model, level, slot)
        codes = coded.codes[level][at, slot, 0, : math.ceil(lengths[at] / coded.strides[level])]
        covered = width * min(1.0, len(codes) * coded.strides[level] / lengths[at])
        band = Image.fromarray(np.where((codes < 0)[:, None], 255, palette[codes.clamp_min(0)]).astype(np.uint8)[None])
        image = Image.new("RGB", (width, BAND), "white")
        image.paste(band.resize((max(1, round(covered)), BAND), Image.Resampling.NEAREST))
        several = f" {slot + 1}" if coded.codes[level].shape[1] > 1 else ""
        name = level_name(level, len(coded.codes)).removeprefix("the ")
        rows.append((f"{name or 'codes'}{several}", image))
    left = f" Of {len(books)} codebooks the first {BOOKS} are drawn." if len(books) > BOOKS else ""
    caption = f"The codes along a {kind.example}. Codes with similar vectors have similar colours.{left}"
    found: list[Block] = [Rows(rows, caption, pixelated=False)]
    if model.fitted:
        found.append(_rate_along(model, coded, at, lengths[at]))
    return found


@torch.inference_mode()
def _rate_along(model: CodeModel, coded: CodedExamples, at: int, length: int) -> Block:
    """Chart the bits of the codes under the learned prior along an example."""
    batch = coded.batch(slice(at, at + 1)).to(model.device)
    latent = model.encode(batch.x, batch.label)
    rate, series = model.schema.rate, []
    for level, log_p in enumerate(model.log_prob_codes(latent.codes, batch.label, latent.trace)):
        stride = coded.strides[level]
        bits = -log_p.flatten(2).sum(1)[0, : math.ceil(length / stride)].cpu().double() / math.log(2) / stride
        start = np.arange(len(bits)) * stride
        name = level_name(level, len(coded.codes))
        series.append(Series((start / (rate or 1)).tolist(), (bits * (rate or 1)).tolist(), name))
    title = "bits a second of the codes" if rate else "bits a step of the codes"
    chart = Chart(title, series, x_label="seconds" if rate else "steps", wide=True)
    return Charts(
        [chart], "Rate of the codes along it under the learned prior: what the prior does not expect costs most."
    )


def sounds_of_codes(model: CodeModel, coded: CodedExamples) -> list[Block]:
    """Let the commonest codes be heard: alone, and where they occur."""
    used, schema = coded.used[0][0], model.schema
    if not used.any():
        return []
    found: list[Block] = [Heading("What each code sounds like", 3)]
    common = [int(k) for k in used.argsort(descending=True, stable=True)[:HEARD] if used[k]]
    names = [f"code {k}, {100 * float(used[k] / used.sum()):.1f} %" for k in common]
    if len(model.levels) == 1 and coded.codes[0].shape[1] == 1 and not model.likelihood.sequential_mean:
        alone = _alone(model, common, coded.strides[0])
        caption = f"The commonest codes, each decoded alone for {HELD:g} seconds{_voice(model)}."
        found += joined(players(list(zip(names, alone, strict=True)), schema, caption))
    places = [_places(coded, k) for k in common]
    longest = max(x.shape[1] for x in places)
    places = [F.pad(x, (0, longest - x.shape[1]), value=torch.nan) for x in places]
    first = " of the first codebook" if sum(codes.shape[1] for codes in coded.codes) > 1 else ""
    caption = (
        f"The commonest codes{first}, with their share of all positions: places in recordings where each occurs, with "
        f"{1000 * AROUND:.0f} ms on both sides. A code depends on more than its own samples."
    )
    return [*found, *joined(players(list(zip(names, places, strict=True)), schema, caption))]


def _voice(model: CodeModel) -> str:
    return f" as {model.schema.classes[0]}" if model.networks_see_labels else ""


@torch.inference_mode()
def _alone(model: CodeModel, codes: list[int], stride: int) -> list[Tensor]:
    """Decode each code repeated, `[C, T]`, for the first class if the decoder takes one."""
    steps = max(1, round(HELD * model.schema.rate / stride))
    grid = torch.tensor(codes, device=model.device)[:, None, None].expand(-1, 1, steps)
    label = torch.zeros(len(codes), dtype=torch.int64, device=model.device) if model.networks_see_labels else None
    return list(model.decode(model.lookup([grid]), label).mean.cpu())


def _places(coded: CodedExamples, code: int) -> Tensor:
    """Join some stretches of examples around a code of the first codebook, `[C, T]`."""
    stride, around = coded.strides[0], round(AROUND * coded.schema.rate)
    at = (coded.codes[0][:, 0, 0] == code).nonzero()
    chosen = at[torch.linspace(0, len(at) - 1, min(PLACES, len(at))).long()]
    cut = ((n, max(0, t * stride - around), (t + 1) * stride + around) for n, t in chosen.tolist())
    parts = [coded.x[n, :, start:end] for n, start, end in cut]
    return sounds.one_after_another(parts, coded.schema)
