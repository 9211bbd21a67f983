"""Runs whose data has moved or changed, and trainings that learned nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import making
import tessella
from expect import raises
from tessella import TrainOptions
from tessella.cli import main
from tessella.core.outputs import Terms
from tessella.core.tensors import read_tensors
from tessella.foundation.errors import TrainingError
from tessella.models.latent_variable import LatentVariableModel
from tessella.sklearn import LatentTransformer
from tessella.training import checkpoint, fitted_priors, loop, prior_trainer

Refused = Callable[..., str]
TINY = ("--width", "8", "--quiet")
OF_DATA = "if it was moved, give its new place with --data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pics`, and a `run` on them with a prior."""
    folder = tmp_path_factory.mktemp("moved")
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "pics" / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 20, (8, 8, 3), dtype=np.uint8) + np.uint8(200 * (label == "cat"))
            Image.fromarray(pixels).save(folder / "pics" / label / f"{number}.png")
    where = ("--data", str(folder / "pics"), "--out", str(folder / "run"))
    assert main(["train", "vqvae", *where, "--steps", "2", "--codebook-size", "8", *TINY]) == 0
    few = ("--steps", "2", "--learning-rate", "0.02", "--depth", "1")  # enough to beat the uniform prior
    assert main(["fit-prior", str(folder / "run"), *few, *TINY]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run, whose data has moved to `elsewhere`."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "pics", tmp_path / "elsewhere")
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    spec["data"]["spec"] = str(tmp_path / "pics")
    (tmp_path / "run" / "spec.json").write_text(json.dumps(spec))
    return tmp_path / "run"


def step(path: Path) -> int:
    return read_tensors(path / checkpoint.STATE).progress["step"]


def test_a_run_whose_data_has_moved_goes_on_where_it_is_told(
    run: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    assert OF_DATA in refused("train", "--resume", "--out", run, "--steps", 3, "--quiet")
    elsewhere = str(run.parent / "elsewhere")
    assert main(["train", "--resume", "--out", str(run), "--steps", "3", "--quiet", "--data", elsewhere]) == 0
    assert "reads its data from" in capsys.readouterr().err
    assert step(run) == 3
    assert checkpoint.read_spec(run).data["spec"] == elsewhere
    assert main(["train", "--resume", "--out", str(run), "--steps", "4", "--quiet"]) == 0  # it knows the place now


def test_a_prior_whose_data_has_moved_goes_on_where_it_is_told(run: Path, refused: Refused) -> None:
    more = ("--resume", "--steps", "3", "--quiet")
    assert OF_DATA in refused("fit-prior", run, *more)
    assert main(["fit-prior", str(run), *more, "--data", str(run.parent / "elsewhere")]) == 0
    assert step(run / "priors" / "pixelcnn") == 3


@pytest.mark.parametrize("in_place", [False, True])
def test_other_data_is_refused_with_its_counts_unless_it_is_asked_for(
    run: Path, refused: Refused, capsys: pytest.CaptureFixture[str], in_place: bool
) -> None:
    elsewhere = run.parent / "elsewhere"
    shutil.rmtree(elsewhere / "dog")
    where = [] if in_place else ["--data", str(elsewhere)]
    if in_place:
        elsewhere.rename(run.parent / "pics")
    before = checkpoint.read_spec(run).data["examples"]["train"]
    now = len(tessella.open_data(str(run.parent / ("pics" if in_place else "elsewhere"))).split("train"))
    for command in (["train", "--resume", "--out", str(run)], ["fit-prior", str(run), "--resume"]):
        again = [*command, "--steps", "3", "--quiet", *where]
        line = refused(*again)
        assert f"{before} training pictures then, {now} now" in line
        assert "--changed-data" in line
        assert main([*again, "--changed-data"]) == 0
        assert "other data than before" in capsys.readouterr().err
        if command[0] == "fit-prior":
            continue
        assert checkpoint.read_spec(run).data["examples"]["train"] == now
        shutil.rmtree(run / "priors")  # of other weights now
        assert main(["fit-prior", str(run), "--steps", "2", "--depth", "1", *TINY]) == 0
        spec = fitted_priors.read_prior_spec(run / "priors" / "pixelcnn")
        data = {**spec.data, "fingerprint": "0" * 16, "examples": {**spec.data["examples"], "train": before}}
        fitted_priors.write_prior_spec(run / "priors" / "pixelcnn", replace(spec, data=data))


def test_data_of_as_many_pictures_is_other_data_too(run: Path, refused: Refused) -> None:
    first = next((run.parent / "elsewhere" / "cat").iterdir())
    Image.new("RGB", (8, 8)).save(first)
    line = refused("train", "--resume", "--out", run, "--quiet", "--data", run.parent / "elsewhere")
    assert "other data" in line


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate",),
        ("report",),
        ("reconstruct", "0"),
        ("traverse", "0"),
        ("encode",),
        ("compress", "-o", "x.tsl"),
        ("index",),
        ("detect",),
        ("fit-prior", "--kind", "transformer"),
        ("compare",),
    ],
    ids=lambda command: command[0],
)
def test_whoever_misses_the_data_of_a_run_is_told_of_the_option(
    run: Path, refused: Refused, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    name, *more = command
    runs = [run, shutil.copytree(run, run.parent / "other")] if name == "compare" else [run]
    line = refused(name, *runs, *more)
    assert OF_DATA in line
    assert "the run was trained on this data" in line


def test_data_that_has_changed_is_told_of_when_it_is_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "elsewhere").rename(run.parent / "pics")
    assert main(["evaluate", str(run)]) == 0
    assert "has changed" not in capsys.readouterr().err
    shutil.rmtree(run.parent / "pics" / "dog")
    assert main(["evaluate", str(run)]) == 0
    assert "has changed since the run was trained on it" in capsys.readouterr().err


