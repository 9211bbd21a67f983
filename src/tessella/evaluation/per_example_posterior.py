"""The bound when q is optimised for each example by itself, as if there were no encoder (Cremer et al. 2018).

An encoder has to find q(z | x) in one pass, for all examples alike. What the bound gains when each example's q is moved
by Adam from where the encoder put it is the price of that: the amortisation gap. What is still missing to log p(x) is
the price of q's family: the approximation gap.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.func import functional_call, vmap

from tessella.bottlenecks.flow import FlowDistribution, FlowPosteriorModule
from tessella.bottlenecks.gaussian import diagonal_normal
from tessella.core.distributions import kl
from tessella.core.rng import Noise
from tessella.evaluation.annealing import Joint
from tessella.models.latent_variable import LatentVariableModel

RATES = (0.03, 0.01, 0.003, 0.001)
"""Adam's steps, one after the other: each until it gains no more."""
ROUND, ROUNDS = 50, 40
"""Updates between two looks at whether it still gains, and the most looks in all."""
GAIN = 0.01
"""Nats an example that a round must gain over the best before."""
DRAWS = 8
"""Of z an example in an update."""
HIDDEN = 48
"""Units of each step's network, of which every example has its own."""
LARGEST = 1024
"""Numbers in z above which a flow for each example is too much."""
DECODED = 2**19
"""Numbers of data decoded at a time when a bound is measured."""


class VariationalFamily(ABC):
    """A q(z) for each of `B` examples, with parameters of its own for each.

    Attributes:
        parameters: each `[B, ...]`, with the factor by which its steps are larger than `RATES`.
    """

    parameters: Sequence[tuple[Tensor, float]]

    @abstractmethod
    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Map standard normal numbers to z ~ q `[B * draws, *latent_shape]` and log q(z) `[B * draws]`.

        Args:
            eps: `[B * draws, *latent_shape]`, an example's in a row; or `[1, *latent_shape]` for all alike.
        """

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """Some `[B, *latent_shape]`."""

    def draw(self, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
        """Draw z ~ q `[B * draws, *latent_shape]`, an example's in a row, and log q(z) `[B * draws]`."""
        count, *shape = self.like.shape
        return self.at(noise.normal(count * draws, *shape, device=self.like.device), draws)

    def divergence(self, model: LatentVariableModel, label: Tensor | None) -> Tensor | None:
        """KL(q || p(z)) `[B]` where it has a closed form."""
        return None


@final
class GaussianFamily(VariationalFamily):
    """All N(mu, diag sigma^2), from the encoder's on."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self._mean, self._deviation = mean.detach(), deviation.detach()
        self._moved, self._widened = torch.zeros_like(mean), torch.zeros_like(mean)
        self.parameters = [(self._moved.requires_grad_(), 1.0), (self._widened.requires_grad_(), 1.0)]

    @property
    def posterior(self) -> Independent:
        """q as it is now; batch shape `[B]`."""
        return diagonal_normal(*self._moments())

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self._mean + self._deviation * self._moved, self._deviation * self._widened.exp()

    @property
    def like(self) -> Tensor:
        return self._mean

    def start(self, eps: Tensor, draws: int) -> tuple[Tensor, Independent]:
        """z as `at` gives it, and q of each `[B * draws]`, through which no gradient passes.

        Of log q(z) that of z alone is followed: what its own parameters add has mean zero, and near p(z | x) nearly all
        of the noise (Roeder et al. 2017, "Sticking the landing", eq. 5).
        """
        mean, deviation = (t.repeat_interleave(draws, 0) for t in self._moments())
        return mean + deviation * eps, diagonal_normal(mean.detach(), deviation.detach())

    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        z, q = self.start(eps, draws)
        return z, q.log_prob(z)

    def divergence(self, model: LatentVariableModel, label: Tensor | None) -> Tensor | None:
        assert model.prior is not None
        try:
            return kl(self.posterior, model.prior(model.check_label(label)))
        except ValueError:
            return None


@final
class FlowPosteriorFamily(VariationalFamily):
    """The model's flow posterior with every number of it each example's own, from where encoder and training left it.

    So are means and deviations of the Gaussian that is carried on, the context that the steps are told, and the steps'
    weights (Cremer et al. 2018, section 3.2).
    """

    def __init__(self, posterior: FlowDistribution) -> None:
        self._base = GaussianFamily(posterior.base.mean, posterior.base.stddev)
        self._context = posterior.context.detach().clone().requires_grad_()
        count = len(self._context)
        self._modules = [step for step in posterior.steps if isinstance(step, nn.Module)]
        self._weights = [
            {name: p.detach().expand(count, *p.shape).clone().requires_grad_() for name, p in step.named_parameters()}
            for step in self._modules
        ]
        free = [self._context, *(p for weights in self._weights for p in weights.values())]
        self.parameters = [*self._base.parameters, *((p, _size(p)) for p in free)]

    @property
    def like(self) -> Tensor:
        return self._base.like

    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        start, base = self._base.start(eps, draws)
        steps = [_Own(step, weights) for step, weights in zip(self._modules, self._weights, strict=True)]
        q = FlowDistribution(base, steps, self._context.repeat_interleave(draws, 0), start)
        return q.z, q.log_prob(q.z)


@final
class CarriedFamily(VariationalFamily):
    """The model's flow posterior with the Gaussian that is carried on each example's own, the steps as they are."""

    def __init__(self, posterior: FlowDistribution) -> None:
        self._posterior, self._base = posterior, GaussianFamily(posterior.base.mean, posterior.base.stddev)
        self.parameters = self._base.parameters

    @property
    def like(self) -> Tensor:
        return self._base.like

    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        start, base = self._base.start(eps, draws)
        return self._posterior.rebased(base, base.mean).carried(start)


@dataclass(frozen=True)
class _Own:
    """A flow's step with weights of each example's own, `[B, ...]` by name; it is given its draws in a row."""

    step: nn.Module
    weights: dict[str, Tensor]

    def __call__(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        count = len(next(iter(self.weights.values())))
        each = [t.unflatten(0, (count, -1)) for t in (z, context)]
        shift, log_gate = vmap(partial(functional_call, self.step))(self.weights, tuple(each))
        return shift.flatten(0, 1), log_gate.flatten(0, 1)


def _size(parameter: Tensor) -> float:
    """By how much its steps are larger than others', as its numbers are."""
    return float(parameter.detach().abs().mean().clamp_min(1e-3))


