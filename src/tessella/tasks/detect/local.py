"""Local features of pictures and how unusual they are: contrast-normalised filters, compared with normal examples.

The statistics are by place if the normal pictures are aligned, and the same everywhere if they are not, which held-out
normal pictures decide by their density (Defard et al. 2021, "PaDiM", with filters instead of a pretrained network).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from scipy.ndimage import gaussian_filter

Normalization = Literal["local-contrast", "none"]
GRID = 64
"""Largest number of positions per axis at which features are computed."""
BANDS, EDGES, FINE, LEVELS = (0.6, 1.2, 2.4, 4.8), (1.0, 2.0, 4.0), (1.5, 4.0), (1.5, 3.0, 6.0)
"""Scales, in positions: bands between two Gaussians, derivatives, contrast of fine detail, brightness."""
ORDERS = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 1))
"""Orders of the derivatives along rows and columns."""
SHIFT = 2.0
"""Statistics of a place are shared with its neighbours within this many positions, so small shifts are normal."""
SHARED, RIDGE = 0.1, 0.05
"""Shrinkage of each place's covariance: share of the mean covariance, and multiple of its diagonal added."""


@final
class LocalFeatures:
    """Computes features of each position of pictures: `[B, C, H, W]` to `[B, h, w, F]` float32.

    Bands, derivatives of first and second order, contrast of fine detail, and brightness relative to the picture's.
    Bands and derivatives are divided by their median size in the picture, so illumination and contrast of a picture do
    not matter; `none` keeps them in units of the values.

    Args:
        shape: `(C, H, W)`.
        levels: lowest and highest stored value.
    """

    def __init__(
        self, shape: tuple[int, ...], levels: tuple[float, float], normalize: Normalization = "local-contrast"
    ) -> None:
        self.normalize, self._low, self._factor = normalize, levels[0], 255 / (levels[1] - levels[0])
        self.stride = math.ceil(max(shape[1:]) / GRID)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = (np.asarray(x, np.float32) - self._low) * self._factor
        grey = x.mean(1)
        planes = [grey, *(x[:, c] - grey for c in range(1, x.shape[1]))]
        filters = [self._smooth(plane, s) - self._smooth(plane, 2 * s) for plane in planes for s in BANDS]
        filters += [self._smooth(grey, s, order) * (s * self.stride) ** sum(order) for s in EDGES for order in ORDERS]
        found = self._at_grid(np.stack(filters, -1))
        detail = np.abs(grey - self._smooth(grey, 1.0))
        contrast = self._at_grid(np.log(np.stack([self._smooth(detail, s) for s in FINE], -1) + 0.5))
        level = self._at_grid(np.stack([self._smooth(plane, s) for plane in planes for s in LEVELS], -1))
        if self.normalize == "local-contrast":
            size = np.abs(found)
            found = found / (0.8 * np.median(size, (1, 2)) + 0.2 * size.mean((1, 2)) + 0.15)[:, None, None]
            contrast = contrast - contrast.mean((1, 2), keepdims=True)
            spread = grey.std((1, 2))[:, None, None, None] + 3
            level = (level - level.mean((1, 2), keepdims=True)) / spread
        else:
            found, level = found / 8, level / 64
        return np.concatenate([np.sign(found) * np.log1p(np.abs(found)), contrast, level], -1, dtype=np.float32)

    def _smooth(self, plane: np.ndarray, scale: float, order: tuple[int, int] = (0, 0)) -> np.ndarray:
        sigma = scale * self.stride
        return gaussian_filter(plane, (0, sigma, sigma), order=(0, *order), mode="nearest", truncate=3)  # pyright: ignore[reportArgumentType]

    def _at_grid(self, values: np.ndarray) -> np.ndarray:
        start = self.stride // 2
        return values[:, start :: self.stride, start :: self.stride]


def smooth(maps: np.ndarray, scale: float) -> np.ndarray:
    """Smooth maps `[B, H, W]` by a Gaussian."""
    return gaussian_filter(maps, (0, scale, scale), mode="nearest") if scale else maps


