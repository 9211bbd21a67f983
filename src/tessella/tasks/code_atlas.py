"""Seeing codes: the grid of codes over its picture, what each code stands for, and a picture laid from such tiles.

All of it is drawn from `Seen`, some examples with their codes. A *tile* is the part of an example at one position of
the grid of codes; of codes that are no grid (vectors, one code for all) it is the whole example. A code sees more than
its tile: the networks look around it.
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
from tessella.kinds import pictures
from tessella.models.codes import CodeModel
from tessella.tasks import generate

EXAMPLES = 2000
"""Examples that the meaning of codes is read from."""
AT_ONCE = 100
READABLE, RULED = 60, 24
"""Pixels a side of a cell that a number can be read in without hiding the picture; and of one that lines set apart."""
TINT = 0.5
"""Share of the colour in a cell; the rest is its picture, in grey."""
FADED = 0.7
"""Share of the picture that is left around a tile."""


@final
@dataclass(frozen=True)
class Seen:
    """Examples and their codes, on the CPU.

    Attributes:
        x: `[N, *shape]`, as stored.
        codes: of each level `[N, C, h, w]`; codes that are no grid are one of 1 x 1.
        sizes: K of each level.
        grids: whether the positions of the codes are places in the picture.
    """

    schema: Schema
    x: Tensor
    label: Tensor | None
    codes: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    grids: bool

    def stride(self, level: int) -> int:
        """Pixels a side of a tile: the power of two that the networks shrink by, or the whole picture."""
        (height, width), (rows, columns) = self.schema.shape[1:], self.codes[level].shape[2:]
        if not self.grids:
            return max(height, width)
        stride = 1
        while rows * stride < height or columns * stride < width:
            stride *= 2
        return stride

    @cached_property
    def used(self) -> tuple[Tensor, ...]:
        """How often each code occurs in each slot, `[C, K]` a level."""
        return tuple(counts(c, size) for c, size in zip(self.codes, self.sizes, strict=True))

    def tiles(self, level: int, rows: slice, margin: int = 0) -> Tensor:
        """The tiles of some examples with so many pixels around, `[n, h, w, C, side, side]`; the edge is repeated."""
        x = self.x[rows].float()
        if not self.schema.is_picture or not self.grids:
            return x[:, None, None]
        stride, (down, across) = self.stride(level), self.codes[level].shape[2:]
        right, below = across * stride - x.shape[3] + margin, down * stride - x.shape[2] + margin
        padded = F.pad(x, (margin, right, margin, below), mode="replicate")
        side = stride + 2 * margin
        return padded.unfold(2, side, stride).unfold(3, side, stride).permute(0, 2, 3, 1, 4, 5)


@final
@dataclass(frozen=True)
class Tile:
    """One code: its number, its share of all codes of its slot, and tiles `[C, side, side]` in stored units.

    Attributes:
        mean: of all tiles that it stands for.
        examples: `[T, C, side, side]`, some of them, from all over the examples.
    """

    code: int
    share: float
    mean: Tensor
    examples: Tensor


@torch.inference_mode()
def see(model: CodeModel, split: Split, count: int = EXAMPLES) -> Seen:
    """The codes of `count` examples of a split, always the same ones."""
    batch = split.batch(generate.some(split, count))
    parts = []
    for start in range(0, len(batch.x), AT_ONCE):
        some = batch[start : start + AT_ONCE]
        label = None if some.label is None else some.label.to(model.device)
        parts.append([c.cpu() for c in model.encode(some.x.to(model.device), label).codes])
    codes = tuple(torch.cat(level) for level in zip(*parts, strict=True))
    grids = all(len(shape) == 3 for shape in model.code_shapes)
    return Seen(
        model.schema,
        batch.x,
        batch.label,
        codes if grids else tuple(c[..., None, None] for c in codes),
        tuple(q.codebook_size for q in model.levels),
        grids,
    )


def atlas(seen: Seen, level: int = 0, slot: int = 0, *, most: int = 60, examples: int = 4) -> list[Tile]:
    """The codes of one slot that occur most often, most used first, with what they stand for.

    Args:
        most: how many codes.
        examples: tiles shown of each.
    """
    used, margin = seen.used[level][slot], _margin(seen, level)
    order = used.argsort(descending=True, stable=True)[:most]
    order = order[used[order] > 0]
    means = mean_tiles(seen, level, slot, order, margin)
    codes = seen.codes[level][:, slot]
    found = []
    for code, mean in zip(order.tolist(), means, strict=True):
        places = (codes == code).nonzero()
        chosen = places[torch.linspace(0, len(places) - 1, min(examples, len(places))).long()].tolist()
        shown = torch.stack([seen.tiles(level, slice(n, n + 1), margin)[0, i, j] for n, i, j in chosen])
        found.append(Tile(code, float(used[code] / used.sum()), mean, shown))
    return found


def mean_tiles(seen: Seen, level: int, slot: int, codes: Tensor, margin: int = 0) -> Tensor:
    """The mean of the tiles that each of `codes` `[n]` stands for, `[n, C, side, side]`; zeros if there are none."""
    place = torch.full((seen.sizes[level],), -1)
    place[codes] = torch.arange(len(codes))
    total: Tensor | None = None
    for start in range(0, len(seen.x), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        at = place[seen.codes[level][rows, slot]]
        tiles = seen.tiles(level, rows, margin)[at >= 0]
        total = tiles.new_zeros(len(codes), *tiles.shape[1:]) if total is None else total
        total.index_add_(0, at[at >= 0], tiles)
    if total is None:
        raise ValueError("there are no examples")
    number = seen.used[level][slot][codes].clamp_min(1)
    return total / number.view(-1, *[1] * (total.dim() - 1))


def laid(seen: Seen, rows: slice, level: int = -1) -> Tensor:
    """Some examples laid from the mean tiles of their codes: a mosaic, `[n, *shape]`.

    Of several codes a position the mean of their mean tiles is laid.
    """
    level %= len(seen.codes)
    parts = []
    for slot in range(seen.codes[level].shape[1]):
        wanted, at = seen.codes[level][rows, slot].unique(return_inverse=True)
        parts.append(mean_tiles(seen, level, slot, wanted)[at])
    tiles = torch.stack(parts).mean(0)
    if not seen.grids or not seen.schema.is_picture:
        return tiles[:, 0, 0]
    n, down, across, channels, side, _ = tiles.shape
    whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, down * side, across * side)
    height, width = seen.schema.shape[1:]
    return whole[..., :height, :width]


# drawing


@torch.inference_mode()
def colours(model: CodeModel, level: int = 0, slot: int = 0) -> np.ndarray:
    """A colour for each code, `[K, 3]` uint8: codes whose vectors are alike have colours that are alike.

    Hue and saturation are the ranks along the first two principal components of the vectors; lightness is left to the
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


