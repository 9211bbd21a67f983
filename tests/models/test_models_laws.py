"""What the bound of a composed model must obey, whatever its networks have learned.

Random tests are seeded and say how often they would fail by chance under another seed.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from making import make
from tessella.bottlenecks import DiagonalGaussian
from tessella.core.contracts import Decoder, Encoder
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.evaluation.bounds import importance_log_likelihood
from tessella.likelihoods import FixedGaussian
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.presets import CVAE, VAE
from tessella.priors import StandardNormal

TINY = {"width": 4, "depth": 1, "latent_dim": 3}
CLASSES = ("a", "b", "c")
PICTURE = Schema.of((1, 6, 5), "binary", classes=CLASSES)
COLOUR = Schema.of((3, 9, 6), "uint8", classes=CLASSES)
VECTOR = Schema.of((2,), Real(-3.0, 3.0), classes=CLASSES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lively(model: LatentVariableModel) -> LatentVariableModel:
    """A model that is far from its start, where q(z | x) is nearly p(z) for every x."""
    with torch.no_grad():
        for parameter in model.bottleneck.parameters():
            parameter.mul_(20).add_(0.3 * torch.randn_like(parameter))
        if model.prior is not None:
            for parameter in model.prior.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def examples(schema: Schema, count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *schema.shape)
    if schema.values.name != "real":
        x = torch.randint(0, int(schema.values.high) + 1, (count, *schema.shape), dtype=torch.uint8)
    return x, torch.arange(count) % len(CLASSES)


def standard_error(draws: Tensor) -> Tensor:
    return draws.std(0) / math.sqrt(len(draws))


# Rate and distortion


@pytest.mark.parametrize("preset", [VAE, CVAE])
@pytest.mark.parametrize("schema", [PICTURE, COLOUR, VECTOR], ids=["vector-of-picture", "grid", "vector"])
def test_rate_is_the_mean_of_log_q_minus_log_p(preset, schema: Schema) -> None:
    """Through the model's own draws. False alarms: 6e-5 for each of 3 examples (4 standard errors)."""
    model = lively(make(preset, schema, **TINY))
    assert model.prior is not None
    x, label = examples(schema, 3)
    count = 2000
    with torch.no_grad():
        rate = model.rate(model.encode(x, label), label).total
        features = model.encoder(model.likelihood.to_network(x), model.check_label(label))
        passage = model.bottleneck(features.repeat(count, *[1] * (features.dim() - 1)), Noise(0))
        prior = model.prior(model.check_label(label.repeat(count)))
        assert passage.posterior is not None
        draws = (passage.posterior.log_prob(passage.z) - prior.log_prob(passage.z)).view(count, 3)
    assert rate.min() > 0.1
    assert ((draws.mean(0) - rate).abs() < 4 * standard_error(draws)).all()


def test_terms_without_noise_are_taken_at_the_mean() -> None:
    model = lively(make(VAE, PICTURE, **TINY))
    x, _ = examples(PICTURE, 3)
    terms, z = model(x), model.encode(x).z
    torch.testing.assert_close(terms.distortion, -model.decode(z).log_prob(x))
    noisy = model.encode(x, noise=Noise(0))
    assert terms.rate is not None
    torch.testing.assert_close(model.rate(noisy).total, terms.rate)
    assert not torch.allclose(noisy.z, z)


def test_reparameterised_gradient_is_the_score_function_gradient() -> None:
    """d/dphi E_q[-log p(x | z)] by both estimators (Kingma & Welling 2013, section 2.2), for phi the bottleneck's bias.

    50 blocks of 400 draws, the difference of the two in each. False alarms: below 1e-5 for each of 4 numbers
    (|t| > 5 at 49 degrees of freedom).
    """
    model = lively(VAE(VECTOR, width=4, depth=1, latent_dim=2))
    phi = model.bottleneck.head.bias
    x = torch.tensor([[0.7, -1.2]]).repeat(400, 1)
    baseline = model(x[:1]).distortion.item()
    differences, sizes, scores = [], [], []
    for step in range(50):
        noise = Noise(0, step)
        (by_path,) = torch.autograd.grad(model(x, noise=noise).distortion.mean(), phi)
        passage = model.bottleneck(model.encoder(model.likelihood.to_network(x), None), Noise(0, step))
        z = passage.z.detach()
        price = -model.decode(z).log_prob(x).detach() - baseline
        (by_score,) = torch.autograd.grad((price * passage.posterior.log_prob(z)).mean(), phi)
        differences.append(by_path - by_score)
        sizes.append(by_path)
        scores.append(by_score)
    difference, size = torch.stack(differences), torch.stack(sizes).mean(0)
    assert (difference.mean(0).abs() < 5 * standard_error(difference)).all()
    assert size.norm() > 5 * standard_error(difference).norm(), "the test would not notice a missing gradient"
    assert (torch.stack(sizes).var(0) < 0.5 * torch.stack(scores).var(0)).all(), "the score function varies more"


