"""Defaults that fit: sizes, divergence, the best weights, and how a model compares with simple baselines."""

from __future__ import annotations

import math
import warnings
from collections import deque
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

import tessella
from making import make
from tessella import TrainOptions
from tessella.core.schema import UINT8, Real, Schema
from tessella.data import splits
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.verdict import judge
from tessella.evaluation.verdict.marginal import marginal_bound
from tessella.evaluation.verdict.principal import PrincipalComponents
from tessella.models.presets import VAEConfig
from tessella.training import callbacks, checkpoint, loop, sizing, state

ROWS = ({"width": 8, "depth": 1}, {"width": 16, "depth": 1}, {"width": 32, "depth": 2}, {"width": 64, "depth": 2})


@pytest.fixture(scope="module")
def digits():
    return tessella.open_data("digits")


def split_of(x: np.ndarray) -> splits.Split:
    """A split that holds these examples."""
    from tessella.data.raw import RawSplit

    return splits.PartSplit(RawSplit(x, None, np.arange(len(x), dtype=np.uint64)), np.arange(len(x)))


# sizes


@pytest.fixture
def clock(monkeypatch):
    """Updates take as many milliseconds as the network is wide, times the batch's share of 64."""

    def taken(model, split, batch, options, device):
        return model.encoder.plan.widths[0] / 1000 * batch / 64

    monkeypatch.setattr(sizing, "_update_time", taken)


def sized(digits, config: VAEConfig, **options):
    return sizing.fit_to_budget(
        config,
        ROWS,
        lambda c: c.build(digits.schema),
        digits.split("train"),
        TrainOptions(**options),
        digits.schema.dims,
    )


def test_the_largest_network_that_leaves_enough_updates_is_taken(digits, clock):
    for minutes in (0.5, 1, 2, 6, 30):
        found = sized(digits, VAEConfig(), minutes=minutes)
        wanted = sizing.UPDATES * math.sqrt(minutes / sizing.REFERENCE)
        fits = [row["width"] for row in ROWS if row["width"] / 1000 * wanted <= 60 * minutes]
        assert found.config.width == max(fits, default=8)
        assert found.options.batch_size == 64
        assert f"width {found.config.width}" in found.reason


def test_a_larger_network_is_taken_where_it_takes_hardly_longer(digits, monkeypatch):
    def taken(model, split, batch, options, device):
        return 0.1 + model.encoder.plan.widths[0] / 1000 * batch / 64

    monkeypatch.setattr(sizing, "_update_time", taken)
    widths = [row["width"] for row in ROWS if 0.1 + row["width"] / 1000 <= sizing.UNDERUSED * (0.1 + 8 / 1000)]
    assert sized(digits, VAEConfig(), minutes=1, batch_size=64).config.width == max(widths) > 8


def test_examples_of_about_the_mean_length_are_measured():
    part = split_of(np.zeros((5, 1, 9), np.float32))
    part.lengths = np.array([9, 1, 5, 6, 2])
    assert sizing._typical_rows(part, 2).tolist() == [2, 3]
    assert sizing._typical_rows(part, 7).tolist() == [2, 3, 4, 1, 0, 2, 3]


def test_what_is_given_stays_and_other_budgets_measure_nothing(digits, clock):
    found = sized(digits, VAEConfig(width=24), minutes=6, batch_size=16)
    assert (found.config.width, found.options.batch_size) == (24, 16)
    assert found.config.depth == 2
    assert sized(digits, VAEConfig(), steps=10).config == VAEConfig()


@pytest.mark.parametrize("busy", [True, False])
def test_one_thread_is_used_where_several_wait_for_one_another(digits, monkeypatch, busy):
    def taken(model, split, batch, options, device):
        return 1e-3 if options.threads == 1 or not busy else 5e-3

    monkeypatch.setattr(sizing, "_update_time", taken)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.warns(UserWarning, match="busy") if busy else nullcontext():
        found = sized(digits, VAEConfig(), minutes=6)
    assert found.options.threads == (1 if busy else None)
    assert sized(digits, VAEConfig(), minutes=6, threads=3).options.threads == 3


def test_networks_are_compiled_where_that_pays_within_the_budget(digits, clock, monkeypatch):
    monkeypatch.setattr(sizing, "_compiling_pays", lambda *given: True)
    assert sized(digits, VAEConfig(), minutes=30).options.compile == "yes"
    assert sized(digits, VAEConfig(), minutes=6).options.compile == "no"
    assert sized(digits, VAEConfig(), minutes=30, compile="no").options.compile == "no"


def test_a_budget_that_cannot_work_is_said_before_it_is_spent(digits, clock):
    with pytest.warns(UserWarning, match="at least 2 seconds"):
        found = sized(digits, VAEConfig(), minutes=1 / 120)
    assert (found.config.width, found.options.batch_size) == (8, 32)  # 125 updates, where 112 are wanted
    with pytest.warns(UserWarning, match="too few"):
        assert sized(digits, VAEConfig(), minutes=1e-5).options.batch_size == sizing.SMALLEST_BATCH


def test_batches_do_not_shrink_where_that_saves_no_time(digits, monkeypatch):
    monkeypatch.setattr(sizing, "_update_time", lambda *given: 1.0)
    with pytest.warns(UserWarning, match="too few"):
        assert sized(digits, VAEConfig(), minutes=1).options.batch_size == 64


def test_a_real_network_is_measured(digits):
    found = sizing._update_time(
        make("vae", digits.schema, width=8, depth=1), digits.split("train"), 8, TrainOptions(), torch.device("cpu")
    )
    assert 0 < found < 60


# divergence, the best weights


