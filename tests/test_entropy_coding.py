"""What is told over a wire comes back, at the price that its probabilities say: for everything that can be coded."""

from __future__ import annotations

import math

import constriction
import numpy as np
import pytest
import torch
from torch import Tensor

from expect import raises
from tessella.core.configs import LikelihoodConfig
from tessella.core.contracts import StoredValues
from tessella.core.entropy_coding import (
    TOTAL,
    AnsStack,
    SymbolDecoder,
    SymbolEncoder,
    code_categorical,
    code_from_cdf,
    quantized_cdf,
)
from tessella.core.outputs import Condition
from tessella.core.schema import UINT8, Binary, Integers, Real, Schema, Symbols
from tessella.foundation.registry import entries, names
from tessella.likelihoods import Autoregressive, LogisticMixture

VALUES = {"binary": Binary(), "uint8": UINT8, "integers": Integers(37, -3.0), "symbols": Symbols(27)}
LIKELIHOODS = [
    pytest.param(entry.name, values, shape, id=f"{entry.name}-{values}-{'x'.join(map(str, shape))}")
    for entry in entries("likelihood")
    for values in entry.values
    if values != "real"
    for shape in ((1, 4, 5), (3, 2, 3), (7,))
]
PRIORS = names("code-prior")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_edges(symbols: int, count: int) -> Tensor:
    cumulated = torch.rand(symbols + 1, count, dtype=torch.float64).pow(4).cumsum(0)
    return quantized_cdf(cumulated)


def sent(tell) -> tuple[np.ndarray, float]:
    """The words that `tell(wire)` makes, and the bits that they should be."""
    stack = AnsStack()
    sender = SymbolEncoder(stack)
    tell(sender)
    bits = sender.bits
    sender.flush()
    return stack.words(), bits


# tables


@pytest.mark.parametrize("symbols", [2, 3, 4, 17, 300])
def test_a_table_sums_to_the_whole_and_makes_nothing_impossible(symbols: int) -> None:
    frequencies = random_edges(symbols, 50).diff(dim=0).long() + 2
    assert (frequencies.sum(0) == TOTAL).all()
    assert (frequencies >= 2).all()


def test_a_table_without_probability_is_a_table() -> None:
    frequencies = quantized_cdf(torch.full((5, 2), 0.3)).diff(dim=0).long() + 2
    assert (frequencies.sum(0) == TOTAL).all()
    assert (frequencies >= 2).all()


@pytest.mark.parametrize("symbols", [2, 3, 4, 17, 300])
def test_a_sender_pushes_what_the_coder_would_push_for_the_whole_table(symbols: int) -> None:
    table, chosen = random_edges(symbols, 2000), torch.randint(0, symbols, (2000,))
    words, bits = sent(lambda wire: wire.code(table, chosen))
    coder = constriction.stream.stack.AnsCoder()  # pyright: ignore[reportAttributeAccessIssue]
    family = constriction.stream.model.Categorical(perfect=False)  # pyright: ignore[reportAttributeAccessIssue]
    weights = (table.diff(dim=0).long() + 1).T.contiguous().numpy().astype(np.float64)
    coder.encode_reverse(chosen.numpy().astype(np.int32), family, weights)
    assert np.array_equal(words, coder.get_compressed())
    assert 0 <= 32 * len(words) - bits <= 64


def test_what_is_no_number_is_not_pushed() -> None:
    with pytest.raises(ValueError, match="is NaN"):
        sent(lambda wire: code_categorical(wire, torch.full((3, 4), math.nan), torch.tensor([0, 1, 3])))


# stacks


def test_what_is_told_comes_back_in_its_order() -> None:
    tables = [random_edges(k, n) for k, n in ((2, 5), (9, 1), (4, 1000))]
    told = [torch.randint(0, len(t) - 1, (t.shape[1],)) for t in tables]
    even = torch.randint(0, 1000, (30,))

    def tell(wire, known: bool) -> list[Tensor]:
        first = [wire.code(t, s if known else None) for t, s in zip(tables, told, strict=True)]
        one = wire.code_uniform(1, 4, torch.zeros(4, dtype=torch.int64) if known else None)
        return [*first, one, wire.code_uniform(1000, 30, even if known else None)]

    words, _ = sent(lambda wire: tell(wire, True))
    stack = AnsStack(words)
    back = tell(SymbolDecoder(stack), False)
    assert all(torch.equal(a, b) for a, b in zip(back, [*told, torch.zeros(4, dtype=torch.int64), even], strict=True))
    assert stack.bits == 0


