"""Draws follow their probabilities, and cut-offs cut off what they say."""

from __future__ import annotations

import pytest
import torch

from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical

DRAWS = 20_000


def frequencies(logits: torch.Tensor, sampling: Sampling | None = None) -> torch.Tensor:
    drawn = sample_categorical(logits.expand(DRAWS, -1), Noise(0).uniform(DRAWS), sampling)
    return torch.bincount(drawn, minlength=logits.numel()) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    """Five standard deviations: a false alarm in about 1 of 10^5 seeds (21 frequencies of 2-sided 6e-7)."""
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, 2.5, -torch.inf, 0.0])
    expected = (logits / temperature).softmax(0)
    off = (frequencies(logits, Sampling(temperature)) - expected).abs()
    assert (off <= 5 * (expected * (1 - expected) / DRAWS).sqrt()).all()


def test_the_distribution_function_is_inverted_exactly() -> None:
    logits = torch.tensor([0.25, 0.25, 0.0, 0.5, 0.0]).log()
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 1 - 2**-24])
    assert sample_categorical(logits.expand(6, -1), uniform).tolist() == [0, 0, 1, 1, 3, 3]


def test_temperature_zero_and_top_one_are_the_likeliest() -> None:
    logits = Noise(1).normal(50, 3, 9)
    uniform = Noise(2).uniform(50, 3)
    expected = logits.argmax(-1)
    for sampling in (Sampling(0.0), Sampling(1e-30), Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(0.01, 1, 0.5)):
        assert torch.equal(sample_categorical(logits, uniform, sampling), expected)


def test_top_k_keeps_the_k_likeliest_rescaled() -> None:
    """Five standard deviations, as above."""
    logits = torch.tensor([0.3, 2.0, 1.0, -1.0, 1.5])
    found = frequencies(logits, Sampling(top_k=3))
    expected = logits.masked_fill(torch.tensor([True, False, False, True, False]), -torch.inf).softmax(0)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / DRAWS).sqrt()).all()


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, {3}), (0.41, {3, 0}), (0.69, {3, 0}), (0.71, {3, 0, 4}), (1.0, {0, 1, 2, 3, 4})]
)
def test_top_p_keeps_the_smallest_set_that_holds_p(top_p: float, kept: set[int]) -> None:
    p = torch.tensor([0.3, 0.05, 0.05, 0.4, 0.2])
    found = frequencies(p.log(), Sampling(top_p=top_p))
    assert set(found.nonzero().flatten().tolist()) == kept
    expected = torch.where(found > 0, p, 0) / p[list(kept)].sum()
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / DRAWS).sqrt()).all()


def test_both_cut_offs_hold() -> None:
    p = torch.tensor([0.3, 0.05, 0.05, 0.4, 0.2])
    assert set(frequencies(p.log(), Sampling(top_k=4, top_p=0.6)).nonzero().flatten().tolist()) == {0, 3}
    assert set(frequencies(p.log(), Sampling(top_k=1, top_p=0.9)).nonzero().flatten().tolist()) == {3}


def test_bfloat16_logits_are_drawn_from_in_float32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    uniform = torch.tensor([0.75])
    assert sample_categorical(logits, uniform).item() == 3072
