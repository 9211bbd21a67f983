"""The PixelCNN is a distribution over grids of codes, causal, conditional, and drawn from as it says."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from expect import raises
from tessella.core.outputs import Condition, Sampling
from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical
from tessella.foundation.progress import reporting
from tessella.priors import PixelCNN
from tessella.priors.autoregressive import PixelCNNModule

TINY = {"width": 8, "depth": 2}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def opinionated(prior: PixelCNNModule) -> None:
    """Let some codes be much likelier than others, as they are not at first."""
    for parameter in prior.head.exits.parameters():
        parameter.normal_()


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 2, 2), 2), ((1, 2, 2), 3), ((2, 2, 1), 3), ((2, 2, 2), 2), ((3, 1, 1), 4), ((1, 1, 5), 3)]
)
def test_it_sums_to_one(shape: tuple[int, ...], size: int) -> None:
    prior = PixelCNNModule(shape, size, **TINY)
    grids = torch.tensor(list(product(range(size), repeat=torch.Size(shape).numel()))).view(-1, *shape)
    with torch.no_grad():
        nats = prior(grids)
    assert nats.shape == grids.shape
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double().flatten(1).sum(1).exp().sum().float(), torch.tensor(1.0))


def test_a_code_depends_on_those_before_it_only() -> None:
    prior = PixelCNNModule((2, 3, 4), 5, **TINY)
    codes = torch.randint(5, (1, 2, 3, 4))
    other = codes.clone()
    other[0, 0, 1, 2] = (codes[0, 0, 1, 2] + 1) % 5
    with torch.no_grad():
        same = (prior(codes) == prior(other))[0]
    number = torch.arange(12).view(3, 4)
    assert same[:, number < number[1, 2]].all()
    assert not same[:, number >= number[1, 2]].any()


def by_recomputing(
    prior: PixelCNNModule, uniform: torch.Tensor, sampling: Sampling, condition: Condition
) -> torch.Tensor:
    """Samples by asking `forward` for every value of every code: what sampling must equal, in K D full passes."""
    codes = torch.zeros(uniform.shape, dtype=torch.int64)
    for i, j, c in product(range(uniform.shape[2]), range(uniform.shape[3]), range(uniform.shape[1])):
        nats: list[torch.Tensor] = []
        for k in range(prior.codebook_size):
            codes[:, c, i, j] = k
            nats.append(prior(codes, condition)[:, c, i, j])
        codes[:, c, i, j] = sample_categorical(torch.stack(nats, -1), uniform[:, c, i, j], sampling)
    return codes


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 4, 2), (3, 1, 1), (1, 1, 6)])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=3), Sampling(0.0), Sampling(top_p=0.8)])
def test_cached_samples_are_the_recomputed_ones(shape: tuple[int, ...], sampling: Sampling) -> None:
    prior = PixelCNNModule(shape, 4, context_channels=2, classes=3, **TINY).eval()
    opinionated(prior)
    label, context = torch.tensor([0, 1, 2, 0]), torch.randn(4, 2, *shape[1:])
    told: list[float] = []
    with reporting(lambda at: told.append(at.done)):
        drawn = prior.sample(4, Noise(1), Condition(label, context), sampling=sampling)
    with torch.no_grad():
        expected = by_recomputing(prior, Noise(1).uniform(4, *shape), sampling, Condition(label, context))
    assert torch.equal(drawn, expected)
    assert told == list(range(shape[1] * shape[2] + 1))


def test_samples_follow_the_distribution() -> None:
    """Five standard deviations over 16 frequencies: a false alarm in about 1 of 10^5 seeds."""
    prior, count = PixelCNNModule((1, 2, 2), 2, **TINY), 20_000
    opinionated(prior)
    grids = torch.tensor(list(product(range(2), repeat=4))).view(-1, 1, 2, 2)
    with torch.no_grad():
        p = prior(grids).flatten(1).sum(1).exp()
    drawn = prior.sample(count, Noise(0)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    found = torch.bincount(drawn, minlength=16) / count
    assert ((found - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()


def test_samples_are_the_noises() -> None:
    prior = PixelCNNModule((1, 4, 4), 7, **TINY)
    assert torch.equal(prior.sample(3, Noise(5)), prior.sample(3, Noise(5)))
    assert not torch.equal(prior.sample(3, Noise(5)), prior.sample(3, Noise(6)))


def test_label_and_context_matter() -> None:
    prior = PixelCNNModule((1, 3, 3), 5, context_channels=2, classes=2, **TINY)
    codes, context = torch.randint(5, (1, 1, 3, 3)), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        one, two = (
            prior(codes, Condition(torch.tensor([0]), context)),
            prior(codes, Condition(torch.tensor([1]), context)),
        )
        three = prior(codes, Condition(torch.tensor([0]), context + 1))
    assert (one != two).all()
    assert (one != three).all()


def test_it_says_what_is_missing_or_not_seen() -> None:
    codes, label, context = torch.zeros(1, 1, 2, 2, dtype=torch.int64), torch.tensor([0]), torch.zeros(1, 3, 2, 2)
    plain = PixelCNNModule((1, 2, 2), 4, **TINY)
    conditional = PixelCNNModule((1, 2, 2), 4, classes=2, context_channels=3, **TINY)
    with raises("unconditional"):
        plain(codes, Condition(label))
    with raises("unconditional"):
        plain.sample(1, Noise(0), Condition(label))
    with raises("no-context"):
        plain(codes, Condition(context=context))
    with raises("needs-labels"):
        conditional(codes, Condition(context=context))
    with raises("needs-context"):
        conditional.sample(1, Noise(0), Condition(label))


def test_dropout_is_the_noises_and_of_training_only() -> None:
    prior, codes = PixelCNNModule((1, 4, 4), 5, **TINY), torch.randint(5, (2, 1, 4, 4))
    prior.dropout = 0.5
    with torch.no_grad():
        plain = prior(codes)
        assert torch.equal(prior(codes, noise=Noise(0)), prior(codes, noise=Noise(0)))
        assert not torch.equal(prior(codes, noise=Noise(0)), prior(codes, noise=Noise(1)))
        assert not torch.equal(prior(codes, noise=Noise(0)), plain)
        assert torch.equal(prior.eval()(codes, noise=Noise(0)), plain)


def test_it_learns_what_codes_have_to_do_with_each_other() -> None:
    """Each code repeats its left neighbour, and the first of a row the one above: log 3 nats in all, and no more."""
    prior = PixelCNN(width=16, depth=2).build((1, 4, 4), 3)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    codes = torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    for _ in range(40):
        optimizer.zero_grad()
        (-prior(codes)).sum().backward()
        optimizer.step()
    rate = -prior(codes).sum() / 3
    assert abs(rate.item() - torch.tensor(3.0).log().item()) < 0.2
    assert (prior.sample(8, Noise(0)).flatten(1).float().std(1) == 0).all()
