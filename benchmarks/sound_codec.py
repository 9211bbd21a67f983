"""Spoken digits as codes: likeness at a real bit rate, and the same codes decoded as another speaker.

    python benchmarks/sound_codec.py --data FOLDER [--minutes 50 --prior 10 --split valid --options ...]

FOLDER holds the Free Spoken Digit Dataset as `train/DIGIT/*.wav` and `test/DIGIT/*.wav`. A `cvqvae`, whose decoder is
told the speaker, and a prior of its codes are trained by the command line. STOI and the distance of log-mel spectra
are those of `tessella evaluate`, without the speaker's cost of log2(6) bits a recording. Bits a second are those of one
file of the codes by `tessella compress --lossy`, everything included. Codec2 has 0.830 and 0.277 at 3,348 bits a
second, Opus 0.845 and 0.240 at 21,000.

Who is heard, and which digit, in clips that are decoded as another speaker, is told by classifiers with Gaussian
kernels on the log-mel spectra of the real training clips, as in claim 16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
import tessella
from sound_lossless import SPEAKER
from tessella_experiments.claims.speakers import averages, decoded, fitted, spectrum

MODEL = ["cvqvae", "--spectral-penalty", "5"]
BITS, SWAP_BITS = 1300, 400
"""Bits a second of the codec, and of codes that are decoded as another speaker."""


def command(*words: str) -> str:
    """Run a command of the package; return what it prints."""
    return subprocess.check_output([sys.executable, "-m", "tessella", *words], text=True)


def measured(o: argparse.Namespace, run: str, folder: Path) -> dict[str, Any]:
    """Train model and prior, and measure likeness, length and voices."""
    words = ["train", *MODEL, "--data", str(o.data), "--label", SPEAKER, "--minutes", str(o.minutes), "-o", run]
    started = time.perf_counter()
    command(*words, *o.options)
    seconds = time.perf_counter() - started
    command("fit-prior", run, "--minutes", str(o.prior))
    found = json.loads(command("evaluate", run, "--split", o.split, "--json"))
    file = folder / "codes.tsl"
    written = json.loads(command("compress", run, "--split", o.split, "--lossy", "-o", str(file), "--json"))
    opened = tessella.Run(run).data()
    train, split = opened.split("train"), opened.split(o.split)
    heard = split.batch(range(len(split))).x
    length = float((~heard.isnan()).any(1).sum()) / opened.schema.rate
    model = tessella.load(run)
    levels = zip(model.levels, model.downsampling, strict=True)  # type: ignore[attr-defined]
    nominal = sum(q.code_shape[0] * np.log2(q.codebook_size) / stride for q, stride in levels)
    return {
        "options": o.options,
        "seconds": seconds,
        "split": o.split,
        "bits_per_second": 8 * file.stat().st_size / length,
        "nominal_bits_per_second": nominal * opened.schema.rate,
        "evaluation": found,
        "compressed": written,
        **voices(model, train, split),
    }


def voices(model: Any, train: tessella.Split, split: tessella.Split) -> dict[str, float]:
    """Accuracies on real clips, and on clips that are decoded as the next speaker but a random number."""
    taught, later = (part.batch(range(len(part))) for part in (train, split))
    features = [averages(spectrum(b.x, model.schema), b.x) for b in (taught, later)]
    digits = [part.factors["digit"].astype(int) for part in (train, split)]
    speakers = [np.asarray(part.labels) for part in (train, split)]
    judges = [fitted(features[0], digits[0]), fitted(features[0], speakers[0])]
    count = len(model.schema.classes)
    other = (speakers[1] + np.random.default_rng(0).integers(1, count, len(split))) % count
    spoken = decoded(model, later.x, torch.from_numpy(other))
    swapped = averages(spectrum(spoken, model.schema), spoken)
    return {
        "digit_of_clips": float(judges[0].score(features[1], digits[1])),
        "speaker_of_clips": float(judges[1].score(features[1], speakers[1])),
        "digit_of_swapped": float(judges[0].score(swapped, digits[1])),
        "speaker_of_swapped": float(judges[1].score(swapped, other)),
    }


def rows_of(found: dict[str, Any]) -> list[common.Record]:
    """The claims of the codec, and those of the voices if the codes are few enough."""
    quality, rate = found["evaluation"]["sound"]["quality"], found["bits_per_second"]
    told = f"FSDD {found['split']}, codes as a file"
    rows = [
        common.row(f"{told}: bits a second", BITS, rate, better="lower"),
        common.row(f"{told}: STOI", 0.85, quality["stoi"], better="higher"),
        common.row(f"{told}: distance of log-mel spectra", 0.20, quality["log_mel_distance"], better="lower"),
        common.row(f"{told}: share of nominal bits", 0.7, rate / found["nominal_bits_per_second"], better="lower"),
    ]
    if rate <= SWAP_BITS:
        rows += [
            common.row(f"{told}, decoded as another speaker: digit", 0.9, found["digit_of_swapped"], better="higher"),
            common.row(f"{told}, decoded as another: speaker", 0.9, found["speaker_of_swapped"], better="higher"),
        ]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--prior", type=float, default=10.0)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--keep", type=Path, help="folder for the run; it is deleted without it")
    parser.add_argument("--record", help="write results/NAME.json")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(o, str(o.keep or f"{folder}/run"), Path(folder))
    record = {
        "about": "codes of spoken digits, seed 0",
        "rows": rows_of(found),
        "run": found,
        "environment": common.environment(),
    }
    if o.record:
        common.write(o.record, record)
    common.show(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
