"""The second stage over real-valued z: priors are fitted on frozen q(z | x), kept with the run, and used if better."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Independent, Normal

import making
import tessella
from expect import raises
from making import make
from tessella import TrainOptions
from tessella.bottlenecks import EMAQuantizer
from tessella.cli import main
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.tensors import read_tensors, write_tensors
from tessella.data import Data
from tessella.evaluation.bounds import evaluate
from tessella.foundation.errors import SpecError
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors import StandardNormal
from tessella.priors.flow import FlowPriorModule
from tessella.priors.normal import StandardNormalModule
from tessella.priors.standardised import Standardised
from tessella.training import checkpoint, fitted_priors, loop, prior_trainer
from tessella.training.fit_prior import FitResult

SMALL = {"width": 16, "depth": 1, "latent_dim": 4}
OPTIONS = TrainOptions(steps=8, batch_size=16, save_every=0.0)
QUICK = {"options": OPTIONS, "width": 8, "flow_steps": 2}


@pytest.fixture(scope="module")
def digits() -> Data:
    return tessella.open_data("digits")


@pytest.fixture(scope="module")
def trained(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models, trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    for name, preset in (("vae", tessella.VAE), ("ae", tessella.AE), ("cvae", tessella.CVAE)):
        torch.manual_seed(0)
        steps = TrainOptions(steps=120 if name == "vae" else 12, batch_size=32)
        loop.train(make(preset, digits.schema, **SMALL), digits, folder / name, steps)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def runs(trained: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one, to do anything with."""
    return lambda name: Path(shutil.copytree(trained[name], tmp_path / name, dirs_exist_ok=True))


def fitted(run: Path, data: Data, kind: str = "flow", **more: Any) -> FitResult:
    return making.fit(run, data, kind, **{**QUICK, **more})


def loaded(run: Path, prior: str | None = None) -> LatentVariableModel:
    model = tessella.load(run, prior=prior)
    assert isinstance(model, LatentVariableModel)
    return model


def spoil(run: Path) -> None:
    """Let the weights be others, as if training had gone on."""
    state = read_tensors(run / checkpoint.MODEL)
    weights = {name: t + 0.05 if t.is_floating_point() else t for name, t in state.tensors.items()}
    write_tensors(run / checkpoint.MODEL, weights, state.progress)


def prefer(run: Path, kind: str, rate: float | None) -> None:
    """Let the prior of that kind have been measured so."""
    home = fitted_priors.prior_home(run, kind)
    spec = fitted_priors.read_prior_spec(home)
    fitted_priors.write_prior_spec(home, spec.with_rate(rate) if rate is not None else spec)


