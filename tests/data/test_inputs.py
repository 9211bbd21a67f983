"""Laws of INPUTS: one grammar, examples in the order of the words, in bounded memory, and every refusal says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from expect import raises
from tessella.core.batches import Batch
from tessella.core.schema import Schema
from tessella.data import Data, inputs, open_data
from tessella.data.inputs import GRAMMAR, Inputs, label_number
from tessella.foundation.errors import TessellaError
from tessella.kinds.base import kind_of
from tessella.kinds.image_files import ImageFiles

COLOUR = Schema.of((3, 13, 10), "uint8", classes=("a", "sub", "c"))


@dataclass(frozen=True)
class Model:
    """What a model is to INPUTS."""

    schema: Schema = COLOUR
    conditional: bool = False
    name: str = "a model"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def no_data(spec: str | None) -> Data:
    raise AssertionError("no data is asked for")


def digits(spec: str | None) -> Data:
    return open_data(spec or "digits")


DIGITS = Model(Schema.of((1, 8, 8), "uint8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sizes, one of them broken, and what is none."""
    root, noise = tmp_path / "pictures", np.random.default_rng(0)
    for name, size in (("a.png", (13, 10)), ("sub/a.png", (20, 31)), ("sub/b.png", (9, 9)), ("sub/b.bmp", (5, 5))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("not a picture")
    return root


def names(found: Inputs) -> list[str]:
    return [name for named in found for name in named.names]


def test_folders_are_read_with_their_names_and_what_is_broken_is_noted(folder: Path) -> None:
    words = [str(folder), str(folder / "a.png")]
    with pytest.warns(UserWarning, match="pictures") as noted:
        batches = list(Inputs(Model(), words, no_data))
    said = " ".join(str(w.message) for w in noted)
    assert "notes.txt" in said
    assert "1 of 6 pictures could not be read" in said
    assert "broken" in said
    assert [name for b in batches for name in b.names] == ["a", "sub/a", "sub/b", "sub/b-2", "a-2"]
    assert [name for b in batches for name in b.classes] == [None, "sub", "sub", "sub", None]
    assert all(b.batch.x.shape[1:] == COLOUR.shape and b.batch.label is None for b in batches)


@pytest.mark.filterwarnings("ignore")
def test_names_may_be_the_paths_that_open_the_files(folder: Path) -> None:
    found = Inputs(Model(), [str(folder)], no_data, keep_endings=True)
    for named in found:
        again = torch.stack([kind_of(COLOUR).read(path) for path in named.names])
        assert torch.equal(again, named.batch.x)


@pytest.mark.filterwarnings("ignore")
def test_pictures_keep_their_native_size_when_asked_to(folder: Path) -> None:
    found = Inputs(Model(), [str(folder)], no_data, native_size=True)
    sizes = {name: named.batch.x.shape[2:] for named in found for name in named.names}
    assert sizes == {"a": (13, 10), "sub/a": (20, 31), "sub/b": (5, 5), "sub/b-2": (9, 9)}
    with raises("native-size-of-data"):
        Inputs(DIGITS, ["5"], digits, native_size=True)


@pytest.mark.filterwarnings("ignore")
def test_files_are_skipped_before_any_is_read(folder: Path) -> None:
    asked = []
    found = Inputs(Model(), [str(folder)], no_data, skip=lambda name, path: asked.append(name) or name != "sub/a")
    assert asked == ["a", "broken", "sub/a", "sub/b", "sub/b-2"][: len(asked)]
    assert (len(asked), len(found), names(found)) == (5, 1, ["sub/a"])
    assert names(Inputs(Model(), [str(folder)], no_data, skip=lambda name, path: True)) == []


def test_a_folder_is_read_as_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a batch of pictures is held at a time, so a folder may be larger than memory."""
    monkeypatch.setattr(inputs, "to_read", lambda shape, device: 2)
    read, plain = [], ImageFiles.read

    def noted(self: ImageFiles, file: str, schema: Schema, part: int) -> Tensor:
        read.append(file)
        return plain(self, file, schema, part)

    monkeypatch.setattr(ImageFiles, "read", noted)
    for number, named in enumerate(Inputs(Model(), [str(folder / "a.png")] * 7, no_data)):
        assert len(read) == min(7, 2 * number + 2)
        assert len(named.names) == len(named.batch.x) <= 2


def test_numbers_ranges_and_splits() -> None:
    data = open_data("digits")
    valid, test = data.split("valid"), data.split("test")
    words = ["5", "0", "05", "10:13", "86:", "test:7", "test:139:", ":1"]
    found = Inputs(DIGITS, words, digits, split="valid")
    batches = list(found)
    assert [name for b in batches for name in b.names] == [
        *("valid-5", "valid-0", "valid-5-2", "valid-10", "valid-11", "valid-12", "valid-86", "valid-87", "valid-88"),
        *("test-7", "test-139", "test-140", "valid-0-2"),
    ]
    parts = [valid.batch([5, 0, 5, 10, 11, 12, 86, 87, 88]), test.batch([7, 139, 140]), valid.batch([0])]
    assert torch.equal(found.batch().x, torch.cat([part.x for part in parts]))
    assert [b.classes[0] for b in batches] == [str(int(part.label[0])) for part in parts if part.label is not None]
    for words in ([], ["valid"]):
        whole = Inputs(DIGITS, words, digits, split="valid")
        assert len(whole) == len(valid) == 89
        assert torch.equal(whole.batch().x, valid.batch(range(89)).x)
    for wrong in ("89", "7:7", "80:90", "test:141"):
        with raises("no-such-example", input=wrong):
            Inputs(DIGITS, [wrong], digits, split="valid")


def test_other_data_is_taken_whole_or_by_its_split(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "whole.npz", x=x)
    np.savez(tmp_path / "parted.npz", x_train=x[:30], x_test=x[30:])
    found = Inputs(DIGITS, [str(tmp_path / "whole.npz"), str(tmp_path / "parted.npz"), "3"], digits)
    assert names(found) == [*(f"whole-{i}" for i in range(40)), *(f"parted-test-{i}" for i in range(10)), "test-3"]
    assert torch.equal(found.batch().x[:40, 0], torch.from_numpy(x))
    assert found.from_data


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7").mkdir()
    Image.new("RGB", (10, 13), (1, 2, 3)).save("7/x.png")
    found = Inputs(Model(), ["7"], no_data)
    assert (names(found), found.from_data) == (["x"], False)


@pytest.mark.filterwarnings("ignore")
def test_conditional_models_see_the_class_of_the_folder_or_that_asked_for(folder: Path) -> None:
    model = Model(conditional=True)
    one = Inputs(model, [str(folder / "sub")], no_data, label="c").batch()
    assert one.label is not None
    assert one.label.tolist() == [2, 2, 2]
    (folder / "a.png").unlink()
    (folder / "broken.png").unlink()
    by_folder = Inputs(model, [str(folder)], no_data).batch()
    assert by_folder.label is not None
    assert by_folder.label.tolist() == [1, 1, 1]
    with raises("label-needed"):
        Inputs(model, [str(folder / "sub" / "a.png")], no_data).batch()
    with raises("no-such-class", label="dog"):
        Inputs(model, [str(folder)], no_data, label="dog")


@pytest.mark.filterwarnings("ignore")
def test_inputs_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hurt").mkdir()
    (tmp_path / "hurt" / "x.png").write_bytes(b"no picture")
    for word in ("missing.png", "x7", "-1", "²", "7:x", "valid:", ":", "a\nb"):
        with pytest.raises(TessellaError) as caught:
            Inputs(Model(), [word], digits)
        assert caught.value.code == "no-such-input"
        assert GRAMMAR in str(caught.value)
    for native_size in (False, True):
        with raises("unreadable"):
            Inputs(Model(), [str(folder / "broken.png")], no_data, native_size=native_size).batch()
    with raises("nothing-readable"):
        list(Inputs(Model(), [str(tmp_path / "hurt")], no_data))
    with raises("no-pictures"):
        list(Inputs(Model(Schema.of((5,), "real")), [str(folder)], no_data))
    with raises("no-pictures"):
        Inputs(DIGITS, [str(tmp_path / "empty")], digits)


@pytest.mark.parametrize("values", ["binary", "uint8"])
def test_pictures_in_files_are_seen_as_the_data_was(values: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40, 3), 200, np.uint8)).save(tmp_path / "wide.png")
    schema = Schema.of((3, 13, 10), values)
    seen: Batch = Inputs(Model(schema), [str(tmp_path / "wide.png")], no_data).batch()
    assert (seen.x == (1 if values == "binary" else 200)).all()


def test_a_class_is_found_by_its_name_before_its_number() -> None:
    schema = Schema.of((1, 8, 8), "uint8", classes=("1", "0", "cat"))
    assert [label_number(schema, given) for given in ("1", "0", "cat", "2")] == [0, 1, 2, 2]
    for unknown in ("3", "dog", "-1", "²"):
        with raises("no-such-class", label=unknown):
            label_number(schema, unknown)
