"""Reader of image files of any size and mode: upright, at one size, in one mode and with 8 bits."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tessella.core.schema import UINT8, Binary, Schema
from tessella.foundation.errors import option
from tessella.foundation.notes import note
from tessella.foundation.text import one_line
from tessella.kinds.base import File, FileHeader, FileReader, ReadOptions
from tessella.kinds.pictures import MODES

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), ("PPM",)),
    **dict.fromkeys((".png", ".apng"), ("PNG",)),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    ".webp": ("WEBP",),
    ".tga": ("TGA",),
    ".avif": ("AVIF",),
}
"""File endings of images and the formats that they may hold; no other decoder is ever run."""

DEFAULT_SIZE, LARGEST_UNASKED = (64, 64), 256
"""(height, width) of pictures whose size is not asked for, unless all have one size of at most `LARGEST_UNASKED`."""
MEASURED = 2_000
"""Most deep images that are decoded to measure their range."""
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of "deep" images: grey, with 16-bit or 32-bit whole numbers or floats."""
BITS = {255.0: 8, 4095.0: 12, 65535.0: 16}
"""Bit depth assumed for unsigned whole numbers, by their largest possible value."""
MOST_PIXELS = 1 << 26
"""Larger images are not opened: decoding takes 4 bytes per pixel, and as many for a copy."""
LARGE = 1 << 22
"""Images with more pixels are decoded one at a time, so that threads do not multiply the memory."""
STRIP = 1 << 20
_SAMPLE_FORMAT, _UNSIGNED = 339, 1

Depth = tuple[float, float]
"""The two values of 16-bit, 32-bit and float images that become 0 and 255."""

_one_large = Lock()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MOST_PIXELS is lower than its limit


@dataclass(frozen=True)
class DepthRange:
    """Range and type of the values of a deep image.

    Attributes:
        low, high: smallest and largest finite value.
        floats: whether the values are floats.
        wide: whether the values have 32 bits.
        odd: whether some values are not finite.
    """

    low: float
    high: float
    floats: bool
    wide: bool
    odd: bool


