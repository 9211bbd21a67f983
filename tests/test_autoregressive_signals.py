"""The autoregressive likelihood of signals: normalised, causal, coded exactly, blind to what is not observed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tessella.core.entropy_coding import AnsStack, SymbolDecoder, SymbolEncoder
from tessella.core.schema import Binary, Integers, Real, Schema, Symbols, Values
from tessella.likelihoods import Autoregressive, LogisticMixture, history, likelihood_for
from tessella.likelihoods.autoregressive import AutoregressiveModule
from tessella.networks import dilated_conv

PCM, MU_LAW = Integers(1 << 16, -32768.0), Integers()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(history, "ORDER", 4)
    monkeypatch.setattr(dilated_conv, "FIRST", 3)


def made(
    values: Values, channels: int, length: int, examples: int = 2, depth: int = 3
) -> tuple[AutoregressiveModule, Tensor]:
    """A likelihood whose samples depend on one another and on the decoder, and a decoder's output for examples."""
    mu_law = values is MU_LAW
    schema = replace(Schema.of((channels, length), values), missing=True, rate=8000.0, mu_law=mu_law)
    components = 3 if values.kind == "integers" and not mu_law else None
    likelihood = Autoregressive(components=components, pixel_width=6, pixel_depth=depth).build(schema)
    with torch.no_grad():
        likelihood.head.exit.weight.mul_(30)
    return likelihood, torch.randn(examples, likelihood.parameter_channels, length)


@pytest.mark.parametrize("log_scale", [-40.0, -9.0, -2.0, 5.0])
@pytest.mark.parametrize("location", [-1.5, -1.0, 0.123456, 1.0])
def test_a_mixture_over_65536_levels_sums_to_one(log_scale: float, location: float) -> None:
    mixture = LogisticMixture(components=2).build(Schema.of((1, 1), PCM))
    parameters = torch.tensor([0.3, -0.2, location, 0.2, log_scale, -3.0], dtype=torch.float64).view(1, 6, 1)
    x = torch.arange(-32768, 32768, dtype=torch.float64).view(-1, 1, 1)
    total = mixture(parameters.expand(len(x), -1, -1)).log_prob(x).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


