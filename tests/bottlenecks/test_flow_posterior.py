"""The flow posterior: log q of a draw is the Jacobian's, and that of any other z is found by inversion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from making import make
from tessella.bottlenecks import FlowPosterior
from tessella.bottlenecks.flow import FlowDistribution, FlowPosteriorModule
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.models.presets import CVAE, VAE

SHAPES = [(6,), (6, 1, 1), (6, 3, 4)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def posterior_of(
    shape: tuple[int, ...], channels: int = 3, noise: Noise | None = None, shake: float = 0.5
) -> FlowDistribution:
    """Of two examples, with weights far from the start's."""
    bottleneck = FlowPosteriorModule(shape, channels, flow_steps=3, width=16, context=8)
    with torch.no_grad():
        for parameter in bottleneck.steps.parameters():
            parameter.add_(shake * torch.randn_like(parameter) / math.sqrt(max(1, parameter[0].numel())))
        posterior = bottleneck(torch.randn(2, *shape), noise).posterior
    assert isinstance(posterior, FlowDistribution)
    return posterior


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_q_is_the_jacobian_s(shape: tuple[int, ...]) -> None:
    q = posterior_of(shape, noise=Noise(0))
    start = q.start
    units = start[0].numel()

    def image(start: Tensor) -> Tensor:
        return q.carried(start)[0]

    torch.testing.assert_close(image(start), q.z)
    whole = torch.autograd.functional.jacobian(image, start)
    assert isinstance(whole, Tensor)
    whole = whole.reshape(2, units, 2, units)
    for row in range(2):
        expected = q.base.log_prob(start)[row] - whole[row, :, row].slogdet()[1]
        torch.testing.assert_close(q.log_prob(q.z)[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inversion_finds_what_the_draw_knew(shape: tuple[int, ...]) -> None:
    q = posterior_of(shape, noise=Noise(0))
    with torch.no_grad():
        torch.testing.assert_close(q.log_prob(q.z.clone()), q.log_prob(q.z), rtol=1e-4, atol=1e-3)
        several = q.rsample(torch.Size((4,)))
        nats = q.log_prob(several)
        assert nats.shape == (4, 2)
        torch.testing.assert_close(q.log_prob(several[2]), nats[2], rtol=1e-4, atol=1e-3)
        crossed = q.log_prob(several[0].unsqueeze(1))
        assert crossed.shape == (2, 2)
        torch.testing.assert_close(crossed.diagonal(), nats[0], rtol=1e-4, atol=1e-3)


def test_it_integrates_to_one() -> None:
    q = posterior_of((6,), channels=2)
    cells = torch.cartesian_prod(torch.linspace(-9, 9, 201), torch.linspace(-9, 9, 201))
    with torch.no_grad():
        total = q.log_prob(cells[:, None]).exp().sum(0) * (18 / 200) ** 2
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_starts_as_the_plain_gaussian_nearly_and_its_mode_is_the_mean_s_image(shape: tuple[int, ...]) -> None:
    bottleneck, features = FlowPosterior().build(shape, 3), torch.randn(4, *shape)
    with torch.no_grad():
        plain, through = bottleneck.base(features, None), bottleneck(features, None)
        assert plain.posterior is not None
        assert through.posterior is not None
        torch.testing.assert_close(through.z, plain.z, rtol=0, atol=0.05)
        z = torch.randn(4, *bottleneck.latent_shape)
        units = z[0].numel()
        assert ((through.posterior.log_prob(z) - plain.posterior.log_prob(z)).abs() < 0.05 * units).all()


def test_it_learns_what_a_diagonal_gaussian_cannot() -> None:
    """KL to a Gaussian of correlation 0.95 is 1.16 nats at best for a diagonal one; here it falls below 0.1."""
    bottleneck = FlowPosteriorModule((1,), 2, flow_steps=3, width=16, context=4)
    p = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]]))
    features = torch.ones(256, 1)
    optimizer = torch.optim.Adam(bottleneck.parameters(), 1e-2)
    for step in range(150):
        optimizer.zero_grad()
        passage = bottleneck(features, Noise(0, step))
        (passage.posterior.log_prob(passage.z) - p.log_prob(passage.z)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        passage = bottleneck(torch.ones(4000, 1), Noise(1))
        assert -0.02 < float((passage.posterior.log_prob(passage.z) - p.log_prob(passage.z)).mean()) < 0.1


@pytest.mark.parametrize("preset", [VAE, CVAE])
@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 8, 8)], ids=str)
def test_model_with_both_flows(preset, shape: tuple[int, ...]) -> None:
    schema = Schema.of(shape, "binary", classes=("a", "b"))
    model = make(
        preset,
        schema,
        prior="flow",
        posterior="flow",
        prior_flow_steps=2,
        posterior_flow_steps=2,
        width=8,
        depth=1,
        latent_dim=3,
    )
    x, label = torch.randint(0, 2, (4, *shape), dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    terms = model(x, label, noise=Noise(0), draws=3)
    assert terms.log_weights is not None
    assert terms.rate_per_unit is None
    torch.testing.assert_close(-terms.log_weights.mean(0), terms.bound)
    terms.log_weights.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_bound_lies_below_the_exact_likelihood() -> None:
    """p(x, z) Gaussian: x = z + noise in two dimensions. E_q of the weights is below log p(x); many draws reach it."""
    q = posterior_of((6,), channels=2, shake=0.3)
    x = torch.randn(2, 2)
    prior, marginal = Independent(Normal(torch.zeros(2), 1), 1), Independent(Normal(torch.zeros(2), math.sqrt(2)), 1)
    with torch.no_grad():
        start = q.base.sample(torch.Size((4000,)))
        z, log_q = q.carried(start)
        weights = prior.log_prob(z) + Independent(Normal(z, 1.0), 1).log_prob(x) - log_q
        exact = marginal.log_prob(x)
        assert (weights.mean(0) < exact).all()
        reached = torch.logsumexp(weights, 0) - math.log(len(weights))
    assert ((reached - exact).abs() < 0.2).all()
