"""Compressed files give back what went in, are as long as the bound says, and refuse everything else in one line."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import making
import tessella
from expect import raises
from tessella.cli import main
from tessella.coding import coders, files
from tessella.coding.container import Container, Numbered, pack_chunk, pack_header, sealed
from tessella.coding.weights import Weights, check
from tessella.core.batches import Batch
from tessella.core.schema import Real, Schema
from tessella.data.inputs import NamedBatch
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import entries, names
from tessella.models.base import Model

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GREY, COLOUR, BITS, ROW = (
    Schema.of((1, 9, 10), "uint8"),
    Schema.of((3, 8, 8), "uint8"),
    Schema.of((1, 8, 8), "binary"),
    (6,),
)
TINY = Schema.of((3, 4, 3), "uint8")
SMALL = {"width": 8, "depth": 1}
WEIGHTS = Weights("run", "0" * 12, "uniform")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def examples(schema: Schema, count: int) -> Tensor:
    """Random, constant and smooth ones in turns, `[count, *shape]` uint8."""
    top = 2 if schema.values.name == "binary" else 256
    x = torch.randint(0, top, (count, *schema.shape))
    x[1::4] = top - 1
    x[2::4] = torch.arange(x[2::4].numel()).view_as(x[2::4]) // 7 % top
    x[3::4] = 0
    return x.to(torch.uint8)


def named(names: list[str], x: Tensor) -> NamedBatch:
    return NamedBatch(names, Batch(x), [None] * len(x))


def written(model: Model, x: Tensor, path: Path, **options: Any) -> files.Compressed:
    return files.write_compressed(
        model, [named([f"x-{i}" for i in range(len(x))], x)], str(path), WEIGHTS, workers=1, **options
    )


def read(model: Model, path: Path, **options: Any) -> list[Tensor]:
    container = Container(str(path))
    check(container, model, WEIGHTS)
    return [x for _, x in files.read_compressed(container, model, workers=1, **options)]


def make(kind: str, schema: Schema, **options: Any) -> Model:
    """An untrained model of the catalogue, evaluated, with a stretched latent that says something."""
    return making.make(kind, schema, **options).eval()


# round trips

MODELS = [
    *[("vqvae", COLOUR, {**SMALL, "quantizer": name, "grid_size": 4}) for name in names("quantizer")],
    ("vqvae", GREY, {**SMALL, "grid_size": 4, "codebook_size": 5}),
    ("vqvae", BITS, {**SMALL, "grid_size": 4, "codebook_size": 1}),
    ("vqvae", Schema.of(ROW, "uint8"), {"width": 8, "depth": 1, "codebook_size": 16}),
    ("vqvae", GREY, {**SMALL, "likelihood": "categorical", "codebook_size": 8}),
    ("vqvae", TINY, {**SMALL, "likelihood": "autoregressive", "pixel_width": 8, "pixel_depth": 1}),
    ("vqvae2", GREY, {**SMALL, "grid_size": 4, "codebook_size": 16}),
    ("vae", GREY, SMALL),
    ("vae", COLOUR, {**SMALL, "latent_layout": "grid"}),
    ("vae", BITS, SMALL),
    ("vae", Schema.of(ROW, "binary"), {"width": 8, "depth": 1}),
    ("vae", TINY, {**SMALL, "latent_dim": 2, "likelihood": "autoregressive", "pixel_width": 8, "pixel_depth": 1}),
    ("beta-vae", GREY, SMALL),
]


@pytest.mark.parametrize(("kind", "schema", "options"), MODELS)
def test_every_value_comes_back(kind: str, schema: Schema, options: dict[str, Any], tmp_path: Path) -> None:
    model, x = make(kind, schema, **options), examples(schema, 13)
    result = written(model, x, tmp_path / "file")
    assert torch.equal(torch.stack(read(model, tmp_path / "file")), x)
    assert result.numbers == x.numel()
    assert result.bytes == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("kind", names("code-prior"))
@pytest.mark.parametrize("lossy", [False, True])
def test_learned_priors_code_all_levels(kind: str, lossy: bool, tmp_path: Path) -> None:
    model: Any = make("vqvae2", GREY, **SMALL, grid_size=4, codebook_size=16)
    entry = next(e for e in entries("code-prior") if e.name == kind)
    size = {} if kind == "uniform" else {"width": 8, "depth": 1}
    shapes = zip(model.prior_shapes, model.context_channels, strict=True)
    model.set_prior([entry.load()(**size).build(s, 16, context_channels=c).eval() for s, c in shapes])
    x = examples(GREY, 9)
    written(model, x, tmp_path / "file", lossy=lossy)
    back = torch.stack(read(model, tmp_path / "file"))
    if lossy:
        torch.testing.assert_close(back, model.reconstruct(x))
    else:
        assert torch.equal(back, x)


@pytest.mark.parametrize("kind", ["vqvae", "vae"])
def test_pictures_of_any_size_come_back_by_tiles(kind: str, tmp_path: Path) -> None:
    model = make(kind, GREY, **SMALL)
    sizes = [(9, 10), (1, 1), (20, 30), (27, 11), (8, 40)]
    pictures = [torch.randint(0, 256, (1, 1, *size), dtype=torch.uint8) for size in sizes]
    every = [named([f"p{i}"], x) for i, x in enumerate(pictures)]
    result = files.write_compressed(model, every, str(tmp_path / "file"), WEIGHTS, workers=1)
    back = read(model, tmp_path / "file")
    assert all(torch.equal(a, b[0]) for a, b in zip(back, pictures, strict=True))
    assert result.numbers == sum(h * w for h, w in sizes)


def test_codes_of_pictures_of_any_size_come_back(tmp_path: Path) -> None:
    model: Any = make("vqvae2", Schema.of((1, 16, 16), "uint8"), **SMALL, grid_size=4, codebook_size=16)
    pictures = [torch.randint(0, 256, (1, 1, *size), dtype=torch.uint8) for size in ((16, 16), (40, 23), (5, 50))]
    every = [named([f"p{i}"], x) for i, x in enumerate(pictures)]
    files.write_compressed(model, every, str(tmp_path / "file"), WEIGHTS, lossy=True, workers=1)
    for one, x in zip(read(model, tmp_path / "file"), pictures, strict=True):
        assert one.shape == x.shape[1:]
    torch.testing.assert_close(read(model, tmp_path / "file")[0], model.reconstruct(pictures[0])[0])


def test_chunks_and_their_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = examples(GREY, 50)
    monkeypatch.setattr(coders, "BATCH", 7)
    for kind in ("vqvae", "vae"):
        monkeypatch.setattr(coders, "LONGEST", 90 * 20)
        model = make(kind, GREY, **SMALL)
        written(model, x, tmp_path / kind)
        chunks = list(Container(str(tmp_path / kind)).chunks())
        assert sum(sum(chunk.batches) for chunk in chunks) == 50
        assert max(max(chunk.batches) for chunk in chunks) <= 7
        assert len(chunks) == (8 if kind == "vqvae" else 3)
        assert torch.equal(torch.stack(read(model, tmp_path / kind)), x)


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(coders, "BATCH", 16)
    schema = Schema.of((3, 16, 16), "uint8")
    model, x = make("vqvae", schema, width=32, depth=2, grid_size=8), examples(schema, 64)
    before = torch.get_num_threads()
    try:
        for threads, workers in ((1, 1), (4, 3)):
            torch.set_num_threads(threads)
            every = [named([f"x-{i}" for i in range(64)], x)]
            files.write_compressed(model, every, str(tmp_path / f"{threads}"), WEIGHTS, workers=workers)
            assert torch.get_num_threads() == threads
        assert (tmp_path / "1").read_bytes() == (tmp_path / "4").read_bytes()
        container = Container(str(tmp_path / "1"))
        back = torch.stack([one for _, one in files.read_compressed(container, model, workers=3)])
        assert torch.equal(back, x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_file_says_what_precision_it_needs(precision: Any, tmp_path: Path) -> None:
    for kind in ("vqvae", "vae"):
        model, x = make(kind, GREY, **SMALL), examples(GREY, 8)
        written(model, x, tmp_path / "file", precision=precision)
        assert Container(str(tmp_path / "file")).header.precision == precision
        assert torch.equal(torch.stack(read(model, tmp_path / "file")), x)


@pytest.mark.parametrize("kind", ["vqvae", "vae"])
def test_how_examples_lie_in_memory_changes_nothing(kind: str, tmp_path: Path) -> None:
    schema = Schema.of((1, 8, 8), "uint8")
    grid = {"grid_size": 8} if kind == "vqvae" else {}
    model, x = make(kind, schema, width=8, depth=1, **grid), examples(schema, 3)
    odd = x.as_strided(x.shape, (64, 1, 8, 1))
    assert torch.equal(odd, x)
    written(model, odd, tmp_path / "file", precision="float32")
    assert torch.equal(torch.stack(read(model, tmp_path / "file")), x)


# length


@pytest.mark.parametrize("kind", ["vqvae", "vae"])
def test_the_file_is_as_long_as_the_bound(kind: str, tmp_path: Path) -> None:
    model, x = make(kind, GREY, **SMALL), examples(GREY, 400)
    result = written(model, x, tmp_path / "file", precision="float32")
    with torch.no_grad():
        terms = model(x, noise=tessella_noise())
    assert terms.bound is not None
    bound = float(terms.bound.sum())
    assert result.bound == pytest.approx(bound, rel=0.005)
    assert result.bytes < 1.02 * bound / math.log(2) / 8 + 200


def tessella_noise():
    from tessella.core.rng import Noise

    return Noise(0)


def test_codes_alone_are_as_long_as_their_rate(tmp_path: Path) -> None:
    model, x = make("vqvae", GREY, **SMALL), examples(GREY, 300)
    rate = float(model.rate(model.encode(x)).total.sum())
    result = written(model, x, tmp_path / "file", lossy=True)
    assert result.bound == pytest.approx(rate, rel=1e-4)
    assert result.bytes < 1.01 * rate / math.log(2) / 8 + 300  # names and header


# what is refused


def test_models_that_cannot_code_say_why(tmp_path: Path) -> None:
    x = examples(GREY, 4)
    labelled = replace(GREY, classes=("a", "b"))
    real = Schema.of((4,), Real(-1, 1), (0.0,), (1.0,))
    for model, options, complaint in (
        (make("ae", GREY, **SMALL), {}, "no prior"),
        (make("vae", GREY, **SMALL), {"lossy": True}, "no codes to keep"),
        (make("cvae", labelled, **SMALL), {}, "needs a label"),
        (make("vae", real, width=8, depth=1), {}, "density"),
        (make("vqvae", real, width=8, depth=1), {}, "density"),
    ):
        with pytest.raises(SpecError, match=complaint):
            written(model, x, tmp_path / "file", **options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_compress_is_refused(tmp_path: Path) -> None:
    with raises("no-examples"):
        files.write_compressed(make("vae", GREY, **SMALL), [], str(tmp_path / "file"), WEIGHTS)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_and_other_rounding_are_told_apart(tmp_path: Path) -> None:
    model, x = make("vqvae", GREY, **SMALL), examples(GREY, 8)
    written(model, x, tmp_path / "file")
    container = Container(str(tmp_path / "file"))
    with raises("other-weights"):
        check(container, model, Weights("elsewhere", "1" * 12, "uniform"))
    with raises("other-prior"):
        check(container, model, Weights("run", "0" * 12, "pixelcnn", "2" * 12))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0001)
    with raises("undecodable"):
        read(model, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    there = container.header.made.replace("torch", "tauch").encode()
    bench = _bench()
    (tmp_path / "file").write_bytes(bench.mended(data.replace(container.header.made.encode(), there)))
    with raises("other-rounding"):
        read(model, tmp_path / "file")


def _bench() -> Any:
    import sys

    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("containers")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_header_keeps_its_chunks(tmp_path: Path) -> None:
    """An edited header with a right checksum of its own fits no chunk: no picture is cropped or renamed by it."""
    model = make("vqvae", GREY, **SMALL)
    pictures = [named([f"p{i}"], torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8)) for i in range(2)]
    files.write_compressed(model, pictures, str(tmp_path / "file"), WEIGHTS, workers=1)
    container = Container(str(tmp_path / "file"))
    chunks = list(container.chunks())
    smaller = replace(container.header, sizes=container.header.sizes - 1)
    (tmp_path / "file").write_bytes(pack_header(smaller) + b"".join(map(pack_chunk, chunks)))
    with raises("undecodable"):
        read(model, tmp_path / "file")
    same = pack_header(container.header)
    (tmp_path / "file").write_bytes(same + b"".join(map(pack_chunk, chunks)))
    assert len(read(model, tmp_path / "file")) == 2
    assert sealed(b"12345678", same[-8:]) != sealed(b"12345678", pack_header(smaller)[-8:])


def test_names_that_count_take_no_room(tmp_path: Path) -> None:
    model, x = make("vae", GREY, **SMALL), examples(GREY, 300)
    written(model, x, tmp_path / "counted")
    apart = [[f"{hash(i)}-name-{i * i}" for i in range(300)]]
    files.write_compressed(model, [named(apart[0], x)], str(tmp_path / "apart"), WEIGHTS, workers=1)
    counted, other = (Container(str(tmp_path / name)) for name in ("counted", "apart"))
    assert counted.bytes + 300 < other.bytes
    assert isinstance(counted.header.names, Numbered)
    assert list(counted.header.names) == [f"x-{i}" for i in range(300)]
    assert counted.header.names[-1] == "x-299"
    assert list(other.header.names) == apart[0]


def test_a_header_holds_any_name_and_not_more_than_it_can(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, x = make("vae", GREY, **SMALL), examples(GREY, 3)
    called = ["f\xfc\u2603r/\udcff", "line\nbreak", "-12"]
    hidden = replace(WEIGHTS, run=str(tmp_path / "new\nline"))
    files.write_compressed(model, [named(called, x)], str(tmp_path / "file"), hidden, workers=1)
    container = Container(str(tmp_path / "file"))
    assert list(container.header.names) == called
    assert container.header.run == ""
    monkeypatch.setattr(importlib.import_module("tessella.coding.container"), "NAMES_MOST", 20)
    with raises("too-many-names"):
        files.write_compressed(model, [named(called, x)], str(tmp_path / "more"), WEIGHTS, workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_bits_back_keeps_what_it_started_from(tmp_path: Path) -> None:
    """The words that the coder began with are left when all is decoded."""
    model: Any = make("vae", GREY, **SMALL)
    coder = coders.BitsBack(model)
    coded = coder.encode(examples(GREY, 40))
    assert 0 < coded.chunk.spare < 60
    assert torch.equal(coder.decode(coded.chunk), examples_again(40))


def examples_again(count: int) -> Tensor:
    torch.manual_seed(0)
    make("vae", GREY, **SMALL)
    return examples(GREY, count)


# fuzz


@dataclass(frozen=True)
class Valid:
    """A file, what made it, and what it holds."""

    data: bytes
    model: Model
    originals: list[Tensor]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[Valid]:
    folder, found = tmp_path_factory.mktemp("valid"), []
    for kind, schema, options, lossy in (
        ("vqvae", BITS, {**SMALL, "grid_size": 4, "codebook_size": 8}, False),
        ("vqvae", GREY, {**SMALL, "grid_size": 4, "codebook_size": 8}, True),
        ("vae", BITS, {**SMALL, "latent_dim": 4}, False),
        ("vae", Schema.of(ROW, "uint8"), {"width": 8, "depth": 1, "latent_dim": 2}, False),
    ):
        torch.manual_seed(1)
        model, x = make(kind, schema, **options), examples(schema, 6)
        written(model, x, folder / "file", lossy=lossy)
        found.append(Valid((folder / "file").read_bytes(), model, read(model, folder / "file")))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_or_give_the_same(seed: int, valid: list[Valid], tmp_path: Path) -> None:
    bench, rng = _bench(), np.random.default_rng(seed)
    outcomes = []
    for i in range(60):
        one = valid[(seed + i) % len(valid)]
        (tmp_path / "file").write_bytes(bench.mutated(one.data, [v.data for v in valid], rng))
        outcomes.append(bench.judged(tmp_path / "file", one.model, WEIGHTS, one.originals))
    assert outcomes.count("refused") > 50


def test_the_judge_sees_wrong_pixels(valid: list[Valid], tmp_path: Path) -> None:
    one = valid[0]
    (tmp_path / "file").write_bytes(one.data)
    wrong = [1 - x for x in one.originals]
    with pytest.raises(AssertionError, match="not the original"):
        _bench().judged(tmp_path / "file", one.model, WEIGHTS, wrong)


def test_every_byte_of_a_file_counts(valid: list[Valid], tmp_path: Path) -> None:
    """Cut anywhere, or with any one byte another, a file is refused."""
    bench = _bench()
    for one in valid[:2]:
        for at in range(0, len(one.data), 3):
            for draft in (one.data[:at], one.data[:at] + bytes([one.data[at] ^ 1]) + one.data[at + 1 :]):
                (tmp_path / "file").write_bytes(draft)
                assert bench.judged(tmp_path / "file", one.model, WEIGHTS, one.originals) == "refused"


# the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    tiny = ("--data", "digits", "--quiet", "--steps", "3", "--width", "8", "--depth", "1")
    for name, kind, options in (("codes", "vqvae", ("--codebook-size", "8")), ("vae", "vae", ())):
        assert main(["train", kind, *tiny, *options, "--out", str(folder / name)]) == 0
    prior = ("--steps", "3", "--batch-size", "16", "--width", "8", "--depth", "1", "--quiet")
    assert main(["fit-prior", str(folder / "codes"), *prior]) == 0
    return {name: folder / name for name in ("codes", "vae")}


@pytest.mark.parametrize("name", ["codes", "vae"])
def test_numbers_of_examples_come_back_as_pictures(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "some.tes", tmp_path / "out"
    assert main(["compress", str(runs[name]), "3", "0", "7", "-o", str(file)]) == 0
    said = capsys.readouterr().out
    assert "the model's bound" in said
    assert "PNG" in said
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert "3 of 1x8x8 uint8 values: test-3 ... test-7" in said
    assert main(["decompress", str(file), "-o", str(out)]) == 0
    split = tessella.open_data("digits").split("test")
    for number in (3, 0, 7):
        kept = np.asarray(Image.open(out / f"test-{number}.png"))
        assert np.array_equal(kept, split.batch([number]).x[0, 0].numpy())


def test_a_folder_of_pictures_comes_back_at_its_sizes(runs: dict[str, Path], tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    (folder / "in").mkdir(parents=True)
    made = {"a": (8, 8), "in/b": (13, 21), "c": (2, 30)}
    for name, size in made.items():
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{name}.png")
    file, out = tmp_path / "f.tes", tmp_path / "out"
    assert main(["compress", str(runs["codes"]), str(folder), "--native-size", "-o", str(file)]) == 0
    assert main(["decompress", str(file), "-o", str(out)]) == 0
    for name in made:
        before, after = (np.asarray(Image.open(where / f"{name}.png")) for where in (folder, out))
        assert np.array_equal(before, after)


def test_codes_alone_at_the_command_line(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "f.tes"
    assert main(["compress", str(runs["codes"]), "0", "1", "--lossy", "-o", str(file)]) == 0
    assert "the model's rate" in capsys.readouterr().out
    assert main(["decompress", str(file), "-o", str(tmp_path / "out")]) == 0
    assert main(["decode", *_decoded(runs, tmp_path)]) == 0
    assert (tmp_path / "out" / "test-1.png").read_bytes() == (tmp_path / "decoded" / "test-1.png").read_bytes()


def _decoded(runs: dict[str, Path], tmp_path: Path) -> list[str]:
    assert main(["encode", str(runs["codes"]), "0", "1", "-o", str(tmp_path / "codes.npz")]) == 0
    return [str(runs["codes"]), str(tmp_path / "codes.npz"), "-o", str(tmp_path / "decoded")]


def test_mistakes_take_one_line(runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "f.tes"
    assert main(["compress", str(runs["codes"]), "0", "-o", str(file)]) == 0
    (tmp_path / "empty").touch()
    (tmp_path / "foreign").write_bytes(b"GIF89a" * 10)
    (tmp_path / "newer").write_bytes(file.read_bytes()[:4] + b"\x09" + file.read_bytes()[5:])
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-3])
    for name, complaint in {
        "missing": "no such file",
        "empty": "is empty",
        "foreign": "is not a compressed file",
        "newer": "version 9",
        "cut": "is damaged (chunk 0: it ends early)",
    }.items():
        for command in (["inspect"], ["decompress", "--run", str(runs["codes"])]):
            where = ["-o", tmp_path / "out"] if command[1:] else []
            assert complaint in refused(command[0], tmp_path / name, *command[1:], *where)
    assert "give the run that made it" in refused("decompress", file, "-o", tmp_path / "out", "--run", runs["vae"])
    assert "give a folder" in refused("decompress", file, "-o", file)
    assert "is a folder" in refused("compress", runs["codes"], "0", "-o", tmp_path)
    assert "no codes to keep" in refused("compress", runs["vae"], "0", "--lossy", "-o", tmp_path / "x")
    assert "no such input" in refused("compress", runs["vae"], "none.png", "-o", tmp_path / "x")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "deeper").mkdir()
    (tmp_path / "moved" / "deeper" / "f.tes").write_bytes(file.read_bytes())
    assert "give its path with --run" in refused("decompress", tmp_path / "moved" / "deeper" / "f.tes")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x").exists()


def test_the_prior_of_the_file_is_used(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for prior in ("uniform", "pixelcnn"):
        file = tmp_path / f"{prior}.tes"
        assert main(["compress", str(runs["codes"]), "0", "--prior", prior, "-o", str(file)]) == 0
        assert main(["decompress", str(file), "-o", str(tmp_path / prior)]) == 0
        assert main(["inspect", str(file)]) == 0
        assert f"prior {prior}" in capsys.readouterr().out
    assert (tmp_path / "uniform" / "test-0.png").read_bytes() == (tmp_path / "pixelcnn" / "test-0.png").read_bytes()


def test_pictures_that_are_fitted_are_counted(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in {"a": (8, 8), "b": (20, 9)}.items():
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}.png")
    assert main(["compress", str(runs["vae"]), str(tmp_path), "-o", str(tmp_path / "f.tes")]) == 0
    assert (
        "note: pictures of other sizes (1) are fitted to 8x8 pixels: --native-size keeps their sizes"
        in capsys.readouterr().err
    )


def test_codes_that_say_nothing_have_no_size(tmp_path: Path) -> None:
    model = make("vqvae", GREY, **SMALL, codebook_size=1)
    with raises("one-code"):
        written(model, torch.zeros(1, 1, 30, 30, dtype=torch.uint8), tmp_path / "file", lossy=True)
