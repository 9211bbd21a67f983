"""Pictures."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Binary
from tessella.foundation.registry import register
from tessella.kinds.base import Kind, Probe
from tessella.kinds.pictures import from_jpeg, images, to_jpeg

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "colour", 4: "colour and alpha"}


@register("kind", "image", summary="pictures (C, H, W) with 1 to 4 channels", rank=2)
@final
class Images(Kind):
    """Pictures `(C, H, W)` with 1 to 4 channels."""

    example = "picture"
    examples = "pictures"
    place = "pixel"
    image_files = True

    @property
    def description(self) -> str:
        height, width = self.schema.spatial
        return f"pictures of {width}x{height}, {CHANNELS.get(self.schema.channels, '?')}"

    @property
    def tile_size(self) -> tuple[int, int]:
        height, width = self.schema.spatial
        return height, width

    @property
    def probe(self) -> Probe:
        height, width = self.schema.spatial
        return "rotation" if height == width else "flip"

    def tiles(self, x: Tensor) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(np.round(self.unit(x) * 255).astype(np.uint8), 1, -1))

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        copies = [self.noisy_copy(x, noise)]
        values = self.schema.values
        if values.discrete and values != Binary() and self.schema.channels in (1, 3):
            again = np.stack([np.asarray(from_jpeg(to_jpeg(image))) for image in images(x, self.schema)])
            copies.append(torch.from_numpy(again.reshape(len(x), *x.shape[2:], -1)).movedim(3, 1).contiguous())
        return copies
