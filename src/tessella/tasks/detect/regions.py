"""Known anomalous regions: masks of pictures, and how well maps of scores agree with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from scipy.ndimage import binary_dilation, label

from tessella.core.batches import Batch
from tessella.core.schema import Schema
from tessella.data.folders.layout import example_files
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.notes import note
from tessella.kinds.base import Kind, kind_of
from tessella.tasks.detect.local_scores import LocalScorer
from tessella.tasks.detect.prepared import Prepared
from tessella.tasks.detect.ranking import auroc

SUFFIXES = ("", "_mask", "-mask", "_gt")
"""What the name of a mask file may have after the name of its picture."""
PRO_LIMIT, THRESHOLDS = 0.3, 200
"""Largest share of normal positions above the threshold in the PRO, and number of thresholds (Bergmann et al. 2020)."""


@final
@dataclass(frozen=True)
class RegionFigures:
    """How well maps of scores agree with masks.

    Attributes:
        pixel_auroc: probability that an anomalous pixel scores above a normal one, over all pictures.
        pro: mean share of each anomalous region that is found, averaged over shares up to 0.3 of normal pixels.
        regions, pictures: number of regions, and of pictures with one.
    """

    pixel_auroc: float
    pro: float
    regions: int
    pictures: int


def read_masks(place: str, names: Sequence[str], schema: Schema) -> np.ndarray:
    """Read a mask for each anomalous picture, `[N, H, W]` bool.

    Args:
        place: a folder of pictures that are named like those that they belong to, or a file with an array `[N, H, W]`
            in the order of the pictures; what is not 0 is anomalous (in a folder: above half of the largest value).
        names: names of the pictures.

    Raises:
        DataError: if a mask is missing or has another size, or all are empty.
    """
    masks = _of_folder(place, names, schema) if Path(place).is_dir() else _of_file(place, len(names), schema)
    empty = int((~masks.any((1, 2))).sum())
    if empty == len(masks):
        raise DataError(f"all {empty} masks in {place} are empty: what is anomalous must not be 0", code="empty-masks")
    if empty:
        note(f"{empty} of {len(masks)} masks are empty: these pictures have no known anomalous region")
    return masks


def _of_folder(place: str, names: Sequence[str], schema: Schema) -> np.ndarray:
    files = {Path(name).stem.lower(): str(Path(place, name)) for name in example_files(place)[0]}
    found, missing = [], []
    for name in names:
        stem = Path(name).stem.lower()
        own = next((files[stem + suffix] for suffix in SUFFIXES if stem + suffix in files), None)
        (missing if own is None else found).append(name if own is None else own)
    if missing:
        raise DataError(
            f"{place} has no mask for {len(missing)} of {len(names)} anomalous pictures, such as {missing[0]}: name "
            f"each mask like its picture (endings may differ; {', '.join(SUFFIXES[1:])} may follow)",
            code="no-mask",
        )
    kind = kind_of(Schema.of((1, *schema.spatial), "uint8"))
    for name, path in zip(names, found, strict=True):
        _check_size(name, path, kind)
    masks = np.stack([kind.read(path, spatial=schema.spatial)[0].numpy() for path in found])
    return masks > masks.max() / 2


def _check_size(name: str, mask: str, kind: Kind) -> None:
    """Check that a mask can be laid over its picture: it has its size, or is a reduction of it."""
    if kind.files is None or not Path(name).is_file():
        return
    picture, own = kind.files.header(name), kind.files.header(mask)
    if picture.trouble or own.trouble:
        return
    scales = [side / of for side, of in zip(own.spatial, picture.spatial, strict=True)]
    if max(scales) - min(scales) > 1 / min(picture.spatial):
        sizes = ["x".join(map(str, spatial)) for spatial in (own.spatial, picture.spatial)]
        raise DataError(
            f"the mask {mask} is {sizes[0]}, but its picture is {sizes[1]}: give masks in the pictures' size",
            code="other-masks",
        )


def _of_file(place: str, count: int, schema: Schema) -> np.ndarray:
    try:
        opened = np.load(place, allow_pickle=False)
        arrays = [opened] if isinstance(opened, np.ndarray) else [opened[name] for name in opened.files]
    except (OSError, ValueError) as error:
        raise DataError(f"{place} is no folder of masks and no file of arrays: {error}", code="no-masks") from error
    masks = next((np.squeeze(a) if a.ndim > 3 else a for a in arrays if a.ndim >= 3), None)
    expected = (count, *schema.spatial)
    if masks is None or masks.shape != expected:
        got = "none" if masks is None else "x".join(map(str, masks.shape))
        raise DataError(
            f"{place} must hold masks {'x'.join(map(str, expected))}, one for each anomalous picture in the size that "
            f"the model sees, got {got}: give such an array, or a folder of pictures with {option('masks')}",
            code="other-masks",
        )
    return masks != 0


def region_figures(maps: np.ndarray, masks: np.ndarray) -> RegionFigures:
    """Compare maps `[N, H, W]` with masks of all pictures, normal ones included.

    Raises:
        DataError: if nothing is anomalous, or everything.
    """
    normal, anomalous = maps[~masks], maps[masks]
    if not len(normal) or not len(anomalous):
        raise DataError("the masks mark all pixels or none, so maps cannot be judged", code="one-kind-alone")
    numbered, count, owners = np.zeros(masks.shape, np.int64), 0, 0
    for i, mask in enumerate(masks):
        parts, several = label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        numbered[i] = np.where(parts > 0, parts + count, 0)
        count, owners = count + several, owners + (several > 0)
    shares = np.linspace(0, PRO_LIMIT, THRESHOLDS + 1)[1:]
    limits = np.quantile(normal, 1 - shares)
    sizes = np.bincount(numbered[masks])[1:]
    found = [np.bincount(numbered[masks & (maps > limit)], minlength=count + 1)[1:] / sizes for limit in limits]
    return RegionFigures(auroc(normal, anomalous)[0], float(np.mean(found)), count, owners)


def contour(mask: np.ndarray) -> np.ndarray:
    """Mark the positions just outside a mask `[H, W]`."""
    return binary_dilation(mask) & ~mask


@final
@dataclass(frozen=True)
class RegionResult:
    """Anomalous regions of N examples.

    Attributes:
        source: local score whose map is thresholded.
        threshold: a map of a normal picture exceeds it anywhere with probability at most the stated rate; None without
            calibration.
        masks: predicted masks `[H, W]` of flagged examples by row.
        known: known masks by row.
        figures: agreement of the maps with the known masks.
    """

    source: str
    threshold: float | None
    masks: Mapping[int, np.ndarray]
    known: Mapping[int, np.ndarray]
    figures: RegionFigures | None

    def to_json(self) -> dict[str, Any]:
        """Return source, threshold and figures."""
        figures = None if self.figures is None else asdict(self.figures)
        return {"source": self.source, "threshold": self.threshold, "masks": len(self.masks), "figures": figures}


@final
class Regions:
    """Collects the maps and predicted masks of examples while they are scored.

    Args:
        local: computes the maps.
        source: local score whose map is used.
        threshold: of the map; None predicts no masks.
        masks: place of the known masks; None if there are none.
    """

    def __init__(self, local: LocalScorer, source: str, threshold: float | None, masks: str | None) -> None:
        self._local, self.source, self.threshold, self._place = local, source, threshold, masks
        self._predicted: dict[int, np.ndarray] = {}
        self._maps: list[np.ndarray] = []

    @classmethod
    def of(cls, ready: Prepared, masks: str | None) -> Regions | None:
        """Make the collector of a detector; None if it has no local scores.

        Raises:
            SpecError: if there are masks, and no local scores to compare with them.
        """
        local, by = ready.detector.local, ready.by.partition(" + ")[0]
        if local is None:
            if masks is not None:
                raise SpecError(
                    f"{option('masks')} needs local scores, which this data or the given {option('scores')} do not "
                    "have",
                    code="no-local-scores",
                )
            return None
        source = by.rpartition("-")[0] if by in ready.detector.local_maps else "local"
        limits = {} if ready.calibration is None else ready.calibration.thresholds
        return cls(local, source, limits.get(f"{source}-max"), masks)

    def maps(self, batch: Batch) -> np.ndarray:
        """Compute the maps of examples, `[B, H, W]`."""
        return self._local.full_maps(batch, self.source)

    def add(self, first: int, batch: Batch, flagged: np.ndarray | None) -> None:
        """Add examples from row `first` on, of which some are flagged."""
        if self._place is not None:
            maps = self.maps(batch)
            self._maps.append(maps)
        elif flagged is not None and flagged.any() and self.threshold is not None:
            maps = self.maps(batch[torch.from_numpy(np.flatnonzero(flagged))])
        else:
            return
        if self.threshold is not None and flagged is not None:
            rows = np.flatnonzero(flagged)
            of_flagged = maps[flagged] if self._place is not None else maps
            self._predicted |= {first + int(i): m > self.threshold for i, m in zip(rows, of_flagged, strict=True)}

    def finished(self, names: Sequence[str], anomalous: Sequence[bool | None]) -> RegionResult:
        """Compare the maps with the known masks, if there are any.

        Raises:
            DataError: if the masks do not fit the examples.
        """
        if self._place is None:
            return RegionResult(self.source, self.threshold, self._predicted, {}, None)
        named = any(anomalous)
        rows = [i for i, a in enumerate(anomalous) if a or not named]
        masks = read_masks(self._place, [names[i] for i in rows], self._local.model.schema)
        maps = np.concatenate(self._maps)
        everywhere = np.zeros(maps.shape, bool)
        everywhere[rows] = masks
        known = {row: mask for row, mask in zip(rows, masks, strict=True) if mask.any()}
        figures = region_figures(maps, everywhere)
        return RegionResult(self.source, self.threshold, self._predicted, known, figures)
