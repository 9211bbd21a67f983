"""The benchmarks measure what they say: the bare loop's loss is the model's, and records tell what was run."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from tessella.core.rng import Noise
from tessella.core.schema import Integers, Schema
from tessella.models.presets import VAEConfig
from tessella.models.spec import Spec, TrainOptions

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_the_bare_loss_is_the_models_bound(bench) -> None:
    loop: ModuleType = bench("loop")
    torch.manual_seed(0)
    model = tessella.VAE(Schema.of((1, 8, 8), "binary"), width=8, depth=1, latent_dim=8)
    x = torch.randint(0, 2, (5, 1, 8, 8), dtype=torch.uint8)
    eps = Noise(0, 0, "latent").normal(5, 8)
    ours = model(x, noise=Noise(0, 0, "latent")).bound.mean() / model.schema.dims
    torch.testing.assert_close(loop.bare_loss(model, x, eps), ours)


def test_the_bare_loss_of_sounds_is_the_models_but_for_the_constant_rate(bench) -> None:
    loop: ModuleType = bench("loop")
    torch.manual_seed(0)
    schema = Schema(1, (256,), Integers(65536, -32768.0), rate=8000.0)
    model = tessella.VQVAE(schema, width=8, depth=1)
    x = torch.randint(-9000, 9000, (3, 1, 256)).float()
    terms = model.train()(x)
    ours = (terms.distortion + terms.penalty).mean() / schema.dims
    torch.testing.assert_close(loop.bare_loss_of_sounds(model, x), ours)


@pytest.mark.slow
def test_the_loops_take_turns_over_all_steps(bench, tmp_path: Path) -> None:
    loop: ModuleType = bench("loop")
    case = loop.cases()[-1]
    case = replace(case, write=partial(case.write, examples=200))
    data = case.data(tmp_path)
    blocks: list[int] = []
    turns = loop.train_in_turns(case, data, 7, block=3, turn=blocks.append, save=loop.NEVER)
    assert blocks == [3, 3, 3]
    assert (len(turns.ours), len(turns.theirs)) == (2, 3)


def test_looks_are_found_in_their_blocks(bench) -> None:
    loop: ModuleType = bench("loop")
    assert loop.with_looks(1001, 50) == {0, *range(1, 20)}


def test_a_row_keeps_its_bar(bench) -> None:
    common: ModuleType = bench("common")
    assert common.row("slow", 1.05, 1.1, better="lower")["reached"] is False
    assert common.row("fast", 1.3, 1.3, better="higher")["reached"] is True
    assert common.row("broken", 1.0, None, better="lower")["reached"] is False


def test_ratios_are_of_neighbours(bench) -> None:
    found = bench("common").ratios([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert (found["min"], found["median"], found["max"]) == (2.0, 2.0, 3.0)


def test_a_record_stands_in_the_table(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common: ModuleType = bench("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "TABLE", tmp_path / "README.md")
    common.TABLE.write_text(f"before\n{common.START}\nold\n{common.END}\nafter\n")
    common.write("startup", {"rows": [common.row("start", 0.4, 0.123456789, unit=" s", better="lower")]})
    text = common.TABLE.read_text()
    assert "| start | <= 0.4 s | 0.1235 s | yes | [startup](results/startup.json) |" in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_the_readme_has_the_marks_of_its_table(bench) -> None:
    common: ModuleType = bench("common")
    assert common.START in common.TABLE.read_text()
    assert common.END in common.TABLE.read_text()


def recipe_run(run: Path, **training: Any) -> Path:
    """What a finished run of the MNIST recipe leaves, without the weights."""
    options = TrainOptions(**{"minutes": 30, "batch_size": 64, "compile": "no", **training})
    source = {"spec": str(run / "mnist.npz"), "size": None, "channels": None, "binarize": "dynamic", "seed": 0}
    schema = Schema.of((1, 28, 28), "binary")
    spec = Spec(
        "vae", schema, VAEConfig(width=32, depth=2, iwae_samples=5, iwae_from=0.75), source, asdict(options), "0.1.0"
    )
    (run / "spec.json").write_text(spec.to_json())
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "valid", "step": 9, "seconds": 1800.5, "used": 1.0}) + "\n")
    bound = {"samples": 500, "nats": 84.0, "bits_per_dim": 0.15}
    evaluation = {"data": source["spec"], "examples": 10_000, "importance_bound": bound, "seed": 0, "step": 9}
    evaluation["precision"] = "bfloat16"
    (run / "results").mkdir()
    (run / "results/evaluation-test.json").write_text(json.dumps(evaluation))
    return run


def test_a_finished_run_is_recorded(bench, tmp_path: Path) -> None:
    recipes: ModuleType = bench("recipes")
    recipe = recipes.RECIPES["mnist-vae"]
    run = recipe_run(tmp_path)
    record = recipes.record_of(recipe, run)
    assert record["rows"][0]["reached"]
    assert not record["goal_reached"]
    assert record["commands"][0].startswith("tessella train vae --data mnist.npz --binarize dynamic --minutes 30")
    assert record["commands"][1] == "tessella evaluate RUN --importance-samples 500 --precision bfloat16"
    assert (record["steps"], record["seconds"], record["seed"]) == (9, 1800.5, 0)
    assert str(tmp_path) not in json.dumps(record)
    assert recipes.differences(recipe, json.loads((run / "spec.json").read_text())) == []


def test_a_run_of_another_command_is_told(bench, tmp_path: Path) -> None:
    recipes: ModuleType = bench("recipes")
    run = recipe_run(tmp_path, seed=3)
    found = recipes.differences(recipes.RECIPES["mnist-vae"], json.loads((run / "spec.json").read_text()))
    assert found == ["seed: 3, not 0"]


@pytest.mark.parametrize("file", ["results/evaluation-test.json", "metrics.jsonl"])
def test_an_unfinished_run_is_refused(bench, tmp_path: Path, file: str) -> None:
    recipes: ModuleType = bench("recipes")
    run = recipe_run(tmp_path)
    (run / file).unlink()
    with pytest.raises(SystemExit, match=r"no run|missing"):
        recipes.record_of(recipes.RECIPES["mnist-vae"], run)


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
def test_both_ways_of_sampling_draw_the_same(bench, kind: str) -> None:
    sampling: ModuleType = bench("sampling")
    case = sampling.Case(kind, 1, shape=(2, 3, 3), codebook_size=5, depth=2, width=8, batch=2)
    record = sampling.measure(case, rounds=1, count=9)
    assert record["seconds"]["recomputed"] > 0
    assert record["ratio"]["pairs"] == 1


def test_pythae_is_given_the_same_network(bench) -> None:
    pytest.importorskip("pythae", reason="the bench extra is not installed: make bench")
    peer: ModuleType = bench("pythae_peer")
    model = tessella.VAE(Schema.of((1, 8, 8), "binary"), width=8, depth=1, latent_dim=8)
    wrapped = peer.in_pythae(model)
    assert peer.size(wrapped) == peer.size(model)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (4, 1, 8, 8))).float()
    terms = model(x)
    found = wrapped.loss_function(
        wrapped.decoder(wrapped.encoder(x).embedding).reconstruction, x, *wrapped.encoder(x).values(), None
    )
    torch.testing.assert_close(found[1], terms.distortion.mean())
    torch.testing.assert_close(found[2], terms.rate.mean())


@pytest.mark.parametrize(("seed", "area"), [(0, 0.98436295), (1, 0.96478946), (2, 0.96565885), (3, 0.99235004)])
def test_the_volume_under_the_surface_is_that_of_its_authors(bench, seed: int, area: float) -> None:
    """The areas are those of `RangeAUC_volume_opt` of the package vus 0.0.6."""
    rng, labels = np.random.default_rng(seed), np.zeros(1500, int)
    for first, last in ((100, 140), (170, 175), (1200, 1230), (1490, 1496 if seed else 1490)):
        labels[first:last] = 1
    scores = np.convolve(rng.normal(size=1500) + 2 * labels, np.ones(5) / 5, "same")
    scores = scores.round(1) if seed == 3 else scores
    assert bench("series").vus_pr(labels, scores, 20) == pytest.approx(area, abs=1e-8)
