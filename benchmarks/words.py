"""Bits a sample of spoken words at 16 kHz under the autoregressive likelihood, beside FLAC.

    python benchmarks/words.py --data FOLDER [--minutes 25 --split valid --keep RUN --record words_NAME]

FOLDER holds recordings; the product cuts out a validation and a test split. A small `vae`, whose z stays unused, is
trained by the command line and writes one file of the split; its bytes are divided by the samples. FLAC at its highest
level gets the same samples one after another, as one recording.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import common
import tessella
from sound_lossless import MODEL, tessella_command

BAR = 0.88
"""Of FLAC's size."""


def measured(o: argparse.Namespace, run: str) -> dict[str, Any]:
    """Train and compress; the bits a sample of one file, and FLAC's."""
    if not Path(run, "spec.json").exists():
        words = ["train", *MODEL, "--data", str(o.data), "--minutes", str(o.minutes), "-o", run]
        tessella_command(*words, *o.options)
    seconds = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    opened = tessella.Run(run).data()
    split = opened.split(o.split)
    x = np.concatenate([window[~np.isnan(window)] for window in split.batch(range(len(split))).x[:, 0].numpy()])
    soundfile.write(flac := io.BytesIO(), x.astype(np.int16), round(opened.schema.rate), "PCM_16", format="FLAC",
                    compression_level=1.0)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "words.tes")
        tessella_command("compress", run, "--split", o.split, "--compare", "no", "-o", str(file))
        size = file.stat().st_size
    return {
        "minutes": o.minutes,
        "options": o.options,
        "seconds": seconds,
        "split": o.split,
        "samples": len(x),
        "file_bits_per_sample": 8 * size / len(x),
        "flac_bits_per_sample": 8 * len(flac.getvalue()) / len(x),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--options", type=shlex.split, default=[], help="of the training, in one string")
    parser.add_argument("--keep", type=Path, help="the run, which is trained if it is not there")
    parser.add_argument("--record", help="write results/NAME.json")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(o, str(o.keep or f"{folder}/run"))
    ratio = found["file_bits_per_sample"] / found["flac_bits_per_sample"]
    told = f"{o.data.name} {o.split}, {o.minutes:g} minutes: one file / FLAC of the same samples"
    record = {
        "about": "autoregressive likelihood of spoken words at 16 kHz, seed 0",
        "rows": [common.row(told, BAR, ratio, better="lower")],
        "run": found,
        "environment": common.environment(),
    }
    if o.record:
        common.write(o.record, record)
    common.show(record)
    print(f"{found['file_bits_per_sample']:.3f} bits a sample, FLAC {found['flac_bits_per_sample']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
