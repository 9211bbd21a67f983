"""Codebooks: tables of vectors, and how they learn what they stand for.

Every codebook has G tables of K vectors of D numbers, and can

    start(z, noise)             take its first vectors from the first batch of training,
    table() -> [G, K, D]        say its vectors, with a gradient if it is `taught` by one,
    learn(z, codes, noise)      take note of which vectors `z` `[N, G, D]` were given which `codes` `[N, G]`.

Where several processes train, each notes the joined batch, and so all of them keep the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.bottlenecks.nearest import nearest_codes, per_code
from tessella.core.device import precise
from tessella.core.rng import Noise

Distance = Callable[[Tensor], Tensor]
"""Where vectors are put before they are compared."""


def euclidean(z: Tensor) -> Tensor:
    """Vectors as they are."""
    return z


def cosine(z: Tensor) -> Tensor:
    """Vectors on the sphere of radius sqrt(D), where the nearest is the one at the smallest angle.

    By Yu et al. 2021, section 3.2, whose radius is 1; with this one a single number has unit scale.
    """
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
        self.started: Tensor
        self.register_buffer("started", torch.tensor(False))

    def table(self) -> Tensor:
        return self.distance(self.vectors)

    @torch.no_grad()
    def start(self, z: Tensor, noise: Noise) -> None:
        if not self.started and _finite(z):
            self.vectors.copy_(k_means(z, self.vectors.shape[1], noise)[0])
            self.started.fill_(True)

    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        """Nothing: the penalty's gradient does it."""


@final
class AveragedCodebook(nn.Module):
    """Vectors that are exponential averages of what they stood for (van den Oord et al. 2017, appendix A.1).

    With n_k and s_k the number and the sum of the vectors of the batch that were given code k:

        count_k <- decay count_k + (1 - decay) n_k,    total_k <- decay total_k + (1 - decay) s_k,
        e_k = total_k / count_k, the counts smoothed by Laplace's rule.

    k-means gives the first vectors. A code is dead if its count falls under one use a batch and under `revive` times
    the mean count (of a few codes a rare one is not dead); it is given a random vector of the batch, and the mean
    count. A batch that is not finite is not noted.
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
        self.vectors: Tensor
        self.total: Tensor
        self.count: Tensor
        self.started: Tensor
        self.register_buffer("vectors", torch.randn(groups, size, dims))
        self.register_buffer("total", self.vectors.clone())
        self.register_buffer("count", torch.ones(groups, size))
        self.register_buffer("started", torch.tensor(False))

    def table(self) -> Tensor:
        return self.distance(self.vectors)

    @torch.no_grad()
    def start(self, z: Tensor, noise: Noise) -> None:
        if not self.started and _finite(z):
            means, count = k_means(z, self.vectors.shape[1], noise)
            self.vectors.copy_(means)
            self.count.copy_(count)
            self.total.copy_(means * count[..., None])
            self.started.fill_(True)

    @torch.no_grad()
    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        size = self.count.shape[1]
        count, total = _joined(*per_code(z, codes, size))
        count = self.count.lerp(count, 1 - self.decay)
        all_, mean = count.sum(1, keepdim=True), count.mean(1, keepdim=True)
        dead = count < (self.revive * mean).clamp(max=1)
        finite, any_dead = torch.stack([total.sum().isfinite(), dead.any()]).tolist()
        if not finite:
            return
        self.total.lerp_(total, 1 - self.decay)
        if any_dead:
            group, _ = dead.nonzero(as_tuple=True)
            given = mean.expand_as(count)[dead]
            self.total[dead] = given[:, None] * _drawn(z, group, noise)
            count[dead] = given
        self.count.copy_(count)
        smooth = (count + self.epsilon) * (all_ / (all_ + size * self.epsilon))
        torch.div(self.total, smooth[..., None], out=self.vectors)


@final
class MappedCodebook(nn.Module):
    """A frozen random table times a learned linear map, so that no vector is left behind (Zhu et al. 2024, section 4).

    The map starts as the square root of the first batch's second moments E[z z']: the table then has them too.
    """

    taught = True

    def __init__(self, groups: int, size: int, dims: int, *, distance: Distance = euclidean) -> None:
        super().__init__()
        self.distance = distance
        self.map = nn.Parameter(torch.eye(dims).repeat(groups, 1, 1))
        self.frozen: Tensor
        self.started: Tensor
        self.register_buffer("frozen", torch.randn(groups, size, dims))
        self.register_buffer("started", torch.tensor(False))

    def table(self) -> Tensor:
        return self.distance(self.frozen @ self.map)

    @torch.no_grad()
    def start(self, z: Tensor, noise: Noise) -> None:
        if not self.started and _finite(z):
            vectors = precise(z.transpose(0, 1))
            moments, rows = _joined(vectors.mT @ vectors, torch.tensor(float(len(z)), device=vectors.device))
            values, axes = torch.linalg.eigh(moments / rows)
            self.map.copy_(axes @ (values.clamp(min=0).sqrt()[..., None] * axes.mT))
            self.started.fill_(True)

    def learn(self, z: Tensor, codes: Tensor, noise: Noise) -> None:
        """Nothing: the penalty's gradient does it."""


