"""Edit one region of one picture in latent space, and decode it before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.coding.codes_file import pad_latent
from tessella.data.folders.read import decoded, look
from tessella.foundation.errors import DataError, SpecError, option
from tessella.likelihoods.autoregressive import PixelByPixel
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.tasks.edit.operations import Operation, Scene, code_model, in_words
from tessella.tasks.edit.result import Edited, EditedLevel


@torch.no_grad()
def edit_picture(
    model: Model,
    x: Tensor,
    region: Tensor,
    operation: Operation,
    *,
    level: int | None = None,
    label: Tensor | None = None,
    seed: int = 0,
    blend_original: bool = False,
) -> Edited:
    """Edit one picture.

    An autoregressive likelihood decodes pixel by pixel, and one changed pixel would change all after it: there only
    the pixels within reach of the edit are decoded again, given all others.

    Args:
        model: any model with codes or latents.
        x: `[C, H, W]`, as stored; may have another size than trained on if the latents are a grid.
        region: `[H, W]` bool, see `box` and `read_mask`.
        operation: what to do there.
        level: with several levels of codes, edit this one alone, 0 being the coarsest; None: all.
        label: `[1]`, for a conditional model.
        seed: seed of the sampling.
        blend_original: keep the pixels of `x` outside the region; the decoded picture is blended in over a ring around
            it, two cells wide, in which its weight falls evenly to zero.

    Raises:
        SpecError: if the model or the operation does not allow it, or picture, region and operation do not fit.
    """
    if model.schema.rank != 2:
        raise SpecError(f"the model {model.name} is of vectors: only pictures have regions to edit", code="no-picture")
    if not isinstance(model, CodeModel | LatentVariableModel):
        raise SpecError(f"the z of the model {model.name} is as large as the picture, and none of it stands for a "
                        "region: train a vqvae or vae to edit", code="no-latents")  # fmt: skip
    if x.shape[1:] != region.shape:
        raise SpecError(
            f"a mask of {in_words(region.shape)} does not fit a picture of {in_words(x.shape[1:])}: give one of "
            "its size",
            code="mask-size",
        )
    if not region.any():
        raise SpecError("the region is empty: give at least one pixel", code="empty-region")
    device = model.device
    scene = Scene(model, x[None].to(device), None if label is None else label.to(device), region.to(device), seed)
    change = (_edit_codes if isinstance(model, CodeModel) else _edit_latents)(scene, operation, level)
    reach = _reach(scene, change.poisoned)
    cells = change.cells & reach  # beyond the border there are no pixels
    weight = feathered(scene.region, 2 * change.cell) if blend_original else None
    before, after, result = (picture.cpu() for picture in _decode(scene, change, reach, weight))
    levels = tuple(replace(v, chosen=v.chosen.cpu(), before=v.before.cpu(), after=v.after.cpu()) for v in change.levels)
    moved = None if change.moved is None else change.moved.cpu()
    return Edited(x.cpu(), before[0], after, result, region.cpu(), cells.cpu(), reach.cpu(), levels, moved)


@dataclass(frozen=True)
class _Change:
    """Latents `[1, ...]` before, `[N, ...]` after, and `[1, ...]` with the edited ones set to NaN."""

    before: Tensor
    after: Tensor
    poisoned: Tensor
    cells: Tensor
    cell: int
    levels: tuple[EditedLevel, ...] = ()
    moved: Tensor | None = None


def _edit_codes(scene: Scene, operation: Operation, level: int | None) -> _Change:
    model = code_model(scene.model)
    count = len(model.levels)
    if any(len(shape) == 1 for shape in model.code_shapes):
        raise SpecError(f"the codes of the model {model.name} have no places in the picture: train a vqvae",
                        code="no-places")  # fmt: skip
    if level is not None and not 0 <= level < count:
        raise SpecError(f"there is no level {level}: the model has {count}, 0 (the coarsest) to {count - 1}",
                        code="no-such-level")  # fmt: skip
    now, finest = scene.codes, model.downsampling[-1]
    _check_one_code_fits(scene, finest)
    strides = [finest << (count - 1 - number) for number in range(count)]
    chosen = positions(scene.region, strides if level is None else [strides[level]])
    if level is not None:
        nowhere = [torch.zeros_like(c[0, 0], dtype=torch.bool) for c in now]
        chosen = [*nowhere[:level], *chosen, *nowhere[level + 1 :]]
    proposed = operation.edit_codes(replace(scene, known=tuple(~c[None, None] for c in chosen)))
    then = [torch.where(c, new, old) for c, new, old in zip(chosen, proposed, now, strict=True)]
    poisoned, first = model.lookup(now).clone(), 0
    for number, (c, quantizer) in enumerate(zip(chosen, model.levels, strict=True)):
        width, below = quantizer.latent_shape[0], 1 << (count - 1 - number)
        poisoned[:, first : first + width].masked_fill_(enlarged(c, below, poisoned.shape[2:]), torch.nan)
        first += width
    cells = torch.stack([enlarged(c, s, scene.region.shape) for c, s in zip(chosen, strides, strict=True)]).any(0)
    levels = tuple(EditedLevel(c, a[0], b, s) for c, a, b, s in zip(chosen, now, then, strides, strict=True))
    widest = max(s for s, c in zip(strides, chosen, strict=True) if c.any())
    return _Change(model.lookup(now), model.lookup(then), poisoned, cells, widest, levels)


def _edit_latents(scene: Scene, operation: Operation, level: int | None) -> _Change:
    model, size = scene.model, tuple(scene.region.shape)
    if level is not None:
        raise SpecError(f"the model {model.name} has no levels of codes: leave {option('level')} out", code="no-codes")
    if len(model.latent_shape) == 1 and size != model.schema.shape[1:]:
        trained = in_words(model.schema.shape[1:])
        raise SpecError(f"the model {model.name} takes pictures of {trained}, not of {in_words(size)}",
                        code="other-size")  # fmt: skip
    if len(model.latent_shape) > 1:
        cell = model.downsampling[-1]
        _check_one_code_fits(scene, cell)
        (chosen,) = positions(scene.region, [cell])
        cells = enlarged(chosen, cell, size)
    else:
        cell, cells = max(1, min(size) // 16), scene.region
        chosen = torch.ones((), dtype=torch.bool, device=scene.x.device)
    z = model.encode(scene.x, scene.label).z
    then = torch.where(chosen, operation.edit_latents(scene, z), z)
    moved = (then - z).flatten(1).norm(dim=1) / z.norm()
    return _Change(z, then, z.masked_fill(chosen, torch.nan), cells, cell, moved=moved)


def _check_one_code_fits(scene: Scene, stride: int) -> None:
    if min(scene.region.shape) < stride:
        raise SpecError(f"a picture of {in_words(scene.region.shape)} is smaller than one code, which stands for "
                        f"{stride}x{stride} pixels: give a larger one", code="picture-too-small")  # fmt: skip


def _decode(scene: Scene, change: _Change, reach: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the pictures before `[1, C, H, W]` and after, and blend the latter into the original, `[N, C, H, W]`.

    One picture at a time: kernels round differently in batches of other sizes, and even in other rows of one.
    """
    size = tuple(scene.region.shape)

    def distribution(z: Tensor):
        return scene.model.decode(pad_latent(scene.model, z, size), scene.label)

    before = distribution(change.before).mean
    after, blended = [], []
    for z in change.after.split(1):
        p_x = distribution(z)
        if isinstance(p_x, PixelByPixel):
            decoded = inserted = p_x.redrawn(before, _padded(reach, before)[0, 0])
            if weight is not None:
                original = _padded(scene.x[0].float(), before)
                inserted = p_x.redrawn(original, _padded(weight > 0, before)[0, 0])
        else:
            decoded = inserted = p_x.mean
        after.append(decoded[..., : size[0], : size[1]])
        blended.append(inserted[..., : size[0], : size[1]])
    result = torch.cat(blended)
    if weight is not None:
        result = torch.lerp(scene.x.float().expand_as(result), result, weight)
    return before[..., : size[0], : size[1]], torch.cat(after), result


