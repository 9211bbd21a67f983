"""KL through torch's registry, and by one draw where it knows no closed form. Random tests are seeded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    register_kl,
)

from tessella.core.distributions import kl, kl_per_unit


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(*shape: int, batch: int | None = 4) -> Independent:
    full = shape if batch is None else (batch, *shape)
    return Independent(Normal(torch.randn(full), torch.rand(full) + 0.2), len(shape))


def mixture(units: int) -> MixtureSameFamily:
    parts = Independent(Normal(torch.randn(5, units), torch.rand(5, units) + 0.5), 1)
    return MixtureSameFamily(Categorical(logits=torch.randn(5)), parts)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
@pytest.mark.parametrize("p_batch", [None, 4])
def test_closed_form_is_the_mean_of_draws(shape: tuple[int, ...], p_batch: int | None) -> None:
    """False alarms: 6e-5 for each of 4 examples (4 standard errors)."""
    q, p = normal(*shape), normal(*shape, batch=p_batch)
    exact = kl(q, p)
    assert exact.shape == (4,)
    z = q.sample((20_000,))
    draws = q.log_prob(z) - p.log_prob(z)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()


def test_is_not_negative_is_zero_for_equals_and_is_not_symmetric() -> None:
    for _ in range(20):
        q, p = normal(6), normal(6)
        assert (kl(q, p) > 0).all()
        assert not torch.allclose(kl(q, p), kl(p, q))
        torch.testing.assert_close(kl(q, q), torch.zeros(4))


def test_terms_sum_to_the_whole() -> None:
    q, p = normal(2, 3, 4), normal(2, 3, 4, batch=None)
    terms = kl_per_unit(q, p)
    assert terms is not None
    assert terms.shape == (4, 24)
    assert terms.min() >= -1e-6
    torch.testing.assert_close(terms.sum(1), kl(q, p))


def test_terms_of_a_prior_of_one_number_are_one_a_unit() -> None:
    q = normal(3)
    p = Independent(Normal(torch.zeros(1).expand(3), torch.ones(1).expand(3)), 1)
    terms = kl_per_unit(q, p)
    assert terms is not None
    assert terms.shape == (4, 3)


def test_no_terms_where_it_is_no_sum() -> None:
    q = normal(3)
    assert kl_per_unit(q, mixture(3)) is None
    assert kl_per_unit(q, MultivariateNormal(torch.zeros(3), torch.eye(3))) is None
    assert kl_per_unit(q, normal(4)) is None
    blocks = Independent(MultivariateNormal(torch.zeros(4, 3, 2), torch.eye(2)), 1)
    assert kl_per_unit(blocks, blocks) is None


class _Own(Distribution):
    """A family that torch has never heard of."""

    def __init__(self, location: Tensor) -> None:
        self.location = location
        super().__init__(location.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.location).square()


@register_kl(_Own, Laplace)
def _kl_own_laplace(q: _Own, p: Laplace) -> Tensor:
    return (q.location - p.loc).square() + 7


def test_newly_registered_pair_is_found() -> None:
    q = Independent(_Own(torch.randn(4, 3)), 1)
    p = Independent(Laplace(torch.zeros(3), torch.ones(3)), 1)
    terms = (q.base_dist.location.square()) + 7
    torch.testing.assert_close(kl(q, p, torch.full((4, 3), 99.0)), terms.sum(1))
    torch.testing.assert_close(kl_per_unit(q, p), terms)


def test_draw_stands_in_for_a_missing_closed_form() -> None:
    q, p = normal(3), mixture(3)
    z = q.sample()
    torch.testing.assert_close(kl(q, p, z), q.log_prob(z) - p.log_prob(z))
    with pytest.raises(ValueError, match=r"KL\(Independent\(Normal\) \|\| MixtureSameFamily\).*pass a sample z"):
        kl(q, p)


def test_gradient_reaches_both_through_the_draw() -> None:
    location = torch.randn(4, 3, requires_grad=True)
    q, p = Independent(Normal(location, 0.5), 1), mixture(3)
    kl(q, p, q.rsample()).sum().backward()
    assert location.grad is not None
    assert location.grad.abs().sum() > 0


def test_draws_average_to_at_least_zero() -> None:
    """False alarms: below 3e-5 for each of 4 examples (their mean is at least zero, by 4 standard errors)."""
    q, p = normal(3), mixture(3)
    draws = torch.stack([kl(q, p, q.sample()) for _ in range(500)])
    assert (draws.mean(0) > -4 * draws.std(0) / math.sqrt(500)).all()


def test_autocast_changes_no_digit() -> None:
    q, dense = normal(3), MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.3)
    z = q.sample()
    plain = kl(q, mixture := normal(3)), kl_per_unit(q, mixture), kl(q, dense, z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = kl(q, mixture), kl_per_unit(q, mixture), kl(q, dense, z)
    for a, b in zip(plain, cast, strict=True):
        assert a is not None
        assert b is not None
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)
