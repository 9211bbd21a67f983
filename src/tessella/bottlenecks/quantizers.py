"""Quantizers: q(z | x) is a point mass on codes. See `Quantizer` in `contracts.py`.

Each has a linear head, codes, and the codes' vectors, in float32. Penalties are squared distances, summed over
positions and channels: twice the nats of a unit Gaussian around the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.bottlenecks.codebooks import (
    Codebook,
    Distance,
    euclidean,
)
from tessella.bottlenecks.nearest import in_one_table, nearest_codes
from tessella.bottlenecks.proposals import sample_near, sample_with_log_prob, uniform_for
from tessella.core.contracts import Quantizer
from tessella.core.outputs import BottleneckOutput
from tessella.core.rng import Noise

Gradient = Callable[[Tensor, Tensor], Tensor]
"""Function of z and its quantised value e: returns e exactly, with a gradient for z."""


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """Return e with a straight-through gradient to z (van den Oord et al. 2017, section 3.2)."""
    return _InPlaceOf.apply(z, e)  # pyright: ignore[reportReturnType]


@final
class _InPlaceOf(torch.autograd.Function):
    """Value of the second argument with the gradient of the first; z + sg[e - z] would be rounded and would copy e."""

    @staticmethod
    def forward(z: Tensor, e: Tensor) -> Tensor:
        return e.view_as(e)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Do nothing: the gradient needs no saved values."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """Return e with a gradient to z that is rotated and scaled like z to e (Fifty et al. 2024, section 4.2).

    With unit vectors u of z, v of e and w of u + v, e = |e| / |z| (z - 2 w (w . z) + 2 v (u . z)); only the z in the
    parentheses has a gradient.
    """
    with torch.no_grad():
        u, v = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
        w = F.normalize(u + v, dim=-1)
        scale = e.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    turned = scale * (z - 2 * w * (w * z).sum(-1, keepdim=True) + 2 * v * (u * z).sum(-1, keepdim=True))
    return straight_through(turned, e)


GRADIENTS: dict[str, Gradient] = {"straight-through": straight_through, "rotation": rotated}


# codebooks


@final
class CodebookQuantizer(Quantizer):
    """Quantizer with codebooks: a code is the index of the nearest vector; each codebook quantises the previous
    residual.

    z = W h + b is split into G groups of D channels. Let r_1 = z, e_s the vector of codebook s nearest to r_s, and r_(s
    + 1) = r_s - e_s; the decoder's input is sum_s e_s. One codebook is vector quantisation (van den Oord et al. 2017),
    with groups product quantisation; several are residual quantisation (Zeghidour et al. 2021, section III-C; Lee et
    al. 2022, section 3.1). Codes are ordered by codebook, then by group.

    The penalty of an example is, summed over positions, codebooks, groups and channels,

        commitment (r_s - sg[e_s])^2 + (sg[r_s] - e_s)^2,

    the second term only if the codebook is learned by gradients.

    Args:
        feature_shape: `(F, *spatial)`.
        books: the codebooks, all with the same G, K and D.
        commitment: weight of the first term, beta in eq. 3 of van den Oord et al.
        distance: map applied to z before anything else.
        gradient: estimator of the gradient from the decoder to z.
        dropout: share of the training examples of which a random number of codebooks is used, so that the first ones
            also serve alone (Zeghidour et al. 2021, section III-C).
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        books: Sequence[Codebook],
        *,
        commitment: float = 0.25,
        distance: Distance = euclidean,
        gradient: Gradient = straight_through,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.groups, self.codebook_size, self.code_dim = books[0].table().shape
        self.commitment, self.distance, self.gradient = commitment, distance, gradient
        self.dropout, self.nested = dropout, len(books) > 1
        self.books = cast(Sequence[Codebook], nn.ModuleList(books))
        self.head = nn.Linear(feature_shape[0], self.groups * self.code_dim)
        self.latent_shape = (self.groups * self.code_dim, *feature_shape[1:])
        self.code_shape = (len(books) * self.groups, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None, present: Tensor | None = None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            z = left = self.distance(rows.reshape(-1, self.groups, self.code_dim))
            used, codes, vectors, penalties = self._used(rows, noise), [], [], []
            for number, book in enumerate(self.books):
                left = left - vectors[-1] if vectors else left
                here = None if present is None else present.flatten()
                if used is not None:
                    here = used > number if here is None else here & (used > number)
                chosen, e = self._through(number, left, noise, here)
                penalty = self.commitment * F.mse_loss(left, e.detach(), reduction="none")
                if book.taught:
                    penalty = penalty + F.mse_loss(left.detach(), e, reduction="none")
                if here is not None:
                    chosen = chosen.masked_fill(~here[:, None], -1)
                    e, penalty = (t.masked_fill(~here[:, None, None], 0) for t in (e, penalty))
                codes.append(chosen)
                penalties.append(penalty)
                vectors.append(e.detach())
            z = self.gradient(z, _sum(vectors))
            grid = torch.cat(codes, 1).reshape(*rows.shape[:-1], self.code_shape[0]).movedim(-1, 1)
            penalty = _sum(penalties).view(rows.shape)
            z = z.view(rows.shape).movedim(-1, 1)
            return self.output(z, grid.contiguous(), penalty.flatten(1).sum(1), present)

    def _used(self, rows: Tensor, noise: Noise | None) -> Tensor | None:
        """Return how many codebooks each row of `[B, *spatial, ...]` uses, `[N]` int64; None: all."""
        count, positions = len(self.books), math.prod(rows.shape[1:-1])
        if not self.training:
            return None if self.codes_used is None else torch.full_like(rows[..., 0], self.codes_used).long().flatten()
        if not self.dropout or noise is None or count == 1:
            return None
        chance, share = noise.split("dropout").uniform(len(rows), 2).unbind(1)
        fewer = 1 + (share * count).long().clamp(max=count - 1)
        return fewer.where(chance < self.dropout, count).to(rows.device).repeat_interleave(positions)

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            left = self.distance(rows.reshape(-1, self.groups, self.code_dim))
            codes, log_q = [], rows.new_zeros(rows.shape[:-1])
            for number, book in enumerate(self.books):
                table = book.table()
                u = noise.split(f"soften {number}").uniform(len(rows), left[..., 0].numel() // len(rows))
                chosen, nats = sample_near(left, table, u.to(left.device).view(left.shape[:2]))
                left = left - _vectors(table, chosen)
                codes.append(chosen)
                log_q = log_q + nats.sum(1).view(log_q.shape)
            return torch.cat(codes, 1).reshape(*rows.shape[:-1], -1).movedim(-1, 1).contiguous(), log_q

    @torch.compiler.disable()  # control flow depends on values: a compiler would break the graph at every line
    def _through(self, number: int, z: Tensor, noise: Noise | None, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the codes `[N, G]` of z `[N, G, D]` and their vectors, then update the codebook by those present."""
        book, seen = self.books[number], z.detach()
        draws = (noise or Noise(0)).split(f"codebook {number}")
        if self.training:
            book.start(seen if present is None else seen[present], draws.split("start"))
        table = book.table()
        codes = nearest_codes(seen, table.detach())
        e = _vectors(table, codes)
        if self.training:
            learned = (seen, codes) if present is None else (seen[present], codes[present])
            book.learn(*learned, draws.split("revival"))
        return codes, e

    def vectors(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            rows = codes.movedim(1, -1)
            chosen = rows.reshape(-1, len(self.books), self.groups).unbind(1)
            pairs = list(zip(self.books, chosen, strict=True))[: self.codes_used]
            z = _sum([_vectors(book.table(), c) for book, c in pairs])
            return z.view(*rows.shape[:-1], self.latent_shape[0]).movedim(-1, 1)


def _vectors(table: Tensor, codes: Tensor) -> Tensor:
    """Look up the vectors `[N, G, D]` of codes `[N, G]` in tables `[G, K, D]`."""
    return F.embedding(in_one_table(codes, table.shape[1]), table.flatten(0, 1))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(add, tensors)


# no codebooks


@final
class FSQModule(Quantizer):
    """Finite scalar quantisation: each number of z is rounded to one of a few levels (Mentzer et al. 2023, section 3).

    With L levels the digit is round((L - 1) / 2 (1 + tanh z)), its value is 2 digit / (L - 1) - 1, and a code is the
    number with these digits. (This is the paper's method, except for even L, where the paper's levels are not symmetric
    about zero.) There is no codebook and so no penalty.
    """

    def __init__(self, feature_shape: tuple[int, ...], codes: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.codebook_size = math.prod(levels)
        self.most: Tensor
        self.base: Tensor
        self.register_buffer("most", torch.tensor(levels) - 1, persistent=False)
        bases = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("base", torch.tensor(bases), persistent=False)
        self.head = nn.Linear(feature_shape[0], codes * len(levels))
        self.latent_shape = (codes * len(levels), *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None, present: Tensor | None = None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            bounded = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base))).tanh()
            digits = (self.most / 2 * (1 + bounded.detach())).nan_to_num().round().long()
            codes = (digits * self.base).sum(-1).movedim(-1, 1).contiguous()
            z = straight_through(bounded.flatten(-2).movedim(-1, 1), self.vectors(codes))
            return self.output(z, codes, None, present)

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample each digit independently, with the variance of rounding errors around its value."""
        with torch.autocast(features.device.type, enabled=False):
            bounded = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base))).tanh()
            codes, log_q = 0, 0.0
            for number, (most, base) in enumerate(zip(self.most.tolist(), self.base.tolist(), strict=True)):
                value = bounded[..., number]
                levels = torch.linspace(-1, 1, most + 1, device=value.device)
                logits = -(value[..., None] - levels).square() / (2 * (2 / most) ** 2 / 12)
                digit, nats = sample_with_log_prob(logits, uniform_for(noise.split(f"soften {number}"), value))
                codes, log_q = codes + base * digit, log_q + nats.sum(-1)
            return cast(Tensor, codes).movedim(-1, 1).contiguous(), cast(Tensor, log_q)

    def vectors(self, codes: Tensor) -> Tensor:
        digits = codes.movedim(1, -1)[..., None] // self.base % (self.most + 1)
        return (2 * digits / self.most - 1).flatten(-2).movedim(-1, 1)


