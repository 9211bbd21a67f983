"""`Run`: the model of a run, its data and other data seen as it, and what is kept of its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from expect import raises
from making import make
from tessella import Run, Schema
from tessella.core.tensors import write_tensors
from tessella.evaluation.results import Evaluation, ImportanceBound
from tessella.models.spec import Spec
from tessella.training import checkpoint
from tessella.training.run import EVALUATION

GREY = Schema.of((1, 8, 8), "uint8", classes=tuple("abc"))
MEASURED = Evaluation(
    model="vae", data="digits", split="test", examples=141, dims=64, rate=20.0, distortion=160.0, bound=180.0,
    bits_per_dim=180 / 64 / math.log(2), importance_bound=ImportanceBound(5, 175.0, 3.9), kl_per_unit=(12.0, 8.0, 0.0),
    active_units=2, mse=25.5**2, psnr=20.0, parameters=1000, seconds=1.0,
)  # fmt: skip


def a_run(folder: Path, kind: str = "VAE", schema: Schema = GREY, source: str | None = "digits") -> Run:
    """A run folder as training leaves one, without training."""
    torch.manual_seed(0)
    model = make(getattr(tessella, kind), schema, width=8, depth=1, latent_dim=3).eval()
    run = checkpoint.prepare_run(folder / "run")
    options = {"size": None, "channels": None, "binarize": None, "seed": 0}
    checkpoint.write_spec(run, Spec(model.name, schema, model.config, {"spec": source, **options}))
    write_tensors(run / checkpoint.MODEL, model.state_dict(), {"step": 3})
    return Run(run, "cpu")


def npz(path: Path, x: np.ndarray, y: Sequence[str] | None = None) -> str:
    np.savez(path, x=x, **({} if y is None else {"y": np.array(y)}))
    return str(path)


def test_other_data_is_read_as_the_run_was_and_its_labels_go_by_name(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 10, 12, 3), dtype=np.uint8)
    data = a_run(tmp_path, "CVAE").data(npz(tmp_path / "other.npz", x, ["c", "b"] * 30))
    assert data.schema.classes == GREY.classes
    split = data.split("train")
    assert split.labels is not None
    assert set(split.labels.tolist()) == {1, 2}
    batch = split.batch(range(4))
    assert batch.x.shape == (4, 1, 8, 8)
    assert batch.label is not None
    assert batch.label.tolist() == split.labels[:4].tolist()


ANY = np.zeros((60, 8, 8), np.uint8) + np.arange(60, dtype=np.uint8)[:, None, None]


@pytest.mark.parametrize(
    ("values", "labels", "code"),
    [
        (ANY, None, "no-labels"),
        (ANY, ["a", "z"] * 30, "unknown-classes"),
        (np.random.default_rng(0).normal(size=(60, 1, 8, 8)), ["a", "b"] * 30, "other-kind-of-data"),
    ],
)
def test_data_of_another_kind_is_refused(
    tmp_path: Path, values: np.ndarray, labels: list[str] | None, code: str
) -> None:
    run, other = a_run(tmp_path, "CVAE"), npz(tmp_path / "other.npz", values, labels)
    with raises(code):
        run.data(other)
    if code != "other-kind-of-data":  # a model that sees no labels asks for none
        assert a_run(tmp_path / "vae").data(other).schema.shape == GREY.shape


def test_own_data_is_found_or_asked_for(tmp_path: Path) -> None:
    digits = tessella.open_data("digits")
    run = a_run(tmp_path, schema=digits.schema)
    assert run.data().fingerprint == digits.fingerprint
    assert run.own_data("digits").fingerprint == digits.fingerprint
    with raises("no-data"):
        a_run(tmp_path / "nowhere", source=None).data()


def test_a_model_of_its_own_each_time_on_the_device_of_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    one, other = run.model(), run.model(device="cpu")
    assert one is not other
    assert one.device == torch.device("cpu")
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert run.prior_in_use is None


def test_an_evaluation_is_kept_for_the_weights_it_is_of(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    results = run.results
    assert results.evaluation("test") is None
    results.save(EVALUATION.format("test"), MEASURED, seed=3)
    assert results.evaluation("test") == MEASURED
    exact = replace(MEASURED, mse=0.0, psnr=math.inf, split="valid")
    results.save(EVALUATION.format("valid"), exact, seed=3)
    assert results.evaluation("valid") == exact
    kept = run.path / "results" / "evaluation-valid.json"
    assert "Infinity" not in kept.read_text()
    kept.rename(kept.with_name("evaluation-test.json"))
    with pytest.warns(UserWarning, match="its split is 'valid'"):
        assert results.evaluation("test") is None
    results.save(EVALUATION.format("test"), MEASURED, seed=3)
    write_tensors(run.path / checkpoint.MODEL, run.model().state_dict(), {"step": 4})  # trained on
    assert results.evaluation("test") is None
