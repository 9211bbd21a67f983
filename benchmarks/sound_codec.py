"""Spoken digits as codes: likeness at a real bit rate, or the same codes decoded as another speaker.

    python benchmarks/sound_codec.py --data FOLDER [--model vqvae --minutes 50 --prior 10 --split valid --options ...]

FOLDER holds the Free Spoken Digit Dataset as `train/DIGIT/*.wav` and `test/DIGIT/*.wav`. A model and a prior of its
codes are trained by the command line.

A `vqvae` is a codec: STOI and the distance of log-mel spectra are those of `tessella evaluate`, and bits a second those
of one file of the codes by `tessella compress --lossy`, everything included. Codec2 has 0.830 and 0.277 at 3,348 bits a
second, Opus 0.845 and 0.240 at 21,000.

The decoder of a `cvqvae` is told the speaker, and clips are decoded as another one. Who is heard then, and which digit,
is told by classifiers with Gaussian kernels on the log-mel spectra of the real training clips, as in claim 16. Its bits
a second are the rate under the prior, for files of codes hold no labels.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
import tessella
from sound_lossless import SPEAKER
from tessella_experiments.claims.speakers import averages, decoded, fitted, spectrum

BITS, SWAP_BITS = 1300, 400
"""Bits a second of the codec, and of codes that are decoded as another speaker."""


def command(*words: str) -> str:
    """Run a command of the package; return what it prints."""
    return subprocess.check_output([sys.executable, "-m", "tessella", *words], text=True)


def measured(o: argparse.Namespace, run: str, folder: Path) -> dict[str, Any]:
    """Train model and prior, and measure likeness, length and voices."""
    words = ["train", o.model, "--data", str(o.data), "--label", SPEAKER, "--minutes", str(o.minutes)]
    if not Path(run, "spec.json").exists():
        command(*words, "-o", run, *o.options)
        command("fit-prior", run, "--minutes", str(o.prior))
    seconds = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    evaluation = json.loads(command("evaluate", run, "--split", o.split, "--json"))
    opened, model = tessella.Run(run).data(), tessella.load(run)
    train, split = opened.split("train"), opened.split(o.split)
    levels = zip(model.levels, model.downsampling, strict=True)  # type: ignore[attr-defined]
    nominal = sum(q.code_shape[0] * np.log2(q.codebook_size) / stride for q, stride in levels)
    found = {
        "model": o.model,
        "options": o.options,
        "seconds": seconds,
        "split": o.split,
        "nominal_bits_per_second": nominal * opened.schema.rate,
        "bits_per_second": evaluation["sound"]["rate_per_second"],
        "evaluation": evaluation,
    }
    if o.model == "cvqvae":
        return found | voices(model, train, split)
    file = folder / "codes.tes"
    written = json.loads(command("compress", run, "--split", o.split, "--lossy", "-o", str(file), "--json"))
    length = float((~split.batch(range(len(split))).x.isnan()).any(1).sum()) / opened.schema.rate
    return found | {"bits_per_second": 8 * file.stat().st_size / length, "compressed": written}


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
    """The claims of the codec, or those of the voices."""
    told, rate = f"FSDD {found['split']}, codes", found["bits_per_second"]
    if "digit_of_swapped" in found:
        return [
            common.row(f"{told} decoded as another speaker: bits a second", SWAP_BITS, rate, better="lower"),
            common.row(f"{told} decoded as another speaker: digit", 0.9, found["digit_of_swapped"], better="higher"),
            common.row(f"{told} decoded as another: speaker", 0.9, found["speaker_of_swapped"], better="higher"),
        ]
    quality = found["evaluation"]["sound"]["quality"]
    return [
        common.row(f"{told} as a file: bits a second", BITS, rate, better="lower"),
        common.row(f"{told} as a file: STOI", 0.85, quality["stoi"], better="higher"),
        common.row(f"{told} as a file: distance of log-mel spectra", 0.20, quality["log_mel_distance"], better="lower"),
        common.row(f"{told} as a file: of nominal bits", 0.7, rate / found["nominal_bits_per_second"], better="lower"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=["vqvae", "cvqvae"], default="vqvae")
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--prior", type=float, default=10.0)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--options", type=shlex.split, default=[], help="of the training, in one string")
    parser.add_argument("--keep", type=Path, help="the run, which is trained if it is not there; deleted without it")
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
