"""Diffusion against what is known: Gaussian and uniform data, whose denoiser, entropy and flow have closed forms."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from expect import raises
from making import make
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import UINT8, Integers, Real, Schema
from tessella.diffusion import samplers
from tessella.diffusion.chain import Chain, Sampler
from tessella.diffusion.discrete_denoiser import posterior
from tessella.diffusion.discretized_likelihood import NoisyLevels
from tessella.diffusion.schedule import NoiseSchedule, alpha, sigma, spread_times, variance_term
from tessella.models.diffusion import DiffusionModel
from tessella.models.presets import Diffusion
from tessella.networks.unet import UNet
from tessella.priors import DiffusionPrior

VARIANCE = 0.3


class Nothing(nn.Module):
    """What the network says of N(0, variance): that the posterior is as it is."""

    def forward(self, z: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        return torch.zeros(len(z), 2 * z.shape[1])


class Even(nn.Module):
    """What it says of evenly distributed values: that the Gaussian prior has no part in the posterior."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, z: Tensor, gamma: Tensor, label: Tensor | None) -> Tensor:
        a, s = alpha(gamma)[:, None], sigma(gamma)[:, None]
        total = a.square() * self.variance + s.square()
        shift = (1 / a - a * self.variance / total) * z / (self.variance / total).sqrt() / s
        return torch.cat([shift, (a.square() * self.variance / total).log().expand_as(z)], 1)


def gaussian_chain(dims: int = 3, first: float = -8.0) -> Chain:
    return Chain((dims,), Nothing(), NoiseSchedule(first, 6.0), variance=VARIANCE).eval()


def even_model() -> DiffusionModel:
    model = Diffusion(Schema.of((6,), "uint8"), width=8, depth=1).eval()
    model.chain.network = Even(model.chain.variance)
    return model


# whole numbers


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_posterior_is_that_of_all_values(levels: int) -> None:
    torch.manual_seed(0)
    location = (torch.rand(40, dtype=torch.float64) * 2.4 - 1.2).requires_grad_()
    precision = torch.logspace(-1, 6, 40, dtype=torch.float64).requires_grad_()
    logits = -(torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None] - location).square() * precision / 2
    mean = (logits.softmax(0) * torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]).sum(0)
    result = posterior(location, precision, levels)
    torch.testing.assert_close(result, (mean, logits.logsumexp(0)), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda m: posterior(m, precision.detach()[:25], levels), location[:25])
    assert torch.autograd.gradcheck(lambda p: posterior(location.detach()[:25], p, levels), precision[:25])
    single = posterior(location.detach().float(), precision.detach().float(), levels)
    torch.testing.assert_close(single[0].double(), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [256, 65_536])
