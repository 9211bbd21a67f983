"""Laws of searching: what is looked for finds itself, blocks change nothing, no other file is taken for an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tessella
from making import make
from tessella.cli import main
from tessella.core.schema import Schema
from tessella.foundation.errors import DataError, SpecError
from tessella.models.base import Model
from tessella.tasks import search

SCHEMA = Schema.of((1, 12, 12), "uint8")
MODELS = {
    "codes": ("VQVAE", {"grid_size": 6, "codebook_size": 300}),
    "few codes, two levels": ("VQVAE2", {"grid_size": 6, "codebook_size": 12}),
    "vector": ("VAE", {"latent_dim": 6}),
    "grid": ("VAE", {"latent_layout": "grid", "latent_dim": 3}),
    "autoencoder": ("AE", {"latent_dim": 6}),
}


def made(name: str = "codes", schema: Schema = SCHEMA) -> Model:
    kind, options = MODELS[name]
    torch.manual_seed(0)
    model = make(getattr(tessella, kind), schema, **{"width": 8, "depth": 1, **options})
    model(examples(40))  # in training mode codebooks start from data
    return model.eval()


def examples(count: int, seed: int = 0) -> Tensor:
    """Smooth pictures, all different."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (12, 12), mode="bilinear")
    return (255 * smooth).round().to(torch.uint8)


def indexed(model: Model, x: Tensor, each: int = 16) -> search.Index:
    batches = (([f"{n + k}" for k in range(len(part))], part) for n, part in zip(
        range(0, len(x), each), x.split(each), strict=True))  # fmt: skip
    return search.index(model, batches, "0" * 12)


@pytest.mark.parametrize("name", MODELS)
def test_each_finds_itself_first_in_every_space(name: str) -> None:
    model, x = made(name), examples(60)
    index = indexed(model, x)
    assert set(index.features) == ({"latent", "codes"} if "codes" in name else {"latent"})
    for space in index.features:
        found = search.nearest(index, search.features(model, x[:20]), 3, space)
        assert torch.equal(found.rows[:, 0], torch.arange(20))
        assert (found.distances[:, 0] < 1e-3).all()
        assert (found.distances.diff(dim=1) >= 0).all()


def test_a_noisy_and_a_shifted_copy_find_their_original() -> None:
    model, x = made(), examples(60)
    index = indexed(model, x)
    noise = torch.randint(-6, 7, x.shape, generator=torch.Generator().manual_seed(1))
    noisy = (x + noise).clamp(0, 255).to(torch.uint8)
    shifted = torch.cat([x[..., 1:], x[..., -1:]], 3)
    for copies in (noisy, shifted):
        rows = search.nearest(index, search.features(model, copies), 1).rows[:, 0]
        assert (rows == torch.arange(60)).float().mean() >= 0.95


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_blocks_change_nothing(space: str) -> None:
    model, x = made("few codes, two levels"), examples(70)
    index, queries = indexed(model, x), search.features(model, examples(9, seed=5))
    whole = search.nearest(index, queries, 7, space)
    for block in (1, 13, 70):
        parts = search.nearest(index, queries, 7, space, block=block)
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.distances, whole.distances)
    limit = float(search.nearest(index, index.features, 2, space).distances[:, 1].median())
    pairs = search.duplicates(index, space, limit)
    assert pairs.total > 20
    for block in (7, 64):
        assert torch.equal(search.duplicates(index, space, limit, block=block).distances, pairs.distances)


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_neighbours_are_those_of_the_definition(space: str) -> None:
    model, x = made(), examples(50)
    index, queries = indexed(model, x), search.features(model, examples(4, seed=3))
    found = search.nearest(index, queries, 50, space)
    a, b = queries[space].double() * 1, index.features[space].double()
    scale = index.scale.double() if space == "latent" else torch.ones(())
    apart = (a[:, None] - b) * scale
    expected = apart.square().mean(2).sqrt() if space == "latent" else (apart != 0).double().mean(2)
    torch.testing.assert_close(found.distances.double(), expected.sort(1).values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected.gather(1, found.rows), found.distances.double(), atol=1e-5, rtol=1e-5)


def test_a_unit_that_says_nothing_has_no_weight() -> None:
    model, x = made("vector"), examples(40)
    with torch.no_grad():
        spread = model.encode(x).posterior
    assert spread is not None
    index = indexed(model, x)
    used = (1 - spread.variance.mean(0)).clamp_min(1e-12).sqrt()
    torch.testing.assert_close(index.scale, used, atol=1e-5, rtol=1e-4)


def test_more_than_there_are_means_all_and_none_is_refused() -> None:
    model = made()
    index, queries = indexed(model, examples(5)), search.features(model, examples(2))
    assert search.nearest(index, queries, 99).rows.shape == (2, 5)
    for k in (0, -3):
        with pytest.raises(SpecError, match="at least 1"):
            search.nearest(index, queries, k)
    with pytest.raises(SpecError, match="there are: latent"):
        search.nearest(index, queries, 1, "taste")
    with pytest.raises(SpecError, match="from 0 up"):
        search.duplicates(index, threshold=-1.0)


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_planted_duplicates_are_found_by_a_threshold_from_the_data(space: str) -> None:
    model, x = made(), examples(200)
    noise = torch.randint(-2, 3, (10, 1, 12, 12), generator=torch.Generator().manual_seed(1))
    x = torch.cat([x, (x[20:30] + noise).clamp(0, 255).to(torch.uint8), x[:5]])
    pairs = search.duplicates(indexed(model, x), space)
    found = {tuple(pair) for pair in pairs.rows.tolist()}
    assert {(k, 210 + k) for k in range(5)} <= found
    assert len({(20 + k, 200 + k) for k in range(10)} & found) >= 9
    assert len(found) < 30  # of 23,000 pairs
    assert (pairs.distances.diff() >= 0).all()
    kept = search.duplicates(indexed(model, x), space, most=3)
    assert (len(kept.rows), kept.total) == (3, pairs.total)


