"""Every format read back as it was written, and every damage answered in one line."""

from __future__ import annotations

import gzip
import json
import pickle
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tessella.data import Data, batches, open_data
from tessella.data import built_in as drawn
from tessella.foundation.errors import DataError
from tessella.tasks.describe import contact_sheet, data_facts

GENERATOR = np.random.default_rng(0)
X = GENERATOR.integers(0, 256, (30, 5, 4), dtype=np.uint8)
Y = np.arange(30) % 3


def everything(data) -> np.ndarray:
    """All examples in the order of their first value, whatever split they went to."""
    x = np.concatenate([batch.x.numpy() for split in data.splits.values() for batch in batches(split, 7)])
    return x[np.lexsort(x.reshape(len(x), -1).T)]


def in_order(x: np.ndarray) -> np.ndarray:
    return x[np.lexsort(x.reshape(len(x), -1).T)]


def refused(spec, **options) -> str:
    with pytest.raises(DataError) as caught:
        open_data(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# built-in


def test_digits_are_bytes() -> None:
    data = open_data("digits")
    assert data.schema.shape == (1, 8, 8)
    assert data.schema.values.name == "uint8"
    assert data.schema.classes == tuple("0123456789")
    assert sum(map(len, data.splits.values())) == 1797
    assert everything(data).max() == 255


def test_options_open_the_same_again() -> None:
    first = open_data("digits", size=12, channels=3, binarize="static", seed=4)
    again = open_data(first.spec, **json.loads(json.dumps(first.options)))
    assert first.schema == again.schema
    assert np.array_equal(everything(first), everything(again))


@pytest.mark.parametrize("options", [{"size": 0}, {"size": (4, 4, 4)}, {"channels": 5}, {"binarize": "maybe"}])
def test_impossible_options_are_refused(options) -> None:
    refused("digits", **options)


def test_sprites_have_known_factors_and_any_size() -> None:
    data = open_data("sprites", size=(20, 28))
    split = data.split("test")
    assert data.schema.shape == (3, 20, 28)
    assert data.schema.classes == ("square", "ellipse", "triangle")
    assert np.array_equal(split.labels, split.factors["shape"])
    assert sum(map(len, data.splits.values())) == np.prod(list(drawn.FACTORS.values()))
    assert open_data("sprites", size=20, channels=1).schema.shape == (1, 20, 20)


@pytest.mark.parametrize("factor", ["x", "y"])
def test_sprites_are_where_their_factors_say(factor) -> None:
    column = list(drawn.FACTORS).index(factor)
    numbers = np.zeros((8, 6), np.int64)
    numbers[:, column] = np.arange(8)
    ink = drawn.draw(numbers, (64, 64))[:, 0].astype(float) - drawn.BACKGROUND
    axis = {"x": 2, "y": 1}[factor]
    mass = ink.sum(axis=3 - axis)
    centre = (mass * (np.arange(64) + 0.5)).sum(1) / mass.sum(1)
    assert np.abs(centre - 64 * drawn.PLACES).max() < 0.1


def test_sprites_grow_and_turn_without_losing_their_area() -> None:
    numbers = np.array([(shape, size, 0, turn, 4, 4) for shape in range(3) for turn in range(8) for size in range(4)])
    area = (drawn.draw(numbers, (64, 64))[:, 0].astype(float) - drawn.BACKGROUND).sum((1, 2)).reshape(3, 8, 4)
    assert (np.diff(area, axis=2) > 0).all()
    assert (area.std(1) / area.mean(1)).max() < 0.06


# npz and npy


def test_npz_keeps_the_official_test_split(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4])
    data = open_data(str(tmp_path / "a.npz"))
    assert len(data.split("test")) == 4
    assert np.array_equal(data.split("test").batch(range(4)).x[:, 0].numpy(), X[:4])
    assert len(data.split("train")) + len(data.split("valid")) == 30
    assert data.schema.classes == ("0", "1", "2")