def test_posterior_of_dense_values_is_near_that_of_all_and_does_not_look_at_others(levels: int) -> None:
    torch.manual_seed(0)
    location = (torch.rand(8, 50, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    precision = torch.logspace(-2, 2 * math.log10(levels), 8, dtype=torch.float64)[:, None].expand(8, 50).contiguous()
    every, near = (posterior(location, precision, levels, mean_only=only)[0] for only in (False, True))
    assert ((every - near).abs() * precision.sqrt()).max() < 0.02
    slopes = [torch.autograd.grad(mean.sum(), location)[0] for mean in (every, near)]
    torch.testing.assert_close(*slopes, rtol=0.02, atol=2e-3)
    single = posterior(location.detach().float(), precision.float(), levels, mean_only=True)[0]
    torch.testing.assert_close(single.double(), near.detach(), rtol=0, atol=1e-5)
    some = posterior(location[2:3, 7:].detach().float(), precision[2:3, 7:].float(), levels, mean_only=True)[0]
    assert torch.equal(single[2:3, 7:], some)


def test_gradients_of_dense_values() -> None:
    torch.manual_seed(0)
    location = (torch.rand(20, dtype=torch.float64) * 4 - 2).requires_grad_()
    precision = torch.logspace(-2, 3, 20, dtype=torch.float64).requires_grad_()
    mean = partial(posterior, levels=256, mean_only=True)
    assert torch.autograd.gradcheck(lambda m: mean(m, precision.detach())[0], location)
    assert torch.autograd.gradcheck(lambda p: mean(location.detach(), p)[0], precision)


@pytest.mark.parametrize("of", [UINT8, Integers(7, -3.0), Integers(300)], ids=str)
def test_decoder_of_levels_sums_to_one(of: Integers) -> None:
    torch.manual_seed(0)
    location = torch.rand(of.levels, 3, dtype=torch.float64) * 2.2 - 1.1
    precision = torch.tensor([[3.0, 1e3, 6e5]], dtype=torch.float64)
    drawing = NoisyLevels(location[:1].expand(of.levels, 3), precision, of)
    values = (torch.arange(of.levels) + of.low)[:, None].expand(of.levels, 3)
    each = drawing.by_position(values)
    torch.testing.assert_close(each.exp().sum(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(drawing.mean[0], (each.exp() * values).sum(0), rtol=0, atol=1e-6)
    draws = drawing.sample()
    assert (draws[:, 2] - drawing.mean[:, 2]).abs().max() < 1


# the schedule


def crooked_schedule() -> NoiseSchedule:
    torch.manual_seed(1)
    schedule = NoiseSchedule(-9.0, 4.0)
    with torch.no_grad():
        schedule.pieces.normal_(std=3)
    return schedule


def test_schedule_rises_and_its_slope_is_its_derivative() -> None:
    schedule = crooked_schedule()
    t = torch.linspace(0, 1, 501)[:-1]
    gamma = schedule(t)
    assert gamma[0] == schedule.ends()[0]
    assert schedule(torch.ones(1)).item() == pytest.approx(schedule.ends()[1].item())
    assert (gamma.diff() > 0).all()
    at = schedule.at(t)
    torch.testing.assert_close(at.gamma, gamma)
    middle = (t + 1e-4).double()  # off the corners
    slope = (schedule((middle + 1e-5).float()) - schedule((middle - 1e-5).float())) / 2e-5
    torch.testing.assert_close(schedule.at(middle.float()).slope, slope, rtol=0.1, atol=0.1)


def test_times_are_uniform_spread_and_the_same_for_several_processes() -> None:
    whole = spread_times(8, torch.device("cpu"), Noise(3, 1), 1, 4)
    shares = [spread_times(4, torch.device("cpu"), Noise(3, 1, rank=rank, world=2), 1, 4) for rank in range(2)]
    torch.testing.assert_close(torch.cat(shares), whole)
    all_parts = torch.cat([spread_times(8, torch.device("cpu"), Noise(3, 1), part, 4) for part in range(4)])
    assert torch.equal((all_parts * 32).floor().long().sort().values, torch.arange(32))
    of_one = torch.stack([spread_times(8, torch.device("cpu"), Noise(0, step))[5] for step in range(400)])
    assert abs(of_one.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 400)  # false alarms: 1 in 10 000
    torch.testing.assert_close(spread_times(2, torch.device("cpu"), None, 2, 4), torch.tensor([0.75, 0.75]))


def test_pieces_learn_to_lower_the_second_moment() -> None:
    """Of a loss exp(-8 u) the least second moment is E[loss]^2; even times have far more."""
    schedule = NoiseSchedule(0.0, 10.0)
    optimizer = torch.optim.Adam([schedule.pieces], 0.05)

    def losses(step: int) -> Tensor:
        at = schedule.at(spread_times(512, torch.device("cpu"), Noise(0, step)))
        loss = at.slope * (-0.8 * at.gamma).exp()
        optimizer.zero_grad()
        term = variance_term(at, loss)
        assert not term.any()
        term.mean().backward()
        return loss.detach()

    before = losses(0)
    for step in range(200):
        losses(step)
        optimizer.step()
    after = losses(0)
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=0.02)
    assert after.var() < before.var() / 10


# the bound


def test_bound_of_gaussian_data_is_their_entropy() -> None:
    torch.manual_seed(0)
    prior = DiffusionPrior(width=8, depth=1).build((3,)).eval()
    prior.chain = gaussian_chain()
    z = VARIANCE**0.5 * torch.randn(20_000, 3)
    with torch.no_grad():
        nats = -prior(None, Noise(0)).log_prob(z)
        fixed = -prior(None).log_prob(z)
    exact = (z.square() / VARIANCE + math.log(2 * math.pi * VARIANCE)).sum(1) / 2
    for estimate in (nats, fixed):
        gap = estimate - exact
        error = gap.std().item() / math.sqrt(len(z))
        assert -4 * error < gap.mean() < 0.01 + 4 * error
        assert error < 0.03
    assert torch.equal(fixed[:7], -prior(None).log_prob(z[:7]))


def test_bound_of_even_bytes_is_eight_bits() -> None:
    torch.manual_seed(0)
    model = even_model()
    x = torch.randint(0, 256, (5_000, 6))
    with torch.no_grad():
        rates = torch.stack([model(x, noise=Noise(0, step)).bound for step in range(4)])
        distortion = model(x, noise=Noise(0)).distortion
    bits = rates.mean(0) / (6 * math.log(2))
    error = bits.std().item() / math.sqrt(len(x))
    assert error < 0.07
    # times are spread evenly over the examples, so that the mean is far closer than their deviation says
    assert -0.5 * error < bits.mean() - 8 < 0.01 + 0.5 * error
    assert distortion.mean() < 0.1


@pytest.mark.parametrize("levels", [0, 3])
def test_gradient_of_the_ends(levels: int) -> None:
    """Of fixed noise against finite differences; on average against the derivative of the integral's limits."""
    chain = gaussian_chain(2, -2.0)
    chain.levels = levels
    torch.manual_seed(0)
    y = torch.randint(0, 3, (4000, 2)) - 1.0 if levels else VARIANCE**0.5 * torch.randn(4000, 2)

    def loss() -> Tensor:
        return chain.rate(y, None, Noise(0)).mean()

    loss().backward()
    for end in (chain.schedule.first, chain.schedule.last):
        found = []
        for change in (0.01, -0.01):
            with torch.no_grad():
                end.add_(change)
                found.append(loss().item())
                end.sub_(change)
        assert end.grad is not None
        assert end.grad.item() == pytest.approx((found[0] - found[1]) / 0.02, rel=0.03, abs=2e-3)
    if not levels:
        limit = -chain.schedule.ends()[0].neg().exp() / (1 / VARIANCE + chain.schedule.ends()[0].neg().exp())
        assert chain.schedule.first.grad is not None
        assert chain.schedule.first.grad.item() == pytest.approx(limit.item(), rel=0.06)


def test_links_have_exact_weights() -> None:
    """p(z_0) / q(z_0 given y) on average over the chain; its log is below it, and near the bound for many links."""
    chain, links = gaussian_chain(1, -3.0), 8
    first, last = chain.schedule.ends()
    gammas = torch.linspace(0, 1, links + 1) * (last - first) + first
    variance = torch.ones(())
    for s, t in reversed(list(pairwise(gammas))):
        unit = torch.ones(1, 1)
        mean, deviation = samplers.backward(unit, chain.denoise(unit, t), t, s)
        variance = mean.squeeze().square() * variance + deviation.square()
    y, z = torch.full((40_000, 1), 0.4), torch.full((40_000, 1), 0.7)
    q = torch.distributions.Normal(alpha(first) * 0.4, sigma(first))
    exact = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(z[0]) - q.log_prob(z[0])
    with torch.no_grad():
        weights = chain.log_weight(y, z, None, Noise(0), links=links)
        error = (weights - exact).exp().std().item() / 200
        assert (weights - exact).exp().mean().item() == pytest.approx(1, abs=4 * error)  # false alarms: 1 in 10 000
        assert error < 0.05
        assert weights.mean() < exact
        y = VARIANCE**0.5 * torch.randn(20_000, 1)
        few, many = (
            -chain.log_weight(y, chain.start(y, Noise(1)), None, Noise(2), links=n).mean().item() for n in (5, 100)
        )
        assert few > many
        assert many == pytest.approx(chain.rate(y, None, Noise(3)).mean().item(), abs=0.03)


# samplers


@pytest.mark.parametrize(("order", "steps"), [(1, (64, 128, 256)), (2, (64, 128, 256))])
def test_order_of_convergence(order: int, steps: tuple[int, ...]) -> None:
    """The flow of Gaussian data keeps z over its own deviation; double the steps, 2^order-th of the error."""
    chain = gaussian_chain(2, -4.0)
    chain.schedule.double()
    first, last = chain.schedule.ends()
    z = torch.ones(1, 2, dtype=torch.float64)

    def deviation(gamma: Tensor) -> Tensor:
        return (alpha(gamma).square() * VARIANCE + sigma(gamma).square()).sqrt()

    exact = deviation(first) / deviation(last) * z
    denoised = lambda z, gamma: z * alpha(gamma) / (alpha(gamma).square() + sigma(gamma).square() / VARIANCE)  # noqa: E731
    errors = []
    for count in steps:
        gammas = torch.linspace(1, 0, count + 1, dtype=torch.float64) * (last - first) + first
        errors.append((samplers.solve(denoised, z, gammas.detach(), order=order) - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("sampler", ["dpm", "ddim", "ancestral"])
def test_samples_have_the_data_s_deviation(sampler: Sampler) -> None:
    drawn = gaussian_chain(4).sample(4000, Noise(0), sampler=sampler)
    slack = 4 / math.sqrt(2 * 16_000) + (0.1 if sampler == "ancestral" else 0.03)
    assert drawn.std().item() / VARIANCE**0.5 == pytest.approx(1, abs=slack)
    assert abs(drawn.mean()) < 4 * (VARIANCE / 16_000) ** 0.5


def test_samples_of_values_are_values() -> None:
    model = even_model()
    drawn = model.sample(500, sampling=Sampling(steps=20), draw=True)
    assert torch.equal(drawn, drawn.round())
    assert torch.equal(drawn, model.sample(500, sampling=Sampling(steps=20), draw=True))
    assert abs(drawn.mean() - 127.5) < 4 * 74 / math.sqrt(3000)
    assert model.sample(2, sampling=Sampling(temperature=0)).std() < 80


# labels


@pytest.fixture(scope="module")
def of_two_classes() -> DiffusionModel:
    """Trained for a moment on 2-d vectors about (1, 1) and (-1, -1), a class each."""
    torch.manual_seed(0)
    schema = Schema.of((2,), Real(-3.0, 3.0), classes=("low", "high"))
    model = Diffusion(schema, width=32, depth=2, class_conditional=True)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(200):
        label = torch.arange(64) % 2
        x = (2.0 * label - 1)[:, None] + 0.3 * torch.randn(64, 2)
        optimizer.zero_grad()
        bound = model(x, label, noise=Noise(0, step)).bound
        assert bound is not None
        bound.mean().backward()
        optimizer.step()
    return model.eval()


def test_class_conditional_obeys_labels(of_two_classes: DiffusionModel) -> None:
    model, label = of_two_classes, torch.arange(200) % 2
    with torch.no_grad():
        x = (2.0 * label - 1)[:, None] + 0.3 * torch.randn(200, 2)
        right, wrong = (model(x, given, noise=Noise(1)).bound for given in (label, 1 - label))
        assert right is not None
        assert wrong is not None
        assert right.mean() + 1 < wrong.mean()
    for guidance in (None, 2.0):
        drawn = model.sample(200, label, sampling=Sampling(steps=25, guidance=guidance))
        assert ((drawn.mean(1) > 0) == (label == 1)).float().mean() > 0.97
        assert drawn[label == 1].mean().item() == pytest.approx(1, abs=0.25)
    free = model.sample(200, label, sampling=Sampling(steps=25, guidance=0.0))
    assert 0.2 < ((free.mean(1) > 0) == (label == 1)).float().mean() < 0.8


def test_guidance_of_none_and_one(of_two_classes: DiffusionModel) -> None:
    chain, label = of_two_classes.chain, torch.tensor([0, 1, 1])

    def drawn(label: Tensor | None, guidance: float | None) -> Tensor:
        return chain.sample(3, Noise(0), label, Sampling(steps=5, guidance=guidance))

    assert torch.equal(drawn(label, 1.0), drawn(label, None))
    assert torch.equal(drawn(label, 0.0), drawn(None, None))
    assert not torch.equal(drawn(label, 3.0), drawn(label, None))
    torch.testing.assert_close(drawn(label, 1 + 1e-4), drawn(label, None), rtol=1e-2, atol=1e-2)


def test_what_is_refused() -> None:
    plain = Schema.of((2,), Real(-3.0, 3.0))
    with raises("no-labels"):
        Diffusion(plain, class_conditional=True)
    with raises("no-such-option"):
        make(Diffusion, plain, latent_dim=3, draws=5)
    model = Diffusion(plain, width=4, depth=1)
    with raises("no-guidance"):
        model.sample(2, sampling=Sampling(guidance=2.0))
    with raises("no-codes"):
        model.sample(2, sampling=Sampling(top_k=3))
    with raises("no-guidance"):
        DiffusionPrior(width=4, depth=1).build((2,)).sample(2, Noise(0), sampling=Sampling(guidance=2.0))


@pytest.mark.parametrize("width", [1, 33, 50])
def test_any_width_has_groups_to_normalise(width: int) -> None:
    network = UNet((1, 8, 8), 2, width=width, depth=1)
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 2, 8, 8)


@pytest.mark.parametrize("latent_shape", [(5,), (3, 8, 8), (2, 3, 5)])
def test_prior_trains(latent_shape: tuple[int, ...]) -> None:
    """Of latents that all are the same but for a little noise the density rises quickly."""
    torch.manual_seed(0)
    prior = DiffusionPrior(width=16, depth=1).build(latent_shape, 2)
    optimizer = torch.optim.Adam(prior.parameters(), 5e-3)
    label = torch.arange(32) % 2
    nats = []
    for step in range(60):
        z = (2.0 * label - 1).view(-1, *[1] * len(latent_shape)) + 0.1 * torch.randn(32, *latent_shape)
        optimizer.zero_grad()
        loss = -prior(label, Noise(0, step)).log_prob(z).mean()
        loss.backward()
        optimizer.step()
        nats.append(loss.item())
    assert sum(nats[-10:]) < sum(nats[:10]) - 2 * math.prod(latent_shape)
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
