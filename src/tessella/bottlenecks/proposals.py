"""Samples of codes near those of a quantizer: proposals for importance sampling.

A point mass q(c | x) bounds p(x) = sum_c p(x, c) by a single term. Nearby codes often explain x nearly as well.
Sampling them from a softened q, with importance weights, bounds p(x) by many terms instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella.core.batches import even_block
from tessella.core.rng import Noise

FEW = 8
"""Number of nearest codes to sample from."""
BLOCK = 2**20
"""Largest number of distances kept in memory at once."""


def sample_near(z: Tensor, table: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample codes with probability proportional to exp(-|z - e_k|^2 / 2v), among the few nearest.

    sqrt(v) is half the root mean square distance from a code to its nearest neighbour. So for a z equal to its code,
    the odds of the next code are 1 to e^2. This width gave the best bounds on validation splits for codes of 8 to 48
    numbers. It depends on the codebook alone, so the encoder can learn how certain to be.

    Args:
        z: `[N, G, D]`.
        table: `[G, K, D]`.
        uniform: `[N, G]` in [0, 1).

    Returns:
        Codes `[N, G]`, and their log-probabilities under the proposal `[N, G]`, with a gradient for z and table.
    """
    place = _nearest_few(z.detach(), table.detach())
    vectors = table[torch.arange(len(table), device=table.device)[:, None], place]
    squared = (z[:, :, None] - vectors).square().sum(-1)
    chosen, log_q = sample_with_log_prob(-squared / (2 * _spread(table.detach())), uniform)
    return place.gather(-1, chosen[..., None])[..., 0], log_q


@torch.no_grad()
def _nearest_few(z: Tensor, table: Tensor) -> Tensor:
    """Find the nearest codes `[N, G, few]`, block by block."""
    groups, size, _ = table.shape
    blocks = z.split(even_block(len(z), max(1, BLOCK // (groups * size))))
    few = [torch.cdist(b.transpose(0, 1), table).topk(min(FEW, size), largest=False).indices for b in blocks]
    return torch.cat(few, 1).transpose(0, 1)


@torch.no_grad()
def _spread(table: Tensor) -> Tensor:
    """Compute v of `sample_near`, from the first codes if the codebook is large."""
    some = table[:, : max(2, BLOCK // (len(table) * table.shape[1]))]
    apart = torch.cdist(some, table).square()
    apart.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return (apart.amin(-1).mean() / 4).clamp(min=1e-12)


def sample_with_log_prob(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample indices from softmax(logits `[..., K]`) by `uniform` `[...]`, with their log-probabilities."""
    log_q = logits.log_softmax(-1)
    below = log_q.exp().cumsum(-1) < uniform[..., None]
    chosen = below.sum(-1).clamp(max=logits.shape[-1] - 1)
    return chosen, log_q.gather(-1, chosen[..., None])[..., 0]


def uniform_for(noise: Noise, like: Tensor) -> Tensor:
    """Sample uniform numbers in the shape of `like`, whose first axis counts examples."""
    return noise.uniform(*like.shape, device=like.device)
