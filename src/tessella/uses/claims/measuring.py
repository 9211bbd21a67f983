"""What several claims measure with: principal components, features to compare pictures in, the Frechet distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.uses.claims.bench import AT_ONCE, Recipe, fetched

if TYPE_CHECKING:
    from tessella.uses.claims.bench import Bench

COMPONENTS = 32


@dataclass(frozen=True)
class Components:
    """The leading principal components of some data.

    Attributes:
        center: `[D]`.
        axes: `[D, k]`, orthonormal.
        deviations: `[k]`, of the data along each.
    """

    center: Tensor
    axes: Tensor
    deviations: Tensor

    def of(self, x: Tensor, *, whitened: bool = False) -> Tensor:
        """Stored values `[B, *shape]` along the axes, `[B, k]` float64; whitened to unit variance if asked."""
        at = (x.flatten(1).double() - self.center) @ self.axes
        return at / self.deviations if whitened else at


def principal(x: Tensor, count: int = COMPONENTS) -> Components:
    """The `count` leading components of `x` `[N, *shape]` that have any variance."""
    flat = x.flatten(1).double()
    center = flat.mean(0)
    _, s, v = torch.linalg.svd(flat - center, full_matrices=False)
    kept = min(count, int((s > 1e-6 * s[0].clamp_min(1e-12)).sum()))
    return Components(center, v[:kept].T, s[:kept] / (len(x) - 1) ** 0.5)


@dataclass(frozen=True)
class Features:
    """Where examples are compared.

    Attributes:
        name: what the features are, in words.
        of: stored values `[B, *shape]` to features `[B, F]` float64.
    """

    name: str
    of: Callable[[Tensor], Tensor]


def features(bench: Bench) -> Features:
    """Of a classifier trained on the same data; without labels the principal components."""

    def make() -> Features:
        if bench.classes > 1:
            model: Classifier = bench.get(CLASSIFIER, bench.seeds[0])
            return Features("features of a classifier trained on the same data", model.features)
        components = principal(bench.examples("train", 5000).x)
        return Features("principal components of the data", lambda x: components.of(x.cpu()))

    return bench.keep("features", make)


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of the Gaussians with the moments of `a` `[N, F]` and `b` `[M, F]` (Dowson & Landau 1982).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). Never comparable with published "FID": the features are others.
    """
    a, b = a.double(), b.double()
    covariances = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


class Classifier(nn.Module):
    """A small network from stored values to classes, and its last hidden layer as features."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        schema = bench.schema
        x = bench.examples("train", 2000).x.flatten(1).float()
        self.center, self.scale = float(x.mean()), float(x.std()) or 1.0
        width = 32
        body: nn.Module
        if schema.is_picture:
            stride = 1 if min(schema.shape[1:]) <= 16 else 2
            body = nn.Sequential(
                nn.Conv2d(schema.shape[0], width, 3, stride, 1),
                nn.SiLU(),
                nn.Conv2d(width, 2 * width, 3, 2, 1),
                nn.SiLU(),
                nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(3),
                nn.Flatten(),
                nn.Linear(18 * width, 64),
            )
        else:
            body = nn.Sequential(nn.Linear(schema.dims, 128), nn.SiLU(), nn.Linear(128, 64))
        self.body, self.head = body, nn.Linear(64, bench.classes)

    def hidden(self, x: Tensor) -> Tensor:
        return self.body((x.float() - self.center) / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        return self.head(F.silu(self.hidden(x)))

    @torch.inference_mode()
    def features(self, x: Tensor) -> Tensor:
        return torch.cat([F.silu(self.hidden(part)) for part in x.split(AT_ONCE)]).double()

    @torch.inference_mode()
    def classes(self, x: Tensor) -> Tensor:
        """The likeliest class `[B]`."""
        return torch.cat([self(part).argmax(1) for part in x.split(AT_ONCE)])


def _classifier(bench: Bench, seed: int, seconds: float) -> Classifier:
    import time

    torch.manual_seed(seed)
    model, batch = Classifier(bench), fetched(bench.data.split("train"), 20_000)
    assert batch.label is not None
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    steps, started = min(3000, 20 * -(-len(batch.x) // 64)), time.monotonic()
    for step in range(steps):
        used = max(step / steps, (time.monotonic() - started) / seconds)
        if used >= 1:
            break
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - used)
        rows = torch.randint(len(batch.x), (64,))
        loss = F.cross_entropy(model(batch.x[rows]), batch.label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


CLASSIFIER = Recipe("classifier", _classifier, weight=0.7)
"""Made once, of the first seed: every sample is judged by the same one."""
