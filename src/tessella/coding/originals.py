"""Judges which picture files a model represents exactly; the others are stored unchanged."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image, ImageOps

from tessella.coding.container import MODES
from tessella.core.schema import Binary, Schema
from tessella.kinds.base import kind_of
from tessella.kinds.image_files import opened_picture
from tessella.kinds.pictures import picture

COMPARED = 1 << 24
"""Largest picture, in pixels, that is compared value by value; larger ones are compared by mode and depth."""
ORIENTATION = 0x0112


@final
@dataclass(frozen=True)
class _Checked:
    """Mode, height and width of a picture file, why the model cannot represent it (or ""), and what is not restored."""

    mode: str
    size: tuple[int, int]
    trouble: str
    lost: tuple[str, ...]


@final
class Originals:
    """Judges picture files before they are coded, and records the mode in which each is restored.

    Args:
        schema: schema of the model.
        lossy: whether only codes are stored; then nothing is exact, and no file is stored unchanged.
        native_size: whether pictures keep their sizes.

    Attributes:
        files: files stored unchanged: name with ending, and path.
        modes: mode of each coded picture, by name.
        seen, fitted: number of files checked, and number of those cropped and resized to the model's size.
        size: the model's size.
    """

    def __init__(self, schema: Schema, *, lossy: bool, native_size: bool) -> None:
        self._schema, self._lossy, self._native_size = schema, lossy, native_size
        self.files: list[tuple[str, str]] = []
        self.modes: dict[str, str] = {}
        self._troubles: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self.fitted = self.seen = 0
        self.size = schema.shape[1:]

    def keeps(self, name: str, file: str) -> bool:
        """Judge a file and return whether it is stored unchanged instead of being coded."""
        try:
            checked = self._check(file)
        except Exception:  # decoders of broken files raise nearly anything; reading the file explains it
            return False
        self.seen += 1
        self._troubles[checked.trouble] += bool(checked.trouble)
        if checked.trouble and not self._lossy:
            self.files.append((name + os.path.splitext(file)[1], file))
            return True
        self._lost.update(checked.lost)
        if not self._native_size and checked.size != self.size:
            self.fitted += 1
        elif not checked.trouble:
            self.modes[name] = checked.mode
        return False

    @property
    def notes(self) -> list[str]:
        """List what is not restored, or not by the model, one line each."""
        found, troubles = [], _counted(self._troubles)
        size = "x".join(map(str, self.size))
        if self.fitted:
            found.append(f"pictures of other sizes ({self.fitted:,}) are fitted to {size} pixels")
        if self.files:
            found.append(
                f"{len(self.files):,} of {self.seen:,} pictures, which the model cannot represent exactly, are stored "
                f"as unchanged files: {troubles}"
            )
        elif troubles:
            found.append(f"pictures are changed before they are coded: {troubles}")
        if self._lost:
            found.append(f"not restored from the files: {_counted(self._lost)}")
        return found

    def _check(self, file: str) -> _Checked:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with opened_picture(file) as image:
                deep, lost = _deep(image, file), []  # before the file is decoded, which discards its depth
                orientation = image.getexif().get(ORIENTATION, 1)
                if orientation not in (0, 1):
                    lost.append("turned upright by EXIF")
                if image.info.get("icc_profile"):
                    lost.append("colour profiles")
                mode, trouble = _mode(image), ""
                if image.mode in ("P", "PA"):
                    lost.append("palettes")
                if getattr(image, "n_frames", 1) > 1:
                    trouble = "of several frames"
                elif deep:
                    trouble = "of another depth than 8 bits"
                elif mode not in MODES:
                    trouble = f"of the kind {mode}"
                large = image.width * image.height > COMPARED
                lying = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # Pillow turns these itself
                size = (image.width, image.height) if lying else (image.height, image.width)
                if trouble or large:
                    return _Checked(mode, size, trouble or self._by_kind(mode), tuple(lost))
                upright = ImageOps.exif_transpose(image).convert(mode)
        size = (upright.height, upright.width)
        x = kind_of(self._schema).read(file, spatial=size)
        same = np.array_equal(np.asarray(upright), np.asarray(picture(x, self._schema, mode)))
        return _Checked(mode, size, "" if same else self._why(upright), tuple(lost))

    def _by_kind(self, mode: str) -> str:
        """Judge by mode alone why the model may not represent a picture."""
        channels = self._schema.shape[0]
        if self._schema.values == Binary():
            return "" if mode == "1" else "of more than two values"
        if mode in ("LA", "RGBA") and channels in (1, 3):
            return "with alpha"
        return "in colour" if mode.startswith("RGB") and channels < 3 else ""

    def _why(self, upright: Image.Image) -> str:
        """Return why the model would change a picture."""
        if upright.mode in ("LA", "RGBA") and self._schema.shape[0] in (1, 3):
            low, _ = upright.getchannel("A").getextrema()
            if low != 255:
                return "with alpha"
        return self._by_kind(upright.mode) or "with values that the model changes"


def _mode(image: Image.Image) -> str:
    """Return the mode that holds all of a picture, with its palette resolved."""
    clear = "transparency" in image.info or image.mode == "PA"
    if image.mode in ("P", "PA"):
        return "RGBA" if clear else "RGB"
    return {"1": "LA", "L": "LA", "RGB": "RGBA"}.get(image.mode, image.mode) if clear else image.mode


def _deep(image: Image.Image, file: str) -> bool:
    """Check whether a file holds another depth than the 8 bits per value that Pillow returns."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "AVIF":
        with open(file, "rb") as opened:
            start = opened.read(1 << 16)
        at = start.find(b"av1C")
        return 0 <= at < len(start) - 6 and bool(start[at + 6] & 0x40)
    for codec, _, _, args in getattr(image, "tile", ()) if image.format in ("PNG", "TIFF", "PPM") else ():
        raw = args if isinstance(args, str) else args[0] if args else ""
        if codec.startswith("ppm") and isinstance(args, tuple) and args[-1] != 255 and image.mode != "1":
            return True
        if re.search(r";(1[0-9]|[2-9][0-9])", str(raw)):
            return True
    return False


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common() if count)
