"""Distribution of the codes of one position, given a network's features at this position."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tessella.core.batches import even_block
from tessella.networks.mlp import ResidualLayer

CHUNK = 1 << 24
"""Largest number of logits kept in memory at once: 64 MiB in float32."""
HIDDEN = 256


@final
class CodeHead(nn.Module):
    """Exact p(codes of a position | features h) = prod_c p(code_c | code_<c, h).

    With one code per position the logits are linear in h. With several, each code is conditional on the previous ones
    (like the depth transformer of Lee et al. 2022, section 3.2, but without attention):

        h_1 = W h,    h_c = h_(c-1) + E_(c-1)[code_(c-1)],    logits_c = W_c silu(g(h_c)),

    with one residual layer g for all c. If the logits of all positions are too many to keep in memory (large K), they
    are computed in parts, and again in the backward pass.

    Args:
        features: F; the features must be normalised, or the output of a non-linearity.
        codes: C, codes per position.
        codebook_size: K.
    """

    def __init__(self, features: int, codes: int, codebook_size: int) -> None:
        super().__init__()
        hidden = features if codes == 1 else HIDDEN
        self.codebook_size = codebook_size
        self.entry = nn.Identity() if codes == 1 else nn.Linear(features, hidden)
        self.mix = nn.Identity() if codes == 1 else nn.Sequential(ResidualLayer(hidden, 0.1), nn.SiLU())
        self.earlier = nn.ModuleList([nn.Embedding(codebook_size, hidden) for _ in range(codes - 1)])
        self.exits = nn.ModuleList([nn.Linear(hidden, codebook_size) for _ in range(codes)])
        with torch.no_grad():
            for embedding in self.earlier.parameters():
                embedding.mul_(0.5)

    def log_prob(self, features: Tensor, codes: Tensor) -> Tensor:
        """Compute log p of each code given the previous ones of its position, in float32 nats.

        Args:
            features: `[B, P, F]` for P positions.
            codes: `[B, C, P]` int64.

        Returns:
            `[B, C, P]`.
        """
        batch, count, positions = codes.shape
        rows, answers = features.reshape(-1, features.shape[-1]), codes.movedim(1, 2).reshape(-1, count)
        step = even_block(len(rows), max(1, CHUNK // self.codebook_size))
        again = len(rows) > step and torch.is_grad_enabled()
        parts = [
            checkpoint(self._log_prob, *part, use_reentrant=False, preserve_rng_state=False)
            if again
            else self._log_prob(*part)
            for part in zip(rows.split(step), answers.split(step), strict=True)
        ]
        nats = torch.cat(parts)
        return nats.view(batch, positions, count).movedim(2, 1)

    def select(self, features: Tensor, select_symbol: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Choose the codes of one position one after another: features `[B, F]` to codes `[B, C]` int64.

        `select_symbol` maps logits `[B, K]` and the index c of the code to codes `[B]`.
        """
        hidden = self.entry(features)
        chosen: list[Tensor] = []
        for c, exit_ in enumerate(self.exits):
            if c:
                hidden = hidden + self.earlier[c - 1](chosen[-1])
            chosen.append(select_symbol(exit_(self.mix(hidden)), c))
        return torch.stack(chosen, 1)

    def _log_prob(self, rows: Tensor, codes: Tensor) -> Tensor:
        """Compute log p of rows `[N, F]` and codes `[N, C]`: `[N, C]`."""
        hidden = self.entry(rows)
        nats: list[Tensor] = []
        for c, exit_ in enumerate(self.exits):
            if c:
                hidden = hidden + self.earlier[c - 1](codes[:, c - 1])
            nats.append(-F.cross_entropy(exit_(self.mix(hidden)).float(), codes[:, c], reduction="none"))
        return torch.stack(nats, 1)