def _reach(scene: Scene, poisoned: Tensor) -> Tensor:
    """Pixels `[H, W]` that depend on latents that are NaN."""
    size = tuple(scene.region.shape)
    return undecided(scene.model, pad_latent(scene.model, poisoned, size), scene.label)[: size[0], : size[1]]


def _padded(maps: Tensor, like: Tensor) -> Tensor:
    """Pad maps `[..., H, W]` with zeros to the right and below to the size of a decoded picture, `[1, C, H', W']`."""
    height, width = maps.shape[-2:]
    return F.pad(maps.reshape(1, -1, height, width), (0, like.shape[3] - width, 0, like.shape[2] - height))


GRIDS = (9, 17, 33, 65)
"""Positions a side of the grids that the decoder is probed on."""


@torch.no_grad()
def receptive_field(model: Model, level: int = -1) -> tuple[int, int, int, int] | None:
    """Find how many pixels above, below, left and right of its cell a latent can change; None: all of them.

    The decoder is probed on grids of growing size.

    Args:
        level: level of codes, 0 being the coarsest.
    """
    if len(model.latent_shape) == 1:
        return None
    widths, number = [model.latent_shape[0]], 0
    if isinstance(model, CodeModel):
        widths = [q.latent_shape[0] for q in model.levels]
        number = range(len(widths))[level]
    times = 1 << (len(widths) - 1 - number)
    channels = slice(sum(widths[:number]), sum(widths[: number + 1]))
    label = torch.zeros(1, dtype=torch.int64, device=model.device)
    for side in GRIDS:
        z = torch.zeros(1, model.latent_shape[0], side * times, side * times, device=model.device)
        cell = slice(side // 2 * times, (side // 2 + 1) * times)
        z[:, channels, cell, cell] = torch.nan
        far = undecided(model, z, label)
        rows, columns = far.any(1).nonzero().flatten().tolist(), far.any(0).nonzero().flatten().tolist()
        pixels = far.shape[0] // side
        top, end = side // 2 * pixels, (side // 2 + 1) * pixels
        if rows[0] and columns[0] and rows[-1] + 1 < far.shape[0] and columns[-1] + 1 < far.shape[1]:
            return top - rows[0], rows[-1] + 1 - end, top - columns[0], columns[-1] + 1 - end
    return None


def undecided(model: Model, z: Tensor, label: Tensor | None) -> Tensor:
    """Pixels `[H, W]` whose parameters are NaN when z `[1, D, h, w]` is decoded."""
    assert isinstance(model, CodeModel | LatentVariableModel)
    sees = model.conditional and not model.levels
    return model.decoder(z, label if sees else None)[0].isnan().any(0)


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
