"""Codebooks: tables of vectors, and the rules that learn them.

A codebook has G tables of K vectors of D numbers, and these methods:

    start(z, noise)             initialise the vectors from the first training batch,
    table() -> [G, K, D]        return the vectors, with a gradient if `taught` (learned by gradients),
    learn(z, codes, noise)      update the statistics with vectors `z` `[N, G, D]` and their `codes` `[N, G]`.

If several processes train, each uses the joined batch, so all of them keep the same table.
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
"""Map applied to vectors before they are compared."""

EARLY = 9.0
"""After t updates the weight of a batch is at least `EARLY / (EARLY + 1 + t)`."""


def euclidean(z: Tensor) -> Tensor:
    """Return the vectors unchanged."""
    return z


def cosine(z: Tensor) -> Tensor:
    """Scale vectors to length sqrt(D), so that the nearest has the smallest angle.

    The method is that of Yu et al. 2021, section 3.2, whose length is 1; with sqrt(D) each number has unit scale.
    """
    return F.normalize(z, dim=-1) * z.shape[-1] ** 0.5


DISTANCES: dict[str, Distance] = {"euclidean": euclidean, "cosine": cosine}


@final
class LearnedCodebook(nn.Module):
    """Codebook learned by gradients (van den Oord et al. 2017, eq. 3, second term), initialised by k-means."""

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
        """Do nothing: the gradient of the penalty updates the vectors."""


@final
class AveragedCodebook(nn.Module):
    """Codebook of exponential moving averages of the encoded vectors (van den Oord et al. 2017, appendix A.1).

    Let n_k and s_k be the number and the sum of the batch's vectors that are assigned to code k. Then

        count_k <- decay count_k + (1 - decay) n_k,    total_k <- decay total_k + (1 - decay) s_k,
        e_k = total_k / count_k, with Laplace smoothing of the counts.

    After t updates the decay is at most (1 + t) / (10 + t): at first the encoder changes faster than slow averages
    could follow.
    The vectors are initialised by k-means. A code is dead if its count is below one use per batch and below `revive`
    times the mean count (so a rare code of a small codebook is not dead). A dead code gets a random vector of the batch
    and the mean count. A batch with NaN or infinite values is ignored.
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
        self.updates: Tensor
        self.register_buffer("vectors", torch.randn(groups, size, dims))
        self.register_buffer("total", self.vectors.clone())
        self.register_buffer("count", torch.ones(groups, size))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("updates", torch.zeros(()))

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
        usual = 1 - self.decay
        early = EARLY / (EARLY + 1 + self.updates)
        weight = early.clamp_min(usual) if usual else torch.zeros_like(early)
        count = self.count.lerp(count, weight)
        all_, mean = count.sum(1, keepdim=True), count.mean(1, keepdim=True)
        dead = count < (self.revive * mean).clamp(max=1)
        finite, any_dead = torch.stack([total.sum().isfinite(), dead.any()]).tolist()
        if not finite:
            return
        self.updates += 1
        self.total.lerp_(total, weight)
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
    """Codebook that is a frozen random table times a learned linear map (Zhu et al. 2024, section 4).

    So every code is trained at each step. The map starts as the square root of the first batch's second moments E[z
    z'], which the table then shares.
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
        """Do nothing: the gradient of the penalty updates the map."""


Codebook = LearnedCodebook | AveragedCodebook | MappedCodebook


@torch.no_grad()
def k_means(z: Tensor, size: int, noise: Noise, *, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Cluster vectors by Lloyd's algorithm, starting from random vectors of the joined batch.

    Args:
        z: this process's vectors `[N, G, D]`.
        size: K. If there are fewer vectors, each is used several times with a small random offset.
        noise: source of the random choice of starting vectors.
        rounds: number of iterations.

    Returns:
        The means `[G, K, D]`, and the number of vectors nearest to each, `[G, K]`.
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
    """Sample a random vector of the joined batch for each group in `group` `[R]`: `[R, D]`."""
    shared = Noise(noise.seed, noise.step, noise.stream)
    rows = sum(_rows(z))
    row = (shared.uniform(len(group)).double() * rows).long()
    return _picked(z, group, row)


def _picked(z: Tensor, group: Tensor, row: Tensor) -> Tensor:
    """Gather vectors `[R, D]` by group and row of the joined batch; each process adds the rows it has."""
    rows = _rows(z)
    row = row.to(z.device) - sum(rows[: dist.get_rank()] if len(rows) > 1 else [])
    ours = (row >= 0) & (row < len(z))
    picked = z[row.where(ours, 0), group.to(z.device)] if len(z) else z.new_zeros(len(row), z.shape[2])
    (joined,) = _joined(picked.masked_fill(~ours[:, None], 0))
    return joined


def _rows(z: Tensor) -> list[int]:
    """Return the number of vectors in each process."""
    if not _several():
        return [len(z)]
    rows = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=z.device)
    rows[dist.get_rank()] = len(z)
    dist.all_reduce(rows)
    return rows.tolist()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _joined(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sum tensors over the processes."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors


def _finite(z: Tensor) -> bool:
    """Return whether the vectors of all processes are finite."""
    (total,) = _joined(z.sum())
    return bool(total.isfinite())