@final
@dataclass(frozen=True)
class LocalGaussian:
    """Gaussian of the features at each place, or one for all places.

    Attributes:
        mean, precision: `[h, w, F]` and `[h, w, F, F]`; h = w = 1 if one serves all places.
        log_det: log-determinant of the covariance, `[h, w]`.
    """

    mean: np.ndarray
    precision: np.ndarray
    log_det: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, by_place: bool) -> LocalGaussian:
        """Fit to features `[N, h, w, F]` of normal pictures."""
        if not by_place:
            features = features.reshape(-1, 1, 1, features.shape[-1])
        spread = (SHIFT, SHIFT, 0, 0)
        mean = gaussian_filter(features.mean(0), (SHIFT / 2, SHIFT / 2, 0), mode="nearest")
        apart = features - mean
        covariance = np.einsum("nhwi,nhwj->hwij", apart, apart, optimize=True) / len(features)
        covariance = gaussian_filter(covariance, spread, mode="nearest")
        shared = covariance.mean((0, 1))
        covariance = (1 - SHARED) * covariance + SHARED * shared
        covariance += RIDGE * np.diag(np.diag(shared)) + 1e-6 * np.eye(len(shared))
        precision = np.linalg.inv(covariance).astype(np.float32)
        return cls(mean.astype(np.float32), precision, np.linalg.slogdet(covariance)[1])

    def squared_distance(self, features: np.ndarray) -> np.ndarray:
        """Compute the squared Mahalanobis distance of features `[B, h, w, F]`, `[B, h, w]`."""
        apart = features - self.mean
        if self.mean.shape[:2] == (1, 1):
            return np.einsum("bhwi,bhwi->bhw", apart @ self.precision[0, 0], apart)
        return np.einsum("bhwi,hwij,bhwj->bhw", apart, self.precision, apart, optimize=True)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Compute the Mahalanobis distance of features `[B, h, w, F]`, `[B, h, w]`."""
        return np.sqrt(self.squared_distance(features))

    def nats(self, features: np.ndarray) -> float:
        """Compute the mean -log density of features, but for a constant."""
        return float((self.squared_distance(features) + self.log_det).mean()) / 2


CANDIDATES, CENTRES = 20_000, 1_000
"""Random features from which a coreset is chosen, and its size."""


@final
class Coreset:
    """Representative features of normal pictures, wherever they occur; the distance is to the nearest of them.

    Chosen greedily, each the farthest from those before it (Roth et al. 2022, "PatchCore", algorithm 1), after the
    features have been whitened.

    Args:
        features: `[N, h, w, F]` of normal pictures.
    """

    def __init__(self, features: np.ndarray, seed: int = 0) -> None:
        rows = features.reshape(-1, features.shape[-1])
        some = rows[np.random.default_rng(seed).permutation(len(rows))[:CANDIDATES]]
        self._whiten = np.linalg.cholesky(LocalGaussian.fit(some[:, None, None], False).precision[0, 0])
        some = some @ self._whiten
        nearest, chosen = ((some - some.mean(0)) ** 2).sum(1), []
        for _ in range(min(CENTRES, len(some))):
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, ((some - some[chosen[-1]]) ** 2).sum(1))
        self._centres = some[chosen]

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Compute the distance of features `[B, h, w, F]` to the nearest normal ones, `[B, h, w]`."""
        return nearest_distance(features.reshape(-1, features.shape[-1]) @ self._whiten, self._centres).reshape(
            features.shape[:3]
        )


BLOCK = 4096


def nearest_distance(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the Euclidean distance of each row `[N, D]` to the nearest of the others `[M, D]`, `[N]`."""
    norms, found = (others**2).sum(1), []
    for first in range(0, len(rows), BLOCK):
        some = rows[first : first + BLOCK]
        found.append(np.maximum((some**2).sum(1) + (norms - 2 * (some @ others.T)).min(1), 0))
    return np.sqrt(np.concatenate(found))
