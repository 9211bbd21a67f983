"""Folders as they are found: mixed sizes and modes, broken files, sub-folders, too many files for memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data import batches, open_data, stream
from tessella.data.duplicates import file_hash
from tessella.data.folders import read as module
from tessella.foundation.errors import DataError
from tessella.kinds.image_files import centre_box


def notes_of(data) -> str:
    return "\n".join(data.notes)


def test_sub_folders_are_the_classes_in_natural_order(draw, tmp_path) -> None:
    for label in ("10", "9", "cat"):
        for i in range(4):
            draw(f"{label}/{i}.png", seed=i)
    data = open_data(str(tmp_path))
    assert data.schema.classes == ("9", "10", "cat")
    assert data.schema.shape == (3, 8, 8)
    counts = sum(np.bincount(split.labels, minlength=3) for split in data.splits.values())
    assert counts.tolist() == [4, 4, 4]
    assert data.notes == ()


def test_official_folders_are_kept(draw, tmp_path) -> None:
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        for i in range(count):
            draw(f"{split}/{'ab'[i % 2]}/{i}.png")
    data = open_data(str(tmp_path))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "valid": 3, "test": 4}
    assert data.schema.classes == ("a", "b")


def test_loose_pictures_mean_no_classes(draw, tmp_path) -> None:
    for name in ("a/1.png", "b/1.png", "2.png"):
        draw(name)
    data = open_data(str(tmp_path))
    assert data.schema.classes == ()
    assert "beside the sub-folders" in notes_of(data)


def test_broken_files_are_named_counted_and_skipped(draw, tmp_path) -> None:
    for i in range(10):
        draw(f"{i}.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    cut = draw("cut.png", size=(8, 8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "notes.txt").write_text("hello")
    data = open_data(str(tmp_path))
    assert sum(map(len, data.splits.values())) == 10
    notes = notes_of(data)
    assert "3 of 13 pictures could not be read" in notes
    assert all(name in notes for name in ("text.png", "empty.jpg", "cut.png", "notes.txt"))
    assert all("\n" not in note for note in data.notes)


def test_long_lists_are_abridged(draw, tmp_path) -> None:
    draw("good.png")
    for i in range(30):
        (tmp_path / f"{i}.png").write_text("x")
    assert "25 more" in notes_of(open_data(str(tmp_path)))


@pytest.mark.parametrize("files", [{}, {"a.txt": b"x"}, {"a.png": b"x", "b.jpg": b""}])
def test_a_folder_without_one_good_picture_is_refused(tmp_path, files) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_sizes_are_fitted(draw, tmp_path) -> None:
    for i, size in enumerate([(1, 1), (300, 20), (20, 300), (64, 64)]):
        draw(f"{i}.png", size=size)
    assert open_data(str(tmp_path), size=(24, 40)).schema.shape == (3, 24, 40)
    unasked = open_data(str(tmp_path))
    assert unasked.schema.shape == (3, 64, 64)
    assert "4 sizes" in notes_of(unasked)


def test_the_centre_is_what_is_kept(tmp_path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    x = next(batches(open_data(str(tmp_path), size=10).split("train"), 1)).x
    assert (x == 255).all()


def test_the_fitting_box_is_centred_and_of_the_aspect() -> None:
    assert centre_box((10, 30), (5, 5)) == (0, 10, 10, 10)
    assert centre_box((30, 10), (5, 5)) == (10, 0, 10, 10)
    assert centre_box((1, 100), (100, 1)) == (0, 49, 1, 1)


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["L"], 1), (["1"], 1), (["LA", "L"], 2), (["RGB", "L"], 3), (["P"], 3), (["LA", "RGB"], 4), (["RGBA", "L"], 4)],
)
def test_the_richest_mode_wins(draw, tmp_path, modes: list[str], channels: int) -> None:
    for i, mode in enumerate(modes * 2):
        draw(f"{i}.png", mode=mode)
    data = open_data(str(tmp_path))
    assert data.schema.shape == (channels, 8, 8)
    assert ("different modes" in notes_of(data)) == (len(modes) > 1)
    for asked in (1, 2, 3, 4):
        x = next(batches(open_data(str(tmp_path), channels=asked).split("train"), 2)).x
        assert x.shape[1] == asked
        assert x.dtype == torch.uint8


def test_lost_alpha_is_laid_on_white(tmp_path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    x = next(batches(open_data(str(tmp_path), channels=3).split("train"), 1)).x
    assert (x == 255).all()


def test_sixteen_bits_are_cut_to_eight_and_said(tmp_path) -> None:
    Image.fromarray(np.full((4, 4), 0x8001, np.uint16)).save(tmp_path / "deep.png")
    data = open_data(str(tmp_path))
    assert "16 bits" in notes_of(data)
    assert (next(batches(data.split("train"), 1)).x == 0x80).all()


def test_a_picture_on_its_side_is_put_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 6)).save(tmp_path / "phone.jpg", exif=exif)
    assert open_data(str(tmp_path)).schema.shape == (3, 12, 6)


def test_more_pictures_than_memory_are_streamed(draw, tmp_path, monkeypatch) -> None:
    for i in range(24):
        draw(f"{'ab'[i % 2]}/{i}.png", size=(9, 9), seed=i)
    kept = open_data(str(tmp_path)).split("train")
    monkeypatch.setattr(module, "MEMORY_FILES", 0)
    streamed = open_data(str(tmp_path)).split("train")
    assert kept.in_memory
    assert not streamed.in_memory
    runs = [stream(kept, 4, seed=0), stream(streamed, 4, seed=0), stream(streamed, 4, seed=0, workers=2)]
    for _ in range(8):
        first, *others = [next(run) for run in runs]
        assert all(torch.equal(first.x, batch.x) and torch.equal(first.label, batch.label) for batch in others)


def test_a_picture_that_breaks_later_is_replaced_and_named(draw, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MEMORY_FILES", 0)
    for i in range(6):
        draw(f"{'ab'[i % 2]}/{i}.png", seed=i)
    split = open_data(str(tmp_path)).split("train")
    whole = split.batch(range(len(split)))
    path = next(p for p in tmp_path.glob("*/*.png") if file_hash(str(p)) == split.example_ids[0])
    path.write_bytes(b"gone")
    with pytest.warns(UserWarning, match=f"{path.name} cannot be read"):
        batch = split.batch(range(len(split)))
    stands_in = [1, *range(1, len(split))]
    assert torch.equal(batch.x, whole.x[stands_in])
    assert torch.equal(batch.label, whole.label[stands_in])


def test_the_order_of_files_does_not_matter(draw, tmp_path) -> None:
    for i in range(40):
        draw(f"{i}.png", seed=i)
    before = open_data(str(tmp_path))
    keys = {name: set(split.example_ids.tolist()) for name, split in before.splits.items()}
    draw("another.png")
    after = open_data(str(tmp_path))
    moved = sum(len(of - set(after.split(name).example_ids.tolist())) for name, of in keys.items())
    assert moved <= 1  # the smallest splits are filled up in hash order
