"""`tessella demo`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from tessella.commands.measure import Evaluate, Report, evaluate, report
from tessella.commands.prior import Prior, prior
from tessella.commands.train import Train, train
from tessella.spec import ModelOptions, TrainOptions


@dataclass(frozen=True)
class Demo:
    """Turn the embedded digits into codes, learn which codes go together, measure both and write the report.

    Attributes:
        out: the run folder; `demo-run` is replaced if it is there.
        minutes: how long to train: two thirds of it the model, the rest the prior over its codes.
    """

    out: Annotated[str, arg(aliases=("-o",))] = "demo-run"
    minutes: float = 1.5


def demo(o: Demo) -> int:
    stages = TrainOptions(minutes=o.minutes * 2 / 3), TrainOptions(minutes=o.minutes / 3)
    print("1 of 4: training a VQ-VAE on 1,797 handwritten digits: each becomes 4 x 4 codes")
    chosen = {"model": "vqvae", "data": "digits", "options": ModelOptions(side=4, codebook_size=16)}
    if status := train(Train(**chosen, training=stages[0], out=o.out, overwrite=o.out == Demo.out)):
        return status
    print("2 of 4: learning which codes go together, digit by digit")
    if status := prior(Prior(run=o.out, width=48, depth=4, class_conditional=True, training=stages[1])):
        return status
    print("3 of 4: measuring it on digits that it never saw")
    evaluate(Evaluate(run=o.out, importance_samples=50))
    print("4 of 4: writing the report")
    report(Report(run=o.out))
    print(f"open {os.path.abspath(os.path.join(o.out, 'report.html'))} in a browser, then try pictures of your own:")
    print("tessella train vqvae --data FOLDER --out RUN --minutes 10, then tessella prior RUN --minutes 10")
    return 0
