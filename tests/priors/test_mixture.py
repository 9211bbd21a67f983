"""Mixture and VampPrior are densities, start near N(0, I), learn, and share the encoder instead of copying it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from expect import raises
from making import make
from tessella.core.configs import InferenceNetwork
from tessella.core.distributions import kl
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.models.presets import CVAE, VAE
from tessella.priors import MixturePrior, VampPrior
from tessella.priors.mixture import VampPriorModule

CELLS = torch.cartesian_prod(torch.linspace(-8, 8, 321), torch.linspace(-8, 8, 321))
AREA = (16 / 320) ** 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_mixture_integrates_to_one_for_every_class() -> None:
    prior = MixturePrior(components=4).build((2,), 3)
    with torch.no_grad():
        prior.logits.normal_()
        prior.log_scale.uniform_(-1, 0)
        nats = prior(torch.arange(3)).log_prob(CELLS[:, None])
    torch.testing.assert_close(nats.exp().sum(0) * AREA, torch.ones(3), rtol=0, atol=1e-4)


def test_one_component_is_a_gaussian_and_its_rate_the_closed_form() -> None:
    """Mean of 20,000 draws against the closed form, at 5 standard errors: false alarm below 1 in a million."""
    prior = MixturePrior(components=1).build((3,))
    with torch.no_grad():
        prior.loc.normal_()
        prior.log_scale.uniform_(-1, 0.5)
    q = Independent(Normal(torch.randn(1, 3), torch.rand(1, 3) + 0.2), 1)
    p = Independent(Normal(prior.loc[0], prior.log_scale[0].exp()), 1)
    z = q.sample((20_000,))
    torch.testing.assert_close(prior(None).log_prob(z), p.log_prob(z), rtol=1e-4, atol=1e-4)
    nats = kl(q, prior(None), z).detach()
    error = float(nats.std()) / math.sqrt(len(nats))
    assert abs(float(nats.mean() - kl(q, p).detach())) < 5 * error


def test_draws_have_the_mixture_s_moments() -> None:
    prior = MixturePrior(components=3).build((2,))
    with torch.no_grad():
        prior.loc.mul_(4)
        prior.logits.normal_()
        distribution = prior(None)
        drawn = prior.sample(40_000, Noise(0))
    error = distribution.variance.sqrt() / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - distribution.mean).abs() < 5 * error).all()
    torch.testing.assert_close(drawn.var(0), distribution.variance, rtol=0.05, atol=0)
    cold = prior.sample(1000, Noise(0), sampling=Sampling(0.0))
    assert torch.cdist(cold, prior.loc).min(1).values.max() < 1e-5, "without deviation only the means are drawn"


def test_mixture_finds_clusters() -> None:
    """Entropy of two clusters of deviation 0.1 is known: the fitted density comes within 0.1 nats of it."""
    x = torch.randint(0, 2, (4000, 1)) * 4.0 - 2 + 0.1 * torch.randn(4000, 2)
    prior = MixturePrior(components=6).build((2,))
    optimizer = torch.optim.Adam(prior.parameters(), 3e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (-prior(None).log_prob(x).mean()).backward()
        optimizer.step()
    entropy = math.log(2) + 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.1))
    with torch.no_grad():
        assert abs(float(-prior(None).log_prob(x).mean()) - entropy) < 0.1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_vamp_is_the_mixture_of_its_posteriors(shape: tuple[int, ...]) -> None:
    model = make(VAE, Schema.of(shape, "uint8"), prior="vamp", components=5, latent_dim=2, width=4, depth=1).eval()
    prior = model.prior
    assert isinstance(prior, VampPriorModule)
    assert {name for name, _ in prior.named_parameters()} == {"logits", "inputs"}
    assert len({name.rpartition(".")[2] for name in model.state_dict() if "prior" in name}) == 2
    z = torch.randn(3, *model.latent_shape)
    with torch.no_grad():
        weights = torch.log_softmax(prior.logits[0], 0)
        each = []
        for u in prior.inputs:
            q = model.bottleneck(model.encoder(u[None], None), None).posterior
            assert q is not None
            each.append(q.log_prob(z))
        expected = torch.logsumexp(torch.stack(each, 1) + weights, 1)
        torch.testing.assert_close(prior(None).log_prob(z), expected, rtol=1e-4, atol=1e-3)

    inputs = torch.randn(2, *shape)
    inference = InferenceNetwork(model.encoder, model.bottleneck, shape, False, lambda count: inputs)
    assert torch.equal(VampPrior(components=5).build(model.latent_shape, 0, inference).inputs[3], inputs[1])


def test_vamp_with_a_frozen_encoder_teaches_the_pseudo_inputs_alone() -> None:
    model = VAE(Schema.of((6,), "real"), width=8, depth=1).requires_grad_(False)
    prior = VampPrior(components=4).build(
        model.latent_shape, 0, InferenceNetwork(model.encoder, model.bottleneck, (6,), False)
    )
    prior(None).log_prob(torch.randn(3, *model.latent_shape)).sum().backward()
    assert prior.inputs.grad is not None
    assert prior.inputs.grad.any()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("prior", ["mixture", "vamp", "flow"])
@pytest.mark.parametrize("preset", [VAE, CVAE])
def test_bound_lies_below_the_mean_importance_bound(preset, prior: str) -> None:
    """E log-mean-exp of K draws grows with K (Burda et al. 2015, theorem 1): 100 examples' means, by margin 0."""
    schema = Schema.of((5,), "binary", classes=("a", "b"))
    model = make(preset, schema, prior=prior, width=16, depth=1, latent_dim=2).eval()
    x, label = torch.randint(0, 2, (100, 5), dtype=torch.uint8), torch.randint(0, 2, (100,))
    with torch.no_grad():
        weights = model(x, label, noise=Noise(0), draws=64).log_weights
        truth = _exact(model, x, label)
    many = torch.logsumexp(weights, 0) - math.log(64)
    assert weights.mean() <= many.mean()
    assert abs(float(many.mean() - truth.mean())) < 0.05
    assert -weights.mean(0).mean() >= -truth.mean() - 0.02


def _exact(model, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """log p(x) by the sum over a grid of z in two dimensions."""
    z = torch.cartesian_prod(torch.linspace(-6, 6, 61), torch.linspace(-6, 6, 61))
    found = torch.zeros(len(x))
    for of in label.unique():
        labels = of.expand(len(z)) if model.conditional else None
        prior, drawing = model.prior_given(labels).log_prob(z), model.decode(z, labels)
        for row in torch.nonzero(label == of)[:, 0]:
            found[row] = torch.logsumexp(prior + drawing.log_prob(x[row].expand(len(z), -1)), 0)
    return found + math.log((12 / 60) ** 2)


def test_refusals() -> None:
    schema = Schema.of((5,), "binary")
    for options, code in (
        ({"prior": "misture"}, "no-such-part"),
        ({"prior": "class-normal"}, "needs-labels"),
        ({"prior": "vamp", "posterior": "flow"}, "needs-gaussian-posterior"),
        ({"prior": "flow", "components": 3}, "no-such-option"),
        ({"flow_steps": 3}, "no-such-option"),
        ({"prior": "mixture", "free_bits": 0.1}, "needs-factorised-rate"),
        ({"prior": "diffusion"}, "fitted-after"),
        ({"posterior": "deterministic"}, "no-rate"),
    ):
        with raises(code):
            make(VAE, schema, **options)
