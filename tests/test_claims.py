"""The claims: how a verdict comes about, the clock that trainings share, what does not apply, the page, the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella import claims
from tessella.claims import Bench, Claim, Recipe, Result, Trial
from tessella.claims import bench as benches
from tessella.claims.claim import Bars, Lines, Measure, Series, decided
from tessella.claims.measuring import principal
from tessella.cli import main
from tessella.commands.claims import Claims
from tessella.data import Data, open_data
from tessella.foundation.errors import DataError, SpecError
from tessella.models.presets import VAE
from tessella.pages import claims as page
from tessella.training.loop import TrainResult

CLOSED = (2, 3, 4, 5)
"""Claims of which everything is known in closed form: seconds each."""


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
    assert Trial.over("it", effects, least=least, most=most).verdict == verdict


def test_what_is_exact_is_always_decided() -> None:
    assert Trial.exact("it", 0.0, least=-1e-9).verdict == "held"
    assert Trial.exact("it", 0.0, least=0.0).verdict == "failed"
    assert Trial.exact("it", 1e-9, least=None, most=1e-6).verdict == "held"


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_no_effect_is_held_by_chance_once_in_twenty(seeds: int) -> None:
    """Of 4,000 trials without an effect 5 % are held, give or take 4 standard errors: a false alarm in 16,000."""
    effects = np.random.default_rng(seeds).normal(size=(4000, seeds))
    held = np.mean([Trial.over("it", row.tolist()).verdict == "held" for row in effects])
    assert abs(held - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


def test_one_failed_effect_fails_the_claim() -> None:
    held, failed = Trial.exact("a", 1.0), Trial.exact("b", -1.0)
    open_ = Trial.over("c", (1.0, -1.0))
    assert decided("", [held, held]).verdict == "held"
    assert decided("", [held, open_]).verdict == "undecided"
    assert decided("", [held, open_, failed]).verdict == "failed"


# the bench


def test_a_recipe_is_made_once_a_seed(digits: Data) -> None:
    made: list[int] = []
    recipe = Recipe("counted", lambda bench, seed, seconds: made.append(seed) or object())
    bench = Bench(digits, needs=(recipe,))
    first = [bench.get(recipe, seed) for seed in bench.seeds]
    assert [bench.get(recipe, seed) for seed in bench.seeds] == first
    assert made == list(bench.seeds)


def test_the_clock_is_shared_by_weight(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not used is left to the others; what takes longer takes from them; the whole is never exceeded."""
    now = 0.0
    monkeypatch.setattr(benches.time, "monotonic", lambda: now)
    given: list[float] = []
    light = Recipe("light", lambda bench, seed, seconds: given.append(seconds))
    heavy = Recipe("heavy", lambda bench, seed, seconds: given.append(seconds), weight=3.0)
    alone = Recipe("alone", lambda bench, seed, seconds: given.append(seconds), once=True)
    bench = Bench(digits, minutes=10, seeds=(0, 1), needs=(light, heavy, alone))
    whole = 600 * benches.FOR_TRAINING
    bench.get(light, 0)
    assert given[-1] == pytest.approx(whole / 9)
    bench.get(heavy, 0)  # nothing was used by the first
    assert given[-1] == pytest.approx(whole * 3 / 8)
    now = whole / 2
    bench.get(alone, 0)
    assert given[-1] == pytest.approx(whole / 2 / 5)
    now = 2 * whole
    bench.get(heavy, 1)
    assert given[-1] == 1.0


def test_all_seeds_are_trained_before_anything_is_measured(digits: Data) -> None:
    done: list[object] = []

    def looking(bench: Bench) -> Result:
        done.append("measured")
        return made_up(1.0)

    needs = tuple(Recipe(n, lambda bench, seed, seconds: done.append(seed), once=n == "one") for n in ("one", "many"))
    claims.run(digits, (replace(of_number(1, looking), needs=needs),), seeds=(4, 5))
    assert done == [4, 4, 5, "measured"]


