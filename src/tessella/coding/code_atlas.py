"""Code maps over images, an atlas of the codebook, and images rebuilt from each code's mean patch.

All are computed from `CodedExamples`. A *patch* is the part of an example at one position of the code grid; for codes
without a grid (vectors, or one code for the whole example) it is the whole example. A code depends on more than its
patch, since the networks see the surroundings.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.schema import Schema
from tessella.data import Split
from tessella.evaluation.codebook import counts
from tessella.kinds.base import kind_of
from tessella.kinds.sheets import enlarged
from tessella.models.codes import CodeModel

EXAMPLES = 2000
"""Number of examples for an atlas."""
CHUNK = 100
"""Examples encoded at a time."""
READABLE, RULED = 60, 24
"""Smallest cell, in pixels per side, that shows its number, and smallest that has grid lines."""
TINT = 0.5
"""Opacity of a cell's colour over the grey picture."""
FADED = 0.7
"""Contrast of a patch's surroundings, as a fraction of the original."""


@final
@dataclass(frozen=True)
class CodedExamples:
    """Examples and their codes, on the CPU.

    Attributes:
        x: `[N, *shape]`, as stored.
        codes: `[N, C, h, w]` for each level; signals have h = 1, codes without a grid h = w = 1; -1 is no code.
        sizes: codebook size of each level.
        grids: whether each code has a place in the example.
        strides: side of a patch in pixels, for each level; without places, the side of the picture.
    """

    schema: Schema
    x: Tensor
    label: Tensor | None
    codes: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    grids: bool
    strides: tuple[int, ...]

    def batch(self, rows: slice) -> Batch:
        """Select some of the examples."""
        return Batch(self.x, self.label)[rows]

    @cached_property
    def used(self) -> tuple[Tensor, ...]:
        """Count each code in each slot: `[C, K]` for each level."""
        return tuple(counts(c, size) for c, size in zip(self.codes, self.sizes, strict=True))

    def patches(self, level: int, rows: slice, margin: int = 0) -> Tensor:
        """Cut some examples into patches with a margin, `[n, h, w, C, side, side]`; the edge is repeated."""
        x = self.x[rows].float()
        if not self.grids or not kind_of(self.schema).pixels:
            return x[:, None, None]
        stride, (down, across) = self.strides[level], self.codes[level].shape[2:]
        right, below = across * stride - x.shape[3] + margin, down * stride - x.shape[2] + margin
        padded = F.pad(x, (margin, right, margin, below), mode="replicate")
        side = stride + 2 * margin
        return padded.unfold(2, side, stride).unfold(3, side, stride).permute(0, 2, 3, 1, 4, 5)


@final
@dataclass(frozen=True)
class CodePatch:
    """One code with its patches, in stored units.

    Attributes:
        code: number of the code.
        share: share among all codes of its slot.
        mean: `[C, side, side]`, mean of all patches with this code.
        examples: `[T, C, side, side]`, some of them, spread over the examples.
    """

    code: int
    share: float
    mean: Tensor
    examples: Tensor


@torch.inference_mode()
def encode_examples(model: CodeModel, split: Split, count: int = EXAMPLES) -> CodedExamples:
    """Encode `count` examples of a split, the same ones at each call."""
    batch = split.batch(split.random_rows(count))
    parts = []
    for some in batch.split(CHUNK):
        some = some.to(model.device)
        parts.append([c.cpu() for c in model.encode(some.x, some.label).codes])
    codes = tuple(torch.cat(level) for level in zip(*parts, strict=True))
    grids = all(len(shape) > 1 for shape in model.code_shapes)
    return CodedExamples(
        model.schema,
        batch.x,
        batch.label,
        tuple(c.reshape(*c.shape[:2], *(1,) * (4 - c.dim()), *c.shape[2:]) for c in codes),
        tuple(q.codebook_size for q in model.levels),
        grids,
        model.downsampling if grids else (max(model.schema.spatial, default=1),) * len(model.levels),
    )