def test_npz_keeps_the_official_validation_split(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, x_valid=X[:5], x_test=X[:4])
    assert {n: len(s) for n, s in open_data(str(tmp_path / "a.npz")).splits.items()} == {
        "train": 30,
        "valid": 5,
        "test": 4,
    }


@pytest.mark.parametrize(
    ("x", "shape", "values"),
    [
        (X, (1, 5, 4), "uint8"),
        (X.reshape(30, 20), (20,), "uint8"),
        (np.repeat(X[..., None], 3, 3), (3, 5, 4), "uint8"),
        (np.repeat(X[:, None], 3, 1), (3, 5, 4), "uint8"),
        (X.astype(np.int64), (1, 5, 4), "uint8"),
        (X > 100, (1, 5, 4), "binary"),
        ((X > 100).astype(np.uint8), (1, 5, 4), "binary"),
        ((X > 100).astype(np.int32), (1, 5, 4), "binary"),
        (X.astype(np.int32) * 2, (1, 5, 4), "real"),
        (X.astype(np.int32) - 9, (1, 5, 4), "real"),
        (X / 255, (1, 5, 4), "real"),
        (X.reshape(30, 20).astype(np.float16), (20,), "real"),
    ],
)
def test_shape_and_values_are_understood_and_kept(tmp_path, x, shape, values) -> None:
    np.save(tmp_path / "a.npy", x)
    data = open_data(str(tmp_path / "a.npy"))
    assert data.schema.shape == shape
    assert data.schema.values.name == values
    channels_last = x.ndim == 4 and x.shape[3] == 3
    given = (np.moveaxis(x, 3, 1) if channels_last else x).reshape(30, *shape)
    assert np.array_equal(everything(data), in_order(given.astype(np.float32 if values == "real" else np.uint8)))


