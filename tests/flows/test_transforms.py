"""What is invertible is inverted, log-determinants are autograd's, and densities hold one unit of probability.

Tests by chance are seeded; where they could fail under another seed, they say how often.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.flows.dequantise import EDGE, Dequantizer, UniformDequantizer, VariationalDequantizer
from tessella.flows.logistics import Mixture
from tessella.flows.multiscale import MultiscaleFlow
from tessella.flows.transforms import (
    ActNorm,
    AffineCoupling,
    ComposedTransform,
    InvertibleConv,
    Squeezed,
    Transform,
    join_subgrids,
    subgrids,
)
from tessella.flows.vectors import VectorFlow
from tessella.priors import StandardNormal
from tessella.priors.logistic import StandardLogistic

SMALL: dict[str, Any] = {"width": 6, "depth": 1}
torch.manual_seed(0)  # of the weights below, which are made before any test is
TRANSFORMS: dict[str, tuple[Transform, tuple[int, ...]]] = {
    "actnorm": (ActNorm(3), (3, 2, 3)),
    "convolution": (InvertibleConv(4), (4, 2, 2)),
    "coupling": (AffineCoupling(3, **SMALL), (3, 2, 3)),
    "flipped": (AffineCoupling(5, **SMALL, flip=True), (5, 2, 1)),
    "squeezed": (Squeezed(ComposedTransform([InvertibleConv(8), AffineCoupling(8, **SMALL)])), (2, 4, 2)),
    "pixel": (MultiscaleFlow((1, 1, 1), **SMALL, mixtures=3), (1, 1, 1)),
    "row": (MultiscaleFlow((1, 1, 7), **SMALL, mixtures=3), (1, 1, 7)),
    "picture": (MultiscaleFlow((3, 5, 3), **SMALL, mixtures=2), (3, 5, 3)),
    "glow": (MultiscaleFlow((2, 4, 4), **SMALL, mixtures=2, steps=2), (2, 4, 4)),
    "sample": (MultiscaleFlow((2, 1), **SMALL, mixtures=3), (2, 1)),
    "signal": (MultiscaleFlow((2, 7), **SMALL, mixtures=2), (2, 7)),
    "glow of a signal": (MultiscaleFlow((1, 8), **SMALL, mixtures=2, steps=2), (1, 8)),
    "number": (VectorFlow(1, **SMALL, bins=4), (1,)),
    "vector": (VectorFlow(5, **SMALL, bins=6), (5,)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lively(module: nn.Module) -> None:
    """Leave the start, where much is the identity; not so far that networks of random weights make chaos of float32."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=TRANSFORMS, scope="module")
def transform(request) -> tuple[Transform, tuple[int, ...]]:
    made, shape = TRANSFORMS[request.param]
    lively(made)
    return made, shape


def test_inverse(transform) -> None:
    flow, shape = transform
    x = 1.5 * torch.randn(6, *shape)
    with torch.no_grad():
        z, log_det = flow(x)
        assert z.shape == x.shape
        assert log_det.shape == (6,)
        torch.testing.assert_close(flow.inverse(z), x, rtol=1e-4, atol=1e-4)


def test_log_determinant_is_autograds(transform) -> None:
    flow, shape = transform
    x = torch.randn(2, *shape)
    _, log_det = flow(x)
    for i in range(2):
        square = jacobian(lambda v: flow(v.view(1, *shape))[0].flatten(), x[i].flatten())
        assert isinstance(square, Tensor)
        torch.testing.assert_close(torch.linalg.slogdet(square)[1], log_det[i].detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sides", [(33, 17), (9, 64), (30, 45), (101,)], ids=str)
def test_inverse_of_odd_sizes(sides: tuple[int, ...]) -> None:
    flow = MultiscaleFlow((3, *sides), width=8, depth=1, mixtures=3, steps=1)
    lively(flow)
    x = 2 * torch.rand(2, 3, *sides) - 1
    with torch.no_grad():
        torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=0, atol=1e-4)
        assert torch.equal(flow.eval().inverse(flow(x)[0]), x)


@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_networks_that_are_sensitive_get_the_very_numbers_back(size: float) -> None:
    """In training z is float32, and what is a little off at one scale is far off at finer ones."""
    flow = MultiscaleFlow((1, 28, 28), width=8, depth=1, mixtures=3, steps=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "mix" not in name:
                parameter.add_(
                    size * parameter.std().nan_to_num(0.1) * torch.randn(parameter.shape, generator=generator)
                )
        x = (torch.randint(0, 2, (8, 1, 28, 28)) * 255 + torch.rand(8, 1, 28, 28)) / 128 - 1
        assert torch.equal(flow.eval().inverse(flow(x)[0]), x)


def test_autocast_leaves_the_values_alone() -> None:
    x = torch.rand(2, 4, 6, 6)
    for transform in (ActNorm(4), InvertibleConv(4), Squeezed(InvertibleConv(16))):
        lively(transform)
        exact = transform(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(transform(x)[0], exact)


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (2, 1), (3, 5), (4, 4), (1,), (5,), (6,)], ids=str)
def test_subgrids_are_joined(sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *sides)
    assert torch.equal(join_subgrids(subgrids(x)), x)


