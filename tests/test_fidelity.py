"""Fidelity and sharpness against cases that are known, and the classifier that they are measured through.

Random tests are seeded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tessella
from expect import raises
from making import make
from tessella.cli import main
from tessella.core.schema import Schema
from tessella.core.tensors import read_tensors
from tessella.data import Data, open_data
from tessella.evaluation import classifier, fidelity
from tessella.evaluation.quality.sharpness import high_frequency_energy, sharpness
from tessella.evaluation.results import FidelityEvaluation
from tessella.models.spec import TrainOptions

PICTURE = Schema.of((1, 16, 16), "uint8")


def normals(count: int, dims: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dims))


# Frechet distance


def test_frechet_of_two_gaussians_is_its_closed_form() -> None:
    # Of covariances that commute: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2 over their common eigenvectors.
    q, _ = np.linalg.qr(normals(5, 5))
    a, b = np.array([4.0, 1.0, 0.25, 0.0, 9.0]), np.array([1.0, 1.0, 4.0, 2.0, 0.0])
    m = np.arange(5.0)
    exact = float(np.square(m).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum())
    found = fidelity.frechet_of_moments(m, (q * a) @ q.T, np.zeros(5), (q * b) @ q.T)
    assert found == pytest.approx(exact, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute_is_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    a, b = (x @ x.T for x in (normals(4, 6, 1), normals(4, 6, 2)))
    exact = float(np.trace(a + b - 2 * np.real(sqrtm(a @ b))))
    assert fidelity.frechet_of_moments(np.zeros(4), a, np.zeros(4), b) == pytest.approx(exact, rel=1e-6)


def test_frechet_of_fewer_examples_than_features() -> None:
    a = normals(20, 64)
    assert fidelity.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert fidelity.frechet_distance(a, a + 2.0) == pytest.approx(64 * 4.0, rel=1e-9)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    a, b = normals(2000, 1), normals(2000, 1, 1)
    found = fidelity.jackknife(lambda x, y: float(x.mean() - y.mean()), a, b)
    assert found == pytest.approx((2 / 2000) ** 0.5, rel=0.8)  # of ten groups: its own error is about a quarter


# precision and recall


def test_the_same_set_has_all_precision_and_recall() -> None:
    a = normals(200, 8)
    assert fidelity.precision_recall(a, a) == (1.0, 1.0)


def test_sets_far_apart_have_none() -> None:
    a = normals(200, 8)
    assert fidelity.precision_recall(a, a + 100) == (0.0, 0.0)


def test_samples_of_one_mode_are_precise_and_recall_little() -> None:
    data = np.concatenate([normals(300, 4), normals(300, 4, 1) + 50])
    precision, recall = fidelity.precision_recall(normals(600, 4, 2), data)
    assert precision > 0.8
    assert 0.4 < recall <= 0.5


def test_samples_of_the_data_are_at_the_floor() -> None:
    a, b, c = (normals(500, 6, seed) for seed in range(3))
    found = fidelity.of_features(a, b, c)
    for figure in (found.frechet, found.precision, found.recall):
        assert abs(figure.value - figure.data) < 5 * (figure.error + figure.data_error)
    far = fidelity.of_features(a + 1, b, c).frechet
    assert far.value == pytest.approx(1.0, abs=0.1)  # a shift by one deviation of each: the data's variance is 1
    assert far.value > far.data + 10 * far.error


def test_features_that_do_not_fit_are_refused() -> None:
    with raises("other-features"):
        fidelity.of_features(normals(50, 5), normals(50, 6), normals(50, 6))
    with raises("few-examples"):
        fidelity.of_features(normals(5, 5), normals(50, 5), normals(50, 5))


# sharpness


def test_a_blur_lowers_and_noise_raises_sharpness() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 16, 16, generator=generator) * 255
    x = F.avg_pool2d(x, 3, 1, 1)
    blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    noisy = x + 30 * torch.randn(x.shape, generator=generator)
    assert sharpness(x, x, x, PICTURE).value == pytest.approx(1.0)
    assert sharpness(blurred, x, x, PICTURE).value < 0.5
    assert sharpness(noisy, x, x, PICTURE).value > 1.2


def test_energy_is_all_but_what_is_below_the_cut() -> None:
    n = torch.arange(16.0)
    for frequency, kept in ((4, 0.0), (5, 1.0), (15, 1.0)):  # of 16; a quarter of Nyquist's is 4
        wave = torch.cos(torch.pi / 16 * (n + 0.5) * frequency).expand(1, 1, 16, 16)
        energy = high_frequency_energy(127.5 + 127.5 * wave, PICTURE)
        assert float(energy) == pytest.approx(kept * 0.25 * 0.5, abs=1e-6)  # the mean square of half a cosine


def test_pictures_of_one_colour_have_none() -> None:
    flat = torch.full((30, 1, 16, 16), 90.0)
    assert float(high_frequency_energy(flat, PICTURE).max()) < 1e-20
    with raises("no-frequencies"):
        high_frequency_energy(torch.zeros(3, 4), Schema.of((4,), "real"))


# the classifier


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def looker(digits) -> classifier.Classifier:
    return classifier.train_classifier(digits, seen=8_000)


def test_it_knows_digits(looker: classifier.Classifier, digits) -> None:
    assert looker.task == "class"
    assert looker.score is not None
    assert looker.score > 0.9
    batch = digits.split("test").batch(range(100))
    assert (looker.classes(batch.x) == batch.label).float().mean() > 0.9
    spread = looker.features(digits.split("train").batch(range(1000)).x).var(0).sum()
    assert float(spread) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(
    ("shape", "task"),
    [((60, 8, 8), "rotation"), ((60, 8, 6), "flip"), ((60, 5), "autoencoder"), ((60, 1, 1), "rotation")],
)
def test_without_labels_it_learns_another_task(tmp_path: Path, shape: tuple[int, ...], task: str) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    data = open_data(str(tmp_path / "x.npy"))
    model = classifier.train_classifier(data, seen=640)
    assert model.task == task
    assert model.features(data.split("train").batch(range(30)).x).shape == (30, classifier.FEATURES)
    assert not model.names_classes


def test_the_cached_one_gives_the_same_numbers(
    looker: classifier.Classifier, digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, of = tmp_path / classifier.FILE, classifier.data_fingerprint(digits, "train")
    classifier.store(path, looker, of)
    again = classifier.of_run(tmp_path, digits)
    assert (again.fingerprint, again.score) == (looker.fingerprint, looker.score)
    x = digits.split("test").batch(range(40)).x
    assert torch.equal(again.features(x), looker.features(x))
    assert classifier.stored_classifier(path, digits, "of other data") is None
    path.write_bytes(path.read_bytes()[:-100])
    assert classifier.stored_classifier(path, digits, of) is None


def test_the_fingerprint_is_the_datas(digits) -> None:
    assert classifier.data_fingerprint(digits) == classifier.data_fingerprint(open_data("digits"))
    others = [open_data("digits", binarize="static"), open_data("digits", seed=1), open_data("digits", size=7)]
    assert len({classifier.data_fingerprint(data) for data in (digits, *others)}) == 4


# samples


class Copies:
    """Draws examples of the data themselves."""

    name, has_prior, conditional, device = "copies", True, False, torch.device("cpu")

    def __init__(self, schema: Schema, x: Tensor) -> None:
        self.schema, self.x, self.at = schema, x, 0
        self.likelihood = SimpleNamespace(sequential_mean=False)

    def sample(self, count: int, label: Tensor | None, **_: object) -> Tensor:
        self.at += count
        return self.x[self.at - count : self.at].float()


def test_data_for_samples_are_at_the_floor(looker: classifier.Classifier, digits) -> None:
    train = digits.split("train")
    model = Copies(digits.schema, train.batch(range(300)).x)
    found = fidelity.measure_fidelity(model, train, looker, count=200)  # type: ignore[arg-type]
    assert found.samples == 200
    for figure in (found.frechet, found.precision, found.recall, found.sharpness, found.class_distance):
        assert figure is not None
        assert abs(figure.value - figure.data) < 5 * (figure.error + figure.data_error)
    assert found.consistency is None
    assert FidelityEvaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_features_of_ones_own(digits) -> None:
    train = digits.split("train")
    model = Copies(digits.schema, train.batch(range(300)).x)
    found = fidelity.measure_fidelity(model, train, lambda x: x.flatten(1)[:, 20:30], count=100)  # type: ignore[arg-type]
    assert (found.features, found.feature_count, found.classifier) == ("given", 10, "")
    with raises("not-finite"):
        fidelity.measure_fidelity(model, train, lambda x: x.flatten(1) / 0, count=50)  # type: ignore[arg-type]


def test_an_autoencoder_has_no_samples(digits, looker: classifier.Classifier) -> None:
    with raises("no-prior"):
        fidelity.measure_fidelity(
            tessella.AE(digits.schema, width=8, depth=1, latent_dim=4), digits.split("test"), looker
        )
    with raises("few-examples"):
        fidelity.sets(digits.split("valid"), 19)


def test_the_standard_fid_is_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metric:
        def __init__(self, feature: int) -> None:
            self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

        def update(self, x: Tensor, real: bool) -> None:
            assert x.dtype == torch.uint8
            assert x.shape[1:] == (3, 16, 16)
            self.seen[real].append(x.float().flatten(1))

        def compute(self) -> Tensor:
            means = [torch.cat(self.seen[real]).mean() for real in (True, False)]
            return (means[0] - means[1]).square()

    module = ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = Metric  # type: ignore[attr-defined]
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    data = torch.full((30, 1, 16, 16), 20, dtype=torch.uint8)
    assert fidelity.standard_fid(data + 3, data, PICTURE) == pytest.approx(9)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with raises("not-installed"):
        fidelity.standard_fid(data, data, PICTURE)


# the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits, looker: classifier.Classifier) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = TrainOptions(steps=30)
    for name, preset in (("ae", tessella.AE), ("cvae", tessella.CVAE)):
        model = make(preset, digits.schema, width=8, depth=1, latent_dim=4)
        tessella.train(model, digits, folder / name, options)
        classifier.store(folder / name / classifier.FILE, looker, classifier.data_fingerprint(digits, "train"))
    return folder


def test_evaluate_tells_and_keeps_fidelity(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "cvae"
    assert main(["evaluate", str(run), "--fidelity", "60"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("Frechet distance", "precision", "class consistency", "sharpness"))
    assert "FID" not in said
    kept = json.loads((run / "results/fidelity.json").read_text())
    assert (kept["samples"], kept["step"], kept["features"]) == (60, 30, "class")
    assert main(["evaluate", str(run), "--fidelity", "60", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["fidelity"]
    assert {k: kept[k] for k in ("frechet", "recall")} == {k: again[k] for k in ("frechet", "recall")}
    assert not read_tensors(run / classifier.FILE).progress["version"] > classifier.VERSION


def test_evaluate_takes_a_file_of_features(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "own.npz", samples=normals(40, 3), data=normals(100, 3, 1))
    words = ["evaluate", str(runs / "cvae"), "--fidelity", "60", "--json", "--features"]
    assert main([*words, str(tmp_path / "own.npz")]) == 0
    found = json.loads(capsys.readouterr().out)["fidelity"]
    assert (found["samples"], found["feature_count"], found["features"]) == (40, 3, "given")
    np.savez(tmp_path / "other.npz", x=normals(40, 3))
    assert main([*words, str(tmp_path / "other.npz")]) == 2
    assert "arrays samples and data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ae", "--fidelity", "60"], "no prior"),
        (["cvae", "--fidelity", "-1"], "number of samples"),
        (["cvae", "--fidelity", "5"], "at least 20 samples"),
        (["cvae", "--features", "inception"], "give --fidelity"),
        (["cvae", "--fidelity", "60", "--features", "lpips"], "classifier, inception or an .npz"),
        (["cvae", "--fidelity", "60", "--features", "no.npz"], "holds no features"),
    ],
)
def test_evaluate_says_what_cannot_be(
    runs: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs / words[0]), *words[1:]]) == 2
    assert complaint in capsys.readouterr().err