# nothing learned


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(40, 4)) * 1e30
    np.savez(tmp_path / "huge.npz", x=x.astype(np.float32))
    return tmp_path / "huge.npz"


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_training_whose_batches_were_all_bad_ends_with_the_first_bad_tensor(
    huge: Path, refused: Refused, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = huge.parent / "run"
    line = refused("train", "vae", "--data", huge, "--out", run, "--steps", steps, *TINY)
    assert "first in" in line
    assert "nothing was saved" in line
    assert "trained" not in capsys.readouterr().out
    assert not (run / checkpoint.MODEL).exists()
    assert not (run / checkpoint.STATE).exists()


def test_scikit_learn_is_told_the_same() -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)) * 1e30
    with pytest.raises(TrainingError, match=r"nothing was learned: all 2 batches .* first in"):
        LatentTransformer(max_steps=2).fit(x)


def spoil(monkeypatch: pytest.MonkeyPatch, kind: type[Any], at: Callable[[int], bool]) -> None:
    """Let the loss of some steps be no number."""
    plain = kind.forward

    def spoiled(self, x, label=None, *, noise=None, draws=None):
        terms = plain(self, x, label, noise=noise, draws=draws)
        bad = noise is not None and noise.stream == "latent" and at(noise.step)
        return Terms(terms.distortion + (float("nan") if bad else 0.0), terms.rate)

    monkeypatch.setattr(kind, "forward", spoiled)


def small(out: Path, steps: int, **more: object) -> loop.TrainResult:
    data = tessella.open_data("digits")
    torch.manual_seed(0)
    options = TrainOptions(steps=steps, batch_size=8, save_every=1e9)
    return loop.train(tessella.VAE(data.schema, width=8, depth=1), data, out, options, **more)  # pyright: ignore[reportArgumentType]


def test_the_last_batches_were_bad_and_the_weights_are_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, LatentVariableModel, lambda step: step >= 3)
    with pytest.warns(UserWarning, match=r"2 of 5 batches .* were skipped; .* was the distortion"):
        assert small(tmp_path / "run", 5).steps == 5
    assert read_tensors(tmp_path / "run" / checkpoint.MODEL).progress["step"] == 5


def test_a_loss_that_explodes_later_leaves_the_last_good_checkpoint_and_names_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "run", 3)
    spoil(monkeypatch, LatentVariableModel, lambda step: step >= 3)
    before = (tmp_path / "run" / checkpoint.MODEL).read_bytes()
    for steps, what in ((5, "nothing was learned: all 2 batches"), (20, "5 batches in a row")):
        with pytest.raises(TrainingError, match=f"{what}.*the last good checkpoint \\(step 3\\) is kept in"):
            small(tmp_path / "run", steps, resume=True)
    assert (tmp_path / "run" / checkpoint.MODEL).read_bytes() == before


def test_weights_that_are_not_finite_at_the_end_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = loop._Loop._update

    def poison(self, batch):
        reading = update(self, batch)
        if self.state.step == 2:
            next(self.model.decoder.parameters()).data[0] = float("inf")
        return reading

    monkeypatch.setattr(loop._Loop, "_update", poison)
    with pytest.raises(
        TrainingError, match=r"ended at step 3 with the weights decoder.* not finite; nothing was saved"
    ):
        small(tmp_path / "run", 3)
    assert not (tmp_path / "run" / checkpoint.MODEL).exists()


def test_a_prior_that_learned_nothing_says_so_and_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "run", 2)
    spoil(monkeypatch, prior_trainer.LatentPriorTrainer, lambda step: True)
    with raises("nothing-learned"):
        making.fit(tmp_path / "run", tessella.open_data("digits"), "flow", options=TrainOptions(steps=2))
    assert not (tmp_path / "run" / "priors" / "flow" / checkpoint.MODEL).exists()
    assert fitted_priors.prior_in_use(tmp_path / "run") is None
