"""Laws of the measures of collapse: against closed forms, on latents that say nothing, and on ones that say all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tessella.bottlenecks import Deterministic, DiagonalGaussian
from tessella.core.batches import Batch
from tessella.core.contracts import Decoder, Encoder
from tessella.core.outputs import Latent
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.evaluation import collapse
from tessella.foundation.errors import option
from tessella.likelihoods import FixedGaussian
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors import ClassNormal, StandardNormal

ONE_GROUP = torch.zeros(1000, dtype=torch.int64)


def latent(mean: Tensor, deviation: Tensor | float, seed: int = 0) -> Latent:
    """M examples whose q(z | x_m) = N(mean_m, deviation^2), and a draw from each."""
    posterior = Independent(Normal(mean, torch.as_tensor(deviation).expand_as(mean)), mean.dim() - 1)
    z = mean + deviation * Noise(seed).normal(*mean.shape)
    return Latent(z, posterior)


def information(of: Latent, group: Tensor | None = None) -> tuple[float, float]:
    group = ONE_GROUP[: len(of.z)] if group is None else group
    return collapse.mutual_information(collapse.log_densities(of), group, torch.ones(len(group), dtype=torch.bool))


def test_the_information_of_a_linear_gaussian_channel_is_its_closed_form() -> None:
    """z = x + N(0, s^2) has I = sum_d log(1 + v_d / s_d^2) / 2; seeded, the estimate's standard error is 0.03 nats."""
    variance, noise = torch.tensor([1.0, 4.0, 0.2]), torch.tensor([1.0, 0.8, 1.0])
    means = variance.sqrt() * Noise(1).normal(1000, 3)
    exact = float(torch.log1p(variance / noise**2).sum() / 2)
    found, ceiling = information(latent(means, noise))
    assert found == pytest.approx(exact, abs=0.12)
    assert found < ceiling == pytest.approx(math.log(1000))


