"""What it saves to keep what is known when codes are drawn one position after another.

Grids are drawn by `CodePrior.sample`, and by the slow way that it must equal: the whole network over the whole grid
for every position, of which one position's features are used. The slow way is timed at some positions, evenly spread,
and multiplied by their number. Both take turns, in the same precision, and both draw: at the positions that are timed,
the slow way must give the codes that the fast one gave, or nothing is reported. (To recompute only what comes before a
position would cost about half of what is reported as the slow way.)

    python benchmarks/sampling.py [--rounds 5] [--positions 4]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import common
from tessella.core.configs import CodePriorConfig
from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical

SEED = 0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """A prior and the bar that it must pass."""

    kind: str
    bar: float
    shape: tuple[int, int, int] = (1, 32, 32)
    codebook_size: int = 512
    depth: int = 12
    width: int | None = None
    batch: int = 16

    def prior(self) -> Any:
        torch.manual_seed(SEED)
        options = {"depth": self.depth, "width": self.width}
        return (
            CodePriorConfig.chosen(self.kind)
            .from_options(options)
            .build(self.shape, self.codebook_size)
            .eval()
            .to(DEVICE)
        )


CASES = (Case("pixelcnn", 50), Case("transformer", 100))


@torch.no_grad()
def drawn_by_recomputing(prior: Any, codes: Tensor, position: int, uniform: Tensor) -> Tensor:
    """The codes `[B, C]` of one position given those before it, by a pass of the network over all of the grid."""
    row = uniform.flatten(2)[..., position]
    return prior.head.select(
        prior.features(codes)[:, position], lambda logits, k: sample_categorical(logits, row[:, k])
    )


def measure(case: Case, rounds: int, count: int) -> common.Record:
    """Seconds for a batch of grids both ways, in turns."""
    prior = case.prior()
    codes = prior.sample(case.batch, Noise(SEED))
    uniform = Noise(SEED).uniform(case.batch, *case.shape, device=codes.device)
    flat = codes.flatten(2)
    positions = flat.shape[2]
    chosen = [round((n + 0.5) * positions / count - 0.5) for n in range(count)]
    same = [bool(torch.equal(drawn_by_recomputing(prior, codes, p, uniform), flat[..., p])) for p in chosen]
    if not all(same):
        raise SystemExit(f"{case.kind}: the two ways draw different codes, so there is nothing to compare")

    def cached() -> float:
        return _seconds(lambda: prior.sample(case.batch, Noise(SEED)))

    def recomputed() -> float:
        taken = sum(_seconds(lambda p=p: drawn_by_recomputing(prior, codes, p, uniform)) for p in chosen)
        return taken * positions / count

    common.say(f"{case.kind}: {rounds} rounds of {positions} positions, cached and at {count} of them recomputed")
    taken = common.alternate({"cached": cached, "recomputed": recomputed}, rounds)
    return {
        "batch": case.batch,
        "code_shape": case.shape,
        "codebook_size": case.codebook_size,
        "depth": case.depth,
        "parameters": sum(p.numel() for p in prior.parameters()),
        "precision": "float32",
        "seconds": {name: statistics.median(each) for name, each in taken.items()},
        "positions_recomputed": count,
        "ratio": common.ratios(taken["recomputed"], taken["cached"]),
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def sampling(rounds: int = 5, positions: int = 4) -> common.Record:
    """The record of all priors that draw position by position."""
    taken = {case.kind: measure(case, rounds, positions) for case in CASES}
    rows = [
        common.row(
            f"recomputing / cached sampling: {case.kind}, {case.depth} layers, 32 x 32 codes, batch {case.batch}",
            case.bar,
            taken[case.kind]["ratio"]["median"],
            unit=" times",
            better="higher",
        )
        for case in CASES
    ]
    about = (
        "seconds to draw a batch of grids by a full pass of the network for every position, over those of the cached "
        f"sampler; the full pass is timed at {positions} positions and multiplied; the drawn codes are the same"
    )
    return {"about": about, "rows": rows, **taken, "environment": common.environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--positions", type=int, default=4, help="that are recomputed in a turn")
    chosen = parser.parse_args()
    record = sampling(chosen.rounds, chosen.positions)
    common.write("sampling", record)
    common.show(record)


if __name__ == "__main__":
    main()
