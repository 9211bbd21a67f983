"""The interlaced likelihood: normalisation, order, the two gradients, any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tessella.core.entropy_coding import AnsStack, SymbolEncoder
from tessella.core.schema import Integers, Schema
from tessella.likelihoods import Interlaced, LogisticMixture, interlaced
from tessella.likelihoods.interlaced import InterlacedModule

SHAPES = [(1, 16, 16), (3, 17, 19), (2, 33), (1, 8, 30)]


def made(shape: tuple[int, ...], levels: int = 256, seed: int = 0) -> InterlacedModule:
    """Make a likelihood with weights far from the initial ones."""
    torch.manual_seed(seed)
    likelihood = Interlaced(components=3, pixel_width=6).build(Schema.of(shape, Integers(levels)))
    assert isinstance(likelihood, InterlacedModule)
    with torch.no_grad():
        for weight in likelihood.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return likelihood.eval()


def drawn(likelihood: InterlacedModule, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Draw parameters and stored values."""
    shape, levels = likelihood.schema.shape, likelihood.schema.values.levels
    parameters = torch.randn(batch, likelihood.parameter_channels, *shape[1:])
    return parameters, torch.randint(0, levels, (batch, *shape))


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 3, 3), 2), ((2, 2, 2), 2), ((1, 2, 3), 3), ((1, 9), 2), ((2, 4), 2), ((1, 5), 4)],
    ids=str,
)
def test_probabilities_sum_to_one(shape: tuple[int, ...], levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interlaced, "SMALLEST", 1)
    likelihood = made(shape, levels)
    assert len(likelihood.levels) >= 1
    parameters, _ = drawn(likelihood, 1)
    every = torch.tensor(list(itertools.product(range(levels), repeat=likelihood.schema.dims))).reshape(-1, *shape)
    with torch.no_grad():
        nats = likelihood(parameters.expand(len(every), *parameters.shape[1:])).log_prob(every)
    assert nats.double().exp().sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 13), (3, 6, 5)])
def test_writing_tells_log_p_too(shape: tuple[int, ...]) -> None:
    likelihood = made(shape).eval()
    p, x = drawn(likelihood)
    p_x, encoder = likelihood(p), SymbolEncoder(AnsStack())
    nats = p_x.encode(encoder, x)
    torch.testing.assert_close(nats, p_x.log_prob(x).double())
    assert encoder.bits * math.log(2) == pytest.approx(-float(nats.sum()), rel=1e-3)


def test_draws_have_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared of 512 cells; false alarm below 1e-4."""
    monkeypatch.setattr(interlaced, "SMALLEST", 1)
    likelihood, count = made((1, 3, 3), 2, seed=1), 40_000
    parameters, _ = drawn(likelihood, 1)
    every = torch.tensor(list(itertools.product(range(2), repeat=9))).reshape(-1, 1, 3, 3)
    with torch.no_grad():
        expected = count * likelihood(parameters.expand(512, -1, -1, -1)).log_prob(every).exp()
        draws = likelihood(parameters).sample((count,)).reshape(count, 9)
    found = torch.bincount((draws.long() * 2 ** torch.arange(8, -1, -1)).sum(1), minlength=512)
    rare = expected < 5
    chi = ((found - expected)[~rare].square() / expected[~rare]).sum()
    if rare.any():
        chi = chi + (found[rare].sum() - expected[rare].sum()).square() / expected[rare].sum()
    cells = int((~rare).sum())
    assert chi < cells + 4 * (2 * cells) ** 0.5 + 16


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_position_depends_on_those_before_it_only(shape: tuple[int, ...]) -> None:
    likelihood = made(shape)
    parameters, x = drawn(likelihood, 1)
    before = likelihood(parameters).by_position(x)
    stride, places = 2 ** len(likelihood.levels), torch.ones(shape[1:], dtype=torch.bool)
    places[tuple(slice(None, None, stride) for _ in shape[1:])] = False  # the coarsest lattice keeps its values
    changed = torch.where(places, (x + 128) % 256, x)
    after = likelihood(parameters).by_position(changed)
    assert torch.equal(after[0][~places], before[0][~places])
    assert not torch.isclose(after[0][places], before[0][places]).all()
    alone = likelihood.mixture(parameters).by_position(x)
    assert torch.equal(before[0][~places], alone[0][~places])
    odd = torch.ones(shape[1:], dtype=torch.bool)
    odd[tuple(slice(None, None, 2) for _ in shape[1:])] = False  # changing the finest leaves all coarser ones alone
    after = likelihood(parameters).by_position(torch.where(odd, (x + 128) % 256, x))
    assert torch.equal(after[0][~odd], before[0][~odd])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_teaches_the_decoder_by_independent_positions(shape: tuple[int, ...]) -> None:
    """The value is log p always; the decoder's gradient is that of independent positions, the networks' that of p."""
    likelihood = made(shape)
    parameters, x = drawn(likelihood)
    networks = [p for p in likelihood.parameters() if p.requires_grad]

    def gradients(training: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        p = parameters.clone().requires_grad_()
        nats = likelihood.train(training)(p).log_prob(x)
        by_decoder, *by_networks = torch.autograd.grad(nats.sum(), [p, *networks])
        return nats.detach(), by_decoder, tuple(by_networks)

    nats, by_decoder, by_networks = gradients(training=True)
    exact, by_exact, by_same = gradients(training=False)
    torch.testing.assert_close(nats, exact)
    for some, same in zip(by_networks, by_same, strict=True):
        torch.testing.assert_close(some, same)
    p = parameters.clone().requires_grad_()
    (by_independent,) = torch.autograd.grad(likelihood.mixture(p).log_prob(x).sum(), p)
    torch.testing.assert_close(by_decoder, by_independent)
    assert not torch.allclose(by_exact, by_independent)


def test_gradient_of_the_bound_is_that_of_differences() -> None:
    """In evaluation mode, by which the gap optimises z."""
    likelihood = made((1, 8, 8)).double()
    parameters, x = drawn(likelihood, 1)
    assert torch.autograd.gradcheck(
        lambda p: likelihood(p).log_prob(x), parameters.double().requires_grad_(), fast_mode=True
    )


def test_small_data_and_vectors_are_independent() -> None:
    for shape in ((7,), (1, 5, 5), (2, 7)):
        schema = Schema.of(shape, "uint8")
        likelihood = Interlaced().build(schema).eval()
        parameters, x = torch.randn(2, likelihood.parameter_channels, *shape[1:]), torch.randint(0, 256, (2, *shape))
        expected = LogisticMixture(components=5).build(schema)(parameters)
        assert torch.equal(likelihood(parameters).log_prob(x), expected.log_prob(x))


def test_smooth_pictures_cost_less_than_independent_positions() -> None:
    """At the initial weights already, because locations start at the neighbours' mean."""
    likelihood = Interlaced().build(Schema.of((3, 32, 32), "uint8")).eval()
    bias = likelihood.initial_bias()
    assert bias is not None
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    x = torch.stack([4 * rows, 4 * columns, 2 * (rows + columns)])[None] + torch.randint(-3, 4, (1, 3, 32, 32)) + 20
    assert isinstance(likelihood, InterlacedModule)
    p_x = likelihood(bias.reshape(1, -1, 1, 1).expand(1, -1, 32, 32))
    independent = likelihood.mixture(bias.reshape(1, -1, 1, 1).expand(1, -1, 32, 32))
    assert p_x.log_prob(x) > independent.log_prob(x) + 3 * 1024 * 0.5
