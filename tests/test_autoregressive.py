"""The autoregressive likelihood is normalised, causal, drawn from as it says, and sees what the decoder says."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from expect import raises
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.likelihoods import Autoregressive, autoregressive, likelihood_for
from tessella.likelihoods.autoregressive import AutoregressiveModule
from tessella.models.presets import VAE

TINY = {"pixel_width": 8, "pixel_depth": 2}


@pytest.fixture(autouse=True, params=[16, 1], ids=["pixels", "blocks"])
def _order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds pixel by pixel, and in blocks, which small pictures only have here."""
    monkeypatch.setattr(autoregressive, "SMALL", request.param)
    monkeypatch.setattr(autoregressive, "FEATURES", 3)
    monkeypatch.setattr(autoregressive, "FEATURES_OF_A_NUMBER", 3)
    torch.manual_seed(0)


def schema_of(values: str, shape: tuple[int, ...]) -> Schema:
    if values == "real":
        numbers = range(shape[0])
        return Schema.of(shape, values, tuple(0.5 * i for i in numbers), tuple(1.0 + i for i in numbers))
    return Schema.of(shape, values)


def made(values: str, shape: tuple[int, ...], **options: int) -> tuple[AutoregressiveModule, Tensor]:
    """A likelihood whose pixels depend on one another and on the decoder, and a decoder's output for two examples."""
    likelihood = Autoregressive(**{**TINY, **options}).build(schema_of(values, shape))
    with torch.no_grad():
        likelihood.head.exit.weight.mul_(40)
    return likelihood, torch.randn(2, likelihood.parameter_channels, *shape[1:])


def order(likelihood: AutoregressiveModule, height: int, width: int) -> Tensor:
    """`[height, width]`: how many-th each pixel is, gaps left where a block reaches outside."""
    (tall, wide), i, j = likelihood.block, torch.arange(height)[:, None], torch.arange(width)
    block = i // tall * -(-width // wide) + j // wide
    return block * tall * wide + i % tall * wide + j % wide


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 3, 3), (1, 1, 1), (2, 1, 2), (1, 3, 1), (1,), (4,)])
def test_binary_values_sum_to_one(shape: tuple[int, ...]) -> None:
    likelihood, parameters = made("binary", shape)
    x = torch.tensor(list(product((0, 1), repeat=math.prod(shape))), dtype=torch.uint8).view(-1, *shape)
    for example in parameters:
        p = likelihood(example.expand(len(x), *example.shape)).log_prob(x).exp()
        torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    assert len(p) == 2 or (len(p) * p).std() > 0.01  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 1), (2, 1, 1), (2,)])
def test_bytes_sum_to_one(shape: tuple[int, ...]) -> None:
    likelihood, parameters = made("uint8", shape, components=2, pixel_width=4, pixel_depth=1)
    x = torch.cartesian_prod(torch.arange(256), torch.arange(256)).view(-1, *shape)
    with torch.no_grad():
        nats = likelihood(parameters[:1].expand(len(x), *parameters.shape[1:])).log_prob(x)
    torch.testing.assert_close(nats.double().exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1), (2,)])
def test_real_values_integrate_to_one(shape: tuple[int, ...]) -> None:
    """On a grid of a twentieth of each number's scale, over 20 scales on either side."""
    likelihood, parameters = made("real", shape, pixel_width=4, pixel_depth=1)
    with torch.no_grad():
        likelihood.head.exit.weight.mul_(0.1)
    step = 0.05
    axis = torch.arange(-10, 10, step)
    y = torch.cartesian_prod(axis, axis).view(-1, *shape)
    with torch.no_grad():
        x = likelihood.units.to_stored(y)
        nats = likelihood(parameters[:1].expand(len(x), *parameters.shape[1:])).log_prob(x)
    volume = step**2 * likelihood.units.scale.expand(shape).prod()
    torch.testing.assert_close(nats.exp().sum() * volume, torch.tensor(1.0), atol=1e-3, rtol=0)


