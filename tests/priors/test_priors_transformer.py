"""The causal transformer: a distribution over grids, drawn as it says, with or without a cache."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from expect import raises
from tessella.core.outputs import Condition, Sampling
from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical
from tessella.foundation.progress import reporting
from tessella.priors import CausalTransformer
from tessella.priors.autoregressive import CausalTransformerModule

SHAPES = [(1, 1, 1), (1, 1, 7), (2, 5, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(shape: tuple[int, ...], codebook_size: int, **more: int) -> CausalTransformerModule:
    """A small one whose codes depend on each other strongly."""
    prior = CausalTransformerModule(shape, codebook_size, **{"width": 16, "depth": 2, **more}).eval()
    with torch.no_grad():
        for exit_ in prior.head.exits:
            exit_.weight.mul_(3)
    return prior


def every(shape: tuple[int, ...], codebook_size: int) -> Tensor:
    """All grids."""
    return torch.tensor(list(itertools.product(range(codebook_size), repeat=math.prod(shape)))).view(-1, *shape)


def slowly(prior: CausalTransformerModule, count: int, noise: Noise, condition: Condition, *, sampling=None) -> Tensor:
    """`sample` without a cache: the whole grid again for each position."""
    uniform = noise.uniform(count, *prior.code_shape).flatten(2)
    codes = torch.zeros(count, *prior.code_shape, dtype=torch.int64)
    for p in range(uniform.shape[-1]):
        features = prior.features(codes, condition)[:, p]
        codes.flatten(2)[..., p] = prior.head.select(
            features, lambda logits, c, p=p: sample_categorical(logits, uniform[:, c, p], sampling)
        )
    return codes


@pytest.mark.parametrize(("shape", "size"), [((1, 2, 2), 2), ((1, 2, 2), 3), ((2, 2, 2), 2), ((2, 1, 2), 3)])
def test_sums_to_one_over_all_grids(shape: tuple[int, ...], size: int) -> None:
    grids = every(shape, size)
    prior = made(shape, size, classes=2, context_channels=3)
    for label in (0, 1):
        context = torch.randn(1, 3, *shape[1:]).expand(len(grids), -1, -1, -1)
        p = prior(grids, Condition(torch.full((len(grids),), label), context)).flatten(1).sum(1).double().exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-5)
        assert p.max() > 3 / len(grids)


def test_each_position_sees_those_before_only() -> None:
    prior = made((2, 2, 3), 5)
    found: list[Tensor] = []
    prior.embed.register_forward_hook(lambda _module, _inputs, vectors: found.append(vectors))
    log_p = prior(torch.randint(0, 5, (1, 2, 2, 3))).flatten(2)
    for p in range(6):
        for c in range(2):
            (gradient,) = torch.autograd.grad(log_p[0, c, p], found[0], retain_graph=True)
            reach = gradient[0].norm(dim=-1)
            assert (reach[p:] == 0).all()
            assert (reach[:p] > 0).all()


@pytest.mark.parametrize("sampling", [None, Sampling(0.7), Sampling(top_k=3), Sampling(top_p=0.8), Sampling(0.0)])
def test_cache_draws_what_recomputing_draws(sampling: Sampling | None) -> None:
    for shape in SHAPES:
        prior = made(shape, 9, classes=3, context_channels=2)
        label, context = torch.tensor([0, 1, 2, 2]), torch.randn(4, 2, *shape[1:])
        told: list[float] = []
        with reporting(lambda at, told=told: told.append(at.done)):
            drawn = prior.sample(4, Noise(1), Condition(label, context), sampling=sampling)
        assert torch.equal(drawn, slowly(prior, 4, Noise(1), Condition(label, context), sampling=sampling))
        assert told == list(range(math.prod(shape[1:]) + 1))
        assert drawn.dtype == torch.int64
        assert not drawn.is_inference()


def test_draws_are_as_frequent_as_they_are_probable() -> None:
    prior = made((1, 2, 2), 2)
    grids = every((1, 2, 2), 2)
    p = prior(grids).flatten(1).sum(1).exp()
    drawn = prior.sample(4000, Noise(3)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    expected = 4000 * p
    statistic = ((drawn.bincount(minlength=16) - expected) ** 2 / expected).sum()
    assert expected.min() > 5
    assert statistic < 44.3  # chi-squared with 15 degrees of freedom: one false alarm in 10 000 seeds


def test_draws_depend_on_the_noise_alone() -> None:
    prior = made((1, 3, 3), 50)
    before = torch.get_rng_state()
    one, again, other = (prior.sample(2, Noise(0, step)) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_label_and_context_matter_at_every_position() -> None:
    prior = made((1, 2, 3), 7, classes=2, context_channels=2)
    codes = torch.randint(0, 7, (1, 1, 2, 3))
    label, context = torch.tensor([0]), torch.randn(1, 2, 2, 3)
    plain = prior(codes, Condition(label, context))
    assert ((prior(codes, Condition(1 - label, context)) - plain).abs() > 1e-4).all()
    assert ((prior(codes, Condition(label, -context)) - plain).abs() > 1e-4).all()


def test_needless_and_missing_labels_are_refused() -> None:
    codes, label = torch.zeros(1, 1, 2, 2, dtype=torch.int64), torch.tensor([0])
    with raises("unconditional"):
        made((1, 2, 2), 3)(codes, Condition(label))
    with raises("needs-labels"):
        made((1, 2, 2), 3, classes=2).sample(1, Noise(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_many_codes_on_odd_grids(shape: tuple[int, ...]) -> None:
    prior = made(shape, 4096)
    codes = torch.randint(0, 4096, (3, *shape))
    log_p = prior(codes)
    assert log_p.shape == codes.shape
    assert log_p.dtype == torch.float32
    assert torch.equal(log_p, prior(codes))
    torch.testing.assert_close(log_p[1:2], prior(codes[1:2]), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough, drawn = prior(codes), prior.sample(3, Noise(0))
    assert rough.dtype == torch.float32
    assert (rough - log_p).abs().max() < 0.3
    assert drawn.shape == codes.shape
    assert drawn.min() >= 0
    assert drawn.max() < 4096


def test_learns_that_rows_repeat() -> None:
    prior = CausalTransformer(width=32, depth=1).build((1, 2, 4), 4).train()
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    for step in range(40):
        row = (4 * Noise(0, step).uniform(64, 1, 1, 4)).long()
        loss = -prior(row.expand(-1, -1, 2, -1), noise=Noise(1, step)).flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    row = (4 * Noise(2).uniform(64, 1, 1, 4)).long()
    rate = -prior.eval()(row.expand(-1, -1, 2, -1)).flatten(1).sum(1).mean().item()
    assert 3.9 * math.log(4) < rate < 4.4 * math.log(4)  # the second row is free
    drawn = prior.sample(64, Noise(3))
    assert (drawn[:, 0, 0] == drawn[:, 0, 1]).float().mean() > 0.9
