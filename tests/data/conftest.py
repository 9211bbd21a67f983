"""Files to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Write a random picture: `draw("cats/a.png", size=(9, 7), mode="L")`."""

    def write(name: str, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([seed, len(name)]).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        opaque = Image.fromarray(noise[..., :3])
        (opaque if mode not in ("LA", "RGBA") else Image.fromarray(noise)).convert(mode).save(path)
        return path

    return write
