"""Quantisers: q(z | x) is a point mass on codes. See `Quantizer` in `contracts.py`.

All of them are linear head -> codes -> vectors, in float32. Their penalty is in squared units of the latents, summed
over positions and numbers: beside a distortion in nats it is 2 times -log of a unit Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

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
from tessella.bottlenecks.nearest import nearest
from tessella.contracts import Quantizer
from tessella.divergences import PointMass
from tessella.errors import SpecError
from tessella.noise import Noise
from tessella.records import Passage

Gradient = Callable[[Tensor, Tensor], Tensor]


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """The value of e, exactly, with the gradient of z (van den Oord et al. 2017, section 3.2)."""
    return e.detach() + (z - z.detach())


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """The value of e, exactly, with the gradient of the rotation and scaling that take z to e, held constant
    (Fifty et al. 2024, section 4.2).

    With unit vectors u of z, v of e and w of u + v: R z = |e| / |z| * (z - 2 w (w . z) + 2 v (u . z)).
    """
    with torch.no_grad():
        u, v = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
        w = F.normalize(u + v, dim=-1)
        scale = e.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    turned = scale * (z - 2 * w * (w * z).sum(-1, keepdim=True) + 2 * v * (u * z).sum(-1, keepdim=True))
    return e.detach() + (turned - turned.detach())


GRADIENTS: dict[str, Gradient] = {"straight-through": straight_through, "rotation": rotated}


@final
class CodebookQuantizer(Quantizer):
    """Codes are the nearest vectors of codebooks; each codebook quantises what those before it left over.

    z = W h is split into G groups of D channels. With residuals r_1 = z, r_(s+1) = r_s - e_s, and e_s the vector of
    the s-th codebook that is nearest to r_s, the decoder is given sum_s e_s. One stage is vector quantisation (van den
    Oord et al. 2017), with several groups product quantisation; several stages are residual quantisation (Zeghidour
    et al. 2021, section III-C; Lee et al. 2022, section 3.1). Codes are ordered by stage, then by group.

    The penalty of an example is, summed over positions, stages, groups and channels,

        commitment * (r_s - sg[e_s])^2 + (sg[r_s] - e_s)^2,

    the second term only where the codebook is taught by gradients.

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        books: the codebooks, all with the same G, K and D.
        commitment: weight of the first term (beta of the paper's eq. 3).
        distance: where z is put before its residuals are taken.
        gradient: how the decoder's gradient gets from the sum of vectors to z.
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
        self.books = nn.ModuleList(books)
        self.head = nn.Linear(feature_shape[0], self.groups * self.code_dim)
        self.latent_shape = (self.groups * self.code_dim, *feature_shape[1:])
        self.code_shape = (len(books) * self.groups, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> Passage:
        noise = noise or Noise(0)
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1))
            shape = rows.shape[:-1]
            z = self.distance(rows.reshape(-1, self.groups, self.code_dim))
            left, found, codes, penalty = z, torch.zeros_like(z), [], 0.0
            for number, book in enumerate(self.books):
                chosen, e = self._stage(book, left, noise.split(f"codebook {number}"))
                penalty = penalty + self.commitment * (left - e.detach()).square()
                if book.taught:
                    penalty = penalty + (left.detach() - e).square()
                codes.append(chosen)
                found = found + e.detach()
                left = left - e.detach()
            z = self.gradient(z, found)
            grid = torch.cat(codes, 1).reshape(*shape, -1).movedim(-1, 1)
            return Passage(
                z.reshape(*shape, -1).movedim(-1, 1),
                PointMass(grid.contiguous()),
                penalty.reshape(shape[0], -1).sum(1),
            )

    def _stage(self, book: Codebook, left: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Codes `[N, G]` of the residuals `[N, G, D]`, and their vectors `[N, G, D]`."""
        flat = left.detach().transpose(0, 1)
        if self.training:
            book.start(flat, noise.split("start"))
        table = book.table()
        codes = nearest(flat, table.detach())
        e = _vectors(table, codes.T)
        if self.training:
            book.learn(flat, codes, noise.split("revival"))
        return codes.T, e

    def lookup(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            rows = codes.movedim(1, -1)
            stages = rows.reshape(-1, len(self.books), self.groups).unbind(1)
            z = torch.zeros((), device=codes.device)
            for book, chosen in zip(self.books, stages, strict=True):
                z = z + _vectors(book.table(), chosen)
            return z.reshape(*rows.shape[:-1], -1).movedim(-1, 1)


def _vectors(table: Tensor, codes: Tensor) -> Tensor:
    """The vectors `[N, G, D]` of codes `[N, G]` in tables `[G, K, D]`."""
    groups, size, dims = table.shape
    return F.embedding(codes + size * torch.arange(groups, device=codes.device), table.reshape(-1, dims))


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
        codes: C codes a position, each with a codebook and `code_dim` channels of its own.
        code_dim: numbers in a vector; a few (8 to 32) keep large codebooks in use (Yu et al. 2021, section 3.2).
        commitment: weight of the encoder's term of the penalty.
        distance: `euclidean` or `cosine`.
        gradient: `straight-through` or `rotation`.

    Raises:
        SpecError: if an option is out of its range.
    """
    place, dims = _checked(feature_shape, codebook_size, codes, code_dim, distance, gradient)
    book = LearnedCodebook(codes, codebook_size, dims, distance=place)
    return CodebookQuantizer(feature_shape, [book], commitment=commitment, distance=place, gradient=GRADIENTS[gradient])


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

    Args: as of `VectorQuantizer`, and
        decay: of the averages, a step.
        revive: a code used less than this share of the mean is given a new vector; 0: never.
    """
    place, dims = _checked(feature_shape, codebook_size, codes, code_dim, distance, gradient)
    book = AveragedCodebook(codes, codebook_size, dims, distance=place, decay=decay, revive=revive)
    return CodebookQuantizer(feature_shape, [book], commitment=commitment, distance=place, gradient=GRADIENTS[gradient])


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
    """Vector quantisation, the codebook a frozen table times a learned map (Zhu et al. 2024, eq. 8).

    Args: as of `VectorQuantizer`.
    """
    place, dims = _checked(feature_shape, codebook_size, codes, code_dim, distance, gradient)
    book = MappedCodebook(codes, codebook_size, dims, distance=place)
    return CodebookQuantizer(feature_shape, [book], commitment=commitment, distance=place, gradient=GRADIENTS[gradient])


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
    """Residual quantisation: C codes a position, each for what those before it left over (Zeghidour et al. 2021,
    section III-C; Lee et al. 2022, section 3.1). The codebooks are kept by exponential averages.

    Args: as of `EMAQuantizer`, but
        codes: stages, 4 unless given.
    """
    stages = 4 if codes is None else codes
    place, dims = _checked(feature_shape, codebook_size, stages, code_dim, distance, gradient, groups=1)
    books = [
        AveragedCodebook(1, codebook_size, dims, distance=euclidean if s else place, decay=decay, revive=revive)
        for s in range(stages)
    ]
    return CodebookQuantizer(feature_shape, books, commitment=commitment, distance=place, gradient=GRADIENTS[gradient])


def _checked(
    feature_shape: tuple[int, ...],
    size: int,
    codes: int,
    dims: int | None,
    distance: str,
    gradient: str,
    *,
    groups: int | None = None,
) -> tuple[Distance, int]:
    """The distance by its name, and the numbers in a vector: those asked for, or 64 shared by the groups."""
    _positive(codebook_size=size, codes=codes, code_dim=1 if dims is None else dims)
    if distance not in DISTANCES:
        raise SpecError(f"no distance is called {distance!r}; there are: {', '.join(DISTANCES)}")
    if gradient not in GRADIENTS:
        raise SpecError(f"no gradient is called {gradient!r}; there are: {', '.join(GRADIENTS)}")
    return DISTANCES[distance], dims or min(feature_shape[0], max(8, 64 // (groups or codes)))


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}")


@final
class FSQ(Quantizer):
    """Finite scalar quantisation: each number of z is rounded to one of a few levels (Mentzer et al. 2023, section 3).

    A code is the levels read as a number of mixed radix; K is their product. There is no codebook, hence no penalty.
    The levels are spread over [-1, 1].

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        codebook_size: K; factorised into levels of 2 to 16, near 6 where it can be.
        codes: codes a position.
        code_dim: must be the number of levels, if given.
        commitment: not used; taken so that quantisers can be exchanged.
        levels: the levels themselves; then `codebook_size` is None or their product.

    Raises:
        SpecError: if K is no product of such levels, or does not fit `levels`.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        *,
        codebook_size: int | None = None,
        codes: int = 1,
        code_dim: int | None = None,
        commitment: float = 0.25,
        levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        _positive(codes=codes)
        levels = levels_for(1024 if codebook_size is None else codebook_size) if levels is None else tuple(levels)
        if not levels or min(levels) < 2:
            raise SpecError(f"levels must be two or more each, not {levels}")
        if codebook_size not in (None, math.prod(levels)):
            raise SpecError(f"levels {levels} make {math.prod(levels)} codes, not {codebook_size}: give one of the two")
        if code_dim not in (None, len(levels)):
            raise SpecError(
                f"{math.prod(levels)} codes of FSQ have code_dim {len(levels)}, not {code_dim}: leave it out"
            )
        self.levels, self.codebook_size = levels, math.prod(levels)
        self.register_buffer("level", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "base", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False
        )
        self.level: Tensor
        self.base: Tensor
        self.head = nn.Linear(feature_shape[0], codes * len(levels))
        self.latent_shape = (codes * len(levels), *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> Passage:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, len(self.levels)))
            bounded = (self.level - 1) / 2 * rows.tanh()
            digits = (bounded.detach() + (self.level - 1) / 2).nan_to_num().round().long()
            codes = (digits * self.base).sum(-1).movedim(-1, 1).contiguous()
            smooth = (bounded * 2 / (self.level - 1)).flatten(-2).movedim(-1, 1)
            return Passage(straight_through(smooth, self.lookup(codes)), PointMass(codes))

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.movedim(1, -1)[..., None] // self.base % self.level
        return (digits * 2 / (self.level - 1) - 1).flatten(-2).movedim(-1, 1)