def test_a_training_that_diverges_goes_on_from_a_good_state(digits, tmp_path):
    torch.manual_seed(0)
    model = make("vae", digits.schema, width=8, depth=1, latent_dim=4, likelihood="logistic")
    options = TrainOptions(steps=250, batch_size=16, learning_rate=1.0, ema_decay=0.9)
    with pytest.warns(UserWarning, match="times the learning rate"):
        loop.train(model, digits, tmp_path / "run", options)
    costs = [r["bound"] for r in checkpoint.read_metrics(tmp_path / "run") if r["kind"] == "valid"]
    assert costs[-1] < 0.85 * costs[0]


def test_the_guard_forgives_single_losses_short_rises_and_slow_learning():
    model = torch.nn.Linear(2, 2)
    watched = state.TrainState(model, TrainOptions(), 1e-3)
    guard = state.Guard(watched, 100.0, dims=10)
    noise = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(500):
            watched.step += 1
            guard.after_update(1e6 if step % 9 == 0 else 90 * math.exp(-step / 200) + noise.normal())
        deque(map(guard.after_update, (3 * state.WINDOW // 2) * [300.0] + 3 * state.WINDOW * [10.0]))
    assert watched.slowed == 1
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(7)
    with pytest.warns(UserWarning, match="diverged"):
        deque(map(guard.after_update, 3 * state.WINDOW * [300.0]))
    assert watched.slowed == 0.5
    with warnings.catch_warnings():  # the state before anything was learned is no divergence
        warnings.simplefilter("error")
        early = state.Guard(state.TrainState(torch.nn.Linear(2, 2), TrainOptions(), 1e-3), 70.0, dims=10)
        deque(map(early.after_update, [100 - 2 * step for step in range(30)]))
        early.state.go_back(early.good)
        early.state.lowest = early.good_lowest
        deque(map(early.after_update, 40 * [100.0]))
        quiet = state.Guard(state.TrainState(torch.nn.Linear(2, 2), TrainOptions(), 1e-3), 100.0, dims=10)
        deque(map(quiet.after_update, [40.0, *80 * [90.0]]))  # the first batch alone says little
        uneven = state.Guard(state.TrainState(torch.nn.Linear(2, 2), TrainOptions(), 1e-3), 100.0, dims=10)
        deque(map(uneven.after_update, [*20 * [75.0], *noise.normal(90, 20, 1000)]))
    assert torch.equal(model.weight, before)


def test_the_best_weights_are_kept_and_a_training_that_overfits_stops(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "VALIDATION_SHARE", 1.0)
    few = replace(digits, splits={**digits.splits, "train": digits.split("train").subset(range(16))})
    torch.manual_seed(0)
    model = make("vae", digits.schema, width=16, depth=1, latent_dim=16)
    done = loop.train(
        model, few, tmp_path / "run", TrainOptions(steps=300, batch_size=16, learning_rate=5e-3, save_every=1e9)
    )
    assert done.stopped == "converged"
    assert done.steps < 300
    costs = [r["bound"] for r in checkpoint.read_metrics(tmp_path / "run") if r["kind"] == "valid"]
    best = tessella.load(tmp_path / "run")
    kept = evaluate(best, digits.split("valid"), limit=callbacks.EXAMPLES, collapse_examples=0)
    assert kept.bound == pytest.approx(min(costs), rel=1e-5)
    assert kept.bound < costs[-1]


# baselines


def test_the_marginal_bound_is_the_entropy_of_the_values_with_one_more_count_each():
    x = np.zeros((4, 2, 3), np.uint8)
    x[:2, 0] = 5
    schema = Schema.of((2, 3), UINT8)
    counts = np.array([7, 7]) / (12 + 256)
    expected = -3 * (np.log(counts).mean() + math.log(13 / (12 + 256)))
    assert marginal_bound(split_of(x), schema) == pytest.approx(expected)
    other = np.full((1, 2, 3), 9, np.uint8)  # values that were never seen have a probability too
    assert marginal_bound(split_of(x), schema, split_of(other)) == pytest.approx(6 * math.log(12 + 256))
    real = np.random.default_rng(0).normal(3, 2, (5000, 4)).astype(np.float32)
    gaussian = 4 * (0.5 * math.log(2 * math.pi * 4) + 0.5)
    assert marginal_bound(split_of(real), Schema.of((4,), Real())) == pytest.approx(gaussian, rel=0.05)


def test_principal_components_follow_the_rate_distortion_of_gaussians():
    deviations = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.1])
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * deviations
    components = PrincipalComponents(x[:2000])
    errors = [components.error(x[2000:], bits) for bits in (0, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(float(deviations.square().mean()), rel=0.1)
    level = 0.25  # reverse water-filling at this error, of which uniform quantisation may lose a quarter of a bit each
    least = sum(max(0.0, 0.5 * math.log2(float(d) ** 2 / level)) for d in deviations)
    best = float(deviations.square().clamp_max(level).mean())
    assert components.error(x[2000:], least) > 0.95 * best
    assert components.error(x[2000:], least + 0.26 * 4) < 1.15 * best


def test_a_model_is_judged_beside_the_baselines(digits, tmp_path):
    torch.manual_seed(0)
    model = make("vae", digits.schema, width=16, depth=1)
    found = judge(model, digits)
    assert found.bits_per_dim > 4
    assert any("nothing yet" in sentence for sentence in found.sentences)
    loop.train(model, digits, tmp_path / "run", TrainOptions(steps=120, batch_size=32))
    found = judge(tessella.load(tmp_path / "run"), digits)
    held = evaluate(tessella.load(tmp_path / "run"), digits.split("valid"), collapse_examples=0)
    assert found.bits_per_dim == pytest.approx(held.bits_per_dim, rel=0.02)
    assert found.psnr == pytest.approx(held.psnr, abs=0.1)
    assert 0 < found.detail < 1
