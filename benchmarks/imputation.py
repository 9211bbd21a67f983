"""Imputation: missing values of hourly air pollution, by a VAE of the series and by linear interpolation.

    python benchmarks/imputation.py --data pollution.csv [--minutes 20] [--out FOLDER]

A fifth of the observed values is removed at random. `tessella train vae --kind series` trains on what is left, and the
gaps are filled as by `tessella reconstruct`. The error is the root mean square over removed values, each divided by the
standard deviation of its column; so is that of linear interpolation in time. The nats are the mean of -log p(x | z) of
the removed values, z inferred from the rest. Nothing but the rest was used for training.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import common
import tessella
from startup import script
from tessella.tasks.fill import fill_gaps

SHARE, SEED = 0.2, 0
COLUMNS = ("pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
OPTIONS = "--kind series --window 128 --stride 32 --latent-layout grid --latent-dim 16 --width 48 --depth 2"


def without_some(path: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the table without some values, and return the values `[T, C]` and which of them were removed."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    x = np.array([[np.nan if row[name] == "NA" else float(row[name]) for name in COLUMNS] for row in rows])
    removed = (np.random.default_rng(SEED).random(x.shape) < SHARE) & ~np.isnan(x)
    for row, gone in zip(rows, removed, strict=True):
        row.update({name: "NA" for name, one in zip(COLUMNS, gone, strict=True) if one})
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return x, removed


def interpolated(x: np.ndarray) -> np.ndarray:
    """Fill the gaps of each column linearly."""
    at, filled = np.arange(len(x)), x.copy()
    for column in filled.T:
        seen = ~np.isnan(column)
        column[~seen] = np.interp(at[~seen], at[seen], column[seen])
    return filled


@torch.no_grad()
def nats_of(model: tessella.Model, rest: np.ndarray, x: np.ndarray, removed: np.ndarray) -> float:
    """The mean cost of the removed values given the rest of their window."""
    (window,), nats, count = model.schema.spatial, 0.0, 0
    for start in range(0, len(rest) - window + 1, window):
        rows = slice(start, start + window)
        seen = torch.from_numpy(rest[rows].T.astype(np.float32))[None]
        wanted = torch.from_numpy(np.where(removed[rows], x[rows], np.nan).T.astype(np.float32))[None]
        nats -= float(model.decode(model.encode(seen).z).log_prob(wanted).sum())
        count += int(removed[rows].sum())
    return nats / count


def error(filled: np.ndarray, x: np.ndarray, removed: np.ndarray) -> dict[str, float]:
    """The error of each column and of all, in standard deviations."""
    apart = (filled - x) / np.nanstd(x, 0)
    each = {name: float(np.sqrt(np.mean(apart[:, c][removed[:, c]] ** 2))) for c, name in enumerate(COLUMNS)}
    return {"all": float(np.sqrt(np.mean(apart[removed] ** 2))), **each}


def measured(path: Path, out: Path, minutes: float) -> dict[str, Any]:
    table, run = out / "pollution.csv", out / "run"
    x, removed = without_some(path, table)
    rest = np.where(removed, np.nan, x)
    words = ["train", "vae", "--data", str(table), *OPTIONS.split(), "--minutes", f"{minutes:g}", "--out", str(run)]
    if not (run / "model.safetensors").is_file():
        common.say(f"tessella {' '.join(words)}")
        subprocess.run([*script(), *words, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    model = tessella.load(run).cpu()
    nats = nats_of(model, rest, x, removed)
    of_model, of_lines = error(fill_gaps(model, rest), x, removed), error(interpolated(rest), x, removed)
    ratio = of_model["all"] / of_lines["all"]
    return {
        "about": __doc__.splitlines()[0],
        "rows": [common.row("imputation error / linear interpolation's, pollution.csv", 0.85, ratio, better="lower")],
        "command": f"python benchmarks/imputation.py --data pollution.csv --minutes {minutes:g}",
        "options": OPTIONS,
        "removed": int(removed.sum()),
        "error": of_model,
        "error_of_interpolation": of_lines,
        "nats_per_removed_value": nats,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="pollution.csv")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--out", type=Path, help="where to keep the run; by default it is not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        record = measured(chosen.data, out, chosen.minutes)
    common.write("imputation", record)
    common.show(record)


if __name__ == "__main__":
    sys.exit(main())
