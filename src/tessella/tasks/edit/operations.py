"""Operations on the codes of a region, or on the latents of a model without codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast, final

import torch
from torch import Tensor

from tessella.core.device import autocast
from tessella.core.outputs import Sampling
from tessella.foundation.errors import SpecError, option
from tessella.models.base import Model
from tessella.models.codes import CodeModel


@dataclass(frozen=True)
class Scene:
    """Input of an operation.

    Attributes:
        model: model whose latents are edited.
        x: `[1, C, *spatial]`, the example as stored.
        label: `[1]` or None.
        region: `[*spatial]` bool.
        seed: seed of the sampling.
        known: `[1, 1, *grid]` bool for each level of codes, the positions that stay.
    """

    model: Model
    x: Tensor
    label: Tensor | None
    region: Tensor
    seed: int
    known: tuple[Tensor, ...] = ()

    def labels(self, count: int) -> Tensor | None:
        """Repeat the label for `count` variants."""
        return None if self.label is None else self.label.expand(count)

    def same_size(self, other: Tensor) -> Tensor:
        """Return another example as `[1, C, *spatial]`.

        Raises:
            SpecError: if its size differs from the edited example's.
        """
        if other.shape != self.x.shape[1:]:
            raise SpecError(
                f"the other example is {in_words(other.shape[1:])}, this one {in_words(self.x.shape[2:])}: give one of "
                "the same size, or a place to paste from, OTHER@x,y",
                code="other-size",
            )
        return other[None].to(self.x.device)


@final
@dataclass(frozen=True)
class Inpaint:
    """Samples the region given everything around it: codes by the prior's `inpaint`, latents from the prior.

    Attributes:
        count: number of variants.
        sampling: temperature and truncation.
    """

    count: int = 8
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1000:
            raise SpecError(f"{option('count')} must be from 1 to 1000, got {self.count}", code="out-of-range")

    def edit_codes(self, scene: Scene, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        model = cast(CodeModel, scene.model)
        windows = _windows_of_prior(model, scene.known)
        many = [c.expand(self.count, *c.shape[1:]).clone() for c in codes]
        seen = [c[w] for c, w in zip(many, windows, strict=True)]
        known = [k[w].expand(c.shape) for k, w, c in zip(scene.known, windows, seen, strict=True)]
        with autocast("auto", model.schema, model.device):
            new = model.inpaint_codes(seen, known, scene.labels(self.count), seed=scene.seed, sampling=self.sampling)
        for c, window, part in zip(many, windows, new, strict=True):
            c[window] = part
        return tuple(many)

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        if z.shape[1:] != scene.model.latent_shape:
            raise SpecError(
                f"the prior models latents of {in_words(scene.model.latent_shape[1:])}, and this example has "
                f"{in_words(z.shape[2:])}: leave out {option('native_size')}",
                code="grid-of-prior",
            )
        labels = scene.labels(self.count)
        return scene.model.sample_prior(self.count, labels, seed=scene.seed, sampling=self.sampling)


def _windows_of_prior(model: CodeModel, known: Sequence[Tensor]) -> list[tuple[slice, ...]]:
    """Find the part of each level's codes that the prior sees: as large as in training, with the region in its middle.

    Raises:
        SpecError: if an example is smaller than that, or the region larger.
    """
    windows: list[list[slice]] = [[slice(None), slice(None)] for _ in known]
    for axis in range(2, known[0].dim()):
        seen = [shape[axis - 1] for shape in model.code_shapes]
        edited = [(~k).movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist() for k in known]
        coarse = [place >> level for level, places in enumerate(edited) for place in places]
        first, end = min(coarse), max(coarse) + 1
        room = min((k.shape[axis] - side) >> level for level, (k, side) in enumerate(zip(known, seen, strict=True)))
        if room < 0 or end - first > seen[0]:
            raise SpecError(
                f"the prior models grids of {in_words(model.code_shapes[-1][1:])} codes, and this example has "
                f"{in_words(known[-1].shape[2:])}: give a smaller region, leave out {option('native_size')}, or edit "
                f"by {option('paste')}, {option('code')} or {option('blend')}",
                code="grid-of-prior",
            )
        start = min(max((first + end - seen[0]) // 2, 0), room)
        for level, side in enumerate(seen):
            windows[level].append(slice(start << level, (start << level) + side))
    return [tuple(window) for window in windows]


@final
@dataclass(frozen=True)
class Paste:
    """Takes the codes of another example.

    Attributes:
        other: `[C, *spatial]`, as stored.
        at: x and y (x alone for a signal) of the place in `other` that moves to the region's first corner; None: the
            same place. The other example is shifted before it is encoded, so any place is possible; its edge is
            repeated.
    """

    other: Tensor
    at: tuple[int, ...] | None = None

    def edit_codes(self, scene: Scene, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return scene.model.encode(self._shifted(scene)).codes

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        return scene.model.encode(self._shifted(scene), scene.label).z

    def _shifted(self, scene: Scene) -> Tensor:
        if self.at is None:
            return scene.same_size(self.other)
        x, box = self.other, bounding_box(scene.region)
        room = [side - length for side, (_, length) in zip(x.shape[1:], box, strict=True)]
        if len(self.at) != len(room) or not all(0 <= at <= most for at, most in zip(self.at, room[::-1], strict=True)):
            at, last = (",".join(map(str, places)) for places in (self.at, room[::-1]))
            remedy = f"a place up to @{last}" if min(room) >= 0 else "a smaller region"
            raise SpecError(
                f"the region of {in_words([length for _, length in box])} at @{at} does not lie inside the other "
                f"example of {in_words(x.shape[1:])}: give {remedy}",
                code="paste-outside",
            )
        for axis, (at, (first, _), side) in enumerate(zip(self.at[::-1], box, scene.region.shape, strict=True), 1):
            x = x.index_select(axis, (torch.arange(side) + at - first).clamp(0, x.shape[axis] - 1))
        return x[None].to(scene.x.device)


@final
@dataclass(frozen=True)
class SetCode:
    """Sets every code of the region to one number, 0 ... K - 1, in every slot."""

    number: int

    def edit_codes(self, scene: Scene, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for quantizer, known in zip(scene.model.levels, scene.known, strict=True):
            if not known.all() and not 0 <= self.number < quantizer.codebook_size:
                raise SpecError(
                    f"there is no code {self.number}: give one from 0 to {quantizer.codebook_size - 1}",
                    code="no-such-code",
                )
        return tuple(torch.full_like(c, self.number) for c in codes)

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        raise SpecError(
            f"the model {scene.model.name} has no codes to set: use {option('paste')}, {option('blend')} or "
            f"{option('resample')}",
            code="no-codes",
        )


@final
@dataclass(frozen=True)
class Blend:
    """Interpolates to another example: (1 - a) of this one plus a of the other.

    Continuous latents are interpolated directly. For codes, the encoder's features of both examples are interpolated at
    each position and then quantised: `amount` 0 gives the codes of this example, and 1 those of the other.

    Attributes:
        other: `[C, *spatial]`, as stored, of the same size.
        amount: a, 0 ... 1.
    """

    other: Tensor
    amount: float

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise SpecError(f"{option('blend')} takes a number from 0 to 1, got {self.amount}", code="out-of-range")

    def edit_codes(self, scene: Scene, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        model = cast(CodeModel, scene.model)
        both = zip(model.features(scene.x), model.features(scene.same_size(self.other)), strict=True)
        return model.quantise([torch.lerp(a, b, self.amount) for a, b in both]).codes

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        return torch.lerp(z, scene.model.encode(scene.same_size(self.other), scene.label).z, self.amount)


Operation = Inpaint | Paste | SetCode | Blend


def bounding_box(region: Tensor) -> list[tuple[int, int]]:
    """Compute first position and length of a region `[*spatial]` along each axis."""
    ends = [(int(at.min()), int(at.max()) + 1) for at in region.nonzero().T]
    return [(first, end - first) for first, end in ends]


def in_words(size: Sequence[int]) -> str:
    """Format a size `(height, width)` as WIDTHxHEIGHT."""
    return "x".join(map(str, reversed(size)))
