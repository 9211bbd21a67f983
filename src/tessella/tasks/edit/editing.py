"""Edits one region of an example in latent space, decodes it before and after, and finds how far the edit can reach.

A region is a mask `[*spatial]`. To find the reach, the edited latents are set to NaN; whatever the decoder is made of,
every position that depends on them then becomes NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.coding.codes_file import pad_latent
from tessella.core.observed import before_end
from tessella.core.schema import UINT8, Schema
from tessella.foundation.errors import DataError, SpecError, option
from tessella.kinds.image_files import ImageFiles
from tessella.likelihoods.autoregressive import PixelByPixel
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.networks.conv import crop
from tessella.tasks.edit.operations import Operation, Scene, in_words
from tessella.tasks.edit.result import Edited, EditedLevel

POOLS = {1: F.max_pool1d, 2: F.max_pool2d}
GRIDS = (9, 17, 33, 65)
"""Grid sizes that the decoder is probed with."""


@torch.no_grad()
def edit_example(
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
    """Edit one picture or signal.

    An autoregressive likelihood decodes one pixel after another, so one changed pixel would change all later ones.
    There, only the pixels within reach of the edit are decoded again, given all others.

    Args:
        model: any model with codes or latents.
        x: `[C, *spatial]`, as stored; if the latents are a grid, its size may differ from the training examples'.
        region: `[*spatial]` bool, from `box` or `read_mask`.
        operation: change to make there.
        level: with several levels of codes, edit only this one, 0 being the coarsest; None: all.
        label: `[1]`, for a conditional model.
        seed: seed of the sampling.
        blend_original: whether to keep the values of `x` outside the region; the decoded example is blended in over a
            ring around it, two cells wide, in which its weight falls linearly to zero.

    Raises:
        SpecError: if model or operation do not allow it, or example, region and operation do not fit together.
    """
    _check(model, x, region, level)
    device = model.device
    scene = Scene(model, x[None].to(device), None if label is None else label.to(device), region.to(device), seed)
    encoded = model.encode(scene.x, scene.label)
    if model.levels:
        chosen = _chosen_codes(scene, encoded.codes, level)
        scene = replace(scene, known=tuple(~c[None, None] for c in chosen))
        change = _of_codes(scene, encoded.codes, operation.edit_codes(scene, encoded.codes), chosen)
    else:
        change = _of_latents(scene, encoded.z, operation.edit_latents(scene, encoded.z))
    poisoned = pad_latent(model, change.poisoned, tuple(region.shape))
    reach = crop(_undecided(model, poisoned, scene.label)[None, None], region.shape)[0, 0]
    cells = change.cells & reach  # beyond the border there is nothing
    weight = feathered(scene.region, 2 * change.cell) if blend_original else None
    before, after, result = (decoded.cpu() for decoded in _decode(scene, change, reach, weight))
    levels = tuple(replace(v, chosen=v.chosen.cpu(), before=v.before.cpu(), after=v.after.cpu()) for v in change.levels)
    moved = None if change.moved is None else change.moved.cpu()
    return Edited(x.cpu(), before[0], after, result, region.cpu(), cells.cpu(), reach.cpu(), levels, moved)


@torch.no_grad()
def decode_as(
    model: Model, x: Tensor, region: Tensor, label: int, *, own: int | None = None, blend_original: bool = False
) -> Edited:
    """Decode the codes of one example as another class, in a region; the rest is decoded as before.

    Args:
        model: any model whose decoder takes the label.
        x, region, blend_original: as in `edit_example`.
        label: class to decode as.
        own: class of the example, as which the rest is decoded; if it is not known, the rest is the example itself.

    Raises:
        SpecError: if example, region and model do not fit together.
    """
    _check(model, x, region, None)
    device, size = model.device, tuple(region.shape)
    encoded = model.encode(x[None].to(device), torch.tensor([label if own is None else own], device=device))
    z = pad_latent(model, encoded.z, size)

    def decoded(number: int | None) -> Tensor:
        if number is None:
            return x[None].float()
        mean = model.decode(z, torch.tensor([number], device=device)).mean
        return _ended(crop(mean, size).cpu(), x[None], model)

    weight = region.float() if bool(region.all()) else feathered(region, 2 * max(model.downsampling))
    before, spoken = decoded(own), decoded(label)
    after = torch.lerp(before, spoken, weight)
    result = torch.lerp(x[None].float(), spoken, weight) if blend_original else after
    levels = tuple(
        EditedLevel(torch.zeros_like(c[0, 0], dtype=torch.bool).cpu(), c[0].cpu(), c.cpu(), stride)
        for c, stride in zip(encoded.codes, model.downsampling, strict=True)
    )
    moved = None if levels else torch.zeros(1)
    return Edited(x, before[0], after, result, region, region, weight > 0, levels, moved)


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


def _check(model: Model, x: Tensor, region: Tensor, level: int | None) -> None:
    """Check that the model has positions to edit, and that the example fits the model and the region."""
    name, count, trained, size = model.name, len(model.levels), model.schema.spatial, tuple(x.shape[1:])
    if not model.schema.rank:
        raise SpecError(f"the model {name} is for vectors: only pictures and signals have regions", code="no-regions")
    if not model.has_decoder:
        raise SpecError(f"the z of the model {name} is as large as the example, and no part of it represents a region: "
                        "train a vqvae or vae to edit", code="no-latents")  # fmt: skip
    if size != tuple(region.shape):
        raise SpecError(f"a mask of {in_words(region.shape)} does not fit an example of {in_words(size)}: give a mask "
                        "of the example's size", code="mask-size")  # fmt: skip
    if not region.any():
        raise SpecError("the region is empty: give at least one position", code="empty-region")
    if any(len(shape) == 1 for shape in model.code_shapes):
        raise SpecError(f"the codes of the model {name} have no positions: train a vqvae", code="no-places")
    if level is not None and not count:
        raise SpecError(f"the model {name} has no levels of codes: leave out {option('level')}", code="no-codes")
    if level is not None and not 0 <= level < count:
        raise SpecError(f"there is no level {level}: the model has 0 (the coarsest) to {count - 1}",
                        code="no-such-level")  # fmt: skip
    if len(model.latent_shape) == 1 and size != trained:
        raise SpecError(f"the model {name} takes examples of {in_words(trained)}, not of {in_words(size)}: give such "
                        "an example, or train a vqvae", code="other-size")  # fmt: skip
    stride = model.downsampling[-1]
    if len(model.latent_shape) > 1 and min(size) < stride:
        raise SpecError(f"an example of {in_words(size)} is smaller than the cell of one code, "
                        f"{in_words([stride] * len(size))}: give a larger one", code="too-small")  # fmt: skip


def _chosen_codes(scene: Scene, codes: tuple[Tensor, ...], level: int | None) -> list[Tensor]:
    """Find the positions to edit at each level."""
    strides = scene.model.downsampling
    if level is None:
        return covered_positions(scene.region, strides)
    (chosen,) = covered_positions(scene.region, strides[level : level + 1])
    nowhere = [torch.zeros_like(c[0, 0], dtype=torch.bool) for c in codes]
    return [*nowhere[:level], chosen, *nowhere[level + 1 :]]


def _of_codes(scene: Scene, now: tuple[Tensor, ...], proposed: tuple[Tensor, ...], chosen: list[Tensor]) -> _Change:
    model, strides = cast(CodeModel, scene.model), scene.model.downsampling
    then = [torch.where(c, new, old) for c, new, old in zip(chosen, proposed, now, strict=True)]
    poisoned, first = model.lookup(now).clone(), 0
    for c, quantizer, stride in zip(chosen, model.levels, strides, strict=True):
        width = quantizer.latent_shape[0]
        mask = mask_of_cells(c, stride // strides[-1], poisoned.shape[2:])
        poisoned[:, first : first + width].masked_fill_(mask, torch.nan)
        first += width
    cells = torch.stack([mask_of_cells(c, s, scene.region.shape) for c, s in zip(chosen, strides, strict=True)]).any(0)
    levels = tuple(EditedLevel(c, a[0], b, s) for c, a, b, s in zip(chosen, now, then, strides, strict=True))
    widest = max(s for s, c in zip(strides, chosen, strict=True) if c.any())
    return _Change(model.lookup(now), model.lookup(then), poisoned, cells, widest, levels)


def _of_latents(scene: Scene, z: Tensor, proposed: Tensor) -> _Change:
    size = scene.region.shape
    if z.dim() > 2:
        cell = scene.model.downsampling[-1]
        (chosen,) = covered_positions(scene.region, [cell])
        cells = mask_of_cells(chosen, cell, size)
    else:
        cell, cells = max(1, min(size) // 16), scene.region
        chosen = torch.ones((), dtype=torch.bool, device=z.device)
    then = torch.where(chosen, proposed, z)
    moved = (then - z).flatten(1).norm(dim=1) / z.norm()
    return _Change(z, then, z.masked_fill(chosen, torch.nan), cells, cell, moved=moved)


def _decode(scene: Scene, change: _Change, reach: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the examples before `[1, C, *spatial]` and after, and blend the latter into the original, `[N, ...]`.

    Examples are decoded one at a time, since kernels round differently in batches of other sizes.
    """
    size, x = scene.region.shape, scene.x.float()

    def distribution(z: Tensor):
        return scene.model.decode(pad_latent(scene.model, z, tuple(size)), scene.label)

    before = distribution(change.before).mean
    after, blended = [], []
    for z in change.after.split(1):
        p_x = distribution(z)
        if isinstance(p_x, PixelByPixel):
            decoded = inserted = p_x.redrawn(before, _padded(reach, before)[0, 0])
            if weight is not None:
                inserted = p_x.redrawn(_padded(x[0], before), _padded(weight > 0, before)[0, 0])
        else:
            decoded = inserted = p_x.mean
        after.append(crop(decoded, size))
        blended.append(crop(inserted, size))
    result = _ended(torch.cat(blended), scene.x, scene.model)
    if weight is not None:
        result = torch.lerp(x.expand_as(result), result, weight)
    before, edited = crop(before, size), torch.cat(after)
    return _ended(before, scene.x, scene.model), _ended(edited, scene.x, scene.model), result


