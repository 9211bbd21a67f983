"""Models of codes at the command line: priors, samples, codes in files and back, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.cli import main
from tessella.core.tensors import read_tensors, write_tensors
from tessella.models.codes import CodeModel
from tessella.training import checkpoint, fit_prior, fitted_priors, loop, prior_trainer

TINY = (
    "--steps",
    "20",
    "--batch-size",
    "32",
    "--width",
    "8",
    "--depth",
    "1",
    "--grid-size",
    "4",
    "--codebook-size",
    "8",
)
PRIOR = ("--steps", "20", "--batch-size", "32", "--width", "8", "--depth", "1", "--learning-rate", "1e-2", "--quiet")
"""Just enough for the prior to beat the uniform one, so that it is the one in use."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A VQ-VAE without a prior, with one, and with one that sees labels; another one; and a model without codes."""
    folder = tmp_path_factory.mktemp("runs")
    train = ["train", "vqvae", "--data", "digits", "--quiet", *TINY]
    assert main([*train, "--out", str(folder / "bare")]) == 0
    assert main([*train, "--seed", "1", "--out", str(folder / "other")]) == 0
    for name, options in (("plain", ()), ("labelled", ("--class-conditional",))):
        shutil.copytree(folder / "bare", folder / name)
        assert main(["fit-prior", str(folder / name), *PRIOR, *options]) == 0
    vae = ["train", "vae", "--data", "digits", "--quiet", "--steps", "2", "--width", "8", "--depth", "1"]
    assert main([*vae, "--out", str(folder / "vae")]) == 0
    return {name: folder / name for name in ("bare", "plain", "labelled", "other", "vae")}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run with a prior, of one's own."""
    return Path(shutil.copytree(runs["plain"], tmp_path / "run"))


# prior


def test_a_prior_says_what_it_saves_and_what_comes_next(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs["bare"], tmp_path / "run")
    options = ["--steps", "60", "--batch-size", "32", "--width", "16", "--depth", "1"]
    assert main(["fit-prior", str(run), "--kind", "transformer", *options]) == 0
    said = capsys.readouterr().out
    assert f"fitted for 60 steps, {said.split('60 steps, ')[1].split()[0]} seconds: {run}/priors/transformer" in said
    assert f"{16 * np.log(8):.2f} nats ({16 * 3 / 64:.3f} bits/dim) under the uniform prior" in said
    assert "% saved" in said
    assert f"tessella sample {run}" in said
    spec = json.loads((run / "priors" / "transformer" / "spec.json").read_text())
    assert f"rate     {spec['rate']:.2f} nats" in said
    assert spec["training"]["steps"] == 60
    rates = [
        json.loads(line)["learning_rate"]
        for line in (run / "priors" / "transformer" / "metrics.jsonl").open()
        if json.loads(line)["kind"] == "train"
    ]
    assert max(rates) <= prior_trainer.PriorTrainer.learning_rate


def test_resuming_a_prior_needs_its_kind_alone(run: Path, refused: Callable[..., str]) -> None:
    assert main(["fit-prior", str(run), "--resume", "--steps", "24", "--quiet"]) == 0
    home = fitted_priors.prior_home(run, "pixelcnn")
    assert read_tensors(home / checkpoint.MODEL).progress["step"] == 24
    assert main(["fit-prior", str(run), *PRIOR, "--resume"]) == 0  # the same command once more
    assert "width 8, not 16" in refused("fit-prior", run, "--resume", "--width", 16)
    assert "class conditional False, not True" in refused("fit-prior", run, "--resume", "--class-conditional")
    assert "batch size 32, not 64" in refused("fit-prior", run, "--resume", "--batch-size", 64)
    assert "one of them" in refused("fit-prior", run, "--resume", "--overwrite")
    assert "there are: pixelcnn" in refused("fit-prior", run, "--kind", "masked", "--resume")


