"""Frechet distance of samples of the first hour: a run against the samples of an earlier version.

    python benchmarks/frechet.py RUN EARLIER.npy

RUN is a run of `tessella train vqvae --data flowers --size 64 --minutes 6` with a prior of 3 minutes, EARLIER.npy holds
samples `[N, 3, 64, 64]` of a run of the version before sizing, by the same commands. The features are those of
one classifier of quarter turns, trained on the training split; the data is the test split.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

import common
import tessella
from tessella.evaluation.classifier import train_classifier
from tessella.evaluation.fidelity import TimedSamples, compare_samples, timed_samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("earlier")
    chosen = parser.parse_args()
    model, data = tessella.load(chosen.run), tessella.Run(chosen.run).data()
    classifier, test = train_classifier(data), data.split("test")
    before = torch.from_numpy(np.load(chosen.earlier))
    count = min(len(before), len(test) // 2)
    samples = {
        "earlier": TimedSamples(before[:count].float(), None, 0.0, drawn=False),
        "now": timed_samples(model, count),
    }
    found = {name: compare_samples(x, test, classifier, data.schema) for name, x in samples.items()}
    told = "flowers at 64 pixels, defaults, 6 minutes and 3 for the prior: Frechet distance of samples"
    record = {
        "about": "samples of the first hour, in features of a classifier of quarter turns; 1 is the data's variance",
        "rows": [
            common.row(
                f"{told}, against half of the earlier version's",
                found["earlier"].frechet.value / 2,
                found["now"].frechet.value,
                better="lower",
            )
        ],
        "found": {name: f.to_json() for name, f in found.items()},
        "command": "python benchmarks/frechet.py RUN EARLIER.npy",
        "environment": common.environment(),
    }
    common.write("first_hour_frechet", record)
    common.show(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
