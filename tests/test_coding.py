"""Codes in files: what is decoded is what the model reconstructs, at any size, and nothing else is taken for codes."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tessella
from expect import raises
from making import make
from tessella.coding import codes_file
from tessella.coding.codes_file import StoredCodes, check_codes, decode_codes, encode_codes, read_codes, write_codes
from tessella.core.batches import Batch, filled, size_of
from tessella.core.schema import Real, Schema
from tessella.data.inputs import NamedBatch
from tessella.foundation import output_folder
from tessella.foundation.errors import DataError
from tessella.models.codes import CodeModel

TINY = {"width": 8, "depth": 1, "codebook_size": 12}
BYTES = Schema.of((3, 13, 10), "uint8")
MODELS = {
    "one level": ("VQVAE", BYTES, {"grid_size": 3}),
    "one level of bits": ("VQVAE", Schema.of((1, 8, 8), "binary"), {}),
    "codes of several numbers": ("VQVAE", BYTES, {"grid_size": 3, "codes_per_position": 3, "quantizer": "residual"}),
    "codes with a turned gradient": ("VQVAE", BYTES, {"grid_size": 3, "gradient_estimator": "rotation"}),
    "scalars": ("VQVAE", BYTES, {"grid_size": 3, "quantizer": "fsq", "codebook_size": 15}),
    "two levels": ("VQVAE2", Schema.of((3, 27, 18), "uint8"), {"grid_size": 7}),
    "three levels": ("VQVAE2", Schema.of((1, 30, 30), "uint8"), {"grid_size": 7, "levels": 3}),
    "vectors": ("VQVAE", Schema.of((5,), Real(-3.0, 3.0)), {"codes_per_position": 2}),
}


def made(name: str = "one level") -> CodeModel:
    kind, schema, options = MODELS[name]
    torch.manual_seed(0)
    model: CodeModel = make(getattr(tessella, kind), schema, **{**TINY, **options})
    model(examples(schema, 16))  # in training mode codebooks start from data
    return model.eval()


def examples(schema: Schema, count: int = 7, size: tuple[int, ...] | None = None) -> Tensor:
    shape = (count, schema.shape[0], *(schema.shape[1:] if size is None else size))
    generator = torch.Generator().manual_seed(1)
    if schema.values.name == "real":
        return torch.randn(shape, generator=generator)
    return torch.randint(0, int(schema.values.high) + 1, shape, dtype=torch.uint8, generator=generator)


def coded(model: CodeModel, *parts: Tensor) -> StoredCodes:
    names = iter(f"{k}" for k in range(1000))
    return encode_codes(
        model, (NamedBatch([next(names) for _ in x], Batch(x), [None] * len(x)) for x in parts), "0" * 12
    )


def decoded(model: CodeModel, codes: StoredCodes, **options) -> list[Tensor]:
    return [x for _, x in decode_codes(model, codes, **options)]


def reconstructed(model: CodeModel, x: Tensor) -> Tensor:
    """In a batch of the size that encoding and decoding have."""
    full = filled(x, size_of(model.schema.shape, model.device), model.device)
    return model.reconstruct(full)[: len(x)]


# laws


@pytest.mark.parametrize("name", MODELS)
def test_decoding_is_reconstructing_bit_for_bit_by_way_of_a_file(name: str, tmp_path: Path) -> None:
    model, path = made(name), str(tmp_path / "codes.npz")
    x = examples(model.schema)
    before = coded(model, x)
    write_codes(path, before)
    codes = read_codes(path)
    check_codes(codes, model, "0" * 12)
    assert codes.names == before.names
    for level, (kept, made_now) in enumerate(zip(codes.levels, model.encode(x).codes, strict=True)):
        assert isinstance(kept, np.ndarray)
        assert kept.dtype == np.uint8, "so few values fit in a byte"
        assert np.array_equal(kept, made_now.numpy()), level
    assert torch.equal(torch.stack(decoded(model, codes)), reconstructed(model, x))
    arrays = np.load(path, allow_pickle=False)
    assert arrays["level0"].shape == (7, *model.code_shapes[0])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vectors"])
def test_pictures_of_any_size_keep_it(name: str, tmp_path: Path) -> None:
    model, path = made(name), str(tmp_path / "codes.npz")
    trained = model.schema.shape[1:]
    near = tuple(side + 2 for side in trained)  # may have the grid of those trained on
    sizes = [(45, 31), trained, near, (3, 4), (1, 1), (64, 7)]
    parts = [examples(model.schema, 1, size) for size in sizes]
    before = coded(model, *parts)
    write_codes(path, before)
    codes = read_codes(path)
    check_codes(codes, model, "0" * 12)
    assert codes.sizes.tolist() == [list(size) for size in sizes]
    for kept, first in zip(codes.levels, before.levels, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(kept, first, strict=True))
    given = decoded(model, codes)
    assert [tuple(x.shape) for x in given] == [(model.schema.shape[0], *size) for size in sizes]
    assert all(x.min() >= model.schema.values.low and x.max() <= model.schema.values.high for x in given)
    assert torch.equal(given[1], model.reconstruct(parts[1])[0])


@pytest.mark.parametrize("name", ["one level", "two levels"])
def test_far_from_the_seam_a_larger_picture_has_the_codes_of_its_part(name: str) -> None:
    """The networks are convolutional: what lies further away than they see changes nothing."""
    model = made(name)
    x = examples(model.schema, 1, (96, 96))
    other = x.clone()
    other[..., 80:, :] = 255 - other[..., 80:, :]
    a, b = coded(model, x).levels[-1], coded(model, other).levels[-1]
    rows = a[0].shape[1]
    assert np.array_equal(a[0][:, : rows // 3], b[0][:, : rows // 3])
    assert not np.array_equal(a[0], b[0])


def test_the_codes_of_a_size_larger_than_the_trained_one_are_those_of_the_model() -> None:
    model = made("two levels")
    x = examples(model.schema, 2, (40, 50))
    for kept, found in zip(coded(model, x).levels, model.encode(x).codes, strict=True):
        assert np.array_equal(kept, found.numpy())


def test_draws_are_of_p_of_x_given_z_and_follow_the_seed() -> None:
    model = made("one level of bits")
    codes = coded(model, examples(model.schema))
    state = torch.get_rng_state()
    first, again, other = (torch.stack(decoded(model, codes, sample=True, seed=s)) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.unique().tolist()) == {0.0, 1.0}


def test_many_examples_are_decoded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    codes = coded(model, examples(model.schema, 11))
    whole = decoded(model, codes)
    monkeypatch.setattr(codes_file, "size_of", lambda shape, device: 4)
    torch.testing.assert_close(decoded(model, codes), whole)


# files that are none


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """What a file of a model of two levels holds."""
    model = made("two levels")
    c = coded(model, examples(model.schema, 3))
    levels = {f"level{number}": np.asarray(level) for number, level in enumerate(c.levels)}
    return {"version": np.array(1), "model": np.array(c.model), "names": np.array(c.names), "sizes": c.sizes, **levels}


def changed(arrays: dict[str, np.ndarray], **others: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: value for name, value in {**arrays, **others}.items() if value is not None}


def refusal(path: Path, arrays: dict[str, np.ndarray], model: CodeModel, fingerprint: str = "0" * 12) -> str:
    """What is said of a file with these arrays."""
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError) as caught:
        check_codes(read_codes(str(path)), model, fingerprint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_codes_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    model, path = made("two levels"), tmp_path / "codes.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    check_codes(read_codes(str(path)), model, "0" * 12)
    coarse, fine, sizes = arrays["level0"].astype(np.int64), arrays["level1"].astype(np.int64), arrays["sizes"]
    assert "0" * 12 in refusal(path, arrays, model, "f" * 12)
    assert "f" * 12 in refusal(path, arrays, model, "f" * 12)
    assert "got -1 to" in refusal(path, changed(arrays, level1=np.where(fine == fine.max(), -1, fine)), model)
    assert "to 12" in refusal(path, changed(arrays, level0=np.full_like(coarse, 12)), model)
    assert "grid" in refusal(path, changed(arrays, level0=coarse[:, :, :-1]), model)
    assert "shape" in refusal(path, changed(arrays, level0=np.repeat(coarse, 2, 1)), model)
    assert "levels" in refusal(path, changed(arrays, level1=None), model)
    assert "levels" in refusal(path, changed(arrays, level2=fine), model)
    assert "lengths" in refusal(path, changed(arrays, level1=fine[:2]), model)
    assert "fit its size" in refusal(path, changed(arrays, sizes=sizes * 4), model)
    assert "fit its size" in refusal(path, changed(arrays, sizes=np.zeros_like(sizes)), model)
    assert "fit its size" in refusal(path, changed(arrays, sizes=-sizes), model)
    for hurt in (
        {"level0": coarse.astype(float)},
        {"level0": coarse[0]},
        {"sizes": sizes[:, 0]},
        {"names": sizes[:, 0]},
    ):
        assert "damaged or was edited" in refusal(path, changed(arrays, **hurt), model)
    assert "lengths" in refusal(path, {name: a[:0] if a.ndim else a for name, a in arrays.items()}, model)
    assert "reads version 1" in refusal(path, changed(arrays, version=np.array(2)), model)


def test_ragged_codes_are_checked_one_by_one(tmp_path: Path) -> None:
    model, path = made(), tmp_path / "codes.npz"
    write_codes(str(path), coded(model, examples(model.schema, 1), examples(model.schema, 1, (30, 30))))
    arrays = dict(np.load(path))
    assert {"level0.0", "level0.1"} <= arrays.keys()
    assert "to 200" in refusal(path, changed(arrays, **{"level0.1": np.full_like(arrays["level0.1"], 200)}), model)
    assert "level0.1 is missing" in refusal(path, changed(arrays, **{"level0.1": None}), model)


def test_files_of_something_else_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    with raises("no-such-file"):
        read_codes(str(path))
    np.savez(path, x=np.zeros((4, 4)))
    with raises("no-codes"):
        read_codes(str(path))
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    whole = path.read_bytes()
    hurt = bytearray(whole)
    hurt[len(hurt) // 3] ^= 255
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(hurt)):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_codes(str(path))
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


RAN: list[str] = []


class Bomb:
    def __reduce__(self):
        return RAN.append, ("it ran",)


def test_nothing_is_unpickled(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    bombs = np.array([Bomb(), Bomb(), Bomb()], dtype=object)
    for key in ("version", "names", "level0"):
        np.savez(path, **changed(arrays, **{key: bombs}))  # pyright: ignore[reportArgumentType]
        with raises("pickled"):
            read_codes(str(path))
    path.write_bytes(pickle.dumps(Bomb()))
    with raises("pickled"):
        read_codes(str(path))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("version", "model", "names", "sizes", "level0"):
            archive.writestr(name, pickle.dumps(Bomb()))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError):
        read_codes(str(path))
    assert RAN == []


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a/..", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with raises("leads-out"):
        output_folder.target(str(tmp_path / "out"), name)
    assert output_folder.target(str(tmp_path / "out"), "a/b.c") == tmp_path / "out" / "a" / "b.c.png"


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with raises("link"):
        output_folder.target(str(tmp_path / "out"), "link/x")
