"""Codebooks: tables of vectors, and how they learn what they stand for.

Every codebook has `groups` G tables of `size` K vectors of `dims` D numbers, and says:

    start(z, noise)             take the first training batch as it comes
    table() -> [G, K, D]        the vectors, differentiable where gradients are what teaches them
    learn(z, codes, noise)      take note of which vectors `z` `[G, N, D]` were given which `codes` `[G, N]`

Where several processes train, all of them see the statistics of the joined batch and so keep the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.bottlenecks.nearest import nearest, per_code
from tessella.noise import Noise

Distance = Callable[[Tensor], Tensor]


def euclidean(z: Tensor) -> Tensor:
    """Vectors as they are."""
    return z


def cosine(z: Tensor) -> Tensor:
    """Vectors on the sphere of radius sqrt(D), where the nearest is the one at the smallest angle (Yu et al. 2021,
    section 3.2, there with radius 1; with this one a coordinate has unit scale)."""
    return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5


DISTANCES: dict[str, Distance] = {"euclidean": euclidean, "cosine": cosine}


@final
class LearnedCodebook(nn.Module):
    """Vectors taught by gradients (van den Oord et al. 2017, eq. 3, second term); k-means gives the first ones."""

    taught = True

    def __init__(self, groups: int, size: int, dims: int, *, distance: Distance = euclidean) -> None:
        super().__init__()
        self.distance = distance
        self.vectors = nn.Parameter(torch.randn(groups, size, dims))
        self.register_buffer("started", torch.tensor(False))
        self.started: Tensor

    def table(self) -> Tensor:
        return self.distance(self.vectors)

    @torch.no_grad()
    def start(self, z: Tensor, noise: Noise) -> None:
        if not self.started and _all_finite(z):
            means, _ = k_means(z, self.vectors.shape[1], noise)
            self.vectors.copy_(means)
            self.started.fill_(True)

    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        """Nothing: the gradient of the penalty does it."""


@final
class AveragedCodebook(nn.Module):
    """Vectors kept as exponential averages of what they stood for (van den Oord et al. 2017, appendix A.1).

    count <- decay * count + (1 - decay) * n, total <- decay * total + (1 - decay) * sum z, and vector = total / count,
    the counts smoothed by Laplace's rule. k-means gives the first vectors. A code whose count falls under `revive`
    times the mean count takes a random vector of the batch and the mean count. A batch that is not finite is not
    taken note of.
    """

    taught = False

    def __init__(
        self,
        groups: int,
        size: int,
        dims: int,
        *,
        distance: Distance = euclidean,
        decay: float = 0.99,
        revive: float = 0.05,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.distance, self.decay, self.revive, self.epsilon = distance, decay, revive, epsilon
        vectors = torch.randn(groups, size, dims)
        self.register_buffer("vectors", vectors)
        self.register_buffer("total", vectors.clone())
        self.register_buffer("count", torch.ones(groups, size))
        self.register_buffer("started", torch.tensor(False))
        self.vectors: Tensor
        self.total: Tensor
        self.count: Tensor
        self.started: Tensor

    def table(self) -> Tensor:
        return self.distance(self.vectors)

    @torch.no_grad()
    def start(self, z: Tensor, noise: Noise) -> None:
        if not self.started and _all_finite(z):
            means, count = k_means(z, self.vectors.shape[1], noise)
            self.count.copy_(count)
            self.total.copy_(means * count[..., None])
            self.vectors.copy_(means)
            self.started.fill_(True)

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        count, total = _joined(*per_code(z, codes, self.vectors.shape[1]))
        if not self.started or not total.sum().isfinite():
            return
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        sum_, size = self.count.sum(1, keepdim=True), self.count.shape[1]
        dead = self.count < self.revive * sum_ / size
        if dead.any():
            group, code = dead.nonzero(as_tuple=True)
            mean = (sum_ / size).expand_as(self.count)[group, code]
            self.count[group, code] = mean
            self.total[group, code] = mean[:, None] * _drawn(z, group, noise)
        smooth = (self.count + self.epsilon) * sum_ / (sum_ + size * self.epsilon)
        torch.div(self.total, smooth[..., None], out=self.vectors)


@final
class MappedCodebook(nn.Module):
    """A frozen random table times a learned linear map: no vector is left behind (Zhu et al. 2024, SimVQ)."""

    taught = True

    def __init__(self, groups: int, size: int, dims: int, *, distance: Distance = euclidean) -> None:
        super().__init__()
        self.distance = distance
        self.register_buffer("frozen", torch.randn(groups, size, dims))
        self.frozen: Tensor
        self.map = nn.Parameter(torch.eye(dims).repeat(groups, 1, 1))

    def table(self) -> Tensor:
        return self.distance(self.frozen @ self.map)

    def start(self, z: Tensor, noise: Noise) -> None:
        """Nothing: the map moves all of the vectors to where they are needed."""

    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        """Nothing: the gradient of the penalty does it."""


Codebook = LearnedCodebook | AveragedCodebook | MappedCodebook


@torch.no_grad()
def k_means(z: Tensor, size: int, noise: Noise, *, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random vectors of the joined batch: means `[G, K, D]` and their counts `[G, K]`."""
    groups = len(z)
    group = torch.arange(groups, device=z.device).repeat_interleave(size)
    means = _drawn(z, group, noise).view(groups, size, -1)
    count = z.new_zeros(groups, size)
    for _ in range(rounds):
        count, total = _joined(*per_code(z, nearest(z, means), size))
        used = (count > 0)[..., None]
        means = torch.where(used, total / count.clamp(min=1)[..., None], means)
    return means, count


def _drawn(z: Tensor, group: Tensor, noise: Noise) -> Tensor:
    """Random vectors of the joined batch `[R, D]`, one for each entry of `group` `[R]`; if there are enough, none twice.

    The processes draw the same numbers, and each puts in the vectors that it has.
    """
    sizes = _sizes(z.shape[1], z.device)
    rank = dist.get_rank() if len(sizes) > 1 else 0
    rows, before = sum(sizes), sum(sizes[:rank])
    shared = Noise(noise.seed, noise.step, noise.stream)
    wanted = len(group)
    order = shared.uniform(rows, device=z.device).argsort()
    row = order.repeat(-(-wanted // rows))[:wanted] - before
    ours = (row >= 0) & (row < z.shape[1])
    drawn = z[group, row.clamp(0, z.shape[1] - 1)] * ours[:, None]
    (drawn,) = _joined(drawn)
    return drawn


def _sizes(rows: int, device: torch.device) -> list[int]:
    """How many vectors each process has."""
    if not _several():
        return [rows]
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    sizes[dist.get_rank()] = rows
    dist.all_reduce(sizes)
    return sizes.tolist()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _joined(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sums over the processes."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors


def _all_finite(z: Tensor) -> bool:
    (bad,) = _joined((~z.isfinite()).sum())
    return not bad
