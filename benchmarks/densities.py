"""Flows of vectors against densities that are known: how far their cross-entropy lies above the true entropy.

    python benchmarks/densities.py [--steps 6000 --only moons rings] [--out FOLDER]

One configuration for all. Trained through `tessella.training.loop` on 400 000 samples; on 100 000 fresh ones
log p(x) - log q(x) is averaged, an unbiased estimate of KL(p || q) = cross-entropy - entropy, in nats. Two dimensions:
eight Gaussians, moons, rings, spirals, a banana and a checkerboard. More: a correlated Gaussian in 16 dimensions and
ten clusters in 8. What lies in FOLDER of the same configuration is not measured again; with all eight the record is
written.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import common

BAR = 0.02
SAMPLES, FRESH = 400_000, 100_000
OPTIONS: dict[str, Any] = {"width": 96, "depth": 2, "mixtures": 24, "flow_steps": 3}
TRAINING: dict[str, Any] = {"batch_size": 512, "learning_rate": 7e-3}


@dataclass(frozen=True)
class Density:
    """A density whose logarithm is known.

    Attributes:
        sample: so many draws `[n, D]`, by a generator.
        log_prob: nats of each of `[n, D]`, float64.
    """

    sample: Callable[[int, torch.Generator], Tensor]
    log_prob: Callable[[Tensor], Tensor]


def mixture(means: Tensor, scale: float | Tensor) -> Density:
    """Equally many of each of the round Gaussians at `means` `[M, D]`."""
    count, dims = means.shape
    scales = torch.as_tensor(scale, dtype=torch.float64).expand(count)

    def sample(n: int, generator: torch.Generator) -> Tensor:
        at = torch.randint(count, (n,), generator=generator)
        return means[at] + scales[at, None] * torch.randn(n, dims, generator=generator, dtype=torch.float64)

    def log_prob(x: Tensor) -> Tensor:
        def part(chunk: Tensor) -> Tensor:
            square = torch.cdist(chunk, means).square() / scales.square()
            each = -0.5 * square - dims * (scales.log() + 0.5 * math.log(2 * math.pi))
            return torch.logsumexp(each, 1) - math.log(count)

        return torch.cat([part(chunk) for chunk in x.split(4000)])

    return Density(sample, log_prob)


def curve(points: Callable[[Tensor], Tensor], scale: float, count: int = 400) -> Density:
    """A smeared curve: Gaussians closely along `points` of [0, 1)."""
    return mixture(points((torch.arange(count, dtype=torch.float64) + 0.5) / count), scale)


def circle(t: Tensor, radius: float = 1.0) -> Tensor:
    """Points of a circle, by turns."""
    return radius * torch.stack([torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t)], -1)


def moons(t: Tensor) -> Tensor:
    """Two half circles that hook into each other."""
    upper, lower = circle(t), circle(t)
    lower = torch.stack([1 - lower[:, 0], 0.5 + lower[:, 1]], -1)
    return torch.where((t < 0.5)[:, None], upper, lower)


def spirals(t: Tensor) -> Tensor:
    """Two arms that wind out once and a half."""
    arm, along = (t < 0.5).double(), (2 * t) % 1
    return (0.5 + 2.5 * along)[:, None] * circle(1.5 * along + 0.5 * arm)


def banana() -> Density:
    """x_1 ~ N(0, 1), x_2 ~ N(x_1^2 - 1, 0.3^2)."""

    def sample(n: int, generator: torch.Generator) -> Tensor:
        e = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return torch.stack([e[:, 0], e[:, 0] ** 2 - 1 + 0.3 * e[:, 1]], 1)

    def log_prob(x: Tensor) -> Tensor:
        square = x[:, 0] ** 2 + ((x[:, 1] - x[:, 0] ** 2 + 1) / 0.3) ** 2
        return -0.5 * square - math.log(0.3) - math.log(2 * math.pi)

    return Density(sample, log_prob)


def checkerboard() -> Density:
    """Even on the eight black squares of a board of 4 x 4, of side 1."""

    def sample(n: int, generator: torch.Generator) -> Tensor:
        column, half = torch.randint(4, (n,), generator=generator), torch.randint(2, (n,), generator=generator)
        corner = torch.stack([column, 2 * half + column % 2], 1)
        return corner + torch.rand(n, 2, generator=generator, dtype=torch.float64) - 2

    def log_prob(x: Tensor) -> Tensor:
        return x.new_full((len(x),), -math.log(8))

    return Density(sample, log_prob)


def gaussian(dims: int) -> Density:
    """N(0, A A') with a random A."""
    matrix = torch.randn(dims, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix / math.sqrt(dims) + 0.3 * torch.eye(dims, dtype=torch.float64)
    of = torch.distributions.MultivariateNormal(torch.zeros(dims, dtype=torch.float64), matrix @ matrix.T)

    def sample(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, dims, generator=generator, dtype=torch.float64) @ matrix.T

    return Density(sample, of.log_prob)


def clusters(dims: int, count: int) -> Density:
    """Gaussians of deviation 0.5 at points of a normal cloud of deviation 2."""
    generator = torch.Generator().manual_seed(1)
    return mixture(2 * torch.randn(count, dims, generator=generator, dtype=torch.float64), 0.5)


DENSITIES: dict[str, tuple[int, Density]] = {
    "eight Gaussians": (2, mixture(circle(torch.arange(8, dtype=torch.float64) / 8, 2.0), 0.2)),
    "moons": (2, curve(moons, 0.1)),
    "rings": (2, curve(lambda t: circle((3 * t) % 1, 1.0) * (1 + torch.floor(3 * t))[:, None], 0.1, 900)),
    "spirals": (2, curve(spirals, 0.1, 900)),
    "banana": (2, banana()),
    "checkerboard": (2, checkerboard()),
    "correlated Gaussian": (16, gaussian(16)),
    "ten clusters": (8, clusters(8, 10)),
}


def measured(dims: int, density: Density, folder: Path, steps: int) -> dict[str, Any]:
    """Train a flow on one density; entropy, cross-entropy and their difference with its standard error, nats."""
    from tessella import open_data
    from tessella.models.presets import Flow
    from tessella.models.spec import TrainOptions
    from tessella.training.loop import fit

    torch.manual_seed(0)
    np.save(folder / "x.npy", density.sample(SAMPLES, torch.Generator().manual_seed(10)).float().numpy())
    data = open_data(str(folder / "x.npy"))
    model = Flow(data.schema, **OPTIONS)
    started = time.perf_counter()
    fit(model, data.split("train"), TrainOptions(steps=steps, **TRAINING))
    seconds = time.perf_counter() - started
    x = density.sample(FRESH, torch.Generator().manual_seed(20))
    true = density.log_prob(x)
    with torch.inference_mode():
        nats = torch.cat([model(chunk.float()).rate for chunk in x.split(10_000)]).double()
    gap = true + nats
    return {
        "dims": dims,
        "entropy": float(-true.mean()),
        "cross_entropy": float(nats.mean()),
        "gap": float(gap.mean()),
        "gap_standard_error": float(gap.std() / math.sqrt(len(gap))),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
    }


def kept(name: str, out: Path, steps: int) -> dict[str, Any]:
    """The same, from the folder if it is there with this configuration."""
    said, file = {**OPTIONS, **TRAINING, "steps": steps}, out / f"{name.replace(' ', '-')}.json"
    if file.is_file() and (before := json.loads(file.read_text()))["configuration"] == said:
        return before["found"]
    with TemporaryDirectory() as folder:
        found = measured(*DENSITIES[name], Path(folder), steps)
    file.write_text(json.dumps({"configuration": said, "found": found}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--only", nargs="+", choices=DENSITIES, default=list(DENSITIES))
    parser.add_argument("--out", type=Path, help="where to keep what was found; by default it is not kept")
    chosen = parser.parse_args()
    found = {}
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for name in chosen.only:
            found[name] = kept(name, out, chosen.steps)
            common.say(f"{name}: {found[name]['gap']:.4f} +- {found[name]['gap_standard_error']:.4f} nats")
    if list(found) != list(DENSITIES):
        return
    record = {
        "about": "flows of vectors against known densities: cross-entropy minus entropy on fresh samples",
        "rows": [
            common.row(
                f"flow of {f['dims']} numbers, {name}: cross-entropy above the true entropy, {chosen.steps} steps",
                BAR,
                f["gap"],
                unit=" nats",
                better="lower",
            )
            for name, f in found.items()
        ],
        "options": OPTIONS,
        "training": {**TRAINING, "steps": chosen.steps, "samples": SAMPLES, "fresh": FRESH},
        "densities": found,
        "environment": common.environment(),
    }
    common.write("densities", record)
    common.show(record)


if __name__ == "__main__":
    main()
