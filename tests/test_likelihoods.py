"""Each likelihood is a distribution over the stored values: it sums to one, and its sampler and mean agree with it.

Random tests are seeded; those that compare draws with probabilities say how often they would fail by chance.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional as F

from expect import raises
from tessella.core.configs import LikelihoodConfig
from tessella.core.entropy_coding import AnsStack, SymbolDecoder, SymbolEncoder
from tessella.core.schema import Integers, Real, Schema
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import entries, find
from tessella.likelihoods import (
    MADE,
    Bernoulli,
    Categorical,
    FixedGaussian,
    Gaussian,
    LogisticMixture,
    likelihood_for,
    logistic,
)
from tessella.likelihoods.independent import BernoulliModule, GaussianModule
from tessella.likelihoods.interlaced import InterlacedModule
from tessella.likelihoods.logistic import LogisticMixtureModule
from tessella.testing.examples import VALUES

PICTURE, VECTOR = (3, 4, 5), (6,)
FALSE_ALARM = 1e-4

CASES = [
    pytest.param(entry.name, values, shape, id=f"{entry.name}-{len(shape)}d")
    for entry in entries("likelihood")
    for values in entry.values
    for shape in (PICTURE, VECTOR)
]


CLOSED = [case for case in CASES if case.values[0] != "autoregressive"]
"""Those that are a formula of their parameters, without a network of their own."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def schema_of(values: str, shape: tuple[int, ...]) -> Schema:
    if values == "real":
        numbers = range(shape[0])
        return Schema.of(shape, values, tuple(0.5 * i for i in numbers), tuple(1.0 + i for i in numbers))
    return Schema.of(shape, VALUES[values])


def random_parameters(likelihood, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, likelihood.parameter_channels, *likelihood.schema.shape[1:], dtype=dtype)


def logistic_mixture(channels: int, mixtures: int) -> LogisticMixtureModule:
    return LogisticMixture(components=mixtures).build(Schema.of((channels, 1, 1), "uint8"))


def all_bytes(channels: int) -> Tensor:
    """Every pixel of so many channels, `[256 ** channels, channels, 1, 1]`."""
    return torch.cartesian_prod(*[torch.arange(256)] * channels).reshape(-1, channels, 1, 1)


def extreme_parameters(likelihood: LogisticMixtureModule) -> list[Tensor]:
    """Parameters that a diverging network might give, `[1, P, 1, 1]` each."""
    k, c = likelihood.mixtures, likelihood.channels
    cases = [torch.randn(1, likelihood.parameter_channels, 1, 1) * size for size in (1.0, 5.0, 100.0, 1e30)]
    for location, log_scale in itertools.product((-3.0, 0.1, 1.0, 1e4, -1e30), (-1e30, -7.0, 0.0, 7.0, 1e30)):
        parameters = torch.randn(1, likelihood.parameter_channels, 1, 1)
        parameters[:, k : k + k * c] = location
        parameters[:, k + k * c : k + 2 * k * c] = log_scale
        cases.append(parameters)
    return cases


