"""Draws of codes about those that a quantiser chooses: proposals for importance sampling.

A point mass q(c | x) bounds p(x) = sum_c p(x, c) by a single term. Codes near the chosen ones often explain x nearly as
well; drawing them from a softened q and weighting them bounds p(x) by many terms instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessella.noise import Noise

FEW = 8
"""Codes that a draw is from: the nearest ones."""
BLOCK = 2**20
"""Distances that are kept at a time."""


@torch.no_grad()
def near(z: Tensor, table: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Codes drawn with probability proportional to exp(-|z - e_k|^2 / 2v), of the few nearest.

    v is the mean squared error of the nearest vectors, per number: the variance under which z would be spread so about
    the vectors, were they the centres of Gaussians.

    Args:
        z: `[N, G, D]`.
        table: `[G, K, D]`.
        uniform: `[N, G]`.

    Returns:
        Codes `[N, G]` and the log-probabilities that they were drawn with, `[N, G]`.
    """
    groups, size, dims = table.shape
    rows = max(1, BLOCK // (groups * size))
    distances, places = [], []
    for block in z.split(rows):
        squared = torch.cdist(block.transpose(0, 1), table).square()
        nearest, place = squared.topk(min(FEW, size), largest=False)
        distances.append(nearest.transpose(0, 1))
        places.append(place.transpose(0, 1))
    squared, place = torch.cat(distances), torch.cat(places)
    spread = squared[..., :1].mean().clamp(min=1e-12) / dims
    chosen, log_q = drawn(-squared / (2 * spread), uniform)
    return place.gather(-1, chosen[..., None])[..., 0], log_q


def drawn(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Places drawn from softmax(logits `[..., K]`) by `uniform` `[...]`, and their log-probabilities."""
    log_q = logits.log_softmax(-1)
    below = log_q.exp().cumsum(-1) < uniform[..., None]
    chosen = below.sum(-1).clamp(max=logits.shape[-1] - 1)
    return chosen, log_q.gather(-1, chosen[..., None])[..., 0]


def uniform_for(noise: Noise, like: Tensor) -> Tensor:
    """Uniform draws of the shape of `like`, whose first axis counts examples."""
    return noise.uniform(*like.shape, device=like.device)
