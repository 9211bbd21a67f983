"""Numbers of examples' own keys: distributed as they should be, and a function of the key alone.

False alarms: every bound is at a p-value of 1e-6 or rarer for other seeds, and the seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tessella.core.rng import Noise, example_keys

RARE = 1e-6


def keys(count: int, seed: int = 0) -> Tensor:
    return example_keys(torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)))


def test_normals_and_uniforms_are_such() -> None:
    source = Noise(3, stream="test").of(keys(2_000))
    z, u = source.normal(2_000, 50).double(), source.uniform(2_000, 50)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > RARE
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > RARE
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = float(z.pow(power).mean()) - moment
        assert abs(error) < stats.norm.isf(RARE / 2) * (variance / z.numel()) ** 0.5, power
    rows = z.square().sum(1).numpy()  # each example's own numbers, too
    assert stats.kstest(rows, stats.chi2(50).cdf).pvalue > RARE


@pytest.mark.parametrize("other", ["row", "draw", "stream", "step", "seed", "later"])
def test_what_differs_in_anything_is_independent(other: str) -> None:
    few = torch.arange(4_000)  # keys beside each other are the hardest to keep apart
    source = Noise(0, 0, "a").of(few)
    first = source.normal(4_000, 8)
    second = {
        "row": first.roll(1, 0),
        "draw": source.from_draw(1).normal(4_000, 8),
        "stream": source.split("b").normal(4_000, 8),
        "step": Noise(0, 1, "a").of(few).normal(4_000, 8),
        "seed": Noise(1, 0, "a").of(few).normal(4_000, 8),
        "later": source.normal(4_000, 8),
    }[other]
    cross = first.T.double() @ second.double() / 4_000**0.5  # each about N(0, 1)
    assert float(cross.abs().max()) < stats.norm.isf(RARE / 2 / cross.numel())
    squares = ((first.square() - 1).T.double() @ (second.square() - 1).double()) / (2 * 4_000**0.5)
    assert float(squares.abs().max()) < 1.3 * stats.norm.isf(RARE / 2 / cross.numel()), "their tails are heavier"


def test_numbers_are_a_function_of_the_key_alone() -> None:
    of, order = keys(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    source = Noise(5, stream="test")
    whole, permuted, alone = source.of(of), source.of(of[order]), source.of(of[7:8])
    for draw in ("normal", "uniform", "normal"):  # a source that is drawn from again goes on
        every = getattr(whole, draw)(40, 3, 2)
        assert torch.equal(getattr(permuted, draw)(40, 3, 2), every[order])
        assert torch.equal(getattr(alone, draw)(1, 3, 2), every[7:8])
    assert torch.equal(source.of(of).split("x").spread(40)[order], source.of(of[order]).split("x").spread(40))


def test_several_draws_of_an_example_are_the_same_in_one_pass_or_several() -> None:
    source = Noise(5, stream="test").of(keys(6))
    together = source.normal(6 * 5, 4).unflatten(0, (6, 5))
    first = source.from_draw(0).normal(6 * 2, 4).unflatten(0, (6, 2))
    rest = source.from_draw(2).normal(6 * 3, 4).unflatten(0, (6, 3))
    assert torch.equal(torch.cat([first, rest], 1), together)
    assert len(together.flatten(0, 1)[:, 0].unique()) == 30
    with pytest.raises(ValueError, match="7 rows are not a multiple of the 6"):
        source.normal(7, 4)


def test_keys_are_of_what_is_stored_wherever_it_lies() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4)).astype(np.uint8))
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(example_keys(strided), example_keys(x))
    assert torch.equal(example_keys(x[2:3]), example_keys(x)[2:3])
    assert len(example_keys(x).unique()) == 5