# files


def test_an_index_comes_back_as_it_was(tmp_path: Path) -> None:
    index = indexed(made(), examples(30))
    search.write(tmp_path / "i.safetensors", index)
    back = search.read(tmp_path / "i.safetensors")
    assert (back.names, back.model, back.copies, back.thumbs) == (index.names, index.model, index.copies, index.thumbs)
    assert all(torch.equal(back.features[space], rows) for space, rows in index.features.items())
    assert torch.equal(back.scale, index.scale)
    assert back.thumb(3).size == (12, 12)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "i.safetensors", tmp_path / "bad.safetensors"
    search.write(good, indexed(made(), examples(30)))
    whole = good.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", b"no index", whole[:-1], whole[:middle], flipped, whole[:9]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged, or no index.*tessella index"):
            search.read(bad)
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(3)}, bad)
    with pytest.raises(DataError, match="damaged, or no index"):
        search.read(bad)
    with pytest.raises(DataError, match="tessella index RUN FOLDER"):
        search.read(tmp_path / "nowhere")
    index = search.read(good)
    search.write(bad, replace(index, names=index.names[1:]))
    with pytest.raises(DataError, match="different lengths"):
        search.read(bad)
    search.write(good, index)
    with pytest.raises(DataError, match="whose weights are 000000000000"):
        search.check(index, made(), "f" * 12)


def test_what_cannot_be_indexed_is_refused() -> None:
    torch.manual_seed(0)
    cvae = tessella.CVAE(Schema.of((1, 12, 12), "uint8", classes=("a", "b")), width=8, depth=1)
    with pytest.raises(SpecError, match="vae or vqvae"):
        indexed(cvae, examples(4))
    with pytest.raises(DataError, match="no examples"):
        search.index(made(), iter(()), "0" * 12)


# the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    train = ["train", "vqvae", "--data", "digits", "--quiet", "--steps", "20", "--batch-size", "32", "--width", "8"]
    assert main([*train, "--depth", "1", "--grid-size", "4", "--codebook-size", "8", "--out", str(out)]) == 0
    return out


def test_a_folder_is_indexed_and_searched(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, noise = tmp_path / "pictures", np.random.default_rng(0)
    (folder / "cat").mkdir(parents=True)
    for k in range(12):
        picture = Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8))
        picture.save(folder / "cat" / f"{k}.png")
    (folder / "cat" / "3.png").rename(folder / "again.png")
    Image.open(folder / "again.png").save(folder / "cat" / "3.png")
    (folder / "torn.png").write_bytes(b"no picture")
    index, page, sheet = (str(tmp_path / name) for name in ("i.safetensors", "found.html", "found.png"))
    assert main(["index", str(run), str(folder), "-o", index]) == 0
    said = capsys.readouterr()
    assert "13 examples" in said.out
    assert "1 of 14 pictures could not be read" in said.err
    query = str(folder / "cat" / "5.png")
    assert main(["search", str(run), query, "7", "-k", "3", "--index", index, "-o", page]) == 0
    said = capsys.readouterr().out
    assert f"{query}: {query} (0)" in said  # the name opens the file
    assert "Nearest in" in Path(page).read_text()
    assert Path(page).read_text().count("<img") == 2 * 4
    assert main(["search", str(run), query, "--space", "codes", "--index", index, "-o", sheet]) == 0
    assert Image.open(sheet).size[0] > 500
    assert main(["search", str(run), "--duplicates", "--index", index, "-o", page]) == 0
    assert f"0  {folder}/again.png  {folder}/cat/3.png" in capsys.readouterr().out


def test_a_split_is_indexed_in_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["digits"]):
        assert main(["index", str(run), *given, "--split", "test"]) == 0
        assert "141 examples" in capsys.readouterr().out
    assert (run / "index.safetensors").is_file()
    assert main(["search", str(run), "7", "-k", "2", "-o", str(tmp_path / "f.png")]) == 0
    assert "7: test-7 (0)" in capsys.readouterr().out


def test_searches_that_cannot_be_are_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "tessella index RUN FOLDER" in refused("search", run, "7", "--index", tmp_path / "none")
    assert "nothing to search for" in refused("search", run)
    assert "leave the queries out" in refused("search", run, "7", "--duplicates")
    assert "of --duplicates" in refused("search", run, "7", "--threshold", 1)
    assert "page's" in refused("search", run, "7", "-o", "found.txt")
    assert "no such picture" in refused("index", run, tmp_path / "nowhere.png")
    assert "both name data" in refused("index", run, "digits", "--data", "digits")
    assert ".safetensors" in refused("index", run, "-o", tmp_path / "index.npz")
    (tmp_path / "empty").mkdir()
    assert "tessella: " in refused("index", run, tmp_path / "empty", "-o", tmp_path / "i.safetensors")
    assert not (tmp_path / "i.safetensors").exists()
    bad = tmp_path / "bad.safetensors"
    bad.write_text(json.dumps({"no": "index"}))
    assert "damaged, or no index" in refused("search", run, "7", "--index", bad)


def test_an_index_of_another_run_is_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    other, index = tmp_path / "other", tmp_path / "i.safetensors"
    search.write(index, indexed(made(), examples(9)))
    assert "0" * 12 in refused("search", run, "7", "--index", index)
    assert not other.exists()