def reference(parameters: Tensor, x: Tensor, mixtures: int) -> Tensor:
    """The formula of `LogisticMixture`'s docstring, by autograd and without care for cancellation: for float64."""
    channels = x.shape[1]
    blocks = parameters.view(len(x), -1, mixtures, *x.shape[2:])
    y = x.to(parameters.dtype) / 127.5 - 1
    total = blocks[:, 0].log_softmax(1)
    for c in range(channels):
        location = blocks[:, 1 + c]
        for j in range(c):
            location = location + blocks[:, 1 + 2 * channels + c * (c - 1) // 2 + j].tanh() * y[:, j, None]
        scale = blocks[:, 1 + channels + c].clamp(-7, 7).exp()
        upper = torch.sigmoid((y[:, c, None] + 1 / 255 - location) / scale)
        lower = torch.sigmoid((y[:, c, None] - 1 / 255 - location) / scale)
        upper = torch.where(x[:, c, None] == 255, 1.0, upper)
        lower = torch.where(x[:, c, None] == 0, 0.0, lower)
        total = total + torch.log(upper - lower)
    return total.logsumexp(1).flatten(1).sum(1)


def chi_square(draws: Tensor, probability: Tensor) -> float:
    """The p-value of so many draws of cell numbers; cells expected fewer than 10 times are put together."""
    expected = probability.double() * len(draws)
    seen = torch.bincount(draws, minlength=len(probability)).double()
    rare = expected < 10
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    kept = expected > 0
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    return float(chi2.sf(statistic.item(), int(kept.sum()) - 1))


# The contract, for every entry of the catalogue


@pytest.mark.parametrize(("name", "values", "shape"), CASES)
def test_keeps_the_contract(name: str, values: str, shape: tuple[int, ...]) -> None:
    schema = schema_of(values, shape)
    likelihood = LikelihoodConfig.chosen(name)().build(schema)
    parameters = random_parameters(likelihood).requires_grad_()
    distribution = likelihood(parameters)
    assert distribution.batch_shape == (4,)
    assert distribution.event_shape == shape
    x = distribution.sample()
    assert x.shape == (4, *shape)
    assert x.dtype == torch.float32
    assert distribution.sample((2, 3)).shape == (2, 3, 4, *shape)
    assert distribution.mean.shape == (4, *shape)
    assert distribution.mean.dtype == torch.float32
    if values != "real":
        low, high = schema.values.low, schema.values.high
        assert torch.equal(x, x.round().clamp(low, high))
        assert distribution.mean.min() >= low
        assert distribution.mean.max() <= high
        assert torch.equal(distribution.log_prob(x), distribution.log_prob(x.to(torch.int16)))
    nats = distribution.log_prob(x)
    assert nats.shape == (4,)
    assert nats.dtype == torch.float32
    (gradient,) = torch.autograd.grad(nats.sum(), parameters)
    assert gradient.shape == parameters.shape
    assert gradient.isfinite().all()
    assert torch.equal(likelihood(parameters.detach()).log_prob(x), nats)
    network = likelihood.to_network(x if values == "real" else x.to(torch.int16))
    assert network.shape == x.shape
    assert network.dtype == torch.float32
    repr(distribution)


@pytest.mark.parametrize(("name", "values", "shape"), CASES)
def test_positions_add_up_and_each_says_its_own(name: str, values: str, shape: tuple[int, ...]) -> None:
    schema = schema_of(values, shape)
    likelihood = LikelihoodConfig.chosen(name)().build(schema).eval()
    distribution = likelihood(random_parameters(likelihood))
    x = distribution.sample()
    each = distribution.by_position(x)
    assert each.shape == (4, *shape[-2:])
    torch.testing.assert_close(each.flatten(1).sum(1), distribution.log_prob(x), rtol=1e-5, atol=1e-4)
    other = x.clone()
    at = (slice(None), slice(None), 2, 3) if len(shape) == 3 else (slice(None), 3)
    levels, low = schema.values.levels or 256, schema.values.low if schema.values.discrete else 0
    other[at] = (x[at] - low + 1 + levels // 3) % levels + low
    changed = (distribution.by_position(other) - each).abs().amax(0) > 1e-6
    place = at[-len(changed.shape) :]
    assert changed[place]
    before = (
        torch.arange(changed.numel()).reshape(changed.shape)
        < torch.arange(changed.numel()).reshape(changed.shape)[place]
    )
    assert not changed[before].any()
    if name != "autoregressive" and (name, len(shape)) != ("made", 1):
        assert changed.sum() == 1


@pytest.mark.parametrize(("name", "values", "shape"), CLOSED)
def test_gradient(name: str, values: str, shape: tuple[int, ...]) -> None:
    small = (2, 1, 2) if len(shape) == 3 else (2,)
    likelihood = LikelihoodConfig.chosen(name)().build(schema_of(values, small))
    parameters = random_parameters(likelihood, 2, torch.float64)
    x = likelihood(parameters).sample()
    parameters.requires_grad_()
    options = {"fast_mode": True} if name == "categorical" else {}
    assert torch.autograd.gradcheck(lambda p: likelihood(p).log_prob(x), (parameters,), **options)


@pytest.mark.parametrize(("name", "values", "shape"), CLOSED)
def test_autocast_changes_no_digit(name: str, values: str, shape: tuple[int, ...]) -> None:
    likelihood = LikelihoodConfig.chosen(name)().build(schema_of(values, shape))
    half = random_parameters(likelihood).bfloat16()
    distribution = likelihood(half.float())
    x = distribution.sample()
    with torch.autocast("cpu", torch.bfloat16):
        for parameters in (half, half.float()):
            cast = likelihood(parameters)
            assert torch.equal(cast.log_prob(x), distribution.log_prob(x))
            assert torch.equal(cast.mean, distribution.mean)


@pytest.mark.parametrize(("name", "values", "shape"), [case for case in CASES if case.values[2] == PICTURE])
def test_memory_layout_changes_no_digit(name: str, values: str, shape: tuple[int, ...]) -> None:
    likelihood = LikelihoodConfig.chosen(name)().build(schema_of(values, shape))
    parameters = random_parameters(likelihood)
    x = likelihood(parameters).sample()
    last = likelihood(parameters.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(
        last.log_prob(x.contiguous(memory_format=torch.channels_last)), likelihood(parameters).log_prob(x)
    )


@pytest.mark.parametrize(("name", "values", "shape"), CASES)
def test_wrong_number_of_parameters_is_named(name: str, values: str, shape: tuple[int, ...]) -> None:
    likelihood = LikelihoodConfig.chosen(name)().build(schema_of(values, shape))
    channels = likelihood.parameter_channels
    with pytest.raises(ValueError, match=f"must have {channels} outputs"):
        likelihood(torch.zeros(2, channels + 1, *shape[1:]))
    with pytest.raises(ValueError, match="shape"):
        likelihood(torch.zeros(2, channels, *shape[1:], 1))


@pytest.mark.parametrize(("name", "values", "shape"), [case for case in CASES if len(case.values[2]) == 3])
def test_pictures_of_another_size_are_what_a_likelihood_of_that_size_says(
    name: str, values: str, shape: tuple[int, ...]
) -> None:
    trained, other = (LikelihoodConfig.chosen(name)().build(schema_of(values, s)) for s in (shape, (shape[0], 7, 6)))
    other.load_state_dict(trained.state_dict())
    parameters = random_parameters(other, 2)
    drawing, expected = trained(parameters), other(parameters)
    assert drawing.event_shape == expected.event_shape
    assert torch.equal(drawing.mean, expected.mean)
    torch.manual_seed(1)
    x = drawing.sample()
    assert x.shape == (2, shape[0], 7, 6)
    assert torch.equal(drawing.log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize(("name", "values", "shape"), CASES)
def test_values_it_is_no_distribution_of_are_refused(name: str, values: str, shape: tuple[int, ...]) -> None:
    for other in VALUES:
        if other not in find("likelihood", name).values:
            with pytest.raises(SpecError, match=f"likelihood {VALUES[other].default_likelihood}") as caught:
                LikelihoodConfig.chosen(name)().build(schema_of(other, shape))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "values", "shape"), CLOSED)
def test_initial_bias_is_a_fair_start(name: str, values: str, shape: tuple[int, ...]) -> None:
    schema = schema_of(values, shape)
    likelihood = LikelihoodConfig.chosen(name)().build(schema)
    bias = likelihood.initial_bias()
    assert bias is not None
    assert bias.shape == (likelihood.parameter_channels,)
    distribution = likelihood(bias.reshape(1, -1, *(1,) * (len(shape) - 1)).expand(64, -1, *shape[1:]))
    if values == "real":
        center, scale = (torch.tensor(t).reshape(-1, *(1,) * (len(shape) - 1)) for t in (schema.center, schema.scale))
        torch.testing.assert_close(distribution.mean, center.expand(64, *shape))
        torch.testing.assert_close(distribution.stddev, scale.expand(64, *shape), rtol=2e-3, atol=0)
    else:
        levels, margin = schema.values.levels, {"logistic": 0.45, "interlaced": 0.65}.get(name, 1e-5)
        uniform = torch.randint(0, levels, (64, *shape)) + schema.values.low
        nats = -distribution.log_prob(uniform).mean() / schema.dims
        assert nats < math.log(levels) + margin


# The catalogue


def test_default_likelihoods() -> None:
    assert isinstance(likelihood_for(Schema.of(PICTURE, "binary")), BernoulliModule)
    assert isinstance(likelihood_for(Schema.of(PICTURE, "uint8")), InterlacedModule)
    assert isinstance(likelihood_for(Schema.of(PICTURE, "real")), GaussianModule)
    assert likelihood_for(Schema.of(PICTURE, "uint8"), LogisticMixture(components=3)).parameter_channels == 30


def test_refusals_are_one_line() -> None:
    grey = Schema.of((1, 8, 8), "uint8")
    with raises("wrong-values"):
        Bernoulli().build(grey)
    with raises("no-such-part", kind="likelihood", name="poisson"):
        LikelihoodConfig.chosen("poisson")
    with raises("channels"):
        LogisticMixture().build(Schema.of((5, 8, 8), "uint8"))
    with raises("bad-option"):
        LogisticMixture(components=0).build(grey)
    with raises("bad-option"):
        FixedGaussian(scale=0.0).build(Schema.of(VECTOR, "real"))
    with raises("other-channels"):
        Gaussian().build(Schema.of(VECTOR, "real", center=(0.0, 1.0)))


# Any number of levels


@pytest.mark.parametrize(
    "values", [Integers(2, 5.0), Integers(7, -3.0), Integers(300), Integers(5000, -2500.0)], ids=str
)
@pytest.mark.parametrize("name", ["logistic", "categorical", "autoregressive"])
def test_every_number_of_levels_sums_to_one(name: str, values: Integers) -> None:
    """Of one value; for narrow, wide, near and far distributions."""
    likelihood = LikelihoodConfig.chosen(name)().build(Schema.of((1, 1), values)).eval()
    every = (torch.arange(values.levels) + values.low).reshape(-1, 1, 1)
    for size in (0.3, 3.0, 30.0, 1e4):
        parameters = (torch.randn(1, likelihood.parameter_channels, 1) * size).expand(len(every), -1, 1)
        nats = likelihood(parameters).log_prob(every)
        assert nats.isfinite().all()
        assert abs(nats.double().exp().sum().item() - 1) < 3e-5


@pytest.mark.parametrize(
    "values", [*VALUES.values(), Integers(2, 5.0), Integers(300), Integers(1 << 16, -(2.0**15))], ids=str
)
@pytest.mark.parametrize("shape", [(2, 9), (3, 2, 2)], ids=str)
def test_coded_values_are_read_back_at_the_price_of_their_probability(values, shape: tuple[int, ...]) -> None:
    if not values.discrete:
        return
    schema = Schema.of(shape, values)
    for entry in entries("likelihood"):
        if (values.name if values.name in ("uint8",) else values.kind) not in entry.values or (
            entry.name,
            values.levels > 300,
        ) == ("categorical", True):
            continue
        likelihood = entry.load()().build(schema).eval()
        distribution = likelihood(random_parameters(likelihood))
        x, stack = distribution.sample(), AnsStack()
        encoder = SymbolEncoder(stack)
        distribution.code(encoder, x)
        bits = encoder.bits
        encoder.flush()
        assert torch.equal(distribution.code(SymbolDecoder(stack)), x)
        nats = -float(distribution.log_prob(x).detach().sum())
        assert abs(bits * math.log(2) - nats) < 0.02 * x.numel() ** 0.5 + 1e-3 * nats


# Bernoulli and categorical


def test_bernoulli_sums_to_one() -> None:
    likelihood = Bernoulli().build(Schema.of((8,), "binary"))
    every = torch.cartesian_prod(*[torch.arange(2)] * 8)
    for size in (1.0, 30.0, 1000.0):
        logits = torch.randn(1, 8) * size
        nats = likelihood(logits.expand(256, -1)).log_prob(every)
        assert nats.isfinite().all()
        assert abs(nats.exp().sum().item() - 1) < 1e-5


def test_categorical_sums_to_one() -> None:
    likelihood = Categorical().build(Schema.of((1, 1, 1), "uint8"))
    for size in (1.0, 30.0, 1000.0):
        nats = likelihood((torch.randn(1, 256, 1, 1) * size).expand(256, -1, 1, 1)).log_prob(all_bytes(1))
        assert nats.isfinite().all()
        assert abs(nats.exp().sum().item() - 1) < 1e-5


def test_categorical_layout_sampler_and_mean() -> None:
    """False alarms: 1e-4 for each of 2 values."""
    likelihood = Categorical().build(Schema.of((2,), "uint8"))
    parameters = torch.randn(1, 512) * 2
    probability = parameters.view(256, 2).softmax(0)
    distribution = likelihood(parameters)
    draws = distribution.sample((20_000,)).long()[:, 0]
    for d in range(2):
        assert chi_square(draws[:, d], probability[:, d]) > FALSE_ALARM
    torch.testing.assert_close(distribution.mean[0], torch.arange(256.0) @ probability)


def test_bernoulli_sampler_and_mean() -> None:
    """False alarms: 1e-4 for each of 3 values."""
    distribution = Bernoulli().build(Schema.of((3,), "binary"))(torch.tensor([[-2.0, 0.0, 1.0]]))
    draws = distribution.sample((20_000,))[:, 0].long()
    for d, p in enumerate(distribution.mean[0]):
        assert chi_square(draws[:, d], torch.stack([1 - p, p])) > FALSE_ALARM


@pytest.mark.parametrize("shape", [(3, 2), (6,)])
def test_made_sums_to_one_and_its_sampler_and_mean_follow_the_channels_before(shape: tuple[int, ...]) -> None:
    """False alarms: 1e-4 for each of 2 shapes."""
    likelihood = MADE().build(Schema.of(shape, "binary"))
    for parameter in likelihood.parameters():
        parameter.data += torch.randn_like(parameter)
    every = torch.cartesian_prod(*[torch.arange(2)] * 6).view(64, *shape)
    distribution = likelihood(random_parameters(likelihood, 1).expand(64, *[-1] * len(shape)))
    probability = distribution.log_prob(every).exp().detach()
    assert abs(probability.sum().item() - 1) < 1e-5
    draws = distribution.sample((200,))[:, :32].reshape(-1, 6).long()
    assert chi_square(draws @ 2 ** torch.arange(5, -1, -1), probability) > FALSE_ALARM
    first = distribution.mean.reshape(64, *shape)[0].flatten()[0]
    ones = probability.view(2, 32).sum(1)[1]
    torch.testing.assert_close(first, ones)


# The logistic mixture


@pytest.mark.parametrize("channels", [1, 2])
def test_logistic_sums_to_one(channels: int) -> None:
    likelihood = logistic_mixture(channels, 2)
    every = all_bytes(channels)
    for parameters in extreme_parameters(likelihood)[:: 1 if channels == 1 else 7]:
        nats = likelihood(parameters.expand(len(every), -1, 1, 1)).log_prob(every)
        assert nats.isfinite().all()
        assert abs(nats.double().exp().sum().item() - 1) < 3e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_logistic_of_a_sound_is_in_units_of_its_level(channels: int) -> None:
    schema = Schema(channels, (6,), Integers(1 << 16, -(2.0**15)), rate=8000.0)
    soft, plain = replace(schema, scale=(512.0,)), LogisticMixture(components=3).build(schema)
    likelihood, log_gain = LogisticMixture(components=3).build(soft), math.log((2**16 - 1) / 2 / 512)
    parameters, x = random_parameters(likelihood, 4, torch.float64), torch.randint(-3000, 3000, (4, channels, 6))
    wide = parameters.unflatten(1, (-1, 3)).clone()
    wide[:, 1 : 1 + channels] /= math.exp(log_gain)
    wide[:, 1 + channels : 1 + 2 * channels] -= log_gain
    torch.testing.assert_close(likelihood(parameters).log_prob(x), plain(wide.flatten(1, 2)).log_prob(x))
    torch.testing.assert_close(likelihood.to_network(x), (x.float() + 0.5) / 512)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_logistic_summed_over_its_last_channel_is_the_one_of_the_others(channels: int) -> None:
    """With the test above: by induction it sums to one for any number of channels."""
    mixtures = 3
    likelihood, shorter = logistic_mixture(channels, mixtures), logistic_mixture(channels - 1, mixtures)
    keep = [0, *range(1, channels), *range(1 + channels, 2 * channels)]
    keep += range(1 + 2 * channels, 1 + 2 * channels + (channels - 1) * (channels - 2) // 2)
    for parameters in extreme_parameters(likelihood):
        first = torch.tensor([0, 255, 31, 200])[torch.randint(0, 4, (channels - 1,))].reshape(1, -1, 1, 1)
        x = torch.cat([first.expand(256, -1, 1, 1), all_bytes(1)], 1)
        nats = likelihood(parameters.expand(256, -1, 1, 1)).log_prob(x).logsumexp(0, keepdim=True)
        fewer = parameters.view(1, -1, mixtures, 1, 1)[:, keep].reshape(1, -1, 1, 1)
        torch.testing.assert_close(nats, shorter(fewer).log_prob(first), rtol=1e-6, atol=3e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_logistic_is_its_formula(channels: int) -> None:
    likelihood = LogisticMixture(components=3).build(Schema.of((channels, 4, 8), "uint8"))
    parameters = random_parameters(likelihood, 3, torch.float64) / 2  # or the formula as it stands takes log 0
    x = torch.randint(0, 256, (3, channels, 4, 8), dtype=torch.uint8)
    x[:, :, 0] = 0
    x[:, :, 1] = 255
    parameters.requires_grad_()
    expected = reference(parameters, x, 3)
    (gradient,) = torch.autograd.grad(expected.sum(), parameters)
    for dtype, digits in ((torch.float64, 1e-8), (torch.float32, 2e-5)):
        mine = parameters.detach().to(dtype).requires_grad_()
        nats = likelihood(mine).log_prob(x)
        torch.testing.assert_close(nats.double(), expected, rtol=digits, atol=digits)
        (by_mine,) = torch.autograd.grad(nats.sum(), mine)
        torch.testing.assert_close(by_mine.double(), gradient, rtol=digits, atol=digits)


def test_logistic_gradient_at_the_edges_and_beyond_the_clamps() -> None:
    likelihood = LogisticMixture(components=2).build(Schema.of((3, 1, 4), "uint8"))
    parameters = random_parameters(likelihood, 1, torch.float64)
    parameters[:, 8:14, :, 2] = -9
    parameters[:, 8:14, :, 3] = 9
    x = torch.tensor([[0, 255, 0, 255], [255, 128, 3, 0], [77, 0, 128, 255]]).reshape(1, 3, 1, 4)
    parameters.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood(p).log_prob(x), (parameters,), atol=1e-4)
    (gradient,) = torch.autograd.grad(likelihood(parameters).log_prob(x).sum(), parameters)
    assert (gradient[:, 8:14, :, 2:] == 0).all()
    assert (gradient[:, 8:14, :, :2] != 0).all()


def test_logistic_is_finite_and_never_above_zero_for_extreme_parameters() -> None:
    for channels in (1, 3):
        likelihood = logistic_mixture(channels, 3)
        x = torch.randint(0, 256, (64, channels, 1, 1))
        x[:16], x[16:32] = 0, 255
        for parameters in extreme_parameters(likelihood):
            parameters = parameters.expand(64, -1, 1, 1).clone().requires_grad_()
            distribution = likelihood(parameters)
            nats = distribution.log_prob(x)
            (gradient,) = torch.autograd.grad(nats.sum(), parameters)
            assert nats.isfinite().all()
            assert nats.max() < 1e-4
            assert gradient.isfinite().all()
            assert distribution.mean.isfinite().all()
            assert distribution.sample().isfinite().all()


def test_logistic_in_pieces_gives_the_same_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood = LogisticMixture(components=3).build(Schema.of((3, 8, 8), "uint8"))
    parameters = random_parameters(likelihood, 5).requires_grad_()
    x = likelihood(parameters).sample()
    results = []
    for chunk in (1, 1500, 1 << 20):
        monkeypatch.setattr(logistic, "CHUNK", chunk)
        nats = likelihood(parameters).log_prob(x)
        results.append((nats, *torch.autograd.grad(nats @ torch.arange(5.0), parameters)))
    for nats, gradient in results[1:]:
        torch.testing.assert_close(nats, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_logistic_gradient_in_the_decoders_precision_and_layout(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    likelihood = LogisticMixture(components=3).build(Schema.of(PICTURE, "uint8"))
    parameters = random_parameters(likelihood).to(dtype, memory_format=layout).requires_grad_()
    exact = parameters.detach().float().contiguous().requires_grad_()
    x = likelihood(exact).sample()
    weights = torch.tensor([0.1, 0.3, -2.0, 0.7])
    nats = likelihood(parameters).log_prob(x)
    torch.testing.assert_close(nats, likelihood(exact).log_prob(x))
    (gradient,) = torch.autograd.grad(nats @ weights, parameters)
    (expected,) = torch.autograd.grad(likelihood(exact).log_prob(x) @ weights, exact)
    assert gradient.dtype == dtype
    digits = max(4 * torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(gradient.float(), expected, rtol=digits, atol=digits / 10)


def test_logistic_vector_is_a_picture_of_one_channel() -> None:
    vector, picture = (
        LogisticMixture(components=4).build(Schema.of((6,), "uint8")),
        LogisticMixture(components=4).build(Schema.of((1, 2, 3), "uint8")),
    )
    assert vector.parameter_channels == 3 * 4 * 6
    parameters = torch.randn(2, 12, 2, 3)
    x = torch.randint(0, 256, (2, 1, 2, 3))
    assert torch.equal(vector(parameters.flatten(1)).log_prob(x.flatten(1)), picture(parameters).log_prob(x))
    assert torch.equal(vector(parameters.flatten(1)).mean, picture(parameters).mean.flatten(1))


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -2.0, 1.0])
def test_logistic_sampler_against_probability(log_scale: float) -> None:
    """False alarms: 1e-4 for each of 4 runs."""
    likelihood = logistic_mixture(1, 3)
    parameters = torch.tensor([0.0, 1.0, -0.5, -0.9, 0.1, 0.95] + [log_scale] * 3).view(1, 9, 1, 1)
    probability = likelihood(parameters.expand(256, -1, 1, 1)).log_prob(all_bytes(1)).exp()
    draws = likelihood(parameters).sample((20_000,)).long().flatten()
    assert chi_square(draws, probability) > FALSE_ALARM


def test_logistic_sampler_of_dependent_channels() -> None:
    """The pair of channels in 16 by 16 cells, and their mean. False alarms: 1e-4, and 6e-5 for each of two means."""
    likelihood = logistic_mixture(2, 2)
    parameters = torch.tensor([0.3, -0.3, -0.3, 0.4, 0.1, -0.2, -2.5, -2.0, -3.0, -2.2, 0.8, -1.5]).view(1, 12, 1, 1)
    every = all_bytes(2)
    probability = likelihood(parameters.expand(len(every), -1, 1, 1)).log_prob(every).exp()
    cells = probability.view(16, 16, 16, 16).sum((1, 3)).flatten()
    distribution = likelihood(parameters)
    draws = distribution.sample((40_000,)).view(-1, 2)
    coarse = draws.long() // 16
    assert chi_square(coarse[:, 0] * 16 + coarse[:, 1], cells) > FALSE_ALARM
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - distribution.mean.flatten()).abs() < 4 * error + 0.2).all()


def test_logistic_mean_is_the_expectation() -> None:
    likelihood = logistic_mixture(1, 2)
    for log_scale, location in itertools.product((-9.0, -7.0, -5.0, -2.0, 1.0), (-2.0, -1.0, -0.213, 0.7, 1.0, 50.0)):
        parameters = torch.tensor([0.0, 0.5, location, 0.3, log_scale, log_scale]).view(1, 6, 1, 1)
        probability = likelihood(parameters.expand(256, -1, 1, 1)).log_prob(all_bytes(1)).exp()
        assert abs(torch.arange(256.0) @ probability - likelihood(parameters).mean.item()) < 0.2


def test_logistic_mean_of_three_channels_is_the_mean_of_draws() -> None:
    """False alarms: 6e-5 for each of 36 means, 2e-3 in all."""
    likelihood = LogisticMixture(components=4).build(Schema.of((3, 3, 4), "uint8"))
    parameters = random_parameters(likelihood, 1) * 0.3
    parameters[:, 16:28] -= 3.5
    distribution = likelihood(parameters)
    draws = distribution.sample((4000,))[:, 0]
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - distribution.mean[0]).abs() < 4 * error + 0.2).all()


