"""Memory and time of `data`, `train`, `index` and `detect` on folders of 1 000, 10 000 and 100 000 small pictures.

python benchmarks/load.py [--counts 1000 10000 100000]

Every command is a process of its own; its memory is the largest resident set that the system saw.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import common

SIDE, CLASSES = 16, 10
MEMORY_BAR, TIME_BAR = 1.3, 1.1
"""Largest over smallest memory, and seconds a picture at the largest count over those at the middle one: at the
smallest the start of the process is most of it."""
STEPS = 50


def png(pixels: np.ndarray) -> bytes:
    """A colour picture `[H, W, 3]` as a PNG file, by hand: a hundred thousand take seconds so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def make(folder: Path, count: int) -> None:
    """So many pictures, all different, in sub-folders that are their classes: blurred noise about a colour."""
    generator = np.random.default_rng(0)
    for kind in range(CLASSES):
        (folder / f"class {kind}").mkdir(parents=True)
    for first in range(0, count, 1000):
        many = min(1000, count - first)
        colour = generator.integers(40, 216, (many, 1, 1, 3))
        noise = generator.normal(0, 12, (many, SIDE // 2, SIDE // 2, 3)).repeat(2, 1).repeat(2, 2)
        for number, pixels in enumerate((colour + noise).clip(0, 255).astype(np.uint8), first):
            (folder / f"class {number % CLASSES}" / f"picture-{number:06}.png").write_bytes(png(pixels))


def measure(words: Sequence[str]) -> dict[str, float]:
    """Seconds and MiB of one process of the command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "tessella.cli", *words], env=environment, stdout=told, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            told.seek(0)
            raise SystemExit(f"tessella {' '.join(words)} failed:\n{told.read().decode(errors='replace')}")
    kilobytes = used.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "mib": kilobytes / 1024}


def load(counts: Sequence[int]) -> common.Record:
    """The record."""
    taken: dict[str, dict[int, dict[str, float]]] = {"data": {}, "train": {}, "index": {}, "detect": {}}
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        for count in counts:
            folder, run = home / f"pictures-{count}", home / f"run-{count}"
            make(folder, count)
            commands: dict[str, list[Any]] = {
                "data": ["data", folder, "--out", home / "sheet.png"],
                "train": ["train", "vae", "--data", folder, "--out", run, "--steps", STEPS, "--width", 16, "--quiet"],
                "index": ["index", run, folder],
                "detect": ["detect", run, folder, "-o", home / "found", "--score", "bound", "--scores", "bound"],
            }
            for name, words in commands.items():
                taken[name][count] = measure([str(word) for word in words])
                figures = taken[name][count]
                common.say(f"{name} {count:,}: {figures['mib']:.0f} MiB, {figures['seconds']:.1f} s")
    rows = []
    least, most = min(counts), max(counts)
    middle = sorted(counts)[len(counts) // 2]
    for name, of in taken.items():
        claim = f"`{name}`: memory with {most:,} pictures over that with {least:,}"
        rows.append(common.row(claim, MEMORY_BAR, of[most]["mib"] / of[least]["mib"], better="lower"))
    for name, of in taken.items():
        each = {count: figures["cpu_seconds"] / count for count, figures in of.items()}
        claim = f"`{name}`: processor time a picture with {most:,} over that with {middle:,}"
        rows.append(common.row(claim, TIME_BAR, each[most] / each[middle], better="lower"))
    return {
        "about": f"one process a command, one thread, on folders of {SIDE} x {SIDE} PNG files in {CLASSES} classes; "
        f"train: {STEPS} steps of a small vae; index and detect: that run",
        "rows": rows,
        "taken": {
            name: {f"{count}": {**figures, "ms_per_picture": 1000 * figures["seconds"] / count}
                   for count, figures in of.items()}
            for name, of in taken.items()
        },
        "environment": common.environment(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    record = load(parser.parse_args().counts)
    common.write("load", record)
    common.show(record)


if __name__ == "__main__":
    main()
