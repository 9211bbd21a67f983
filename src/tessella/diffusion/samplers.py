"""Ways through a chain, from z_1 ~ N(0, I) to z_0: the deterministic ones take few steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.diffusion.schedule import alpha, sigma
from tessella.foundation.progress import track

Denoise = Callable[[Tensor, Tensor], Tensor]
"""E[y | z_t] `[B, ...]`, given z_t `[B, ...]` and gamma_t, a scalar."""


@torch.no_grad()
def solve(denoise: Denoise, z: Tensor, gammas: Tensor, *, order: int = 2) -> Tensor:
    """The probability-flow equation from gammas[0] down to gammas[-1], one evaluation of `denoise` a step.

    With lambda = -gamma / 2 and h its step from s to t: z_t = (sigma_t / sigma_s) z_s - alpha_t (exp(-h) - 1) D.
    Order 1 has D = y(z_s) and is DDIM (Song et al. 2020, eq. 12); order 2 extrapolates D from the last two,
    DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Args:
        z: `[B, ...]`, at the first noise level.
        gammas: `[steps + 1]`, falling.
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
    """The chain as its bound has it: z_s ~ q(z_s | z_t, y = y(z_t)) (Kingma et al. 2021, appendix A.4).

    Args:
        noise: of the draws.
        temperature: a factor on their deviation.
    """
    for step in track(range(len(gammas) - 1), "denoising"):
        t, s = gammas[step], gammas[step + 1]
        mean, deviation = backward(z, denoise(z, t), t, s)
        z = mean + temperature * deviation * noise.normal(*z.shape, device=z.device)
    return z


def backward(z: Tensor, y: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of q(z_s | z_t, y) for gamma_s < gamma_t, given as numbers that spread over z."""
    kept = -torch.expm1(s - t)
    mean = alpha(s) * ((1 - kept) / alpha(t) * z + kept * y)
    return mean, sigma(s) * kept.sqrt()