# The Gaussians


@pytest.mark.parametrize("name", ["gaussian", "gaussian-fixed"])
def test_gaussians_are_densities_of_the_stored_values(name: str) -> None:
    schema = Schema.of((1, 1, 1), Real(-100, 100), (30.0,), (7.0,))
    likelihood = LikelihoodConfig.chosen(name)().build(schema)
    parameters = torch.tensor([0.4, -1.0])[: likelihood.parameter_channels].view(1, -1, 1, 1).double()
    grid = torch.linspace(-100, 160, 20_001, dtype=torch.float64)
    density = likelihood(parameters.expand(len(grid), -1, 1, 1)).log_prob(grid.view(-1, 1, 1, 1)).exp()
    assert abs(torch.trapezoid(density, grid).item() - 1) < 1e-6
    distribution = likelihood(parameters)
    torch.testing.assert_close(distribution.mean.item(), 30 + 7 * 0.4)
    assert abs(torch.trapezoid(density * grid, grid).item() - distribution.mean.item()) < 1e-5


def test_standardised_by_channel_and_feature() -> None:
    for shape in (PICTURE, VECTOR):
        schema = schema_of("real", shape)
        x = torch.randn(2, *shape)
        network = Gaussian().build(schema).to_network(x)
        for i in range(shape[0]):
            torch.testing.assert_close(network[:, i], (x[:, i] - schema.center[i]) / schema.scale[i])
    one = Gaussian().build(Schema.of(PICTURE, "real", center=(2.0,), scale=(4.0,)))
    torch.testing.assert_close(one.to_network(torch.full((1, *PICTURE), 6.0)), torch.ones(1, *PICTURE))


