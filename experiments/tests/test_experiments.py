"""The claims: how a verdict comes about, the clock that trainings share, what does not apply, the page, the command."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tessella_experiments as experiments
from tessella import VAE, Data, open_data, write_html
from tessella.plugin import Chart, DataError, Series, SpecError, main
from tessella_experiments import runner as runners
from tessella_experiments.measuring import principal
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars
from tessella_experiments.runner import ExperimentRunner, TrainingJob
from tessella_experiments.task import ClaimsConfig, ClaimsResult, _finite, number


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """400 correlated vectors of 6 numbers without labels."""
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    random = np.random.default_rng(0)
    np.save(path, (random.normal(size=(400, 6)) @ random.normal(size=(6, 6))).astype(np.float32))
    return open_data(str(path))


# verdicts


@pytest.mark.parametrize(
    ("effects", "least", "most", "verdict"),
    [
        ((1.0, 1.1, 0.9), 0.0, None, "held"),
        ((-1.0, -1.1, -0.9), 0.0, None, "failed"),
        ((1.0, -1.1, 0.2), 0.0, None, "undecided"),
        ((0.01, -0.01, 0.0), -0.1, 0.1, "held"),
        ((0.5, 0.51, 0.49), -0.1, 0.1, "failed"),
        ((0.1, 0.11, 0.09), -0.1, 0.1, "undecided"),
        ((0.05, 0.06, 0.04), None, 0.1, "held"),
        ((1.0,), 0.0, None, "undecided"),
        ((float("nan"), 1.0, 1.0), 0.0, None, "undecided"),
    ],
)
def test_an_effect_is_judged_against_its_error(
    effects: tuple[float, ...], least: float | None, most: float | None, verdict: str
) -> None:
    assert EffectTest.over("it", effects, least=least, most=most).verdict == verdict


def test_what_is_exact_is_always_decided() -> None:
    assert EffectTest.exact("it", 0.0, least=-1e-9).verdict == "held"
    assert EffectTest.exact("it", 0.0, least=0.0).verdict == "failed"
    assert EffectTest.exact("it", 1e-9, least=None, most=1e-6).verdict == "held"


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_no_effect_is_held_by_chance_once_in_twenty(seeds: int) -> None:
    """Of 4,000 effects without an effect 5 % are held, give or take 4 standard errors: a false alarm in 16,000."""
    effects = np.random.default_rng(seeds).normal(size=(4000, seeds))
    held = np.mean([EffectTest.over("it", row.tolist()).verdict == "held" for row in effects])
    assert abs(held - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


def test_one_failed_effect_fails_the_claim() -> None:
    held, failed = EffectTest.exact("a", 1.0), EffectTest.exact("b", -1.0)
    open_ = EffectTest.over("c", (1.0, -1.0))
    assert Finding.of("", [held, held]).verdict == "held"
    assert Finding.of("", [held, open_]).verdict == "undecided"
    assert Finding.of("", [held, open_, failed]).verdict == "failed"


# the runner


def test_a_recipe_is_made_once_a_seed(digits: Data) -> None:
    made: list[int] = []
    job = TrainingJob("counted", lambda runner, seed, seconds: made.append(seed) or object())
    runner = ExperimentRunner(digits, needs=(job,))
    first = [runner.get(job, seed) for seed in runner.seeds]
    assert [runner.get(job, seed) for seed in runner.seeds] == first
    assert made == list(runner.seeds)


def test_the_clock_is_shared_by_weight(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not used is left to the others; what takes longer takes from them; the whole is never exceeded."""
    now = 0.0
    monkeypatch.setattr(runners.time, "monotonic", lambda: now)
    given: list[float] = []
    light = TrainingJob("light", lambda runner, seed, seconds: given.append(seconds))
    heavy = TrainingJob("heavy", lambda runner, seed, seconds: given.append(seconds), weight=3.0)
    alone = TrainingJob("alone", lambda runner, seed, seconds: given.append(seconds), once=True)
    runner = ExperimentRunner(digits, minutes=10, seeds=(0, 1), needs=(light, heavy, alone))
    whole = 600 * runners.FOR_TRAINING
    runner.get(light, 0)
    assert given[-1] == pytest.approx(whole / 9)
    runner.get(heavy, 0)  # nothing was used by the first
    assert given[-1] == pytest.approx(whole * 3 / 8)
    now = whole / 2
    runner.get(alone, 0)
    assert given[-1] == pytest.approx(whole / 2 / 5)
    now = 2 * whole
    runner.get(heavy, 1)
    assert given[-1] == 1.0