@final
class LFQModule(Quantizer):
    """Lookup-free quantisation: a code is the signs of b numbers, so K = 2^b (Yu et al. 2023, MAGVIT-v2, section 3.1).

    Let q(bit | z) = sigmoid(4 z), the softmax of minus the squared distances to +1 and -1, and q(bit) its mean over
    this process's batch. The penalty of an example is, summed over positions and bits,

        commitment (z - sg[sign z])^2 + entropy (H[q(bit | z)] - H[q(bit)]):

    each bit should be certain, and both of its values used. The entropy of a code is at most the sum of the entropies
    of its bits, with equality for independent bits; so nothing as large as K is computed (Zhao et al. 2024, BSQ,
    section 3.2).
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        *,
        codebook_size: int,
        codes_per_position: int,
        commitment: float,
        entropy: float,
    ) -> None:
        super().__init__()
        codes, bits = codes_per_position, codebook_size.bit_length() - 1
        self.codebook_size, self.commitment, self.entropy = codebook_size, commitment, entropy
        self.base: Tensor
        self.register_buffer("base", 2 ** torch.arange(bits), persistent=False)
        self.head = nn.Linear(feature_shape[0], codes * bits)
        self.latent_shape = (codes * bits, *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None, present: Tensor | None = None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            codes = ((rows.unflatten(-1, (-1, len(self.base))) > 0) * self.base).sum(-1).movedim(-1, 1).contiguous()
            z = rows.movedim(-1, 1)
            signs = self.vectors(codes)
            on = torch.sigmoid(4 * z)
            entropy = F.softplus(4 * z) - 4 * z * on
            counted = torch.ones_like(on[:, :1]) if present is None else present.unsqueeze(1).to(on.dtype)
            axes = [0, *range(2, z.dim())]
            mean = (on * counted).sum(axes, keepdim=True) / counted.sum(axes, keepdim=True).clamp_min(1)
            mean = mean.clamp(1e-6, 1 - 1e-6)
            of_mean = torch.special.entr(mean) + torch.special.entr(1 - mean)
            terms = self.commitment * (z - signs).square() + self.entropy * (entropy - of_mean)
            if present is not None:
                terms = terms.masked_fill(~present.unsqueeze(1), 0)
            return self.output(straight_through(z, signs), codes, terms.flatten(1).sum(1), present)

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sample each bit independently from q(bit | z)."""
        with torch.autocast(features.device.type, enabled=False):
            z = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base)))
            logits = torch.stack([torch.zeros_like(z), 4 * z], -1)
            bits, nats = sample_with_log_prob(logits, uniform_for(noise.split("soften"), z))
            return (bits * self.base).sum(-1).movedim(-1, 1).contiguous(), nats.sum((-2, -1))

    def vectors(self, codes: Tensor) -> Tensor:
        bits = codes.movedim(1, -1)[..., None] // self.base % 2
        return (2.0 * bits - 1).flatten(-2).movedim(-1, 1)
