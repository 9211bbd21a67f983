"""Where: regions of pixels as masks, and the positions of grids that lie in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.data.folders.read import decoded
from tessella.data.folders.read import look as look_at
from tessella.foundation.errors import DataError, SpecError
from tessella.models.base import Model


def box(x: int, y: int, width: int, height: int, size: tuple[int, ...]) -> Tensor:
    """A rectangle of pixels as a mask `[H, W]` of that size.

    Raises:
        SpecError: if it has no area, or does not lie inside.
    """
    if width < 1 or height < 1:
        raise SpecError(f"a region of {width}x{height} pixels has no area: give x,y,width,height, each at least 1 wide")
    if x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:
        raise SpecError(
            f"the region from {x},{y} to {x + width},{y + height} does not lie inside the picture, which is "
            f"{in_words(size)} as the model sees it"
        )
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[y : y + height, x : x + width] = True
    return mask


def read_mask(path: str, size: tuple[int, ...]) -> Tensor:
    """A picture file of that size as a mask `[H, W]`: what is lighter than half.

    Raises:
        DataError: if it cannot be read, or has another size.
        SpecError: if nothing in it is light.
    """
    header = look_at(path)
    if header.trouble:
        raise DataError(f"the mask {path} cannot be read: {header.trouble}")
    if header.size != tuple(size):
        raise DataError(
            f"the mask {path} is {in_words(header.size)}, and the picture, as the model sees it, {in_words(size)}: "
            "give a mask of its size"
        )
    mask = torch.from_numpy(decoded(path, (size[0], size[1]), 1).copy())[0] > 127
    if not mask.any():
        raise SpecError(f"the mask {path} is empty: paint the region white")
    return mask


def positions(region: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """The positions `[h, w]` of each grid whose cells, of stride x stride pixels, lie in the region by half or more.

    So a region is rounded to cells rather than grown to them. Where no grid has such a position, those of the last
    grid that the region covers most are taken.
    """
    shares = [_covered(region, stride) for stride in strides]
    chosen = [share >= 0.5 for share in shares]
    if not any(c.any() for c in chosen):
        chosen[-1] = shares[-1] == shares[-1].max()
    return chosen


def _covered(region: Tensor, stride: int) -> Tensor:
    """The share of each cell's pixels that are in the region; cells at the border may reach outside the picture."""
    down, right = -region.shape[0] % stride, -region.shape[1] % stride
    both = torch.stack([region.float(), torch.ones_like(region, dtype=torch.float32)])
    inside, pixels = F.avg_pool2d(F.pad(both, (0, right, 0, down))[None], stride)[0]
    return inside / pixels


def enlarged(positions: Tensor, times: int, size: tuple[int, ...]) -> Tensor:
    """A mask of positions as a finer one of that size."""
    return positions.repeat_interleave(times, 0).repeat_interleave(times, 1)[: size[0], : size[1]]


def feathered(region: Tensor, ring: int) -> Tensor:
    """`[H, W]`: 1 in the region, falling evenly over `ring` pixels around it, 0 beyond."""
    grown_by = region.float()[None]
    total = grown_by.clone()
    for _ in range(ring):
        grown_by = F.max_pool2d(grown_by, 3, stride=1, padding=1)
        total += grown_by
    return total[0] / (ring + 1)


def cell_side(model: Model) -> int:
    """Pixels a side of a position of the finest grid: the power of two that the networks shrink by."""
    return model.downsampling[-1]


def in_words(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
