"""Commands and models on a device that is not there, which finds tensors that were left on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from fake_device import KIND, OnFake, fake_device
from making import make
from tessella import cli
from tessella.coding import files
from tessella.evaluation import per_example_posterior
from tessella.evaluation.bounds import evaluate
from tessella.models.spec import TrainOptions
from tessella.training.loop import fit

SMALL = ["--steps", "2", "--width", "8", "--depth", "1", "--quiet"]
CODES = ["--grid-size", "2", "--codebook-size", "8"]


def run(*words: object) -> None:
    """A command, in process; what it does not say in a line is not caught."""
    assert cli._dispatch(str(words[0]), [str(w) for w in words[1:]]) == 0


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(files, "MOST_WORKERS", 1)  # the mode that makes the device is of one thread
    with fake_device(float64=False) as device:  # as on an Apple GPU; what runs there runs where there is float64
        yield device


def test_the_fake_refuses_what_cuda_refuses() -> None:
    with fake_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device == device
        assert isinstance(there, OnFake)
        assert (2 * there + torch.tensor(1.0)).tolist() == [3, 3, 3]
        assert there[here > 0].device.type == KIND
        for wrong in (lambda: there + here, lambda: torch.stack([here, there]), lambda: here[there > 0]):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            there.numpy()
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            np.asarray(there)
    with fake_device(float64=False) as device, pytest.raises(TypeError, match="float64"):
        torch.ones(3, device=device).double()


@pytest.mark.parametrize("model", ["vae", "flow", "vqvae"])
def test_numbers_are_those_of_the_processor(model: str) -> None:
    """Noise is drawn by the same generator there, and float64 is the same."""
    data = tessella.open_data("digits")
    torch.manual_seed(0)
    made = make(model, data.schema, width=8, depth=1)
    here = evaluate(made, data.split("test"), importance_samples=2)
    with fake_device() as device:
        there = evaluate(made.to(device), data.split("test"), importance_samples=2)
    assert there.bound == pytest.approx(here.bound, rel=1e-5)
    assert there.importance_bound.nats == pytest.approx(here.importance_bound.nats, rel=1e-5)


REAL = [("vae", "digits"), ("flow", "digits"), ("cvae", "vectors"), ("flow", "vectors"), ("diffusion", "vectors")]


@pytest.mark.parametrize(("model", "data"), REAL)
def test_models_of_real_latents(fake, tmp_path: Path, model: str, data: str) -> None:
    spec = "digits"
    if data == "vectors":
        spec, rng = str(tmp_path / "v.npz"), np.random.default_rng(0)
        np.savez(spec, x=rng.normal(size=(700, 5)).astype(np.float32), y=rng.integers(0, 3, 700))
    out, sheet = tmp_path / "run", tmp_path / "x.png"
    run("train", model, "--data", spec, "--out", out, *SMALL)
    run("evaluate", out, "--importance-samples", 2, "--json")
    run("sample", out, "-n", 2, "-o", sheet, *(["--steps", 3] if model == "diffusion" else []))
    if (model, data) == ("flow", "digits"):
        return  # its inverse takes long
    run("reconstruct", out, "-n", 2, "-o", sheet)
    run("detect", out, *range(6), "-o", tmp_path / "found", "--steps", 2)
    if model == "vae":
        run("interpolate", out, 0, 1, "-o", sheet, "--steps", 2)
        run("traverse", out, "-o", sheet, "--dimensions", 2, "--steps", 3)
        run("index", out, *range(20))
        run("search", out, 0, "-o", tmp_path / "found.html")
        run("search", out, "--duplicates", "-o", tmp_path / "found.html")


def test_gap_and_report(fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(per_example_posterior, "ROUND", 1)
    monkeypatch.setattr(per_example_posterior, "ROUNDS", 2)
    out = tmp_path / "run"
    run("train", "vae", "--data", "digits", "--out", out, *SMALL, "--latent-dim", 2)
    run("report", out)
    run("inference-gap", out, "--examples", 2, "--chains", 2, "--steps", 2)


@pytest.mark.slow
def test_compare_fidelity_and_claims(fake, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    run("train", "vae", "--data", "digits", "--out", a, *SMALL, "--latent-dim", 2)
    run("train", "vqvae", "--data", "digits", "--out", b, *SMALL, *CODES)
    run("evaluate", a, "--fidelity", 40)
    run("compare", a, b, "--examples", 40, "-o", tmp_path / "c.html")
    run("claims", "--data", "digits", "--only", 1, "--minutes", 0.002, "--seeds", 2, "-o", tmp_path / "d.html")


@pytest.mark.parametrize("kind", ["mixture", "vamp", "flow", "diffusion"])
def test_priors_over_real_latents(fake, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    run("train", "vae", "--data", "digits", "--out", out, *SMALL, "--latent-dim", 3)
    few = ["--components", 3] if kind in ("mixture", "vamp") else []
    run("fit-prior", out, "--kind", kind, "--steps", 2, "--quiet", *few)
    run("sample", out, "-n", 4, "-o", tmp_path / "x.png", "--prior", kind)


@pytest.mark.parametrize("quantizer", ["vq", "simvq", "residual", "fsq", "lfq"])
def test_quantisers_learn(fake, quantizer: str) -> None:
    several = {"codes_per_position": 2} if quantizer in ("residual", "fsq") else {}
    data = tessella.open_data("digits")
    model = make("vqvae", data.schema, width=8, depth=1, grid_size=2, codebook_size=8, quantizer=quantizer, **several)
    fit(model, data.split("train"), TrainOptions(steps=2, batch_size=32))
    assert model.device.type == KIND


@pytest.mark.parametrize("model", ["vqvae", pytest.param("autoregressive", marks=pytest.mark.slow), "vqvae2"])
def test_models_of_codes(fake, tmp_path: Path, model: str) -> None:
    spec, sheet, out = str(tmp_path / "x.npz"), tmp_path / "x.png", tmp_path / "run"
    rng, side = np.random.default_rng(0), 4 if model == "autoregressive" else 8  # which draws pixel by pixel
    np.savez(spec, x=rng.integers(0, 256, (60, side, side), dtype=np.uint8), y=rng.integers(0, 3, 60))
    region = ["--region", f"0,0,{side // 2},{side // 2}"]
    likelihood = ["--likelihood", "autoregressive", "--pixel-width", 8, "--pixel-depth", 1]
    name, options = ("vqvae", likelihood) if model == "autoregressive" else (model, [])
    size = CODES if name == "vqvae" else ["--codebook-size", 8]
    run("train", name, "--data", spec, "--out", out, *SMALL, *size, *options, "--batch-size", 16)
    for kind in ("pixelcnn", "transformer", "masked") if model == "vqvae" else ("transformer",):
        run("fit-prior", out, "--kind", kind, "--steps", 2, "--width", 8, "--depth", 1, "--quiet")
        run("sample", out, "-n", 2, "-o", sheet, "--prior", kind, "--top-p", 0.9)
        run("edit", out, 0, *region, "--resample", "-n", 2, "--prior", kind, "-o", tmp_path / "edited")
    for change in (["--code", 1], ["--paste", 1], ["--blend", 1, 0.5]):
        run("edit", out, 0, *region, "-o", tmp_path / "edited", *change)
    run("encode", out, 0, 1, "-o", tmp_path / "c.npz")
    run("decode", out, tmp_path / "c.npz", "-o", tmp_path / "decoded", "--sample")
    run("index", out)
    run("search", out, 0, "--space", "codes", "-o", tmp_path / "found.html")
    run("detect", out, *range(4), "-o", tmp_path / "found", "--steps", 2)
    run("compress", out, 0, 1, "-o", tmp_path / "x.tes", "--lossy", "--quiet")
    run("decompress", tmp_path / "x.tes", "-o", tmp_path / "back", "--quiet")


def test_estimators(fake) -> None:
    from tessella.sklearn import LatentOutlierDetector, LatentTransformer

    x = np.random.default_rng(0).normal(size=(40, 3))
    detector = LatentOutlierDetector(max_steps=2, random_state=0).fit(x)
    assert detector.model_.model.device.type == KIND
    assert set(detector.predict(x)) <= {-1, 1}
    assert LatentTransformer(max_steps=2, random_state=0, device="auto").fit(x).transform(x).dtype == np.float64


def test_an_evaluation_waits_for_the_device_a_few_times_a_batch(tmp_path: Path, monkeypatch) -> None:
    """Each wait leaves an accelerator idle: their number must not grow with what a batch is made of."""
    waits = []
    monkeypatch.setattr(OnFake, "cpu", lambda t: waits.append(t.shape) or torch.Tensor.cpu(t))
    with fake_device() as device:
        data = tessella.open_data("digits")
        model = tessella.VAE(data.schema, width=8, depth=1, latent_dim=3).to(device)
        evaluate(model, data.split("train"), collapse_examples=0)
        batches = -(-len(data.split("train")) // 250)
    assert len(waits) <= 8 * batches
