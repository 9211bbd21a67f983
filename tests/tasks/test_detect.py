"""Scores of anomaly against what is known of them, thresholds that keep their rate, and the command.

Random tests are seeded; those that judge a rate say how often they would fail by chance.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import tessella
from expect import raises
from tessella.bottlenecks import DiagonalGaussian, EMAQuantizer
from tessella.cli import main
from tessella.core.batches import Batch
from tessella.core.contracts import Decoder, Encoder
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.likelihoods import FixedGaussian
from tessella.likelihoods.interlaced import InterlacedValues
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors import StandardNormal
from tessella.tasks.detect.detection import by_class
from tessella.tasks.detect.detector import Calibration, Detector, available, needed, p_values, threshold
from tessella.tasks.detect.local_scores import LocalScorer, maps
from tessella.tasks.detect.made_up import CONTENTS, DEFECTS, make_up
from tessella.tasks.detect.ranking import auroc, ranking
from tessella.tasks.detect.regions import read_masks, region_figures
from tessella.tasks.detect.statistics import (
    Statistics,
    StatisticsExtractor,
    best_codes,
    best_posterior,
    context_nats,
    file_nats,
    possible,
    terms_of,
)

FALSE_ALARM = 1e-4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# thresholds


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_fresh_normals_are_flagged_as_often_as_stated(rate: float) -> None:
    # Given its place, the share of a continuous distribution above an order statistic is exactly known, so over
    # independent calibrations the flags of one fresh normal each are a binomial count.
    generator = np.random.default_rng(0)
    n, trials = 2 * needed(rate), 4000
    flagged = 0
    for _ in range(trials):
        draws = generator.standard_cauchy(n + 1)
        flagged += draws[-1] > threshold(draws[:-1], rate)
    exact = 1 - math.ceil((n + 1) * (1 - rate)) / (n + 1)
    assert rate - 1 / (n + 1) <= exact <= rate
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], trials, exact)
    assert low <= flagged <= high


def test_equal_scores_never_raise_the_rate() -> None:
    generator = np.random.default_rng(0)
    flagged = 0
    for _ in range(2000):
        draws = generator.integers(0, 3, 41).astype(float)
        flagged += draws[-1] > threshold(draws[:-1], 0.1)
    assert flagged <= binom.ppf(1 - FALSE_ALARM, 2000, 0.1)


@pytest.mark.parametrize(("rate", "fewest"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1), (0.001, 999), (1 / 3, 2)])
def test_too_few_normals_cannot_vouch(rate: float, fewest: int) -> None:
    scores = np.arange(float(fewest))
    assert needed(rate) == fewest
    assert threshold(scores, rate) == fewest - 1
    if fewest > 1:
        with raises("too-few-normal-examples"):
            threshold(scores[:-1], rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_lies_between_none_and_all(rate: float) -> None:
    with raises("out-of-range"):
        threshold(np.arange(50.0), rate)


def test_p_values_agree_with_flags() -> None:
    generator = np.random.default_rng(0)
    inliers, scores = generator.normal(size=199), generator.normal(size=500)
    p = p_values(scores, inliers)
    assert p.min() >= 1 / 200
    for rate in (0.01, 0.05, 0.2):
        assert np.array_equal(p <= rate, scores > threshold(inliers, rate))
    calibration = Calibration({"a": inliers}, 0.05)
    assert np.array_equal(calibration.p_values("a", scores), p)
    assert calibration.thresholds == {"a": threshold(inliers, 0.05)}


# rankings


@pytest.mark.parametrize("ties", [False, True])
def test_rankings_are_scikit_learns(ties: bool) -> None:
    generator = np.random.default_rng(0)
    anomalous = generator.random(400) < 0.3
    scores = generator.normal(size=400) + anomalous
    scores = scores.round(1) if ties else scores
    found = ranking(scores, anomalous)
    assert found.auroc == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(anomalous, scores), abs=1e-12)
    assert (found.inliers, found.anomalies) == (int((~anomalous).sum()), int(anomalous.sum()))


def test_standard_errors_are_those_of_repeated_draws() -> None:
    # Of 150 repetitions the deviation is known to 6 %; DeLong's and the bootstrap's own estimates vary about as much.
    generator = np.random.default_rng(0)
    anomalous = np.arange(200) < 60
    areas, precisions = [], []
    for _ in range(150):
        scores = generator.normal(size=200) + anomalous
        areas.append(roc_auc_score(anomalous, scores))
        precisions.append(average_precision_score(anomalous, scores))
    found = ranking(generator.normal(size=200) + anomalous, anomalous)
    assert found.auroc_error == pytest.approx(np.std(areas), rel=0.3)
    assert found.average_precision_error == pytest.approx(np.std(precisions), rel=0.35)


def test_perfect_reversed_and_one_sided_rankings() -> None:
    assert auroc(np.arange(5.0), np.arange(5.0, 9.0)) == (1.0, 0.0)
    assert auroc(np.arange(5.0, 9.0), np.arange(5.0)) == (0.0, 0.0)
    assert auroc(np.zeros(3), np.zeros(4))[0] == 0.5
    assert math.isnan(ranking(np.arange(3.0), np.array([False, False, True])).auroc_error)
    for kind in (True, False):
        with raises("one-kind-alone"):
            ranking(np.arange(3.0), np.full(3, kind))


def test_truth_is_by_class_and_unknown_without() -> None:
    assert by_class(["a", "b", None], ["a"]) == [False, True, None]
    assert by_class(["a", "b"], []) == [None, None]


# statistics


class _Blind(Encoder):
    """Features that say nothing of x."""

    feature_shape = (1,)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return torch.ones(len(x), 1)


class _Linear(Decoder):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        return z @ self.weight.T

    def start_at(self, bias) -> None:
        """Nothing: its weights are given."""


def linear_model() -> tuple[LatentVariableModel, MultivariateNormal]:
    """p(x | z) = N(W z, 0.5^2) with orthogonal columns, so that the true posterior is a diagonal Gaussian; and p(x)."""
    weight = torch.linalg.qr(torch.randn(3, 2))[0] * torch.tensor([1.0, 2.0])
    schema = Schema.of((3,), Real(-9.0, 9.0))
    model = LatentVariableModel(
        "linear",
        likelihood=FixedGaussian(scale=0.5).build(schema),
        encoder=_Blind(),
        bottleneck=DiagonalGaussian().build((1,), 2),
        prior=StandardNormal().build((2,)),
        decoder=_Linear(weight),
    )
    return model, MultivariateNormal(torch.zeros(3), weight @ weight.T + 0.25 * torch.eye(3))


def test_regret_reaches_the_likelihood_itself_where_q_can() -> None:
    model, marginal = linear_model()
    x = marginal.sample((30,))
    with torch.no_grad():
        latent = model.encode(x)
    eps = Noise(1).normal(200, 1, 2)
    best = best_posterior(model, x, None, latent, eps, Noise(0), steps=100)
    exact = -marginal.log_prob(x)
    # Without a step the gap is about ten nats; at the end q wanders by about the step's size.
    assert latent.posterior is not None
    assert (model.rate(latent).total + terms_of(model, x, None, latent.posterior, None, eps)[0] - exact).mean() > 5
    assert (best - exact).mean().abs() < 0.3
    assert all(parameter.grad is None for parameter in model.parameters())
    found = StatisticsExtractor(model, ["regret"], samples=20, steps=100)(Batch(x))
    assert found.regret is not None
    assert abs((found.bound - found.regret - exact.numpy()).mean()) < 0.5


def test_statistics_of_an_example_do_not_hang_on_its_neighbours() -> None:
    model = tessella.VAE(Schema.of((1, 8, 8), "uint8"), width=8, depth=1, latent_dim=4)
    x = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    examine = StatisticsExtractor(model, possible(model), samples=2, steps=3)
    together, alone = examine(Batch(x)), examine(Batch(x[3:4]))
    for name in ("distortion", "rate", "regret", "length"):
        np.testing.assert_allclose(getattr(together, name)[3:4], getattr(alone, name), rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(examine(Batch(x)).bound, together.bound)


def test_bound_is_the_models_own() -> None:
    model, marginal = linear_model()
    x = marginal.sample((30,))
    found = StatisticsExtractor(model, ["distortion", "rate"], samples=600)(Batch(x))
    with torch.no_grad():
        latent = model.encode(x)
        assert latent.posterior is not None
        weight, deviation = model.decoder.weight, latent.posterior.stddev  # pyright: ignore[reportAttributeAccessIssue]
        squared = (x - latent.z @ weight.T).square().sum(1)
        squared += (deviation.square() @ weight.square().T).sum(1)
        exact = squared / (2 * 0.25) + 3 * (math.log(0.5) + math.log(2 * math.pi) / 2)
    np.testing.assert_allclose(found.rate, model.rate(latent).total.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.distortion, exact.numpy(), atol=2.0)
    assert abs((found.distortion - exact.numpy()).mean()) < 1.0


def test_searched_codes_are_never_worse_and_often_better() -> None:
    model = tessella.VQVAE(
        Schema.of((1, 8, 8), "binary"), width=8, depth=1, grid_size=4, quantizer=EMAQuantizer(codebook_size=8)
    ).eval()
    x = (torch.rand(6, 1, 8, 8) < 0.5).to(torch.uint8)
    with torch.no_grad():
        latent = model.encode(x)
        start = model.rate(latent).total - model.decode(latent.z).log_prob(x)
        best = best_codes(model, x, None, latent.codes, Noise(0), 30)
    assert (best <= start + 1e-3).all()
    assert (best < start - 0.01).any()


def test_file_length_is_the_shorter_files() -> None:
    generator = np.random.default_rng(0)
    for channels in (1, 3):
        noise = generator.integers(0, 256, (channels, 12, 10), dtype=np.uint8)
        x = torch.from_numpy(np.stack([np.full_like(noise, 7), noise]))
        flat, rough = file_nats(x, Schema.of((channels, 12, 10), "uint8"))
        picture = Image.fromarray(noise[0] if channels == 1 else np.moveaxis(noise, 0, -1))
        sizes = []
        for options in ({"format": "PNG", "optimize": True}, {"format": "WEBP", "lossless": True, "exact": True}):
            buffer = io.BytesIO()
            picture.convert("RGB" if options["format"] == "WEBP" else picture.mode).save(buffer, **options)
            sizes.append(len(buffer.getvalue()))
        assert rough == pytest.approx(min(sizes) * 8 * math.log(2))
        assert flat < rough


def test_the_context_code_is_what_a_coder_would_spend() -> None:
    x = (np.random.default_rng(0).random((3, 2, 6, 5)) < 0.3).astype(np.uint8)
    spent = np.zeros(3)
    for n in range(3):
        counts: dict[tuple[int, ...], list[float]] = {}
        for c, i, j in np.ndindex(2, 6, 5):
            near = [(i, j - 1), (i - 1, j - 1), (i - 1, j), (i - 1, j + 1)]
            context = (c, *(int(x[n, c, a, b]) if a >= 0 and 0 <= b < 5 else 0 for a, b in near))
            seen = counts.setdefault(context, [0.5, 0.5])
            spent[n] -= math.log(seen[x[n, c, i, j]] / sum(seen))
            seen[x[n, c, i, j]] += 1
    np.testing.assert_allclose(context_nats(x), spent, rtol=1e-10)
    np.testing.assert_allclose(
        file_nats(torch.from_numpy(x[:, :1]), Schema.of((1, 6, 5), "binary")), context_nats(x[:, :1])
    )


def test_the_context_code_is_a_code() -> None:
    every = (np.arange(2**9)[:, None] >> np.arange(9) & 1).reshape(-1, 1, 3, 3)
    assert np.exp(-context_nats(every)).sum() == pytest.approx(1.0)


# scores


def test_scores_are_what_they_say() -> None:
    model = tessella.VAE(Schema.of((1, 8, 8), "uint8"), width=8, depth=1, latent_dim=4)
    generator = np.random.default_rng(0)

    def drawn(n: int) -> Statistics:
        length = generator.normal(300, 20, n)
        return Statistics(length + generator.normal(100, 5, n), generator.normal(20, 2, n), np.zeros(n), length)

    inliers, strange = drawn(400), Statistics(*(np.array([v]) for v in (340.0, 20.0, 7.0, 300.0)))
    scores = Detector(model, inliers=inliers).score(strange)
    expected = {"distortion": 340.0, "rate": 20.0, "bound": 360.0, "complexity-corrected": 60.0}
    assert {name: float(scores[name][0]) for name in expected} == expected
    assert scores["typicality"][0] == pytest.approx(abs(360 - inliers.bound.mean()))
    assert list(scores) == [score.name for score in available(model) if not score.slow]
    assert Detector(model, ["regret"]).score(strange) == {"regret": 7.0}
    # distortion and length each are ordinary, but not together: only what weighs them against each other sees it
    table = np.stack([inliers.rate, inliers.distortion, inliers.length], 1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    exact = -MultivariateNormal(torch.from_numpy(table.mean(0)), torch.from_numpy(np.cov(table.T))).log_prob(
        torch.tensor([[20.0, 340.0, 300.0]], dtype=torch.float64)
    )
    assert scores["density-of-states"][0] == pytest.approx(float(exact), rel=1e-4)


def test_scores_that_learn_need_normals() -> None:
    model = tessella.VAE(Schema.of((4,), "real"), width=8, depth=1)
    assert [s.name for s in Detector(model).left_out] == ["typicality", "density-of-states"]
    with raises("no-normal-examples"):
        Detector(model, ["typicality"]).score(Batch(torch.randn(3, 4)))
    with raises("too-few-normal-examples"):
        Detector(model, inliers=[Batch(torch.randn(3, 4))])


def test_models_give_the_scores_that_they_have() -> None:
    picture, row = Schema.of((1, 8, 8), "uint8"), Schema.of((4,), "real")
    assert [s.name for s in available(tessella.AE(picture, width=8, depth=1))] == ["distortion"]
    assert "complexity-corrected" not in [s.name for s in available(tessella.VAE(row, width=8, depth=1))]
    assert Detector(tessella.VAE(row, width=8, depth=1)).preferred == "bound"
    assert Detector(tessella.AE(row, width=8, depth=1)).preferred == "distortion"
    with raises("score-not-allowed"):
        Detector(tessella.AE(picture, width=8, depth=1), ["bound"])
    with raises("no-such-score"):
        Detector(tessella.VAE(row, width=8, depth=1), ["magic"])


# pictures, locally


@pytest.mark.parametrize("aligned", [True, False])
def test_local_scores_find_defects_and_know_whether_places_correspond(aligned: bool) -> None:
    generator = np.random.default_rng(0)
    ground = 40 * np.sin(np.mgrid[:20, :20][0] / 2.0) + 120
    shift = np.zeros(80, int) if aligned else generator.integers(0, 20, 80)
    x = np.stack([np.roll(ground, s, 0) for s in shift]) + 6 * generator.normal(size=(80, 20, 20))
    x = torch.from_numpy(x[:, None].clip(0, 255).astype(np.uint8))
    model = tessella.VAE(Schema.of((1, 20, 20), "uint8"), width=8, depth=1, latent_dim=4)
    local = LocalScorer(model, Batch(x[:60]))
    assert local.aligned == aligned
    dark = x[60:].clone()
    dark[:, :, 8:12, 8:12] //= 2
    normal, defects = (dict(zip(local.names, local.pooled(Batch(b)).T, strict=True)) for b in (x[60:], dark))
    assert auroc(normal["local-max"], defects["local-max"])[0] > 0.95
    maps, mask = local.full_maps(Batch(dark), "local"), np.zeros((20, 20, 20), bool)
    mask[:, 8:12, 8:12] = True
    found = region_figures(maps, mask)
    assert found.pixel_auroc > (0.9 if aligned else 0.6)
    assert (found.regions, found.pictures) == (20, 20)
    alone = local.pooled(Batch(dark[3:4]))
    np.testing.assert_array_equal(alone[0], local.pooled(Batch(dark))[3])


def test_region_figures_of_exact_and_of_constant_maps() -> None:
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 1:3, 1:3] = masks[0, 4:, 4:] = True
    exact = region_figures(masks.astype(float), masks)
    assert (exact.pixel_auroc, exact.pro, exact.regions, exact.pictures) == (1.0, 1.0, 2, 1)
    assert region_figures(np.zeros(masks.shape), masks).pixel_auroc == 0.5
    with raises("one-kind-alone"):
        region_figures(np.zeros(masks.shape), np.zeros_like(masks))


def test_made_up_anomalies_differ_where_they_say() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 12)).astype(np.float32)
    made = make_up(x, (*DEFECTS, *CONTENTS), 4, (0.0, 255.0), seed=1)
    again = make_up(x, (*DEFECTS, *CONTENTS), 4, (0.0, 255.0), seed=1)
    np.testing.assert_array_equal(made.x, again.x)
    assert made.x.shape == (40, 3, 16, 12)
    assert made.mask.any((1, 2)).all()
    apart = np.abs(made.x - x[made.of]).max(1) > 0
    assert (apart >= made.mask).all()


# maps


@pytest.mark.parametrize(
    "model",
    [
        lambda: tessella.VAE(Schema.of((1, 8, 8), "uint8"), width=8, depth=1, latent_dim=4),
        lambda: tessella.VAE(Schema.of((3, 16, 12), "uint8"), width=8, depth=1, latent_dim=4, latent_layout="grid"),
        lambda: tessella.VQVAE(
            Schema.of((1, 8, 8), "binary"), width=8, depth=1, grid_size=4, quantizer=EMAQuantizer(codebook_size=8)
        ),
        lambda: tessella.VQVAE2(
            Schema.of((3, 16, 16), "uint8"), width=8, depth=1, grid_size=8, quantizer=EMAQuantizer(codebook_size=8)
        ),
        lambda: tessella.VAE(Schema.of((5,), "real"), width=8, depth=1),
    ],
)
def test_maps_add_up(model: Callable[[], Model]) -> None:
    made = model().eval()
    top = 2 if made.schema.values.name == "binary" else 256
    x = torch.randint(0, top, (3, *made.schema.shape)).to(torch.uint8)
    x = torch.randn(3, 5) if made.schema.values.name == "real" else x
    found = maps(made, Batch(x))
    with torch.no_grad():
        latent = made.encode(x)
        rate, alone = made.rate(latent), made.decode(latent.z).independent
    assert not isinstance(alone, InterlacedValues)  # given its neighbours, the inside of a smooth defect is ordinary
    torch.testing.assert_close(found.error.flatten(1).sum(1), -alone.log_prob(x), rtol=1e-4, atol=1e-3)
    if isinstance(made, CodeModel) or len(made.latent_shape) == 3:
        assert found.surprise is not None
        torch.testing.assert_close(found.surprise.flatten(1).sum(1), rate.total, rtol=1e-4, atol=1e-3)
    else:
        assert found.surprise is None


# the command

SMALL = ("--steps", "30", "--width", "8", "--depth", "1", "--quiet")
FAST = ("--samples", "1", "--steps", "2", "--top", "3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A VAE, a VQ-VAE and an autoencoder of digits, and a VAE of a table."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    table(folder / "rows.csv", generator.normal(size=(600, 3)))
    for name, words in (
        ("vae", ["vae", "--data", "digits", "--latent-dim", "4"]),
        ("vqvae", ["vqvae", "--data", "digits", "--grid-size", "4", "--codebook-size", "8"]),
        ("ae", ["ae", "--data", "digits", "--latent-dim", "4"]),
        ("rows", ["vae", "--data", str(folder / "rows.csv")]),
    ):
        assert main(["train", *words, *SMALL, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in ("vae", "vqvae", "ae", "rows")}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run `tessella detect`, which must fail with status 2 and one line, and leave nothing; gives the line."""

    def check(*args: object) -> str:
        capsys.readouterr()
        assert main(["detect", *map(str, args), "-o", str(tmp_path / "found")]) == 2
        *notes, said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("tessella: note: ") for line in notes)
        assert said.startswith("tessella: ")
        assert not (tmp_path / "found").exists()
        return said

    return check


