"""Regions of pixels as masks, and the code positions inside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.data.folders.read import decoded, look
from tessella.foundation.errors import DataError, SpecError
from tessella.models.base import Model


def box(x: int, y: int, width: int, height: int, size: tuple[int, ...]) -> Tensor:
    """Make a mask `[H, W]` of that size from a rectangle of pixels.

    Raises:
        SpecError: if it has no area, or does not lie inside.
    """
    if width < 1 or height < 1:
        raise SpecError(
            f"a region of {width}x{height} pixels has no area: give x,y,width,height, each at least 1 wide",
            code="empty-region",
        )
    if x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:
        raise SpecError(
            f"the region from {x},{y} to {x + width},{y + height} does not lie inside the picture, which is "
            f"{in_words(size)} as the model sees it",
            code="region-outside",
        )
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


def read_mask(path: str, size: tuple[int, ...]) -> Tensor:
    """Read a picture file of that size as a mask `[H, W]`: True where it is lighter than half.

    Raises:
        DataError: if it cannot be read, or has another size.
        SpecError: if nothing in it is light.
    """
    header = look(path)
    if header.trouble:
        raise DataError(f"the mask {path} cannot be read: {header.trouble}", code="unreadable-mask")
    if header.size != tuple(size):
        raise DataError(
            f"the mask {path} is {in_words(header.size)}, and the picture, as the model sees it, {in_words(size)}: "
            "give a mask of its size",
            code="mask-size",
        )
    mask = torch.from_numpy(decoded(path, (size[0], size[1]), 1).copy())[0] > 127
    if not mask.any():
        raise SpecError(f"the mask {path} is empty: paint the region white", code="empty-region")
    return mask


def positions(region: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Find the positions `[h, w]` of each grid whose cells, of stride x stride pixels, are at least half covered.

    A region is therefore rounded to cells rather than grown to them. If no grid has such a position, those of the last
    grid that the region covers most are taken.
    """
    shares = [_covered(region, stride) for stride in strides]
    chosen = [share >= 0.5 for share in shares]
    if not any(c.any() for c in chosen):
        chosen[-1] = shares[-1] == shares[-1].max()
    return chosen


def _covered(region: Tensor, stride: int) -> Tensor:
    """Share of each cell's pixels that are in the region; cells at the border may reach outside the picture."""
    down, right = -region.shape[0] % stride, -region.shape[1] % stride
    both = torch.stack([region.float(), torch.ones_like(region, dtype=torch.float32)])
    inside, pixels = F.avg_pool2d(F.pad(both, (0, right, 0, down))[None], stride)[0]
    return inside / pixels


def enlarged(positions: Tensor, times: int, size: tuple[int, ...]) -> Tensor:
    """Repeat a mask of positions `times` along both axes and crop it to a size."""
    return positions.repeat_interleave(times, 0).repeat_interleave(times, 1)[: size[0], : size[1]]


def feathered(region: Tensor, ring: int) -> Tensor:
    """Blending weight `[H, W]`: 1 in the region, falling evenly over `ring` pixels around it, 0 beyond."""
    dilated = region.float()[None]
    total = dilated.clone()
    for _ in range(ring):
        dilated = F.max_pool2d(dilated, 3, stride=1, padding=1)
        total += dilated
    return total[0] / (ring + 1)


def cell_side(model: Model) -> int:
    """Pixels a side of a position of the finest grid: the power of two that the networks shrink by."""
    return model.downsampling[-1]


def in_words(size: tuple[int, ...]) -> str:
    """Word a size (height, width) as WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"
