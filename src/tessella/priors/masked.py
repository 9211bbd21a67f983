"""An any-order masked transformer over codes: one network for likelihoods, for filling in, and for fast samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast, final

import torch
from torch import Tensor, nn

from tessella.core.configs import CodePriorConfig
from tessella.core.contracts import CodePrior, SymbolCoder
from tessella.core.entropy_coding import code_categorical
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.foundation.config import Count
from tessella.foundation.registry import register
from tessella.networks.transformer import CodeEmbedding, GridEmbedding, Transformer
from tessella.priors.head import CodeHead

WIDTH, DEPTH, DROPOUT = 192, 6, 0.1
STEPS, FEWEST, PASSES = 12, 4, 8
VALIDATE_AT = 256
"""Steps in which codes are told over a wire, at most: each costs a pass over all positions."""
POSITIONS = 1 << 14
"""Positions that `log_prob_in_order` looks at in one pass, about."""


@register(
    "code-prior",
    "masked",
    summary="any-order masked transformer: inpaints any codes given any others, samples in a few steps",
)
class MaskedTransformer(CodePriorConfig):
    """Any-order masked transformer over codes.

    Attributes:
        width: channels of the transformer.
        depth: blocks.
    """

    width: Count = WIDTH
    depth: Count = DEPTH

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> MaskedTransformerModule:
        return MaskedTransformerModule(
            code_shape,
            codebook_size,
            context_channels=context_channels,
            classes=classes,
            width=self.width,
            depth=self.depth,
        )


@final
class MaskedTransformerModule(CodePrior):
    """p(code_i | any other codes) for each of the D = C h w codes: p(codes) in any order of them.

    An order is a permutation s of the D codes; codes not known yet are seen as masks, without any causality. For each
    order p_s(codes) = prod_t p(code_s(t) | code_s(1), ..., code_s(t-1)) sums to one over all grids. The average over
    all orders bounds the likelihood of drawing by a random order from below, and is what is trained and reported
    (autoregressive diffusion, Hoogeboom et al. 2022, section 3; the absorbing diffusion of Austin et al.
    2021 in continuous time):

        log p(codes) >= E_s[log p_s(codes)] = E_(t, known)[D / (D - t) sum_(i not known) log p(code_i | known)],

    with t uniform on 0 ... D - 1 and a random set of t known codes. `forward` gives the terms of that sum, zero for
    what was known. With noise it draws one (t, known) for each example, as in training. Without noise it averages
    `passes` of them, t being stratified (with D passes or more, each t comes once), drawn by a generator that the codes
    themselves seed: an unbiased estimate of the bound that depends on the example alone.

    Args:
        code_shape, codebook_size, context_channels, classes: as in `CodePrior`.
        width: channels of the transformer.
        depth: its blocks.

    Attributes:
        steps: in how many steps `sample` and `fill` draw, unless told.
        passes: how many draws `forward` averages without noise.
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

    def forward(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        if noise is not None:
            share = noise.split("share").spread(len(codes), codes.device)  # so every batch learns of few and of many
            return self._weighted(codes, share, noise.uniform(*codes.shape, device=codes.device), label, context, noise)
        passes = min(self.passes, math.prod(self.code_shape))
        own = _seeded_by(codes, passes)
        total = torch.zeros(codes.shape, device=codes.device)
        for i in range(passes):
            share = (i + own[:, i, 0]) / passes
            total = total + self._weighted(codes, share, own[:, i, 1:].view(codes.shape), label, context)
        return total / passes

    @torch.no_grad()
    def log_prob_in_order(
        self, codes: Tensor, order: Tensor, label: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """log p of each code given those before it in an order, exactly, by D looks: `[B, C, h, w]` float32 nats.

        Args:
            codes: `[B, C, h, w]` int64.
            order: `[D]`, or `[B, D]` of an own order for each example: a permutation of 0 ... D - 1, the places in the
                flattened codes, first told first.
            label, context: as in `forward`.
        """
        rank = order.argsort(-1).expand(len(codes), -1).view(codes.shape)
        places = math.prod(self.code_shape)
        at_once = max(1, POSITIONS * self.code_shape[0] // codes.numel())
        total = torch.zeros(codes.shape, device=codes.device)
        for first in range(0, places, at_once):
            times = torch.arange(first, min(first + at_once, places), device=codes.device)
            many, own = (x.repeat(len(times), 1, 1, 1) for x in (codes, rank))
            now = times.repeat_interleave(len(codes))[:, None, None, None]
            labels = None if label is None else label.repeat(len(times))
            contexts = None if context is None else context.repeat(len(times), 1, 1, 1)
            nats = self._log_prob(many, own < now, own == now, labels, contexts)
            total += nats.unflatten(0, (len(times), len(codes))).sum(0)
        return total

    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Codes `[count, C, h, w]` int64, drawn in `steps` steps; see `fill`."""
        nothing = torch.zeros(count, *self.code_shape, dtype=torch.int64, device=self.embed.offsets.device)
        return self.fill(nothing, nothing > 0, noise, label, context, sampling=sampling, progress=progress)

    @torch.no_grad()
    def fill(
        self,
        codes: Tensor,
        known: Tensor,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        steps: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw the codes that are not known, given those that are and each other, in a random order.

        A step draws some of the codes that are missing, each given all that are there, as if they were independent
        of each other; how many follows a cosine, few at first (Chang et al. 2022, section 3.3). With as many steps as
        codes are missing each step draws one, and the draw is exactly from the model.

        Args:
            codes: `[B, C, h, w]` int64; those not known may be any number.
            known: `[B, C, h, w]` bool.
            noise: all randomness comes from it: the order, and a number for each code.
            label, context: as in `forward`.
            sampling: temperature and cut-offs.
            steps: None: `self.steps` for a whole grid, and fewer, by the root of the share that is missing, for a part.
            progress: told (steps done, steps in all).

        Returns:
            `[B, C, h, w]` int64; the known codes are as they were.
        """
        shape, device = codes.shape, codes.device
        uniform = noise.split("codes").uniform(*shape, device=device)
        codes, known = codes.clone(), known.clone()
        rank = _rank(noise.split("order").uniform(*shape, device=device).masked_fill(known, math.inf))
        missing = (~known).flatten(1).sum(1)
        ends = _schedule(missing, steps or self._enough(int(missing.max())))
        for i, end in enumerate(ends):
            now = (rank < end[:, None, None, None]) & ~known
            features = self._looked(codes, known, label, context)
            for c, head in enumerate(self._heads):
                rows = now[:, c].flatten(1)
                drawn = head.draw(features[rows], uniform[:, c].flatten(1)[rows][:, None], sampling)
                codes[:, c][now[:, c]] = drawn[:, 0]
            known |= now
            if progress is not None:
                progress(i + 1, len(ends))
        return codes

    @torch.no_grad()
    def code(
        self,
        wire: SymbolCoder,
        count: int,
        codes: Tensor | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """In an order that is the same for all: code by code, or in `VALIDATE_AT` steps, each of codes far apart.

        A step's codes are told as if they were independent given those before, which costs a little more.
        """
        places, positions = math.prod(self.code_shape), math.prod(self.code_shape[1:])
        device = self.embed.offsets.device
        order = Noise(0, stream="order").uniform(places).argsort().to(device)
        told = torch.zeros(count, *self.code_shape, dtype=torch.int64, device=device)
        known = torch.zeros(self.code_shape, dtype=torch.bool, device=device)
        steps = order.tensor_split(min(places, VALIDATE_AT))
        for i, step in enumerate(steps):
            features = self._features(told, known.expand(told.shape), label, context)
            for c, head in enumerate(self._heads):
                at = step[step // positions == c]
                if not len(at):
                    continue
                answers = None if codes is None else codes.flatten(1)[:, at].flatten()

                def pick(logits: Tensor, _: int, answers: Tensor | None = answers) -> Tensor:
                    return code_categorical(wire, logits, answers)

                chosen = head.choose(features[:, at % positions].flatten(0, 1), pick)
                told.view(count, -1)[:, at] = chosen.view(count, -1)
            known.view(-1)[step] = True
            if progress is not None:
                progress(i + 1, len(steps))
        return told

    def _enough(self, missing: int) -> int:
        """Steps for so many missing codes."""
        share = missing / math.prod(self.code_shape)
        return max(min(FEWEST, self.steps), math.ceil(self.steps * math.sqrt(share)))

    def _looked(self, codes: Tensor, known: Tensor, label: Tensor | None, context: Tensor | None) -> Tensor:
        """`_features`, but of one example where all are alike, as at first when one is filled in several ways."""
        seen = (codes.masked_fill(~known, self.codebook_size), label, context)
        if not all(of is None or bool((of == of[:1]).all()) for of in seen):
            return self._features(codes, known, label, context)
        one, around = None if label is None else label[:1], None if context is None else context[:1]
        return self._features(codes[:1], known[:1], one, around).expand(len(codes), -1, -1)

    @property
    def _heads(self) -> Iterable[CodeHead]:
        return cast(Iterable[CodeHead], self.heads)

    def _weighted(
        self,
        codes: Tensor,
        share: Tensor,
        uniform: Tensor,
        label: Tensor | None,
        context: Tensor | None,
        noise: Noise | None = None,
    ) -> Tensor:
        """One draw of the bound's terms: t = floor(D share), and the t codes with the least `uniform` are known."""
        places = math.prod(self.code_shape)
        count = (share * places).long().clamp(max=places - 1)[:, None, None, None]
        known = _rank(uniform) < count
        return self._log_prob(codes, known, ~known, label, context, noise) * (places / (places - count))

    def _log_prob(
        self,
        codes: Tensor,
        known: Tensor,
        wanted: Tensor,
        label: Tensor | None,
        context: Tensor | None,
        noise: Noise | None = None,
    ) -> Tensor:
        """log p(code | known codes) of the wanted codes, zero for others; all `[B, C, h, w]`."""
        features = self._features(codes, known, label, context, noise)
        nats: list[Tensor] = []
        for c, head in enumerate(self._heads):
            answers, asked = codes[:, c].flatten(1), wanted[:, c].flatten(1)
            if self.training:
                found = head.log_prob(features[asked][None], answers[asked][None, None]).flatten()
                nats.append(torch.zeros(asked.shape, device=codes.device).masked_scatter(asked, found))
            else:  # of all, as many each time, so that no example's figures hang on how many others have
                nats.append(head.log_prob(features, answers[:, None])[:, 0].masked_fill(~asked, 0.0))
        return torch.stack(nats, 1).view(codes.shape)

    def _features(
        self, codes: Tensor, known: Tensor, label: Tensor | None, context: Tensor | None, noise: Noise | None = None
    ) -> Tensor:
        """What is known of each position, `[B, h w, width]`; a code that is not known is seen as code K, the mask."""
        seen = codes.masked_fill(~known, self.codebook_size)
        return self.trunk(self.embed(seen.flatten(2)) + self.given(label, context), noise)


def _rank(numbers: Tensor) -> Tensor:
    """The place of each number among its example's, 0 for the least; same shape."""
    return numbers.flatten(1).argsort(1).argsort(1).view(numbers.shape)


def _seeded_by(codes: Tensor, passes: int) -> Tensor:
    """Numbers in [0, 1) that depend on the example alone: `[B, passes, 1 + D]`."""
    rows = codes.flatten(1).cpu().numpy()
    draws = [Noise(0, stream=row.tobytes().hex()).uniform(passes, 1 + len(row)) for row in rows]
    return torch.stack(draws).to(codes.device)


def _schedule(missing: Tensor, steps: int) -> list[Tensor]:
    """How many of the missing codes `[B]` are drawn after each step: n (1 - cos(pi i / 2 s)), at least i, at last n."""
    steps_each = missing.clamp(1, steps)
    ends: list[Tensor] = []
    for i in range(1, min(steps, int(missing.max())) + 1):
        i_each = steps_each.clamp(max=i)
        curve = missing * (1 - torch.cos(math.pi / 2 * i_each / steps_each))
        ends.append(torch.where(i_each < steps_each, curve.ceil().long().clamp(min=i_each), missing))
    return ends