def test_fitting_stops_at_its_updates_or_its_time(digits: Data) -> None:
    bench = Bench(digits)
    model = VAE(digits.schema, width=8, depth=1, units=2)
    assert bench.fit(model, seed=0, seconds=float("inf"), steps=3) == 3
    assert 1 <= bench.fit(model, seed=0, seconds=0.2, steps=10_000) < 2_000


def test_a_long_time_trains_for_longer(digits: Data) -> None:
    """In proportion beyond the usual time; shares are still of what is enough in that."""
    assert Claims.minutes == benches.USUAL  # written twice, as the command's help must not import torch
    for minutes, steps in ((0.5 * benches.USUAL, 3), (2 * benches.USUAL, 6)):
        bench = Bench(digits, minutes=minutes)
        assert bench.fit(VAE(digits.schema, width=8, depth=1, units=2), seed=0, seconds=60, steps=3) == steps


def test_whoever_stops_a_training_stops_the_claims(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = TrainResult(Path(), 1, 0.0, "signal")
    monkeypatch.setattr(benches.training, "fit", lambda *args: stopped)
    with pytest.raises(KeyboardInterrupt):
        Bench(digits).fit(VAE(digits.schema, width=8, depth=1, units=2), seed=0, seconds=float("inf"), steps=3)


def test_measuring_the_speed_changes_no_weight(digits: Data) -> None:
    bench = Bench(digits)
    torch.manual_seed(0)
    model = VAE(digits.schema, width=8, depth=1, units=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bench._pace(model, digits.split("train"), {"batch_size": 8, "workers": 0})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_is_concluded_from_models_without_updates(digits: Data) -> None:
    def make(bench: Bench, seed: int, seconds: float) -> None:
        bench.fit(VAE(digits.schema, width=8, depth=1, units=2), seed=seed, seconds=0.001, steps=1000)

    recipe = Recipe("hasty", make)

    def look(bench: Bench) -> Result:
        bench.get(recipe, 0)
        return decided("it was found", [Trial.exact("it", 1.0)])

    claim = Claim(1, "Title", "It is so.", "looking", look, needs=(recipe,))
    result = claims.run(digits, (claim,))[1]
    assert result.verdict == "undecided"
    assert "hasty had less than 15 % of the updates that are enough: give more --minutes" in result.sentence
    assert result.trained == {"hasty": 1}


def test_unseen_examples_are_of_test_and_valid(digits: Data) -> None:
    unseen = Bench(digits).unseen()
    assert len(unseen.x) == len(digits.split("test")) + len(digits.split("valid"))
    assert unseen.label is not None
    assert len(Bench(digits).unseen(150).x) == 150


def test_too_little_data_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((60, 3), np.float32) + np.arange(60)[:, None])
    with pytest.raises(DataError, match="at least 200 and 40"):
        Bench(open_data(str(tmp_path / "few.npy")))


# the claims


@pytest.mark.parametrize("number", sorted(claims.CLAIMS))
def test_every_claim_states_itself(number: int) -> None:
    claim = claims.claim(number)
    assert claim.number == number
    assert claims.CLAIMS[number].startswith(f"c{number:02}_")
    assert min(len(claim.title), len(claim.hypothesis), len(claim.measured)) > 10


def test_what_several_claims_share_is_one_recipe() -> None:
    known: dict[str, Recipe] = {}
    for claim in claims.chosen():
        for recipe in claim.needs:
            assert known.setdefault(recipe.name, recipe) is recipe


def test_no_such_claim() -> None:
    with pytest.raises(SpecError, match="there is no claim 99; there are: 1, 2"):
        claims.chosen((99,))


@pytest.mark.parametrize("number", CLOSED)
def test_what_is_known_in_closed_form_holds_on_digits(number: int, digits: Data) -> None:
    result = claims.run(digits, claims.chosen((number,)))[number]
    assert result.verdict == "held", [(t.what, t.effect, t.verdict) for t in result.trials]
    assert result.plots
    json.dumps(result.to_json(), allow_nan=False)


def test_vectors_without_labels(vectors: Data) -> None:
    """What can be tested on them is; what cannot says why."""
    results = claims.run(vectors, claims.chosen((2, 3, 6, 9)))
    assert {n: r.verdict for n, r in results.items()} == {
        2: "held", 3: "held", 6: "not applicable", 9: "not applicable"
    }  # fmt: skip
    assert results[6].sentence == "vectors have no pixels to be drawn in turn"


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 6, 7, 8, 9])
def test_what_is_trained_comes_to_a_verdict(number: int, digits: Data) -> None:
    """With a handful of updates: whichever it is."""
    result = claims.run(digits, claims.chosen((number,)), minutes=0.002, seeds=(0, 1))[number]
    assert result.verdict in ("held", "failed", "undecided")
    assert result.sentence
    json.dumps(page._finite(result.to_json()), allow_nan=False)


