"""A position's codes: a normalised joint distribution, drawn from as it says."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical
from tessella.priors import head as module
from tessella.priors.head import CodeHead


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def everything(codes: int, size: int) -> torch.Tensor:
    """All of a position's codes, `[size ** codes, codes]`."""
    return torch.tensor(list(product(range(size), repeat=codes)))


@pytest.mark.parametrize(("codes", "size"), [(1, 5), (2, 3), (3, 2)])
def test_it_sums_to_one(codes: int, size: int) -> None:
    head = CodeHead(6, codes, size)
    values = everything(codes, size)
    features = torch.randn(2, 6)[:, None].expand(-1, len(values), -1)
    nats = head.log_prob(features, values.T.expand(2, -1, -1))
    assert nats.shape == (2, codes, len(values))
    torch.testing.assert_close(nats.sum(1).exp().sum(1), torch.ones(2))


def test_draws_follow_it() -> None:
    """Five standard deviations over 9 frequencies: a false alarm in about 1 of 10^5 seeds."""
    head, count = CodeHead(4, 2, 3), 20_000
    values, features = everything(2, 3), 2 * torch.randn(1, 4)
    p = head.log_prob(features.expand(1, 9, -1), values.T[None]).sum(1)[0].exp()
    uniform = Noise(0).uniform(count, 2)
    drawn = head.select(features.expand(count, -1), lambda logits, c: sample_categorical(logits, uniform[:, c]))
    found = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9) / count
    assert ((found - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()


def test_a_code_sees_those_before_it_only() -> None:
    head = CodeHead(4, 3, 5)
    features, codes = torch.randn(1, 1, 4), torch.zeros(1, 3, 1, dtype=torch.int64)
    other = codes.clone()
    other[0, 1] = 4
    one, two = head.log_prob(features, codes)[0, :, 0], head.log_prob(features, other)[0, :, 0]
    assert (one == two).tolist() == [True, False, False]


def test_the_likeliest_codes_are_drawn_at_temperature_zero() -> None:
    head = CodeHead(4, 1, 7)
    features = torch.randn(11, 4)
    nats = torch.stack([head.log_prob(features[None], torch.full((1, 1, 11), k))[0, 0] for k in range(7)])
    assert torch.equal(head.select(features, lambda logits, _: logits.argmax(-1))[:, 0], nats.argmax(0))


@pytest.mark.parametrize("codes", [1, 2])
def test_parts_make_the_whole(codes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head = CodeHead(4, codes, 3)
    features, values = torch.randn(2, 7, 4, requires_grad=True), torch.randint(3, (2, codes, 7))

    def run() -> list[torch.Tensor]:
        nats = head.log_prob(features, values)
        return [nats, *torch.autograd.grad(nats.square().sum(), [features, *head.parameters()])]

    whole = run()
    monkeypatch.setattr(module, "CHUNK", 12)
    for part, all_ in zip(run(), whole, strict=True):
        torch.testing.assert_close(part, all_)
    with torch.no_grad():
        torch.testing.assert_close(head.log_prob(features, values), whole[0])


def test_log_prob_is_float32_in_autocast() -> None:
    head, features, values = CodeHead(8, 2, 3), torch.randn(1, 5, 8), torch.randint(3, (1, 2, 5))
    expected = head.log_prob(features, values)
    with torch.autocast("cpu", torch.bfloat16):
        nats = head.log_prob(features, values)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, expected, atol=0.05, rtol=0)