def _ended(decoded: Tensor, x: Tensor, model: Model) -> Tensor:
    """Set what comes after the end of an example `[1, C, *spatial]` to NaN in decoded ones `[N, C, *spatial]`."""
    return decoded.masked_fill(~before_end(x, 1).unsqueeze(1), torch.nan) if model.schema.lengths else decoded


def _padded(maps: Tensor, like: Tensor) -> Tensor:
    """Pad maps `[..., *spatial]` with zeros at their ends to the size of a decoded example, `[1, C, *larger]`."""
    spatial = maps.shape[2 - like.dim() :]
    missing = [part for side, wanted in zip(spatial, like.shape[2:], strict=True) for part in (wanted - side, 0)]
    return F.pad(maps.reshape(1, -1, *spatial), missing[::-1])


@torch.no_grad()
def receptive_field(model: Model, level: int = -1) -> tuple[int, int, int, int] | None:
    """Measure how many pixels above, below, left and right of its cell a latent affects; None: all.

    The decoder is probed on grids of growing size.

    Args:
        level: level of codes, 0 being the coarsest.
    """
    if len(model.latent_shape) == 1:
        return None
    widths = [q.latent_shape[0] for q in model.levels] or [model.latent_shape[0]]
    number = range(len(widths))[level]
    times = model.downsampling[number] // model.downsampling[-1]
    channels = slice(sum(widths[:number]), sum(widths[: number + 1]))
    label = torch.zeros(1, dtype=torch.int64, device=model.device)
    for side in GRIDS:
        z = torch.zeros(1, model.latent_shape[0], side * times, side * times, device=model.device)
        cell = slice(side // 2 * times, (side // 2 + 1) * times)
        z[:, channels, cell, cell] = torch.nan
        far = _undecided(model, z, label)
        rows, columns = far.any(1).nonzero().flatten().tolist(), far.any(0).nonzero().flatten().tolist()
        pixels = far.shape[0] // side
        top, end = side // 2 * pixels, (side // 2 + 1) * pixels
        if rows[0] and columns[0] and rows[-1] + 1 < far.shape[0] and columns[-1] + 1 < far.shape[1]:
            return top - rows[0], rows[-1] + 1 - end, top - columns[0], columns[-1] + 1 - end
    return None


def _undecided(model: Model, z: Tensor, label: Tensor | None) -> Tensor:
    """Find the positions `[*spatial]` whose decoded parameters are NaN for z `[1, D, *grid]`."""
    decoder = cast(CodeModel | LatentVariableModel, model).decoder
    return decoder(z, label if model.networks_see_labels else None)[0].isnan().any(0)


def box(corners: Sequence[int], size: Sequence[int]) -> Tensor:
    """Make a mask from a rectangle (x, y, width, height), or (start, length) for a signal.

    Raises:
        SpecError: if it has no area, or does not lie inside the example.
    """
    if len(corners) != 2 * len(size):
        form = {1: "start,length"}.get(len(size), "x,y,width,height")
        raise SpecError(f"{option('region')} must be {form} here, got {len(corners)} numbers", code="malformed-region")
    first, lengths = corners[: len(size)][::-1], corners[len(size) :][::-1]
    if min(lengths) < 1:
        raise SpecError(f"a region of {in_words(lengths)} has no area: give lengths of at least 1", code="empty-region")
    ends = [start + length for start, length in zip(first, lengths, strict=True)]
    if min(first) < 0 or any(end > side for end, side in zip(ends, size, strict=True)):
        start, end = (",".join(map(str, place[::-1])) for place in (first, ends))
        raise SpecError(
            f"the region from {start} to {end} is not inside the example, which is {in_words(size)} at the model's "
            "size: give a smaller region",
            code="region-outside",
        )
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[tuple(slice(*ends) for ends in zip(first, ends, strict=True))] = True
    return mask


def read_mask(path: str, size: Sequence[int]) -> Tensor:
    """Read a picture file as a mask `[H, W]`, True where it is lighter than half.

    Raises:
        DataError: if it cannot be read, or has another size.
        SpecError: if no part of it is light.
    """
    files = ImageFiles()
    header = files.header(path)
    if header.trouble:
        raise DataError(f"the mask {path} cannot be read: {header.trouble}", code="unreadable-mask")
    if header.spatial != tuple(size):
        raise DataError(
            f"the mask {path} is {in_words(header.spatial)}, but the picture at the model's size is {in_words(size)}: "
            "give a mask of that size",
            code="mask-size",
        )
    mask = files.read(path, Schema.of((1, *header.spatial), UINT8))[0] > 127
    if not mask.any():
        raise SpecError(f"the mask {path} is empty: paint the region white", code="empty-region")
    return mask


def covered_positions(region: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Find the positions `[*grid]` of each grid whose cells are at least half covered by the region.

    So a region is rounded to cells, not extended to them. If no grid has such a position, the positions with the
    largest cover in the last grid are chosen.
    """
    shares = [_covered(region, stride) for stride in strides]
    chosen = [share >= 0.5 for share in shares]
    if not any(c.any() for c in chosen):
        chosen[-1] = shares[-1] == shares[-1].max()
    return chosen


def _covered(region: Tensor, stride: int) -> Tensor:
    """Compute the share of each cell in the region; cells at the border may extend beyond the example."""
    both = torch.stack([region, torch.ones_like(region)]).float()
    for axis, side in enumerate(region.shape, 1):
        both = F.pad(both.movedim(axis, -1), (0, -side % stride)).unflatten(-1, (-1, stride)).sum(-1).movedim(-1, axis)
    return both[0] / both[1]


def mask_of_cells(positions: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Repeat a mask of positions `stride` times along each axis and crop it to a size."""
    for axis, side in enumerate(size):
        positions = positions.repeat_interleave(stride, axis).narrow(axis, 0, side)
    return positions


def feathered(region: Tensor, ring: int) -> Tensor:
    """Compute blending weights `[*spatial]`: 1 in the region, falling linearly to 0 over `ring` positions around it."""
    dilated = region.float()[None]
    total = dilated.clone()
    for _ in range(ring):
        dilated = POOLS[region.dim()](dilated, 3, stride=1, padding=1)
        total += dilated
    return total[0] / (ring + 1)
