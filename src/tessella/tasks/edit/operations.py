"""Operations on the codes of a region, or on the latents of a model without codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from tessella.core.device import autocast
from tessella.core.outputs import Sampling
from tessella.foundation.errors import SpecError, option
from tessella.models.base import Model
from tessella.models.codes import CodeModel


@dataclass(frozen=True)
class Scene:
    """What an operation works on.

    Attributes:
        model: the model whose latents are edited.
        x: `[1, C, H, W]`, the picture as stored.
        label: `[1]` or None.
        region: `[H, W]` bool.
        known: `[1, 1, h, w]` bool for each level of codes, the positions that stay.
        seed: seed of the sampling.
    """

    model: Model
    x: Tensor
    label: Tensor | None
    region: Tensor
    seed: int
    known: tuple[Tensor, ...] = ()

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """Codes of the picture, `[1, C, h, w]` for each level."""
        return self.encode(self.x)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode `[1, C, H, W]` to the codes of each level."""
        return code_model(self.model).encode(x).codes


@final
@dataclass(frozen=True)
class Inpaint:
    """Sample the region given everything around it: codes by the prior's `inpaint`, latents from the prior.

    Attributes:
        count: number of variants.
        sampling: temperature and truncation.
    """

    count: int = 8
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1000:
            raise SpecError(f"{option('count')} must be from 1 to 1000, got {self.count}", code="out-of-range")

    def edit_codes(self, scene: Scene) -> tuple[Tensor, ...]:
        model, codes = code_model(scene.model), scene.codes
        for shape, c in zip(model.code_shapes, codes, strict=True):
            if tuple(c.shape[1:]) != shape:
                raise SpecError(
                    f"the prior models grids of {_by(shape[1:])} codes, and this picture has {_by(c.shape[2:])}: leave "
                    f"{option('native_size')} out, or edit by {option('paste')}, {option('code')} or {option('blend')}",
                    code="grid-of-prior",
                )
        many = [c.expand(self.count, -1, -1, -1) for c in codes]
        known = [k.expand(c.shape) for k, c in zip(scene.known, many, strict=True)]
        label = None if scene.label is None else scene.label.expand(self.count)
        with autocast("auto", model.schema, model.device):
            return model.inpaint_codes(many, known, label, seed=scene.seed, sampling=self.sampling)

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        if z.shape[1:] != scene.model.latent_shape:
            raise SpecError(
                f"the prior models latents of {_by(scene.model.latent_shape)}, and this picture has "
                f"{_by(z.shape[1:])}: leave {option('native_size')} out",
                code="grid-of-prior",
            )
        label = None if scene.label is None else scene.label.expand(self.count)
        return scene.model.sample_prior(self.count, label, seed=scene.seed, sampling=self.sampling)


@final
@dataclass(frozen=True)
class Paste:
    """Take the codes of another picture.

    Attributes:
        other: `[C, H, W]`, as stored.
        at: x and y in it of what comes to the region's upper left corner; None: the same place. The other picture is
            shifted before it is encoded, so any pixel will do; its edge is repeated beyond its border.
    """

    other: Tensor
    at: tuple[int, int] | None = None

    def edit_codes(self, scene: Scene) -> tuple[Tensor, ...]:
        return scene.encode(self._shifted(scene))

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        return scene.model.encode(self._shifted(scene), scene.label).z

    def _shifted(self, scene: Scene) -> Tensor:
        if self.at is None:
            return _same_size(self.other, scene)
        rows, columns = scene.region.any(1).nonzero().flatten(), scene.region.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        (x, y), (tall, wide) = self.at, self.other.shape[1:]
        if not (0 <= x <= wide - width and 0 <= y <= tall - height):
            fits = width <= wide and height <= tall
            remedy = f"a place up to @{wide - width},{tall - height}" if fits else "a smaller region"
            raise SpecError(
                f"the region of {width}x{height} pixels at @{x},{y} does not lie inside the other picture of "
                f"{wide}x{tall}: give {remedy}",
                code="paste-outside",
            )
        down, across = scene.region.shape
        from_row = (torch.arange(down) + y - top).clamp(0, tall - 1)
        from_column = (torch.arange(across) + x - left).clamp(0, wide - 1)
        return self.other[:, from_row][:, :, from_column][None].to(scene.x.device)


@final
@dataclass(frozen=True)
class SetCode:
    """Set every code of the region to one number, 0 ... K - 1; with several codes a position, each of them."""

    number: int

    def edit_codes(self, scene: Scene) -> tuple[Tensor, ...]:
        for quantizer, known in zip(code_model(scene.model).levels, scene.known, strict=True):
            if not known.all() and not 0 <= self.number < quantizer.codebook_size:
                raise SpecError(
                    f"there is no code {self.number}: give one from 0 to {quantizer.codebook_size - 1}",
                    code="no-such-code",
                )
        return tuple(torch.full_like(c, self.number) for c in scene.codes)

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        raise SpecError(
            f"the model {scene.model.name} has no codes to set: use {option('paste')}, {option('blend')} or "
            f"{option('resample')}",
            code="no-codes",
        )


@final
@dataclass(frozen=True)
class Blend:
    """Interpolate to another picture: (1 - a) of this one and a of the other.

    Continuous latents are interpolated directly. Codes must stay codes: the encoder's features of the two pictures are
    interpolated, position by position, and quantised; `amount` 0 gives this picture's codes and 1 the other's.

    Attributes:
        other: `[C, H, W]`, as stored, of the same size.
        amount: a, 0 ... 1.
    """

    other: Tensor
    amount: float

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise SpecError(f"a picture cannot be blended by {self.amount}: give a number from 0 to 1",
                            code="out-of-range")  # fmt: skip

    def edit_codes(self, scene: Scene) -> tuple[Tensor, ...]:
        model, other = code_model(scene.model), _same_size(self.other, scene)
        both = zip(model.features(scene.x), model.features(other), strict=True)
        return model.quantise([torch.lerp(a, b, self.amount) for a, b in both]).codes

    def edit_latents(self, scene: Scene, z: Tensor) -> Tensor:
        return torch.lerp(z, scene.model.encode(_same_size(self.other, scene), scene.label).z, self.amount)


Operation = Inpaint | Paste | SetCode | Blend


def _same_size(other: Tensor, scene: Scene) -> Tensor:
    """The other picture, `[1, C, H, W]`, if it has the size of the edited one."""
    if other.shape != scene.x.shape[1:]:
        raise SpecError(
            f"the other picture is {in_words(other.shape[1:])}, this one {in_words(scene.x.shape[2:])}: give one of "
            "its size, or a place to paste from, OTHER@x,y",
            code="other-size",
        )
    return other[None].to(scene.x.device)


def code_model(model: Model) -> CodeModel:
    """Narrow a model to one of codes.

    Raises:
        SpecError: `no-codes` if it has none.
    """
    if not isinstance(model, CodeModel):
        raise SpecError(f"the model {model.name} has no codes: train a vqvae", code="no-codes")
    return model


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def in_words(size: tuple[int, ...]) -> str:
    """Word a size (height, width) as WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"
