"""The same picture twice: on one side of a split, counted, said; and a fingerprint of the content alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_splits import part_of

from tessella.data import open_data
from tessella.data.duplicates import PIECE, WHOLE_BYTES, distinct_keys, file_hash, row_hashes, whole_hash
from tessella.data.folders import read as module
from tessella.data.raw import index_keys, mixed
from tessella.data.splits import divide


def sides(data) -> dict[str, set[bytes]]:
    return {
        name: {x.tobytes() for x in split.batch(np.arange(len(split))).x.numpy()} for name, split in data.splits.items()
    }


def apart(data) -> bool:
    held = list(sides(data).values())
    return sum(map(len, held)) == len(set().union(*held))


@pytest.fixture
def pictures(tmp_path: Path):
    """Write pictures `{name: number}`, of which those of one number are the same."""

    def write(names: dict[str, int], home: str = "pics") -> str:
        for name, number in names.items():
            path = tmp_path / home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            x = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(x).save(path)
        return str(tmp_path / home)

    return write


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("endings", [("png",), ("png", "bmp")])
def test_the_same_picture_stays_on_one_side(pictures, monkeypatch, streamed: bool, endings: tuple[str, ...]) -> None:
    if streamed and len(endings) > 1:
        pytest.skip("pictures that are streamed are told by their files")
    monkeypatch.setattr(module, "MEMORY_FILES", 0 if streamed else 10_000)
    path = pictures({f"{i}.{endings[i // 50 % len(endings)]}": i % 10 for i in range(100)})
    data = open_data(path)
    assert list(data.splits) == ["train", "valid", "test"]
    assert apart(data)
    assert any(
        note.startswith("90 of 100 pictures are byte-identical to others (10 different ones)") for note in data.notes
    )
    assert all(len(set(split.example_ids.tolist())) == len(split) for split in data.splits.values())


def test_test_pictures_that_were_trained_on_are_left_out(pictures) -> None:
    tree = {f"train/{i}.png": i for i in range(40)} | {f"test/{i}.png": i for i in range(30, 50)}
    data = open_data(pictures(tree | {f"val/{i}.png": i for i in (5, 45, 60)}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "valid": 1, "test": 10}
    assert apart(data)
    said = "10 of 20 test pictures are byte-identical to training pictures: they were removed from the test split"
    assert said in data.notes


def test_a_test_split_of_training_pictures_alone_is_replaced(pictures) -> None:
    tree = {f"train/{i}.png": i for i in range(40)} | {f"test/{i}.png": i for i in range(8)}
    data = open_data(pictures(tree))
    assert apart(data)
    assert sum(map(len, data.splits.values())) == 40
    assert "the test split is taken from training instead" in data.notes[0]
    assert "test" in data.division.rpartition(": ")[0]


def test_one_picture_many_times_is_training_only(pictures) -> None:
    data = open_data(pictures({f"{i}.png": 0 for i in range(20)}))
    assert list(data.splits) == ["train"]
    assert "all 20 examples are the same, so there is none for a test split" in data.notes


def test_one_picture_of_two_classes_is_said(pictures) -> None:
    data = open_data(pictures({f"{c}/{i}.png": 10 * (c == "b") + i for c in "ab" for i in range(11)}))
    assert "pictures that occur in more than one class: 1; the first is in a and b" in data.notes


def test_arrays_of_pictures_are_divided_by_content(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (10, 5, 5), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=np.tile(x, (10, 1, 1)))
    assert apart(open_data(str(tmp_path / "d.npz")))
    np.savez(tmp_path / "e.npz", x_train=x, x_test=x[:3])
    assert "3 of 3 test pictures are byte-identical to training pictures" in "; ".join(
        open_data(str(tmp_path / "e.npz")).notes
    )


def test_rows_of_tables_may_repeat_and_are_counted(tmp_path: Path) -> None:
    x = np.tile(np.arange(20, dtype=np.float32).reshape(10, 2) / 7, (4, 1))
    np.save(tmp_path / "d.npy", x)
    data = open_data(str(tmp_path / "d.npy"))
    assert "30 of 40 rows repeat an earlier one exactly" in data.notes
    assert len(data.split("test")) == 4 or not apart(data)


def test_the_division_and_the_order_are_of_the_content_alone(pictures, tmp_path: Path) -> None:
    tree = {f"{c}/{i}.png": 50 * (c == "b") + i % 45 for c in "ab" for i in range(50)}
    one = open_data(pictures(tree))
    other = open_data(
        pictures({f"{name[0]}/z{99 - int(name[2:-4]):02}/x.png": n for name, n in tree.items()}, "deep/er")
    )
    assert one.fingerprint == other.fingerprint
    for name, split in one.splits.items():
        assert split.example_ids.tolist() == other.split(name).example_ids.tolist()
        assert split.labels.tolist() == other.split(name).labels.tolist()
        rows = np.arange(len(split))
        assert (split.batch(rows).x == other.split(name).batch(rows).x).all()


@pytest.mark.parametrize("official", [False, True])
def test_the_fingerprint_is_of_the_content(pictures, tmp_path: Path, official: bool) -> None:
    homes = [("train/", 20), ("test/", 6)] if official else [("", 20)]
    path = Path(pictures({f"{at}{'ab'[i % 2]}/{i}.png": 100 * n + i for at, n in homes for i in range(n)}))
    prefix = path / "train" if official else path
    first = open_data(str(path)).fingerprint
    assert len(first) == 16
    assert int(first, 16) >= 0
    shutil.copytree(path, tmp_path / "moved")
    (tmp_path / "link").symlink_to(path)
    for same in (path, f"{path}/../{path.name}/", tmp_path / "moved", tmp_path / "link"):
        assert open_data(str(same)).fingerprint == first
    seen = {first, open_data(str(path), size=4).fingerprint, open_data(str(path), binarize="static").fingerprint}
    seen.add(open_data(str(path), seed=1).fingerprint if not official else "another seed")

    def changed(change) -> None:
        change()
        seen.add(open_data(str(path)).fingerprint)

    changed(lambda: Image.new("RGB", (6, 6), "red").save(prefix / "a" / "0.png"))
    changed(lambda: shutil.copy(prefix / "a" / "2.png", prefix / "a" / "new.png"))
    changed(lambda: (prefix / "a" / "new.png").rename(prefix / "b" / "new.png"))
    changed(lambda: (prefix / "b" / "1.png").unlink())
    changed(lambda: (prefix / "b").rename(prefix / "c"))
    assert len(seen) == 9


def test_every_source_has_a_fingerprint(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 3
    prints = {open_data("digits").fingerprint, open_data("sprites").fingerprint}
    for name, arrays in {
        "a": {"x": x},
        "b": {"x": x, "y": y},
        "c": {"x": x, "y": y[::-1]},
        "d": {"x": x + 1e-3},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        prints.add(open_data(str(tmp_path / f"{name}.npz")).fingerprint)
    assert len(prints) == 6
    np.savez(tmp_path / "again.npz", x=x)
    assert open_data(str(tmp_path / "again.npz")).fingerprint in prints


def test_large_files_that_differ_inside_are_told_apart(tmp_path: Path) -> None:
    x = np.zeros((400, 1000, 3), np.uint8)
    Image.fromarray(x).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    assert len(content) > WHOLE_BYTES
    gap = (len(content) - PIECE) // 9 - 100  # a place that is not sampled
    content[gap] = 255
    (tmp_path / "b.bmp").write_bytes(content)
    shutil.copy(tmp_path / "a.bmp", tmp_path / "c.bmp")
    a, b = (str(tmp_path / f"{name}.bmp") for name in "ab")
    assert (file_hash(a) == file_hash(b), whole_hash(a) == whole_hash(b)) == (True, False)
    data = open_data(str(tmp_path), size=(400, 1000))
    assert "1 of 3 pictures are byte-identical to others (2 different ones)" in "\n".join(data.notes)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.permutations(range(30)))
@settings(deadline=None, max_examples=30)
def test_keys_of_the_same_content_are_distinct_and_do_not_depend_on_the_order(content: list[int], order) -> None:
    values = np.array(content, np.uint64)
    order = np.array([i for i in order if i < len(content)])
    keys = distinct_keys(values, order)
    assert len(set(keys.tolist())) == len(content)
    assert sorted(keys.tolist()) == sorted(distinct_keys(values, np.arange(len(content))).tolist())
    assert keys[order[0]] == values[order[0]]


@pytest.mark.parametrize(("shape", "dtype"), [((3,), np.float32), ((1, 5, 5), np.uint8), ((16, 16, 3), np.uint8)])
def test_rows_have_one_hash_each_whatever_the_others(shape: tuple[int, ...], dtype) -> None:
    # 2,000 hashes of 64 bits: two are the same by chance once in 10^13
    x = np.random.default_rng(0).integers(0, 200, (2000, *shape)).astype(dtype)
    x[7] = x[3]
    hashes = row_hashes(x)
    assert len(np.unique(hashes)) == len(np.unique(x.reshape(2000, -1), axis=0))
    assert hashes[7] == hashes[3]
    assert np.array_equal(row_hashes(x[::-3]), hashes[::-3])
    flipped = x.copy()
    flipped[:, ..., 0], flipped[:, ..., 1] = x[..., 1], x[..., 0]
    assert (row_hashes(flipped) == hashes).sum() == (flipped == x).reshape(2000, -1).all(1).sum()


@pytest.mark.parametrize("largest", [30, 300, 990])
def test_a_picture_that_most_are_copies_of_stays_in_training(largest: int) -> None:
    # the rule holds for every seed; ten are tried
    groups = mixed(np.concatenate([np.zeros(largest), np.arange(1, 1001 - largest)]).astype(np.uint64))
    for seed in range(10):
        rows = divide(part_of(index_keys(1000, "x"), groups), test=0.1, valid=0.05, seed=seed)
        assert len(rows["train"]) >= 700 or largest > 700
        assert all(len(rows[name]) >= 1 for name in ("train", "valid", "test"))
        assert len(rows["test"]) < 300