def table(path: Path, rows: np.ndarray, kinds: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", *(["label"] if kinds else [])])
        writer.writerows([*row.tolist(), *([kinds[i]] if kinds else [])] for i, row in enumerate(rows))
    return path


def results(out: Path) -> tuple[dict[str, object], list[dict[str, str]], str]:
    with (out / "scores.csv").open() as file:
        return (
            json.loads((out / "scores.json").read_text()),
            list(csv.DictReader(file)),
            (out / "index.html").read_text(),
        )


@pytest.mark.parametrize("name", ["vae", "vqvae", "ae"])
def test_detect_writes_scores_thresholds_and_a_page(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--calibration-data", "valid", "--false-positives", "0.1", "--normal", "0", "--normal", "1")
    assert main(["detect", str(runs[name]), *options, *FAST, "-o", str(out)]) == 0
    found, rows, page = results(out)
    every = list(found["scores"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert every == list(found["rankings"]) == list(found["thresholds"])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert set(every) > {s.name for s in available(tessella.load(runs[name])) if not (s.slow or s.needs_fit)}
    assert {"local-max", "local-top", "nearest"} < set(every)
    assert len(rows) == len(found["examples"]) == 141  # pyright: ignore[reportArgumentType]
    by = str(found["by"])
    limit = found["thresholds"][by]  # pyright: ignore[reportIndexIssue]
    for row in rows:
        assert (row["flagged"] == "True") == (float(row[by]) > limit)
        assert (row["anomalous"] == "True") == (row["class"] not in ("0", "1"))
        assert (float(row["p"]) <= 0.1) == (row["flagged"] == "True")
    truths = [row["anomalous"] == "True" for row in rows]
    for score in every:
        area = roc_auc_score(truths, [float(row[score]) for row in rows])
        assert found["rankings"][score]["auroc"] == pytest.approx(area)  # pyright: ignore[reportIndexIssue]
    ranked = sorted(rows, key=lambda row: -float(row[by]))
    shown = [page.index(f"<p>{row['name']}<b>") for row in (*ranked[:3], ranked[-1])]
    assert shown == sorted(shown)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_detect_takes_files_folders_numbers_and_other_data(runs: dict[str, Path], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cats/a.png", "cats/b.png", "dogs/a.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "pets" / name)
    np.savez(tmp_path / "noise.npz", x=generator.integers(0, 256, (30, 8, 8), dtype=np.uint8))
    out, pets = tmp_path / "out", str(tmp_path / "pets")
    inputs = [pets, f"{pets}/dogs/a.png", "7", "3", str(tmp_path / "noise.npz")]
    run = ["detect", str(runs["vae"]), *FAST, "--scores", "bound", "--split", "valid", "-o", str(out)]
    assert main([run[0], run[1], *inputs, *run[2:]]) == 0
    _, rows, _ = results(out)
    assert [row["name"] for row in rows[:6]] == [
        *(f"{pets}/{name}" for name in ("cats/a.png", "cats/b.png", "dogs/a.png", "dogs/a.png-2")), "valid-7", "valid-3"
    ]  # fmt: skip
    assert [row["name"] for row in rows[6:]] == [f"noise-{i}" for i in range(30)]
    assert [row["class"] for row in rows[:4]] == ["cats", "cats", "dogs", ""]
    assert float(rows[2]["bound"]) == pytest.approx(float(rows[3]["bound"]), rel=1e-5)
    assert main([*run, "--anomalies", str(tmp_path / "noise.npz")]) == 0
    found, rows, _ = results(out)
    assert [row["anomalous"] for row in rows] == ["False"] * (len(rows) - 30) + ["True"] * 30
    assert found["rankings"]["bound"]["auroc"] > 0.9  # pyright: ignore[reportIndexIssue]


def test_detect_scores_tables_row_by_row(runs: dict[str, Path], tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    rows = np.concatenate([generator.normal(size=(50, 3)), generator.normal(size=(5, 3)) + 40])
    path = table(tmp_path / "new.csv", rows, ["good"] * 50 + ["bad"] * 5)
    out = tmp_path / "out"
    assert main(["detect", str(runs["rows"]), str(path), "--normal", "good", *FAST, "-o", str(out)]) == 0
    found, read, page = results(out)
    assert [row["name"] for row in read] == [f"new-{i}" for i in range(55)]
    assert found["by"] == "combined"
    for score in ("bound", "combined", "neighbours", "global"):
        assert found["rankings"][score]["auroc"] == 1.0  # pyright: ignore[reportIndexIssue]
    assert "columns " in page


def test_what_cannot_be_detected_is_refused(runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    rows = np.zeros((4, 3))
    rows[2, 1] = np.nan
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 5), np.float32) + 0.5)
    np.savez(tmp_path / "real.npz", x=np.random.default_rng(0).normal(size=(3, 8, 8)))
    np.save(tmp_path / "nan.npy", rows)
    vae, table_run = runs["vae"], runs["rows"]
    for args, says in (
        ([table_run, tmp_path / "nan.npy"], "NaN or infinite in float32, the first in example 2"),
        ([table_run, tmp_path / "wide.npz"], "the model expects real values of shape 3"),
        ([table_run, tmp_path / "empty"], "no pictures"),
        ([vae, tmp_path / "empty"], "no pictures"),
        ([vae, tmp_path / "real.npz"], "the model expects uint8 values of shape 1x8x8"),
        ([vae, tmp_path / "missing.png"], "no such input"),
        ([vae, "999"], "numbers from 0 to 140"),
        ([vae, "--false-positives", "0.1"], "--calibration-data, for example valid"),
        ([vae, "--calibration-data", "valid", "--false-positives", "0"], "between 0 and 1"),
        ([vae, "--calibration-data", "valid", "--false-positives", "1"], "between 0 and 1"),
        ([vae, "--calibration-data", "0", "--scores", "density-of-states"], "at least 149"),
        ([vae, "--calibration-data", "valid", "--scores", "bound"], "at least 99"),
        ([vae, "--normal", "cat"], "no example is of class cat; there are: 0, 1"),
        ([vae, *["0", "1", "2", "3"], *(f"--normal={i}" for i in range(10))], "no example is of class"),
        ([vae, "--scores", "psychic"], "there are: distortion, rate"),
        ([vae, "--score", "psychic"], "there are: distortion, rate"),
        ([runs["ae"], "--scores", "bound"], "the model ae on this data does not allow"),
        ([tmp_path / "nowhere"], "not a run"),
        ([vae, "--samples", "0"], "at least 1"),
    ):
        assert says in refused(*args, *(() if "--samples" in args else FAST)), args


def test_one_kind_alone_cannot_be_judged(runs: dict[str, Path], refused: Callable[..., str]) -> None:
    every = [word for i in range(10) for word in ("--normal", i)]
    assert "examples of both" in refused(runs["vae"], *every, *FAST, "--scores", "bound")


def test_detect_trains_on_normal_pictures_and_compares_masks(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    x = (120 + 10 * generator.normal(size=(110, 12, 12))).clip(0, 255).astype(np.uint8)
    masks = np.zeros((10, 12, 12), np.uint8)
    masks[:, 4:8, 5:9] = 1
    defects = np.where(masks, 20, x[100:]).astype(np.uint8)
    for name, values in (("normal", x[:90]), ("good", x[90:100]), ("bad", defects), ("three", x[:3])):
        np.savez(tmp_path / f"{name}.npz", x=values)
    np.savez(tmp_path / "masks.npz", masks=masks)
    np.savez(tmp_path / "wide.npz", masks=masks[:, :, :6])
    np.savez(tmp_path / "none.npz", masks=0 * masks)
    out, (normal, good, bad) = tmp_path / "out", (str(tmp_path / f"{name}.npz") for name in ("normal", "good", "bad"))
    words = ["detect", "--train", normal, good, "--anomalies", bad, "--minutes", "0.02", "--false-positives", "0.1"]
    keep = ["--keep", str(tmp_path / "run")]
    assert main([*words, *keep, "--masks", str(tmp_path / "masks.npz"), "-o", str(out)]) == 0
    found, rows, _ = results(out)
    assert found["rankings"][found["by"]]["auroc"] > 0.9  # pyright: ignore[reportIndexIssue, reportArgumentType]
    assert found["regions"]["figures"]["pixel_auroc"] > 0.9  # pyright: ignore[reportIndexIssue]
    assert found["choice"]["score"] == found["by"]  # pyright: ignore[reportIndexIssue]
    assert 0 <= found["at_threshold"]["f1"] <= 1  # pyright: ignore[reportIndexIssue]
    flagged = sum(row["flagged"] == "True" for row in rows)
    assert len(list((out / "masks").glob("*.png"))) == flagged
    assert main(["detect", str(tmp_path / "run"), good, "--scores", "bound", "-o", str(tmp_path / "later")]) == 0
    run = ["--train", normal, good, "--minutes", "0.01", "--false-positives", "0.1", "--anomalies", bad, "--quiet"]
    # said before the time of a training is spent
    monkeypatch.setattr("tessella.tasks.detect.prepared.train", lambda *args: pytest.fail("trained in vain"))
    for i, (picture, mask) in enumerate(zip(defects, masks, strict=True)):
        for place, values in (("bad", picture), ("ones", mask), ("other", np.tile(mask, 2)), ("nothing", 0 * mask)):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / place / f"{i}.png")
    (tmp_path / "ones" / "0.png").rename(tmp_path / "ones" / "0_mask.png")
    (tmp_path / "few").mkdir()
    Image.fromarray(masks[0]).save(tmp_path / "few" / "0.png")
    named = [str(path) for path in sorted((tmp_path / "bad").iterdir())]
    grey = Schema.of((1, 12, 12), "uint8")
    assert np.array_equal(read_masks(str(tmp_path / "ones"), named, grey), masks > 0)  # 0 and 1 are masks too
    files = [*run[:-3], "--anomalies", tmp_path / "bad", "--quiet"]
    for place, says in (
        ("other", "is 12x24, but its picture is 12x12"),
        ("nothing", "are empty"),
        ("few", "no mask for 9 of 10"),
    ):
        assert says in refused(*files, "--masks", tmp_path / place)
    assert "no such input" in refused("--train", normal, tmp_path / "nowhere", "--false-positives", "0.1")
    assert "10x12x12" in refused(*run, "--masks", tmp_path / "wide.npz")
    assert "are empty" in refused(*run, "--masks", tmp_path / "none.npz")
    assert "give at least 76" in refused("--train", tmp_path / "three.npz", good)
    assert "only be used with --train" in refused(tmp_path / "run", good, "--keep", "x")


def test_what_was_scored_is_kept_when_interrupted(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Detector.score

    def interrupted(detector: Detector, examples: Batch | Statistics) -> dict[str, np.ndarray]:
        if isinstance(examples, Batch) and len(examples) == 30:
            raise KeyboardInterrupt
        return score(detector, examples)

    monkeypatch.setattr(Detector, "score", interrupted)
    np.savez(tmp_path / "noise.npz", x=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    words = ["detect", str(runs["vae"]), "7", "3", str(tmp_path / "noise.npz"), *FAST, "--scores", "bound"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 130
    found, rows, _ = results(tmp_path / "out")
    assert found["interrupted"] is True
    assert [row["name"] for row in rows] == ["test-7", "test-3"]