@pytest.mark.parametrize("kind", ["pixelcnn", "masked"])
def test_a_stopped_prior_says_how_to_go_on(
    kind: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = fit_prior.FitResult(loop.TrainResult(run, 7, 1.0, "signal"), None, 33.0)
    monkeypatch.setattr(fit_prior, "fit_prior", lambda *a, **k: stopped)
    assert main(["fit-prior", str(run), "--kind", kind, "--quiet"]) == 130
    named = "" if kind == "pixelcnn" else " --kind masked"
    assert f"go on with: tessella fit-prior {run}{named} --resume" in capsys.readouterr().out


def test_what_has_no_prior_over_codes_is_refused(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "models codes" in refused("fit-prior", runs["vae"], *PRIOR)
    assert "not a run" in refused("fit-prior", tmp_path / "nowhere", *PRIOR)
    assert "nothing to fit" in refused("fit-prior", runs["bare"], "--kind", "uniform")
    assert "there are: uniform, pixelcnn" in refused("fit-prior", runs["bare"], "--kind", "psychic")
    assert "one budget" in refused("fit-prior", runs["bare"], "--steps", 3, "--minutes", 1)
    assert "width must be at least 1" in refused("fit-prior", runs["bare"], "--width", 0)
    assert "--overwrite" in refused("fit-prior", runs["plain"], *PRIOR)
    assert not (runs["bare"] / "priors").exists()
    np.savez(tmp_path / "plain.npz", x=np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8))
    out = tmp_path / "run"
    assert main(["train", "vqvae", "--data", str(tmp_path / "plain.npz"), "--out", str(out), "--quiet", *TINY]) == 0
    assert "no labels" in refused("fit-prior", out, *PRIOR, "--class-conditional")


# samples and measures


def test_samples_follow_prior_class_and_cut_offs(runs: dict[str, Path], tmp_path: Path) -> None:
    def drawn(name: str, *options: object) -> bytes:
        out = tmp_path / "s.png"
        assert main(["sample", str(runs[name]), "-n", "16", "-o", str(out), *map(str, options)]) == 0
        return out.read_bytes()

    assert drawn("plain") == drawn("plain") == drawn("plain", "--prior", "pixelcnn")
    assert drawn("plain", "--prior", "uniform") == drawn("bare") != drawn("plain")
    assert drawn("plain", "--top-k", 1) == drawn("plain", "--top-k", 1, "--seed", 5) != drawn("plain")
    assert drawn("plain", "--temperature", 0) == drawn("plain", "--top-k", 1)
    assert drawn("plain", "--top-p", 0.3) != drawn("plain")
    assert drawn("labelled", "--label", 3) != drawn("labelled", "--label", 4)


def test_every_class_is_a_row(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(runs["labelled"]), "-n", "20", "-o", str(tmp_path / "s.png")]) == 0
    assert "rows, top to bottom: 0, 1, 2" in capsys.readouterr().out


