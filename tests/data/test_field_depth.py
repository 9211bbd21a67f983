"""Pictures that lie on their side, of 16 and 32 bits, of floats, and larger than memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expect import raises
from tessella.core.schema import Schema
from tessella.data import open_data
from tessella.kinds.base import kind_of
from tessella.kinds.image_files import MOST_PIXELS, ImageFiles

RAMP = np.arange(256).reshape(16, 16)


def read(data) -> np.ndarray:
    """All pictures in the order of their names."""
    split = data.all_examples
    return split.batch(np.arange(len(split))).x.numpy()


def saved(folder: Path, *pictures: np.ndarray, ending: str = "tif") -> str:
    for i, x in enumerate(pictures):
        Image.fromarray(x).save(folder / f"{i}.{ending}")
    return str(folder)


def promise(path: Path, width: int, height: int) -> Path:
    """A PNG whose header promises that size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("ending", ["tif", "png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_put_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    x = np.zeros((16, 32, 3), np.uint8)
    x[:8, :16], x[8:, :16], x[:8, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    back = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]  # the transposition that the tag undoes
    flat = Image.fromarray(x) if back is None else Image.fromarray(x).transpose(Image.Transpose(back))
    tag = Image.Exif()
    tag[0x0112] = orientation
    flat.save(tmp_path / f"0.{ending}", exif=tag, **({"lossless": True} if ending == "webp" else {}))
    assert ImageFiles().header(str(tmp_path / f"0.{ending}")).spatial == (16, 32)
    seen = read(open_data(str(tmp_path)))[0]
    assert np.abs(np.moveaxis(seen, 0, -1).astype(int) - x)[2:-2, 2:-2].mean() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_pictures_that_pillow_would_map_into_memory_are_put_upright(tmp_path: Path, orientation: int) -> None:
    stored = np.arange(54, dtype=np.uint8).reshape(6, 9)
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "0.tif", exif=tag)
    turned = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1]]
    turned += [stored.T, np.rot90(stored, -1), stored[::-1, ::-1].T, np.rot90(stored)]
    assert np.array_equal(read(open_data(str(tmp_path)))[0, 0], turned[orientation - 1])


@pytest.mark.parametrize(
    ("dtype", "times", "plus", "expected"),
    [
        (np.int32, 1, 0, RAMP),  # 8 bits in 32
        (np.uint16, 1, 0, RAMP),  # 8 bits in 16
        (np.uint16, 16, 15, RAMP),  # 12 bits in 16
        (np.uint16, 257, 0, RAMP),
        (np.int32, 100_000, 0, RAMP),
        (np.int32, 100, -12_750, RAMP),
        (np.float32, 0.001, 0, RAMP),
        (np.float32, -4, 7, 255 - RAMP),
    ],
)
def test_deep_pictures_keep_what_they_show(tmp_path: Path, dtype, times, plus, expected) -> None:
    data = open_data(saved(tmp_path, (RAMP * times + plus).astype(dtype)))
    assert np.array_equal(read(data)[0, 0], expected)
    assert data.schema.shape == (1, 16, 16)
    assert any(n.startswith("1 pictures of ") and ("scaled" in n or "kept" in n or "cut" in n) for n in data.notes)


