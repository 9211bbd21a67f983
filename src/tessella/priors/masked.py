"""Masked transformer over codes in any order: one network for likelihood, inpainting and fast sampling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import cast, final

import torch
from torch import Tensor, nn

from tessella.core.contracts import CodePrior
from tessella.core.outputs import UNCONDITIONAL, Condition
from tessella.core.rng import Noise
from tessella.core.selectors import Selector
from tessella.foundation.progress import track
from tessella.networks.transformer import CodeEmbedding, GridEmbedding, Transformer
from tessella.priors.head import CodeHead

DROPOUT = 0.1
STEPS, FEWEST, PASSES = 12, 4, 8
CODING_STEPS = 256
"""Largest number of steps of entropy coding; each step is a pass over all positions."""
POSITIONS = 1 << 14
"""Approximate number of positions per pass of `log_prob_in_order`."""


@final
class MaskedTransformerModule(CodePrior):
    """Masked transformer that gives p(code_i | any other codes), and so p(codes) in any order.

    An order is a permutation s of the grid's D codes. Unknown codes are masked, and attention is not causal. For each
    order p_s(codes) = prod_t p(code_s(t) | code_s(1), ..., code_s(t-1)) sums to one over all grids. The average of log
    p_s over all orders is trained and reported. It is a lower bound on the log-likelihood of sampling in a random order
    (autoregressive diffusion, Hoogeboom et al. 2022, section 3; the absorbing diffusion of Austin et al. 2021 in
    continuous time):

        log p(codes) >= E_s[log p_s(codes)] = E_(t, known)[D / (D - t) sum_(i not known) log p(code_i | known)],

    with t uniform on 0 ... D - 1 and a random set of t known codes. `forward` returns the terms of this sum, zero for
    known codes. With noise it samples one (t, known) for each example, as in training. Without noise it averages
    `passes` samples with stratified t (D passes or more cover each t), from a generator that is seeded by the codes
    themselves: an unbiased estimate of the bound that depends on the example alone.

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of the transformer.
        depth: number of blocks.

    Attributes:
        steps: number of steps to sample a whole grid; a part takes fewer, in proportion to the square root of its
            share.
        passes: number of samples that `forward` averages without noise.
    """

    any_order = True

    def __init__(
        self,
        code_shape: tuple[int, ...],
        codebook_size: int,
        *,
        context_channels: int = 0,
        classes: int = 0,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        count, *grid = code_shape
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, classes
        self.steps, self.passes = STEPS, PASSES
        self.embed = CodeEmbedding(count, codebook_size + 1, width)
        self.given = GridEmbedding(tuple(grid), width, context_channels=context_channels, classes=classes)
        self.trunk = Transformer(tuple(grid), width, depth, causal=False, dropout=DROPOUT)
        self.heads = nn.ModuleList([CodeHead(width, 1, codebook_size) for _ in range(count)])

    def forward(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        if noise is not None:
            share = noise.split("share").spread(len(codes), codes.device)  # so every batch has few and many known
            return self._weighted(codes, share, noise.uniform(*codes.shape, device=codes.device), condition, noise)
        passes = min(self.passes, math.prod(self.code_shape))
        own = _seeded_by(codes, passes)
        total = torch.zeros(codes.shape, device=codes.device)
        for i in range(passes):
            share = (i + own[:, i, 0]) / passes
            total = total + self._weighted(codes, share, own[:, i, 1:].view(codes.shape), condition)
        return total / passes

    @torch.no_grad()
    def log_prob_in_order(self, codes: Tensor, order: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Compute log p of each code given those before it in an order, `[B, C, *grid]` nats.

        The result is exact and takes one evaluation of the network per code, D in total.

        Args:
            codes: `[B, C, *grid]` int64.
            order: `[D]`, or `[B, D]` for an order per example: the permutation of 0 ... D - 1 in which the flattened
                codes are generated.
            condition: what p(codes) is conditional on.
        """
        rank = order.argsort(-1).expand(len(codes), -1).view(codes.shape)
        places = math.prod(self.code_shape)
        at_once = max(1, POSITIONS * self.code_shape[0] // codes.numel())
        total = torch.zeros(codes.shape, device=codes.device)
        for first in range(0, places, at_once):
            times = torch.arange(first, min(first + at_once, places), device=codes.device)
            alone = (1,) * (codes.dim() - 1)
            many, own = (x.repeat(len(times), *alone) for x in (codes, rank))
            now = times.repeat_interleave(len(codes)).view(-1, *alone)
            label, context = condition.label, condition.context
            given = Condition(
                None if label is None else label.repeat(len(times)),
                None if context is None else context.repeat(len(times), *alone),
            )
            nats = self._log_prob(many, own < now, own == now, given)
            total += nats.unflatten(0, (len(times), len(codes))).sum(0)
        return total

    @torch.no_grad()
    def generate(self, count: int, select: Selector, condition: Condition = UNCONDITIONAL) -> Tensor:
        """Generate the unknown codes in a random order, or a fixed one without noise.

        Each step chooses some of the missing codes given all known ones, as if they were independent of each other. A
        random order takes about `steps` steps, whose sizes grow along a cosine (Chang et al. 2022, section 3.3); with
        one code per step the sample is exactly from the model. The fixed order, used for entropy coding, takes up to
        `CODING_STEPS` steps of equal size.
        """
        shape, device = (count, *self.code_shape), self.embed.offsets.device
        places = math.prod(self.code_shape)
        codes = torch.zeros(shape, dtype=torch.int64, device=device)
        known = codes > 0
        if select.known is not None:
            known = select.known >= 0
            codes = select.known.clamp(min=0)
        if select.noise is None:
            order = Noise(0, stream="order").uniform(places).argsort()
            rank = order.argsort().to(device).view(self.code_shape).expand(shape)
            sizes = [len(part) for part in order.tensor_split(min(places, CODING_STEPS))]
            ends = list(torch.tensor(sizes, device=device).cumsum(0)[:, None].expand(-1, count))
            features_of = self._features
        else:
            rank = _rank(select.noise.split("order").uniform(*shape, device=device).masked_fill(known, math.inf))
            missing = (~known).flatten(1).sum(1)
            ends = _schedule(missing, self._enough(int(missing.max())))
            features_of = self._shared_features
            select = replace(select, noise=select.noise.split("codes"))
        index = torch.arange(codes.numel(), device=device).view(shape)
        for end in track(ends, "generating codes"):
            now = (rank < end.view(-1, *(1,) * len(self.code_shape))) & ~known
            features = features_of(codes, known, condition)
            for c, head in enumerate(self._heads):
                rows = now[:, c].flatten(1)
                at = index[:, c].flatten(1)[rows]
                chosen = head.select(features[rows], lambda logits, _, at=at: select(logits, at))
                codes[:, c][now[:, c]] = chosen[:, 0]
            known = known | now
        return codes

    def _enough(self, missing: int) -> int:
        """Return the number of steps for `missing` codes."""
        share = missing / math.prod(self.code_shape)
        return max(min(FEWEST, self.steps), math.ceil(self.steps * math.sqrt(share)))

    def _shared_features(self, codes: Tensor, known: Tensor, condition: Condition) -> Tensor:
        """Compute `_features` once if all examples are equal, as when one is inpainted several times."""
        label, context = condition.label, condition.context
        seen = (codes.masked_fill(~known, self.codebook_size), label, context)
        if not all(of is None or bool((of == of[:1]).all()) for of in seen):
            return self._features(codes, known, condition)
        one = Condition(None if label is None else label[:1], None if context is None else context[:1])
        return self._features(codes[:1], known[:1], one).expand(len(codes), -1, -1)

    @property
    def _heads(self) -> Iterable[CodeHead]:
        return cast(Iterable[CodeHead], self.heads)

    def _weighted(
        self,
        codes: Tensor,
        share: Tensor,
        uniform: Tensor,
        condition: Condition,
        noise: Noise | None = None,
    ) -> Tensor:
        """Sample the terms of the bound once: t = floor(D share), and the t codes with the smallest `uniform` are
        known.
        """
        places = math.prod(self.code_shape)
        count = (share * places).long().clamp(max=places - 1).view(-1, *(1,) * len(self.code_shape))
        known = _rank(uniform) < count
        return self._log_prob(codes, known, ~known, condition, noise) * (places / (places - count))

    def _log_prob(
        self,
        codes: Tensor,
        known: Tensor,
        wanted: Tensor,
        condition: Condition,
        noise: Noise | None = None,
    ) -> Tensor:
        """Compute log p(code | known codes) of the wanted codes, zero for others; all `[B, C, *grid]`."""
        features = self._features(codes, known, condition, noise)
        nats: list[Tensor] = []
        for c, head in enumerate(self._heads):
            answers, asked = codes[:, c].flatten(1), wanted[:, c].flatten(1)
            if self.training:
                found = head.log_prob(features[asked][None], answers[asked][None, None]).flatten()
                nats.append(torch.zeros(asked.shape, device=codes.device).masked_scatter(asked, found))
            else:  # for all codes: a fixed number of rows, so that an example's result ignores its neighbours
                nats.append(head.log_prob(features, answers[:, None])[:, 0].masked_fill(~asked, 0.0))
        return torch.stack(nats, 1).view(codes.shape)

    def _features(self, codes: Tensor, known: Tensor, condition: Condition, noise: Noise | None = None) -> Tensor:
        """Compute features of each position, `[B, P, width]`; unknown codes are replaced by the mask code K."""
        seen = codes.masked_fill(~known, self.codebook_size)
        return self.trunk(self.embed(seen.flatten(2)) + self.given(condition.label, condition.context), noise)


def _rank(numbers: Tensor) -> Tensor:
    """Compute the rank of each number within its example, 0 for the smallest; shape as given."""
    return numbers.flatten(1).argsort(1).argsort(1).view(numbers.shape)


def _seeded_by(codes: Tensor, passes: int) -> Tensor:
    """Sample numbers in [0, 1) that depend on the example alone: `[B, passes, 1 + D]`."""
    rows = codes.flatten(1).cpu().numpy()
    draws = [Noise(0, stream=row.tobytes().hex()).uniform(passes, 1 + len(row)) for row in rows]
    return torch.stack(draws).to(codes.device)


def _schedule(missing: Tensor, steps: int) -> list[Tensor]:
    """Compute how many codes have been generated after each step i of s.

    Of n missing codes it is n (1 - cos(pi i / 2 s)), at least i, and n after the last step.
    """
    steps_each = missing.clamp(1, steps)
    ends: list[Tensor] = []
    for i in range(1, min(steps, int(missing.max())) + 1):
        i_each = steps_each.clamp(max=i)
        curve = missing * (1 - torch.cos(math.pi / 2 * i_each / steps_each))
        ends.append(torch.where(i_each < steps_each, curve.ceil().long().clamp(min=i_each), missing))
    return ends
