"""Samplers of a diffusion, from z_1 ~ N(0, I) to z_0; the deterministic ones need few steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.diffusion.schedule import alpha, sigma
from tessella.foundation.progress import track

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Function of z_t `[B, ...]` and a scalar gamma_t that returns E[y | z_t] `[B, ...]`."""


@torch.no_grad()
def solve(denoise: Denoise, z: Tensor, gammas: Tensor, *, order: int = 2) -> Tensor:
    """Solve the probability-flow ODE from gammas[0] down to gammas[-1], with one denoising per step.

    With lambda = -gamma / 2 and h its step from s to t: z_t = (sigma_t / sigma_s) z_s - alpha_t (exp(-h) - 1) D. Order
    1 has D = y(z_s) and is DDIM (Song et al. 2020, eq. 12); order 2 extrapolates D from the last two, DPM-Solver++(2M)
    (Lu et al. 2022, algorithm 2).

    Args:
        denoise: function that returns E[y | z_t].
        z: `[B, ...]`, at the first noise level.
        gammas: `[steps + 1]`, decreasing.
        order: 1 or 2.
    """
    before, h_before = None, None
    for step in track(range(len(gammas) - 1), "denoising"):
        s, t = gammas[step], gammas[step + 1]
        here, h = denoise(z, s), (s - t) / 2
        d = here
        if order == 2 and before is not None and h_before is not None:
            d = here + (here - before) * (h / (2 * h_before))
        z = sigma(t) / sigma(s) * z - alpha(t) * torch.expm1(-h) * d
        before, h_before = here, h
    return z


@torch.no_grad()
def ancestral(denoise: Denoise, z: Tensor, gammas: Tensor, noise: Noise, *, temperature: float = 1.0) -> Tensor:
    """Sample the reverse chain of the bound: z_s ~ q(z_s | z_t, y = y(z_t)) (Kingma et al. 2021, appendix A.4).

    Args:
        denoise: function that returns E[y | z_t].
        z: `[B, ...]`, at the first noise level.
        gammas: `[steps + 1]`, decreasing.
        noise: source of all randomness.
        temperature: factor on the standard deviations.
    """
    for step in track(range(len(gammas) - 1), "denoising"):
        t, s = gammas[step], gammas[step + 1]
        mean, deviation = backward(z, denoise(z, t), t, s)
        z = mean + temperature * deviation * noise.normal(*z.shape, device=z.device)
    return z


def backward(z: Tensor, y: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of q(z_s | z_t, y) for gamma_s < gamma_t.

    `t` and `s` are gamma_t and gamma_s, in shapes that broadcast with z.
    """
    kept = -torch.expm1(s - t)
    mean = alpha(s) * ((1 - kept) / alpha(t) * z + kept * y)
    return mean, sigma(s) * kept.sqrt()