Codebook = LearnedCodebook | AveragedCodebook | MappedCodebook


@torch.no_grad()
def k_means(z: Tensor, size: int, noise: Noise, *, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, from random vectors of the joined batch.

    Args:
        z: this process's vectors `[N, G, D]`.
        size: K. If there are fewer vectors, they are taken several times, each time a little elsewhere.
        noise: which vectors come first.

    Returns:
        The means `[G, K, D]` and how many vectors are nearest to each, `[G, K]`.
    """
    groups, rows = z.shape[1], sum(_rows(z))
    shared = Noise(noise.seed, noise.step, noise.stream)
    row = shared.uniform(rows).argsort().repeat(-(-size // rows))[:size]
    group = torch.arange(groups).repeat_interleave(size)
    means = _picked(z, group, row.repeat(groups)).view(groups, size, -1)
    if rows < size:
        means += 0.1 * means.std(1, keepdim=True) * shared.normal(*means.shape).to(means)
    count = z.new_zeros(groups, size)
    for _ in range(rounds):
        count, total = _joined(*per_code(z, nearest_codes(z, means), size))
        means = torch.where(count[..., None] > 0, total / count.clamp(min=1)[..., None], means)
    return means, count


def _drawn(z: Tensor, group: Tensor, noise: Noise) -> Tensor:
    """A random vector of the joined batch, of those of its group, for each entry of `group` `[R]`: `[R, D]`."""
    shared = Noise(noise.seed, noise.step, noise.stream)
    rows = sum(_rows(z))
    row = (shared.uniform(len(group)).double() * rows).long()
    return _picked(z, group, row)


def _picked(z: Tensor, group: Tensor, row: Tensor) -> Tensor:
    """The vectors `[R, D]` of those groups and rows of the joined batch: each process puts in what it has."""
    rows = _rows(z)
    row = row.to(z.device) - sum(rows[: dist.get_rank()] if len(rows) > 1 else [])
    ours = (row >= 0) & (row < len(z))
    picked = z[row.where(ours, 0), group.to(z.device)] if len(z) else z.new_zeros(len(row), z.shape[2])
    (joined,) = _joined(picked.masked_fill(~ours[:, None], 0))
    return joined


def _rows(z: Tensor) -> list[int]:
    """How many vectors each process has."""
    if not _several():
        return [len(z)]
    rows = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=z.device)
    rows[dist.get_rank()] = len(z)
    dist.all_reduce(rows)
    return rows.tolist()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _joined(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sums over the processes."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors


def _finite(z: Tensor) -> bool:
    """Whether all processes' vectors are."""
    (total,) = _joined(z.sum())
    return bool(total.isfinite())
