"""The flow as a model: nothing is lost, all cost is rate, and the rate is the likelihood.

Random tests are seeded and say how often they would fail by chance under another seed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from expect import raises
from making import make
from tessella.coding.files import coder_for
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Integers, Real, Schema
from tessella.data import open_data
from tessella.evaluation import samples
from tessella.evaluation.bounds import evaluate
from tessella.models.flow import FlowModel
from tessella.models.presets import Flow, FlowConfig
from tessella.models.spec import TrainOptions
from tessella.tasks.edit.editing import edit_example
from tessella.tasks.edit.operations import Inpaint
from tessella.training.loop import fit

SMALL = {"width": 8, "depth": 1, "components": 3}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blobs(count: int, shape: tuple[int, ...], high: int) -> np.ndarray:
    """Smooth pictures of random brightness, `[count, *shape]` uint8; without the axis of a single channel."""
    generator = np.random.default_rng(0)
    flat = generator.random((count, shape[0], 1, 1)) + 0.2 * generator.random((count, *shape))
    ramp = np.linspace(0, 0.5, shape[-1])
    made = np.round((flat + ramp) / 1.7 * high).astype(np.uint8)
    return made[:, 0] if shape[0] == 1 else made


def trained(tmp_path: Path, shape: tuple[int, ...], steps: int = 12, **options) -> tuple[FlowModel, Tensor]:
    """A small flow after some steps on such pictures, and those."""
    np.savez(tmp_path / "x.npz", x=blobs(300, shape, 255))
    data = open_data(str(tmp_path / "x.npz"), channels=shape[0])
    model = make(Flow, data.schema, **{**SMALL, **options})
    fit(model, data.split("train"), TrainOptions(steps=steps, batch_size=32, learning_rate=5e-3))
    return model, data.split("test").batch(np.arange(12)).x


@pytest.mark.parametrize("shape", [(3, 17, 9), (1, 5, 3), (2, 8, 8)], ids=str)
@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_trained_flow_gives_back_every_bit(tmp_path: Path, shape: tuple[int, ...], dequantization: str) -> None:
    model, x = trained(tmp_path, shape, dequantization=dequantization)
    assert x.shape[1:] == shape
    assert torch.equal(model.reconstruct(x), x.float())
    with torch.no_grad():
        for noise in (Noise(0), Noise(1)):
            z = model.encode(x, noise=noise).z
            assert torch.equal(model.decode(z).mean, x.float())
            assert torch.equal(model.decode(z).log_prob(x), torch.zeros(len(x)))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.reconstruct(x), x.float())
        assert (model.decode(z).log_prob(255 - x) == -math.inf).all()


def test_training_lowers_the_rate(tmp_path: Path) -> None:
    short, x = trained(tmp_path, (1, 6, 6), steps=1)
    model, _ = trained(tmp_path, (1, 6, 6), steps=40)
    with torch.no_grad():
        before, after = (float(m(x, noise=Noise(0)).bound.mean()) for m in (short, model))
        assert after < before - 20
        assert not model(x, noise=Noise(0)).distortion.any()


def test_rate_of_real_values_is_the_density_of_stored_units() -> None:
    """Against the change of variables, autograd's determinant and all."""
    schema = Schema.of((3,), Real(-9.0, 9.0), (1.0, 2.0, 3.0), (0.5, 2.0, 1.0))
    model = make(Flow, schema, **SMALL).eval()
    x = torch.randn(4, 3) + 2
    rate = model(x).rate
    assert rate is not None
    assert torch.equal(rate, model(x, noise=Noise(3)).rate)
    assert model(x, noise=Noise(0), draws=3).log_weights.shape == (3, 4)
    for i in range(4):
        square = torch.autograd.functional.jacobian(lambda v: model.encode(v[None]).z[0], x[i])
        density = -0.5 * (model.encode(x).z[i] ** 2 + math.log(2 * math.pi)).sum() + torch.linalg.slogdet(square)[1]
        torch.testing.assert_close(-rate[i], density, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model.reconstruct(x), x, rtol=1e-4, atol=1e-4)


