"""Quantisers: q(z | x) is a point mass on codes. See `Quantizer` in `contracts.py`.

All of them are a linear head, codes, and the vectors that the codes stand for, in float32. A penalty counts squared
distances, summed over positions and channels: as much as twice the nats of a unit Gaussian around the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import count
from operator import add
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.bottlenecks.codebooks import (
    DISTANCES,
    AveragedCodebook,
    Codebook,
    Distance,
    LearnedCodebook,
    MappedCodebook,
    euclidean,
)
from tessella.bottlenecks.nearest import in_one_table, nearest
from tessella.bottlenecks.proposals import sample_near, sample_with_log_prob, uniform_for
from tessella.core.contracts import Quantizer
from tessella.core.distributions import PointMass
from tessella.core.outputs import BottleneckOutput
from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import register

Gradient = Callable[[Tensor, Tensor], Tensor]
"""From z and what it was quantised to, e: the value of e exactly, with a gradient for z."""


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """The gradient of e is given to z as it is (van den Oord et al. 2017, section 3.2)."""
    return _InPlaceOf.apply(z, e)  # pyright: ignore[reportReturnType]


@final
class _InPlaceOf(torch.autograd.Function):
    """The second argument's value and the first one's gradient; z + sg[e - z] would be rounded, and e be copied."""

    @staticmethod
    def forward(z: Tensor, e: Tensor) -> Tensor:
        return e.view_as(e)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """The gradient of e is rotated and scaled as z must be to become e (Fifty et al. 2024, section 4.2).

    With unit vectors u of z, v of e and w of u + v, e = |e| / |z| (z - 2 w (w . z) + 2 v (u . z)), in which all but the
    z's are taken for constants.
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
    """A code is the place of the nearest vector in a codebook; each codebook quantises what those before it left over.

    z = W h + b is split into G groups of D channels. With r_1 = z, e_s the vector of the s-th codebook that is nearest
    to r_s, and r_(s + 1) = r_s - e_s, the decoder is given sum_s e_s. One codebook is vector quantisation (van den Oord
    et al. 2017), in groups product quantisation; several are residual quantisation (Zeghidour et al. 2021, section
    III-C; Lee et al. 2022, section 3.1). Codes are ordered by codebook, then by group.

    The penalty of an example is, summed over positions, codebooks, groups and channels,

        commitment (r_s - sg[e_s])^2 + (sg[r_s] - e_s)^2,

    the second term only where the codebook is taught by it.

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        books: the codebooks, all of the same G, K and D.
        commitment: weight of the first term, beta in eq. 3 of the first paper.
        distance: where z is put before anything else.
        gradient: how the decoder's gradient gets to z.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        books: Sequence[Codebook],
        *,
        commitment: float = 0.25,
        distance: Distance = euclidean,
        gradient: Gradient = straight_through,
    ) -> None:
        super().__init__()
        self.groups, self.codebook_size, self.code_dim = books[0].table().shape
        self.commitment, self.distance, self.gradient = commitment, distance, gradient
        self.books = cast(Sequence[Codebook], nn.ModuleList(books))
        self.head = nn.Linear(feature_shape[0], self.groups * self.code_dim)
        self.latent_shape = (self.groups * self.code_dim, *feature_shape[1:])
        self.code_shape = (len(books) * self.groups, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            z = left = self.distance(rows.reshape(-1, self.groups, self.code_dim))
            codes, vectors, penalties = [], [], []
            for number, book in enumerate(self.books):
                left = left - vectors[-1] if vectors else left
                chosen, e = self._through(number, left, noise)
                penalties.append(self.commitment * F.mse_loss(left, e.detach(), reduction="none"))
                if book.taught:
                    penalties.append(F.mse_loss(left.detach(), e, reduction="none"))
                codes.append(chosen)
                vectors.append(e.detach())
            z = self.gradient(z, _sum(vectors))
            grid = torch.cat(codes, 1).reshape(*rows.shape[:-1], self.code_shape[0]).movedim(-1, 1)
            penalty = _sum(penalties).view(rows.shape).flatten(1).sum(1)
            return BottleneckOutput(z.view(rows.shape).movedim(-1, 1), PointMass(grid.contiguous()), penalty)

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            left = self.distance(rows.reshape(-1, self.groups, self.code_dim))
            codes, log_q = [], rows.new_zeros(len(rows))
            for number, book in enumerate(self.books):
                table = book.table()
                u = noise.split(f"soften {number}").uniform(len(rows), left[..., 0].numel() // len(rows))
                chosen, nats = sample_near(left, table, u.to(left.device).view(left.shape[:2]))
                left = left - _vectors(table, chosen)
                codes.append(chosen)
                log_q = log_q + nats.view(len(rows), -1).sum(1)
            return torch.cat(codes, 1).reshape(*rows.shape[:-1], -1).movedim(-1, 1).contiguous(), log_q

    @torch.compiler.disable()  # all of it hangs on numbers: a compiler would break and guard at every line
    def _through(self, number: int, z: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Codes `[N, G]` of z `[N, G, D]` and their vectors, as they were before the codebook took note of z."""
        book, seen = self.books[number], z.detach()
        draws = (noise or Noise(0)).split(f"codebook {number}")
        if self.training:
            book.start(seen, draws.split("start"))
        table = book.table()
        codes = nearest(seen, table.detach())
        e = _vectors(table, codes)
        if self.training:
            book.learn(seen, codes, draws.split("revival"))
        return codes, e

    def lookup(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            rows = codes.movedim(1, -1)
            chosen = rows.reshape(-1, len(self.books), self.groups).unbind(1)
            z = _sum([_vectors(book.table(), c) for book, c in zip(self.books, chosen, strict=True)])
            return z.view(*rows.shape[:-1], self.latent_shape[0]).movedim(-1, 1)


def _vectors(table: Tensor, codes: Tensor) -> Tensor:
    """The vectors `[N, G, D]` of codes `[N, G]` in tables `[G, K, D]`."""
    return F.embedding(in_one_table(codes, table.shape[1]), table.flatten(0, 1))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(add, tensors)


@register("quantizer", "vq", summary="vector quantisation, codebook by gradient (van den Oord et al. 2017)")
def VectorQuantizer(
    feature_shape: tuple[int, ...],
    *,
    codebook_size: int = 512,
    codes: int = 1,
    code_dim: int | None = None,
    commitment: float = 0.25,
    distance: str = "euclidean",
    gradient: str = "straight-through",
) -> CodebookQuantizer:
    """Vector quantisation, the codebook taught by gradients (van den Oord et al. 2017, eq. 3).

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        codebook_size: K.
        codes: codes a position, each with channels and a codebook of its own.
        code_dim: numbers that a code stands for; few (8 to 32) keep a large codebook in use (Yu et al. 2021, section
            3.2). Unless given, 64 are shared out among the codes, but no more than there are features.
        commitment: weight of the encoder's term of the penalty.
        distance: `euclidean` or `cosine`.
        gradient: `straight-through` or `rotation`.

    Raises:
        SpecError: if an option is out of its range.
    """
    return _by_codebooks(
        LearnedCodebook, feature_shape, codes, 1, codebook_size, code_dim, commitment, distance, gradient
    )


@register("quantizer", "ema", summary="vector quantisation, codebook by exponential averages, dead codes revived")
def EMAQuantizer(
    feature_shape: tuple[int, ...],
    *,
    codebook_size: int = 512,
    codes: int = 1,
    code_dim: int | None = None,
    commitment: float = 0.25,
    distance: str = "euclidean",
    gradient: str = "straight-through",
    decay: float = 0.99,
    revive: float = 0.05,
) -> CodebookQuantizer:
    """Vector quantisation, the codebook kept by exponential averages (van den Oord et al. 2017, appendix A.1).

    The arguments are those of `VectorQuantizer`, and `decay` and `revive` of `AveragedCodebook`.
    """
    book = partial(AveragedCodebook, decay=decay, revive=revive)
    return _by_codebooks(book, feature_shape, codes, 1, codebook_size, code_dim, commitment, distance, gradient)


@register(
    "quantizer", "simvq", summary="vector quantisation, codebook a frozen table times a learned map (Zhu et al. 2024)"
)
def SimVQ(
    feature_shape: tuple[int, ...],
    *,
    codebook_size: int = 512,
    codes: int = 1,
    code_dim: int | None = None,
    commitment: float = 0.25,
    distance: str = "euclidean",
    gradient: str = "straight-through",
) -> CodebookQuantizer:
    """Vector quantisation, the codebook a frozen table times a learned map (Zhu et al. 2024, section 4).

    The arguments are those of `VectorQuantizer`.
    """
    return _by_codebooks(
        MappedCodebook, feature_shape, codes, 1, codebook_size, code_dim, commitment, distance, gradient
    )


@register(
    "quantizer",
    "residual",
    summary="several codes a position, each for the residual of those before (Zeghidour et al. 2021)",
)
def ResidualQuantizer(
    feature_shape: tuple[int, ...],
    *,
    codebook_size: int = 512,
    codes: int | None = None,
    code_dim: int | None = None,
    commitment: float = 0.25,
    distance: str = "euclidean",
    gradient: str = "straight-through",
    decay: float = 0.99,
    revive: float = 0.05,
) -> CodebookQuantizer:
    """Residual quantisation: `codes` (4 unless given) codebooks, each for what those before it left over.

    The arguments are those of `EMAQuantizer`. By `cosine` z lies on the sphere and the first codebook too; what is left
    over lies anywhere.
    """
    book = partial(AveragedCodebook, decay=decay, revive=revive)
    stages = 4 if codes is None else codes
    return _by_codebooks(book, feature_shape, 1, stages, codebook_size, code_dim, commitment, distance, gradient)


def _by_codebooks(
    book: Callable[..., Codebook],
    feature_shape: tuple[int, ...],
    groups: int,
    stages: int,
    size: int,
    dims: int | None,
    commitment: float,
    distance: str,
    gradient: str,
) -> CodebookQuantizer:
    """Checked, and with the options' names resolved."""
    _positive(codebook_size=size, codes=min(groups, stages), code_dim=1 if dims is None else dims)
    for name, choice, choices in (("distance", distance, DISTANCES), ("gradient", gradient, GRADIENTS)):
        if choice not in choices:
            raise SpecError(f"no {name} is called {choice!r}; there are: {', '.join(choices)}")
    dims = dims or min(feature_shape[0], max(8, 64 // groups))
    place = DISTANCES[distance]
    books = [book(groups, size, dims, distance=euclidean if stage else place) for stage in range(stages)]
    return CodebookQuantizer(feature_shape, books, commitment=commitment, distance=place, gradient=GRADIENTS[gradient])


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}")


# no codebooks


@register(
    "quantizer", "fsq", summary="finite scalar quantisation: numbers rounded to a few levels (Mentzer et al. 2023)"
)
@final
class FSQModule(Quantizer):
    """Finite scalar quantisation: each number of z is rounded to one of a few levels (Mentzer et al. 2023, section 3).

    With L levels the digit is round((L - 1) / 2 (1 + tanh z)), it stands for 2 digit / (L - 1) - 1, and a code is the
    number that its digits make. (The paper's, but for even L, where its levels are not symmetric about zero.) There is
    no codebook and so no penalty.

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        codebook_size: K, 1024 unless the levels say another; it is made of levels by `levels_for`.
        codes: codes a position, each with numbers of its own.
        levels: the levels themselves, for instance the paper's `(8, 5, 5, 5)` for 1000 codes.

    Raises:
        SpecError: if K is no product of such levels, or not that of `levels`.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        *,
        codebook_size: int | None = None,
        codes: int = 1,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        _positive(codes=codes)
        levels = levels_for(1024 if codebook_size is None else codebook_size) if levels is None else tuple(levels)
        if not levels or min(levels) < 2:
            raise SpecError(f"levels must be 2 or more each, not {levels}")
        self.codebook_size = math.prod(levels)
        if codebook_size not in (None, self.codebook_size):
            raise SpecError(f"levels {levels} make {self.codebook_size} codes, not {codebook_size}: give only one")
        self.most: Tensor
        self.base: Tensor
        self.register_buffer("most", torch.tensor(levels) - 1, persistent=False)
        bases = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("base", torch.tensor(bases), persistent=False)
        self.head = nn.Linear(feature_shape[0], codes * len(levels))
        self.latent_shape = (codes * len(levels), *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            bounded = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base))).tanh()
            digits = (self.most / 2 * (1 + bounded.detach())).nan_to_num().round().long()
            codes = (digits * self.base).sum(-1).movedim(-1, 1).contiguous()
            z = straight_through(bounded.flatten(-2).movedim(-1, 1), self.lookup(codes))
            return BottleneckOutput(z, PointMass(codes))

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Each digit by itself; the values are spread about the levels as rounding spreads them."""
        with torch.autocast(features.device.type, enabled=False):
            bounded = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base))).tanh()
            codes, log_q = 0, 0.0
            for number, (most, base) in enumerate(zip(self.most.tolist(), self.base.tolist(), strict=True)):
                value = bounded[..., number]
                levels = torch.linspace(-1, 1, most + 1, device=value.device)
                logits = -(value[..., None] - levels).square() / (2 * (2 / most) ** 2 / 12)
                digit, nats = sample_with_log_prob(logits, uniform_for(noise.split(f"soften {number}"), value))
                codes, log_q = codes + base * digit, log_q + nats.flatten(1).sum(1)
            return cast(Tensor, codes).movedim(-1, 1).contiguous(), cast(Tensor, log_q)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.movedim(1, -1)[..., None] // self.base % (self.most + 1)
        return (2 * digits / self.most - 1).flatten(-2).movedim(-1, 1)


