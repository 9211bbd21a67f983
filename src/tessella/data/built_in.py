"""Built-in data sets: small ones to try models on, and sprites with known factors of variation."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from importlib.metadata import distribution

import numpy as np

from tessella.data.raw import WHOLE, RawDataset, RawSplit, index_keys
from tessella.foundation.registry import register

FILE = "clothes.npz"
"""LZMA-compressed arrays for `numpy.load`, made from the official files by `benchmarks/make_clothes.py`."""


@register("data", "clothes", summary="13,000 grey images of clothes, 28 x 28 pixels, in the package (Xiao et al. 2017)")
def clothes(size: tuple[int, int] | None = None) -> RawDataset:
    """Load a subset of Fashion-MNIST (Xiao et al. 2017).

    The splits have 10,000, 1,000 and 2,000 grey images of 28x28 pixels in 10 classes of equal size. Training and
    validation images come from the official training set, test images from the official test set. No two images are
    identical. MIT licence, in `clothes.LICENSE`.
    """
    with resources.files(str(__package__)).joinpath(FILE).open("rb") as file, np.load(file) as arrays:
        parts = {
            name: RawSplit(x := arrays[f"x_{name}"], arrays[f"y_{name}"], index_keys(len(x), f"clothes {name}"))
            for name in ("train", "valid", "test")
        }
        return RawDataset(parts, tuple(map(str, arrays["class_names"])))


@register("data", "digits", summary="1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998)")
def digits(size: tuple[int, int] | None) -> RawDataset:
    """Load 1,797 handwritten digits of 8x8 pixels from scikit-learn (Alpaydin & Kaynak 1998).

    The file is read without importing scikit-learn, which takes a second.
    """
    rows = np.loadtxt(
        str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=","
    )
    grey = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = RawSplit(grey, rows[:, -1].astype(int), index_keys(len(grey), "digits"))
    return RawDataset({WHOLE: part}, notes=["values 0 ... 16 are scaled to bytes 0 ... 255"])


# sprites

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
DEFAULT_SIZE = (32, 32)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 * (np.sqrt(u * u + 4 * v * v) - 1)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(v - 0.6, 0.857 * np.abs(u) - 0.515 * v - 0.515)


SHAPES: dict[str, Distance] = {"square": _square, "ellipse": _ellipse, "triangle": _triangle}
"""Signed distance to the border of each shape, negative inside, in units of its radius."""

COLOURS = np.array(
    [(230, 57, 70), (244, 162, 97), (233, 216, 60), (60, 180, 90), (69, 123, 230), (190, 90, 220)], dtype=np.float32
)
SIZES = np.array([0.14, 0.18, 0.22, 0.26], dtype=np.float32)  # radius, as a fraction of the shorter side
ORIENTATIONS = np.arange(8, dtype=np.float32) * np.float32(math.pi / 16)  # below the symmetry of a square
PLACES = np.linspace(0.26, 0.74, 8, dtype=np.float32)  # of the centre, as a fraction of the side
BACKGROUND = 16.0

FACTORS = {"shape": 3, "size": 4, "colour": 6, "orientation": 8, "x": 8, "y": 8}
"""Factors of variation and their numbers of values; example i is combination i, the last factor varying fastest."""


def factors(rows: np.ndarray) -> np.ndarray:
    """Convert row numbers `[B]` to factor values `[B, 6]` int64, in the order of `FACTORS`."""
    return np.stack(np.unravel_index(rows, tuple(FACTORS.values())), axis=-1)


def draw(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Render factor values `[B, 6]` as antialiased images `[B, 3, H, W]` uint8."""
    height, width = size
    shape, radius, colour, angle, x, y = np.moveaxis(numbers, -1, 0)
    side = np.float32(min(height, width))
    r = (SIZES[radius] * side)[:, None, None]
    dx = (np.arange(width, dtype=np.float32) + 0.5)[None, None, :] - (PLACES[x] * width)[:, None, None]
    dy = (np.arange(height, dtype=np.float32) + 0.5)[None, :, None] - (PLACES[y] * height)[:, None, None]
    cos, sin = np.cos(ORIENTATIONS[angle])[:, None, None] / r, np.sin(ORIENTATIONS[angle])[:, None, None] / r
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    cover = np.empty(u.shape, np.float32)
    for number, distance in enumerate(SHAPES.values()):
        of = shape == number
        cover[of] = np.clip(0.5 - distance(u[of], v[of]) * r[of], 0, 1)
    ink = COLOURS[colour] - np.float32(BACKGROUND)
    return np.round(BACKGROUND + cover[:, None] * ink[:, :, None, None]).astype(np.uint8)


class SpriteReader:
    """Reader that renders each combination of `FACTORS` as an image of one size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.shape: tuple[int, int, int] = (3, *size)
        self._size = size

    def __len__(self) -> int:
        return math.prod(FACTORS.values())

    def read(self, rows: np.ndarray) -> np.ndarray:
        return draw(factors(rows), self._size)


@register("data", "sprites", summary="36,864 rendered images of three shapes, with known factors of variation")
def sprites(size: tuple[int, int] | None) -> RawDataset:
    """Open 36,864 images of three shapes on a dark background, rendered on access at any size."""
    reader = SpriteReader(size or DEFAULT_SIZE)
    numbers = factors(np.arange(len(reader)))
    known = {name: numbers[:, column] for column, name in enumerate(FACTORS)}
    part = RawSplit(reader, numbers[:, 0], index_keys(len(reader), "sprites"), factors=known)
    return RawDataset({WHOLE: part}, tuple(SHAPES))
