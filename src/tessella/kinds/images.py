"""Kind of data: pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import features
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary
from tessella.foundation.registry import register
from tessella.kinds.base import Codec, Kind
from tessella.kinds.image_files import ImageFiles
from tessella.kinds.pictures import from_jpeg, images, picture, to_jpeg

LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "WebP": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
    "JPEG XL": ("JXL", {"lossless": True, "effort": 7}),
}
LOSSY: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG, quality 10": ("JPEG", {"quality": 10, "optimize": True}),
    "WebP, quality 10": ("WEBP", {"quality": 10, "method": 6}),
}
CHANNELS = {1: "grey", 2: "grey and alpha", 3: "colour", 4: "colour and alpha"}


@register("kind", "image", summary="pictures (C, H, W) with 1 to 4 channels", rank=2)
@final
class Images(Kind):
    """Pictures `(C, H, W)` with 1 to 4 channels."""

    example = "picture"
    examples = "pictures"
    file_ending = ".png"
    files = ImageFiles()
    pixels = True

    @property
    def description(self) -> str:
        height, width = self.schema.spatial
        return f"pictures of {width}x{height}, {CHANNELS.get(self.schema.channels, '?')}"

    @property
    def tile_size(self) -> tuple[int, int]:
        height, width = self.schema.spatial
        return height, width

    @property
    def probe(self) -> str:
        height, width = self.schema.spatial
        return "rotation" if height == width else "flip"

    def poses(self, x: Tensor) -> list[Tensor]:
        """Rotate by quarter turns (Gidaris et al. 2018); mirror pictures that are not square."""
        if self.probe == "rotation":
            return [torch.rot90(x, k, (2, 3)) for k in range(4)]
        return [x, x.flip(2), x.flip(3), x.flip(2, 3)]

    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        picture(x, self.schema, form).save(path, format="PNG")

    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        """List the codecs of single pictures that are installed with Pillow."""
        known = LOSSY if lossy else LOSSLESS

        def size(examples: Sequence[Tensor], form: str, options: dict[str, Any]) -> int:
            return sum(self._bytes(x, form, options) for x in examples)

        return tuple(
            Codec(name, partial(size, form=form, options=options))
            for name, (form, options) in known.items()
            if _available(form)
        )

    def _bytes(self, x: Tensor, form: str, options: dict[str, Any]) -> int:
        image = picture(x, self.schema)
        if self.schema.values == Binary() and image.mode == "L" and form != "JPEG":
            image = image.convert("1")
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.tell()

    def render(self, x: Tensor) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(np.round(self.unit(x) * 255).astype(np.uint8), 1, -1))

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        copies = [self.noisy_copy(x, noise)]
        values = self.schema.values
        if values.discrete and values != Binary() and self.schema.channels in (1, 3):
            again = np.stack([np.asarray(from_jpeg(to_jpeg(image))) for image in images(x, self.schema)])
            copies.append(torch.from_numpy(again.reshape(len(x), *x.shape[2:], -1)).movedim(3, 1).contiguous())
        return copies


def _available(form: str) -> bool:
    if form == "JXL":
        if find_spec("pillow_jxl") is None:
            return False
        import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    return form != "WEBP" or bool(features.check("webp"))
