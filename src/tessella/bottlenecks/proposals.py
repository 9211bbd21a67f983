"""Draws of codes about those that a quantiser chooses: proposals for importance sampling.

A point mass q(c | x) bounds p(x) = sum_c p(x, c) by a single term. Codes near the chosen ones often explain x nearly as
well; drawing them from a softened q and weighting them bounds p(x) by many terms instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessella.core.batches import even_block
from tessella.core.rng import Noise

FEW = 8
"""Codes that a draw is from: the nearest ones."""
BLOCK = 2**20
"""Distances that are kept at a time."""


def sample_near(z: Tensor, table: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Codes drawn with probability proportional to exp(-|z - e_k|^2 / 2v), of the few nearest.

    sqrt(v) is half of the way from a code to the next (root mean square), so of a z that lies on its code the next one
    has odds of 1 to e^2: chosen on validation splits, where of narrower and wider ones it served codes of 8 to 48
    numbers best. It hangs on the codebook alone, so z can be learned to be sure of its code, or less so.

    Args:
        z: `[N, G, D]`.
        table: `[G, K, D]`.
        uniform: `[N, G]`.

    Returns:
        Codes `[N, G]` and the log-probabilities that they were drawn with, `[N, G]`, with a gradient for z and table.
    """
    place = _nearest_few(z.detach(), table.detach())
    vectors = table[torch.arange(len(table), device=table.device)[:, None], place]
    squared = (z[:, :, None] - vectors).square().sum(-1)
    chosen, log_q = sample_with_log_prob(-squared / (2 * _spread(table.detach())), uniform)
    return place.gather(-1, chosen[..., None])[..., 0], log_q


@torch.no_grad()
def _nearest_few(z: Tensor, table: Tensor) -> Tensor:
    """The nearest codes `[N, G, few]`, block by block."""
    groups, size, _ = table.shape
    blocks = z.split(even_block(len(z), max(1, BLOCK // (groups * size))))
    few = [torch.cdist(b.transpose(0, 1), table).topk(min(FEW, size), largest=False).indices for b in blocks]
    return torch.cat(few, 1).transpose(0, 1)


@torch.no_grad()
def _spread(table: Tensor) -> Tensor:
    """v of `near`; of large codebooks, as the first codes have it."""
    some = table[:, : max(2, BLOCK // (len(table) * table.shape[1]))]
    apart = torch.cdist(some, table).square()
    apart.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return (apart.amin(-1).mean() / 4).clamp(min=1e-12)


def sample_with_log_prob(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Places drawn from softmax(logits `[..., K]`) by `uniform` `[...]`, and their log-probabilities."""
    log_q = logits.log_softmax(-1)
    below = log_q.exp().cumsum(-1) < uniform[..., None]
    chosen = below.sum(-1).clamp(max=logits.shape[-1] - 1)
    return chosen, log_q.gather(-1, chosen[..., None])[..., 0]


def uniform_for(noise: Noise, like: Tensor) -> Tensor:
    """Uniform draws of the shape of `like`, whose first axis counts examples."""
    return noise.uniform(*like.shape, device=like.device)
