"""Scores of the rows of series: on the original time axis, with the stated rate, and right for known anomalies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from expect import raises
from tessella import LatentOutlierDetector, LatentTransformer
from tessella.core.batches import Batch
from tessella.core.schema import Real, Schema
from tessella.models.base import Model
from tessella.models.presets import VAEConfig
from tessella.tasks.detect import DetectConfig, detect
from tessella.tasks.detect.series.made_up import CHANGES, insert_anomalies
from tessella.tasks.detect.series.result import SeriesDetection
from tessella.tasks.detect.series.scores import PATCHES, SURPRISE, Cover, NeighbourDistance, RowScores, model_scores
from tessella.tasks.detect.series.signals import SignalScorer
from tessella.tasks.fill import fill_gaps
from tessella.training.run import Run

WINDOW = 64


def wave(rows: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    at = np.arange(rows)[:, None] + 5 * np.arange(channels)
    return np.sin(2 * np.pi * at / 32) + 0.05 * rng.normal(size=(rows, channels))


def model(*, missing: bool = True, channels: int = 1):
    torch.manual_seed(0)
    schema = Schema(channels, (WINDOW,), Real(-1.5, 1.5), missing=missing)
    return VAEConfig.from_options({"width": 8, "depth": 1, "latent_dim": 4}).build(schema).eval()


def test_a_row_gets_the_mean_over_the_stretches_that_hold_it() -> None:
    cover = Cover(6)
    cover.add(np.array([0, 2]), 3, np.array([1.0, 5.0]))
    assert cover.mean().tolist() == [1, 1, 3, 5, 5, 0]


def test_the_distance_is_that_of_standardised_stretches() -> None:
    normal, x = wave(300, 1, channels=2), 3 * wave(100, 2, channels=2) + 7
    distance = NeighbourDistance([normal], 32)

    def stretches(of: np.ndarray) -> np.ndarray:
        views = np.lib.stride_tricks.sliding_window_view(of, 32, 0)
        views = (views - views.mean(-1, keepdims=True)) / views.std(-1, keepdims=True)
        return views.reshape(len(views), -1)

    plain = np.linalg.norm(stretches(x)[:, None] - stretches(normal)[None], axis=2).min(1) / 8
    starts = np.arange(0, 69, distance.step)
    cover = Cover(100)
    cover.add(starts, 32, plain[starts])
    np.testing.assert_allclose(distance(x), cover.mean(), atol=2e-3)


@pytest.mark.parametrize("missing", [False, True])
def test_a_shifted_series_has_shifted_scores(missing: bool) -> None:
    scores = RowScores([wave(400)], [wave(200, 1)], WINDOW // 2, model(missing=missing))
    x = wave(400, 2)
    x[150:160] += 2
    first, later = scores(x), scores(x[WINDOW // 2 :])
    for name in scores.names:  # windows begin every half window, and rows near the ends have fewer of them
        inner = slice(WINDOW, 400 - 3 * WINDOW)
        np.testing.assert_allclose(
            first[name][WINDOW // 2 :][inner], later[name][inner], rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_the_cost_of_a_row_is_given_the_rows_around_its_patch() -> None:
    x, net = wave(WINDOW, 3).astype(np.float32), model()
    whole = torch.from_numpy(x.T[None].copy())
    each = torch.zeros(WINDOW)
    for a in range(0, WINDOW, WINDOW // PATCHES):
        hidden = whole.clone()
        hidden[..., a : a + WINDOW // PATCHES] = torch.nan
        cost = -net.decode(net.encode(hidden).z).by_position(whole)[0]
        each[a : a + WINDOW // PATCHES] = cost[a : a + WINDOW // PATCHES].detach()
    smooth = [each[max(0, i - 4) : i + 5].mean().item() for i in range(WINDOW)]
    np.testing.assert_allclose(model_scores(net, x)[SURPRISE], smooth, rtol=1e-4)


def test_made_up_anomalies_change_the_rows_that_they_say() -> None:
    x = wave(1000, 4)
    for change in CHANGES.values():
        changed, anomalous = insert_anomalies(x, change, WINDOW, x.std(0), np.random.default_rng(0))
        assert np.array_equal(changed[~anomalous], x[~anomalous])
        assert not np.array_equal(changed[anomalous], x[anomalous])
        assert 0.02 < anomalous.mean() < 0.3


def test_anomalies_are_found_on_the_time_axis_of_the_file(tmp_path: Path) -> None:
    x = wave(3000, 5)
    x[2400:2416] = x[2400]
    path = tmp_path / "001_UCR_Anomaly_wave_1600_2400_2415.txt"
    np.savetxt(path, x)
    kept = str(tmp_path / "run")
    config = DetectConfig(train=str(path), minutes=0.03, keep=kept)
    result = detect(Run(str(path), None), config)
    assert isinstance(result, SeriesDetection)
    (one,) = result.found
    assert (one.first, len(one.scores[result.by])) == (1600, 1400)
    assert abs(int(one.scores[result.by].argmax()) + 1600 - 2408) < 32
    assert any(a <= 2410 and b >= 2405 for a, b, _ in result.stretches(one))
    flagged = result.flagged(one)
    assert flagged is not None
    assert flagged[:700].mean() < 0.1
    assert result.rankings is not None
    assert result.rankings[result.by].auroc > 0.9
    result.save(tmp_path / "out")
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == list(range(1600, 3000))
    assert [row["anomalous"] == "True" for row in rows] == [2400 <= i <= 2415 for i in range(1600, 3000)]
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert found["series"][0]["highest"]["row"] == int(one.scores[result.by].argmax()) + 1600
    assert result.page().blocks
    with raises("window-too-long"):
        detect(Run(str(path), None), DetectConfig(train=str(path), window=5000))
    with raises("no-such-score"):
        detect(Run(kept, None), DetectConfig(score="psychic"))


def test_a_run_scores_its_test_rows_and_other_series_with_their_times(tmp_path: Path) -> None:
    from tessella import cli

    def table(name: str, x: np.ndarray) -> str:
        times = np.datetime64("2024-01-01T00", "h") + np.arange(len(x))
        lines = [f"{t},{v:.5f}" for t, v in zip(times.astype(str), x[:, 0], strict=True)]
        (tmp_path / name).write_text("\n".join(["time,a", *(line.replace("T", " ") for line in lines)]) + "\n")
        return str(tmp_path / name)

    run = str(tmp_path / "run")
    command = ["train", "vae", "--data", table("x.csv", wave(2000, 6)), "--kind", "series", "--valid-share", "0.2"]
    assert cli.main([*command, "--steps", "5", "--width", "8", "--depth", "1", "--quiet", "--out", run]) == 0
    own = detect(Run(run, "cpu"), DetectConfig())
    assert isinstance(own, SeriesDetection)
    assert own.found[0].first + len(own.found[0].scores[own.by]) == 2000
    assert own.held_out % own.window == 0
    held_out = own.thresholds["neighbours"]
    assert held_out > 0
    y = wave(300, 7)
    y[100:110] += 3
    other = detect(Run(run, "cpu"), DetectConfig(inputs=(table("y.csv", y),), score="neighbours"))
    assert isinstance(other, SeriesDetection)
    (one,) = other.found
    assert other.stretches(one)
    record = next(record for record in other.records() if record["row"] == 26)
    assert (record["series"], record["time"]) == ("y", "2024-01-02 02")
    with raises("no-such-input"):
        detect(Run(run, "cpu"), DetectConfig(inputs=("nowhere.csv",)))


def test_normal_rows_that_are_too_few_are_refused(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "x.csv", wave(200), header="a", comments="")
    config = DetectConfig(train=str(tmp_path / "x.csv"), kind="series")
    with raises("too-few-normal-examples"):
        detect(Run(str(tmp_path / "x.csv"), None), DetectConfig(train=config.train, kind="series", window=100))
    with raises("all-normal"):
        detect(Run(str(tmp_path / "x.csv"), None), DetectConfig(train=config.train, kind="series", window=16))
    with raises("only-with-train"):
        detect(Run(str(tmp_path / "x.csv"), None), DetectConfig(window=16))


def test_normal_signals_are_scored_as_new_ones() -> None:
    x = np.stack([wave(100, seed)[:, 0] * (1 + seed / 40) for seed in range(40)])[:, None]
    scorer = SignalScorer(x)
    np.testing.assert_allclose(scorer.pooled(Batch(torch.from_numpy(x)))[:, 0], scorer.of_normal, rtol=1e-6)
    alone = SignalScorer(x[1:]).pooled(Batch(torch.from_numpy(x[:1])))[0, 0]
    assert alone == pytest.approx(scorer.of_normal[0], rel=0.2)
    between = (x[3] + x[4]) / 2  # a combination of normal signals
    assert scorer.pooled(Batch(torch.from_numpy(between[None])))[0, 0] < np.median(scorer.of_normal)
    assert scorer.pooled(Batch(torch.from_numpy(x[:1, :, ::-1].copy())))[0, 0] > scorer.of_normal.max()


def test_estimators_take_signals() -> None:
    x = np.stack([wave(64, seed, channels=2).T for seed in range(30)])
    strange = x[:2] + np.where(np.arange(64) % 16 < 3, 1.5, 0)
    detector = LatentOutlierDetector(signal=True, max_steps=5, contamination=0.1, random_state=0).fit(x)
    assert detector.signal_shape_ == (2, 64)
    assert detector.predict(strange).tolist() == [-1, -1]
    np.testing.assert_allclose(detector.score_samples(x), detector.score_samples(x.reshape(30, -1)))
    by_bound = LatentOutlierDetector(signal=True, criterion="bound", max_steps=5, random_state=0).fit(x[:, 0])
    assert (by_bound.signal_shape_, by_bound.score_samples(x[:, 0]).shape) == ((1, 64), (30,))
    latents = LatentTransformer(signal=True, max_steps=5, random_state=0).fit(x).transform(x)
    assert latents.shape[0] == 30
    with pytest.raises(ValueError, match="shape"):
        detector.predict(x[:, :, :32])


def test_gaps_of_a_series_are_filled_and_other_values_kept(tmp_path: Path) -> None:
    from tessella import cli

    x = wave(600, 8)
    x[::7] = np.nan
    times = (np.datetime64("2024-01-01T00", "h") + np.arange(600)).astype(str)
    lines = [f"{t},{'' if np.isnan(v) else v}" for t, v in zip(times, x[:, 0], strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["time,a", *lines]) + "\n")
    run, out = str(tmp_path / "run"), tmp_path / "filled.csv"
    words = ["train", "vae", "--data", str(tmp_path / "x.csv"), "--kind", "series", "--steps", "60", "--width", "16"]
    assert cli.main([*words, "--depth", "1", "--quiet", "--out", run]) == 0
    assert cli.main(["reconstruct", run, str(tmp_path / "x.csv"), "-o", str(out), "--quiet"]) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["time"] for row in rows] == times.tolist()
    filled, gaps = np.array([float(row["a"]) for row in rows]), np.isnan(x[:, 0])
    np.testing.assert_allclose(filled[~gaps], x[~gaps, 0], rtol=1e-6)
    assert (
        np.abs(filled[gaps] - np.sin(2 * np.pi * np.arange(600) / 32)[gaps]).mean() < 0.25
    )  # 60 updates alone have 0.5


def test_a_gap_carries_on_what_the_model_misses_beside_it() -> None:
    """A model that knows nothing fills gaps linearly; columns without a value get its mean."""

    class Flat:
        schema = Schema(3, (16,), Real(-1.0, 1.0), missing=True)
        device = torch.device("cpu")

        def encode(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(z=torch.zeros_like(x) + 0.5)

        def decode(self, z: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=z)

    x = np.random.default_rng(0).normal(size=(40, 3))
    x[5:9, 0] = x[39, 0] = x[:, 2] = np.nan
    filled = fill_gaps(cast(Model, Flat()), x)
    np.testing.assert_allclose(filled[5:9, 0], np.interp(range(5, 9), [4, 9], x[[4, 9], 0]))
    assert filled[39, 0] == pytest.approx(x[38, 0])
    assert (filled[:, 2] == 0.5).all()
    np.testing.assert_array_equal(filled[:, 1], x[:, 1])
