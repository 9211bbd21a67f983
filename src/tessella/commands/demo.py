"""`tessella demo`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tessella.commands.measure import Evaluate, Report, evaluate, report
from tessella.commands.train import Train, train
from tessella.spec import ModelOptions, TrainOptions


@dataclass(frozen=True)
class Demo:
    """Train a VAE on the embedded digits, measure it and write its report.

    Attributes:
        out: the run folder; `demo-run` is replaced if it is there.
        minutes: how long to train.
    """

    out: Annotated[str, arg(aliases=("-o",))] = "demo-run"
    minutes: float = 1.5


def demo(o: Demo) -> int:
    options = TrainOptions(minutes=o.minutes, batch_size=64)
    print("1 of 3: training a variational autoencoder on 1,797 handwritten digits")
    chosen = {"model": "vae", "data": "digits", "options": ModelOptions(units=16), "training": options}
    if status := train(Train(**chosen, out=o.out, overwrite=o.out == Demo.out)):
        return status
    print("2 of 3: measuring it on digits that it never saw")
    evaluate(Evaluate(run=o.out, importance_samples=50))
    print("3 of 3: writing the report")
    report(Report(run=o.out))
    print(f"open {os.path.abspath(os.path.join(o.out, 'report.html'))} in a browser, then try pictures of your own:")
    print("tessella train vae --data FOLDER --out RUN --minutes 10")
    return 0