def test_all_seeds_are_trained_before_anything_is_measured(digits: Data) -> None:
    done: list[object] = []

    def looking(runner: ExperimentRunner) -> Finding:
        done.append("measured")
        return made_up(1.0)

    needs = tuple(
        TrainingJob(n, lambda runner, seed, seconds: done.append(seed), once=n == "one") for n in ("one", "many")
    )
    experiments.run(digits, (replace(of_number(1, looking), needs=needs),), seeds=(4, 5))
    assert done == [4, 4, 5, "measured"]


def test_fitting_stops_at_its_updates_or_its_time(digits: Data) -> None:
    runner = ExperimentRunner(digits)
    model = VAE(digits.schema, width=8, depth=1, latent_dim=2)
    assert runner.fit(model, seed=0, seconds=float("inf"), steps=3) == 3
    assert 1 <= runner.fit(model, seed=0, seconds=0.2, steps=10_000) < 2_000


def test_a_long_time_trains_for_longer(digits: Data) -> None:
    """In proportion beyond the usual time; shares are still of what is enough in that."""
    assert ClaimsConfig.minutes == runners.USUAL  # written twice, as the task's options must not import torch
    for minutes, steps in ((0.5 * runners.USUAL, 3), (2 * runners.USUAL, 6)):
        runner = ExperimentRunner(digits, minutes=minutes)
        assert runner.fit(VAE(digits.schema, width=8, depth=1, latent_dim=2), seed=0, seconds=60, steps=3) == steps


def test_whoever_stops_a_training_stops_the_claims(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "fit", lambda *args: SimpleNamespace(stopped="signal"))
    with pytest.raises(KeyboardInterrupt):
        ExperimentRunner(digits).fit(
            VAE(digits.schema, width=8, depth=1, latent_dim=2), seed=0, seconds=float("inf"), steps=3
        )


def test_measuring_the_speed_changes_no_weight(digits: Data) -> None:
    runner = ExperimentRunner(digits)
    torch.manual_seed(0)
    model = VAE(digits.schema, width=8, depth=1, latent_dim=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner._pace(model, digits.split("train"), {"batch_size": 8, "workers": 0})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_is_concluded_from_models_without_updates(digits: Data) -> None:
    def make(runner: ExperimentRunner, seed: int, seconds: float) -> None:
        runner.fit(VAE(digits.schema, width=8, depth=1, latent_dim=2), seed=seed, seconds=0.001, steps=1000)

    job = TrainingJob("hasty", make)

    def look(runner: ExperimentRunner) -> Finding:
        runner.get(job, 0)
        return Finding.of("it was found", [EffectTest.exact("it", 1.0)])

    claim = Claim(1, "Title", "It is so.", "looking", look, needs=(job,))
    result = experiments.run(digits, (claim,))[1]
    assert result.verdict == "undecided"
    assert "hasty had less than 15 % of the updates that are enough: give more minutes" in result.sentence
    assert result.trained == {"hasty": 1}


def test_unseen_examples_are_of_test_and_valid(digits: Data) -> None:
    unseen = ExperimentRunner(digits).unseen()
    assert len(unseen.x) == len(digits.split("test")) + len(digits.split("valid"))
    assert unseen.label is not None
    assert len(ExperimentRunner(digits).unseen(150).x) == 150


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((60, 3), np.float32) + np.arange(60)[:, None])
    with pytest.raises(DataError, match="at least 200 and 40"):
        ExperimentRunner(open_data(str(tmp_path / "few.npy")))


# the claims


@pytest.mark.parametrize("number", sorted(experiments.CLAIMS))
def test_every_claim_states_itself(number: int) -> None:
    claim = experiments.claim(number)
    assert claim.number == number
    assert min(len(claim.title), len(claim.hypothesis), len(claim.method)) > 10


def test_what_several_claims_share_is_one_recipe() -> None:
    known: dict[str, TrainingJob] = {}
    for claim in experiments.chosen():
        for job in claim.needs:
            assert known.setdefault(job.name, job) is job


def test_no_such_claim() -> None:
    with pytest.raises(SpecError, match="there is no claim 99; there are: 1, 4"):
        experiments.chosen((99,))


def test_what_is_known_in_closed_form_holds_on_digits(digits: Data) -> None:
    result = experiments.run(digits, experiments.chosen((4,)))[4]
    assert result.verdict == "held", [(e.what, e.effect, e.verdict) for e in result.effects]
    assert result.plots
    json.dumps(result.to_json(), allow_nan=False)


