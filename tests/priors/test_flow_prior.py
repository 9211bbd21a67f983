"""The flow prior is a density whose draws follow it, on vectors and on grids; it starts near N(0, I) and learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tessella.core.rng import Noise
from tessella.priors import FlowPrior
from tessella.priors.flow import FlowPriorModule

SHAPES = [(1,), (2,), (5,), (2, 3, 2), (3, 90), (1, 17, 16), (5, 9, 8)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(prior: FlowPriorModule, size: float = 0.2) -> FlowPriorModule:
    """With weights as far from the start's as trained ones are."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(size * torch.randn_like(parameter) / math.sqrt(max(1, parameter[0].numel())))
    return prior


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("classes", [0, 3])
def test_it_is_invertible_and_the_determinant_is_the_jacobian_s(shape: tuple[int, ...], classes: int) -> None:
    prior = shaken(FlowPrior(width=16).build(shape, classes))
    label = torch.tensor([0, 2]) if classes else None
    context = None if label is None else nn.functional.one_hot(label, classes).float()
    eps = torch.randn(2, *shape)
    with torch.no_grad():
        z = prior.inverse(eps, context)
        assert not torch.allclose(z, eps, atol=1e-3)

        def image(z: Tensor) -> Tensor:
            inner = z.flatten(1) if prior.as_vector else z
            for step in prior.steps:
                inner = step(inner, context)[0]
            return inner.reshape(z.shape)

        torch.testing.assert_close(image(z), eps, rtol=1e-3, atol=1e-3)
        if math.prod(shape) > 30:
            return
        nats = prior(label).log_prob(z)
    whole = torch.autograd.functional.jacobian(image, z)
    assert isinstance(whole, Tensor)
    whole = whole.reshape(2, math.prod(shape), 2, math.prod(shape))
    base = -0.5 * (eps.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    for row in range(2):
        torch.testing.assert_close(nats[row], base[row] + whole[row, :, row].slogdet()[1], rtol=1e-3, atol=1e-3)


def test_it_integrates_to_one_in_two_dimensions() -> None:
    prior = shaken(FlowPrior(width=8, flow_steps=2).build((2,), 2), 0.5)
    cells = torch.cartesian_prod(torch.linspace(-7, 7, 401), torch.linspace(-7, 7, 401))
    with torch.no_grad():
        for label in (0, 1):
            total = prior(torch.full((len(cells),), label)).log_prob(cells).exp().sum() * (14 / 400) ** 2
            assert abs(float(total) - 1) < 5e-3


@pytest.mark.parametrize("shape", [(6,), (4, 9, 8)], ids=str)
def test_it_starts_as_the_standard_normal_nearly(shape: tuple[int, ...]) -> None:
    prior, z = FlowPrior().build(shape), torch.randn(50, *shape)
    normal = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    with torch.no_grad():
        assert ((prior(None).log_prob(z) - normal).abs() < 0.01 * math.prod(shape)).all()


def test_it_learns_what_no_gaussian_is_and_draws_it() -> None:
    """A ring of radius 2 and deviation 0.1, whose entropy is known; held-out data within 0.3 nats of it."""

    def ring(count: int) -> Tensor:
        angle, radius = 2 * math.pi * torch.rand(count), 2 + 0.1 * torch.randn(count)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    prior = FlowPrior(width=32, flow_steps=3).build((2,))
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (-prior(None).log_prob(ring(128)).mean()).backward()
        optimizer.step()
    entropy = math.log(2 * math.pi * 2) + 0.5 * math.log(2 * math.pi * math.e * 0.01)
    with torch.no_grad():
        assert -0.05 < float(-prior(None).log_prob(ring(4000)).mean()) - entropy < 0.3
        radius = prior.sample(2000, Noise(0)).norm(dim=1)
    assert ((radius - 2).abs() < 0.5).float().mean() > 0.9


def test_gradients_reach_every_weight_and_the_latents() -> None:
    for shape in ((6,), (4, 9, 8)):
        prior = FlowPrior().build(shape, 3)
        z = torch.randn(3, *shape, requires_grad=True)
        prior(torch.tensor([0, 1, 2])).log_prob(z).sum().backward()
        assert z.grad is not None
        for name, parameter in prior.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