@pytest.mark.parametrize("values", [Integers(3), Integers(3, -1.0), Binary(), Symbols(3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_all_sequences_of_a_small_alphabet_sum_to_one(values: Values, channels: int) -> None:
    likelihood, parameters = made(values, channels, 4 // channels)
    numbers = [values.low + i for i in range(values.levels)]
    x = torch.tensor(list(product(numbers, repeat=4))).view(-1, channels, 4 // channels)
    for example in parameters:
        p = likelihood(example.expand(len(x), -1, -1)).log_prob(x).exp()
        torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    assert (len(p) * p).std() > 0.01  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("values", [PCM, Integers(256), Binary(), Symbols(5), MU_LAW])
@pytest.mark.parametrize("channels", [1, 2])
def test_signals_are_coded_exactly_at_the_cost_of_their_probability(values: Values, channels: int) -> None:
    likelihood, parameters = made(values, channels, 30)
    p_x = likelihood(parameters)
    x = p_x.sample()
    x[1, :, 20:] = torch.nan
    seen = ~x.isnan().all(1)
    stack = AnsStack()
    encoder = SymbolEncoder(stack)
    p_x.code(encoder, x, seen)
    nats = -p_x.log_prob(x).sum().item()
    assert encoder.bits == pytest.approx(nats / math.log(2), rel=0.01)
    encoder.flush()
    back = p_x.code(SymbolDecoder(stack), None, seen)
    assert torch.equal(back.isnan(), x.isnan())
    assert torch.equal(back.nan_to_num(), x.nan_to_num())


@pytest.mark.parametrize("values", [PCM, Binary(), Real(-3.0, 3.0)])
def test_a_sample_changes_only_what_comes_after(values: Values) -> None:
    likelihood, parameters = made(values, 2, 20)
    x = likelihood(parameters).sample()
    x[:, 0, 0] = 1  # an odd number: on no lattice
    other = x.clone()
    other[..., 9] = values.high + values.low - other[..., 9]
    now, then = (likelihood(parameters).by_position(some) for some in (x, other))
    assert torch.equal(now[:, :9], then[:, :9])
    assert (now[:, 10:] != then[:, 10:]).any()


@pytest.mark.parametrize("values", [PCM, Binary(), Real(-3.0, 3.0)])
def test_missing_samples_cost_nothing_and_say_nothing(values: Values) -> None:
    """A sample behind the end, or in a gap, is marginal: the others are priced alike whatever it was."""
    likelihood, parameters = made(values, 1, 20)
    x = likelihood(parameters).sample()
    x[..., 0] = 1  # an odd number: on no lattice
    partial = x.clone()
    partial[0, :, 15:], partial[1, :, 4:6] = torch.nan, torch.nan
    nats, whole = (likelihood(parameters).by_position(some) for some in (partial, x))
    assert torch.equal(nats == 0, partial[:, 0].isnan())
    torch.testing.assert_close(nats[0, :15], whole[0, :15])
    torch.testing.assert_close(nats[1, :4], whole[1, :4])
    torch.testing.assert_close(nats.sum(1), likelihood(parameters).log_prob(partial))
    gradients = torch.autograd.grad(likelihood(parameters).log_prob(partial).sum(), list(likelihood.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_samples_follow_the_distribution() -> None:
    """Five standard deviations over 81 frequencies: a false alarm in about 1 of 10^4 seeds."""
    likelihood, parameters = made(Integers(3), 1, 4, examples=1)
    x = torch.tensor(list(product(range(3), repeat=4))).view(-1, 1, 4)
    p = likelihood(parameters.expand(81, -1, -1)).log_prob(x).exp()
    drawn = likelihood(parameters).sample((20_000,)).flatten(1)
    found = torch.bincount((drawn @ torch.tensor([27.0, 9.0, 3.0, 1.0])).long(), minlength=81) / 20_000
    assert ((found - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_a_prediction_is_worth_its_bits() -> None:
    """A slow sine of 16 bits costs less than 9.5 bits a sample before anything is learned, zeros less than 5."""
    likelihood = Autoregressive(pixel_width=6, pixel_depth=3).build(Schema.of((1, 400), PCM))
    context = torch.zeros(2, likelihood.parameter_channels, 400)
    wave = (8000 * torch.sin(torch.arange(400) * 0.05)).round()
    x = torch.stack([wave, torch.zeros(400)]).unsqueeze(1)
    bits = -likelihood(context).log_prob(x) / 400 / torch.tensor(2.0).log()
    assert bits[0] < 9.5
    assert bits[1] < 5


def test_sound_of_8_bits_in_16_costs_what_8_bits_cost() -> None:
    likelihood, parameters = made(PCM, 1, 40, examples=4)
    x = likelihood(parameters).sample().div(256).round().mul(256)
    x[..., 0], x[2, :, 30:], x[3, :, 5] = 256.0, torch.nan, 1.0
    p_x = likelihood(parameters)
    nats = p_x.by_position(x)
    assert likelihood.lattice.exponents(x).tolist() == [8, 8, 8, 0]
    torch.testing.assert_close(nats.sum(1), p_x.log_prob(x))
    fine = likelihood.wholes[0](likelihood.conditionals(likelihood.standard(x), p_x.context, torch.full((4,), 8)))
    gained = (nats.sum(1) - fine.by_position(likelihood.standard(x)).flatten(1).sum(1)) / math.log(2)
    assert gained[0] > 6 * 40
    assert gained[2] > 6 * 30
    seen, stack = ~x.isnan().all(1), AnsStack()
    encoder = SymbolEncoder(stack)
    p_x.code(encoder, x, seen)
    assert encoder.bits == pytest.approx(-p_x.log_prob(x).sum().item() / math.log(2), rel=0.01)
    encoder.flush()
    assert torch.equal(p_x.code(SymbolDecoder(stack), None, seen).nan_to_num(), x.nan_to_num())


@pytest.mark.parametrize("e", [0, 7, 8])
def test_values_on_a_lattice_sum_to_one(e: int) -> None:
    """Levels 0 to 511 in steps of 1 (one sample), 128 or 256 (three samples)."""
    likelihood, parameters = made(Integers(512), 1, 3 if e else 1, examples=1)
    steps = torch.arange(0, 512, 2**e).float()
    x = torch.cartesian_prod(*[steps] * parameters.shape[-1]).view(-1, 1, parameters.shape[-1])
    where = torch.full((len(x),), e)
    grid = likelihood.standard(x)
    context = likelihood(parameters.expand(len(x), -1, -1)).context
    p_x = likelihood.wholes[e](likelihood.conditionals(grid, context, where))
    torch.testing.assert_close(p_x.log_prob(grid / 2**e).exp().sum(), torch.tensor(1.0))


def test_silence_at_the_end_of_a_batch_takes_no_time_in_training() -> None:
    torch.manual_seed(0)
    schema = replace(Schema.of((1, 40), Integers(16)), lengths=True)
    likelihood = likelihood_for(schema, Autoregressive(pixel_width=8, pixel_depth=3))
    x = torch.randint(0, 16, (3, 1, 40)).float()
    for row, length in zip(x, (25, 7, 0), strict=True):
        row[:, length:] = torch.nan
    parameters = torch.randn(3, likelihood.parameter_channels, 40)
    seen: list[int] = []
    likelihood.trunk.register_forward_hook(lambda module, given, out: seen.append(out.shape[-1]))  # type: ignore[union-attr]
    nats = [likelihood.train(training)(parameters).by_position(x) for training in (True, False)]
    torch.testing.assert_close(nats[0], nats[1])
    assert sorted(set(seen)) == [25, 40]