def test_one_rule_holds_for_a_data_set_and_for_a_file_of_it_alone(tmp_path: Path) -> None:
    dark, light = (RAMP * 4).astype(np.uint16), (RAMP * 16).astype(np.uint16)
    data = open_data(saved(tmp_path, dark, light))
    assert data.schema.depth == (0, 4095)
    assert np.array_equal(read(data)[:, 0], [RAMP // 4, RAMP])
    schema = Schema.from_json(data.schema.to_json())
    alone = kind_of(schema).read(str(tmp_path / "0.tif")).numpy()
    assert np.array_equal(alone[0], RAMP // 4)
    (tmp_path / "1.tif").unlink()
    assert np.array_equal(read(open_data(str(tmp_path), like=data.schema))[0, 0], RAMP // 4)
    with pytest.warns(UserWarning, match="one picture with.*12 bits"):
        ImageFiles().read(str(tmp_path / "0.tif"), Schema.of((1, 16, 16), "uint8"))


def test_what_is_not_finite_is_said_and_black(tmp_path: Path) -> None:
    x = RAMP.astype(np.float32)
    x[0, 5], x[0, 6] = np.nan, np.inf
    data = open_data(saved(tmp_path, x, np.full((16, 16), np.nan, np.float32)))
    y = read(data)[0, 0]
    assert (y[0, 5], y[0, 6]) == (0, 255)
    assert np.array_equal(y[1:], RAMP[1:])
    said = "\n".join(data.notes)
    assert "NaN or infinite" in said
    assert "1.tif (it holds no finite number)" in said


def test_unsigned_32_bits_are_unsigned(tmp_path: Path) -> None:
    x = (RAMP * 16_843_009).astype(np.uint32)  # up to 2^32 - 1
    head = struct.pack("<2sHIH", b"II", 42, 8, 10)
    tags = [(256, 16), (257, 16), (258, 32), (259, 1), (262, 1), (273, 200), (277, 1), (278, 16), (279, 1024), (339, 1)]
    body = head + b"".join(struct.pack("<HHII", tag, 4 if tag > 272 else 3, 1, v) for tag, v in tags) + bytes(4)
    (tmp_path / "0.tif").write_bytes(body.ljust(200, b"\0") + x.tobytes())
    assert np.array_equal(read(open_data(str(tmp_path)))[0, 0], RAMP)


def test_portable_float_maps_are_read(tmp_path: Path) -> None:
    (tmp_path / "0.pfm").write_bytes(b"Pf\n16 16\n-1.0\n" + RAMP[::-1].astype("<f4").tobytes())
    assert np.array_equal(read(open_data(str(tmp_path)))[0, 0], RAMP)


def test_colour_of_16_bits_is_said_to_be_cut(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + np.repeat(r * 257, 3).astype(">u2").tobytes() for r in RAMP)
    path = promise(tmp_path / "0.png", 16, 16)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    data = open_data(str(tmp_path))
    assert np.array_equal(read(data)[0], np.stack([RAMP] * 3))
    assert "1 colour pictures of 16 bits per channel were reduced to the upper 8" in data.notes[0]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "I;16B", "RGBA"])
def test_every_other_mode_is_read(tmp_path: Path, mode: str) -> None:
    if mode == "I;16B":
        picture = Image.frombytes("I;16B", (16, 16), (RAMP * 257).astype(">u2").tobytes())
    else:
        picture = Image.fromarray(RAMP.astype(np.uint8)).convert(mode)
    name = tmp_path / ("0.tif" if mode in ("CMYK", "I;16B") else "0.png")
    picture.save(name, **({"transparency": 0} if mode == "P" else {}))
    y = read(open_data(str(tmp_path)))[0]
    assert len(y) == {"1": 1, "P": 4, "LA": 2, "CMYK": 3, "I;16B": 1, "RGBA": 4}[mode]
    if mode != "1":
        assert np.abs(y[0].astype(int) - RAMP).max() <= (0 if mode != "CMYK" else 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(13_300, 13_300), (30_000, 30_000), (1 << 30, 1 << 30), (1, MOST_PIXELS + 1)]
)
def test_a_picture_that_promises_too_much_is_not_opened(draw, tmp_path: Path, width: int, height: int) -> None:
    draw("good.png")
    bomb = str(promise(tmp_path / "bomb.png", width, height))
    data = open_data(str(tmp_path))
    assert data.notes[0].startswith("1 of 2 pictures could not be read and were skipped: bomb.png (")
    assert "at most 67 million can be read: resize it" in data.notes[0]
    schema = Schema.of((3, 8, 8), "uint8")
    with raises("unreadable"):
        kind_of(schema).read(bomb, spatial=(height, width))