def test_words_put_under_a_stack_come_last_and_can_be_dropped() -> None:
    table, chosen, first = random_edges(5, 100), torch.randint(0, 5, (100,)), np.arange(1, 4, dtype=np.uint32)
    stack, later = AnsStack(), np.arange(4, 9, dtype=np.uint32)
    stack.add_initial_bits(first)
    sender = SymbolEncoder(stack)
    sender.code(table, chosen)
    sender.flush()
    stack.add_initial_bits(later)
    stack.drop_initial_bits(2)
    assert torch.equal(SymbolDecoder(stack).code(table, None), chosen)
    assert np.array_equal(stack.words(), [*later[2:], *first])


def test_popping_from_random_words_and_pushing_gives_them_back() -> None:
    words = np.random.default_rng(0).integers(1, 1 << 32, 500, dtype=np.uint32)
    stack, table = AnsStack(words), random_edges(7, 900)
    drawn = SymbolDecoder(stack).code(table, None)
    sender = SymbolEncoder(stack)
    sender.code(table, drawn)
    sender.flush()
    assert np.array_equal(stack.words(), words)


def test_a_draw_from_random_words_follows_the_table() -> None:
    """Chi-squared with 3 degrees of freedom stays below 21 but for one seed in 10 000."""
    words = np.random.default_rng(0).integers(1, 1 << 32, 2000, dtype=np.uint32)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = SymbolDecoder(AnsStack(words)).code(
        quantized_cdf(torch.cat([torch.zeros(1), p.cumsum(0)])[:, None].expand(5, 20000)), None
    )
    counts = torch.bincount(drawn, minlength=4)
    assert ((counts - 20000 * p).square() / (20000 * p)).sum() < 21


def test_words_that_are_no_stack_are_refused() -> None:
    with raises("damaged"):
        AnsStack(np.array([7, 0], np.uint32))


def test_an_empty_stack_gives_something() -> None:
    assert (SymbolDecoder(AnsStack()).code(random_edges(4, 10), None) < 4).all()


# split integers


def test_a_split_integer_costs_its_probability() -> None:
    value = torch.arange(256.0)

    def below(t: Tensor) -> Tensor:
        return torch.sigmoid((t - 100) / 9)

    ends = below(value.double())[1:]
    p = torch.diff(torch.cat([torch.zeros(1), ends, torch.ones(1)]).double())
    single, double = torch.float32, torch.float64
    for v, dtype in ((0, single), (100, single), (130, single), (0, double), (255, double)):
        at, zeros = value[v : v + 1].to(dtype), torch.zeros(1, dtype=dtype)
        _, bits = sent(lambda wire, at=at, zeros=zeros: code_from_cdf(wire, below, 8, at, zeros))
        assert bits == pytest.approx(-math.log2(p[v]), rel=1e-3, abs=1e-3)


def test_a_function_that_falls_is_taken_to_be_level() -> None:
    values = torch.arange(256.0)

    def below(t: Tensor) -> Tensor:
        return torch.where(t % 3 == 0, 0.0, 0.5)

    words, _ = sent(lambda wire: code_from_cdf(wire, below, 8, values, torch.zeros(256)))
    assert torch.equal(code_from_cdf(SymbolDecoder(AnsStack(words)), below, 8, None, torch.zeros(256)), values)


# likelihoods