def test_the_information_of_two_posteriors_is_that_of_a_binary_channel() -> None:
    """Half the examples at -1 and half at 1, deviation 1: I by quadrature over z; standard error 0.01 nats."""
    means = torch.tensor([-1.0, 1.0]).repeat(500)[:, None]
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    each = [torch.exp(-((z - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (-1, 1)]
    mixture = (each[0] + each[1]) / 2
    entropy = -torch.trapezoid(mixture * mixture.clamp_min(1e-300).log(), z)
    exact = float(entropy) - 0.5 * math.log(2 * math.pi * math.e)
    assert information(latent(means, 1.0))[0] == pytest.approx(exact, abs=0.04)


def test_posteriors_that_are_one_say_nothing_and_ones_far_apart_say_who_it_is() -> None:
    assert information(latent(torch.ones(60, 4, 2, 2), 0.5))[0] == pytest.approx(0, abs=1e-6)
    apart = latent(torch.arange(60.0)[:, None] * 100, 0.5)
    assert information(apart) == pytest.approx((math.log(60), math.log(60)))


def test_what_only_the_class_says_is_not_credited_to_the_latent() -> None:
    group = torch.arange(60) % 3
    by_class = latent(100.0 * group[:, None], 1.0)
    assert information(by_class)[0] == pytest.approx(math.log(3))
    found, ceiling = information(by_class, group)
    assert found == pytest.approx(0, abs=1e-6)
    assert ceiling == pytest.approx(math.log(20))


@pytest.mark.parametrize("levels", [1, 2])
def test_the_information_of_codes_is_the_entropy_of_their_grids(levels: int) -> None:
    grids = torch.tensor([[1, 2, 3, 4]] * 4 + [[1, 2, 3, 5]] * 2 + [[0, 2, 3, 4]] + [[9, 2, 3, 4]]).view(8, 1, 2, 2)
    codes = (grids,) if levels == 1 else (grids[:, :, :1, :1], grids)
    of = Latent(torch.zeros(8, 1), codes=codes)
    entropy = -sum(p * math.log(p) for p in (1 / 2, 1 / 4, 1 / 8, 1 / 8))
    assert information(of) == pytest.approx((entropy, math.log(8)))
    other = collapse.partners(ONE_GROUP[:8])
    assert collapse.active_units(of, ONE_GROUP[:8], other) == ((2, 4) if levels == 1 else (3, 5))


def test_a_unit_is_active_if_its_mean_moves_within_its_class() -> None:
    means = Noise(0).normal(400, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0])
    group = torch.arange(400) % 2
    means[:, 3] = 10.0 * group
    of = latent(means, 1.0)
    assert collapse.active_units(of, ONE_GROUP[:400], collapse.partners(ONE_GROUP[:400])) == (3, 4)
    assert collapse.active_units(of, group, collapse.partners(group)) == (2, 4)


def test_partners_are_others_of_the_same_group_each_once() -> None:
    group = torch.tensor([0] * 7 + [1] * 5 + [2])
    other = collapse.partners(group, seed=3)
    assert torch.equal(group[other], group)
    assert sorted(other.tolist()) == list(range(13))
    assert (other == torch.arange(13)).nonzero().flatten().tolist() == [12]
    assert not torch.equal(other, collapse.partners(group, seed=4))


# on models


class Scaled(Encoder):
    """Features are the example times a number."""

    feature_shape = (3,)

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return self.factor * x


class Drawn(Decoder):
    """The mean of p(x | z) is z times a number, and what the label says."""

    def __init__(self, factor: float, by_label: float = 0.0) -> None:
        super().__init__()
        self.factor, self.by_label = factor, by_label

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        shift = 0.0 if label is None else self.by_label * label[:, None]
        return self.factor * z + shift

    def start_at(self, bias) -> None:
        """Nothing: its weights are given."""


def linear(encoded: float, drawn: float, *, deviation: float = 0.3, scale: float = 0.5, by_label: float = 0.0):
    """q(z | x) = N(encoded x, deviation^2), p(x | z) = N(drawn z (+ by_label y), scale^2), three numbers each."""
    waist = DiagonalGaussian().build((3,), 3)
    with torch.no_grad():
        waist.head.weight.copy_(torch.cat([torch.eye(3), torch.zeros(3, 3)]))
        waist.head.bias.copy_(torch.cat([torch.zeros(3), torch.full((3,), math.log(deviation))]))
    return LatentVariableModel(
        "linear",
        likelihood=FixedGaussian(scale=scale).build(
            Schema.of((3,), Real(-9, 9), classes=("a", "b") if by_label else ())
        ),
        encoder=Scaled(encoded),
        bottleneck=waist,
        prior=ClassNormal().build((3,), 2) if by_label else StandardNormal().build((3,)),
        decoder=Drawn(drawn, by_label),
        conditional=bool(by_label),
    ).eval()


EXAMPLES = Batch(Noise(7).normal(1000, 3))


def test_the_shuffle_cost_of_a_linear_model_is_its_closed_form() -> None:
    """E[(x - w z')^2 - (x - w z)^2] / 2 s^2 = D w cov(x, z) / s^2 = 3 * 0.8 * 0.9 / 0.25; standard error 0.5 nats."""
    found = collapse.measure_collapse(linear(0.9, 0.8), EXAMPLES)
    assert found is not None
    assert found.shuffle_cost == pytest.approx(3 * 0.8 * 0.9 / 0.25, abs=1.5)
    assert (found.active_units, found.units, found.collapsed, found.advice) == (3, 3, False, "")
    assert found.mutual_information == pytest.approx(1.5 * math.log1p(0.81 / 0.09), abs=0.2)


def test_a_decoder_that_ignores_its_latent_has_collapsed_whatever_the_encoder_says() -> None:
    found = collapse.measure_collapse(linear(0.9, 0.0), EXAMPLES)
    assert found is not None
    assert found.shuffle_cost == 0
    assert found.active_units == 3
    assert found.mutual_information > 3
    assert found.collapsed
    assert "0.00 nats" in found.advice
    assert option("free_bits") in found.advice


def test_an_encoder_that_says_nothing_has_collapsed_whatever_the_decoder_does() -> None:
    found = collapse.measure_collapse(linear(0.0, 0.8), EXAMPLES)
    assert found is not None
    assert found.collapsed
    assert found.active_units == 0
    assert found.mutual_information == pytest.approx(0, abs=1e-6)
    assert found.shuffle_cost == pytest.approx(0, abs=0.5)


def test_a_conditional_model_that_draws_by_the_label_alone_has_collapsed() -> None:
    label = torch.arange(1000) % 2
    examples = Batch(EXAMPLES.x + 5.0 * label[:, None], label)
    model = linear(0.0, 0.8, by_label=5.0)
    found = collapse.measure_collapse(model, examples)
    assert found is not None
    assert found.collapsed
    assert found.mutual_information_ceiling == pytest.approx(math.log(500))
    assert collapse.measure_collapse(model, Batch(examples.x[:2], label[:2])) is None  # no two of one class


def test_it_is_judged_twice_alike_and_not_at_all_without_a_posterior() -> None:
    model = linear(0.9, 0.8)
    few = Batch(EXAMPLES.x[:50])
    assert collapse.measure_collapse(model, few, seed=1) == collapse.measure_collapse(model, few, seed=1)
    assert collapse.measure_collapse(model, few, seed=1) != collapse.measure_collapse(model, few, seed=2)
    plain = LatentVariableModel(
        "plain",
        likelihood=model.likelihood,
        encoder=Scaled(1.0),
        bottleneck=Deterministic().build((3,), 3),
        prior=None,
        decoder=Drawn(1.0),
    )
    assert collapse.measure_collapse(plain, few) is None
    assert collapse.measure_collapse(model, Batch(few.x[:1])) is None


def test_densities_do_not_depend_on_how_their_passes_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    of = latent(Noise(2).normal(30, 2, 3), 0.7)
    whole = collapse.log_densities(of)
    monkeypatch.setattr(collapse, "AT_ONCE", 30 * 6 * 7)
    assert torch.equal(whole, collapse.log_densities(of))
    direct = Normal(of.posterior.mean[4], 0.7).log_prob(of.z[9]).sum()
    assert whole[9, 4] == pytest.approx(float(direct), abs=1e-4)