def token_grid(
    seen: Seen, example: int, palette: np.ndarray, *, level: int = 0, slot: int = 0, side: int = 848
) -> Image.Image:
    """One picture with its codes over it: a colour a code, and the code's number where it can be read.

    Args:
        palette: `[K, 3]`, of `colours`.
        side: pixels of the longer side, about.
    """
    codes = seen.codes[level][example, slot]
    labels = [[str(int(code)) for code in row] for row in codes]
    return _cells(seen, example, level, palette[codes.numpy()], np.full(codes.shape, TINT), labels, side)


def cost_grid(seen: Seen, example: int, nats: Tensor, *, level: int = 0, side: int = 848) -> Image.Image:
    """One picture with what its codes cost over it: the dearer a position, the stronger its colour; bits as numbers.

    Args:
        nats: `[h, w]`, -log p of the codes at each position.
    """
    bits = nats.double().numpy() / np.log(2)
    strength = 0.85 * bits / max(float(bits.max()), 1e-9)
    shade = np.broadcast_to(np.array([226, 120, 30], np.uint8), (*bits.shape, 3))
    return _cells(seen, example, level, shade, strength, [[f"{b:.1f}" for b in row] for row in bits], side)


def tile_card(tile: Tile, seen: Seen, level: int = 0, *, side: int = 28) -> Image.Image:
    """One code: its mean tile, and beside it, half as large, four that it stands for. Surroundings are faded."""
    shown = pictures.to_uint8(torch.cat([tile.mean[None], tile.examples]), seen.schema)
    shown = _faded(shown, _margin(seen, level))
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


def enlarged(x: Tensor, schema: Schema, side: int = 424) -> Image.Image:
    """One picture `[*shape]` with its pixels repeated until the longer side has about `side`."""
    shown = pictures.to_uint8(x[None].float(), schema)[0]
    times = max(1, round(side / max(shown.shape[:2])))
    shown = shown.repeat(times, 0).repeat(times, 1)
    return Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)


def _cells(
    seen: Seen, example: int, level: int, shade: np.ndarray, strength: np.ndarray, labels: list[list[str]], side: int
) -> Image.Image:
    """A picture in grey under cells of colour `shade` `[h, w, 3]` and opacity `strength` `[h, w]`."""
    grey = enlarged(seen.x[example], seen.schema, side).convert("L")
    times = grey.width // seen.schema.shape[2]
    cell = seen.stride(level) * times
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
                middle = ((j * cell + right) / 2, (i * cell + below) / 2)  # of what the edge leaves of the cell
                draw.text(
                    middle, label, (255, 255, 255), font, anchor="mm", stroke_width=max(1, round(size / 12)),
                    stroke_fill=(0, 0, 0, 150),
                )  # fmt: skip
    return image


def _margin(seen: Seen, level: int) -> int:
    """Pixels of its surroundings that a tile is shown with."""
    return max(2, seen.stride(level) // 2) if seen.schema.is_picture and seen.grids else 0


def _faded(tiles: np.ndarray, margin: int) -> np.ndarray:
    """Tiles `[n, H, W, C]` uint8 with what surrounds them drawn towards grey."""
    if not margin:
        return tiles
    around = np.round(FADED * tiles + (1 - FADED) * 128).astype(np.uint8)
    inner = slice(margin, -margin)
    around[:, inner, inner] = tiles[:, inner, inner]
    return around


def examples_of(seen: Seen, rows: slice) -> Batch:
    """Some of the examples as a batch."""
    return Batch(seen.x, seen.label)[rows]
