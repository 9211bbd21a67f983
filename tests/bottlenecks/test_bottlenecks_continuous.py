"""Real-valued bottlenecks. Random tests are seeded and say how often they would fail by chance."""

from __future__ import annotations

import math

import pytest
import torch

from tessella.bottlenecks import Deterministic, DiagonalGaussian
from tessella.core.rng import Noise


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_deterministic_lets_all_through_without_a_price() -> None:
    bottleneck = Deterministic().build((5, 3, 2), 4)
    features = torch.randn(2, 5, 3, 2)
    passage = bottleneck(features, Noise(0))
    assert passage.posterior is None
    assert passage.penalty is None
    assert torch.equal(passage.z, bottleneck(features, None).z)


@pytest.mark.parametrize("feature_shape", [(5,), (5, 2, 2)])
def test_draws_have_the_posterior_they_name(feature_shape: tuple[int, ...]) -> None:
    """False alarms: 6e-5 for each mean and each variance, at most 32 of them (4 standard errors)."""
    bottleneck = DiagonalGaussian().build(feature_shape, 4)
    with torch.no_grad():
        for parameter in bottleneck.parameters():
            parameter.mul_(20)
    count = 5000
    features = torch.randn(1, *feature_shape).expand(count, *feature_shape)
    passage = bottleneck(features, Noise(0))
    assert passage.posterior is not None
    standard = ((passage.z - passage.posterior.mean) / passage.posterior.stddev).detach()
    assert (standard.mean(0).abs() < 4 / math.sqrt(count)).all()
    assert ((standard.var(0) - 1).abs() < 4 * math.sqrt(2 / count)).all()
    at_mode = bottleneck(features[:3], None)
    assert torch.equal(at_mode.z, at_mode.posterior.mean)


def test_starts_near_a_rate_of_zero() -> None:
    posterior = DiagonalGaussian().build((64,), 16)(torch.randn(8, 64), None).posterior
    assert posterior is not None
    assert posterior.mean.abs().max() < 0.5
    assert (posterior.stddev - 1).abs().max() < 0.5


@pytest.mark.parametrize("size", [1e6, -1e6, 1e30, -1e30])
def test_no_features_overflow(size: float) -> None:
    bottleneck = DiagonalGaussian().build((5,), 4)
    features = torch.full((2, 5), size, requires_grad=True)
    passage = bottleneck(features, Noise(0))
    assert passage.posterior is not None
    assert passage.posterior.stddev.min() >= math.exp(-8) * 0.999
    assert passage.posterior.stddev.max() <= math.exp(4) * 1.001
    assert passage.z.isfinite().all()


def test_is_computed_in_float32_under_autocast() -> None:
    bottleneck, features = DiagonalGaussian().build((5,), 4), torch.randn(2, 5)
    plain = bottleneck(features, Noise(0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = bottleneck(features, Noise(0))
    assert cast.z.dtype == torch.float32
    assert torch.equal(plain.z, cast.z)