# A model whose p(x) is known


class Itself(Encoder):
    """Features are the values."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.feature_shape = (dims,)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return x


class Affine(Decoder):
    """W z + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        return z @ self.weight.T + self.bias

    def start_at(self, bias) -> None:
        """Nothing: its weights are given."""


SIGMA = 0.5
WEIGHT = torch.tensor([[1.0, 0.5], [2.0, -0.25], [0.0, 1.5]])  # orthogonal columns: the exact posterior is factorised
BIAS = torch.tensor([0.3, -1.0, 2.0])


def linear_gaussian(*, shift: float = 0.0, stretch: float = 1.0) -> tuple[LatentVariableModel, MultivariateNormal]:
    """p(z) = N(0, I), p(x | z) = N(W z + b, sigma^2 I), and p(x) = N(b, W W' + sigma^2 I).

    q(z | x) is the exact posterior N(M^-1 W' (x - b) / sigma^2, M^-1), M = I + W' W / sigma^2 (Bishop 2006, eq. 12.42),
    but for `shift` added to its mean and its standard deviation multiplied by `stretch`.
    """
    likelihood = FixedGaussian(scale=SIGMA).build(Schema.of((3,), Real(-9.0, 9.0)))
    bottleneck = DiagonalGaussian().build((3,), 2)
    precision = 1 + WEIGHT.square().sum(0) / SIGMA**2
    map_ = (WEIGHT / precision).T / SIGMA**2
    with torch.no_grad():
        bottleneck.head.weight.copy_(torch.cat([map_, torch.zeros(2, 3)]))
        bottleneck.head.bias.copy_(torch.cat([shift - map_ @ BIAS, math.log(stretch) - precision.log() / 2]))
    model = LatentVariableModel(
        "linear-gaussian",
        likelihood=likelihood,
        encoder=Itself(3),
        bottleneck=bottleneck,
        prior=StandardNormal().build((2,)),
        decoder=Affine(WEIGHT, BIAS),
    )
    return model, MultivariateNormal(BIAS, WEIGHT @ WEIGHT.T + SIGMA**2 * torch.eye(3))


@torch.no_grad()
def bounds(model: LatentVariableModel, x: Tensor, count: int) -> Tensor:
    """One-sample estimates of the bound, `[count, B]`."""
    terms = model(x.repeat(count, 1), noise=Noise(0))
    assert terms.bound is not None
    return terms.bound.view(count, len(x))


def test_bound_of_the_exact_posterior_is_the_exact_likelihood() -> None:
    """False alarms: 6e-5 for each of 4 examples (4 standard errors)."""
    model, truth = linear_gaussian()
    x = truth.sample((4,))
    exact = -truth.log_prob(x)
    weights = model(x, noise=Noise(1), draws=5).log_weights
    torch.testing.assert_close(weights, -exact.expand(5, 4), rtol=0, atol=1e-4)  # every draw says the same
    draws = bounds(model, x, 4000)
    assert ((draws.mean(0) - exact).abs() < 4 * standard_error(draws)).all()


@pytest.mark.parametrize(("shift", "stretch"), [(0.4, 1.0), (0.0, 2.0), (-0.3, 0.5)])
def test_bound_exceeds_the_exact_by_what_the_posterior_is_off(shift: float, stretch: float) -> None:
    """bound = -log p(x) + KL(q(z | x) || p(z | x)). False alarms: 6e-5 for each of 4 examples (4 standard errors)."""
    model, truth = linear_gaussian(shift=shift, stretch=stretch)
    x = truth.sample((4,))
    exact = -truth.log_prob(x)
    deviation = (1 + WEIGHT.square().sum(0) / SIGMA**2).rsqrt()
    gap = ((stretch**2 - 1) / 2 - math.log(stretch) + (shift / deviation).square() / 2).sum()
    draws = bounds(model, x, 4000)
    assert gap > 0.1
    assert ((draws.mean(0) - exact - gap).abs() < 4 * standard_error(draws)).all()
    assert (draws.mean(0) > exact).all()