@final
class ImageFiles(FileReader):
    """Reader of image files."""

    endings = tuple(FORMATS)
    example, examples = "picture", "pictures"

    def header(self, file: File) -> FileHeader:
        try:
            with opened_picture(file) as image:
                deep, cut = image.mode in DEEP, _is_cut(image)
                with _alone(image):  # the whole file of a PNG is read for its Exif data
                    return FileHeader(_upright_size(image), _native(image), deep, cut)
        except Exception as error:  # decoders of broken files raise nearly anything
            return FileHeader(trouble=self.trouble(error))

    def schema(
        self, files: Sequence[tuple[Callable[[], File], FileHeader]], options: ReadOptions, notes: list[str]
    ) -> Schema:
        headers = [header for _, header in files]
        size = options.size or _agreed_size(headers, notes)
        channels = options.channels or _agreed_channels(headers, notes)
        if cut := sum(header.cut for header in headers):
            notes.append(f"{cut} colour pictures of 16 bits per channel were reduced to the upper 8 bits")
        depth, deep = options.like and options.like.depth, [file for file, header in files if header.deep]
        if deep:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                ranges = [r for r in threads.map(lambda file: _depth_range(file()), deep[:MEASURED]) if r is not None]
            depth = _agreed_depth(ranges, len(deep), depth, notes)
        return replace(Schema.of((channels, *size), UINT8), depth=depth)

    def holds(self, schema: Schema) -> bool:
        return schema.values in (Binary(), UINT8)

    def read(self, file: File, schema: Schema, part: int = 0) -> Tensor:
        """Decode an image: upright, cropped at the centre and resized.

        Removed alpha is blended with white. Binary values are 1 where the byte is above 127. An image with more than 8
        bits is converted by the `depth` of the schema, or else by the range of its own values, with a note.
        """
        height, width = schema.spatial
        with opened_picture(file) as image:
            box = centre_box((image.size[1], image.size[0]), (height, width))
            if min(box[2] / height, box[3] / width) > 4:
                image.draft(None, (image.size[0] * 2 * height // box[2], image.size[1] * 2 * height // box[2]))
            with _alone(image):
                x = torch.from_numpy(_fitted(image, (height, width), schema.channels, schema.depth))
        return (x > 127).to(torch.uint8) if schema.values == Binary() else x

    def trouble(self, error: Exception) -> str:
        known = {Image.UnidentifiedImageError: "not a picture", PermissionError: "no permission"}
        known |= {FileNotFoundError: "no such file"}
        return next((words for kind, words in known.items() if isinstance(error, kind)), None) or one_line(error, 90)


def centre_box(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """Find the largest centred box with the aspect ratio of `want` within `have`.

    Returns:
        Top, left, height and width of the box.
    """
    height = min(have[0], max(1, round(have[1] * want[0] / want[1])))
    width = min(have[1], max(1, round(have[0] * want[1] / want[0])))
    return (have[0] - height) // 2, (have[1] - width) // 2, height, width


@contextmanager
def opened_picture(file: File) -> Iterator[Image.Image]:
    """Open an image and read its header.

    The file is opened as a stream: given a name, Pillow maps the file into memory with the size of the upright image,
    which garbles rotated uncompressed TIFFs.

    Raises:
        ValueError: if the image has too many pixels.
        OSError: if the file is not an image, or not a regular file.
    """
    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    with open(file, "rb") if isinstance(file, str) else io.BytesIO(file) as stream:
        try:
            image = Image.open(stream, formats=picture_formats())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = re.search("[0-9]+", str(error))
            raise _too_large(int(pixels[0]) if pixels else MOST_PIXELS) from None
        with image:
            if math.prod(image.size) > MOST_PIXELS:
                raise _too_large(math.prod(image.size), " ({} x {})".format(*image.size))
            yield image


@cache
def picture_formats() -> list[str]:
    """Return the names of Pillow's decoders for the supported formats."""
    Image.init()
    return sorted({name for names in FORMATS.values() for name in names if name in Image.OPEN})


def _too_large(pixels: int, of: str = "") -> ValueError:
    most = MOST_PIXELS // 10**6
    return ValueError(f"{pixels / 1e6:,.0f} million pixels{of}, at most {most} million can be read: resize it")


def _alone(image: Image.Image) -> Lock | nullcontext[None]:
    """Return the lock for decoding an image; it makes large images wait for each other."""
    return _one_large if math.prod(image.size) > LARGE else nullcontext()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the upright image."""
    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow return the upright size, others the stored size
        width, height = image.tag_v2[256], image.tag_v2[257]  # pyright: ignore[reportAttributeAccessIssue]
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # rotated by 90 degrees
        width, height = height, width
    return height, width


def _native(image: Image.Image) -> int:
    """Return the number of channels that hold all of the image's content."""
    clear = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    return (1 if image.mode in ("1", "L", "LA", "La", *DEEP) else 3) + clear


def _is_cut(image: Image.Image) -> bool:
    """Return whether the image has more than 8 bits per channel, of which the decoder keeps 8."""
    tiles = getattr(image, "tile", ())
    return image.mode not in DEEP and any(";16" in str(tile[3]) or ";12" in str(tile[3]) for tile in tiles)


def _fitted(image: Image.Image, size: tuple[int, int], channels: int, depth: Depth | None) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in DEEP:
        values = _stored_values(image)
        if depth is None:
            depth = _depth_rule([_range_of(values)])
            note(f"the values of one picture with more than 8 bits {_depth_words(depth)}")
        image = Image.fromarray(_to_bytes(values, depth))
    picture = _as_mode(image, MODES[_native(image)])
    if picture.mode in ("LA", "RGBA") and channels in (1, 3):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = _as_mode(picture, MODES[channels])
    top, left, height, width = centre_box((picture.size[1], picture.size[0]), size)
    if picture.size != (size[1], size[0]):
        box = (left, top, left + width, top + height)
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.moveaxis(np.array(picture).reshape(*size, channels), -1, 0)


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


# one size, mode and depth for all images of a data set


def _agreed_size(headers: Sequence[FileHeader], notes: list[str]) -> tuple[int, int]:
    sizes = Counter(header.spatial for header in headers)
    (height, width), *others = sizes
    if not others and max(height, width) <= LARGEST_UNASKED:
        return height, width
    what = f"of {len(sizes)} sizes" if others else f"of {width}x{height}"
    height, width = DEFAULT_SIZE
    notes.append(f"pictures {what} are resized to {width}x{height}; change this with {option('size')}")
    return DEFAULT_SIZE


def _agreed_channels(headers: Sequence[FileHeader], notes: list[str]) -> int:
    found = Counter(header.channels for header in headers)
    colour, alpha = any(c >= 3 for c in found), any(c in (2, 4) for c in found)
    richest = (3 if colour else 1) + alpha
    if len(found) > 1:
        held = ", ".join(f"{found[c]} {MODES[c]}" for c in sorted(found))
        notes.append(f"pictures of different modes ({held}) are converted to {MODES[richest]}")
    return richest


def _agreed_depth(ranges: list[DepthRange], count: int, depth: Depth | None, notes: list[str]) -> Depth | None:
    """Choose and note the rule that converts all deep images of a data set to bytes."""
    if not ranges:
        return depth
    depth = depth or _depth_rule(ranges)
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    bits = "floats" if any(r.floats for r in ranges) else "32 bits" if any(r.wide for r in ranges) else "16 bits"
    of = f"{count} pictures of {bits}"
    if low < depth[0] or high > depth[1]:
        notes.append(f"{of} hold values from {low:.6g} to {high:.6g}: clipped to {depth[0]:.6g} ... {depth[1]:.6g}")
    notes.append(
        f"{of} {_depth_words(depth)}" + ("" if len(ranges) == count else f"; measured on {len(ranges)} of them")
    )
    if odd := sum(r.odd for r in ranges):
        notes.append(f"{odd} of these hold values that are NaN or infinite: NaN became 0")
    return depth


def _depth_range(file: File) -> DepthRange | None:
    """Measure the range of a deep image; None if it cannot be read, which its decoding will report."""
    try:
        with opened_picture(file) as image:
            return _range_of(_stored_values(image))
    except Exception:
        return None


# more than 8 bits: one rule converts all images of a data set to bytes


def _depth_rule(ranges: list[DepthRange]) -> Depth:
    """Choose the values that become 0 and 255: the range of unsigned 8, 12 or 16 bits, or the range of the values."""
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    if low >= 0 and not any(r.floats for r in ranges):
        for top in BITS:
            if high <= top:
                return 0.0, top
    return low, high


def _depth_words(depth: Depth) -> str:
    """Describe the conversion to bytes, for notes."""
    bits = BITS.get(depth[1]) if depth[0] == 0 else None
    if bits == 8:
        return "hold whole numbers up to 255, which are kept as they are"
    if bits is not None:
        return f"hold whole numbers of {bits} bits, up to {int(depth[1])}, and were cut to their upper 8 bits"
    return f"were scaled by the range of their values: {depth[0]:.6g} became 0 and {depth[1]:.6g} became 255"


def _stored_values(image: Image.Image) -> np.ndarray:
    """Return the stored values `[H, W]` of a deep image."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", None)
    if image.mode == "I" and tags is not None and values.dtype.itemsize == 4 and int(values.min()) < 0:
        kind = tags.get(_SAMPLE_FORMAT, _UNSIGNED)
        if (kind[0] if isinstance(kind, tuple) else kind) == _UNSIGNED:
            return values.view(np.uint32)  # Pillow has no unsigned mode and reads them as signed
    return values


def _range_of(values: np.ndarray) -> DepthRange:
    """Measure the range of an image's values; ValueError if no value is finite."""
    floats = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if floats else values
    if finite.size == 0:
        raise ValueError("it holds no finite number")
    odd = finite.size < values.size
    return DepthRange(float(finite.min()), float(finite.max()), floats, values.dtype.itemsize == 4, odd)


def _to_bytes(values: np.ndarray, depth: Depth) -> np.ndarray:
    """Convert values `[H, W]` to uint8: keep the upper 8 of 8, 12 or 16 bits, scale other ranges; NaN becomes 0."""
    low, high = depth
    if values.dtype.kind == "f" and not np.isfinite(values).any():
        raise ValueError("it holds no finite number")
    bits = BITS.get(high) if low == 0 and values.dtype.kind != "f" else None
    done = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        strip = values[start : start + rows]
        if bits is not None:
            done[start : start + rows] = np.clip(strip.astype(np.int64), 0, int(high)) >> (bits - 8)
        else:
            scaled = (strip.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
            done[start : start + rows] = np.round(np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255, neginf=0), 0, 255))
    return done
