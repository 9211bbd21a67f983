"""Make `src/tessella/data/clothes.npz` from Fashion-MNIST, or check that it is what this makes.

    python benchmarks/make_clothes.py SOURCE [--write]

SOURCE is the folder of the four official idx files, or an .npz of the same arrays in the official order. Of each class
the first 1,000 pictures of the training set are for training, the next 100 for validation, and the first 200 of the
test set for testing; a picture whose bytes were taken already is passed over. They stay in the official order.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

import tessella
from tessella.data.sources import find_raw
from tessella.kinds.base import ReadOptions

TARGET = Path(tessella.__file__).parent / "data" / "clothes.npz"
OFFICIAL = {
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
"""SHA-256 of the official arrays' bytes: 60,000 and 10,000 pictures of 28x28, and their labels."""
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
EACH = {"train": ("train", 1000), "valid": ("train", 100), "test": ("test", 200)}
"""Each split: the official part that it is out of, and pictures a class."""


def official(source: str) -> dict[str, np.ndarray]:
    """The official arrays, checked."""
    parts = find_raw(source, ReadOptions()).parts
    arrays = {f"{of}_{name}": np.asarray(a) for name in ("train", "test")
              for of, a in (("x", parts[name].x), ("y", parts[name].labels))}  # fmt: skip
    for name, array in arrays.items():
        digest = hashlib.sha256(array.astype(np.uint8).tobytes()).hexdigest()
        if digest != OFFICIAL[name]:
            sys.exit(f"{source}: {name} is not that of Fashion-MNIST: its SHA-256 is {digest}, not {OFFICIAL[name]}")
    return arrays


def chosen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the three splits."""
    taken: set[bytes] = set()
    small: dict[str, np.ndarray] = {"class_names": np.array(NAMES)}
    for split, (part, each) in EACH.items():
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.uint8)
        left, rows = dict.fromkeys(range(len(NAMES)), each), []
        for row, (picture, label) in enumerate(zip(x, y.tolist(), strict=True)):
            if left[label] and (content := picture.tobytes()) not in taken:
                taken.add(content)
                left[label] -= 1
                rows.append(row)
        assert not any(left.values())
        small |= {f"x_{split}": x[rows], f"y_{split}": y[rows], f"index_{split}": np.array(rows, np.uint16)}
    return small


def write(arrays: dict[str, np.ndarray], path: Path) -> None:
    """An archive that `numpy.load` reads, the same bytes each time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    source, *options = sys.argv[1:] or sys.exit(__doc__)
    arrays = chosen(official(source))
    if options == ["--write"]:
        write(arrays, TARGET)
    with np.load(TARGET) as stored:
        same = set(stored) == set(arrays) and all(np.array_equal(stored[name], a) for name, a in arrays.items())
    size = TARGET.stat().st_size
    print(f"{TARGET}: {size:,} bytes, SHA-256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")
    print("every array is as made from the official files" if same else "it is NOT what the official files give")
    sys.exit(not same)


if __name__ == "__main__":
    main()