def levels_for(size: int) -> tuple[int, ...]:
    """The levels, 2 to 16 each, whose product is `size`: those nearest to 6, in the mean of squared logarithms.

    Raises:
        SpecError: if there are none, naming the nearest size that has some.
    """
    found = _factors(size, 16) if size > 1 else []
    if not found:
        near = next(n for d in range(1, size + 4) for n in (size - d, size + d) if n > 1 and _factors(n, 16))
        raise SpecError(f"{size} codes are no product of levels of 2 to 16: take {near}, or another quantizer")
    return min(found, key=lambda levels: sum(math.log(level / 6) ** 2 for level in levels))


def _factors(size: int, most: int) -> list[tuple[int, ...]]:
    """All ways to write `size` as a product of falling factors of 2 to `most`."""
    if size == 1:
        return [()]
    return [(f, *rest) for f in range(min(most, size), 1, -1) if size % f == 0 for rest in _factors(size // f, f)]


@final
class LFQ(Quantizer):
    """Lookup-free quantisation: a code is the signs of b numbers, so K = 2^b (Yu et al. 2023, MAGVIT-v2, section 3.1).

    With q(bit) = sigmoid(4 z) at each position, the penalty of an example is, summed over positions and bits,

        commitment * (z - sg[sign z])^2 + entropy * (H(bit | z) - H(bit)),

    H(bit) being of q averaged over the batch: confident bits at each position, balanced bits over all. The entropies
    are those of single bits, of which the entropy of a code is the sum if bits are independent (Zhao et al. 2024,
    BSQ, section 3.2); nothing as large as K is ever made.

    Args:
        feature_shape: `(F,)` or `(F, h, w)`.
        codebook_size: K, a power of two.
        codes: codes a position.
        code_dim: must be b, if given.
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
        code_dim: int | None = None,
        commitment: float = 0.25,
        entropy: float = 0.1,
    ) -> None:
        super().__init__()
        _positive(codes=codes)
        bits = max(1, round(math.log2(max(2, codebook_size))))
        if codebook_size != 2**bits:
            raise SpecError(
                f"lookup-free codes are bits, so K must be a power of two: take {2**bits}, not {codebook_size}"
            )
        if code_dim not in (None, bits):
            raise SpecError(f"{codebook_size} lookup-free codes have code_dim {bits}, not {code_dim}: leave it out")
        self.bits, self.codebook_size = bits, codebook_size
        self.commitment, self.entropy = commitment, entropy
        self.register_buffer("weight", 2 ** torch.arange(bits), persistent=False)
        self.weight: Tensor
        self.head = nn.Linear(feature_shape[0], codes * bits)
        self.latent_shape = (codes * bits, *feature_shape[1:])
        self.code_shape = (codes, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None) -> Passage:
        with torch.autocast(features.device.type, enabled=False):
            rows = self.head(features.float().movedim(1, -1)).unflatten(-1, (-1, self.bits))
            codes = ((rows > 0) * self.weight).sum(-1).movedim(-1, 1).contiguous()
            z = rows.flatten(-2).movedim(-1, 1)
            vectors = self.lookup(codes)
            on = torch.sigmoid(4 * z)
            unsure = (_bit_entropy(on) - _bit_entropy(on.mean([0, *range(2, z.dim())], keepdim=True))).flatten(1).sum(1)
            penalty = self.commitment * (z - vectors).square().flatten(1).sum(1) + self.entropy * unsure
            return Passage(straight_through(z, vectors), PointMass(codes), penalty)

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.movedim(1, -1)[..., None] // self.weight % 2
        return (2.0 * digits - 1).flatten(-2).movedim(-1, 1)


def _bit_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability p."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
