"""Drawing codes from logits, as freely as `Sampling` says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tessella.core.outputs import Sampling
from tessella.core.rng import Noise

Pick = Callable[[Tensor, int, int], Tensor]
"""Codes `[B]`, given their logits `[B, K]`, which code of its position it is, and which position."""
Progress = Callable[[int, int], None]

SHARPEST = 1e-6
"""Temperatures below it are zero: float32 logits that differ at all differ by more."""


@torch.no_grad()
def draw(logits: Tensor, uniform: Tensor, sampling: Sampling | None = None) -> Tensor:
    """One code for each row of logits, by inverting the distribution function: a function of its arguments alone.

    p = softmax(logits / temperature); then only the `top_k` likeliest codes stay, and of them only the smallest set
    of likeliest ones that holds `top_p` of the probability (Holtzman et al. 2020, section 3.1); the draw is from what
    stays, rescaled to one. Computed in float32.

    Args:
        logits: `[..., K]`.
        uniform: `[...]` in [0, 1).
        sampling: temperature (0: the likeliest code) and cut-offs; None: as they are.

    Returns:
        `[...]` int64.
    """
    sampling = sampling or Sampling()
    if sampling.temperature < SHARPEST or sampling.top_k == 1:
        return logits.argmax(-1)
    p = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_k is None and sampling.top_p is None:
        return _inverted(p, uniform)
    p, order = p.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        p[..., sampling.top_k :] = 0
    if sampling.top_p is not None:
        p = p.masked_fill(p.cumsum(-1) - p >= sampling.top_p, 0)
    return order.gather(-1, _inverted(p, uniform).unsqueeze(-1)).squeeze(-1)


def _inverted(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulated weight exceeds `uniform` of the whole, so never one of weight zero."""
    cumulated = weights.cumsum(-1)
    total = cumulated[..., -1:]
    target = torch.minimum(uniform.unsqueeze(-1).float() * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1)


def filling(codes: Tensor, known: Tensor, noise: Noise, sampling: Sampling | None) -> Pick:
    """What draws codes `[B, C, h, w]` one after the other where they are not known, and keeps those that are."""
    uniform = noise.uniform(*codes.shape, device=codes.device).flatten(2)
    codes, known = codes.flatten(2), known.flatten(2)

    def pick(logits: Tensor, c: int, p: int) -> Tensor:
        return torch.where(known[:, c, p], codes[:, c, p], draw(logits, uniform[:, c, p], sampling))

    return pick
