"""Nats a step of piano rolls under the autoregressive likelihood.

    python benchmarks/rolls.py --data FOLDER [--sets jsb nottingham --minutes 20 --split valid --options ...]

FOLDER/SET holds the splits of Boulanger-Lewandowski et al. 2012 as `train/*.npy`, `valid/*.npy` and `test/*.npy`, a
piece each, `[steps, 88]`. A small `vae`, whose z stays unused, is trained by the command line. RNN-NADE has 5.19 (JSB)
and 2.31 (Nottingham) nats a step of the test pieces; keys that are independent of all else have 11.06 and 10.25.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

BARS = {"jsb": 5.1, "nottingham": 2.3}
KEYS = 88
SMALL = ["--latent-dim", "1", "--width", "8", "--depth", "1"]
MODEL = ["vae", "--likelihood", "autoregressive", *SMALL, "--kind", "series"]


def measured(data: Path, minutes: float, split: str, options: list[str], run: str) -> dict[str, Any]:
    """Train and evaluate; the nats a step."""
    words = ["train", *MODEL, "--data", str(data), "--minutes", str(minutes), "-o", run, *options]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tessella", *words], check=True)
    seconds = time.perf_counter() - started
    asked = ["evaluate", run, "--split", split, "--json"]
    found = json.loads(subprocess.check_output([sys.executable, "-m", "tessella", *asked]))
    each = found["bits_per_dim"] * KEYS * math.log(2)
    return {"options": options, "minutes": minutes, "seconds": seconds, "nats_per_step": each, "evaluation": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--options", type=shlex.split, default=[], help="of the training, in one string")
    parser.add_argument("--keep", type=Path, help="folder for the runs; they are deleted without it")
    parser.add_argument("--record", action="store_true", help="write results/rolls.json")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: measured(o.data / name, o.minutes, o.split, o.options, f"{o.keep or folder}/{name}")
            for name in o.sets
        }
    rows = [
        common.row(f"{name} {o.split}: nats a step", BARS[name], one["nats_per_step"], better="lower")
        for name, one in found.items()
    ]
    record = {
        "about": "autoregressive likelihood of piano rolls, seed 0",
        "rows": rows,
        "runs": found,
        "environment": common.environment(),
    }
    if o.record:
        common.write("rolls", record)
    common.show(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
