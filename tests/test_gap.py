"""The inference gap: against a linear-Gaussian model, where log p(x), p(z | x) and the best q are known.

Seeds are fixed. Where a mean is compared with the truth within 4 standard errors, a right estimate with another seed
would fail once in 16,000.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

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
from tessella.bottlenecks.flow import FlowPosteriorModule
from tessella.cli import main
from tessella.core.batches import Batch
from tessella.core.contracts import Decoder, Encoder
from tessella.core.rng import Noise
from tessella.core.schema import Real
from tessella.data import Split
from tessella.evaluation import annealing, gap, per_example_posterior
from tessella.evaluation.results import GapConfig, GapEvaluation
from tessella.foundation.errors import SpecError
from tessella.likelihoods import FixedGaussian
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors import StandardNormal

SMALL = {"width": 8, "depth": 1, "latent_dim": 3}


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x, label):
        return x @ self.weight.T


class LinearEncoder(Linear, Encoder):
    def __init__(self, weight):
        super().__init__(weight)
        self.feature_shape = (len(weight),)


class LinearDecoder(Linear, Decoder):
    def start_at(self, bias):
        raise NotImplementedError


class Known:
    """x = W z + s e, with an encoder that gives the best factorised q, or is off by so much."""

    def __init__(self, units, dims, s, *, off=0.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(dims, units, generator=generator)
        precision = torch.eye(units) + w.T @ w / s**2
        covariance = torch.linalg.inv(precision)
        waist = DiagonalGaussian().build((units,), units)
        with torch.no_grad():
            waist.head.weight.copy_(torch.cat([torch.eye(units), torch.zeros(units, units)]))
            deviation = precision.diagonal().rsqrt()
            waist.head.bias.copy_(torch.cat([off * deviation, deviation.log() + off]))
        self.model = LatentVariableModel(
            "linear",
            likelihood=FixedGaussian(scale=s).build(Schema.of((dims,), Real(-9, 9))),
            encoder=LinearEncoder(covariance @ w.T / s**2),
            bottleneck=waist,
            prior=StandardNormal().build((units,)),
            decoder=LinearDecoder(w),
        )
        self.evidence = MultivariateNormal(torch.zeros(dims), w @ w.T + s**2 * torch.eye(dims))
        self.x = torch.randn(64, units, generator=generator) @ w.T + s * torch.randn(64, dims, generator=generator)
        self.truth = self.evidence.log_prob(self.x)
        self.best_gap = 0.5 * float(precision.diagonal().log().sum() - torch.linalg.slogdet(precision)[1])
        """KL(q || p(z | x)) of the best factorised Gaussian."""
        self.amortised_gap = 0.5 * units * (off**2 + math.exp(2 * off) - 1 - 2 * off)
        """What being off costs beyond that."""


class Rows(Split):
    """Rows of a tensor, in their order."""

    labels, factors, in_memory = None, {}, True

    def __init__(self, x):
        self.x, self.example_ids = x, np.arange(len(x), dtype=np.uint64)

    def batch(self, indices, noise=None):
        return Batch(self.x[torch.as_tensor(indices)])

    def random_rows(self, count=None):
        return np.argsort(self.example_ids)[:count]


@pytest.fixture(scope="module")
def known():
    return Known(3, 6, 0.7, off=0.4)


@pytest.fixture(scope="module")
def digits():
    return tessella.open_data("digits", binarize="static")


@pytest.fixture
def quick(monkeypatch):
    """Where it does not matter how good q becomes."""
    monkeypatch.setattr(per_example_posterior, "ROUNDS", 1)
    monkeypatch.setattr(gap, "DRAWS", 20)


def mean_and_error(each):
    return float(each.double().mean()), float(each.double().std() / math.sqrt(len(each)))


# annealing


def test_from_the_exact_posterior_every_chain_weighs_p_of_x():
    """With one unit the factorised q is p(z | x): nothing is left to chance, forward or in reverse."""
    exact = Known(1, 3, 0.5)
    forward = annealing.forward(exact.model, exact.x, None, Noise(0), steps=3, chains=2)
    assert torch.allclose(forward.float(), exact.truth, atol=1e-4)
    z = torch.randn(64, 1)
    backward = annealing.reverse(exact.model, exact.x, None, z, Noise(0), steps=3, chains=2)
    assert torch.allclose(backward.float(), exact.truth, atol=1e-4)


@pytest.mark.parametrize("base", ["posterior", "prior"])
def test_the_mean_weight_is_p_of_x(known, base):
    """Few steps and few chains: single estimates are off, their mean is not; their logs lie below."""
    found = annealing.forward(known.model, known.x, None, Noise(1), steps=8, chains=8, base=base)
    ratio, error = mean_and_error((found - known.truth).exp())
    assert 0.001 < error < 0.2
    assert abs(ratio - 1) < 4 * error
    assert mean_and_error(found - known.truth)[0] < error


def test_many_steps_find_log_p_of_x(known):
    found = annealing.forward(known.model, known.x, None, Noise(2), steps=100, chains=16)
    mean, error = mean_and_error(found - known.truth)
    assert error < 0.01
    assert abs(mean) < 0.01


def test_forward_lies_below_and_reverse_above(known):
    noise = Noise(3)
    both = annealing.bracket(known.model, 200, None, noise, steps=3, chains=2, base="prior")
    x, _ = annealing.simulated(known.model, 200, None, noise.split("simulated"))
    truth = known.evidence.log_prob(x)
    below, low_error = mean_and_error(both.lower - truth)
    above, high_error = mean_and_error(both.upper - truth)
    assert below < -4 * low_error
    assert above > 4 * high_error


def test_the_bracket_narrows_with_steps(known):
    wide, narrow = (
        mean_and_error(both.upper - both.lower)[0]
        for both in (annealing.bracket(known.model, 50, None, Noise(4), steps=s, chains=4) for s in (2, 60))
    )
    assert abs(narrow) < 0.05 < wide


def test_beta_rises_from_zero_to_one():
    beta = annealing.betas(10)
    assert (float(beta[0]), float(beta[-1]), len(beta)) == (0, 1, 11)
    assert (beta.diff() > 0).all()
    assert torch.allclose(beta + beta.flip(0), torch.ones(11, dtype=torch.float64))


def test_examples_that_come_in_passes_are_all_there(known, monkeypatch):
    monkeypatch.setattr(annealing, "PASS", 100)
    both = annealing.bracket(known.model, 7, None, Noise(5), steps=2, chains=4)
    assert len(both.lower) == len(both.upper) == 7
    assert annealing.passes(known.model, 7, 4) == [(0, 4), (4, 7)]


# q for each example


def test_an_optimised_gaussian_misses_by_its_known_divergence(known):
    q = per_example_posterior.from_encoder(known.model, known.x, None)
    mean, error = mean_and_error(
        per_example_posterior.family_bound(known.model, known.x, None, q, Noise(0), draws=500) + known.truth
    )
    assert abs(mean - known.best_gap - known.amortised_gap) < 4 * error
    per_example_posterior.optimise(known.model, known.x, None, q, Noise(1))
    each = per_example_posterior.family_bound(known.model, known.x, None, q, Noise(2), draws=500) + known.truth
    mean, error = mean_and_error(each)
    assert abs(mean - known.best_gap) < 4 * error + 0.01  # what optimisation leaves
    assert known.best_gap > 0.2


def test_an_optimised_flow_closes_most_of_it_and_stays_a_bound(known):
    q = per_example_posterior.from_encoder(known.model, known.x, None)
    flow = per_example_posterior.with_flow(known.model, known.x, q, Noise(0))
    per_example_posterior.optimise(known.model, known.x, None, flow, Noise(1))
    mean, error = mean_and_error(
        per_example_posterior.family_bound(known.model, known.x, None, flow, Noise(2), draws=500) + known.truth
    )
    assert -4 * error < mean < 0.3 * known.best_gap


def test_a_flow_posterior_is_freed_from_where_the_encoder_put_it(known):
    """Of correlated numbers it misses less than any Gaussian of independent ones, and stays a bound."""
    torch.manual_seed(0)
    flow = FlowPosteriorModule((3,), 3, flow_steps=2, width=32, context=16)
    flow.base.load_state_dict(known.model.bottleneck.state_dict())
    model = Known(3, 6, 0.7, off=0.4).model
    model.bottleneck = flow
    x = known.x[:16]  # each has weights of its own, which is what takes the time
    with torch.no_grad():
        q = flow(model.encoder(x, None), Noise(5)).posterior
        freed = per_example_posterior.from_encoder(model, x, None)
        z, log_q = freed.draw(Noise(5), 1)
    torch.testing.assert_close(z, q.z)
    torch.testing.assert_close(log_q, q.log_prob(q.z))
    per_example_posterior.optimise(model, x, None, freed, Noise(1))
    mean, error = mean_and_error(
        per_example_posterior.family_bound(model, x, None, freed, Noise(2), draws=500) + known.truth[:16]
    )
    assert -4 * error < mean < 0.3 * known.best_gap
    assert per_example_posterior.weights(model) == sum(p[0].numel() for p, _ in freed.parameters[3:])


def test_a_flow_for_each_example_has_the_density_of_its_draws():
    """log q against autograd: N(0, I) over |det dz / du|, for one example and one draw."""
    inner = per_example_posterior.GaussianFamily(torch.zeros(1, 4), torch.ones(1, 4))
    flow = per_example_posterior.FlowFamily(inner, torch.full((1, 4), 0.3), torch.full((1, 4), 2.0), Noise(0))
    for number, (parameter, _) in enumerate(flow.parameters[2:]):
        parameter.data.add_(0.3 * Noise(number).normal(*parameter.shape))

    class Given:
        def __init__(self, start):
            self.start = start

        def at(self, eps, draws):
            return self.start, torch.zeros(1)

    start = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))

    def image(u):
        flow._inner = Given(u)
        return flow.draw(Noise(0), 1)[0]

    jacobian = torch.autograd.functional.jacobian(image, start)[0, :, 0]
    flow._inner = Given(start)
    _, log_q = flow.draw(Noise(0), 1)
    assert float(-torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_q.detach()), abs=1e-4)
    assert not torch.allclose(image(start), start)


def test_a_large_z_gets_no_flow_of_its_own(known, monkeypatch, quick):
    monkeypatch.setattr(per_example_posterior, "LARGEST", 2)
    with pytest.raises(ValueError, match="more than 2 values"):
        per_example_posterior.with_flow(
            known.model, known.x, per_example_posterior.from_encoder(known.model, known.x, None), Noise(0)
        )
    found = gap.measure_gap(known.model, Rows(known.x), GapConfig(examples=10, chains=4, steps=8))
    assert (found.flow, found.approximation_flow) == (None, None)


# the gap


def test_the_parts_agree_with_the_truth_and_add_up(known):
    found = gap.measure_gap(known.model, Rows(known.x), GapConfig(examples=64), data="rows")
    truth = -float(known.truth.mean())
    assert found.exact.nats == pytest.approx(truth, abs=found.bracket.nats + 4 * found.bracket.error)
    assert abs(found.approximation.nats - known.best_gap) < 4 * found.approximation.error + 0.02
    assert abs(found.amortisation.nats - known.amortised_gap) < 4 * found.amortisation.error + 0.02
    assert found.total.nats == pytest.approx(found.approximation.nats + found.amortisation.nats)
    assert found.total.nats == pytest.approx(found.bound.nats - found.exact.nats, abs=1e-4)
    assert found.flow.nats < found.own.nats < found.bound.nats
    assert found.converged
    assert found.notes == ()
    assert (found.method, found.family, found.examples) == ("annealed importance sampling", "gaussian", 64)
    assert GapEvaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError):
        GapEvaluation.from_json({})


def test_nothing_is_lost_to_amortisation_where_the_encoder_gives_the_best_q():
    right = Known(3, 6, 0.7)
    found = gap.measure_gap(right.model, Rows(right.x), GapConfig(examples=64, chains=8))
    assert abs(found.amortisation.nats) < 4 * found.amortisation.error + 0.01
    assert abs(found.approximation.nats - right.best_gap) < 4 * found.approximation.error + 0.02


def test_the_same_seed_gives_the_same_digits_and_nothing_else_is_touched(known, quick):
    known.model.train()
    before = torch.random.get_rng_state()
    said = {"examples": 8, "chains": 4, "steps": 16}
    one, again = (
        replace(gap.measure_gap(known.model, Rows(known.x), GapConfig(**said)), seconds=0, seconds_annealing=0)
        for _ in "12"
    )
    assert one == again
    assert known.model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_annealing_that_does_not_converge_is_warned_of(quick):
    """Twenty narrow directions, one chain of one step from the prior."""
    hard = Known(20, 40, 0.05)
    with pytest.warns(UserWarning, match="has not converged: after 1 steps"):
        found = gap.measure_gap(hard.model, Rows(hard.x), GapConfig(examples=8, chains=1, steps=1, base="prior"))
    assert not found.converged
    assert found.bracket.nats > 0.3
    assert "has not converged" in found.notes[0]


@pytest.mark.parametrize(("nats", "error", "narrow"), [(-1.3, 0.8, False), (-0.1, 0.2, True), (0.2, 0.2, False)])
def test_a_bracket_below_zero_is_noise_and_not_narrow(known, monkeypatch, quick, nats, error, narrow):
    middle, side = torch.tensor(nats), torch.tensor(error) * 2**0.5  # of two examples: mean and standard error
    upper = torch.stack([middle - side / 2**0.5, middle + side / 2**0.5])
    monkeypatch.setattr(annealing, "bracket", lambda *_, **__: annealing.Bracket(torch.zeros(2), upper))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = gap.measure_gap(known.model, Rows(known.x), GapConfig(examples=4, chains=2, steps=2))
    assert found.converged is narrow
    assert len(said) == (not narrow)


def test_little_time_ends_the_doubling(known, quick):
    with pytest.warns(UserWarning, match="has not converged: after 16 steps"):
        gap.measure_gap(known.model, Rows(known.x), GapConfig(examples=4, chains=2, tolerance=1e-9, minutes=1e-9))


def test_steps_double_until_the_bracket_is_narrow(known, monkeypatch, quick):
    monkeypatch.setattr(gap, "FIRST_STEPS", 1)
    found = gap.measure_gap(known.model, Rows(known.x), GapConfig(examples=40, chains=8, base="prior", tolerance=0.5))
    assert found.steps in (2, 4, 8, 16, 32, 64)
    assert found.bracket.nats + found.bracket.error <= 0.5


@pytest.mark.parametrize("options", [{"posterior": "flow", "flow_steps": 1}, {"prior": "vamp", "components": 4}])
def test_richer_posteriors_and_priors_are_measured_alike(digits, options, quick):
    torch.manual_seed(0)
    model = make(tessella.VAE, digits.schema, **SMALL, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gap.measure_gap(model, digits.split("test"), GapConfig(examples=6, chains=2, steps=2))
    assert found.family == options.get("posterior", "gaussian")
    assert math.isfinite(found.total.nats)


def test_a_conditional_model_is_measured_given_its_labels(digits, quick):
    torch.manual_seed(0)
    model = make(tessella.CVAE, digits.schema, **SMALL)
    found = gap.measure_gap(model, digits.split("test"), GapConfig(examples=6, chains=2, steps=4))
    assert math.isfinite(found.total.nats)


def test_a_flow_has_no_gap():
    """Real values: none at all. Discrete ones: what is there is of q(u | x)."""
    torch.manual_seed(0)
    model = tessella.models.presets.Flow(Schema.of((3,), Real(-3, 3)), width=8, depth=1, flow_steps=1)
    found = gap.measure_gap(model, Rows(torch.randn(5, 3)))
    assert (found.total.nats, found.approximation.nats, found.amortisation.nats, found.method) == (0, 0, 0, "exact")
    assert "zero by construction" in found.notes[0]
    model = tessella.models.presets.Flow(Schema.of((3,), "uint8"), width=8, depth=1, flow_steps=1)
    found = gap.measure_gap(model, Rows(torch.randint(0, 256, (5, 3)).to(torch.uint8)))
    assert found.total.nats >= 0
    assert found.amortisation.nats == 0
    assert "dequantised" in found.notes[0]


# refused


def test_a_model_without_a_bound_has_no_gap(digits):
    split = digits.split("test")
    with raises("no-prior"):
        gap.measure_gap(make(tessella.AE, digits.schema, **SMALL), split)
    with raises("no-density"):
        gap.measure_gap(tessella.VQVAE(digits.schema, width=8, depth=1), split)
    model = make(tessella.VAE, digits.schema, **SMALL)
    model.prior.exact = False
    with raises("no-exact-prior"):
        gap.measure_gap(model, split)


@pytest.mark.parametrize(
    "wrong", [{"examples": 1}, {"chains": 0}, {"steps": 0}, {"simulated": 1}, {"tolerance": 0.0}, {"minutes": -1.0}]
)
def test_numbers_that_make_no_sense_are_refused(known, wrong):
    said = re.escape(f"{next(iter(wrong.values()))}")
    with pytest.raises(SpecError, match=said):
        GapConfig(**wrong)


# the command


def test_the_command_keeps_what_it_finds_and_the_page_shows_it(tmp_path: Path, capsys, quick) -> None:
    run = tmp_path / "run"
    small = ["--steps", "3", "--batch-size", "8", "--width", "8", "--depth", "1", "--latent-dim", "3", "--quiet"]
    assert main(["train", "vae", "--data", "digits", "--binarize", "static", "--out", str(run), *small]) == 0
    measured = ["inference-gap", str(run), "--examples", "4", "--chains", "2", "--steps", "8"]
    assert main(measured) == 0
    shown = capsys.readouterr().out
    for word in ("approximation gap", "amortisation gap", "total gap", "bracket"):
        assert word in shown
    kept = json.loads((run / "results/gap.json").read_text())
    assert main([*measured, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert kept["exact"] == said["exact"]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Inference gap" in page
    (run / "results/gap.json").write_text(json.dumps({**kept, "step": 99}))  # of other weights
    assert main(["report", str(run)]) == 0
    assert "Inference gap" not in (run / "report.html").read_text()


def test_the_command_refuses_in_one_line_and_keeps_nothing(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    small = ["--steps", "3", "--batch-size", "8", "--width", "8", "--depth", "1", "--latent-dim", "3", "--quiet"]
    assert main(["train", "ae", "--data", "digits", "--out", str(run), *small]) == 0
    capsys.readouterr()
    assert main(["inference-gap", str(run)]) == 2
    assert "has no bound" in capsys.readouterr().err
    assert not (run / "results/gap.json").exists()