def test_draws_follow_the_distribution() -> None:
    """Five standard deviations over 16 frequencies: a false alarm in about 1 of 10^5 seeds."""
    likelihood, parameters = made("binary", (1, 2, 2))
    x = torch.tensor(list(product((0, 1), repeat=4)), dtype=torch.uint8).view(-1, 1, 2, 2)
    p = likelihood(parameters[:1].expand(16, -1, -1, -1)).log_prob(x).exp()
    drawn = likelihood(parameters[:1]).sample((20_000,))
    found = torch.bincount((drawn.flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16) / 20_000
    assert ((found - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all()


CASES: list[tuple[str, tuple[int, ...]]] = [
    ("binary", (1, 3, 4)),
    ("binary", (5,)),
    ("uint8", (3, 3, 2)),
    ("uint8", (1, 1, 4)),
    ("uint8", (2, 5)),
    ("uint8", (4,)),
    ("real", (2, 3, 3)),
    ("real", (1, 5)),
    ("real", (3,)),
    ("real", (1,)),
]


@pytest.mark.parametrize(("values", "shape"), CASES)
def test_the_greedy_drawing_is_the_recomputed_one(values: str, shape: tuple[int, ...]) -> None:
    likelihood, parameters = made(values, shape)
    of = likelihood(parameters)
    x = torch.zeros(2, *likelihood.grid)
    with torch.no_grad():
        for place in order(likelihood, *x.shape[2:]).flatten().argsort().tolist():
            i, j = divmod(place, x.shape[3])
            mean = likelihood.wholes[0](likelihood.conditionals(x, of.context, torch.zeros(2))).mean
            x[:, :, i, j] = (mean if values == "real" else mean.round())[:, :, i, j]
    torch.testing.assert_close(of.mean, likelihood.stored(x))


@pytest.mark.parametrize(("values", "shape"), CASES)
def test_draws_are_the_generators(values: str, shape: tuple[int, ...]) -> None:
    likelihood, parameters = made(values, shape)
    drawn: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(likelihood(parameters).sample())
    assert drawn[0].shape == (2, *shape)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) or values == "binary"


def test_a_pixel_depends_on_those_before_it_and_on_the_decoder_everywhere() -> None:
    likelihood, parameters = made("uint8", (3, 4, 4))
    x = torch.randint(0, 256, (2, 3, 4, 4)).float().requires_grad_()
    parameters.requires_grad_()
    out = likelihood.conditionals(likelihood.standard(x), likelihood(parameters).context, torch.zeros(2))
    by_x, by_parameters = torch.autograd.grad(out[:, :, 1, 2].square().sum(), [x, parameters])
    number = order(likelihood, 4, 4)
    assert torch.equal(by_x.abs().amax((0, 1)) > 0, number < number[1, 2])
    assert (by_parameters[:, :, 1, 2] != 0).all()


def test_stored_values_are_seen_as_their_units_say() -> None:
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    likelihood, parameters = made("uint8", (3, 4, 4))
    assert torch.equal(likelihood(parameters).log_prob(x), likelihood(parameters).log_prob(x.float()))
    assert torch.equal(likelihood.units_of(x)[0], likelihood.to_network(x))
    real, _ = made("real", (3,))
    y = torch.randn(2, 3)
    torch.testing.assert_close(real.stored(real.standard(y)), y)
    assert torch.equal(real.standard(y).flatten(1), real.to_network(y))


def test_autocast_rounds_the_network_only() -> None:
    likelihood, parameters = made("uint8", (3, 8, 8), pixel_width=16)
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = likelihood(parameters).log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        of = likelihood(parameters.bfloat16())
        nats = of.log_prob(x)
        assert of.mean.dtype == torch.float32
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("values", ["binary", "uint8", "real"])
@pytest.mark.parametrize("shape", [(1, 5, 3), (6,)])
def test_a_vae_may_have_it(values: str, shape: tuple[int, ...]) -> None:
    schema = schema_of(values, shape)
    model = VAE(schema, width=4, depth=1, latent_dim=2, likelihood=Autoregressive())
    x = model.likelihood(torch.zeros(3, model.likelihood.parameter_channels, *shape[1:])).sample()
    model(x, noise=Noise(0)).bound.sum().backward()
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert model.reconstruct(x).shape == x.shape
    assert torch.equal(model.sample(2, draw=True, seed=3), model.sample(2, draw=True, seed=3))


def test_it_learns_what_pixels_have_to_do_with_each_other() -> None:
    """Black or white pictures: log 2 nats in all, of which no decoder is told."""
    likelihood = Autoregressive(pixel_width=8, pixel_depth=2).build(Schema.of((1, 4, 4), "binary"))
    optimizer = torch.optim.AdamW(likelihood.parameters(), lr=1e-2)
    x = torch.arange(2).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    parameters = torch.zeros(2, likelihood.parameter_channels, 4, 4)
    for _ in range(60):
        optimizer.zero_grad()
        (-likelihood(parameters).log_prob(x)).mean().backward()
        optimizer.step()
    assert likelihood(parameters).log_prob(x).mean() > -math.log(2) - 0.1


def test_refusals() -> None:
    with raises("wrong-values"):
        likelihood_for(Schema.of((1, 4, 4), "binary"), Autoregressive(components=3))
    with raises("channels"):
        likelihood_for(Schema.of((5, 4, 4), "uint8"), Autoregressive())
    likelihood, parameters = made("binary", (1, 3, 3))
    with pytest.raises(ValueError, match="must have 3 outputs"):
        likelihood(parameters[:, :2])


@pytest.mark.parametrize(
    ("values", "shape"), [("uint8", (3, 4, 5)), ("binary", (1, 5, 4)), ("real", (2, 4, 4)), ("uint8", (2, 9))]
)
def test_a_part_is_drawn_given_the_rest(values: str, shape: tuple[int, ...]) -> None:
    likelihood, parameters = made(values, shape)
    drawing = likelihood(parameters)
    x, everywhere = drawing.mean, torch.ones(shape[1:], dtype=torch.bool)
    other = likelihood(parameters.flip(0)).mean[:1]
    torch.testing.assert_close(drawing.redrawn(other, everywhere), x)
    torch.testing.assert_close(drawing.redrawn(other, ~everywhere), other.expand_as(x))
    some = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5
    redrawn = drawing.redrawn(other, some)
    torch.testing.assert_close(redrawn[..., ~some], other.expand_as(x)[..., ~some])
    torch.testing.assert_close(drawing.redrawn(redrawn[:1], some)[:1], redrawn[:1])  # what follows from itself stays