def test_units_of_a_sound_are_those_of_its_level() -> None:
    """All values come back from network units, where a cell has the volume 1 / level."""
    schema = Schema(1, (65536,), Integers(65536, -32768.0), rate=8000.0, scale=(500.0,))
    units = make(Flow, replace(schema, spatial=(64,)), **SMALL).likelihood
    every = torch.arange(-32768.0, 32768.0).view(1, 1, -1)
    y = units.to_network(every)
    torch.testing.assert_close(y, (every + 0.5) / 500)
    assert torch.equal(units(y).mean, every)
    torch.testing.assert_close(units.log_unit, 64 * math.log(500.0))


def test_probabilities_sum_to_what_the_cells_hold() -> None:
    """Summed over all x, E_q[p(x + u) / q(u | x)] is the density's mass on the cells: one at most.

    A pass of 4000 draws over 4 pictures; off by 6 standard errors once in 1e9.
    """
    model = make(Flow, Schema.of((1, 1, 2), "binary"), **SMALL, dequantization="variational").eval()
    everything = torch.tensor(list(itertools.product((0, 1), repeat=2)), dtype=torch.uint8).view(4, 1, 1, 2)
    with torch.no_grad():
        weights = model(everything, noise=Noise(0), draws=4000).log_weights
        assert weights is not None
        total = weights.double().exp().sum(1)
        axis = (torch.arange(400) + 0.5) / 200 - 1
        points = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
        z, log_det = model.flow(points)
        mass = float((model.prior(None).log_prob(z) + log_det).double().exp().sum() / 200**2)
    error = float(total.std()) / math.sqrt(len(total))
    assert mass < 1
    assert abs(float(total.mean()) - mass) < 6 * error + 2e-3


def test_measured_like_any_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=blobs(120, (1, 5, 3), 255))
    data = open_data(str(tmp_path / "x.npz"))
    model = make(Flow, data.schema, **SMALL)
    found = evaluate(model, data.split("valid"), importance_samples=16)
    assert found.distortion == 0
    assert found.rate == found.bound
    assert found.mse == 0
    assert found.collapse is None, "there is nothing to collapse"
    assert found.importance_bound is not None
    assert found.bound is not None
    assert found.importance_bound.nats < found.bound + 0.5
    a, b = (data.split("test").batch(np.arange(i, i + 2)) for i in (0, 2))
    walk = samples.interpolate_rows(model, a, b, steps=4)
    assert walk.shape == (2, 6, 1, 5, 3)
    assert torch.equal(walk[:, 1], a.x.float())
    assert torch.equal(walk[:, -2], b.x.float())
    units = samples.latent_statistics(model, data.split("valid"))
    moved = samples.traverse_rows(model, data.split("test").batch(np.arange(1)), units, units.order[:1])
    assert moved.isfinite().all()


def test_samples_are_ruled_by_the_temperature() -> None:
    model = make(Flow, Schema.of((3, 6, 7), "uint8"), **SMALL).eval()
    cold = model.sample(4, sampling=Sampling(temperature=0.0))
    assert torch.equal(cold, cold[:1].expand(4, -1, -1, -1))
    assert torch.equal(cold[:1], model.decode(torch.zeros(1, 3, 6, 7)).mean)
    with raises("no-codes"):
        model.sample(2, sampling=Sampling(top_k=3))


@pytest.mark.parametrize(
    "option", [{"latent_dim": 3}, {"likelihood": "logistic"}, {"prior": "mixture"}, {"grid_size": 4}]
)
def test_what_a_flow_has_not_is_refused(option: dict) -> None:
    with raises("no-such-option"):
        make(Flow, Schema.of((3, 8, 8), "uint8"), **option)


def test_uses_that_need_a_smaller_latent_refuse() -> None:
    model = make(Flow, Schema.of((1, 8, 8), "uint8"), **SMALL).eval()
    with raises("no-coder"):
        coder_for(model, lossy=False)
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[:4] = True
    with raises("no-latents"):
        edit_example(model, torch.zeros(1, 8, 8, dtype=torch.uint8), region, Inpaint(1))


def test_dequantisation_is_for_flows_of_discrete_values() -> None:
    with raises("real-values"):
        Flow(Schema.of((3,), Real(-1.0, 1.0)), dequantization="uniform")
    with raises("bad-option", name="dequantization"):
        FlowConfig(dequantization="round")  # pyright: ignore[reportArgumentType]
