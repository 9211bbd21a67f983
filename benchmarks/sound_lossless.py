"""Bits a sample of spoken digits under the autoregressive likelihood, for all speakers and for each.

    python benchmarks/sound_lossless.py --data FOLDER [--values pcm mu-law --minutes 60 --split valid --options ...]

FOLDER holds the Free Spoken Digit Dataset as `train/DIGIT/*.wav` and `test/DIGIT/*.wav`. A small `vae`, whose z stays
unused, is trained by the command line and writes one file; its bytes are divided by the samples. FLAC and WavPack take
8.70 and 8.42 bits a sample of the test recordings as 16 bit, zpaq takes 4.83 as mu-law. The recordings of speaker
nicolas are 8-bit sound that is stored as 16-bit. `--options=--pixel-depth=11` passes an option to the training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import common
import tessella

BARS = {"pcm": 7.9, "mu-law": 4.4}
NICOLAS = 3.0
SPEAKER = "{digit}_{speaker}_{index}:speaker"
SMALL = ["--latent-dim", "1", "--width", "8", "--depth", "1"]
MODEL = ["vae", "--likelihood", "autoregressive", *SMALL, "--seconds", "0.5", "--batch-size", "4"]


def measured(data: Path, values: str, minutes: float, split: str, options: list[str], run: str) -> dict[str, Any]:
    """Train, evaluate and compress; the bits a sample in all, by speaker, and of one file."""
    if not Path(run, "spec.json").exists():
        words = ["train", *MODEL, "--data", str(data), "--label", SPEAKER, "--values", values]
        tessella_command(*words, "--minutes", str(minutes), "-o", run, *options)
    seconds = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    model, opened = tessella.load(run), tessella.Run(run).data()
    part = opened.split(split)

    def bits(rows: np.ndarray) -> float:
        found = tessella.evaluate(model, part.subset(rows), collapse_examples=0, quality_examples=0, split_name=split)
        assert found.bits_per_dim is not None
        return found.bits_per_dim

    with tempfile.TemporaryDirectory() as folder:
        file, started = Path(folder, "sounds.tes"), time.perf_counter()
        tessella_command("compress", run, "--split", split, "--compare", "no", "-o", str(file))
        packing, size = time.perf_counter() - started, file.stat().st_size
    assert part.labels is not None
    names = opened.schema.classes
    samples = sum(int((~part.batch([row]).x.isnan()).sum()) for row in range(len(part)))
    return {
        "options": options,
        "minutes": minutes,
        "seconds": seconds,
        "split": split,
        "windows": len(part),
        "samples": samples,
        "file_bytes": size,
        "file_seconds": packing,
        "file_bits_per_sample": 8 * size / samples,
        "bits_per_sample": bits(np.arange(len(part))),
        "by_speaker": {name: bits(np.flatnonzero(part.labels == i)) for i, name in enumerate(names)},
    }


def tessella_command(*words: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "tessella", *words], check=True)


def rows_of(values: str, found: dict[str, Any]) -> list[common.Record]:
    """The claims of one training."""
    told = f"FSDD {found['split']}, {values}, {found['minutes']:g} minutes: bits a sample"
    rows = [common.row(f"{told} of one file", BARS[values], found["file_bits_per_sample"], better="lower")]
    if values == "pcm":
        rows.append(common.row(f"{told}, speaker nicolas", NICOLAS, found["by_speaker"]["nicolas"], better="lower"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--values", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--options", type=shlex.split, default=[], help="of the training, in one string")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are trained if they are not there")
    parser.add_argument("--record", action="store_true", help="write results/sound_lossless.json")
    o = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for values in o.values:
            run = f"{o.keep or folder}/{values}"
            found[values] = measured(o.data, values, o.minutes, o.split, o.options, run)
    record = {
        "about": "autoregressive likelihood of spoken digits, seed 0",
        "rows": [row for values, one in found.items() for row in rows_of(values, one)],
        "runs": found,
        "environment": common.environment(),
    }
    if o.record:
        common.write("sound_lossless", record)
    common.show(record)
    for values, one in found.items():
        print(values, ", ".join(f"{name} {bits:.3f}" for name, bits in one["by_speaker"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
