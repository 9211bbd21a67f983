"""Two levels of codes against one, at an equal number of code bits (Fashion-MNIST): both stages through the commands.

    python benchmarks/levels.py --data FOLDER [--codebooks 4 3 --minutes 5 --prior-minutes 4]

One level: 14 x 14 codes of 4 values, 392 bits. Two: 7 x 7 and 14 x 14 codes of 3 values, 388 bits. Or, by
`--codebooks 32 16` and `--codebooks 1024 256`, 980 and 1960 bits on both sides: two levels must never have more.
The same seed, quantiser (FSQ, which has no codes that could die), network widths, budget and kind of prior; all test
pictures.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
from startup import script

MODELS = {"one": "vqvae", "two": "vqvae2"}


def measured(model: str, data: Path, run: Path, minutes: float, prior_minutes: float) -> dict[str, Any]:
    """Train, fit a prior, evaluate; what the evaluation says. A run that was evaluated before is taken as it is."""
    done = run / "results/evaluation-test.json"
    if done.is_file():
        return _told(json.loads(done.read_text()), data)
    stages = (
        f"train {model} --data {shlex.quote(str(data))} --minutes {minutes:g} --out {run} --quiet",
        f"fit-prior {run} --kind pixelcnn --width 64 --depth 4 --minutes {prior_minutes:g} --quiet",
        f"evaluate {run} --json",
    )
    said = ""
    for stage in stages:
        common.say(f"tessella {stage}")
        said = subprocess.run([*script(), *shlex.split(stage)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return _told(json.loads(said), data)


def _told(evaluation: dict[str, Any], data: Path) -> dict[str, Any]:
    evaluation.pop("kl_per_unit", None)
    return {**evaluation, "data": data.name}


def bits(evaluation: dict[str, Any]) -> float:
    """Bits that an example's codes take under the uniform prior."""
    return evaluation["codes"]["rate_uniform"] / 0.6931471805599453


def levels(
    data: Path, codebooks: Sequence[int], quantizer: str, minutes: float, prior_minutes: float, folder: Path
) -> common.Record:
    """The record of both.

    Args:
        codebooks: sizes, of the one level's and of the two levels'.
        quantizer: of both.
    """
    both = zip(MODELS.items(), codebooks, strict=True)
    sides = {name: f"{m} --grid-size 14 --quantizer {quantizer} --codebook-size {k}" for (name, m), k in both}
    found = {name: measured(model, data, folder / name, minutes, prior_minutes) for name, model in sides.items()}
    one, two = found["one"], found["two"]
    assert 0.98 * bits(one) <= bits(two) <= bits(one) + 1e-6, "the two must have equal bits, or two levels hardly fewer"
    budget = f"{minutes:g} + {prior_minutes:g} minutes each"
    return {
        "about": "two levels of codes against one, at an equal number of code bits",
        "rows": [
            common.row(
                f"Fashion-MNIST, two levels ({bits(two):.0f} code bits) against one ({bits(one):.0f}), {budget}: "
                f"{what} in nats, ratio",
                1.0,
                two[what] / one[what],
                better="lower",
            )
            for what in ("distortion", "bound")
        ],
        "models": sides,
        "budget": {"minutes": minutes, "prior_minutes": prior_minutes},
        "seed": 0,
        "evaluations": found,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that the data sets lie in")
    parser.add_argument(
        "--codebooks", type=int, nargs=2, default=[4, 3], metavar=("ONE", "TWO"), help="sizes of the codebooks"
    )
    parser.add_argument("--quantizer", default="fsq", help="of both")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each")
    parser.add_argument("--prior-minutes", type=float, default=4.0, help="of fitting the prior, each")
    parser.add_argument("--out", type=Path, help="where to keep the runs; by default they are not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        data = chosen.data / "fashion_mnist.npz"
        record = levels(data, chosen.codebooks, chosen.quantizer, chosen.minutes, chosen.prior_minutes, out)
    common.write("levels" + "".join(f"-{k}" for k in chosen.codebooks if chosen.codebooks != [4, 3]), record)
    common.show(record)


if __name__ == "__main__":
    sys.exit(main())
