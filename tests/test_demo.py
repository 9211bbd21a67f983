"""The embedded clothes, the demo, and what happens when a learned prior is worse than the uniform one."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.cli import main, overview
from tessella.data import built_in
from tessella.data.built_in import FILE
from tessella.foundation.errors import on_command_line
from tessella.models.codes import CodeModel
from tessella.training import fitted_priors

ROOT = Path(__file__).parents[1]
DIGESTS = {
    "x_train": "e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883",
    "x_valid": "56016d1b65dc1bab3908520adec3002b99d21abddb52e5252b1b369b397b50d5",
    "x_test": "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
}
"""SHA-256 of the pictures' bytes, as `benchmarks/make_clothes.py` took them from the official arrays."""


# clothes


def test_clothes_are_what_was_taken_from_the_official_arrays() -> None:
    data = tessella.open_data("clothes")
    assert (data.schema.shape, data.schema.values.name) == ((1, 28, 28), "uint8")
    assert data.schema.classes[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert data.schema.classes[9] == "Ankle boot"
    seen: set[bytes] = set()
    for name, count in (("train", 10_000), ("valid", 1_000), ("test", 2_000)):
        split = data.split(name)
        batch = split.batch(np.arange(len(split)))
        x = batch.x.numpy()
        assert x.shape == (count, 1, 28, 28)
        assert hashlib.sha256(x.tobytes()).hexdigest() == DIGESTS[f"x_{name}"]
        assert batch.label is not None
        assert np.bincount(batch.label.numpy()).tolist() == [count // 10] * 10
        seen |= {picture.tobytes() for picture in x}
        assert len({*split.example_ids.tolist()}) == count
    assert len(seen) == 13_000  # no picture is there twice, nor in two splits


def test_clothes_come_with_the_package_and_their_licence() -> None:
    folder = resources.files("tessella.data")
    assert 1_000_000 < len(folder.joinpath(FILE).read_bytes()) < 5_000_000
    licence = folder.joinpath("clothes.LICENSE").read_text("utf-8")
    assert "Zalando SE" in licence
    assert "Permission is hereby granted, free of charge" in licence
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/tessella"]}  # everything under it, unless git ignores it
    for name in (FILE, "clothes.LICENSE"):
        ignored = subprocess.run(["git", "check-ignore", "-q", f"src/tessella/data/{name}"], cwd=ROOT, check=False)
        assert ignored.returncode != 0, name


def test_clothes_take_another_size_and_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tessella.open_data("clothes", size=16, channels=3).schema.shape == (3, 16, 16)
    assert "clothes" in overview()
    for command in (["describe"], ["train", "vae"], ["claims"]):
        assert main([*command, "--help"]) == 0
        assert "clothes" in capsys.readouterr().out, command
    assert main(["describe", "cloths", "-o", str(tmp_path / "s.png")]) == 2
    assert "clothes, digits, sprites, tones" in capsys.readouterr().err


# a learned prior that is worse than the uniform one


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prior learned too fast to learn anything: it costs more than the uniform one."""
    run = tmp_path_factory.mktemp("runs") / "worse"
    tiny = ["--width", "8", "--depth", "1", "--batch-size", "32", "--quiet"]
    train = ["train", "vqvae", "--data", "digits", "--grid-size", "4", "--codebook-size", "8", "--steps", "20"]
    assert main([*train, *tiny, "--out", str(run)]) == 0
    assert main(["fit-prior", str(run), *tiny, "--steps", "3", "--learning-rate", "1"]) == 0
    return run


def test_a_worse_prior_is_passed_over_and_every_command_says_so(
    worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = fitted_priors.read_prior_spec(fitted_priors.prior_home(worse, "pixelcnn"))
    assert spec.rate is not None
    assert spec.rate_before == pytest.approx(16 * np.log(8))
    assert spec.rate > spec.rate_before
    assert not spec.better
    assert fitted_priors.prior_in_use(worse) is None
    with pytest.warns(UserWarning, match="costs more than the uniform one on the validation split"):
        model = tessella.load(worse)
    assert isinstance(model, CodeModel)
    assert not model.fitted
    asked = tessella.load(worse, prior="pixelcnn")
    assert isinstance(asked, CodeModel)
    assert asked.fitted

    capsys.readouterr()
    out = str(tmp_path / "out")
    for words in (
        ["evaluate", str(worse)],
        ["sample", str(worse), "-n", "4", "-o", f"{out}.png"],
        ["report", str(worse)],
        ["compress", str(worse), "0", "1", "-o", f"{out}.tes", "--quiet"],
        ["detect", str(worse), "0", "1", "--scores", "bound", "-o", out],
    ):
        assert main(words) == 0, words
        said = capsys.readouterr().err
        assert said.count("so the uniform one is used") == 1, (words, said)
        assert "--overwrite" in said
        assert "--prior pixelcnn" in said
    page = (worse / "report.html").read_text("utf-8")
    assert "<b>Warning:</b> the fitted prior pixelcnn costs more than the uniform one" in page
    assert "No prior over codes has been fitted" not in page


def test_a_worse_prior_is_taken_if_it_is_asked_for(worse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {}
    for prior in (None, "pixelcnn"):
        capsys.readouterr()
        assert main(["evaluate", str(worse), "--json", *([] if prior is None else ["--prior", prior])]) == 0
        record = json.loads(capsys.readouterr().out)
        rates[prior] = record["rate"]
        assert record["codes"]["learned"] == (prior is not None)
        assert any("uniform one is used" in note for note in record["notes"]) == (prior is None)
    assert rates[None] == pytest.approx(16 * np.log(8))
    assert rates["pixelcnn"] > rates[None]
    assert main(["evaluate", str(worse), "--prior", "pixelcnn"]) == 0
    assert "% more" in " ".join(capsys.readouterr().out.split())


def test_fitting_says_that_the_uniform_prior_stays_in_use(
    worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(worse, tmp_path / "run")
    again = ["fit-prior", str(run), "--width", "8", "--depth", "1", "--batch-size", "32", "--quiet", "--overwrite"]
    assert main([*again, "--steps", "3", "--learning-rate", "1"]) == 0
    said = capsys.readouterr().out
    assert "% more, so the uniform prior is used" in said
    assert "--overwrite" in said
    assert main([*again, "--steps", "40", "--learning-rate", "1e-2"]) == 0
    assert "% saved" in capsys.readouterr().out
    assert str(fitted_priors.prior_in_use(run)).startswith("pixelcnn ")


def test_a_prior_that_nothing_measured_is_not_used_in_silence(worse: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(worse, tmp_path / "run"))
    home = fitted_priors.prior_home(run, "pixelcnn")
    record = json.loads((home / "spec.json").read_text())
    (home / "spec.json").write_text(json.dumps({**record, "rate": None}))
    assert "stopped before it was measured" in fitted_priors.choose_prior(run).note
    assert "--resume" in on_command_line(fitted_priors.choose_prior(run).note)
    (home / "spec.json").write_text(json.dumps({**record, "rate": None, "rate_before": None}))  # no validation split
    assert fitted_priors.choose_prior(run) == fitted_priors.PriorChoice(home)


# the demo


@pytest.mark.slow
def test_the_demo_shows_all_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with np.load(str(resources.files("tessella.data").joinpath(FILE))) as arrays:
        few = {name: array if name == "class_names" else array[::4] for name, array in arrays.items()}
    np.savez("few.npz", **few)  # the same clothes, fewer of them
    monkeypatch.setattr(built_in, "FILE", str(tmp_path / "few.npz"))
    run = Path("demo-run")
    assert main(["train", "vae", "--data", "digits", "--steps", "1", "--out", str(run)]) == 0  # it is replaced
    capsys.readouterr()
    assert main(["demo", "--minutes", "0.01"]) == 0
    said = capsys.readouterr()
    assert tessella.load(run).name == "vqvae"
    assert said.err.count(" of 8: ") == 8
    assert f"wrote {run / 'demo.html'}" in said.out
    page = (run / "demo.html").read_text("utf-8")
    for heading in ("Samples", "Codes and reconstructions", "An edit", "A search", "Anomalies", "A compressed file"):
        assert f">{heading}</h2>" in page, heading
    assert page.count("data:image/png;base64,") > 20
    learned = fitted_priors.prior_in_use(run) is not None
    assert ("uniform prior: each code as likely as any other" in page) == learned
    assert ("so the uniform one is used" in page) == (not learned)
    run.rename("other-run")
    assert main(["demo", "--minutes", "0.02", "--run", "other-run"]) == 2  # only `demo-run` is replaced
    assert "already exists" in capsys.readouterr().err
    assert main(["demo", "--minutes", "0"]) == 2