@final
class FlowFamily(VariationalFamily):
    """Another family, and after it inverse autoregressive steps whose networks are each example's own.

    A step takes u to m(u_<) + g(u_<) u, number by number, in an order reversed from step to step (Kingma et al. 2016,
    section 3); a network has one masked hidden layer (MADE, Germain et al. 2015). It starts as the family itself, whose
    parameters go on being moved.

    Args:
        inner: the family.
        mean, deviation: `[B, *latent_shape]`, of its draws, so that networks see numbers of about unit scale.
    """

    def __init__(
        self, inner: VariationalFamily, mean: Tensor, deviation: Tensor, noise: Noise, *, steps: int = 2
    ) -> None:
        self._inner, self._mean, self._deviation = inner, mean, deviation
        count, dims = len(mean), mean[0].numel()
        degree = torch.arange(HIDDEN, device=mean.device) % max(1, dims - 1)
        order = torch.arange(dims, device=mean.device)
        self._into = (order[None] <= degree[:, None]).float()
        self._out = (degree[None] < order[:, None]).float()
        self._steps: list[tuple[Tensor, ...]] = []
        for number in range(steps):
            enter = noise.split(f"flow{number}").normal(count, HIDDEN, dims, device=mean.device) / math.sqrt(dims)
            new = [enter, *(mean.new_zeros(count, *size) for size in ((1, HIDDEN), *2 * ((dims, HIDDEN), (1, dims))))]
            self._steps.append(tuple(t.requires_grad_() for t in new))
        self.parameters = [*inner.parameters, *((t, 0.3) for step in self._steps for t in step)]

    @property
    def like(self) -> Tensor:
        return self._mean

    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        start, log_q = self._inner.at(eps, draws)
        shape, count = start.shape, len(self._mean)
        mean, deviation = self._mean.flatten(1)[:, None], self._deviation.flatten(1)[:, None]
        u = (start.reshape(count, draws, -1) - mean) / deviation
        for enter, bias, shift, shift_bias, gate, gate_bias in self._steps:
            u = u.flip(-1)
            h = torch.tanh(torch.baddbmm(bias, u, (enter * self._into).mT))
            m = torch.baddbmm(shift_bias, h, (shift * self._out).mT)
            log_gate = F.logsigmoid(torch.baddbmm(gate_bias, h, (gate * self._out).mT)) + math.log(2)
            u, log_q = m + log_gate.exp() * u, log_q - log_gate.sum(-1).flatten()
        return (mean + deviation * u).reshape(shape), log_q


def from_encoder(model: LatentVariableModel, x: Tensor, label: Tensor | None) -> VariationalFamily:
    """The family of the model's own q, from where its encoder puts it."""
    with torch.no_grad():
        features = model.encoder(model.likelihood.to_network(x), model.check_label(label))
        q = model.bottleneck(features, None).posterior
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return GaussianFamily(q.base_dist.loc, q.base_dist.scale)
    assert isinstance(q, FlowDistribution)
    return FlowPosteriorFamily(q)


def weights(model: LatentVariableModel) -> int:
    """How many weights of networks the family of the model's own q has for each example; a Gaussian has none."""
    flow = model.bottleneck
    return sum(p.numel() for p in flow.steps.parameters()) if isinstance(flow, FlowPosteriorModule) else 0


