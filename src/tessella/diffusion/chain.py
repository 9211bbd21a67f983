"""Markov chain p(z_0), from z_1 ~ N(0, I) to z_0 by a learned denoiser, with its variational bound."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.diffusion import samplers
from tessella.diffusion.discrete_denoiser import posterior
from tessella.diffusion.schedule import NoiseSchedule, alpha, over, sigma, spread_times, variance_term
from tessella.foundation.errors import SpecError, option

DROPPED = 0.1
"""Share of examples whose label is hidden in training, for classifier-free guidance (Ho & Salimans 2022, algorithm 1).
"""
STEPS = 50
LINKS = 50
"""Steps of the discrete chain whose densities give importance weights."""
SHAPING = 0.1
"""Weight of the schedule's variance loss in nats per dimension; small beside the loss of the network."""
Sampler = Literal["dpm", "ddim", "ancestral"]


@final
class Chain(nn.Module):
    """Diffusion p(z_0) of data y, with q(z_t | y) = N(alpha_t y, sigma_t^2 I).

    Time is continuous (Kingma et al. 2021, section 4). For y ~ N(0, variance) the posterior given z_t is a Gaussian.
    The network predicts a correction of its mean, in standard deviations, and of its precision, as a factor (Karras et
    al. 2022, section 5, for real y). The denoised y is the mean of this Gaussian: over the reals, or over the `levels`
    values that y can have, so that low noise is removed exactly. Any function of z_t would give a bound; this one
    leaves little to learn at low noise.

    Args:
        shape: shape of one y, `(C, *spatial)`.
        network: maps z `[B, *shape]`, gamma `[B]` and a label `[B]` or None to `[B, 2 C, ...]`: shift and log
            precision.
        schedule: gamma(t).
        levels: number of values of y, evenly spaced from -1 to 1; 0: any real number.
        variance: approximate variance of one number of y.
        classes: labels are 0 ... classes - 1, and the network's label `classes` means no label; 0: no labels.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        levels: int = 0,
        variance: float = 1.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.levels, self.variance, self.classes = shape, levels, variance, classes
        self.network, self.schedule = network, schedule

    def denoise(self, z: Tensor, gamma: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the model's E[y | z_t], `[B, *shape]`.

        Args:
            z: `[B, *shape]`.
            gamma: `[B]` or a scalar.
            label: `[B]`, or None for no label.
        """
        gamma = gamma.expand(len(z))
        if self.classes and label is None:
            label = torch.full((len(z),), self.classes, device=z.device)
        shift, log_precision = self.network(z, gamma, label if self.classes else None).float().chunk(2, dim=1)
        # for y ~ N(0, variance) the posterior given z_t is N(location, spread); the network predicts y's difference
        a, s = alpha(over(gamma, z)), sigma(over(gamma, z))
        total = a.square() * self.variance + s.square()
        location, spread = a * self.variance / total * z, self.variance * s.square() / total
        location = location + spread.sqrt() * shift
        if not self.levels:
            return location
        return posterior(location, log_precision.clamp(-6, 6).exp() / spread, self.levels, mean_only=True)[0]

    def start(self, y: Tensor, noise: Noise | None) -> Tensor:
        """Sample z_0 ~ q(z_0 | y), `[B, *shape]`; the mean if `noise` is None."""
        first, _ = self.schedule.ends()
        mean = alpha(first) * y
        return mean if noise is None else mean + sigma(first) * noise.normal(*y.shape, device=y.device)

    def rate(self, y: Tensor, label: Tensor | None, noise: Noise | None, *, times: int = 1) -> Tensor:
        """Estimate the rate of the chain, an upper bound on KL(q(z_0 | y) || p(z_0)): `[B]` nats.

        The rate is KL(q(z_0, ..., z_1 | y) || p(z_0, ..., z_1)) = KL(q(z_1 | y) || N(0, I)) + 1/2 int_0^1 gamma'(t)
        exp(-gamma) E|y - y(z_t)|^2 dt, with the integral estimated at times spread evenly over the batch. In training
        mode some labels are hidden, and the gradient for the schedule's pieces is that of the estimate's second moment.

        Args:
            y: `[B, *shape]`.
            label: `[B]`, or None for no label.
            noise: source of times and noise; None: both are fixed, and the result is a function of y alone.
            times: number of times per example.
        """
        if noise is not None and self.training and self.classes and label is not None:
            hidden = noise.split("hidden").uniform(len(y), device=y.device) < DROPPED
            label = label.masked_fill(hidden, self.classes)
        total = self.last_rate(y)
        for part in range(times):
            source = None if noise is None else noise.split(f"time {part}")
            at = self.schedule.at(spread_times(len(y), y.device, noise, part, times))
            eps = fixed_noise(y, part) if source is None else source.normal(*y.shape, device=y.device)
            gamma = over(at.gamma, y)
            error = y - self.denoise(alpha(gamma) * y + sigma(gamma) * eps, at.gamma, label)
            loss = at.slope * (-at.gamma).exp() * error.square().flatten(1).sum(1) / 2
            total = total + loss / times
            if self.training and noise is not None:
                total = total + SHAPING * y[0].numel() * variance_term(at, loss)
        return total

    def last_rate(self, y: Tensor) -> Tensor:
        """Compute KL(q(z_1 | y) || N(0, I)), `[B]` nats."""
        _, last = self.schedule.ends()
        variance, log_variance = torch.sigmoid(last), nn.functional.logsigmoid(last)
        each = torch.sigmoid(-last) * y.square() + variance - 1 - log_variance
        return each.flatten(1).sum(1) / 2

    def log_weight(
        self, y: Tensor, z: Tensor, label: Tensor | None, noise: Noise, *, links: int | None = None
    ) -> Tensor:
        """Compute the log importance weight `[B]` of one sampled chain given its z_0.

        It is log p(z_0, ..., z_1) - log q(z_0, ..., z_1 | y) of a chain with `links` steps, p(z_s | z_t) = q(z_s | z_t,
        y = y(z_t)). The weight is exact; the continuous chain has no densities.
        """
        first, last = self.schedule.ends()
        links = links or LINKS
        gammas = torch.linspace(0, 1, links + 1, device=y.device) * (last - first) + first
        total = torch.zeros(len(y), device=y.device)
        for s, t in pairwise(gammas):
            # z_t given z_s and y: forward, so that the whole chain depends on the given z_0
            ratio = alpha(t) / alpha(s)
            deviation = sigma(t) * (-torch.expm1(s - t)).sqrt()
            later = ratio * z + deviation * noise.normal(*z.shape, device=z.device)
            drawn = self.denoise(later, t, label)
            mean_p, scale = samplers.backward(later, drawn, t, s)
            mean_q, _ = samplers.backward(later, y, t, s)
            nats = ((z - mean_q).square() - (z - mean_p).square()) / (2 * scale.square())
            total = total + nats.flatten(1).sum(1)
            z = later
        q = Normal(alpha(last) * y, sigma(last), validate_args=False)
        p = Normal(torch.zeros_like(y), 1.0, validate_args=False)
        return total + (p.log_prob(z) - q.log_prob(z)).flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        sampling: Sampling | None = None,
        *,
        sampler: Sampler = "dpm",
    ) -> Tensor:
        """Sample z_0 ~ p(z_0), `[count, *shape]` float32.

        Args:
            count: number of samples.
            noise: source of all randomness.
            label: `[count]`; None for no label.
            sampling: `temperature` multiplies every standard deviation; `steps` (default 50) are evenly spaced in
                gamma; with `guidance` the denoised y is y_none + guidance (y_label - y_none) (Ho & Salimans 2022, eq. 6
                in terms of y), where 0 ignores the label and 1 is the model itself.
            sampler: `dpm` and `ddim` are deterministic given z_1, of second and first order; `ancestral` is random.

        Raises:
            SpecError: if guidance is given without labels.
        """
        sampling = sampling or Sampling()
        temperature, guidance = sampling.temperature, sampling.guidance
        if guidance is not None and (not self.classes or label is None):
            raise SpecError(
                f"{option('guidance')} needs a label, but this diffusion takes none here: leave it out",
                code="no-guidance",
            )
        strength = 1.0 if guidance is None else guidance

        def denoise(z: Tensor, gamma: Tensor) -> Tensor:
            if label is None or strength == 1:
                return self.denoise(z, gamma, label)
            none = self.denoise(z, gamma)
            if strength == 0:
                return none
            led = none + strength * (self.denoise(z, gamma, label) - none)
            return led.clamp(-1, 1) if self.levels else led

        first, last = (end.detach() for end in self.schedule.ends())
        gammas = torch.linspace(1, 0, (sampling.steps or STEPS) + 1, device=first.device) * (last - first) + first
        z = temperature * noise.normal(count, *self.shape, device=first.device)
        if sampler == "ancestral":
            return samplers.ancestral(denoise, z, gammas, noise.split("steps"), temperature=temperature)
        return samplers.solve(denoise, z, gammas, order=2 if sampler == "dpm" else 1)


def fixed_noise(y: Tensor, part: int) -> Tensor:
    """Return one eps `[1, *shape]` for all examples, with norm sqrt(E|eps|^2).

    Every odd `part` gets the negative of the eps of the part before.
    """
    eps = Noise(0, stream=f"fixed {part // 2}").normal(1, *y.shape[1:]).to(y.device)
    return eps * (1 - 2 * (part % 2)) * (eps.numel() ** 0.5 / eps.norm())