@pytest.mark.parametrize(("name", "values", "shape"), LIKELIHOODS)
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_values_come_back_at_the_price_of_their_likelihood(name: str, values, shape, size: float) -> None:
    likelihood = LikelihoodConfig.chosen(name)().build(Schema.of(shape, VALUES[values])).eval()
    levels, low = VALUES[values].levels, int(VALUES[values].low)
    with torch.inference_mode():
        drawing = likelihood(size * torch.randn(5, likelihood.parameter_channels, *shape[1:]))
        assert isinstance(drawing, StoredValues)
        x = torch.randint(low, low + levels, (5, *shape), dtype=torch.float32)
        if name != "autoregressive" and size == 1:
            x = drawing.sample()
        words, bits = sent(lambda wire: drawing.code(wire, x))
        stack = AnsStack(words)
        back = drawing.code(SymbolDecoder(stack))
        assert torch.equal(back, x.float())
        assert stack.bits == 0
        if size == 1:
            assert bits == pytest.approx(-float(drawing.log_prob(x).double().sum()) / math.log(2), rel=1e-4)


@pytest.mark.parametrize("log_scale", [-1e30, -7.0, 7.0, 1e30])
@pytest.mark.parametrize("location", [-3.0, 0.1, 1e4, -1e30])
def test_bytes_come_back_from_a_logistic_mixture_gone_wild(location: float, log_scale: float) -> None:
    likelihood = LogisticMixture().build(Schema.of((3, 16, 16), "uint8"))
    k = 10
    parameters = torch.randn(1, likelihood.parameter_channels, 16, 16) * 100
    parameters[:, k : 4 * k], parameters[:, 4 * k : 7 * k] = location, log_scale
    x = torch.arange(768).view(1, 3, 16, 16) % 256
    drawing = likelihood(parameters)
    words, _ = sent(lambda wire: drawing.code(wire, x))
    assert torch.equal(drawing.code(SymbolDecoder(AnsStack(words))), x.float())


def test_a_density_is_refused() -> None:
    likelihood = Autoregressive().build(Schema.of((4,), Real(-9, 9), (0.0,), (1.0,)))
    drawing = likelihood(torch.randn(2, likelihood.parameter_channels))
    with raises("density"):
        drawing.code(SymbolEncoder(AnsStack()), torch.zeros(2, 4))


# priors over codes


@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 2)], ids=["one", "three"])
@pytest.mark.parametrize("seeing", [False, True], ids=["blind", "seeing"])
def test_codes_come_back_at_the_price_of_their_prior(kind: str, shape: tuple[int, int, int], seeing: bool) -> None:
    entry = next(e for e in entries("code-prior") if e.name == kind)
    conditions = {"context_channels": 2, "classes": 3} if seeing and kind != "uniform" else {}
    options = {} if kind == "uniform" else {"width": 8, "depth": 1}
    prior = entry.load()(**options).build(shape, 11, **conditions).eval()
    label = torch.tensor([0, 2, 1, 1]) if conditions else None
    context = torch.randn(4, 2, *shape[1:]) if conditions else None
    codes = torch.randint(0, 11, (4, *shape))
    with torch.inference_mode():
        words, bits = sent(lambda wire: prior.code(wire, 4, codes, Condition(label, context)))
        stack = AnsStack(words)
        assert torch.equal(prior.code(SymbolDecoder(stack), 4, None, Condition(label, context)), codes)
        assert stack.bits == 0
        if kind == "masked":
            from tessella.core.rng import Noise

            order = Noise(0, stream="order").uniform(math.prod(shape)).argsort()
            nats = -prior.log_prob_in_order(codes, order, Condition(label, context)).sum()
        else:
            nats = -prior(codes, Condition(label, context)).sum()
    assert bits == pytest.approx(float(nats) / math.log(2), rel=1e-4)


def test_a_masked_prior_tells_many_codes_in_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tessella.foundation.progress import reporting
    from tessella.priors import MaskedTransformer, masked

    monkeypatch.setattr(masked, "CODING_STEPS", 5)
    prior = MaskedTransformer(width=8, depth=1).build((2, 4, 4), 6).eval()
    codes, steps = torch.randint(0, 6, (3, 2, 4, 4)), []
    with reporting(lambda at: steps.append(at.done)):
        words, _ = sent(lambda wire: prior.code(wire, 3, codes))
    assert torch.equal(prior.code(SymbolDecoder(AnsStack(words)), 3), codes)
    assert steps == list(range(6))
