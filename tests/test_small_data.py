"""Every model trains on a handful of examples and is whole again when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from making import make
from tessella import Schema, load
from tessella.cli import main
from tessella.core.schema import Real
from tessella.core.tensors import read_tensors, write_tensors
from tessella.diffusion import chain
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import names
from tessella.models import diffusion

VARIANTS: list[tuple[str, ...]] = [
    *[(name,) for name in names("model")],
    ("diffusion", "--class-conditional"),
    ("vae", "--posterior", "flow"),
    *[("vae", "--prior", name) for name in ("mixture", "vamp", "flow")],
]
"""Every model, and what else a model of small data may be made of."""
PRIORS = {"ae": "mixture", "cvae": "flow", "vqvae": "pixelcnn"}


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "STEPS", 3)
    monkeypatch.setattr(chain, "LINKS", 3)
    monkeypatch.setattr(diffusion, "TIMES", 2)


def few(path: Path, shape: tuple[int, ...], counts: dict[str, int]) -> str:
    """Data of so few examples, in words of two classes."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, count in counts.items():
        x = random.normal(size=(count, *shape)).astype(np.float32)
        arrays[f"x_{name}"] = x if len(shape) == 1 else random.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{name}"] = np.arange(count) % 2
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
@pytest.mark.parametrize("shape", [(8, 8), (3,)], ids=["pictures", "vectors"])
def test_it_trains_on_two_examples_and_on_a_validation_split_of_one(
    variant: tuple[str, ...], shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, *more = variant
    for counts in ({"train": 2}, {"train": 6, "valid": 1, "test": 1}):
        data, run = few(tmp_path / f"{len(counts)}.npz", shape, counts), str(tmp_path / f"run-{len(counts)}")
        status = main(["train", model, "--data", data, "--out", run, "--steps", "2", "--quiet", "--width", "8", *more])
        if status:  # a model of pictures alone
            assert model == "vqvae2"
            assert len(shape) == 1
            assert capsys.readouterr().err.count("\n") == 1
            return
        assert main(["evaluate", run]) == 0
        if model in PRIORS:
            assert main(["fit-prior", run, "--kind", PRIORS[model], "--steps", "1", "--quiet"]) == 0
        assert main(["sample", run, "-n", "3", "-o", str(tmp_path / "samples.png")]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1,), (5,)], ids=str)
def test_what_a_model_is_made_of_can_be_kept(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Whatever shares its memory: safetensors refuses two names of the same."""
    classes = ("a", "b")
    vectors = Schema.of(shape, Real(-1.0, 1.0), (0.0,) * shape[0], (1.0,) * shape[0], classes)
    schema = vectors if len(shape) == 1 else Schema.of(shape, "uint8", classes=classes)
    try:
        model = make(name, schema, **{"width": 16} if name == "flow" else {"width": 8})
    except SpecError:
        return
    weights = model.state_dict()
    write_tensors(tmp_path / "all.safetensors", weights, {})
    kept = read_tensors(tmp_path / "all.safetensors").tensors
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[key], value) for key, value in weights.items())


def test_a_flow_of_a_table_is_the_same_when_it_is_loaded(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(tmp_path / "two.csv", table, delimiter=",", header="a,b", comments="")
    run = tmp_path / "run"
    assert (
        main(["train", "flow", "--data", str(tmp_path / "two.csv"), "--out", str(run), "--steps", "3", "--quiet"]) == 0
    )
    x = torch.from_numpy(table[:4].astype(np.float32))
    assert torch.equal(load(run).encode(x).z, load(run).encode(x).z)
    assert torch.allclose(load(run).reconstruct(x).float(), x, atol=1e-2)
