"""Arrays as people save them: splits and labels by their usual names, and archives that promise too much."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tessella.data import Data, limits, open_data
from tessella.foundation.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
Y = np.arange(60) % 3
V = np.random.default_rng(0).normal(size=(60, 5))
WORDS = np.array(["cat", "dog", "emu"])


def opened(path: Path, **options) -> Data:
    return open_data(str(path), **options)


def refused(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (("x_train", "x_val", "x_test"), ("y_train", "y_val", "y_test")),
        (("X_train", "X_valid", "X_test"), ("Y_train", "Y_valid", "Y_test")),
        (("train_x", "dev_x", "test_x"), ("train_y", "dev_y", "test_y")),
        (("train_images", "val_images", "test_images"), ("train_labels", "val_labels", "test_labels")),
        (("trainImages", "validationImages", "testImages"), ("trainLabels", "validationLabels", "testLabels")),
        (("xtrain", "xval", "xtest"), ("ytrain", "yval", "ytest")),
        (("x_tr", "x_dev", "x_te"), ("target_tr", "target_dev", "target_te")),
        (("train", "validation", "test"), ("train_label", "validation_label", "test_label")),
        (("train_data", "valid_data", "test_data"), ("train_targets", "valid_targets", "test_targets")),
        (("images", "images_val", "images_test"), ("labels", "labels_val", "labels_test")),
    ],
)
def test_splits_and_labels_go_by_their_usual_names(tmp_path, x, y) -> None:
    rows = (slice(40), slice(40, 50), slice(50, 60))
    arrays = {name: X[of] for name, of in zip(x, rows, strict=True)}
    arrays |= {name: WORDS[Y[of]] for name, of in zip(y, rows, strict=True)}
    np.savez(tmp_path / "a.npz", **arrays)
    data = opened(tmp_path / "a.npz")
    for split, of in zip(("train", "valid", "test"), rows, strict=True):
        batch = data.split(split).batch(range(len(data.split(split))))
        assert np.array_equal(batch.x[:, 0].numpy(), X[of])
        assert data.split(split).labels.tolist() == Y[of].tolist()
    assert data.schema.classes == tuple(WORDS)


@pytest.mark.parametrize(
    "names", [("x", "y"), ("X", "labels"), ("data", "target"), ("images", "label"), ("arr_0", "arr_1")]
)
def test_an_undivided_archive_says_what_it_left_out(tmp_path, names) -> None:
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)), mean_image=X[0])
    data = opened(tmp_path / "a.npz")
    assert data.all_examples is not None
    assert data.all_examples.labels.tolist() == Y.tolist()
    assert "ignored arrays: mean_image" in data.notes


@pytest.mark.parametrize(
    ("arrays", "note"),
    [
        ({"spectra": V, "wavelength": np.arange(5)}, "spectra is taken as the examples"),
        ({"x_test": V, "y_test": Y}, "x_test is the only array of examples"),
        ({"x": V, "x_train": V[:9]}, "ignored arrays: x"),
    ],
)
def test_what_had_to_be_guessed_is_noted(tmp_path, arrays, note) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert any(note in said for said in opened(tmp_path / "a.npz").notes)


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (WORDS[Y], ["emu", "dog", "cat"], ("emu", "dog", "cat")),
        (WORDS[Y].astype("S3"), WORDS, tuple(WORDS)),
        (WORDS[Y], WORDS.astype("S3"), tuple(WORDS)),
        (Y, WORDS, tuple(WORDS)),
        (Y.astype(str), WORDS, tuple(WORDS)),
        (Y.astype(float)[:, None], WORDS, tuple(WORDS)),
        (np.eye(3)[Y], WORDS, tuple(WORDS)),
        (np.eye(3, dtype=bool)[Y], None, ("0", "1", "2")),
        (WORDS[Y], None, tuple(WORDS)),
    ],
)
@pytest.mark.parametrize("key", ["class_names", "classes", "label_names"])
def test_labels_of_every_kind_find_their_names(tmp_path, labels, names, classes, key) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=labels, **({} if names is None else {key: names}))
    data = opened(tmp_path / "a.npz")
    assert data.schema.classes == classes
    found = [classes[n] for n in data.all_examples.labels]
    assert found == ([str(n) for n in Y] if names is None and classes[0] == "0" else WORDS[Y].tolist())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": WORDS[Y], "class_names": WORDS[:2]}, "a.npz: y holds emu, which are not among the class names cat, dog"),
        ({"y": Y + 1, "class_names": WORDS}, "labels range from 1 to 3, but there are 3 class names"),
        ({"y": Y, "class_names": WORDS[[0, 0, 1]]}, "class_names lists cat more than once"),
        ({"y": Y[:50]}, "a.npz: y has shape (50) for 60 examples"),
        ({"y": WORDS[Y].astype(object)}, "a.npz: y holds pickled Python objects"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_name(tmp_path, arrays, said) -> None:
    np.savez(tmp_path / "a.npz", x=X, **arrays)
    assert said in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("labels", [np.ones((60, 3)), V, np.linspace(0, 1, 60), np.full(60, np.nan)])
def test_labels_that_name_no_class_are_left_out_and_noted(tmp_path, labels) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    data = opened(tmp_path / "a.npz")
    assert data.schema.classes == ()
    assert any("a.npz: y" in note for note in data.notes)


def test_another_array_can_be_the_label(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, x_test=X[:9], y_train=Y, kind_train=Y % 2, kind_test=Y[:9] % 2)
    data = opened(tmp_path / "a.npz", label="kind_train")
    assert data.schema.classes == ("0", "1")
    assert data.split("test").labels.tolist() == (Y[:9] % 2).tolist()
    assert "its arrays are x_train, x_test" in refused(tmp_path / "a.npz", label="colour")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_train": V, "x_val": np.where(np.arange(60)[:, None] == 7, np.nan, V)}, "a.npz: x_val has 5 values"),
        ({"x_train": X, "x_val": X[:, :4]}, "a.npz: x_val (1, 4, 8)"),
        ({"x": V.astype(complex)}, "complex numbers"),
        ({"x": np.zeros((3, 3), "M8[s]")}, "dates"),
        ({"x": np.zeros(3, [("a", float)])}, "named fields"),
        ({"x": np.stack([3 ** np.arange(40), np.arange(40)], 1)}, "whole numbers too large to store exactly: number 1"),
    ],
)
def test_messages_name_the_array(tmp_path, arrays, said) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    text = refused(tmp_path / "a.npz")
    assert said in text
    assert "whole has" not in text


@pytest.mark.parametrize(
    "as_stored", [np.asfortranarray, lambda x: x.astype(">f8"), lambda x: x.astype(">f4"), np.asarray]
)
@pytest.mark.parametrize("end", ["npy", "npz"])
def test_every_layout_in_memory_is_read(tmp_path, as_stored, end) -> None:
    x = as_stored(V)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x=x)
    data = opened(tmp_path / f"a.{end}")
    assert np.array_equal(data.all_examples.batch(range(60)).x.numpy(), V.astype(np.float32))


def test_large_measures_are_no_identifiers(tmp_path) -> None:
    np.save(tmp_path / "a.npy", 10 ** (20 + V))
    x = opened(tmp_path / "a.npy").all_examples.batch(range(60)).x.numpy()
    np.testing.assert_allclose(x, 10 ** (20 + V), rtol=1e-6)


def test_large_whole_numbers_in_arrays_are_told_apart(tmp_path) -> None:
    times = 1_700_000_000 + np.arange(60)
    np.savez(tmp_path / "a.npz", x_train=np.stack([times, Y], 1)[:50], x_test=np.stack([times, Y], 1)[50:])
    data = opened(tmp_path / "a.npz")
    parts = [data.split(name).batch(range(len(data.split(name)))).x[:, 0] for name in data.splits]
    kept = sorted(int(v) + data.schema.offset[0] for part in parts for v in part)
    assert kept == times.tolist()
    assert any("subtracted" in note and "number 1" in note for note in data.notes)


# what promises too much


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def shaped(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = {
    "more than there is": shaped("(1000000000000, 1000000)"),
    "more than 64 bits": shaped("(10000000000000000000000000000, 3)"),
    "a negative side": shaped("(-1, 3)"),
    "no shape": shaped("'abc'"),
    "no type": shaped("(3,)", "|V99999999999"),
    "deep": "(" * 9000,
    "signs": "-" * 9000 + "1",
    "long": " " * 60000 + "{}",
    "brackets": "{'descr': " + "[" * 900 + "]" * 900 + ", 'fortran_order': False, 'shape': (3,), }",
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("end", ["npy", "npz"])
def test_headers_that_lie_are_refused_in_a_line(tmp_path, header, end) -> None:
    content = npy(HEADERS[header], bytes(64))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    path = tmp_path / f"a.{end}"
    path.write_bytes(packed.getvalue() if end == "npz" else content)
    said = refused(path)
    assert f"a.{end}" in said
    assert "damaged" in said


def test_archives_that_unpack_to_too_much_are_refused_unread(tmp_path, monkeypatch) -> None:
    blank = bytes(1 << 20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(npy(shaped("(80, 1024, 1024)", "|u1")))
        for _ in range(80):
            file.write(blank)
    with gzip.open(tmp_path / "a-idx3-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 3]) + np.array([80, 1024, 1024], ">u4").tobytes())
        for _ in range(80):
            file.write(blank)
    lies = bytes([0, 0, 8, 3]) + np.array([4_000_000, 28, 28], ">u4").tobytes()
    (tmp_path / "b-idx3-ubyte.gz").write_bytes(gzip.compress(lies + bytes(99)))
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        for _ in range(80):
            file.write(b"0" * (1 << 20))
    for name in ("a.npz", "a-idx3-ubyte.gz", "b-idx3-ubyte.gz", "a.csv.gz"):
        said = refused(tmp_path / name)
        assert name in said
        assert "would unpack" in said
    monkeypatch.setattr(limits, "memory", lambda: 3000)
    np.save(tmp_path / "v.npy", V)
    np.savez(tmp_path / "v.npz", x=V)
    (tmp_path / "v.csv").write_text("a,b\n" + "1,2\n" * 500)
    for name in ("v.npz", "v.csv"):
        assert "too much for" in refused(tmp_path / name)


def test_idx_files_that_hold_more_or_less_than_they_promise_are_refused(tmp_path) -> None:
    head = bytes([0, 0, 8, 3]) + np.array([4, 5, 6], ">u4").tobytes()
    for body in (bytes(119), bytes(121)):
        for name, content in (("a.idx", head + body), ("a.idx.gz", gzip.compress(head + body))):
            (tmp_path / name).write_bytes(content)
            assert "damaged" in refused(tmp_path / name)
    (tmp_path / "a.idx").write_bytes(bytes([0, 0, 8, 255]) + b"\xff" * 1020)
    assert "damaged" in refused(tmp_path / "a.idx")


def test_a_protected_archive_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=V)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1  # the flag that says: encrypted
    (tmp_path / "a.npz").write_bytes(bytes(content))
    assert "a.npz" in refused(tmp_path / "a.npz")