def test_constant_feature_is_left_in_its_units() -> None:
    likelihood = Gaussian().build(Schema.of((2,), "real", center=(0.0, 5.0), scale=(1.0, 0.0)))
    x = torch.tensor([[1.0, 5.0]])
    assert likelihood.to_network(x).tolist() == [[1.0, 0.0]]
    assert likelihood(torch.zeros(1, 4)).log_prob(x).isfinite().all()


def test_gaussian_scale_has_a_floor() -> None:
    likelihood = Gaussian().build(Schema.of((1,), "real", center=(0.0,), scale=(50.0,)))
    for log_scale in (-1e4, -1e30):
        assert abs(likelihood(torch.tensor([[0.0, log_scale]])).stddev.item() - 0.05) < 1e-6
    assert likelihood(torch.tensor([[0.0, 1e30]])).log_prob(torch.zeros(1, 1)).isfinite().all()


def test_fixed_gaussian_is_squared_error() -> None:
    likelihood = FixedGaussian(scale=0.5).build(Schema.of((5,), "real", scale=(2.0,)))
    assert not list(likelihood.parameters())
    x, parameters = torch.randn(3, 5), torch.randn(3, 5)
    squared = (x - 2 * parameters).square().sum(1) / 2
    torch.testing.assert_close(likelihood(parameters).log_prob(x), -squared - 5 / 2 * math.log(2 * math.pi))


