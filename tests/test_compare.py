"""Runs beside each other: one table for what can be ranked, groups with their reason for what cannot."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import tessella
from making import make
from tessella.cli import main
from tessella.core.schema import Schema
from tessella.data import open_data
from tessella.evaluation import classifier
from tessella.evaluation.results import Estimate, GapEvaluation
from tessella.foundation.blocks import Chart, Series
from tessella.models.spec import TrainOptions
from tessella.pages.charts import draw_chart
from tessella.tasks.compare.measuring import run_names
from tessella.tasks.compare.records import Basis, best, differences
from tessella.training import checkpoint
from tessella.training.run import GAP

TINY = {"width": 8, "depth": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny runs: vae, ae and vqvae of the digits, a cvae, a vae of binary digits, and one of other digits."""
    folder = tmp_path_factory.mktemp("runs")
    makers = {
        "vae": (tessella.VAE, {"latent_dim": 4}, {}),
        "ae": (tessella.AE, {"latent_dim": 4}, {}),
        "vqvae": (tessella.VQVAE, {"codebook_size": 16, "grid_size": 4}, {}),
        "cvae": (tessella.CVAE, {"latent_dim": 4}, {}),
        "binary": (tessella.VAE, {"latent_dim": 4}, {"binarize": "static"}),
        "seed": (tessella.VAE, {"latent_dim": 4}, {"seed": 1}),
    }
    lookers: dict[str, classifier.Classifier] = {}
    for name, (preset, options, how) in makers.items():
        data = open_data("digits", **how)
        tessella.train(make(preset, data.schema, **TINY, **options), data, folder / name, TrainOptions(steps=3))
        of = classifier.data_fingerprint(data, "train")
        lookers.setdefault(of, classifier.train_classifier(data, seen=640))
        classifier.store(folder / name / classifier.FILE, lookers[of], of)
    return folder


def compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *given: str) -> dict:
    words = [str(runs / name) for name in given]
    assert main(["compare", *words, "-o", str(tmp_path / "page.html"), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_one_table_of_all_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(runs, tmp_path, capsys, "vae", "ae", "vqvae")
    (group,) = found["groups"]
    vae, ae, vqvae = group["runs"]
    assert found["not_ranked"] == []
    assert group["whole_split"]
    assert ae["evaluation"]["bound"] is None
    assert ae["fidelity"] is None
    assert "no bound" in ae["notes"][0]
    assert vae["fidelity"]["classifier"] == vqvae["fidelity"]["classifier"] != ""
    assert vae["fidelity"]["samples"] == 70  # half of the test split, against the other half
    lowest = min((vae, vqvae), key=lambda e: e["evaluation"]["bits_per_dim"])
    assert group["best"]["bits per dimension"] == [lowest["name"]]
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<table") == page.count("<svg") == 1
    assert page.count('src="data:image/png') == 3  # samples of two, and data
    for word in ("bits per dimension", "Frechet", "sharpness", "parameters", "an autoencoder has no prior"):
        assert word in page


def test_what_is_kept_is_taken(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = compared(runs, tmp_path, capsys, "vae", "vqvae")
    for name in ("vae", "vqvae"):
        assert main(["evaluate", str(runs / name), "--seed", "7"]) == 0
    capsys.readouterr()
    after = compared(runs, tmp_path, capsys, "vae", "vqvae")
    for name, old, new in zip(("vae", "vqvae"), before["groups"][0]["runs"], after["groups"][0]["runs"], strict=True):
        stored = tessella.Run(runs / name).results.evaluation("test")
        assert stored is not None
        assert new["evaluation"]["bound"] == pytest.approx(stored.bound)
        assert {k: v for k, v in old["fidelity"].items() if k != "seconds_per_sample"} == {
            k: v for k, v in new["fidelity"].items() if k != "seconds_per_sample"
        }


def test_what_cannot_be_ranked_is_told_apart(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(runs / name) for name in ("vae", "cvae", "binary", "seed")]
    assert main(["compare", *words, "-o", str(tmp_path / "page.html")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Group 4" in said
    for reason in (
        "groups 1 and 2 are not ranked against each other: -log p(x | label) does not include the cost of the label",
        "groups 1 and 3 are not ranked against each other: the values differ, 8-bit against binary by static",
        "groups 1 and 4 are not ranked against each other: the data were divided by other seeds (0, 1)",
    ):
        assert reason in said
    assert (tmp_path / "page.html").read_text("utf-8").count("Not ranked:") == 6


def test_a_run_that_is_too_slow_is_said_to_be(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(runs / name) for name in ("vae", "vqvae")]
    more = ["--split", "train", "--examples", "300", "--minutes", "1e-9", "--json", "-o", str(tmp_path / "page.html")]
    assert main(["compare", *words, *more]) == 0
    for run in json.loads(capsys.readouterr().out)["groups"][0]["runs"]:
        assert run["fidelity"] is None
        assert run["evaluation"]["examples"] == 300
        assert any("only 100 samples in" in note for note in run["notes"])


def test_an_autoencoder_with_a_fitted_prior_has_samples_and_no_bound(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "ae", tmp_path / "fitted")
    fit = f"fit-prior {tmp_path / 'fitted'} --kind mixture --components 2 --steps 3 --quiet"
    assert main(fit.split()) == 0
    capsys.readouterr()
    found = compared(runs, tmp_path, capsys, "vae", str(tmp_path / "fitted"))
    (group,) = found["groups"]
    fitted = group["runs"][1]
    assert fitted["prior"] == "mixture"
    assert fitted["evaluation"]["bound"] is None
    assert fitted["fidelity"]["samples"] == 70
    assert "samples but no bound" in fitted["notes"][0]


def test_the_gap_is_shown_if_it_was_found(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "vae", tmp_path / "known")
    one = Estimate(2.77, 0.02)
    numbers = {f.name: one for f in fields(GapEvaluation) if "Estimate" in str(f.type)}
    rest = {"model": "vae", "data": "digits", "split": "test", "examples": 9, "dims": 64, "family": "gaussian"}
    how = {"method": "exact", "chains": 1, "steps": 1, "tolerance": 0.3, "converged": True}
    gap = GapEvaluation(**rest, **how, **numbers, seconds_annealing=0.0, seconds=0.0)
    tessella.Run(tmp_path / "known").results.save(GAP, gap, seed=0)
    found = compared(runs, tmp_path, capsys, "vqvae", str(tmp_path / "known"))
    assert found["groups"][0]["runs"][1]["gap"]["total"] == {"nats": 2.77, "error": 0.02}
    assert "2.770 ± 0.020" in (tmp_path / "page.html").read_text("utf-8")
    for wrong, why in (({"split": "valid"}, "on the split valid"), ({"converged": False}, "did not converge")):
        tessella.Run(tmp_path / "known").results.save(GAP, replace(gap, **wrong), seed=0)
        run = compared(runs, tmp_path, capsys, "vqvae", str(tmp_path / "known"))["groups"][0]["runs"][1]
        assert run["gap"] is None
        assert why in run["notes"][0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "two runs or more"),
        (["vae"], "two runs or more"),
        (["vae", "none"], "is not a run of tessella"),
        (["vae", "vae"], "given twice"),
        (["vae", "ae", "--split", "dev"], "no split 'dev'"),
        (["vae", "ae", "--examples", "3"], "at least 40"),
        (["vae", "ae", "--minutes", "0"], "must be more than 0"),
        (["vae", "ae", "-o", "page.pdf"], "must be a .html file"),
    ],
)
def test_what_cannot_be_compared(
    runs: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    assert main(["compare", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not (runs / "compared.html").exists()


# parts


def test_the_best_are_all_that_cannot_be_told_from_it() -> None:
    assert best([(1.0, 0.1), (1.2, 0.1), (2.0, 0.1), None], "lower") == [True, True, False, False]
    assert best([(1.0, 0.0), (3.0, 0.0)], "higher") == [False, True]
    assert best([(0.5, 0.0), (1.9, 0.0), (0.9, 0.0)], "one") == [False, False, True]
    assert best([(1.0, 0.0), None], "lower") == [False, False]  # nothing to be better than
    assert best([(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)], "lower", ["a", "b", "b"]) == [False, True, False]


def basis(**changes: object) -> Basis:
    usual = {"data": "a.npz", "split": "test", "seed": 0, "contents": "x", "binarize": None, "conditional": False}
    return Basis(**{**usual, "schema": Schema.of((1, 8, 8), "uint8"), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (basis(schema=Schema.of((1, 8, 8), "real")), "densities"),
        (basis(schema=Schema.of((1, 9, 9), "uint8")), "the shapes differ (1x8x8, 1x9x9)"),
        (basis(data="b.npz", contents="y"), "the data differ (a.npz, b.npz)"),
        (basis(contents="y", seed=3), "other seeds (0, 3)"),
        (basis(contents="y"), "hold different examples"),
        (
            basis(binarize="dynamic", schema=Schema.of((1, 8, 8), "binary")),
            "8-bit against binary by dynamic binarisation",
        ),
        (basis(conditional=True), "the cost of the label"),
    ],
)
def test_the_reason_is_given(other: Basis, reason: str) -> None:
    (said,) = differences([basis(), other])
    assert reason in said
    assert other.key != basis().key


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert run_names([Path("a/vae"), Path("b/vae")]) == ["a/vae", "b/vae"]
    assert run_names([Path("a/vae"), Path("a/ae")]) == ["vae", "ae"]


def test_names_in_the_plane_do_not_lie_on_each_other() -> None:
    def plane(names: list[str], rates: list[float], distortions: list[float]) -> list:
        chart = Chart("distortion", [Series(rates, distortions)], kind="scatter", names=names, sums=True, wide=True)
        return [shape for shape in draw_chart(chart).shapes if shape.attributes.get("class") == "named"]

    named = plane(["one", "two", "<3>"], [10.0, 10.0, 0.0], [100.0, 100.0, 130.0])
    assert len({shape.attributes["y"] for shape in named}) == 3
    assert {shape.text for shape in named} == {"one", "two", "<3>"}
    assert "nan" not in str(plane(["alone"], [5.0], [0.0]))


def test_damaged_runs_are_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / checkpoint.SPEC).write_text((runs / "vae" / checkpoint.SPEC).read_text())
    assert main(["compare", str(runs / "ae"), str(broken), "-o", str(tmp_path / "page.html")]) == 2
    assert "missing" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
