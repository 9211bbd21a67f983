"""Optimises q(z) for each example by itself, without an encoder (Cremer et al. 2018).

An encoder finds q(z | x) in one pass, with one set of weights for all examples. Here Adam optimises the parameters of
each example's q, starting at the encoder's output. The gain of the bound is the amortisation gap. What then remains to
log p(x) is due to the family of q: the approximation gap.
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
"""Learning rates of Adam, in this order, each until the bound stops improving."""
ROUND, ROUNDS = 50, 40
"""Updates between two tests of convergence, and the maximum number of tests."""
GAIN = 0.01
"""Improvement over the best round, in nats per example, below which the learning rate falls."""
DRAWS = 8
"""Posterior samples per example and update."""
HIDDEN = 48
"""Hidden units of each example's network in each flow step."""
LARGEST = 1024
"""Largest number of latent values for which each example may have its own flow."""
DECODED = 2**19
"""Values of data decoded in one pass when a bound is measured."""


class VariationalFamily(ABC):
    """A variational posterior q(z) for each of `B` examples, each with its own parameters.

    Attributes:
        parameters: tensors `[B, ...]`, each with the factor that multiplies its learning rate.
    """

    parameters: Sequence[tuple[Tensor, float]]

    @abstractmethod
    def at(self, eps: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Map standard normal noise to z ~ q `[B * draws, *latent_shape]` and log q(z) `[B * draws]`.

        Args:
            eps: `[B * draws, *latent_shape]`, all draws of an example in a row; or `[1, *latent_shape]`, shared by all.
        """

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """Return a tensor `[B, *latent_shape]` with the shape and device of z."""

    def draw(self, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
        """Sample z ~ q `[B * draws, *latent_shape]` and compute log q(z) `[B * draws]`.

        All draws of an example are in a row.
        """
        count, *shape = self.like.shape
        return self.at(noise.normal(count * draws, *shape, device=self.like.device), draws)

    def divergence(self, model: LatentVariableModel, label: Tensor | None) -> Tensor | None:
        """Compute KL(q || p(z)) `[B]`, or return None if it has no closed form."""
        return None


@final
class GaussianFamily(VariationalFamily):
    """Diagonal Gaussians N(mu, diag sigma^2), starting at the encoder's."""

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self._mean, self._deviation = mean.detach(), deviation.detach()
        self._moved, self._widened = torch.zeros_like(mean), torch.zeros_like(mean)
        self.parameters = [(self._moved.requires_grad_(), 1.0), (self._widened.requires_grad_(), 1.0)]

    @property
    def posterior(self) -> Independent:
        """Return the present q, with batch shape `[B]`."""
        return diagonal_normal(*self._moments())

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self._mean + self._deviation * self._moved, self._deviation * self._widened.exp()

    @property
    def like(self) -> Tensor:
        return self._mean

    def start(self, eps: Tensor, draws: int) -> tuple[Tensor, Independent]:
        """Compute z as `at` does, and the q of each draw `[B * draws]` with detached parameters.

        So the gradient of log q(z) flows through z alone. The other part, through q's parameters, has mean zero, and
        near p(z | x) it is nearly all of the noise (Roeder et al. 2017, "Sticking the landing", eq. 5).
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
    """The model's flow posterior with all parameters separate for each example, starting at the trained ones.

    These are the mean and deviation of the base Gaussian, the context of the steps, and the weights of the steps
    (Cremer et al. 2018, section 3.2).
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
    """The model's flow posterior with a base Gaussian for each example and the trained steps."""

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
    """A flow step with weights `[B, ...]` for each example, by name; all draws of an example are in a row."""

    step: nn.Module
    weights: dict[str, Tensor]

    def __call__(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        count = len(next(iter(self.weights.values())))
        each = [t.unflatten(0, (count, -1)) for t in (z, context)]
        shift, log_gate = vmap(partial(functional_call, self.step))(self.weights, tuple(each))
        return shift.flatten(0, 1), log_gate.flatten(0, 1)


def _size(parameter: Tensor) -> float:
    """Compute the factor of a parameter's learning rate: the mean magnitude of its values."""
    return float(parameter.detach().abs().mean().clamp_min(1e-3))


@final
class FlowFamily(VariationalFamily):
    """Another family followed by inverse autoregressive steps, with networks for each example.

    A step maps u to m(u_<) + g(u_<) u, value by value, in an order that reverses from step to step (Kingma et al. 2016,
    section 3); its network has one masked hidden layer (MADE, Germain et al. 2015). It starts as the inner family,
    whose parameters are optimised too.

    Args:
        inner: the family before the steps.
        mean, deviation: `[B, *latent_shape]`, moments of its samples, which standardize the inputs of the networks.
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
    """Return the family of the model's q, starting at the encoder's output."""
    with torch.no_grad():
        features = model.encoder(model.encoder_input(x), model.check_label(label))
        q = model.bottleneck(features, None).posterior
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return GaussianFamily(q.base_dist.loc, q.base_dist.scale)
    assert isinstance(q, FlowDistribution)
    return FlowPosteriorFamily(q)


def weights(model: LatentVariableModel) -> int:
    """Count the weights per example in the family of the model's q; 0 for a Gaussian."""
    flow = model.bottleneck
    return sum(p.numel() for p in flow.steps.parameters()) if isinstance(flow, FlowPosteriorModule) else 0


def with_flow(model: LatentVariableModel, x: Tensor, inner: VariationalFamily, noise: Noise) -> FlowFamily:
    """Append a flow to a family.

    Raises:
        ValueError: if z has more than `LARGEST` values.
    """
    if math.prod(model.latent_shape) > LARGEST:
        raise ValueError(f"z has more than {LARGEST} values, too many for a flow per example")
    with torch.no_grad():
        z = inner.draw(noise.split("moments"), 64)[0].unflatten(0, (len(x), 64))
    deviation, mean = torch.std_mean(z, 1)
    return FlowFamily(inner, mean, deviation.clamp_min(1e-4), noise)


@final
class _Descent:
    """Adam on the parameters of a family."""

    def __init__(self, family: VariationalFamily, rate: float) -> None:
        self.parameters, self._factors = zip(*family.parameters, strict=True)
        self._adam = torch.optim.Adam([{"params": [p], "lr": rate * factor} for p, factor in family.parameters])

    def slow_to(self, rate: float) -> None:
        for group, factor in zip(self._adam.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor

    @torch.enable_grad()
    def step(self, bound: Callable[[], Tensor]) -> Tensor:
        """Update the parameters once and return the bound before the update, `[B]`.

        The weights of the model get no gradients.
        """
        value = bound()
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(value.sum(), self.parameters), strict=True):
            parameter.grad = gradient
        self._adam.step()
        return value.detach()


def optimise(
    model: LatentVariableModel, x: Tensor, label: Tensor | None, family: VariationalFamily, noise: Noise
) -> int:
    """Optimise the family until the bound stops improving; return the number of updates."""
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
    """Compute the bound `[B]` in nats after a few steps of Adam from the encoder's q.

    Each step uses one sample of noise for all examples. For a flow posterior only its base Gaussian is optimised.

    Args:
        eps: `[draws, 1, *latent_shape]`, standard normal noise to measure the bound with. It is independent of the
            steps, so the bound may be slightly above the encoder's where nothing can be gained.
        rate: learning rate of Adam, in standard deviations of the encoder's q.
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
    """Compute the bound KL(q || p) - E_q log p(x | z) on -log p(x), `[B]` nats.

    It uses at least `draws` samples, none of which q was optimised on.
    """
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