def test_importance_bound_closes_the_gap() -> None:
    """-log p(x) <= E importance bound <= E bound (Burda et al. 2015, theorem 1).

    Means of 2000 runs with 1, 5 and 50 samples. False alarms: below 1e-4 for each of 3 comparisons (4 standard errors;
    the gaps are many of them).
    """
    model, truth = linear_gaussian(stretch=2.0)
    x = truth.sample((1,)).expand(2000, 3)
    exact = -truth.log_prob(x[:1])
    with torch.no_grad():
        runs = {k: -importance_log_likelihood(model, x, None, k, Noise(0, k)) for k in (1, 5, 50)}
    means = [runs[k].mean() for k in (1, 5, 50)]
    errors = [standard_error(runs[k]) for k in (1, 5, 50)]
    assert means[0] - means[1] > 4 * (errors[0] + errors[1])
    assert means[1] - means[2] > 4 * (errors[1] + errors[2])
    assert means[2] - exact > -4 * errors[2]
    assert means[2] - exact < 0.1


# Examples on their own


@pytest.mark.parametrize("preset", [VAE, CVAE])
@pytest.mark.parametrize("schema", [PICTURE, COLOUR, VECTOR], ids=["vector-of-picture", "grid", "vector"])
def test_an_example_does_not_feel_its_neighbours(preset, schema: Schema) -> None:
    model = lively(make(preset, schema, **TINY))
    x, label = examples(schema, 5)
    alone = [model(x[i : i + 1], label[i : i + 1]) for i in range(5)]
    together = model(x, label)
    turned = model(x.flip(0), label.flip(0))
    for i, one in enumerate(alone):
        torch.testing.assert_close(together.distortion[i], one.distortion[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.rate[i], one.rate[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(turned.distortion[4 - i], one.distortion[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schema", [PICTURE, COLOUR, VECTOR], ids=["vector-of-picture", "grid", "vector"])
def test_two_ranks_draw_what_the_joined_batch_draws(schema: Schema) -> None:
    model = lively(make(CVAE, schema, **TINY))
    x, label = examples(schema, 6)
    joined = model.encode(x, label, noise=Noise(3, 5, "latent"))
    terms = model(x, label, noise=Noise(3, 5, "latent"))
    for rank in (0, 1):
        half = slice(3 * rank, 3 * rank + 3)
        mine = Noise(3, 5, "latent", rank=rank, world=2)
        torch.testing.assert_close(model.encode(x[half], label[half], noise=mine).z, joined.z[half])
        mine = Noise(3, 5, "latent", rank=rank, world=2)
        torch.testing.assert_close(model(x[half], label[half], noise=mine).distortion, terms.distortion[half])


# What a label does, what temperature does


def test_label_is_seen_by_all_parts_of_a_conditional_model() -> None:
    model = lively(make(CVAE, PICTURE, **TINY))
    x, _ = examples(PICTURE, 1)
    labels = torch.arange(3)
    latent = model.encode(x.expand(3, *PICTURE.shape), labels)
    assert len(latent.z.unique(dim=0)) == 3
    assert len(model.decode(latent.z[:1].expand(3, -1), labels).mean.unique(dim=0)) == 3
    assert len(model.sample_prior(3, labels, sampling=Sampling(0)).unique(dim=0)) == 3


def test_prior_is_sampled_as_it_says() -> None:
    """False alarms: 6e-5 for each of 12 means and of 12 variances (4 standard errors)."""
    model = lively(make(CVAE, PICTURE, **TINY))
    count = 6000
    label = torch.arange(count) % 3
    z = model.sample_prior(count, label)
    assert model.prior is not None
    for number in range(3):
        prior = model.prior(torch.tensor([number]))
        standard = (z[label == number] - prior.mean) / prior.stddev
        assert (standard.mean(0).abs() < 4 / math.sqrt(count / 3)).all()
        assert ((standard.var(0) - 1).abs() < 4 * math.sqrt(2 / (count / 3))).all()
    cold = model.sample_prior(count, label, sampling=Sampling(0.5))
    means = model.prior(label).mean
    torch.testing.assert_close(cold - means, (z - means) / 2)