def test_samples_that_cannot_be_are_refused(runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "s.png"
    cases = [
        (["plain", "--label", "3"], "RUN with --class-conditional"),
        (["bare", "--label", "3"], "RUN with --class-conditional"),
        (["labelled", "--prior", "uniform", "--label", "3"], "--class-conditional"),
        (["labelled", "--label", "eleven"], "there are: 0, 1"),
        (["plain", "--prior", "masked"], "there are: pixelcnn"),
        (["plain", "--top-k", "0"], "top-k"),
        (["plain", "--top-p", "1.5"], "top-p"),
        (["plain", "--temperature", "-1"], "temperature"),
        (["vae", "--top-k", "3"], "top-k"),
        (["vae", "--prior", "pixelcnn"], "no codes"),
    ]
    for (name, *options), says in cases:
        line = refused("sample", runs[name], *options, "-o", out)
        assert says in line, (options, line)
        assert not out.exists()


def test_a_prior_of_other_weights_is_not_used(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoint.fingerprint(run)
    assert main(["train", "--resume", "--out", str(run), "--steps", "21", "--quiet"]) == 0
    out = ["-n", "2", "-o", str(tmp_path / "s.png")]
    capsys.readouterr()
    assert main(["sample", str(run), *out]) == 0
    assert "tessella: note: the priors in" in capsys.readouterr().err
    assert main(["sample", str(run), "--prior", "pixelcnn", *out]) == 2
    said = capsys.readouterr().err
    assert before in said
    assert checkpoint.fingerprint(run) in said
    assert main(["fit-prior", str(run), *PRIOR, "--overwrite"]) == 0
    assert main(["sample", str(run), "--prior", "pixelcnn", *out]) == 0


def test_evaluation_says_how_codes_are_used_and_keeps_what_is_the_default(
    runs: dict[str, Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = {}
    for name, options in (("fitted", []), ("uniform", ["--prior", "uniform"])):
        capsys.readouterr()
        assert main(["evaluate", str(run), "--json", *options]) == 0
        records[name] = json.loads(capsys.readouterr().out)
    fitted, uniform = records["fitted"], records["uniform"]
    assert fitted["distortion"] == uniform["distortion"]
    assert fitted["rate"] < uniform["rate"] == pytest.approx(16 * np.log(8))
    assert (fitted["codes"]["learned"], uniform["codes"]["learned"]) == (True, False)
    for name in ("codes_per_example", "codebook_size", "code_usage", "perplexity", "rate_uniform"):
        assert fitted["codes"][name] == pytest.approx(uniform["codes"][name]), name
    assert json.loads((run / "results/evaluation-test.json").read_text())["rate"] == fitted["rate"]
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "code usage" in said
    assert "perplexity" in said
    assert "given the label" not in said
    assert main(["evaluate", str(runs["labelled"]), "--split", "valid"]) == 0
    assert "vqvae, given the label, on 89 examples" in capsys.readouterr().out


def test_a_collapsed_codebook_is_warned_of_with_the_remedy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = read_tensors(run / checkpoint.MODEL)
    weights = {n: torch.zeros_like(t) if ".head." in n else t for n, t in state.tensors.items()}
    write_tensors(run / checkpoint.MODEL, weights, state.progress)
    assert main(["evaluate", str(run), "--prior", "uniform"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the codebook has collapsed: 1 of its 8 codes occur" in said
    assert "quantizer" in said
    assert "codebook size" in said


def test_training_ends_with_a_warning_if_the_codebook_collapsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessella.bottlenecks import codebooks

    monkeypatch.setattr(codebooks.AveragedCodebook, "learn", lambda *a: None)
    monkeypatch.setattr(codebooks.AveragedCodebook, "start", lambda self, *a: self.table().data.fill_(100.0))
    options = ["--steps", "3", "--width", "8", "--depth", "1", "--codebook-size", "8", "--quiet"]
    assert main(["train", "vqvae", "--data", "digits", "--out", str(tmp_path / "run"), *options]) == 0
    said = capsys.readouterr().err
    assert said.count("has collapsed") == 1
    assert "quantizer fsq" in said


def test_looks_need_no_label_whatever_the_prior(runs: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 12, 3), 99, np.uint8)).save(tmp_path / "in.png")
    out = ["-o", str(tmp_path / "out.png")]
    for args in (["reconstruct", "in.png"], ["interpolate", "in.png", "3"], ["traverse", "in.png"]):
        command, *inputs = [str(tmp_path / a) if a == "in.png" else a for a in args]
        assert main([command, str(runs["labelled"]), *inputs, *out]) == 0


# encode and decode


def test_codes_of_a_split_come_back_as_its_reconstructions(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, out = tmp_path / "codes.npz", tmp_path / "out"
    assert main(["encode", str(runs["labelled"]), "-o", str(codes)]) == 0
    assert "141 examples, 16 codes and 6 bytes each" in capsys.readouterr().out
    assert main(["decode", str(runs["plain"]), str(codes), "-o", str(out)]) == 0  # the same weights
    assert len(os.listdir(out)) == 141
    model, data = tessella.load(runs["bare"]), tessella.open_data("digits")
    whole = model.reconstruct(data.split("test").batch(range(100)).x).round().to(torch.uint8)
    for number in (0, 7, 99):
        with Image.open(out / f"test-{number}.png") as image:
            assert np.array_equal(np.asarray(image), whole[number, 0].numpy())
    assert main(["decode", str(runs["plain"]), str(codes), "-o", str(tmp_path / "drawn"), "--sample"]) == 0
    assert (tmp_path / "drawn" / "test-0.png").read_bytes() != (out / "test-0.png").read_bytes()


def test_pictures_keep_their_names_and_their_size_when_asked_for(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, noise = tmp_path / "pictures", np.random.default_rng(0)
    for name, size in (("cat/one.png", (13, 21)), ("cat/two.jpg", (8, 8)), ("dog/one.png", (30, 9))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "dog" / "torn.png").write_bytes(b"no picture")
    for options, sizes in (([], [(8, 8)] * 3), (["--native-size"], [(21, 13), (8, 8), (9, 30)])):
        codes, out = tmp_path / "codes.npz", tmp_path / f"out{len(options)}"
        assert main(["encode", str(runs["plain"]), str(folder), "-o", str(codes), *options]) == 0
        assert "tessella: note: 1 of 4 pictures could not be read" in capsys.readouterr().err
        assert main(["decode", str(runs["plain"]), str(codes), "-o", str(out)]) == 0
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        assert found == ["cat/one.png", "cat/two.png", "dog/one.png"]
        assert [Image.open(out / name).size for name in found] == sizes
    again = tmp_path / "numbers.npz"
    assert main(["encode", str(runs["plain"]), "3", str(folder / "cat" / "one.png"), "-o", str(again)]) == 0
    assert np.load(again)["names"].tolist() == ["test-3", "one"]


def test_vectors_are_encoded_and_decoded_to_arrays(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "rows.csv", np.random.default_rng(0).normal(size=(90, 5)), delimiter=",")
    run, codes, out = (str(tmp_path / name) for name in ("run", "codes.npz", "out"))
    train = ["train", "vqvae", "--data", str(tmp_path / "rows.csv"), "--out", run, "--steps", "3", "--quiet"]
    assert main([*train, "--width", "8", "--depth", "1", "--codes-per-position", "2", "--codebook-size", "8"]) == 0
    assert main(["encode", run, "-o", codes]) == 0
    assert np.load(codes)["level0"].shape[1:] == (2,)
    assert main(["decode", run, codes, "-o", out]) == 0
    assert np.load(Path(out) / "test-0.npy").shape == (5,)


def test_what_cannot_be_encoded_or_decoded_is_refused_and_nothing_is_left(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    codes, out = tmp_path / "codes.npz", tmp_path / "out"
    (tmp_path / "torn.png").write_bytes(b"no picture")
    (tmp_path / "file").write_text("")
    for args, says in (
        (["vae"], "train a vqvae"),
        (["plain", "missing.png"], "no such input"),
        (["plain", "999"], "from 0 to 140"),
        (["plain", tmp_path / "torn.png"], "cannot be read"),
        (["plain", "3", "--native-size"], "--native-size works only for picture files"),
        (["plain", "--split", "holdout"], "train, valid, test"),
    ):
        name, *rest = args
        assert says in refused("encode", runs[str(name)], *rest, "-o", codes), args
        assert not codes.exists()
    assert ".npz" in refused("encode", runs["plain"], "-o", tmp_path / "codes.zip")
    assert main(["encode", str(runs["plain"]), "-o", str(codes)]) == 0
    mine, others = (checkpoint.fingerprint(runs[name]) for name in ("plain", "other"))
    line = refused("decode", runs["other"], codes, "-o", out)
    assert mine in line
    assert others in line
    assert str(codes) in line
    assert "no codes" in refused("decode", runs["vae"], codes, "-o", out)
    assert "no such file" in refused("decode", runs["plain"], tmp_path / "missing.npz", "-o", out)
    assert "give a folder" in refused("decode", runs["plain"], codes, "-o", tmp_path / "file")
    whole, arrays = codes.read_bytes(), dict(np.load(codes))
    for content, says in (
        ({"level0": np.full_like(arrays["level0"], 8)}, "between 0 and 7"),
        ({"level0": arrays["level0"][:, :, 1:]}, "fit its size"),
        ({"names": np.full(141, "same")}, "the same name"),
        ({"names": np.full(141, "../../up")}, "leads out"),
        ({"names": np.array([{}] * 141, dtype=object)}, "pickled"),
    ):
        np.savez(codes, **{**arrays, **content})  # pyright: ignore[reportArgumentType]
        assert says in refused("decode", runs["plain"], codes, "-o", out)
    codes.write_bytes(whole[: len(whole) // 2])
    assert str(codes) in refused("decode", runs["plain"], codes, "-o", out)
    assert not out.exists()


def test_codes_are_written_whole_or_not_at_all(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, **arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "disk is full" in refused("encode", runs["plain"], "-o", tmp_path / "codes.npz")
    assert os.listdir(tmp_path) == []


def test_a_loaded_model_knows_its_codes(runs: dict[str, Path]) -> None:
    model = tessella.load(runs["plain"])
    assert isinstance(model, CodeModel)
    assert [tuple(c.shape) for c in model.sample_codes(3)] == [(3, 1, 4, 4)]
