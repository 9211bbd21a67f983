"""Outliers in tables: the estimator with its defaults against isolation forest, ECOD, kNN and a VAE, all of PyOD.

    python benchmarks/tables.py --data adbench_dev.npz [--seeds 5 --only cardio]

The archive holds `NAME_X` `[n, features]` and `NAME_y` (1 = anomaly) for each table of ADBench (Han et al. 2022). Two
protocols, both with ADBench's stratified 70/30 split and columns scaled to [0, 1] by the training rows: with the
anomalies in training, unlabelled; and without them. AUROC on the test rows, mean over seeds, then over tables. It takes
`pip install pyod`; each method has its default options. Seconds are CPU time of fit and score together.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

import common

OURS = "LatentOutlierDetector"
PROTOCOLS = ("anomalies in training", "normals only")
SECONDS = 10.0


def methods() -> dict[str, Callable[[int], Any]]:
    """Make each method from a seed; a fitted one has `decision_function`, higher for outliers, or `score_samples`."""
    from pyod.models.ecod import ECOD  # pyright: ignore[reportMissingImports]
    from pyod.models.iforest import IForest  # pyright: ignore[reportMissingImports]
    from pyod.models.knn import KNN  # pyright: ignore[reportMissingImports]
    from pyod.models.vae import VAE  # pyright: ignore[reportMissingImports]

    from tessella import LatentOutlierDetector

    return {
        OURS: lambda seed: LatentOutlierDetector(random_state=seed),
        "isolation forest": lambda seed: IForest(random_state=seed),
        "ECOD": lambda seed: ECOD(),
        "kNN": lambda seed: KNN(),
        "VAE of PyOD": lambda seed: VAE(random_state=seed, verbose=0),
    }


def splits(x: np.ndarray, y: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield protocol, training rows, test rows and labels of the test rows."""
    train, test, known, labels = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    for protocol, rows in zip(PROTOCOLS, (train, train[known == 0]), strict=True):
        scale = MinMaxScaler().fit(rows)
        yield protocol, scale.transform(rows), scale.transform(test), labels


def measured(make: Callable[[int], Any], seed: int, train: np.ndarray, test: np.ndarray, y: np.ndarray) -> list[float]:
    """Measure AUROC and CPU seconds."""
    started = time.process_time()
    detector = make(seed).fit(train)
    scores = -detector.score_samples(test) if hasattr(detector, "score_samples") else detector.decision_function(test)
    return [float(roc_auc_score(y, scores)), time.process_time() - started]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="archive of tables")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of tables; the record is then not written")
    parser.add_argument("--methods", nargs="+", help="names of methods; the record is then not written")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    archive = np.load(chosen.data)
    names = chosen.only or [key[:-2] for key in archive.files if key.endswith("_X")]
    made = {name: make for name, make in methods().items() if name in (chosen.methods or methods())}
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = {
        protocol: {method: {name: [] for name in names} for method in made} for protocol in PROTOCOLS
    }
    for name in names:
        for seed in range(chosen.seeds):
            for protocol, *data in splits(archive[f"{name}_X"], archive[f"{name}_y"], seed):
                for method, make in made.items():
                    found[protocol][method][name].append(measured(make, seed, *data))
        common.say(f"{name}: " + ", ".join(f"{m} {_mean(found[p][m][name]):.4f}" for p in PROTOCOLS for m in made))
    record = result(found, chosen.seeds)
    common.show(record)
    if not (chosen.only or chosen.methods):
        common.write("tables", record)


def result(found: dict[str, dict[str, dict[str, list[list[float]]]]], seeds: int) -> common.Record:
    """Make the record: per protocol, the mean of our estimator against the best mean of the others."""
    auroc = {
        protocol: {m: {name: _mean(runs) for name, runs in tables.items()} for m, tables in of.items()}
        for protocol, of in found.items()
    }
    means = {p: {m: float(np.mean(list(tables.values()))) for m, tables in of.items()} for p, of in auroc.items()}
    rows = []
    for protocol, of in means.items():
        others = {m: mean for m, mean in of.items() if m != OURS}
        best = max(others, key=others.__getitem__, default=None)
        if best and OURS in of:
            claim = f"tables, {protocol}: mean AUROC with all defaults, against the best of four, {best}"
            rows.append(common.row(claim, round(others[best], 4), of[OURS], better="higher"))
    seconds = max(run[1] for of in found.values() for name in of.get(OURS, {}).values() for run in name)
    rows.append(common.row("tables: CPU seconds to fit and score, the slowest", SECONDS, seconds, better="lower"))
    return {
        "about": f"outliers in tables, AUROC, mean of {seeds} seeds",
        "command": f"python benchmarks/tables.py --data adbench_dev.npz --seeds {seeds}",
        "rows": rows,
        "mean_auroc": means,
        "auroc": auroc,
        "runs": found,
        "versions": {name: version(name) for name in ("pyod", "scikit-learn", "numpy", "torch")},
        "environment": common.environment(),
    }


def _mean(runs: list[list[float]]) -> float:
    return float(np.mean([auroc for auroc, _ in runs]))


if __name__ == "__main__":
    sys.exit(main())