def atlas(coded: CodedExamples, level: int = 0, slot: int = 0, *, most: int = 60, examples: int = 4) -> list[CodePatch]:
    """Collect the most frequent codes of one slot with their patches, most frequent first.

    Args:
        most: maximum number of codes.
        examples: patches to collect for each code.
    """
    used, margin = coded.used[level][slot], _margin(coded, level)
    order = used.argsort(descending=True, stable=True)[:most]
    order = order[used[order] > 0]
    means = mean_patches(coded, level, slot, order, margin)
    codes = coded.codes[level][:, slot]
    found = []
    for code, mean in zip(order.tolist(), means, strict=True):
        places = (codes == code).nonzero()
        chosen = places[torch.linspace(0, len(places) - 1, min(examples, len(places))).long()].tolist()
        shown = torch.stack([coded.patches(level, slice(n, n + 1), margin)[0, i, j] for n, i, j in chosen])
        found.append(CodePatch(code, float(used[code] / used.sum()), mean, shown))
    return found


def mean_patches(coded: CodedExamples, level: int, slot: int, codes: Tensor, margin: int = 0) -> Tensor:
    """Average the patches that have each of `codes` `[n]`: `[n, C, side, side]`; zeros if there are none."""
    place = torch.full((coded.sizes[level],), -1)
    place[codes] = torch.arange(len(codes))
    total: Tensor | None = None
    for start in range(0, len(coded.x), CHUNK):
        rows = slice(start, start + CHUNK)
        at = place[coded.codes[level][rows, slot]]
        patches = coded.patches(level, rows, margin)[at >= 0]
        total = patches.new_zeros(len(codes), *patches.shape[1:]) if total is None else total
        total.index_add_(0, at[at >= 0], patches)
    if total is None:
        raise ValueError("there are no examples")
    number = coded.used[level][slot][codes].clamp_min(1)
    return total / number.view(-1, *[1] * (total.dim() - 1))


def patch_reconstruction(coded: CodedExamples, rows: slice, level: int = -1) -> Tensor:
    """Rebuild some examples from the mean patches of their codes, `[n, *shape]`.

    With several codes per position, their mean patches are averaged.
    """
    level %= len(coded.codes)
    parts = []
    for slot in range(coded.codes[level].shape[1]):
        wanted, at = coded.codes[level][rows, slot].unique(return_inverse=True)
        parts.append(mean_patches(coded, level, slot, wanted)[at])
    patches = torch.stack(parts).mean(0)
    if not coded.grids or not kind_of(coded.schema).pixels:
        return patches[:, 0, 0]
    n, down, across, channels, side, _ = patches.shape
    whole = patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, down * side, across * side)
    height, width = coded.schema.shape[1:]
    return whole[..., :height, :width]


# drawing


@torch.inference_mode()
def code_colours(model: CodeModel, level: int = 0, slot: int = 0) -> np.ndarray:
    """Assign a colour to each code, `[K, 3]` uint8: similar vectors get similar colours.

    Hue and saturation are the ranks along the first two principal components of the vectors; lightness comes from the
    picture below.
    """
    quantizer = model.levels[level]
    codes = torch.zeros(quantizer.codebook_size, quantizer.code_shape[0], dtype=torch.int64, device=model.device)
    codes[:, slot] = torch.arange(quantizer.codebook_size, device=model.device)
    vectors = quantizer.lookup(codes).cpu().double()
    _, _, axes = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    place = ((vectors @ axes[:2].T).argsort(0).argsort(0) / max(1, len(vectors) - 1)).numpy()
    if place.shape[1] == 1:
        place = np.repeat(place, 2, 1)
    shades = [colorsys.hls_to_rgb(0.92 * hue, 0.5, 0.35 + 0.6 * rich) for hue, rich in place]
    return np.round(255 * np.array(shades)).astype(np.uint8)


def code_map(
    coded: CodedExamples, example: int, palette: np.ndarray, *, level: int = 0, slot: int = 0, side: int = 848
) -> Image.Image:
    """Draw the codes over one picture, as a colour for each code, with its number where it is readable.

    Args:
        palette: `[K, 3]`, from `code_colours`.
        side: approximate length of the longer side in pixels.
    """
    codes = coded.codes[level][example, slot]
    labels = [[str(int(code)) for code in row] for row in codes]
    return _cells(coded, example, level, palette[codes.numpy()], np.full(codes.shape, TINT), labels, side)


