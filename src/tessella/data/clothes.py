"""Fashion-MNIST in small, inside the package: pictures that a model can be trained on without a download."""

from __future__ import annotations

from importlib import resources

import numpy as np

from tessella.data.raw import RawDataset, RawSplit, index_keys
from tessella.foundation.registry import register

FILE = "clothes.npz"
"""Arrays that `numpy.load` reads, each packed by LZMA; `benchmarks/make_clothes.py` made it from the official files."""


@register(
    "data", "clothes", summary="13,000 grey pictures of clothes of 28 x 28 pixels, in the package (Xiao et al. 2017)"
)
def clothes(size: tuple[int, int] | None = None) -> RawDataset:
    """Fashion-MNIST in small: 10,000, 1,000 and 2,000 grey pictures of 28x28, 10 classes (Xiao et al. 2017).

    Training and validation pictures are out of the official training set, test pictures out of the official test set;
    each class has the same share of each, and no two pictures are the same. MIT licence, in `clothes.LICENSE`.

    Args:
        size: not used; the caller resizes.
    """
    with resources.files(str(__package__)).joinpath(FILE).open("rb") as file, np.load(file) as arrays:
        parts = {
            name: RawSplit(x := arrays[f"x_{name}"], arrays[f"y_{name}"], index_keys(len(x), f"clothes {name}"))
            for name in ("train", "valid", "test")
        }
        return RawDataset(parts, tuple(map(str, arrays["class_names"])))