def test_vectors_without_labels(vectors: Data) -> None:
    """What can be tested on them is; what cannot says why."""
    results = experiments.run(vectors, experiments.chosen((4, 6, 9)))
    assert {n: r.verdict for n, r in results.items()} == {4: "undecided", 6: "not applicable", 9: "not applicable"}
    assert results[6].sentence == "vectors have no pixels to be drawn in turn"


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 6, 7, 8, 9])
def test_what_is_trained_comes_to_a_verdict(number: int, digits: Data) -> None:
    """With a handful of updates: whichever it is."""
    result = experiments.run(digits, experiments.chosen((number,)), minutes=0.002, seeds=(0, 1))[number]
    assert result.verdict in ("held", "failed", "undecided")
    assert result.sentence
    json.dumps(_finite(result.to_json()), allow_nan=False)


# the task


def made_up(effect: float) -> Finding:
    lines = Chart("a title", (Series((2.0, 8.0), (1.0, 0.5), "s", (0.1, 0.2)),), x_label="K", log_x=True)
    measures = (Measure("of <it>", 12.345, 0.4, "nats"), Measure("endless", float("inf")))
    plots = (lines, bars("bars", {"a": measures[0]}, "nats"))
    return Finding.of("it was found", [EffectTest.exact("effect", effect)], measures, plots)


def of_number(number: int, run: Callable[[ExperimentRunner], Finding]) -> Claim:
    return Claim(number, f"Claim <{number}>", "It is so.", "looking", run)


def test_the_page_shows_every_claim(digits: Data, tmp_path: Path) -> None:
    chosen = (
        of_number(1, lambda runner: made_up(1.0)),
        of_number(2, lambda runner: made_up(-1.0)),
        replace(of_number(3, lambda runner: made_up(1.0)), skip_reason=lambda runner: "waits for sound"),
    )
    told: list[int] = []
    found = experiments.run(digits, chosen, tell=lambda claim, result: told.append(claim.number))
    assert told == [1, 2, 3]
    about = {"data": "digits", "examples": {"train": 9}, "notes": ["1 picture was <skipped>"], "seeds": 3}
    about |= {"seconds": 30.0, "processor_seconds": 20.0, "threads": 1}
    result = ClaimsResult(about, tuple((c, found[c.number]) for c in chosen))
    assert [c["verdict"] for c in result.to_json()["claims"]] == ["held", "failed", "not applicable"]
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["claims"][0]["measures"][1]["value"] is None
    write_html(tmp_path / "page.html", result.page())
    text = (tmp_path / "page.html").read_text("utf-8")
    for part in ("Claim &lt;1&gt;", "1 failed", "waits for sound", "12.3 ± 0.4", "not finite", "above 0", "<svg"):
        assert part in text
    assert "&lt;skipped" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.345, 0.4, "12.3 ± 0.4"),
        (1234.5, 31.0, "1,234 ± 31"),
        (0.00123, None, "0.00123"),
        (math.nan, 1, "not finite"),
    ],
)
def test_numbers_have_the_digits_that_their_error_leaves(value: float, error: float | None, text: str) -> None:
    assert number(value, error) == text


def test_the_command_writes_a_page_and_prints_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["claims", "--data", "digits", "--only", "4", "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "raising the bound shrinks the gap" in out.read_text("utf-8")
    assert [(c["number"], c["verdict"]) for c in found["claims"]] == [(4, "held")]
    assert found["data"] == "digits"


def test_its_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from tessella.plugin import main; sys.exit(main(['claims', '--help']) or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--only", "99"), "there is no claim 99"),
        (("--only", "six"), "not a list of numbers"),
        (("--minutes", "0"), "minutes must be more than zero"),
        (("--seeds", "1"), "seeds must lie between 2 and 100"),
        (("-o", "page.txt"), "page.txt"),
        (("--data", "nowhere"), "no such data"),
        (("--data", "few.npy"), "claims need at least"),
    ],
)
def test_mistakes_take_one_line(
    args: tuple[str, ...],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", np.zeros((60, 3), np.float32) + np.arange(60)[:, None])
    given = args if "--data" in args else ("--data", "digits", *args)
    assert main(["claims", *given, "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert part in said.err
    assert [p.name for p in tmp_path.iterdir()] == ["few.npy"]


@pytest.mark.parametrize("shape", [(60, 10), (10, 60)])
def test_principal_components_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = principal(x, 5)
    s = torch.linalg.svdvals(x - x.mean(0))[:5]
    assert torch.allclose(found.deviations, s / (len(x) - 1) ** 0.5)
    assert torch.allclose(found.axes.T @ found.axes, torch.eye(5, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.of(x, whitened=True).var(0), torch.ones(5, dtype=torch.float64))
