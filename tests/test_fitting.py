"""The second stage: codes are made once, priors over them are kept with the run, and the best one is used."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import making
import tessella
from expect import raises
from making import make
from tessella import TrainOptions
from tessella.bottlenecks import EMAQuantizer
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.core.tensors import read_tensors, write_tensors
from tessella.data import Data
from tessella.evaluation.bounds import evaluate
from tessella.models.codes import CodeModel
from tessella.priors.uniform import UniformModule
from tessella.training import checkpoint, fitted_priors, loop, prior_trainer
from tessella.training.fit_prior import FitResult

SMALL = {"width": 8, "depth": 1, "codebook_size": 8, "grid_size": 4}
OPTIONS = TrainOptions(steps=8, batch_size=16, save_every=0.0)


@pytest.fixture(scope="module")
def digits() -> Data:
    return tessella.open_data("digits")


@pytest.fixture(scope="module")
def trained(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VQ-VAE, trained for a few steps."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("runs") / "vqvae"
    model = make(tessella.VQVAE, digits.schema, **SMALL)
    loop.train(model, digits, run, TrainOptions(steps=30, batch_size=32))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The same, to do anything with."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def fitted(run: Path, data: Data, kind: str = "pixelcnn", **more: Any) -> FitResult:
    more = {"options": OPTIONS, "width": 8, "depth": 1, **more}
    return making.fit(run, data, kind, **more)


def loaded(run: Path, prior: str | None = None) -> CodeModel:
    model = tessella.load(run, prior=prior)
    assert isinstance(model, CodeModel)
    return model


def valid_rate(model: CodeModel, data: Data) -> float:
    split = data.split("valid")
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        return float(model.rate(model.encode(batch.x), batch.label).total.mean())


def spoil(run: Path) -> None:
    """Let the weights be others, as if training had gone on."""
    state = read_tensors(run / checkpoint.MODEL)
    weights = {name: t + 0.05 if t.is_floating_point() else t for name, t in state.tensors.items()}
    write_tensors(run / checkpoint.MODEL, weights, state.progress)


# what is fitted


def test_a_fitted_prior_costs_less_and_the_model_stays_as_it_was(run: Path, digits: Data) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = fitted(run, digits, options=TrainOptions(steps=60, batch_size=32), width=16)
    assert done.rate_before == pytest.approx(16 * np.log(8))
    assert done.rate is not None
    assert done.rate_before is not None
    assert done.rate < 0.9 * done.rate_before
    assert before == {path: path.read_bytes() for path in before}
    model = loaded(run)
    assert model.fitted
    assert valid_rate(model, digits) == pytest.approx(done.rate, rel=1e-5)
    assert valid_rate(loaded(run, "uniform"), digits) == pytest.approx(done.rate_before, rel=1e-5)
    evaluation = evaluate(model, digits.split("valid"), collapse_examples=0)
    assert evaluation.rate == pytest.approx(done.rate, rel=1e-5)
    assert evaluation.codes is not None
    assert evaluation.codes.learned
    assert evaluation.codes.rate_uniform == pytest.approx(done.rate_before, rel=1e-5)


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer", "masked"])
def test_each_kind_is_kept_and_is_itself_when_loaded(kind: str, run: Path, digits: Data) -> None:
    done = fitted(run, digits, kind, class_conditional=True)
    home = fitted_priors.prior_home(run, kind)
    spec = fitted_priors.read_prior_spec(home)
    assert (spec.kind, spec.config.width, spec.config.depth, spec.class_conditional) == (kind, 8, 1, True)
    assert spec.rate == done.rate
    assert spec.codes == checkpoint.fingerprint(run)
    assert {path.relative_to(home).parts[0] for path in home.rglob("*")} == {
        *("spec.json", "model.safetensors", "state", "metrics.jsonl", "pictures")
    }
    model = loaded(run, kind)
    assert model.conditional
    assert valid_rate(model, digits) == pytest.approx(done.rate, rel=1e-4)
    assert model.sample(3, torch.tensor([0, 1, 2])).shape == (3, 1, 8, 8)
    with raises("no-label"):
        model.sample(3)


def test_levels_are_fitted_together_each_given_the_coarser_ones(digits: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(tessella.VQVAE2, digits.schema, **{**SMALL, "grid_size": 8})
    loop.train(model, digits, tmp_path / "run", OPTIONS)
    done = fitted(tmp_path / "run", digits)
    assert done.rate_before == pytest.approx((16 + 64) * np.log(8))
    two = loaded(tmp_path / "run", "pixelcnn")
    codes = two.sample_codes(5)
    assert [tuple(c.shape) for c in codes] == [(5, 1, 4, 4), (5, 1, 8, 8)]
    coarse, fine = (p.flatten(1).sum(1) for p in two.log_prob_codes(codes))
    other = two.log_prob_codes((codes[0].flip(3), codes[1]))
    assert not torch.equal(other[0].flatten(1).sum(1), coarse)
    assert not torch.equal(other[1].flatten(1).sum(1), fine)
    assert two.levels[0].code_shape == (1, 4, 4)


def test_rows_of_codes_are_packed_and_unpacked() -> None:
    model = tessella.VQVAE2(
        Schema.of((3, 20, 12), "uint8"),
        width=4,
        depth=1,
        grid_size=7,
        quantizer=EMAQuantizer(codebook_size=9, codes_per_position=2),
    )
    codes = model.eval().encode(torch.randint(0, 256, (3, 3, 20, 12), dtype=torch.uint8)).codes
    again = prior_trainer.unpacked(model, prior_trainer.packed(codes))
    assert all(torch.equal(a, b) for a, b in zip(again, codes, strict=True))


def test_vectors_have_priors_too(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "rows.csv", np.random.default_rng(0).normal(size=(300, 5)), delimiter=",")
    data = tessella.open_data(str(tmp_path / "rows.csv"))
    torch.manual_seed(0)
    model = tessella.VQVAE(data.schema, width=8, depth=1, quantizer=EMAQuantizer(codebook_size=8, codes_per_position=3))
    loop.train(model, data, tmp_path / "run", OPTIONS)
    for kind in ("pixelcnn", "transformer", "masked"):
        assert fitted(tmp_path / "run", data, kind).rate_before == pytest.approx(3 * np.log(8))
        assert loaded(tmp_path / "run", kind).sample(4).shape == (4, 5)


# going on


def weights(home: Path) -> dict[str, torch.Tensor]:
    return {**load_file(home / checkpoint.STATE), **load_file(home / checkpoint.MODEL)}


@pytest.mark.parametrize("kind", ["pixelcnn", "masked"])
def test_stopped_and_resumed_is_bitwise_the_uninterrupted_prior(
    kind: str, run: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted(run, digits, kind, class_conditional=True)
    home = fitted_priors.prior_home(run, kind)
    expected = weights(home)
    shutil.rmtree(home)
    update = loop._Loop._update

    def ask(self: Any, batch: Any) -> Any:
        if self.state.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch)

    monkeypatch.setattr(loop._Loop, "_update", ask)
    cut = fitted(run, digits, kind, class_conditional=True)
    monkeypatch.undo()
    assert (cut.training.stopped, cut.training.steps, cut.rate) == ("signal", 5, None)
    assert fitted_priors.read_prior_spec(home).rate is None
    done = fitted(run, digits, kind, class_conditional=True, resume=True)
    assert (done.training.stopped, done.training.steps) == ("budget", 8)
    assert done.rate == whole.rate
    found = weights(home)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_resuming_follows_the_prior_not_the_arguments(run: Path, digits: Data) -> None:
    fitted(run, digits)
    more = TrainOptions(steps=10, batch_size=16)
    done = fitted(run, digits, options=more, width=64, depth=5, class_conditional=True, resume=True)
    assert done.training.steps == 10
    spec = fitted_priors.read_prior_spec(fitted_priors.prior_home(run, "pixelcnn"))
    assert (spec.config.width, spec.config.depth, spec.class_conditional) == (8, 1, False)


# codes


def test_codes_are_made_once_and_again_only_for_other_weights(
    run: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plain = [], prior_trainer.CodePriorTrainer.encode
    monkeypatch.setattr(
        prior_trainer.CodePriorTrainer,
        "encode",
        lambda self, batch, *how: (made.append(len(batch)), plain(self, batch, *how))[1],
    )
    fitted(run, digits)
    everything = len(digits.split("train")) + len(digits.split("valid"))
    assert sum(made) == everything
    made.clear()
    fitted(run, digits, "transformer")
    fitted(run, digits, overwrite=True)
    assert made == []
    spoil(run)
    fitted(run, digits, overwrite=True)
    assert sum(made) == everything
    (run / checkpoint.CODES).write_bytes(b"damaged")
    made.clear()
    fitted(run, digits, overwrite=True)
    assert sum(made) == everything


def test_cached_codes_are_the_models(run: Path, digits: Data) -> None:
    fitted(run, digits)
    kept = read_tensors(run / checkpoint.CODES)
    assert kept.progress["codes"] == checkpoint.fingerprint(run)
    model = loaded(run, "uniform")
    for name in ("train", "valid"):
        batch = digits.split(name).batch(range(len(digits.split(name))))
        with torch.no_grad():
            codes = model.encode(batch.x).codes[0].flatten(1)
        assert kept.tensors[f"{name}.codes"].shape == (1, len(codes), 16)
        # In lots of another size kernels round otherwise, which moves a few of the codes on a border.
        assert (kept.tensors[f"{name}.codes"][0] == codes).float().mean() > 0.999
        assert batch.label is not None
        assert torch.equal(kept.tensors[f"{name}.labels"], batch.label)


def test_codes_of_a_model_trained_on_several_draws_are_drawn(tmp_path: Path, digits: Data) -> None:
    torch.manual_seed(0)
    model = make(tessella.VQVAE, digits.schema, **SMALL, iwae_samples=3)
    loop.train(model, digits, tmp_path / "run", OPTIONS)
    fitted(tmp_path / "run", digits)
    kept = read_tensors(tmp_path / "run" / checkpoint.CODES).tensors
    assert (len(kept["train.codes"]), len(kept["valid.codes"])) == (prior_trainer.DRAWS, 1)
    assert (kept["train.codes"][0] != kept["train.codes"][1]).any()


def test_data_that_is_drawn_anew_is_encoded_several_times(tmp_path: Path) -> None:
    data = tessella.open_data("digits", binarize="dynamic")
    torch.manual_seed(0)
    model = make(tessella.VQVAE, data.schema, **SMALL)
    loop.train(model, data, tmp_path / "run", OPTIONS)
    fitted(tmp_path / "run", data)
    kept = read_tensors(tmp_path / "run" / checkpoint.CODES).tensors
    draws = kept["train.codes"]
    assert (len(draws), len(kept["valid.codes"])) == (prior_trainer.DRAWS, 1)
    assert all((draws[i] != draws[j]).any() for i in range(4) for j in range(i))
    split = prior_trainer.EncodedSplit(draws, kept["train.labels"], data.split("train").example_ids)
    at = np.arange(200)
    fixed, drawn = split.batch(at), split.batch(at, Noise(0, 3))
    assert torch.equal(fixed.x, draws[0, :200])
    assert torch.equal(drawn.x, split.batch(at, Noise(0, 3)).x)
    which = (drawn.x[None] == draws[:, :200]).all(2)
    assert which.any(0).all(), "every row is one of its example's"
    assert not which.all(1).any(), "and not all are of one draw"
    assert drawn.label is not None
    assert torch.equal(drawn.label, kept["train.labels"][:200])


# which prior is used


def test_the_prior_with_the_lowest_rate_is_used_unless_another_is_asked_for(run: Path, digits: Data) -> None:
    kinds = {
        "pixelcnn": "PixelCNNModule",
        "transformer": "CausalTransformerModule",
        "masked": "MaskedTransformerModule",
    }
    rates = {kind: fitted(run, digits, kind).rate for kind in kinds}
    best = min(rates, key=lambda kind: rates[kind] or 0.0)
    assert type(loaded(run).priors[0]).__name__ == kinds[best]
    for kind, name in kinds.items():
        assert type(loaded(run, kind).priors[0]).__name__ == name
    assert isinstance(loaded(run, "uniform").priors[0], UniformModule)
    worst = max(rates, key=lambda kind: rates[kind] or 0.0)
    home = fitted_priors.prior_home(run, worst)
    fitted_priors.write_prior_spec(home, fitted_priors.read_prior_spec(home).with_rate(0.5))
    assert type(loaded(run).priors[0]).__name__ == kinds[worst]


def test_a_prior_of_other_weights_is_refused_by_its_hash(run: Path, digits: Data) -> None:
    fitted(run, digits)
    before = checkpoint.fingerprint(run)
    spoil(run)
    after = checkpoint.fingerprint(run)
    with raises("other-weights", fitted_on=before, now=after):
        loaded(run, "pixelcnn")
    with raises("other-weights", fitted_on=before, now=after):
        fitted(run, digits, resume=True)
    with pytest.warns(UserWarning, match="fit_prior"):
        model = loaded(run)
    assert not model.fitted
    fitted(run, digits, overwrite=True)
    assert loaded(run, "pixelcnn").fitted


def test_a_prior_without_a_checkpoint_is_not_used(run: Path, digits: Data) -> None:
    fitted(run, digits)
    (fitted_priors.prior_home(run, "pixelcnn") / checkpoint.MODEL).unlink()
    assert not loaded(run).fitted
    with raises("no-weights"):
        loaded(run, "pixelcnn")


# what goes wrong


def test_what_cannot_be_fitted_is_refused_before_anything_is_encoded(
    run: Path, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("nothing is encoded")

    monkeypatch.setattr(prior_trainer, "encode_split", never)
    with raises("nothing-to-fit"):
        fitted(run, digits, "uniform")
    with raises("no-such-part"):
        fitted(run, digits, "psychic")
    with raises("bad-option"):
        fitted(run, digits, width=0)
    with raises("no-prior"):
        fitted(run, digits, resume=True)
    with raises("not-a-run"):
        fitted(tmp_path / "nowhere", digits)
    unlabelled = np.zeros((60, 8, 8), np.uint8)
    np.savez(tmp_path / "plain.npz", x=unlabelled)
    np.savez(tmp_path / "named.npz", x=unlabelled, y=np.arange(60) % 2)
    with raises("no-labels"):
        fitted(run, tessella.open_data(str(tmp_path / "plain.npz")), class_conditional=True)
    with raises("other-classes"):
        fitted(run, tessella.open_data(str(tmp_path / "named.npz")), class_conditional=True)
    assert not (run / checkpoint.PRIORS).exists()


def test_a_run_without_codes_has_no_prior_over_them(digits: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = tessella.VAE(digits.schema, width=8, depth=1, latent_dim=2)
    loop.train(vae, digits, tmp_path / "run", OPTIONS)
    with raises("other-latents"):
        fitted(tmp_path / "run", digits)
    with raises("no-codes"):
        tessella.load(tmp_path / "run", prior="pixelcnn")


def test_a_prior_that_is_there_is_not_touched_unless_it_is_to_be_replaced(run: Path, digits: Data) -> None:
    fitted(run, digits)
    home = fitted_priors.prior_home(run, "pixelcnn")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with raises("already-there"):
        fitted(run, digits)
    with raises("already-there"):
        fitted(run, digits, width=16)
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    fitted(run, digits, width=16, overwrite=True)
    assert fitted_priors.read_prior_spec(home).config.width == 16


def test_damaged_priors_are_refused(run: Path, digits: Data) -> None:
    fitted(run, digits)
    home = fitted_priors.prior_home(run, "pixelcnn")
    spec, content = home / checkpoint.SPEC, (home / checkpoint.MODEL).read_bytes()
    plain = json.loads(spec.read_text())
    for record, code in (
        ({**plain, "config": {**plain["config"], "width": 12}}, "does-not-fit"),
        ({**plain, "version": 99}, "other-version"),
        ({**plain, "config": {"type": "psychic"}}, "damaged"),
        ({"version": 1}, "other-version"),
        ([], "damaged"),
    ):
        spec.write_text(json.dumps(record))
        with raises(code):
            loaded(run, "pixelcnn")
    spec.write_text(json.dumps(plain))
    tampered = bytearray(content)
    tampered[-9] ^= 1
    (home / checkpoint.MODEL).write_bytes(bytes(tampered))
    with raises("damaged"):
        loaded(run, "pixelcnn")


def test_nothing_of_a_prior_is_unpickled(run: Path, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("something is unpickled")

    fitted(run, digits)
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors", ".png"}
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert loaded(run).sample(2).shape == (2, 1, 8, 8)
