"""The first hour: folders and files of pictures, all options at their defaults, against simple baselines.

    python benchmarks/first_hour.py --data FOLDER [--sets flowers-64 clothes --minutes 2 6 20 --prior 0.5]

FOLDER holds `flowers/`, `cifar10/`, `mnist.npz`, `sprites.npz` and `tiles/`; a set that is missing is left out. For
each set and budget a `vqvae` is trained by the command line, then the default prior for half of that time. Figures are
of validation pictures, but for the two of the test split of flowers at 64 pixels. `taskset -c 0 python ...` measures
on part of the cores; two such processes may run beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import tessella
from tessella.evaluation.verdict import Verdict, judge
from tessella.foundation.errors import on_command_line

SETS: dict[str, tuple[str, list[str]]] = {
    "flowers-32": ("flowers", ["--size", "32"]),
    "flowers-64": ("flowers", ["--size", "64"]),
    "flowers-96": ("flowers", ["--size", "96"]),
    "clothes": ("clothes", []),
    "cifar10": ("cifar10", []),
    "mnist": ("mnist.npz", []),
    "sprites": ("sprites.npz", []),
    "tiles": ("tiles", []),
}
BITS, PSNR = 5.2, 21.0
"""Of flowers at 64 pixels after 6 minutes, and 3 for the prior."""


def command(*words: str) -> float:
    """Run a command of tessella; the seconds that it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tessella", *words], check=True)
    return time.perf_counter() - started


def measured(spec: str, options: list[str], minutes: float, prior: float) -> dict[str, Any]:
    """Train, fit the prior, and compare with the baselines."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        seconds = [command("train", "vqvae", "--data", spec, *options, "--minutes", str(minutes), "-o", run, "--quiet")]
        data = tessella.Run(run).data()
        before = judge(tessella.load(run), data)
        if prior:
            seconds.append(command("fit-prior", run, "--minutes", str(prior * minutes), "--quiet"))
        after = judge(tessella.load(run), data)
        spec_of = json.loads(Path(run, "spec.json").read_text())
        tested = tessella.evaluate(tessella.load(run), data.split("test"), collapse_examples=0)
    chosen = {name: spec_of["config"][name] for name in ("width", "depth", "grid_size")}
    training = {name: spec_of["training"][name] for name in ("batch_size", "learning_rate", "compile")}
    return {
        "chosen": chosen | training,
        "seconds": seconds,
        "before": as_shown(before),
        "after": as_shown(after),
        "test_bits_per_dim": tested.bits_per_dim,
        "test_psnr": tested.psnr,
    }


def as_shown(verdict: Verdict) -> dict[str, Any]:
    """The verdict with its sentences as the command line shows them."""
    return asdict(verdict) | {"sentences": [on_command_line(sentence) for sentence in verdict.sentences]}


def rows_of(name: str, minutes: float, cores: str, found: dict[str, Any]) -> list[common.Record]:
    """The claims of one set and budget."""
    after, told = found["after"], f"{name}, defaults, {minutes:g} minutes{cores and ', one core'}"
    rows = [
        common.row(
            f"{told}: bits per dimension, against the frequencies of the values",
            round(after["marginal"], 3),
            after["bits_per_dim"],
            better="lower",
        )
    ]
    if minutes == 6:
        psnr = "PSNR of reconstructions, against principal components of as many bits"
        rows.append(
            common.row(f"{told}: {psnr}", round(after["principal_psnr"], 2), after["psnr"], better="higher", unit=" dB")
        )
    if name == "flowers-64" and minutes == 6 and not cores:
        rows += [
            common.row(f"{told}: test bits per dimension", BITS, found["test_bits_per_dim"], better="lower"),
            common.row(f"{told}: test PSNR", PSNR, found["test_psnr"], better="higher", unit=" dB"),
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", nargs="*", type=float, default=[2.0, 6.0, 20.0])
    parser.add_argument(
        "--prior", type=float, default=0.5, help="minutes for the prior, as a share of those for the model"
    )
    o = parser.parse_args()
    cores = "" if len(os.sched_getaffinity(0)) > 1 else " one-core"
    for name in o.sets:
        place, options = SETS[name]
        spec = place if place == "clothes" else str(o.data / place)
        if place != "clothes" and not Path(spec).exists():
            print(f"{name}: left out, there is no {spec}")
            continue
        for minutes in o.minutes:
            words = f"--sets {name} --minutes {minutes:g} --prior {o.prior:g}"
            found = {
                "command": f"{cores and 'taskset -c 0 '}python benchmarks/first_hour.py {words}",
                "environment": common.environment(),
                **measured(spec, options, minutes, o.prior),
            }
            record = record_with(f"{name} {minutes:g}{cores}", found)
            common.write("first_hour", record)
            common.show(record)
    return 0


def record_with(key: str, found: dict[str, Any]) -> common.Record:
    """The record with one more run; a key is a set, its minutes, and whether one core was used."""
    file = common.RESULTS / "first_hour.json"  # read now, for another process may have written
    runs = (json.loads(file.read_text()) if file.is_file() else {}).get("runs", {}) | {key: found}
    rows: list[common.Record] = []
    for other, run in runs.items():
        name, minutes, *cores = other.split(" ")
        rows += rows_of(name, float(minutes), "".join(cores), run)
    return {
        "about": "vqvae and its prior on pictures, all options at their defaults, seed 0",
        "rows": rows,
        "runs": runs,
        "environment": common.environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