def test_real_values_are_centred_by_the_training_split(tmp_path) -> None:
    x = GENERATOR.normal(3, 2, (400, 6)).astype(np.float32)
    x[:, 5] = 7
    np.savez(tmp_path / "a.npz", x_train=x, x_valid=x[:9] + 100, x_test=x[:9] + 100)
    schema = open_data(str(tmp_path / "a.npz")).schema
    np.testing.assert_allclose(schema.center, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(schema.scale[:5], x.std(0)[:5], rtol=1e-5)
    assert schema.scale[5] == 1
    assert (schema.values.low, schema.values.high) == (x.min(), x.max())
    pictures = x[:396].reshape(11, 9, 6, 4)
    np.savez(tmp_path / "b.npz", x_train=pictures, x_valid=pictures, x_test=pictures)
    assert len(open_data(str(tmp_path / "b.npz")).schema.center) == 4


@pytest.mark.parametrize(
    "labels", [[5, 5, 9], ["b", "b", "a"], [b"b", b"b", b"a"], [2.0, 2.0, 3.0], [True, True, False]]
)
def test_labels_of_any_type_become_classes(tmp_path, labels) -> None:
    np.savez(tmp_path / "a.npz", x_train=X[:3], y_train=labels, x_valid=X[:3], y_valid=labels, x_test=X[:3])
    data = open_data(str(tmp_path / "a.npz"))
    numbers, classes = data.split("train").labels, data.schema.classes
    shown = [label.decode() if isinstance(label, bytes) else label for label in labels]
    assert [classes[n] for n in numbers] == [str(int(s)) if isinstance(s, float) else str(s) for s in shown]
    assert data.split("test").labels is None
    assert any("test has no labels" in note for note in data.notes)


def test_labels_that_are_no_classes_are_left_out(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.linspace(0, 1, 30))
    data = open_data(str(tmp_path / "a.npz"))
    assert data.schema.classes == ()
    assert any("ignored as labels" in note for note in data.notes)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": X, "b": X}, "such as x or x_train"),
        ({}, "no arrays"),
        ({"x": np.array([1.0, np.nan, np.inf])[:, None]}, "2 values that are NaN or infinite"),
        ({"x": np.array([[1e300], [1.0]])}, "infinite in float32"),
        ({"x": np.zeros((0, 4))}, "empty"),
        ({"x": np.zeros((4, 0))}, "empty"),
        ({"x": np.zeros(4)}, "shape"),
        ({"x": np.float32(3)}, "shape"),
        ({"x": np.zeros((2, 9, 9, 9))}, "1 to 4 channels"),
        ({"x": np.zeros((2, 2, 2, 2, 2))}, "shape"),
        ({"x": np.array([["a", "b"]])}, "not numbers"),
        ({"x": np.zeros((3, 3), complex)}, "complex numbers"),
        ({"x": X, "y": Y[:7]}, "one label per example"),
        ({"x": X, "y": np.eye(29)}, "one label per example"),
        ({"x_train": X, "x_test": X[:, :2]}, "different shapes"),
        ({"x_train": X[:0], "x_test": X}, "empty"),
        ({"x": X, "y": Y, "class_names": np.array(["only"])}, "class names"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, said) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert said in refused(tmp_path / "a.npz")


def test_an_empty_test_part_is_noted_and_made_up_for(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, x_test=X[:0])
    data = open_data(str(tmp_path / "a.npz"))
    assert len(data.split("test")) >= 1
    assert any("x_test is empty" in note for note in data.notes)


class Trap:
    """Unpickling this would be noticed."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


def test_nothing_is_unpickled(tmp_path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [Trap(), [1, 2]]
    np.savez(tmp_path / "a.npz", x=ragged)
    np.save(tmp_path / "a.npy", ragged)
    for name in ("a.npz", "a.npy"):
        assert "pickled Python objects" in refused(tmp_path / name)
    for name in ("bare.npz", "bare.npy", "data_batch_1", "a.pkl", "a.pt", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        assert "pickle" in refused(tmp_path / name)
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    assert "binary version" in refused(tmp_path / "cifar")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "x-images-idx3-ubyte.gz", "x-images-idx3-ubyte", "a.parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.98])
def test_cut_files_are_refused(tmp_path, name, kept) -> None:
    writers = {
        "a.npz": lambda p: np.savez_compressed(p, x=X),
        "a.npy": lambda p: np.save(p, X),
        "x-images-idx3-ubyte.gz": lambda p: p.write_bytes(gzip.compress(idx(X))),
        "x-images-idx3-ubyte": lambda p: p.write_bytes(idx(X)),
        "a.parquet": lambda p: parquet.write_table(pa.table({"a": [1.5, 2.5, 3.5]}), p),
    }
    path = tmp_path / name
    writers[name](path)
    open_data(str(path))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert name in refused(path)


@pytest.mark.parametrize("spec", ["nowhere/at/all.npz", "mnits", "", "hf:"])
def test_no_such_data_says_what_there_is(spec, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no" in refused(spec)


def test_a_file_of_no_known_kind_is_refused(tmp_path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert "unknown file type" in refused(tmp_path / "a.docx")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_handful_of_examples_still_opens(tmp_path, count) -> None:
    np.save(tmp_path / "a.npy", X[:count])
    data = open_data(str(tmp_path / "a.npy"))
    assert len(data.split("train")) >= 1
    assert sum(map(len, data.splits.values())) == count
    assert all(len(split) for split in data.splits.values())
    contact_sheet(data)


# idx and CIFAR


def idx(x: np.ndarray) -> bytes:
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[x.dtype.str[1:]]
    return (
        bytes([0, 0, code, x.ndim]) + np.array(x.shape, ">u4").tobytes() + x.astype(x.dtype.newbyteorder(">")).tobytes()
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folders_are_read(tmp_path, zipped) -> None:
    for name, x in (("train", X), ("t10k", X[:6])):
        for kind, content in (("images-idx3", x), ("labels-idx1", Y[: len(x)].astype(np.uint8))):
            data = idx(content)
            path = tmp_path / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    data = open_data(str(tmp_path))
    assert np.array_equal(data.split("test").batch(range(6)).x[:, 0].numpy(), X[:6])
    assert data.split("test").labels.tolist() == Y[:6].tolist()
    end = ".gz" if zipped else ""
    alone = open_data(str(tmp_path / f"train-images-idx3-ubyte{end}"))
    assert sum(map(len, alone.splits.values())) == 30
    assert alone.schema.classes == ("0", "1", "2")
    assert "labels" in refused(tmp_path / f"train-labels-idx1-ubyte{end}")


@pytest.mark.parametrize("kind", ["i2", "i4", "f4", "f8"])
def test_idx_of_other_types_is_read(tmp_path, kind) -> None:
    (tmp_path / "a.idx").write_bytes(idx(X.astype(kind)))
    assert np.array_equal(everything(open_data(str(tmp_path / "a.idx")))[:, 0], in_order(X))


def test_cifar_binary_is_read(tmp_path) -> None:
    x = GENERATOR.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    rows = np.concatenate([(np.arange(20) % 10)[:, None].astype(np.uint8), x.reshape(20, -1)], 1)
    for name, part in (("data_batch_1", rows[:8]), ("data_batch_2", rows[8:15]), ("test_batch", rows[15:])):
        part.tofile(tmp_path / f"{name}.bin")
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    data = open_data(str(tmp_path))
    assert np.array_equal(data.split("test").batch(range(5)).x.numpy(), x[15:])
    assert data.schema.classes == tuple("abcdefghij")
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 3000)
    assert "test_batch.bin" in refused(tmp_path)


# tables


@pytest.mark.parametrize("end", ["csv", "tsv", "parquet", "csv.gz"])
@pytest.mark.parametrize("label", ["label", "Class", "target", None])
def test_tables_are_read(tmp_path, end, label) -> None:
    table = {"a": [1.5, 2.0, 3.0, 4.0], "b": [0, 1, 2, 3]} | ({label: ["u", "v", "u", "v"]} if label else {})
    path = tmp_path / f"t.{end}"
    if end == "parquet":
        parquet.write_table(pa.table(table), path)
    else:
        comma = "\t" if end == "tsv" else ","
        lines = "\n".join(comma.join(map(str, row)) for row in [list(table), *zip(*table.values(), strict=True)])
        path.write_bytes(gzip.compress(lines.encode()) if end.endswith("gz") else lines.encode())
    data = open_data(str(path))
    assert data.schema.shape == (2,)
    assert data.schema.classes == (("u", "v") if label else ())
    assert np.array_equal(everything(data), in_order(np.array([[1.5, 0], [2, 1], [3, 2], [4, 3]], np.float32)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,name,b\n1,x,2\n", "name"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells, the first line has 2"),
        ("a,b\n1,\n3,4\n", "empty cells in columns b (1, the first in row 1)"),
        ("a,b\n1,nan\n", "empty cells"),
        ("a,b\n1,inf\n", "infinite values in columns b (1, the first in row 1)"),
        ("a,b\n", "no rows"),
        ("", "is empty"),
        ("label\nx\n", "no columns of numbers"),
        ("a,label\n1,\n2,3\n", "label column"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, text, said) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert said in refused(tmp_path / "t.csv")


def test_a_table_without_names_loses_no_row(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("1,2\n3,4\n5,6\n")
    data = open_data(str(tmp_path / "t.csv"))
    assert sum(map(len, data.splits.values())) == 3
    assert data.schema.values.name == "uint8"


def test_vectors_take_no_size_and_real_values_no_binarisation(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1.5,2\n3,4\n5,6\n")
    assert "size" in refused(tmp_path / "t.csv", size=8)
    assert "binarize" in refused(tmp_path / "t.csv", binarize="static")


def test_binary_values_need_no_binarisation(tmp_path) -> None:
    np.save(tmp_path / "a.npy", X > 9)
    assert any("already binary" in note for note in open_data(str(tmp_path / "a.npy"), binarize="dynamic").notes)


# the hub


def test_the_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "tessella[datasets]" in refused("hf:mnist")


def test_pictures_saved_by_datasets_are_read(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    shots = [Image.fromarray(x) for x in X]
    whole = datasets.Dataset.from_dict({"img": shots, "label": (Y % 2).tolist()}, features=features)
    split = datasets.DatasetDict(train=whole.select(range(20)), validation=whole.select(range(20, 24)), extra=whole)
    split["test"] = whole.select(range(24, 30))
    split.save_to_disk(tmp_path / "dict")
    data = open_data(f"hf:{tmp_path / 'dict'}")
    assert {name: len(s) for name, s in data.splits.items()} == {"train": 20, "valid": 4, "test": 6}
    assert data.schema.classes == ("cat", "dog")
    assert np.array_equal(data.split("test").batch(range(6)).x[:, 0].numpy(), X[24:])
    assert any("extra" in note for note in data.notes)
    whole.save_to_disk(tmp_path / "one")
    assert sum(map(len, open_data(f"hf:{tmp_path / 'one'}", size=3).splits.values())) == 30


def test_tables_saved_by_datasets_are_read(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"a": [0.5, 1, 2], "b": [3, 4, 5], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one")
    assert open_data(f"hf:{tmp_path / 'one'}").schema.shape == (2,)


def test_hub_failures_are_one_line(tmp_path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refused(f"hf:{tmp_path / 'empty'}")


# the real data sets


@pytest.mark.parametrize(
    ("name", "shape", "values", "counts"),
    [
        ("mnist.npz", (1, 28, 28), "uint8", (60_000, 10_000)),
        ("fashion_mnist.npz", (1, 28, 28), "uint8", (60_000, 10_000)),
        ("binarized_mnist.npz", (1, 28, 28), "binary", (60_000, 10_000)),
        ("sprites.npz", (3, 64, 64), "uint8", (72_000, 21_312)),
        pytest.param("flowers", (3, 96, 96), "uint8", (3_301, 366), marks=pytest.mark.slow),
        pytest.param("cifar10", (3, 32, 32), "uint8", (50_000, 10_000), marks=pytest.mark.slow),
    ],
)
def test_real_data_is_understood(real_data, name, shape, values, counts) -> None:
    """In the forms that people have them, as far as they are there."""
    path = real_data / name
    if not path.exists() or (path.suffix == ".npz" and "x_train" not in np.load(path)):
        pytest.skip(f"no {name} with x_train in {real_data}")
    data = open_data(str(path))
    assert data.schema.shape == shape
    assert data.schema.values.name == values
    assert len(data.split("train")) + len(data.split("valid")) == counts[0]
    assert len(data.split("test")) == counts[1]
    assert data.schema.classes
    assert str(real_data) in dict(data_facts(data))["data"]


# what was understood


def facts(data: Data) -> str:
    return "\n".join(f"{what:8} {text}" for what, text in data_facts(data))


def test_the_description_names_all_that_matters(tmp_path) -> None:
    text = facts(open_data("digits", binarize="dynamic"))
    for word in ("digits", "8x8", "grey", "binary", "dynamic", "train 1,5", "classes  10"):
        assert word in text
    np.save(tmp_path / "a.npy", np.linspace(-1, 2, 60).reshape(20, 3))
    text = facts(open_data(str(tmp_path / "a.npy")))
    for word in ("rows of 3", "real, ", "classes  none"):
        assert word in text


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("shape", [(5,), (80,), (9, 7), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_contact_sheets_of_every_kind(tmp_path, shape, labelled) -> None:
    x = GENERATOR.random((40, *shape))
    np.savez(tmp_path / "a.npz", x=x, **({"y": np.arange(40) % 3} if labelled else {}))
    sheet = contact_sheet(open_data(str(tmp_path / "a.npz")))
    assert min(sheet.size) >= 48
    assert len(np.unique(np.asarray(sheet))) > 2
