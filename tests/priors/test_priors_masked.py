"""The any-order transformer: a distribution in every order, its bound estimated without bias, codes filled in."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from expect import raises
from tessella.core.outputs import UNCONDITIONAL, Condition, Sampling
from tessella.core.rng import Noise
from tessella.foundation.progress import reporting
from tessella.priors import MaskedTransformer, masked
from tessella.priors.masked import MaskedTransformerModule

SHAPES = [(1, 1, 1), (1, 1, 7), (2, 5, 3)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(shape: tuple[int, ...], codebook_size: int, **more: int) -> MaskedTransformerModule:
    """A small one whose codes depend on each other strongly, and on the order."""
    prior = MaskedTransformerModule(shape, codebook_size, **{"width": 16, "depth": 2, **more}).eval()
    with torch.no_grad():
        for head in prior.heads:
            head.exits[0].weight.mul_(3)
    return prior


def every(shape: tuple[int, ...], codebook_size: int) -> Tensor:
    """All grids."""
    return torch.tensor(list(itertools.product(range(codebook_size), repeat=math.prod(shape)))).view(-1, *shape)


def in_all_orders(prior: MaskedTransformerModule, codes: Tensor) -> Tensor:
    """log p of whole grids in each order, `[D!, B]`."""
    orders = torch.tensor(list(itertools.permutations(range(codes[0].numel()))))
    many = codes.repeat_interleave(len(orders), 0)
    nats = prior.log_prob_in_order(many, orders.repeat(len(codes), 1)).flatten(1).sum(1)
    return nats.view(len(codes), len(orders)).T


@torch.no_grad()
def by_all_subsets(prior: MaskedTransformerModule, codes: Tensor) -> Tensor:
    """The any-order bound `[B, C, h, w]`: each t and each set of t known codes, weighted as often as they come."""
    places, total = codes[0].numel(), torch.zeros(codes.shape)
    for t in range(places):
        for chosen in itertools.combinations(range(places), t):
            known = torch.zeros(places, dtype=torch.bool)
            known[list(chosen)] = True
            known = known.view(codes.shape[1:]).expand_as(codes)
            weight = 1 / places / math.comb(places, t) * places / (places - t)
            total += weight * prior._log_prob(codes, known, ~known, UNCONDITIONAL)
    return total


@pytest.mark.parametrize(("shape", "size"), [((1, 2, 2), 2), ((1, 2, 2), 3), ((2, 2, 2), 2), ((2, 1, 2), 3)])
def test_sums_to_one_over_all_grids_in_any_order(shape: tuple[int, ...], size: int) -> None:
    grids = every(shape, size)
    prior = made(shape, size, classes=2, context_channels=3)
    label = torch.ones(len(grids), dtype=torch.int64)
    context = torch.randn(1, 3, *shape[1:]).expand(len(grids), -1, -1, -1)
    answers: list[Tensor] = []
    for order in torch.tensor(list(itertools.permutations(range(math.prod(shape)))))[::7][:4]:
        answers.append(prior.log_prob_in_order(grids, order, Condition(label, context)).flatten(1).sum(1).exp())
        assert answers[-1].double().sum().item() == pytest.approx(1, abs=1e-5)
        assert answers[-1].max() > 2 / len(grids)
    assert (answers[0] - answers[1]).abs().max() > 1e-4


def test_order_is_what_it_says() -> None:
    prior = made((2, 1, 2), 5)
    codes, order = torch.randint(0, 5, (3, 2, 1, 2)), torch.tensor([2, 0, 3, 1])
    found = prior.log_prob_in_order(codes, order).flatten(1)
    known = torch.zeros(3, 4, dtype=torch.bool)
    for place in order:
        seen = known.view(codes.shape)
        expected = prior._log_prob(codes, seen, ~seen, UNCONDITIONAL).flatten(1)[:, place]
        torch.testing.assert_close(found[:, place], expected)
        known[:, place] = True
    own = torch.stack([order, order.flip(0), order.roll(1)])
    for i in range(3):
        alone = prior.log_prob_in_order(codes[i : i + 1], own[i])
        torch.testing.assert_close(prior.log_prob_in_order(codes, own)[i : i + 1], alone)


def test_orders_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = made((1, 2, 3), 4, classes=2)
    codes, order, label = torch.randint(0, 4, (3, 1, 2, 3)), torch.randperm(6), torch.tensor([0, 1, 0])
    whole = prior.log_prob_in_order(codes, order, Condition(label))
    for positions in (1, 18, 75):
        monkeypatch.setattr(masked, "POSITIONS", positions)
        torch.testing.assert_close(prior.log_prob_in_order(codes, order, Condition(label)), whole)


def test_bound_is_the_average_over_all_orders() -> None:
    prior, grids = made((2, 1, 2), 2), every((2, 1, 2), 2)
    averaged = in_all_orders(prior, grids).mean(0)
    torch.testing.assert_close(by_all_subsets(prior, grids).flatten(1).sum(1), averaged)


@torch.no_grad()
def test_draws_of_the_bound_are_unbiased() -> None:
    prior = made((2, 1, 3), 3)
    grids = torch.randint(0, 3, (4, 2, 1, 3))
    exact = by_all_subsets(prior, grids)
    many = grids.repeat(1500, 1, 1, 1)
    terms = prior(many, noise=Noise(0)).view(1500, *grids.shape)
    # 28 numbers off by 5 standard errors: one false alarm in 60 000 seeds. Sums first, then code by code.
    for found, expected in ((terms.flatten(2).sum(2), exact.flatten(1).sum(1)), (terms, exact)):
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / 1500**0.5).all()
        assert (found.std(0) > 0.1).all()


@torch.no_grad()
def test_without_noise_the_bound_is_estimated_without_bias() -> None:
    prior, grids = made((1, 1, 5), 3), every((1, 1, 5), 3)
    exact, spread = by_all_subsets(prior, grids), []
    for prior.passes in (1, 3, 5, 50):
        error = (prior(grids) - exact).flatten(1).sum(1)
        # The mean of 243 grids' errors, off by 4.5 standard errors: one false alarm in 150 000 seeds.
        assert error.mean().abs() < 4.5 * error.std() / len(grids) ** 0.5
        spread.append(error.std().item())
    assert spread[0] > 1.3 * spread[1] > 1.3 * 1.1 * spread[2]
    assert spread[2] == spread[3]  # each t once is the most there is


def test_without_noise_an_example_s_bound_is_its_own() -> None:
    prior = made((1, 3, 3), 5)
    codes = torch.randint(0, 5, (6, 1, 3, 3))
    found = prior(codes)
    assert torch.equal(found, prior(codes))
    torch.testing.assert_close(prior(codes[[4, 1]]), found[[4, 1]])


def test_known_codes_cost_nothing_and_their_number_is_spread_evenly() -> None:
    prior = made((1, 4, 4), 5)
    codes = torch.randint(0, 5, (16, 1, 4, 4))
    for seed in range(3):
        unknown = (prior(codes, noise=Noise(seed)) != 0).flatten(1).sum(1)
        assert sorted(unknown.tolist()) == list(range(1, 17))


def test_processes_draw_what_one_would_draw() -> None:
    prior = made((1, 2, 3), 5)
    codes = torch.randint(0, 5, (6, 1, 2, 3))
    parts = [prior(codes[3 * r : 3 * r + 3], noise=Noise(0, 1, rank=r, world=2)) for r in range(2)]
    torch.testing.assert_close(torch.cat(parts), prior(codes, noise=Noise(0, 1)))


@pytest.mark.parametrize("steps", [4, 100])
def test_draws_one_by_one_are_as_frequent_as_they_are_probable(steps: int) -> None:
    prior = made((2, 1, 2), 2)
    prior.steps = steps
    p = in_all_orders(prior, every((2, 1, 2), 2)).exp().mean(0)
    drawn = prior.sample(4000, Noise(3)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    expected = 4000 * p
    assert expected.min() > 5
    assert ((drawn.bincount(minlength=16) - expected) ** 2 / expected).sum() < 44.3  # chi-squared(15): 1 in 10 000


def test_filling_one_by_one_is_conditional_on_what_is_known() -> None:
    prior = MaskedTransformer(width=16, depth=2).build((1, 2, 2), 3).eval()
    known = torch.tensor([False, True, False, True]).view(1, 1, 2, 2).expand(4000, -1, -1, -1)
    codes = torch.tensor([7, 2, -1, 0]).view(1, 1, 2, 2).expand(4000, -1, -1, -1)
    prior.steps = 2
    drawn = prior.inpaint(codes, known, Noise(4))
    assert torch.equal(drawn[known], codes[known])
    grids = torch.tensor([[a, 2, b, 0] for a in range(3) for b in range(3)]).view(-1, 1, 2, 2)
    found = [prior.log_prob_in_order(grids, torch.tensor(o)).flatten(1) for o in ([1, 3, 0, 2], [3, 1, 2, 0])]
    p = torch.stack([nats[:, [0, 2]].sum(1).exp() for nats in found]).mean(0)
    expected = 4000 * p
    counts = (3 * drawn[:, 0, 0, 0] + drawn[:, 0, 1, 0]).bincount(minlength=9)
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 31.8  # chi-squared(8): 1 in 10 000


def test_any_set_of_codes_is_filled_in() -> None:
    prior = made((2, 3, 5), 11, classes=2, context_channels=2)
    codes, label = torch.randint(0, 11, (5, 2, 3, 5)), torch.tensor([0, 1, 0, 1, 0])
    context = torch.randn(5, 2, 3, 5)
    known = torch.rand(5, 2, 3, 5) < torch.tensor([0.0, 0.3, 0.9, 1.0, 0.5])[:, None, None, None]
    hidden = torch.where(known, codes, -3)
    for steps in (1, 4, 1000):
        told: list[float] = []
        prior.steps = steps
        with reporting(lambda at, told=told: told.append(at.done)):
            drawn = prior.inpaint(hidden, known, Noise(0), Condition(label, context))
        assert torch.equal(drawn[known], codes[known])
        assert torch.equal(drawn[3], codes[3])
        assert 0 <= drawn.min() <= drawn.max() < 11
        assert told == list(range(min(steps, 30) + 1))
        assert torch.equal(hidden, torch.where(known, codes, -3))
    assert torch.equal(prior.inpaint(codes, torch.ones_like(known), Noise(0), Condition(label, context)), codes)


def test_few_steps_draw_every_code_once() -> None:
    prior = made((1, 8, 8), 5)
    seen: list[int] = []
    prior.embed.register_forward_pre_hook(lambda _module, given: seen.append(int((given[0][0] == 5).sum())))
    prior.sample(2, Noise(0))
    assert len(seen) == prior.steps == 12
    drawn = [before - after for before, after in itertools.pairwise([*seen, 0])]
    assert seen[0] == sum(drawn) == 64
    cosine = [math.ceil(64 * (1 - math.cos(math.pi * i / 24))) for i in range(1, 13)]
    assert list(itertools.accumulate(drawn)) == cosine


def test_draws_depend_on_the_noise_alone() -> None:
    prior = made((1, 3, 3), 50)
    before = torch.get_rng_state()
    one, again, other = (prior.sample(2, Noise(0, step)) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    prior(one)
    prior(one, noise=Noise(0))
    assert torch.equal(before, torch.get_rng_state())


def test_temperature_zero_draws_the_likeliest() -> None:
    prior = made((1, 1, 1), 6)
    p = prior.log_prob_in_order(every((1, 1, 1), 6), torch.tensor([0])).flatten()
    assert prior.sample(3, Noise(0), sampling=Sampling(0.0)).flatten().tolist() == [p.argmax().item()] * 3


def test_label_and_context_matter_for_every_code() -> None:
    prior = made((1, 2, 3), 7, classes=2, context_channels=2)
    codes, order = torch.randint(0, 7, (1, 1, 2, 3)), torch.randperm(6)
    label, context = torch.tensor([0]), torch.randn(1, 2, 2, 3)
    plain = prior.log_prob_in_order(codes, order, Condition(label, context))
    assert ((prior.log_prob_in_order(codes, order, Condition(1 - label, context)) - plain).abs() > 1e-4).all()
    assert ((prior.log_prob_in_order(codes, order, Condition(label, -context)) - plain).abs() > 1e-4).all()


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
    with torch.no_grad():
        log_p, terms = prior(codes), prior(codes, noise=Noise(0))
        with torch.autocast("cpu", torch.bfloat16):
            rough, drawn = prior(codes), prior.sample(3, Noise(0))
    assert log_p.shape == terms.shape == codes.shape
    assert log_p.dtype == terms.dtype == rough.dtype == torch.float32
    assert log_p.flatten(1).sum(1).max() < 0
    torch.testing.assert_close(rough, log_p, rtol=0.05, atol=0.3)
    assert drawn.shape == codes.shape
    assert 0 <= drawn.min() <= drawn.max() < 4096


def test_learns_that_rows_repeat() -> None:
    prior = MaskedTransformer(width=32, depth=1).build((1, 2, 4), 4).train()
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    for step in range(60):
        row = (4 * Noise(0, step).uniform(64, 1, 1, 4)).long()
        loss = -prior(row.expand(-1, -1, 2, -1), noise=Noise(1, step)).flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    row = (4 * Noise(2).uniform(64, 1, 1, 4)).long()
    rate = -prior.eval()(row.expand(-1, -1, 2, -1)).flatten(1).sum(1).mean().item()
    assert 3.8 * math.log(4) < rate < 4.8 * math.log(4)  # one of two is free
    codes = row.expand(-1, -1, 2, -1)
    known = torch.tensor([[True, False, True, False], [False, True, False, True]]).expand(64, 1, 2, 4)
    prior.steps = 2
    filled = prior.inpaint(torch.where(known, codes, 0), known, Noise(3))
    assert (filled == codes).float().mean() > 0.95
