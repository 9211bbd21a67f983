"""Laws of pictures: stored values shown as they are, files whole or not at all."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from expect import raises
from tessella.core.schema import Real, Schema
from tessella.kinds.base import kind_of
from tessella.kinds.pictures import GAP_SHADE, image_grid, save
from tessella.pages.html import png_data_uri


def rendered(x: torch.Tensor, schema: Schema) -> np.ndarray:
    return kind_of(schema).render(x)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bytes_are_shown_as_they_are(channels: int) -> None:
    x = torch.randint(0, 256, (3, channels, 5, 4), dtype=torch.uint8)
    shown = rendered(x, Schema.of((channels, 5, 4), "uint8"))
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, x.permute(0, 2, 3, 1).numpy())


def test_binary_values_are_black_and_white() -> None:
    x = torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert rendered(x, Schema.of((1, 1, 2), "binary")).ravel().tolist() == [0, 255]


def test_real_values_are_mapped_from_their_range_and_clipped() -> None:
    x = torch.tensor([-9.0, -1.0, 1.0, 3.0, 99.0, float("nan")]).reshape(1, 1, 1, 6)
    assert rendered(x, Schema.of((1, 1, 6), Real(-1, 3))).ravel().tolist() == [0, 0, 128, 255, 255, 0]


def test_a_constant_range_is_no_division_by_zero() -> None:
    assert (rendered(torch.full((1, 1, 2, 2), 5.0), Schema.of((1, 2, 2), Real(5, 5))) == 0).all()


@pytest.mark.parametrize("features", [1, 2, 31, 32, 33, 95, 96, 97, 500])
def test_vectors_are_plotted_higher_for_more(features: int) -> None:
    x = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, features)
    ink = rendered(x, Schema.of((features,), Real(0, 1)))[..., 0] < 128
    assert ink.any(1).all()
    top = ink.argmax(1)
    assert (np.diff(top, axis=0) < 0).all()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (3, 1, 3)])
def test_a_grid_holds_every_picture_once(count: int, columns: int, rows: int) -> None:
    x = torch.randint(0, 190, (count, 3, 6, 5), dtype=torch.uint8)
    sheet = np.asarray(image_grid(x, Schema.of((3, 6, 5), "uint8"), columns, gap=2, scale=2))
    assert sheet.shape == (rows * 14 - 2, min(columns, count) * 12 - 2, 3)
    for i in range(count):
        top, left = i // columns * 14, i % columns * 12
        assert np.array_equal(sheet[top : top + 12 : 2, left : left + 10 : 2], x[i].permute(1, 2, 0).numpy())
    if columns > 1 and count > 1:
        assert (sheet[:, 10:12] == GAP_SHADE).all()


@pytest.mark.parametrize(("side", "least"), [(1, 64), (8, 64), (28, 64), (64, 64), (300, 300)])
def test_small_pictures_are_made_viewable(side: int, least: int) -> None:
    image = image_grid(torch.zeros(1, 1, side, side, dtype=torch.uint8), Schema.of((1, side, side), "uint8"), 1)
    assert image.size[0] >= least
    assert image.size[0] % side == 0


def test_saving_is_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    save(Image.new("L", (3, 3), 7), path)
    before = path.read_bytes()

    def broken(self, file, *args, **options):
        file.write_bytes(b"half") if hasattr(file, "write_bytes") else None
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with raises("not-saved"):
        save(Image.new("L", (3, 3), 9), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_ending_of_no_picture_is_refused(tmp_path) -> None:
    with raises("bad-ending"):
        save(Image.new("L", (3, 3)), tmp_path / "a.what")


def test_a_data_uri_holds_the_picture() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    head, _, body = png_data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), np.asarray(image))
