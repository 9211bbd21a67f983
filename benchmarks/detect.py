"""Anomalies: one-class MNIST, and Fashion-MNIST against MNIST. Every score, through the commands.

    python benchmarks/detect.py --data FOLDER [--steps 2000 --minutes 8] [--out RUNS]

One class: for each digit a VAE of the training pictures of that digit, cut at half, and all 10,000 test pictures of
MNIST; the mean AUROC over the ten. Other data: a VAE of Fashion-MNIST's training pictures, and both test sets.
The score that counts is `complexity-corrected`, as docs/uses/detect.md says beforehand. It and its compressors were
chosen on training and validation pictures alone: one digit's held-out training pictures against the others', and
Fashion-MNIST's validation split against small digits of another source, photographs, noise, drawn lines, and garments
turned, mirrored and inverted.
Runs that lie in RUNS already are not trained again, and scores not found again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import common
from startup import script

STATED = "complexity-corrected"
DIGITS = range(10)
ONE_CLASS = "vae --binarize threshold --latent-dim 16 --width 16 --depth 1 --steps {steps}"
GARMENTS = "vae --width 16 --depth 1 --components 5 --minutes {minutes:g}"
SCORING = "--samples 2 --steps {steps} --top 10"


def tessella(words: str) -> None:
    common.say(f"tessella {words}")
    subprocess.run([*script(), *shlex.split(words)], check=True, stdout=subprocess.DEVNULL)


def trained(run: Path, words: str, data: Path) -> Path:
    """The run, trained unless it is there."""
    if not (run / "model.safetensors").is_file():
        tessella(f"train {words} --data {shlex.quote(str(data))} --out {run} --quiet")
    return run


def judged(run: Path, options: str) -> dict[str, Any]:
    """AUROC and average precision of every score."""
    out = run / "anomalies"
    if not (out / "index.html").is_file():
        tessella(f"detect {run} {options} -o {out}")
    return json.loads((out / "scores.json").read_text())["rankings"]


def one_class(data: Path, digit: int, folder: Path, steps: int, scoring: str) -> dict[str, Any]:
    """One digit against all others, on the test split."""
    archive = folder / f"digit-{digit}.npz"
    if not archive.is_file():
        whole = np.load(data / "mnist.npz")
        own = whole["y_train"] == digit
        train = {"x_train": whole["x_train"][own], "y_train": whole["y_train"][own]}
        np.savez_compressed(archive, **train, x_test=whole["x_test"], y_test=whole["y_test"])
    run = trained(folder / f"digit-{digit}", ONE_CLASS.format(steps=steps), archive)
    return judged(run, f"--normal {digit} {scoring}")


def measured(data: Path, folder: Path, steps: int, minutes: float, search: int) -> common.Record:
    """The record of both."""
    folder.mkdir(parents=True, exist_ok=True)
    scoring = SCORING.format(steps=search)
    ones = {str(digit): one_class(data, digit, folder, steps, scoring) for digit in DIGITS}
    fashion = trained(folder / "fashion", GARMENTS.format(minutes=minutes), data / "fashion_mnist.npz")
    other = judged(fashion, f"test --anomalies {shlex.quote(str(data / 'mnist.npz'))} {scoring}")
    means = {name: statistics.mean(of[name]["auroc"] for of in ones.values()) for name in ones["0"]}
    return {
        "about": "AUROC of scores of anomaly",
        "rows": [
            common.row(
                f"one-class MNIST, mean AUROC over ten digits, score {STATED}", 0.948, means[STATED], better="higher"
            ),
            common.row(
                f"Fashion-MNIST normal, MNIST anomalous: AUROC of the score stated beforehand, {STATED} "
                f"(the plain bound: {other['bound']['auroc']:.4f})",
                0.99,
                other[STATED]["auroc"],
                better="higher",
            ),
        ],
        "models": {"one-class": ONE_CLASS.format(steps=steps), "fashion": GARMENTS.format(minutes=minutes)},
        "trained": {run.name: progress(run) for run in (*(folder / f"digit-{d}" for d in DIGITS), fashion)},
        "scoring": scoring,
        "one_class_mean_auroc": means,
        "one_class": ones,
        "fashion_against_mnist": other,
        "environment": common.environment(),
    }


def progress(run: Path) -> dict[str, float]:
    """Steps and seconds that a run was trained for."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"steps": last["step"], "seconds": last["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that the data sets lie in")
    parser.add_argument("--steps", type=int, default=2000, help="of training, each digit")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training on Fashion-MNIST")
    parser.add_argument("--search", type=int, default=2, help="steps of the search that the regret takes")
    parser.add_argument("--out", type=Path, help="where to keep the runs; by default they are not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        record = measured(chosen.data, out, chosen.steps, chosen.minutes, chosen.search)
    common.write("detect", record)
    common.show(record)


if __name__ == "__main__":
    sys.exit(main())