def rate_map(coded: CodedExamples, example: int, nats: Tensor, *, level: int = 0, side: int = 848) -> Image.Image:
    """Draw the rate of the codes over one picture: stronger colour is more bits, also shown as numbers.

    Args:
        nats: `[h, w]`, -log p of the codes at each position.
    """
    bits = nats.double().numpy() / np.log(2)
    strength = 0.85 * bits / max(float(bits.max()), 1e-9)
    shade = np.broadcast_to(np.array([226, 120, 30], np.uint8), (*bits.shape, 3))
    return _cells(coded, example, level, shade, strength, [[f"{b:.1f}" for b in row] for row in bits], side)


def patch_card(patch: CodePatch, coded: CodedExamples, level: int = 0, *, side: int = 28) -> Image.Image:
    """Draw the mean patch of a code and, beside it at half size, four of its patches.

    The surroundings of each patch are faded.
    """
    shown = kind_of(coded.schema).render(torch.cat([patch.mean[None], patch.examples]))
    shown = _faded(shown, _margin(coded, level))
    height, width, channels = shown.shape[1:]
    times = max(1, round(side / max(height, width)))
    mean, *few = [Image.fromarray(t[..., 0] if channels == 1 else t) for t in shown]
    wide, tall = width * times, height * times
    card = Image.new("RGBA", (4 * wide + 6, 2 * tall + 2))
    card.paste(mean.convert("RGB").resize((2 * wide + 2, 2 * tall + 2), Image.Resampling.NEAREST), (0, 0))
    for k, one in enumerate(few[:4]):
        at = (2 * wide + 4 + (k % 2) * (wide + 2), (k // 2) * (tall + 2))
        card.paste(one.convert("RGB").resize((wide, tall), Image.Resampling.NEAREST), at)
    return card


def _cells(
    coded: CodedExamples,
    example: int,
    level: int,
    shade: np.ndarray,
    strength: np.ndarray,
    labels: list[list[str]],
    side: int,
) -> Image.Image:
    """Draw a picture in grey under cells of colour `shade` `[h, w, 3]` and opacity `strength` `[h, w]`."""
    grey = enlarged(coded.x[example], coded.schema, side).convert("L")
    times = grey.width // coded.schema.shape[2]
    cell = coded.strides[level] * times
    spread = [np.kron(a, np.ones((cell, cell)))[: grey.height, : grey.width] for a in np.moveaxis(shade, -1, 0)]
    share = np.kron(strength, np.ones((cell, cell)))[: grey.height, : grey.width, None]
    mixed = (1 - share) * np.asarray(grey, float)[..., None] + share * np.stack(spread, -1)
    image = Image.fromarray(np.round(mixed).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    if cell >= RULED:
        for k in range(1, max(len(labels), len(labels[0]))):
            draw.line([(k * cell, 0), (k * cell, image.height)], (0, 0, 0, 110), max(1, cell // 28))
            draw.line([(0, k * cell), (image.width, k * cell)], (0, 0, 0, 110), max(1, cell // 28))
    longest = max(len(label) for row in labels for label in row)
    size = min(0.42 * cell, 1.5 * cell / longest, 34)
    if cell >= READABLE:
        font = ImageFont.load_default(size)
        for i, row in enumerate(labels):
            for j, label in enumerate(row):
                below, right = min((i + 1) * cell, image.height), min((j + 1) * cell, image.width)
                middle = ((j * cell + right) / 2, (i * cell + below) / 2)  # of the part of the cell within the picture
                draw.text(
                    middle, label, (255, 255, 255), font, anchor="mm", stroke_width=max(1, round(size / 12)),
                    stroke_fill=(0, 0, 0, 150),
                )  # fmt: skip
    return image


def _margin(coded: CodedExamples, level: int) -> int:
    """Return the width of the surroundings that a patch is shown with, in pixels."""
    return max(2, coded.strides[level] // 2) if coded.grids and kind_of(coded.schema).pixels else 0


def _faded(patches: np.ndarray, margin: int) -> np.ndarray:
    """Fade the surroundings of patches `[n, H, W, C]` uint8 towards grey."""
    if not margin:
        return patches
    around = np.round(FADED * patches + (1 - FADED) * 128).astype(np.uint8)
    inner = slice(margin, -margin)
    around[:, inner, inner] = patches[:, inner, inner]
    return around
