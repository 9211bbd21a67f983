"""Two hours of sound at 16 kHz: the memory and the time of encoding, compressing and decoding one file.

    python benchmarks/long_sound.py --data FOLDER [--hours 2 --minutes 1 --threads N]

FOLDER holds recordings at 16 kHz. Their samples, one after another and again from the start, make one WAV file of so
many hours. A `vqvae` is trained for a minute, as its quality does not matter here. The commands are whole processes:
their memory is the largest resident set, and their speed is the seconds of sound per second of the clock, start of
Python included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import common

RATE = 16_000
MEMORY, SPEED = 1.0, 20.0
"""Bars: GiB, and times real time."""


def write_long(folder: Path, out: Path, seconds: float) -> None:
    """Write one recording of so many seconds, made of those of a folder."""
    clips = [soundfile.read(path, dtype="int16", always_2d=True)[0][:, 0] for path in sorted(folder.rglob("*.wav"))]
    once, left = np.concatenate(clips), int(seconds * RATE)
    with wave.open(str(out), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        while left:
            piece = once[:left]
            file.writeframes(piece.tobytes())
            left -= len(piece)


def measured(*words: str) -> dict[str, float]:
    """Run a command of the package; return its seconds and the largest memory that it held, in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tessella", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"tessella {' '.join(words)}: failed")
    return {"seconds": time.perf_counter() - started, "gib": usage.ru_maxrss / 2**20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training")
    parser.add_argument("--threads", type=int, help="of the training and the commands")
    parser.add_argument("--record", action="store_true", help="write results/long_sound.json")
    o = parser.parse_args()
    if o.threads:
        os.environ["OMP_NUM_THREADS"] = str(o.threads)
    seconds = o.hours * 3600
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run, sound = str(folder / "run"), folder / "long.wav"
        words = ["train", "vqvae", "--data", str(o.data), "--minutes", str(o.minutes), "-o", run]
        subprocess.run([sys.executable, "-m", "tessella", *words], check=True)
        write_long(o.data, sound, seconds)
        compress = ["compress", run, str(sound), "--compare", "no"]
        commands = {
            "encode": ["encode", run, str(sound), "-o", f"{folder}/codes.npz"],
            "decode": ["decode", run, f"{folder}/codes.npz", "-o", f"{folder}/decoded"],
            "compress --lossy": [*compress, "--lossy", "-o", f"{folder}/lossy.tes"],
            "compress": [*compress, "-o", f"{folder}/exact.tes"],
        }
        found: dict[str, dict[str, Any]] = {}
        for name, words in commands.items():
            found[name] = measured(*words)
            common.say(f"{name}: {seconds / found[name]['seconds']:.1f} times real time, {found[name]['gib']:.2f} GiB")
    told = f"{o.hours:g} hours at 16 kHz"
    rows = [
        row
        for name, one in found.items()
        for row in (
            common.row(f"{told}, {name}: memory", MEMORY, one["gib"], unit="GiB", better="lower"),
            common.row(f"{told}, {name}: times real time", SPEED, seconds / one["seconds"], better="higher"),
        )
    ]
    record = {"about": __doc__.splitlines()[0], "rows": rows, "commands": found, "environment": common.environment()}
    if o.record:
        common.write("long_sound", record)
    common.show(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