def test_fixed_gaussian_learns_the_root_mean_squared_error() -> None:
    likelihood = FixedGaussian().build(Schema.of((50,), "real"))
    assert likelihood.log_scale is not None
    x = 0.3 * torch.randn(40, 50)
    with torch.no_grad():
        likelihood.log_scale.copy_((x.square().mean().sqrt() - 1e-3).log())
    (gradient,) = torch.autograd.grad(likelihood(torch.zeros(40, 50)).log_prob(x).mean(), [likelihood.log_scale])
    assert abs(gradient.item()) < 1e-3


# Units


def test_network_units() -> None:
    grey = LogisticMixture().build(Schema.of((3,), "uint8"))
    torch.testing.assert_close(
        grey.to_network(torch.tensor([[0, 255, 51]], dtype=torch.uint8)), torch.tensor([[-1.0, 1.0, -0.6]])
    )
    bits = Bernoulli().build(Schema.of((2,), "binary"))
    assert bits.to_network(torch.tensor([[0, 1]], dtype=torch.uint8)).tolist() == [[-1.0, 1.0]]


def test_bernoulli_is_the_cross_entropy() -> None:
    logits, x = torch.randn(4, *PICTURE), torch.randint(0, 2, (4, *PICTURE), dtype=torch.uint8)
    nats = F.binary_cross_entropy(logits.sigmoid(), x.float(), reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().build(Schema.of(PICTURE, "binary"))(logits).log_prob(x), -nats)
