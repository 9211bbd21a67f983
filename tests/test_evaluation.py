"""The ruler: bounds that order themselves, and digits that repeat."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import tessella
from expect import raises
from making import make
from tessella import Schema
from tessella.bottlenecks import DiagonalGaussian
from tessella.core.contracts import Decoder, Encoder
from tessella.core.rng import Noise
from tessella.core.schema import Real, bits_per_dim
from tessella.evaluation import bounds
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.results import Evaluation
from tessella.foundation.progress import reporting
from tessella.likelihoods import FixedGaussian
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors import StandardNormal

SMALL = {"width": 8, "depth": 1, "latent_dim": 3}


@pytest.fixture(scope="module")
def digits():
    return tessella.open_data("digits", binarize="static")


@pytest.fixture(scope="module")
def vae(digits):
    torch.manual_seed(0)
    model = make(tessella.VAE, digits.schema, **SMALL)
    for parameter in model.bottleneck.parameters():
        parameter.data.mul_(10)  # so that q is not the prior
    return model


def test_the_numbers_are_one_ruler(digits, vae):
    e = evaluate(vae, digits.split("test"), importance_samples=5)
    assert e.bound == pytest.approx(e.rate + e.distortion)
    assert e.bits_per_dim == pytest.approx(e.bound / (64 * math.log(2)))
    assert e.importance_bound.bits_per_dim == pytest.approx(bits_per_dim(e.importance_bound.nats, 64))
    assert sum(e.kl_per_unit) == pytest.approx(e.rate, rel=1e-5)
    assert e.active_units == sum(u > 0.01 for u in e.kl_per_unit)
    assert (e.dims, e.examples, e.split) == (64, len(digits.split("test")), "test")
    assert e.parameters == sum(p.numel() for p in vae.parameters())
    assert 0 < e.mse < 1
    assert e.psnr == pytest.approx(-10 * math.log10(e.mse))
    keys = "model data split examples dims rate distortion bound bits_per_dim importance_bound kl_per_unit active_units"
    last = "mse psnr parameters seconds codes collapse sound notes"
    assert list(json.loads(json.dumps(e.to_json()))) == [*keys.split(), *last.split()]


def test_evaluating_twice_with_one_seed_gives_the_same_digits_and_another_seed_others(digits, vae):
    one, again, other = (evaluate(vae, digits.split("test"), importance_samples=3, seed=s) for s in (0, 0, 1))
    strip = {"seconds": 0}
    assert {**one.to_json(), **strip} == {**again.to_json(), **strip}
    assert one.distortion != other.distortion
    assert one.rate == other.rate


def test_evaluating_leaves_the_model_and_the_global_generator_as_they_were(digits, vae):
    vae.train()
    before = torch.random.get_rng_state()
    evaluate(vae, digits.split("test"), importance_samples=2)
    assert vae.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_autoencoder_has_no_bound(digits):
    model = make(tessella.AE, digits.schema, **SMALL)
    e = evaluate(model, digits.split("test"))
    assert (e.rate, e.bound, e.bits_per_dim, e.importance_bound, e.kl_per_unit, e.active_units) == (None,) * 6
    assert e.distortion > 0
    with raises("no-prior"):
        evaluate(model, digits.split("test"), importance_samples=3)


def test_a_limit_takes_the_same_examples_each_time(digits, vae):
    e = evaluate(vae, digits.split("test"), limit=20)
    assert e.examples == 20
    assert e.distortion == evaluate(vae, digits.split("test"), limit=20).distortion
    assert evaluate(vae, digits.split("test"), limit=10**6).examples == len(digits.split("test"))


def test_collapse_is_judged_if_there_is_a_prior_and_it_is_wanted(digits, vae):
    e = evaluate(vae, digits.split("test"), collapse_examples=30)
    assert e.collapse.examples == 30
    assert e.collapse.mutual_information_ceiling == pytest.approx(math.log(30))
    assert e.notes == (e.collapse.advice,)  # nobody trained it
    without = evaluate(vae, digits.split("test"), collapse_examples=0)
    assert (without.collapse, without.notes) == (None, ())
    assert without.bound == e.bound
    assert evaluate(make(tessella.AE, digits.schema, **SMALL), digits.split("test")).collapse is None


def test_no_mean_is_drawn_where_that_takes_a_pass_over_all_pixels(digits, monkeypatch):
    model = make(tessella.VAE, digits.schema, **SMALL)
    model.likelihood.sequential_mean = True
    monkeypatch.setattr(type(model), "reconstruct", None)
    e = evaluate(model, digits.split("test"), collapse_examples=0)
    assert (e.mse, e.psnr) == (None, None)


def test_an_evaluation_survives_json_and_an_older_one_is_understood(digits, vae):
    e = evaluate(vae, digits.split("test"), importance_samples=2)
    record = json.loads(json.dumps(e.to_json()))
    assert Evaluation.from_json(record) == e
    old = {name: value for name, value in record.items() if name not in ("codes", "collapse", "notes")}
    assert Evaluation.from_json(old) == replace(e, collapse=None, notes=())
    with pytest.raises(ValueError):
        Evaluation.from_json({"psnr": None})


def test_processes_that_share_a_split_have_the_figures_of_one(digits, vae, monkeypatch):
    """Each of three simulated processes measures its batches of 40; what they gather is added up."""
    monkeypatch.setattr(bounds, "size_of", lambda shape, device: 40)
    whole = evaluate(vae, digits.split("test"), importance_samples=2)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(bounds.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(bounds.dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(bounds.dist, "get_world_size", lambda: 3)
        monkeypatch.setattr(bounds, "_gathered", lambda sums, world: parts.append(sums) or sums)
        evaluate(vae, digits.split("test"), importance_samples=2, together=True)
    assert [int(p["examples"]) for p in parts] == [len(digits.split("test")) - 80, 40, 40]
    monkeypatch.undo()
    monkeypatch.setattr(bounds.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(
        bounds.dist, "all_gather_object", lambda into, of: into.__setitem__(slice(None), parts), raising=False
    )
    joined = bounds._gathered(parts[0], 3)
    assert float(joined["distortion"]) / int(joined["examples"]) == pytest.approx(whole.distortion, rel=1e-12)
    assert float(joined["weighted"]) / int(joined["examples"]) == pytest.approx(whole.importance_bound.nats, rel=1e-12)
    assert (joined["units"] / joined["examples"]).tolist() == pytest.approx(whole.kl_per_unit)


def test_progress_is_told_to_the_end(digits, vae):
    told = []
    with reporting(told.append):
        evaluate(vae, digits.split("test"))
    assert told[-1].phase == "evaluating"
    assert told[-1].done == told[-1].total


def test_psnr_of_an_exact_copy_is_infinite():
    assert bounds.psnr(0.0, 255) == math.inf
    assert bounds.psnr(255.0**2, 255) == 0


class Affine(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x @ self.weight.T


class AffineEncoder(Encoder):
    def __init__(self, weight):
        super().__init__()
        self.map, self.feature_shape = Affine(weight), (weight.shape[0],)

    def forward(self, x, label):
        return self.map(x)


class AffineDecoder(Decoder):
    def __init__(self, weight):
        super().__init__()
        self.map = Affine(weight)

    def forward(self, z, label):
        return self.map(z)

    def start_at(self, bias) -> None:
        """Nothing: its weights are given."""


@pytest.fixture(scope="module")
def linear():
    """x = W z + s e with a posterior that is wrong on purpose, and log p(x), known in closed form."""
    generator = torch.Generator().manual_seed(0)
    w, s = torch.randn(4, 2, generator=generator), 0.5
    covariance = torch.linalg.inv(torch.eye(2) + w.T @ w / s**2)
    encoder, waist = AffineEncoder(covariance @ w.T / s**2), DiagonalGaussian().build((2,), 2)
    with torch.no_grad():
        waist.head.weight.copy_(torch.cat([torch.eye(2), torch.zeros(2, 2)]))
        waist.head.bias.copy_(torch.cat([torch.tensor([0.1, -0.1]), covariance.diagonal().sqrt().log() + 0.2]))
    model = LatentVariableModel(
        "linear",
        likelihood=FixedGaussian(scale=s).build(Schema.of((4,), Real(-9, 9))),
        encoder=encoder,
        bottleneck=waist,
        prior=StandardNormal().build((2,)),
        decoder=AffineDecoder(w),
    )
    x = torch.randn(200, 2, generator=generator) @ w.T + s * torch.randn(200, 4, generator=generator)
    exact = MultivariateNormal(torch.zeros(4), w @ w.T + s**2 * torch.eye(4)).log_prob(x)
    return model.eval(), x, exact


def test_the_bounds_lie_in_order_below_the_exact_log_likelihood(linear):
    """The gaps are many standard errors wide: seeded, and a false alarm for other seeds is rarer than 1e-6."""
    model, x, exact = linear
    with torch.no_grad():
        terms = torch.stack([model(x, noise=Noise(0, i)).bound for i in range(200)]).mean()
        by_samples = [-bounds.importance_log_likelihood(model, x, None, k, Noise(1)).mean() for k in (5, 50, 5000)]
    truth = float(-exact.mean())
    assert terms > by_samples[0] > by_samples[1] > truth - 5e-3
    assert terms - truth > 0.05
    assert float(by_samples[2]) == pytest.approx(truth, abs=5e-3)


def test_the_importance_bound_does_not_depend_on_how_its_passes_fit_in_memory(linear, monkeypatch):
    """Passes of another size draw other noise, so they agree as estimates: 8 standard errors, false alarm < 1e-14."""
    model, x, _ = linear
    with torch.no_grad():
        whole = bounds.importance_log_likelihood(model, x[:50], None, 3000, Noise(2))
        monkeypatch.setattr(bounds, "PASS", 50 * 4 * 7)
        parts = bounds.importance_log_likelihood(model, x[:50], None, 3000, Noise(2))
        weights = model(x[:50], noise=Noise(3), draws=3000).log_weights
    ratio = (weights - whole).exp()
    error = ratio.std(0) / math.sqrt(3000)
    assert ((whole - parts).abs() < 8 * math.sqrt(2) * error + 1e-6).all()


def test_the_importance_bound_needs_samples(linear):
    model, x, _ = linear
    with pytest.raises(ValueError):
        bounds.importance_log_likelihood(model, x, None, 0, Noise(0))


def test_labels_reach_a_conditional_model(digits):
    model = make(tessella.CVAE, digits.schema, **SMALL)
    e = evaluate(model, digits.split("test"), importance_samples=2)
    assert np.isfinite([e.rate, e.distortion, e.importance_bound.nats]).all()
