"""The inference gap: MNIST and Fashion-MNIST, a factorised Gaussian against a flow posterior, through the commands.

    python benchmarks/gap.py --data FOLDER [--steps 32000 20000 --examples 100] [--out RUNS]

The network is like the published comparison's, perceptrons of 200 units with 50 latent numbers (Cremer et al. 2018), so
the pictures are given as rows of 784 numbers, binarised anew in every batch. On either data both posteriors are trained
for the same number of steps (`--steps`, MNIST and Fashion-MNIST). What a flow saves is asked twice: of the model that
was trained with it against the one with a Gaussian, each with its own best q; and of the latter alone, with the best
flow for each example against the best Gaussian. The total gap of MNIST's Gaussian is held against the published 2.77.
Runs that lie in RUNS already are not trained again, and gaps of the weights as they are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import common
from startup import script

NETWORK = "vae --binarize dynamic --latent-dim 50 --width 200 --depth 2 --batch-size 128 --prior normal"
PUBLISHED, NEAR = 2.77, 1.0
"""Nats: the total gap on MNIST, and how far from it is near."""
AIS_MINUTES, BRACKET = 15.0, 0.3


def tessella(words: str) -> None:
    common.say(f"tessella {words}")
    subprocess.run([*script(), *shlex.split(words)], check=True, stdout=subprocess.DEVNULL)


def rows_of(data: Path, name: str, folder: Path) -> Path:
    """The pictures as rows of numbers."""
    archive = folder / f"{name}-rows.npz"
    if not archive.is_file():
        whole = np.load(data / f"{name}.npz")
        flat = {key: whole[key].reshape(len(whole[key]), -1) for key in ("x_train", "x_test")}
        np.savez_compressed(archive, **flat, y_train=whole["y_train"], y_test=whole["y_test"])
    return archive


def measured(run: Path, archive: Path, options: str, measuring: str) -> dict[str, Any]:
    """The gap of a run, which is trained unless it is there."""
    if not (run / "model.safetensors").is_file():
        tessella(f"train {NETWORK} {options} --data {shlex.quote(str(archive))} --out {run} --quiet")
    if not (run / "results/gap.json").is_file():
        tessella(f"gap {run} {measuring}")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads((run / "results/gap.json").read_text())
    return {**found, "data": archive.name, "trained": {"steps": last["step"], "seconds": last["seconds"]}}


def smaller_row(claim: str, flow: dict[str, float], gaussian: dict[str, float]) -> common.Record:
    """By how many standard errors the flow's approximation gap is smaller, the two taken as independent."""
    said = " against ".join(f"{e['nats']:.2f} ± {e['error']:.2f}" for e in (flow, gaussian))
    figure = (gaussian["nats"] - flow["nats"]) / math.hypot(flow["error"], gaussian["error"])
    return common.row(f"{claim} ({said} nats), in standard errors", 2.0, figure, better="higher")


def record_of(data: Path, folder: Path, steps: list[int], examples: int, annealing: int | None) -> common.Record:
    """The record of all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    measuring = f"--examples {examples} --chains 16" + (f" --steps {annealing}" if annealing else "")
    found: dict[str, dict[str, Any]] = {}
    for name, count in zip(("mnist", "fashion_mnist"), steps, strict=True):
        archive = rows_of(data, name, folder)
        for posterior in ("gaussian", "flow"):
            options = f"--posterior {posterior} --steps {count}"
            key = f"{name}-{posterior}"
            found[key] = measured(folder / key, archive, options, measuring)
    widest = max(found.values(), key=lambda g: g["bracket"]["nats"])
    slowest = max(g["seconds_annealing"] for g in found.values()) / 60
    rows = []
    for name, title in (("mnist", "MNIST"), ("fashion_mnist", "Fashion-MNIST")):
        gaussian, flow = found[f"{name}-gaussian"], found[f"{name}-flow"]
        rows += [
            smaller_row(
                f"{title}: approximation gap, trained with a flow posterior below with a Gaussian",
                flow["approximation"],
                gaussian["approximation"],
            ),
            smaller_row(
                f"{title}: approximation gap, trained with a Gaussian: each one's best flow below its best Gaussian",
                gaussian["approximation_flow"],
                gaussian["approximation"],
            ),
        ]
    total = found["mnist-gaussian"]["total"]
    rows += [
        common.row(
            f"MNIST, Gaussian: total gap, published {PUBLISHED} nats (here ± {total['error']:.2f})",
            PUBLISHED + NEAR,
            total["nats"],
            unit=" nats",
            better="lower",
        ),
        common.row(
            f"annealed importance sampling of {examples} test images, 16 chains, bracket included: the slowest run",
            AIS_MINUTES,
            slowest,
            unit=" minutes",
            better="lower",
        ),
        common.row(
            f"the widest bracket on simulated data (± {widest['bracket']['error']:.2f})",
            BRACKET,
            widest["bracket"]["nats"],
            unit=" nats",
            better="lower",
        ),
    ]
    return {
        "about": "the inference gap, in its parts",
        "rows": rows,
        "network": NETWORK,
        "measured_by": f"tessella gap RUN {measuring}",
        "steps": steps,
        "gaps": found,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that the data sets lie in")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=[32000, 20000],
        help="of training: MNIST, Fashion-MNIST",
    )
    parser.add_argument("--examples", type=int, default=100, help="test images that the gap is measured on")
    parser.add_argument("--annealing", type=int, help="steps; by default as many as the bracket takes, run by run")
    parser.add_argument("--out", type=Path, help="where to keep the runs; by default they are not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        record = record_of(chosen.data, out, chosen.steps, chosen.examples, chosen.annealing)
    common.write("gap", record)
    common.show(record)


if __name__ == "__main__":
    sys.exit(main())
