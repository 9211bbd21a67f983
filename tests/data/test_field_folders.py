"""Folders as the field has them: wrappers, strays, links, loops, pipes, names of every script."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expect import raises
from tessella.data import open_data
from tessella.data.arrays import natural
from tessella.data.folders.layout import Names, arranged, example_files
from tessella.kinds.images import Images
from tessella.tasks.describe import data_facts


def laid_out(**counts: int) -> tuple[Counter, str]:
    """How pictures by folder are divided and labelled, as {(split, label): count}, and all notes."""
    names = [f"{folder.replace('__', '/')}/{i}.png".lstrip("/") for folder, n in counts.items() for i in range(n)]
    layout = arranged(names, Images)
    return Counter(zip(layout.splits, layout.labels, strict=True)), "\n".join(layout.notes)


BOTH = {("train", "cat"): 9, ("train", "dog"): 9, ("test", "cat"): 3, ("test", "dog"): 3}
TREE = {"train__cat": 9, "train__dog": 9, "test__cat": 3, "test__dog": 3}


@pytest.mark.parametrize("wrapper", ["", "my-data__", "v1__images__"])
@pytest.mark.parametrize("called", [("train", "test"), ("Training", "TESTING"), ("training_set", "test_set")])
@pytest.mark.parametrize("stray", ["", "docs"])
def test_train_and_test_are_found_wherever_they_lie(wrapper: str, called: tuple[str, str], stray: str) -> None:
    tree = {wrapper + k.replace("train", called[0]).replace("test", called[1]): n for k, n in TREE.items()}
    found, notes = laid_out(**tree, **{stray: 1})
    assert found == Counter(BOTH) + Counter({("", None): 1})
    assert f"{stray}/0.png".lstrip("/") in notes


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"train": 9, "val": 2, "dev": 1}, {("train", None): 9, ("valid", None): 3}),
        ({"train": 9, "eval": 2}, {("train", None): 9, ("test", None): 2}),
        ({"train": 9, "eval": 2, "test": 3}, {("train", None): 9, ("valid", None): 2, ("test", None): 3}),
        ({"train2017": 9, "val2017": 2}, {("train", None): 9, ("valid", None): 2}),
        ({"train__cat": 9, "train__dog": 9, "test": 3}, {("train", "cat"): 9, ("train", "dog"): 9, ("test", None): 3}),
        ({"cat__train": 9, "cat__test": 3, "dog__train": 9, "dog__test": 3}, BOTH),
        ({"s_train__s__cat": 9, "s_train__s__dog": 9, "s_test__s__cat": 3, "s_test__s__dog": 3}, BOTH),
        ({"train": 4, "bus": 4}, {("whole", "train"): 4, ("whole", "bus"): 4}),
        ({"test": 4, "control": 4}, {("whole", "test"): 4, ("whole", "control"): 4}),
        ({"valid": 4, "invalid": 4}, {("whole", "valid"): 4, ("whole", "invalid"): 4}),
        ({"train__cat": 4, "train__dog": 4}, {("whole", "cat"): 4, ("whole", "dog"): 4}),
        ({"w__cat": 4, "w__dog": 4}, {("whole", "cat"): 4, ("whole", "dog"): 4}),
        ({"a__x": 4, "a__y": 4, "b": 4}, {("whole", "a"): 8, ("whole", "b"): 4}),
        ({"train": 4}, {("whole", None): 4}),
    ],
)  # fmt: skip
def test_what_folders_mean_by_their_names(tree: dict[str, int], expected: dict) -> None:
    assert laid_out(**tree)[0] == expected


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"test__cat": 4, "test__dog": 4, "valid__cat": 2, "valid__dog": 2}, "no training folder"),
        ({"test__cat": 4, "test__dog": 4}, "no training folder"),
        ({"train": 9, "test": 3, "unlabeled": 50}, "50 pictures beside train/, test/ were left out"),
        ({"cat": 20, "dog": 20, "": 1}, "1 picture beside the class folders was left out: 0.png"),
        ({"cat": 20, "dog": 20, "": 9}, "9 pictures are beside the sub-folders"),
        ({"cat__train": 5, "cat__test": 5, "dog": 40}, "the train and test folders in cat/ are not used"),
    ],
)
def test_what_is_left_out_or_doubtful_is_said(tree: dict[str, int], said: str) -> None:
    assert said in laid_out(**tree)[1]


def test_the_decision_is_one_line_of_the_description(draw, tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 4)):
        for i in range(count):
            draw(f"unzipped/{split}/{'ab'[i % 2]}/{i:02}.png", seed=100 * count + i)
    draw("__MACOSX/unzipped/train/a/00.png")
    (tmp_path / "README.md").write_text("about")
    data = open_data(str(tmp_path))
    facts = dict(data_facts(data))
    given = "train: folder unzipped/train/; test: folder unzipped/test/; valid: cut out of train"
    assert facts["splits"].startswith("train ")
    assert facts["splits"].endswith(f", test 4 ({given})")
    assert facts["classes"].startswith("2 by sub-folder: a (")
    assert data.notes == ("1 files that are not pictures were ignored: README.md",)


def test_links_are_followed_and_circles_are_not(draw, tmp_path: Path) -> None:
    for i in range(4):
        draw(f"store/a/{i}.png", seed=i)
        draw(f"pics/b/{i}.png", seed=10 + i)
    pics = tmp_path / "pics"
    (pics / "a").symlink_to(tmp_path / "store" / "a")
    (pics / "b" / "again").symlink_to(pics)
    (pics / "b" / "self").symlink_to(pics / "b" / "self")
    (pics / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (pics / "b" / "linked.png").symlink_to(draw("elsewhere.png", seed=99))
    names, _, notes = example_files(str(pics))
    assert names == [f"a/{i}.png" for i in range(4)] + [f"b/{i}.png" for i in range(4)] + ["b/linked.png"]
    said = "\n".join(notes)
    assert "2 links are broken: gone.png, b/self" in said
    assert "were not followed: b/again" in said


def test_links_among_folders_end(draw, tmp_path: Path) -> None:
    for a in "abcdefgh":
        draw(f"{a}/{a}.png")
        for b in "abcdefgh":
            (tmp_path / a / f"to-{b}").symlink_to(tmp_path / b)
    names, _, _ = example_files(str(tmp_path))
    assert len(names) <= 8 * 8 * 8
    assert {n.rsplit("/", 1)[1] for n in names} == {f"{a}.png" for a in "abcdefgh"}


def test_train_and_test_may_be_links(draw, tmp_path: Path) -> None:
    for i in range(8):
        draw(f"disk/first/{i}.png", seed=i)
    draw("disk/second/0.png", seed=50)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "train").symlink_to(tmp_path / "disk" / "first")
    (tmp_path / "pics" / "test").symlink_to(tmp_path / "disk" / "second")
    data = open_data(str(tmp_path / "pics"))
    assert len(data.split("test")) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_passed_over(draw, tmp_path: Path) -> None:
    draw("good.png")
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    data = open_data(str(tmp_path))
    assert "2 named pipes, sockets or devices were ignored: a.png, b.png" in data.notes
    (tmp_path / "good.png").unlink()
    with raises("no-pictures"):
        open_data(str(tmp_path))


def test_every_ending_of_a_picture_counts(draw, tmp_path: Path) -> None:
    picture = draw("0.png")
    jpeg = draw("1.jpg")
    for ending in ("JFIF", "jpe", "JPEG", "Jpg"):
        shutil.copy(jpeg, tmp_path / f"2.{ending}")
    shutil.copy(picture, tmp_path / "3.PNG")
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    names, _, notes = example_files(str(tmp_path))
    assert len(names) == 7
    assert notes == ["1 files that are not pictures were ignored: pictures.zip"]


@pytest.mark.parametrize("classes", [("①", "②"), ("٣", "٤"), ("²", "³"), ("9", "10"), ("猫", "犬"), ("1" * 5000, "2")])
def test_class_names_of_every_script_are_sorted(classes: tuple[str, ...]) -> None:
    assert len(sorted(classes, key=natural)) == 2


def test_classes_called_by_odd_digits_are_read(draw, tmp_path: Path) -> None:
    for name in "①②":
        for i in range(4):
            draw(f"{name}/{i}.png", seed=i)
    assert open_data(str(tmp_path)).schema.classes == ("①", "②")


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    names = ["a.png", os.fsdecode(b"\xff\xfe.png"), "猫/é.png"]
    assert list(Names(names)) == names
    assert list(Names(names)[1:]) == names[1:]
    try:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    assert len(open_data(str(tmp_path)).split("train")) == 1