@pytest.mark.parametrize("channels", [2, 3, 12, 48])
def test_convolution_starts_as_a_rotation(channels: int) -> None:
    weight = InvertibleConv(channels).weight()
    torch.testing.assert_close(weight @ weight.T, torch.eye(channels, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(weight[0], torch.full((channels,), 1 / math.sqrt(channels)).double(), rtol=0, atol=1e-5)


def test_mixture_is_inverted_far_from_its_components() -> None:
    """Between two components of width e^-6 that are 2 apart, and ten units away from both."""
    narrow = Mixture.of(torch.tensor([0.0, 0.0, -1.0, 1.0, -6.0, -6.0])[:, None], -7.0)
    x = torch.linspace(-10, 10, 201)
    one = Mixture(*(t.expand(-1, len(x)) for t in (narrow.log_weight, narrow.location, narrow.log_scale)))
    z, log_slope = one.forward(x)
    assert (z.diff() > 0).all()
    assert log_slope.isfinite().all()
    torch.testing.assert_close(one.inverse(z), x, rtol=0, atol=2e-3)
    one, x = Mixture(*(t.double() for t in (one.log_weight, one.location, one.log_scale))), x.double()
    torch.testing.assert_close(one.inverse(one.forward(x)[0]), x, rtol=0, atol=1e-9)


def test_density_of_one_number_integrates_to_one() -> None:
    flow = VectorFlow(1, width=8, depth=1, bins=8)
    lively(flow)
    x = torch.linspace(-60, 60, 60_001)
    with torch.no_grad():
        z, log_det = flow(x[:, None])
        density = (StandardNormal().build((1,))(None).log_prob(z) + log_det).exp()
    assert abs(float(torch.trapezoid(density, x)) - 1) < 1e-3


@pytest.mark.parametrize("kind", ["vector", "picture", "signal"])
def test_density_of_two_numbers_integrates_to_one(kind: str) -> None:
    """A spline has kinks and a logistic a long tail: within half a per cent on a grid."""
    axis = torch.linspace(-8, 8, 401) if kind == "vector" else torch.linspace(-16, 16, 601)
    points = torch.cartesian_prod(axis, axis)
    if kind == "vector":
        flow, prior = VectorFlow(2, width=8, depth=1, bins=6), StandardNormal().build((2,))
    else:
        shape = (1, 1, 2) if kind == "picture" else (1, 2)
        flow, prior = MultiscaleFlow(shape, width=8, depth=1, mixtures=3), StandardLogistic(shape)
        points = points.view(-1, *shape)
    lively(flow)
    with torch.no_grad():
        z, log_det = flow(points)
        total = (prior(None).log_prob(z) + log_det).double().exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 5e-3


def test_logistic_prior_is_normalised_and_draws_itself() -> None:
    """The mean negative log-density of draws is the entropy, 2 nats a number: off by 6 standard errors once in 1e9."""
    prior = StandardLogistic((4,))
    x = torch.linspace(-30, 30, 10_001)
    each = StandardLogistic((1,))(None).log_prob(x[:, None]).exp()
    assert abs(float(torch.trapezoid(each, x)) - 1) < 1e-4
    nats = -prior(None).log_prob(prior.sample(20_000, Noise(0)))
    assert abs(float(nats.mean()) - 8) < 6 * float(nats.std()) / math.sqrt(len(nats))
    assert float(prior.sample(9, Noise(0), sampling=Sampling(0.0)).abs().max()) == 0


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 4), (1, 1, 1), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("kind", ["uniform", "variational"])
def test_dequantisation_is_a_density(shape: tuple[int, ...], kind: str) -> None:
    """E_q[1 / q(u)] is the volume of where u may be: off by 6 standard errors once in 1e9 draws of a test."""
    made: Dequantizer = UniformDequantizer() if kind == "uniform" else VariationalDequantizer(shape, width=8, depth=1)
    lively(made)
    x = torch.randn(1, *shape).expand(4000, *shape)
    with torch.no_grad():
        u, log_q = made(x, Noise(0))
    assert u.shape == x.shape
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    inverse = (-log_q.double()).exp()
    error = float(inverse.std()) / math.sqrt(len(inverse))
    assert abs(float(inverse.mean()) - (1 - 2 * EDGE) ** math.prod(shape)) < 6 * error + 1e-5


def test_dequantisation_sees_gradients() -> None:
    made = VariationalDequantizer((2, 4, 3), width=8, depth=1)
    u, log_q = made(torch.randn(3, 2, 4, 3), Noise(0))
    (u.sum() + log_q.sum()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
