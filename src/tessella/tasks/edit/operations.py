"""What is done to the codes of a region, or to the latents of a model without codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from tessella.core.outputs import Sampling
from tessella.core.precision import autocast
from tessella.foundation.errors import SpecError
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.tasks.edit.regions import in_words


@dataclass(frozen=True)
class Scene:
    """What an operation is done on.

    Attributes:
        model: whose latents are edited.
        x: `[1, C, H, W]`, the picture as stored.
        label: `[1]` or None.
        region: `[H, W]` bool.
        known: of each level of codes `[1, 1, h, w]` bool, the positions that stay.
        seed: of what is drawn.
        progress: told (steps done, steps in all).
    """

    model: Model
    x: Tensor
    label: Tensor | None
    region: Tensor
    seed: int
    progress: Callable[[int, int], None] | None
    known: tuple[Tensor, ...] = ()

    def encoded(self, x: Tensor) -> tuple[Tensor, ...]:
        """The codes of each level of `[1, C, H, W]`."""
        return of_codes(self.model).encode(x).codes


@final
@dataclass(frozen=True)
class Resample:
    """Draw the region anew, given everything around it: codes by the prior's `fill`, latents from the prior.

    Attributes:
        count: how many variants.
        sampling: how freely is drawn.
    """

    count: int = 8
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1000:
            raise SpecError(f"{self.count} variants cannot be drawn: give a number from 1 to 1000")

    def codes(self, scene: Scene) -> tuple[Tensor, ...]:
        model, codes = of_codes(scene.model), scene.encoded(scene.x)
        for shape, c in zip(model.code_shapes, codes, strict=True):
            if tuple(c.shape[1:]) != shape:
                raise SpecError(
                    f"the prior knows grids of {_by(shape[1:])} codes, and this picture has {_by(c.shape[2:])}: leave "
                    "--full-size out, or edit by --paste, --code or --blend"
                )
        many = [c.expand(self.count, -1, -1, -1) for c in codes]
        known = [k.expand(c.shape) for k, c in zip(scene.known, many, strict=True)]
        label = None if scene.label is None else scene.label.expand(self.count)
        with autocast("auto", model.schema, model.device):
            return model.inpaint_codes(many, known, label, seed=scene.seed, sampling=self.sampling)

    def latents(self, scene: Scene, z: Tensor) -> Tensor:
        if z.shape[1:] != scene.model.latent_shape:
            raise SpecError(
                f"the prior knows latents of {_by(scene.model.latent_shape)}, and this picture has {_by(z.shape[1:])}: "
                "leave --full-size out"
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
            shifted so before it is encoded, so any pixel will do; its edge is repeated beyond its border.
    """

    other: Tensor
    at: tuple[int, int] | None = None

    def codes(self, scene: Scene) -> tuple[Tensor, ...]:
        return scene.encoded(self._placed(scene))

    def latents(self, scene: Scene, z: Tensor) -> Tensor:
        return scene.model.encode(self._placed(scene), scene.label).z

    def _placed(self, scene: Scene) -> Tensor:
        """The other picture, shifted, `[1, C, H, W]`."""
        if self.at is None:
            return _alike(self.other, scene)
        rows, columns = scene.region.any(1).nonzero().flatten(), scene.region.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        (x, y), (tall, wide) = self.at, self.other.shape[1:]
        if not (0 <= x <= wide - width and 0 <= y <= tall - height):
            raise SpecError(
                f"the region of {width}x{height} pixels at @{x},{y} does not lie inside the other picture of "
                f"{wide}x{tall}: give a place up to @{max(0, wide - width)},{max(0, tall - height)}"
                if width <= wide and height <= tall
                else f"the region of {width}x{height} pixels is larger than the other picture of {wide}x{tall}: give "
                "a smaller one"
            )
        down, across = scene.region.shape
        from_row = (torch.arange(down) + y - top).clamp(0, tall - 1)
        from_column = (torch.arange(across) + x - left).clamp(0, wide - 1)
        return self.other[:, from_row][:, :, from_column][None].to(scene.x.device)


@final
@dataclass(frozen=True)
class Code:
    """Set every code of the region to one number, 0 ... K - 1; of several codes a position each of them."""

    number: int

    def codes(self, scene: Scene) -> tuple[Tensor, ...]:
        model, codes = of_codes(scene.model), scene.encoded(scene.x)
        for quantizer, known in zip(model.levels, scene.known, strict=True):
            if not known.all() and not 0 <= self.number < quantizer.codebook_size:
                raise SpecError(f"there is no code {self.number}: give one from 0 to {quantizer.codebook_size - 1}")
        return tuple(torch.full_like(c, self.number) for c in codes)

    def latents(self, scene: Scene, z: Tensor) -> Tensor:
        raise SpecError(f"the model {scene.model.name} has no codes to set: use --paste, --blend or --resample")


@final
@dataclass(frozen=True)
class Blend:
    """Mix with another picture: (1 - a) of this one and a of the other.

    Of latents z is mixed. Codes must stay codes: what the encoder says of the two pictures is mixed, position by
    position, and quantised; so `amount` 0 gives this picture's codes and 1 the other's.

    Attributes:
        other: `[C, H, W]`, as stored, of the same size.
        amount: a, 0 ... 1.
    """

    other: Tensor
    amount: float

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise SpecError(f"a picture cannot be blended by {self.amount}: give a number from 0 to 1")

    def codes(self, scene: Scene) -> tuple[Tensor, ...]:
        model, other = of_codes(scene.model), _alike(self.other, scene)
        both = zip(model.features(scene.x), model.features(other), strict=True)
        return model.quantise([torch.lerp(a, b, self.amount) for a, b in both]).codes

    def latents(self, scene: Scene, z: Tensor) -> Tensor:
        return torch.lerp(z, scene.model.encode(_alike(self.other, scene), scene.label).z, self.amount)


Operation = Resample | Paste | Code | Blend


def _alike(other: Tensor, scene: Scene) -> Tensor:
    """The other picture, `[1, C, H, W]`.

    Raises:
        SpecError: if it has another size.
    """
    if other.shape != scene.x.shape[1:]:
        raise SpecError(
            f"the other picture is {in_words(other.shape[1:])}, this one {in_words(scene.x.shape[2:])}: give one of "
            "its size, or a place to paste from, OTHER@x,y"
        )
    return other[None].to(scene.x.device)


def of_codes(model: Model) -> CodeModel:
    if not isinstance(model, CodeModel):
        raise SpecError(f"the model {model.name} has no codes: train a vqvae")
    return model


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