# the scale


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_the_scale_is_in_the_density(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = Standardised(StandardNormal().build(shape), shape)
    mean, deviation = torch.randn(shape[0]), torch.rand(shape[0]) + 0.2
    prior.fit_scale(mean, deviation)
    spread = (-1, *[1] * (len(shape) - 1))
    wide = [t.reshape(spread).expand(shape) for t in (mean, deviation)]
    truth = Independent(Normal(wide[0], wide[1]), len(shape))
    z = torch.randn(7, *shape) * 3
    torch.testing.assert_close(prior(None).log_prob(z), truth.log_prob(z))
    # the change of volume is autograd's
    base = StandardNormal().build(shape)(None)
    jacobian = torch.func.jacrev(lambda v: ((v - wide[0]) / wide[1]).flatten())(z[0]).reshape(z[0].numel(), -1)
    expected = base.log_prob((z[0] - wide[0]) / wide[1]) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(prior(None).log_prob(z[:1])[0], expected)
    drawn = prior.sample(4000, Noise(0))
    assert drawn.shape == (4000, *shape)
    # five standard errors: a false alarm in some 10^5 seeds, numbers together
    assert ((drawn.mean(0) - wide[0]).abs() < 5 * wide[1] / 4000**0.5).all()
    assert ((drawn.std(0) / wide[1] - 1).abs() < 5 / 8000**0.5).all()


def test_the_scale_is_that_of_the_latents(trained: dict[str, Path], digits: Data) -> None:
    for name in ("ae", "vae"):
        model = loaded(trained[name], "trained")
        trainer = prior_trainer.LatentPriorTrainer(model)
        split = prior_trainer.encode_splits(trainer, digits, "float32")["train"]
        assert trainer.encoded
        prior = Standardised(StandardNormal().build(model.latent_shape), model.latent_shape)
        own = model.prior
        trainer.set_prior([prior])
        trainer.fit_scale(split, "float32")
        mean, deviation = prior.mean, prior.deviation
        model.set_prior([] if own is None else [own])
        train = digits.split("train")
        with torch.no_grad():
            q = model.encode(train.batch(range(len(train))).x)
        spread = q.z.var(0) if q.posterior is None else q.posterior.mean.var(0) + q.posterior.variance.mean(0)
        # of a vae z is drawn: three percent are five standard errors of the deviation of 1347 draws, and more
        torch.testing.assert_close(mean, q.z.mean(0), atol=0.15, rtol=0.05)
        torch.testing.assert_close(deviation, spread.sqrt(), atol=0.0, rtol=0.1 if name == "vae" else 0.01)


# what is fitted


def test_a_prior_fitted_to_a_vae_lowers_the_rate_and_the_model_stays(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("vae")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = fitted(run, digits, options=TrainOptions(steps=150, batch_size=64), width=32)
    assert done.rate is not None
    assert done.rate_before is not None
    assert done.rate < done.rate_before
    assert before == {path: path.read_bytes() for path in before}
    own, model = loaded(run, "trained"), loaded(run)
    assert isinstance(own.prior, StandardNormalModule)
    assert isinstance(model.prior, Standardised)
    assert isinstance(model.prior.prior, FlowPriorModule)
    spec = fitted_priors.read_prior_spec(fitted_priors.prior_home(run, "flow"))
    assert (spec.rate, spec.rate_before) == (done.rate, done.rate_before)
    assert (spec.kind, spec.config.width, spec.config.flow_steps, spec.class_conditional) == ("flow", 32, 2, False)
    plain, better = (evaluate(m, digits.split("valid"), collapse_examples=0) for m in (own, model))
    assert plain.distortion == better.distortion
    assert better.bound is not None
    assert plain.bound is not None
    assert better.bound < plain.bound
    # the rate is drawn: of 20 draws an example its standard error is some 0.05 nats, of one 0.2
    assert better.rate == pytest.approx(done.rate, abs=0.8)
    assert plain.rate == pytest.approx(done.rate_before, abs=0.3)
    weighted = evaluate(model, digits.split("valid"), collapse_examples=0, importance_samples=20).importance_bound
    assert weighted is not None
    assert weighted.nats < better.bound


@pytest.mark.parametrize("kind", ["mixture", "vamp"])
def test_mixtures_lower_the_rate_too(kind: str, runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("vae")
    options = TrainOptions(steps=100, batch_size=64, learning_rate=0.01)
    done = making.fit(run, digits, kind, options=options, components=9)
    assert done.rate is not None
    assert done.rate_before is not None
    assert done.rate < done.rate_before
    spec = fitted_priors.read_prior_spec(fitted_priors.prior_home(run, kind))
    assert spec.config.components == 9
    model = loaded(run)
    assert isinstance(model.prior, Standardised)
    assert type(model.prior.prior).__name__ == {"mixture": "MixturePriorModule", "vamp": "VampPriorModule"}[kind]
    assert {"priors.0.prior.logits", "priors.0.mean"} < set(weights(fitted_priors.prior_home(run, kind)))
    assert not any("encoder" in name for name in weights(fitted_priors.prior_home(run, kind)))
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_a_vamp_prior_is_of_posteriors_alone(runs: Callable[[str], Path], digits: Data) -> None:
    with raises("needs-gaussian-posterior"):
        making.fit(runs("ae"), digits, "vamp", options=OPTIONS)
    with raises("needs-labels"):
        making.fit(runs("cvae"), digits, "vamp", options=OPTIONS)
    done = making.fit(runs("cvae"), digits, "vamp", options=OPTIONS, components=20, class_conditional=True)
    assert done.rate is not None
    assert loaded(runs("cvae"), "trained").conditional


def test_an_autoencoder_with_a_prior_samples_and_has_no_bound(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("ae")
    assert not loaded(run).has_prior
    done = fitted(run, digits)
    assert done.rate is not None
    assert done.rate_before is None
    model = loaded(run)
    assert model.has_prior
    assert not model.has_bound
    assert not loaded(run, "trained").has_prior
    assert model.sample(3).shape == (3, 1, 8, 8)
    valid = digits.split("valid")
    with torch.no_grad():
        z = model.encode(valid.batch(range(len(valid))).x)
        cost = -model.prior_given(None).log_prob(z.z)
    assert model.rate(z) is None
    assert float(cost.mean()) == pytest.approx(done.rate, rel=1e-4)
    evaluation = evaluate(model, digits.split("valid"))
    assert (evaluation.rate, evaluation.bound, evaluation.bits_per_dim) == (None, None, None)
    with raises("no-rate"):
        model(digits.split("valid").batch(range(4)).x, draws=3)


def test_a_prior_alone_may_see_the_label(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("vae")
    fitted(run, digits, class_conditional=True)
    model = loaded(run, "flow")
    batch = digits.split("valid").batch(range(20))
    assert model.conditional
    assert model.sample(3, torch.tensor([0, 1, 2])).shape == (3, 1, 8, 8)
    with raises("no-label"):
        model.sample(3)
    with torch.no_grad():
        known = model.encode(batch.x, noise=Noise(0))
        with raises("no-label"):
            model.rate(known)
        plain = loaded(run, "trained").encode(batch.x, noise=Noise(0))
        assert torch.equal(known.z, plain.z)
        assert model.decode(known.z).log_prob(batch.x).shape == (20,)
        terms = model(batch.x, batch.label, noise=Noise(0), draws=3)
    assert model.rate(known, batch.label) is not None
    assert terms.log_weights is not None
    assert terms.log_weights.shape == (3, 20)
    assert evaluate(model, digits.split("valid"), collapse_examples=20).rate is not None


def test_a_model_that_sees_labels_may_have_a_prior_that_does_not(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("cvae")
    for labelled in (False, True):
        fitted(run, digits, class_conditional=labelled, overwrite=True)
        model = loaded(run, "flow")
        assert isinstance(model.prior, Standardised)
        assert (model.conditional, bool(model.prior.classes)) == (True, labelled)
        assert model.sample(3, torch.tensor([0, 1, 2])).shape == (3, 1, 8, 8)
        batch = digits.split("valid").batch(range(9))
        with torch.no_grad():
            rate = model.rate(model.encode(batch.x, batch.label, noise=Noise(0)), batch.label)
        assert rate is not None
        assert rate.total.isfinite().all()


def test_examples_are_encoded_anew_where_posteriors_do_not_fit_in_memory(
    runs: Callable[[str], Path], digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs("vae")
    kept = fitted(run, digits, options=TrainOptions(steps=30, batch_size=32, ema_decay=0.9))
    monkeypatch.setattr(prior_trainer, "CACHED", 0)
    anew = fitted(run, digits, options=TrainOptions(steps=30, batch_size=32, ema_decay=0.9), overwrite=True)
    assert anew.rate == pytest.approx(kept.rate, rel=1e-4)  # the same draws; lots of another size are rounded otherwise
    assert anew.rate_before == pytest.approx(kept.rate_before, rel=1e-4)


def test_a_posterior_that_is_not_normal_is_drawn_from_each_step(digits: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = make(tessella.VAE, digits.schema, **SMALL, posterior="flow")
    loop.train(vae, digits, tmp_path / "run", OPTIONS)
    rows = prior_trainer.encode_splits(prior_trainer.LatentPriorTrainer(vae), digits, "float32")
    assert rows["valid"] is digits.split("valid")
    done = making.fit(tmp_path / "run", digits, "mixture", options=OPTIONS, components=3)
    assert done.rate is not None
    model = loaded(tmp_path / "run", "mixture")
    assert evaluate(model, digits.split("valid"), collapse_examples=0).rate == pytest.approx(done.rate, abs=1.0)
    with raises("needs-gaussian-posterior"):
        making.fit(tmp_path / "run", digits, "vamp", options=OPTIONS)


def test_data_that_is_drawn_anew_is_encoded_several_times(trained: dict[str, Path]) -> None:
    data = tessella.open_data("digits", binarize="dynamic")
    torch.manual_seed(0)
    trainer = prior_trainer.LatentPriorTrainer(make(tessella.VAE, data.schema, **SMALL))
    split = prior_trainer.encode_splits(trainer, data, "float32")["train"]
    at = np.arange(50)
    plain, first, again = split.batch(at), split.batch(at, Noise(0, 3)), split.batch(at, Noise(0, 3))
    assert torch.equal(first.x, again.x)
    same = (plain.x == first.x).flatten(1).all(1).float().mean()
    assert 0 < same < 0.6  # one in four has the same draw; nobody has 30 of 50 in 10^5 seeds


# going on


def weights(home: Path) -> dict[str, torch.Tensor]:
    return {**load_file(home / checkpoint.STATE), **load_file(home / checkpoint.MODEL)}


@pytest.mark.parametrize(("name", "labelled"), [("vae", True), ("ae", False)])
def test_stopped_and_resumed_is_bitwise_the_uninterrupted_prior(
    name: str, labelled: bool, runs: Callable[[str], Path], digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(name)
    whole = fitted(run, digits, class_conditional=labelled)
    home = fitted_priors.prior_home(run, "flow")
    expected = weights(home)
    shutil.rmtree(home)
    update = loop._Loop._update

    def ask(self: Any, batch: Any) -> Any:
        if self.state.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch)

    monkeypatch.setattr(loop._Loop, "_update", ask)
    cut = fitted(run, digits, class_conditional=labelled)
    monkeypatch.undo()
    assert (cut.training.stopped, cut.training.steps, cut.rate) == ("signal", 5, None)
    assert isinstance(loaded(run).prior, StandardNormalModule) == (name == "vae"), (
        "one that is not measured is not used"
    )
    done = fitted(run, digits, class_conditional=labelled, resume=True)
    assert (done.training.stopped, done.training.steps) == ("budget", 8)
    assert (done.rate, done.rate_before) == (whole.rate, whole.rate_before)
    found = weights(home)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


# which prior is used


def test_a_prior_is_measured_as_it_is_used(runs: Callable[[str], Path], digits: Data) -> None:
    """And not as it is trained: with one noise level an example and the labels of some hidden."""
    run = runs("vae")
    done = making.fit(run, digits, "diffusion", options=OPTIONS, width=8, depth=1, class_conditional=True)
    trainer = prior_trainer.LatentPriorTrainer(loaded(run, "diffusion"))
    valid = prior_trainer.encode_splits(trainer, digits, OPTIONS.precision)["valid"]
    assert done.rate == pytest.approx(trainer.mean_rate(valid, OPTIONS.precision), abs=1e-4)


def test_the_better_prior_is_used(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("vae")
    fitted(run, digits)
    making.fit(run, digits, "diffusion", options=OPTIONS, width=8, depth=1)

    def used() -> str:
        prior = loaded(run).prior
        return type(prior.prior if isinstance(prior, Standardised) else prior).__name__

    prefer(run, "flow", 1e6)
    prefer(run, "diffusion", 1e6)
    assert used() == "StandardNormalModule"
    assert fitted_priors.prior_in_use(run) is None
    prefer(run, "flow", -1.0)
    assert used() == "FlowPriorModule"
    prefer(run, "diffusion", -2.0)
    assert used() == "DiffusionPriorModule"
    assert str(fitted_priors.prior_in_use(run)).startswith("diffusion ")
    assert isinstance(loaded(run, "trained").prior, StandardNormalModule)
    assert isinstance(loaded(run, "flow").prior.prior, FlowPriorModule)  # pyright: ignore[reportOptionalMemberAccess]
    model = loaded(run)
    with raises("inexact-prior"):
        model(digits.split("valid").batch(range(4)).x, draws=3)
    few, many = (model.sample(2, sampling=Sampling(steps=steps)) for steps in (2, 9))
    assert not torch.equal(few, many)
    with raises("no-steps"):
        loaded(run, "flow").sample(2, sampling=Sampling(steps=3))
    with raises("no-steps"):
        loaded(run, "trained").sample(2, sampling=Sampling(guidance=2.0))


def test_a_prior_of_other_weights_is_refused(runs: Callable[[str], Path], digits: Data) -> None:
    run = runs("vae")
    fitted(run, digits)
    prefer(run, "flow", -1.0)
    before = checkpoint.fingerprint(run)
    spoil(run)
    after = checkpoint.fingerprint(run)
    with raises("other-weights", fitted_on=before, now=after):
        loaded(run, "flow")
    with raises("other-weights", fitted_on=before, now=after):
        fitted(run, digits, resume=True)
    with pytest.warns(UserWarning, match="fit_prior"):
        assert isinstance(loaded(run).prior, StandardNormalModule)


# what goes wrong


def test_what_cannot_be_fitted_is_refused_before_anything_is_encoded(
    runs: Callable[[str], Path], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("nothing is encoded")

    monkeypatch.setattr(prior_trainer, "encode_split", never)
    run = runs("vae")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "pixelcnn"}, "models codes"),
        ({"kind": "normal"}, "nothing to fit"),
        ({"kind": "psychic"}, "no prior is called|there are:"),
        ({"width": 0}, "width must be at least 1"),
        ({"flow_steps": 0}, "flow steps must be at least 1"),
        ({"components": 3}, "has no components"),
    ]
    for options, says in cases:
        with pytest.raises(SpecError, match=says):
            fitted(run, digits, **options)
    with raises("no-prior"):
        fitted(run, digits, resume=True)
    np.savez(tmp_path / "plain.npz", x=np.zeros((60, 8, 8), np.uint8))
    with raises("no-labels"):
        fitted(run, tessella.open_data(str(tmp_path / "plain.npz")), class_conditional=True)
    assert not (run / checkpoint.PRIORS).exists()


def test_a_model_of_codes_has_no_prior_over_numbers(digits: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codes = tessella.VQVAE(digits.schema, width=8, depth=1, grid_size=4, quantizer=EMAQuantizer(codebook_size=8))
    loop.train(codes, digits, tmp_path / "run", OPTIONS)
    with raises("other-latents"):
        making.fit(tmp_path / "run", digits, "flow", options=OPTIONS)
    with raises("no-prior"):
        tessella.load(tmp_path / "run", prior="flow")


def test_a_prior_that_is_there_is_not_touched_unless_it_is_to_be_replaced(
    runs: Callable[[str], Path], digits: Data
) -> None:
    run = runs("ae")
    fitted(run, digits)
    home = fitted_priors.prior_home(run, "flow")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with raises("already-there"):
        fitted(run, digits)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


# at the command line


def test_commands_on_a_vae_with_a_prior(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    run, size = runs("vae"), ("--steps", "8", "--batch-size", "16", "--width", "8")
    assert main(["fit-prior", str(run), "--kind", "flow", "--flow-steps", "2", *size]) == 0
    said = capsys.readouterr().out
    assert "flow over the latents" in said
    assert "under the trained prior" in said
    prefer(run, "flow", -1.0)
    assert main(["fit-prior", str(run), "--kind", "flow", "--resume", "--steps", "10"]) == 0
    assert "flow steps 2, not 3" in refused("fit-prior", run, "--kind", "flow", "--resume", "--flow-steps", 3)
    prefer(run, "flow", -1.0)
    picture = str(tmp_path / "p.png")
    for command in (["sample", "-n", "4"], ["interpolate", "0", "1"], ["traverse", "0", "--dimensions", "2"]):
        assert main([command[0], str(run), *command[1:], "-o", picture]) == 0
    bounds = []
    for prior in ("flow", "trained"):
        capsys.readouterr()
        assert main(["evaluate", str(run), "--prior", prior]) == 0
        bounds.append(capsys.readouterr().out)
    assert bounds[0] != bounds[1]
    assert "bits-back" in refused("compress", run, "0", "-o", tmp_path / "z.tes")
    assert "--prior trained" in refused("compress", run, "0", "-o", tmp_path / "z.tes")
    assert main(["compress", str(run), "0", "1", "--prior", "trained", "-o", str(tmp_path / "z.tes"), "--quiet"]) == 0
    assert main(["decompress", str(tmp_path / "z.tes"), "-o", str(tmp_path / "back"), "--quiet"]) == 0
    assert "there are: flow" in refused("sample", run, "--prior", "diffusion", "-o", picture)
    assert "leave out --guidance" in refused("sample", run, "--guidance", 2, "-o", picture)
    assert "guidance must be" in refused("sample", run, "--guidance", -1, "-o", picture)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "prior over the latents was fitted (flow)" in page or "too short to draw curves" in page
    assert "--kind flow" in page


def test_commands_on_an_autoencoder_with_a_prior(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    run, picture = runs("ae"), str(tmp_path / "p.png")
    assert "has no prior" in refused("sample", run, "-o", picture)
    assert (
        main(["fit-prior", str(run), "--kind", "flow", "--steps", "8", "--batch-size", "16", "--class-conditional"])
        == 0
    )
    assert "no rate" in capsys.readouterr().out
    assert main(["sample", str(run), "-n", "20", "-o", picture]) == 0
    assert "rows, top to bottom: 0, 1, 2" in capsys.readouterr().out
    small = ("--steps", "6", "--batch-size", "16", "--width", "8", "--depth", "1", "--quiet")
    assert main(["fit-prior", str(run), "--kind", "diffusion", *small, "--class-conditional"]) == 0
    drawn = []
    for guidance in ("1", "3"):
        options = ("--prior", "diffusion", "--steps", "3", "--guidance", guidance)
        assert main(["sample", str(run), "-n", "10", *options, "-o", picture]) == 0
        drawn.append(Path(picture).read_bytes())
    assert drawn[0] != drawn[1]
    assert main(["interpolate", str(run), "0", "1", "-o", picture]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<h2>Samples</h2>" in page
    assert "no bound and no bits per dimension" in page
    assert "needs a label" in refused("compress", run, "0", "--prior", "flow", "-o", tmp_path / "z.tes")
    assert main(["fit-prior", str(run), "--kind", "flow", "--steps", "8", "--overwrite", "--quiet"]) == 0
    assert "has no rate" in refused("compress", run, "0", "-o", tmp_path / "z.tes")
    assert "has no prior" in refused("compress", run, "0", "--prior", "trained", "-o", tmp_path / "z.tes")