def levels_for(size: int) -> tuple[int, ...]:
    """The levels, 2 to 16 each, whose product is `size`: those nearest to 6, by the sum of squared logarithms.

    Raises:
        SpecError: if there are none, naming a size near it that has some.
    """
    found = _factors(size, 16) if size > 1 else []
    if not found:
        near = next(n for off in count(1) for n in (size - off, size + off) if n > 1 and _factors(n, 16))
        raise SpecError(f"codebook_size {size} is no product of levels of 2 to 16, which FSQ needs: take {near}")
    return min(found, key=lambda levels: sum(math.log(level / 6) ** 2 for level in levels))


def _factors(size: int, most: int) -> list[tuple[int, ...]]:
    """All ways to write `size` as a product of factors of 2 to `most`, the largest first."""
    if size == 1:
        return [()]
    return [(f, *rest) for f in range(min(most, size), 1, -1) if size % f == 0 for rest in _factors(size // f, f)]


@register("quantizer", "lfq", summary="lookup-free quantisation: a code is a row of signs (Yu et al. 2023)")
@final
class LFQModule(Quantizer):
    """Lookup-free quantisation: a code is the signs of b numbers, so K = 2^b (Yu et al. 2023, MAGVIT-v2, section 3.1).

    With q(bit | z) = sigmoid(4 z), softmax of minus the squared distances to +1 and -1, and q(bit) its mean over the
    batch of this process, the penalty of an example is, summed over positions and bits,

        commitment (z - sg[sign z])^2 + entropy (H[q(bit | z)] - H[q(bit)]):

    each bit sure, and both of its values used. A code's entropy is that of its bits if they are independent, and at
    most that; so nothing as large as K is needed (Zhao et al. 2024, BSQ, section 3.2).

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        codebook_size: K, a power of two.
        codes: codes a position, each with numbers of its own.
        commitment, entropy: weights of the two terms.

    Raises:
        SpecError: if K is no power of two.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        *,
        codebook_size: int = 1024,
        codes: int = 1,
        commitment: float = 0.25,
        entropy: float = 0.1,
    ) -> None:
        super().__init__()
        _positive(codebook_size=codebook_size, codes=codes)
        bits = max(1, round(math.log2(codebook_size)))
        if codebook_size != 2**bits:
            raise SpecError(f"codebook_size {codebook_size} is no power of two, which LFQ needs: take {2**bits}")
        self.codebook_size, self.commitment, self.entropy = codebook_size, commitment, entropy
        self.base: Tensor
        self.register_buffer("base", 2 ** torch.arange(bits), persistent=False)
        self.head = nn.Linear(feature_shape[0], codes * bits)
        self.latent_shape = (codes * bits, *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            codes = ((rows.unflatten(-1, (-1, len(self.base))) > 0) * self.base).sum(-1).movedim(-1, 1).contiguous()
            z = rows.movedim(-1, 1)
            signs = self.lookup(codes)
            on = torch.sigmoid(4 * z)
            entropy = F.softplus(4 * z) - 4 * z * on
            mean = on.mean([0, *range(2, z.dim())], keepdim=True).clamp(1e-6, 1 - 1e-6)
            of_mean = torch.special.entr(mean) + torch.special.entr(1 - mean)
            terms = self.commitment * (z - signs).square() + self.entropy * (entropy - of_mean)
            return BottleneckOutput(straight_through(z, signs), PointMass(codes), terms.flatten(1).sum(1))

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Each bit by itself, from q(bit | z)."""
        with torch.autocast(features.device.type, enabled=False):
            z = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.base)))
            logits = torch.stack([torch.zeros_like(z), 4 * z], -1)
            bits, nats = sample_with_log_prob(logits, uniform_for(noise.split("soften"), z))
            return (bits * self.base).sum(-1).movedim(-1, 1).contiguous(), nats.flatten(1).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        bits = codes.movedim(1, -1)[..., None] // self.base % 2
        return (2.0 * bits - 1).flatten(-2).movedim(-1, 1)
