"""Laws of searching: what is looked for finds itself, blocks change nothing, no other file is taken for an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tessella
from expect import raises
from making import make
from tessella.cli import main
from tessella.core.batches import Batch
from tessella.core.schema import Schema
from tessella.core.tensors import read_tensors, write_tensors
from tessella.data.inputs import NamedBatch
from tessella.models.base import Model
from tessella.tasks.search import IndexConfig, SearchConfig, index, search
from tessella.tasks.search.features import features
from tessella.tasks.search.index_file import Index, duplicates, nearest, read_index, write_index
from tessella.training.run import Run

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


def indexed(model: Model, x: Tensor, each: int = 16, path: Path | None = None) -> Index:
    names = [f"{n}" for n in range(len(x))]
    parts = [NamedBatch(names[i : i + each], Batch(x[i : i + each]), ()) for i in range(0, len(x), each)]
    with TemporaryDirectory() as folder:
        path = path or Path(folder, "i.safetensors")
        write_index(path, model, parts, "0" * 12)
        return read_index(path, model, "0" * 12)


@pytest.mark.parametrize("name", MODELS)
def test_each_finds_itself_first_in_every_space(name: str) -> None:
    model, x = made(name), examples(60)
    index = indexed(model, x)
    assert set(index.features) == ({"latent", "codes"} if "codes" in name else {"latent"})
    for space in index.features:
        found = nearest(index, features(model, x[:20]), 3, space)
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
        rows = nearest(index, features(model, copies), 1).rows[:, 0]
        assert (rows == torch.arange(60)).float().mean() >= 0.95


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_blocks_change_nothing(space: str) -> None:
    model, x = made("few codes, two levels"), examples(70)
    index, queries = indexed(model, x), features(model, examples(9, seed=5))
    whole = nearest(index, queries, 7, space)
    for block in (1, 13, 70):
        parts = nearest(index, queries, 7, space, block=block)
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.distances, whole.distances)
    limit = float(nearest(index, index.features, 2, space).distances[:, 1].median())
    pairs = duplicates(index, space, limit)
    assert pairs.total > 20
    for block in (7, 64):
        assert torch.equal(duplicates(index, space, limit, block=block).distances, pairs.distances)


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_neighbours_are_those_of_the_definition(space: str) -> None:
    model, x = made(), examples(50)
    index, queries = indexed(model, x), features(model, examples(4, seed=3))
    found = nearest(index, queries, 50, space)
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
    index, queries = indexed(model, examples(5)), features(model, examples(2))
    assert nearest(index, queries, 99).rows.shape == (2, 5)
    for k in (0, -3):
        with raises("out-of-range", option="count"):
            nearest(index, queries, k)
    with raises("no-such-space", space="taste"):
        nearest(index, queries, 1, "taste")
    with raises("out-of-range", option="threshold"):
        duplicates(index, threshold=-1.0)


@pytest.mark.parametrize("space", ["latent", "codes"])
def test_planted_duplicates_are_found_by_a_threshold_from_the_data(space: str) -> None:
    model, x = made(), examples(200)
    noise = torch.randint(-2, 3, (10, 1, 12, 12), generator=torch.Generator().manual_seed(1))
    x = torch.cat([x, (x[20:30] + noise).clamp(0, 255).to(torch.uint8), x[:5]])
    pairs = duplicates(indexed(model, x), space)
    found = {tuple(pair) for pair in pairs.rows.tolist()}
    assert {(k, 210 + k) for k in range(5)} <= found
    assert len({(20 + k, 200 + k) for k in range(10)} & found) >= 9
    assert len(found) < 30  # of 23,000 pairs
    assert (pairs.distances.diff() >= 0).all()
    kept = duplicates(indexed(model, x), space, most=3)
    assert (len(kept.rows), kept.total) == (3, pairs.total)


# files


def test_an_index_comes_back_as_it_was(tmp_path: Path) -> None:
    model, x = made(), examples(30)
    index = indexed(model, x, path=tmp_path / "i.safetensors")
    assert index.names == tuple(f"{n}" for n in range(30))
    assert torch.equal(index.features["latent"], features(model, x)["latent"])
    assert index.thumb(3).size == (12, 12)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    model, good, bad = made(), tmp_path / "i.safetensors", tmp_path / "bad.safetensors"
    indexed(model, examples(30), path=good)
    whole = good.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", b"no index", whole[:-1], whole[:middle], flipped, whole[:9]):
        bad.write_bytes(content)
        with raises("damaged-index"):
            read_index(bad, model, "0" * 12)
    save_file({"weights": torch.zeros(3)}, bad)
    with raises("damaged-index"):
        read_index(bad, model, "0" * 12)
    with raises("no-index"):
        read_index(tmp_path / "nowhere", model, "0" * 12)
    state = read_tensors(good)
    for name, wrong in (("names.ends", slice(1, None)), ("scale", slice(1, None)), ("features.latent", slice(0, 29))):
        write_tensors(bad, state.tensors | {name: state.tensors[name][wrong]}, state.progress)
        with raises("damaged-index"):
            read_index(bad, model, "0" * 12)
    with raises("index-of-another-model"):
        read_index(good, model, "f" * 12)
    with raises("damaged-index"):
        read_index(good, made("few codes, two levels"), "0" * 12)


def test_what_cannot_be_indexed_is_refused() -> None:
    torch.manual_seed(0)
    cvae = tessella.CVAE(Schema.of((1, 12, 12), "uint8", classes=("a", "b")), width=8, depth=1)
    with raises("conditional-model"):
        indexed(cvae, examples(4))
    with raises("no-examples"):
        indexed(made(), examples(0))


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
    assert f"5: {query} (0)" in said  # the name opens the file
    assert "Nearest in" in Path(page).read_text()
    assert Path(page).read_text().count("<img") == 2 * 4
    assert main(["search", str(run), query, "-k", "2", "--index", index, "-o", page, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["nearest"][0]
    assert (found["query"], found["found"][0]) == ("5", {"name": query, "distance": 0.0})
    assert main(["search", str(run), query, "--space", "codes", "--index", index, "-o", sheet]) == 0
    assert Image.open(sheet).size[0] > 500
    capsys.readouterr()
    assert main(["search", str(run), "--duplicates", "--index", index, "-o", page, "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)["pairs"][0]
    assert pair == {"first": f"{folder}/again.png", "second": f"{folder}/cat/3.png", "distance": 0.0}
    assert Path(page).read_text().count("<img") > 1


def test_a_split_is_indexed_in_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["test"], ["--data", "digits"]):
        assert main(["index", str(run), *given, "--split", "test"]) == 0
        assert "141 examples" in capsys.readouterr().out
    assert (run / "index.safetensors").is_file()
    assert main(["search", str(run), "7", "-k", "2", "-o", str(tmp_path / "f.png")]) == 0
    assert "test-7: test-7 (0)" in capsys.readouterr().out


def test_searches_that_cannot_be_are_refused(run: Path, tmp_path: Path) -> None:
    handle, bad = Run(run), tmp_path / "bad.safetensors"
    bad.write_text(json.dumps({"no": "index"}))
    (tmp_path / "empty").mkdir()
    for code, config in (
        ("no-index", SearchConfig(("7",), index=str(tmp_path / "none"))),
        ("no-queries", SearchConfig()),
        ("queries-and-duplicates", SearchConfig(("7",), duplicates=True)),
        ("threshold-alone", SearchConfig(("7",), threshold=1)),
        ("damaged-index", SearchConfig(("7",), index=str(bad))),
    ):
        with raises(code):
            search(handle, config)
    for code, config in (
        ("no-such-input", IndexConfig(("nowhere.png",))),
        ("wrong-ending", IndexConfig(out=str(tmp_path / "index.npz"))),
        ("no-pictures", IndexConfig((str(tmp_path / "empty"),), out=str(tmp_path / "i.safetensors"))),
    ):
        with raises(code):
            index(handle, config)
    assert not (tmp_path / "i.safetensors").exists()


def test_search_writes_pages_and_pictures_only(run: Path, refused: Callable[..., str]) -> None:
    assert ".html" in refused("search", run, "7", "-o", "found.txt")


def test_an_index_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    indexed(made(), examples(9), path=tmp_path / "i.safetensors")
    with raises("index-of-another-model"):
        search(Run(run), SearchConfig(("7",), index=str(tmp_path / "i.safetensors")))
