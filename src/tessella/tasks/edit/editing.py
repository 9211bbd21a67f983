"""One picture, one region, one operation: its codes or latents before and after, and both drawings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.coding.codes_file import grown
from tessella.foundation.errors import SpecError
from tessella.likelihoods.autoregressive import PixelByPixel
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.tasks.edit.operations import Operation, Scene, of_codes
from tessella.tasks.edit.reach import undecided
from tessella.tasks.edit.records import Edited, EditedLevel
from tessella.tasks.edit.regions import cell_side, enlarged, feathered, in_words, positions


@torch.no_grad()
def edit(
    model: Model,
    x: Tensor,
    region: Tensor,
    operation: Operation,
    *,
    level: int | None = None,
    label: Tensor | None = None,
    seed: int = 0,
    keep_pixels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Edited:
    """Edit one picture.

    Under an autoregressive likelihood a drawing goes pixel by pixel, and one pixel would move all after it: so of the
    edited drawing only the pixels within reach are drawn anew, given all others.

    Args:
        model: any, of codes or latents.
        x: `[C, H, W]`, as stored; of another size than trained on if the latents are a grid.
        region: `[H, W]` bool, see `box` and `read_mask`.
        operation: what to do there.
        level: of a model of several levels of codes, edit this one alone, 0 being the coarsest; None: all.
        label: `[1]`, for a conditional model.
        seed: of what is drawn.
        keep_pixels: outside the region keep the pixels of `x`; what is drawn is let in over a ring around it, two
            cells wide, in which its weight falls evenly to zero.
        progress: told (steps done, steps in all).

    Raises:
        SpecError: if the model or the operation does not allow it, or picture, region and operation do not fit.
    """
    if model.schema.rank != 2:
        raise SpecError(f"the model {model.name} is of vectors: only pictures have regions to edit")
    if not isinstance(model, CodeModel | LatentVariableModel):
        raise SpecError(f"the z of the model {model.name} is as large as the picture, and none of it stands for a "
                        "region: train a vqvae or vae to edit")  # fmt: skip
    if x.shape[1:] != region.shape:
        raise SpecError(
            f"a mask of {in_words(region.shape)} does not fit a picture of {in_words(x.shape[1:])}: give one of "
            "its size"
        )
    if not region.any():
        raise SpecError("the region is empty: give at least one pixel")
    place, seen = model.device, None if label is None else label.to(model.device)
    scene = Scene(model, x[None].to(place), seen, region.to(place), seed, progress)
    latents = _edited_codes if isinstance(model, CodeModel) else _edited_latents
    change = latents(scene, operation, level)
    reach = _reach(scene, change.poisoned)
    cells = change.cells & reach  # beyond the border there are no pixels
    weight = feathered(region.to(place), 2 * change.cell) if keep_pixels else None
    drawn = _drawings(scene, change, reach, weight)
    result = drawn.after
    if weight is not None:
        result = torch.lerp(scene.x.float().expand_as(result), drawn.let_in, weight)
    levels = tuple(replace(v, chosen=v.chosen.cpu(), before=v.before.cpu(), after=v.after.cpu()) for v in change.levels)
    moved = None if change.moved is None else change.moved.cpu()
    pictures = (drawn.before[0].cpu(), drawn.after.cpu(), result.cpu())
    return Edited(x.cpu(), *pictures, region.cpu(), cells.cpu(), reach.cpu(), levels, moved)


@dataclass(frozen=True)
class _Change:
    """Latents `[1, ...]` before, `[N, ...]` after, and `[1, ...]` with the edited ones not a number."""

    before: Tensor
    after: Tensor
    poisoned: Tensor
    cells: Tensor
    cell: int
    levels: tuple[EditedLevel, ...] = ()
    moved: Tensor | None = None


def _edited_codes(scene: Scene, operation: Operation, level: int | None) -> _Change:
    model = of_codes(scene.model)
    count = len(model.levels)
    if any(len(shape) == 1 for shape in model.code_shapes):
        raise SpecError(f"the codes of the model {model.name} have no places in the picture: train a vqvae")
    if level is not None and not 0 <= level < count:
        raise SpecError(f"there is no level {level}: the model has {count}, 0 (the coarsest) to {count - 1}")
    now, finest = scene.encoded(scene.x), cell_side(model)
    _at_least_one_code(scene, finest)
    strides = [finest << (count - 1 - number) for number in range(count)]
    chosen = positions(scene.region, strides if level is None else [strides[level]])
    if level is not None:
        nowhere = [torch.zeros_like(c[0, 0], dtype=torch.bool) for c in now]
        chosen = [*nowhere[:level], *chosen, *nowhere[level + 1 :]]
    scene = replace(scene, known=tuple(~c[None, None] for c in chosen))
    proposed = operation.codes(scene)
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


def _edited_latents(scene: Scene, operation: Operation, level: int | None) -> _Change:
    model = scene.model
    if level is not None:
        raise SpecError(f"the model {model.name} has no levels of codes: leave --level out")
    size = tuple(scene.region.shape)
    if len(model.latent_shape) == 1 and size != model.schema.shape[1:]:
        trained = in_words(model.schema.shape[1:])
        raise SpecError(f"the model {model.name} takes pictures of {trained}, not of {in_words(size)}")
    if len(model.latent_shape) > 1:
        cell = cell_side(model)
        _at_least_one_code(scene, cell)
        (chosen,) = positions(scene.region, [cell])
        cells = enlarged(chosen, cell, scene.region.shape)
    else:
        cell, cells = max(1, min(size) // 16), scene.region
        chosen = torch.ones((), dtype=torch.bool, device=scene.x.device)
    z = model.encode(scene.x, scene.label).z
    then = torch.where(chosen, operation.latents(scene, z), z)
    moved = (then - z).flatten(1).norm(dim=1) / z.norm()
    return _Change(z, then, z.masked_fill(chosen, torch.nan), cells, cell, moved=moved)


@dataclass(frozen=True)
class _Drawings:
    """Pictures before `[1, C, H, W]` and after, `[N, C, H, W]`, and what is let into kept pixels."""

    before: Tensor
    after: Tensor
    let_in: Tensor


def _drawings(scene: Scene, change: _Change, reach: Tensor, weight: Tensor | None) -> _Drawings:
    """One picture at a time: kernels round differently in batches of other sizes, and even in other rows of one."""
    before, _ = _drawn(scene, change.before, None, reach, weight)
    each = [_drawn(scene, z, before, reach, weight) for z in change.after.split(1)]
    height, width = scene.region.shape
    parts = (torch.cat(pictures)[..., :height, :width] for pictures in zip(*each, strict=True))
    return _Drawings(before[..., :height, :width], *parts)


def _drawn(
    scene: Scene, z: Tensor, before: Tensor | None, reach: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The picture of z `[1, ...]`, and what is let in where pixels are kept."""
    drawing = scene.model.decode(grown(scene.model, z, tuple(scene.region.shape)), scene.label)
    if before is None or not isinstance(drawing, PixelByPixel):
        mean = drawing.mean
        return mean, mean
    after = drawing.redrawn(before, _filled_up(reach, before)[0, 0])
    if weight is None:
        return after, after
    kept = _filled_up(scene.x[0].float(), before)
    return after, drawing.redrawn(kept, _filled_up(weight > 0, before)[0, 0])


def _reach(scene: Scene, poisoned: Tensor) -> Tensor:
    """`[H, W]`: the pixels that depend on what is not a number."""
    size = tuple(scene.region.shape)
    return undecided(scene.model, grown(scene.model, poisoned, size), scene.label)[: size[0], : size[1]]


def _at_least_one_code(scene: Scene, stride: int) -> None:
    if min(scene.region.shape) < stride:
        raise SpecError(f"a picture of {in_words(scene.region.shape)} is smaller than one code, which stands for "
                        f"{stride}x{stride} pixels: give a larger one")  # fmt: skip


def _filled_up(maps: Tensor, like: Tensor) -> Tensor:
    """Maps `[..., H, W]` as `[1, C, H', W']`, with zeros to the right and below, as large as a drawing."""
    height, width = maps.shape[-2:]
    return F.pad(maps.reshape(1, -1, height, width), (0, like.shape[3] - width, 0, like.shape[2] - height))
