"""Causal convolutions see exactly what comes before, and say the same at once and step by step."""

from __future__ import annotations

import pytest
import torch

from tessella.networks.causal_conv import CausalConv, IncrementalCausalConv

SIZES = [(1, 1), (1, 7), (5, 1), (2, 2), (3, 6), (9, 13)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [0, 3])
def test_the_walk_is_the_network(size: tuple[int, int], context: int) -> None:
    network = CausalConv(2, 6, 3, context=context)
    x = torch.randn(4, 2, *size)
    around = torch.randn(4, context, *size) if context else None
    expected = network(x, around)
    decoder = IncrementalCausalConv(network, 4, *size, around)
    for i in range(size[0]):
        for j in range(size[1]):
            torch.testing.assert_close(decoder.step(), expected[:, :, i, j])
            decoder.append(x[:, :, i, j])


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 2, 5), (4, 3, 1, 1)])
def test_a_context_may_be_the_same_everywhere(shape: tuple[int, ...]) -> None:
    network, x, around = CausalConv(1, 4, 2, context=3), torch.randn(4, 1, 2, 5), torch.randn(shape)
    expected = network(x, around.expand(4, -1, 2, 5))
    torch.testing.assert_close(network(x, around), expected)
    decoder = IncrementalCausalConv(network, 4, 2, 5, around)
    torch.testing.assert_close(decoder.step(), expected[:, :, 0, 0])


def reach(network: CausalConv, size: tuple[int, int], at: tuple[int, int]) -> torch.Tensor:
    """Which positions the features at `at` depend on, `[H, W]` bool."""
    x = torch.randn(1, network.inputs, *size, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, :, at[0], at[1]].square().sum(), x)
    return gradient[0].abs().sum(0) > 0


@pytest.mark.parametrize("at", [(0, 0), (0, 6), (3, 0), (4, 3), (6, 6)])
def test_all_that_comes_before_is_seen_and_nothing_else(at: tuple[int, int]) -> None:
    """On a grid within reach of the layers there is no blind spot (van den Oord et al. 2016, figure 1)."""
    seen = reach(CausalConv(2, 8, 5), (7, 7), at)
    number = torch.arange(49).view(7, 7)
    assert torch.equal(seen, number < number[at])


def test_context_is_seen_at_every_position() -> None:
    network = CausalConv(1, 4, 2, context=2)
    around = torch.randn(1, 2, 3, 3, requires_grad=True)
    features = network(torch.randn(1, 1, 3, 3), around)
    (gradient,) = torch.autograd.grad(features[0, :, 1, 1].square().sum(), around)
    assert gradient[0, :, 1, 1].abs().min() > 0


def test_examples_do_not_mix() -> None:
    network, x = CausalConv(1, 4, 2), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_what_is_not_kept_adds_nothing() -> None:
    network, x = CausalConv(1, 4, 2), torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(network(x, keep=torch.ones(3, 2, 8)), network(x))
    keep = torch.zeros(3, 2, 8)
    keep[1:] = 1
    dropped = network(x, keep=keep)
    torch.testing.assert_close(dropped[1:], network(x[1:]))
    network.layers = torch.nn.ModuleList()
    torch.testing.assert_close(dropped[:1], network(x[:1]))


def test_it_runs_in_autocast() -> None:
    network, x = CausalConv(3, 16, 2, context=4), torch.randn(2, 3, 8, 8)
    around = torch.randn(2, 4, 8, 8)
    expected = network(x, around)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(x, around)
        decoder = IncrementalCausalConv(network, 2, 8, 8, around)
        torch.testing.assert_close(decoder.step(), expected[:, :, 0, 0])
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(features.float(), expected, atol=0.05, rtol=0.05)