# the page


def made_up(verdict_of: float) -> Result:
    lines = Lines("a title", "K", (Series("s", ((2.0, 1.0), (8.0, 0.5)), (0.1, 0.2)),), log=True)
    bars = Bars("bars", ("a", "b"), (1.0, -2.0), (0.0, 0.3), "nats")
    measures = (Measure("of <it>", 12.345, 0.4, "nats"), Measure("endless", float("inf")))
    return decided("it was found", [Trial.exact("effect", verdict_of)], measures, [lines, bars])


def of_number(number: int, run: Callable[[Bench], Result]) -> Claim:
    return Claim(number, f"Claim <{number}>", "It is so.", "looking", run)


def test_the_page_shows_every_claim(digits: Data, tmp_path: Path) -> None:
    chosen = (
        of_number(1, lambda bench: made_up(1.0)),
        of_number(2, lambda bench: made_up(-1.0)),
        Claim(
            3, "Third", "It is so.", "looking", lambda bench: made_up(1.0), hindrance=lambda bench: "waits for sound"
        ),
    )
    told: list[int] = []
    digits = replace(digits, notes=("1 picture was <skipped>",))
    results = claims.run(digits, chosen, tell=lambda claim, result: told.append(claim.number))
    assert told == [1, 2, 3]
    record = page.record(digits, chosen, results, seeds=3, minutes=12.0, seconds=30.0, processor_seconds=20.0)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert page.counted(record) == "1 held, 1 failed, 1 not applicable"
    page.write(tmp_path / "page.html", record)
    text = (tmp_path / "page.html").read_text("utf-8")
    for part in (
        "Claim &lt;1&gt;",
        "failed",
        "waits for sound",
        "12.3 ± 0.4",
        "not finite",
        "above 0",
        "<svg",
        "&lt;skipped",
    ):
        assert part in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(12.345, 0.4, "12.3 ± 0.4"), (1234.5, 31.0, "1,234 ± 31"), (0.00123, None, "0.00123"), (None, None, "not finite")],
)
def test_numbers_have_the_digits_that_their_error_leaves(value: float, error: float | None, text: str) -> None:
    assert page.number(value, error) == text


# the command


def test_the_command_writes_a_page_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    assert main(["claims", "--data", "digits", "--only", "3", "-o", str(out), "--json", str(numbers)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "data     digits"
    assert any(line.startswith(" 3  held") for line in said)
    assert "KL is never negative" in out.read_text("utf-8")
    found = json.loads(numbers.read_text())
    assert [c["number"] for c in found["claims"]] == [3]
    assert found["data"] == "digits"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--only", "99"), "there is no claim 99"),
        (("--only", "six"), "no list of numbers"),
        (("--minutes", "0"), "minutes must be more than zero"),
        (("--seeds", "1"), "seeds must lie between 2 and 100"),
        (("-o", "page.txt"), "page.txt has no page's ending"),
        (("-o", "few.npy/page.html"), "no folder that takes new files"),
        (("--json", "numbers.html"), "numbers.html has no JSON file's ending"),
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
    assert main(["claims", *given]) == 2
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