def with_flow(model: LatentVariableModel, x: Tensor, inner: VariationalFamily, noise: Noise) -> FlowFamily:
    """That family with a flow after it.

    Raises:
        ValueError: if z has more numbers than `LARGEST`.
    """
    if math.prod(model.latent_shape) > LARGEST:
        raise ValueError(f"a flow for each example is for up to {LARGEST} numbers in z")
    with torch.no_grad():
        z = inner.draw(noise.split("moments"), 64)[0].unflatten(0, (len(x), 64))
    deviation, mean = torch.std_mean(z, 1)
    return FlowFamily(inner, mean, deviation.clamp_min(1e-4), noise)


@final
class _Descent:
    """Adam on a family's parameters."""

    def __init__(self, family: VariationalFamily, rate: float) -> None:
        self.parameters, self._factors = zip(*family.parameters, strict=True)
        self._adam = torch.optim.Adam([{"params": [p], "lr": rate * factor} for p, factor in family.parameters])

    def slow_to(self, rate: float) -> None:
        for group, factor in zip(self._adam.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor

    @torch.enable_grad()
    def step(self, bound: Callable[[], Tensor]) -> Tensor:
        """Go down once, and give the bound as it was before, `[B]`; the model's own weights get no gradients."""
        value = bound()
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(value.sum(), self.parameters), strict=True):
            parameter.grad = gradient
        self._adam.step()
        return value.detach()


def optimise(
    model: LatentVariableModel, x: Tensor, label: Tensor | None, family: VariationalFamily, noise: Noise
) -> int:
    """Move the family's parameters until the bound gains no more; the number of updates that it took."""
    joint, descent = Joint(model, x, label, DRAWS), _Descent(family, RATES[0])
    best, stage = math.inf, 0
    for number in range(ROUNDS):
        total = 0.0
        for update in range(ROUND):
            here = noise.split(f"{number}/{update}")
            total += float(descent.step(lambda here=here: _bound(family, joint, label, here, DRAWS)).mean())
        if total / ROUND > best - GAIN:
            stage += 1
            if stage == len(RATES):
                return (number + 1) * ROUND
            descent.slow_to(RATES[stage])
        best = min(best, total / ROUND)
    return ROUNDS * ROUND


def after_steps(
    model: LatentVariableModel,
    x: Tensor,
    label: Tensor | None,
    posterior: Distribution,
    eps: Tensor,
    noise: Noise,
    *,
    steps: int,
    rate: float,
) -> Tensor:
    """The bound `[B]` nats after a few steps of Adam from the encoder's q on, a draw for all examples in each.

    Of a flow posterior its first Gaussian is moved, and its steps stay as the encoder sets them.

    Args:
        eps: `[draws, 1, *latent_shape]`, standard normal: the bound is measured on these, which have no part in the
            steps, so where nothing can be gained it may come out a little above the encoder's.
        rate: of Adam, in deviations of the encoder's q.
    """
    if isinstance(posterior, FlowDistribution):
        family: VariationalFamily = CarriedFamily(posterior)
    else:
        family = GaussianFamily(posterior.mean, posterior.stddev)
    joint, descent = Joint(model, x, label), _Descent(family, rate)
    for step in range(steps):
        one = noise.split(f"step{step}").normal(1, *eps.shape[2:], device=x.device)
        descent.step(lambda one=one: _at(family, joint, label, family.at(one), 1))
    with torch.no_grad():
        return torch.stack([_at(family, joint, label, family.at(e), 1) for e in eps]).mean(0)


@torch.no_grad()
def family_bound(
    model: LatentVariableModel, x: Tensor, label: Tensor | None, family: VariationalFamily, noise: Noise, *, draws: int
) -> Tensor:
    """-log p(x) from above, `[B]` nats: KL(q || p) - E_q log p(x | z), over `draws` draws that none was fitted to."""
    each = max(1, min(draws, DECODED // (len(x) * model.schema.dims)))
    joint, total, done = Joint(model, x, label, each), torch.zeros(len(x), device=x.device), 0
    while done < draws:
        total += _bound(family, joint, label, noise.split(f"measured{done}"), each).float()
        done += each
    return total * each / done


def _bound(family: VariationalFamily, joint: Joint, label: Tensor | None, noise: Noise, draws: int) -> Tensor:
    return _at(family, joint, label, family.draw(noise, draws), draws)


def _at(
    family: VariationalFamily, joint: Joint, label: Tensor | None, drawn: tuple[Tensor, Tensor], draws: int
) -> Tensor:
    z, log_q = drawn
    rate = family.divergence(joint.model, label)
    cost = joint.distortion(z)
    if rate is None:
        return (cost + log_q - joint.prior.log_prob(z)).view(-1, draws).mean(1)
    return rate + cost.view(-1, draws).mean(1)
