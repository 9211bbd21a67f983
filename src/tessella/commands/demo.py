"""`tessella demo`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import arg

from tessella.commands.measure import Evaluate, Report, evaluate, report
from tessella.commands.prior import Prior, prior
from tessella.commands.shared import Where
from tessella.commands.train import Train, train
from tessella.errors import SpecError
from tessella.spec import ModelOptions, TrainOptions


@dataclass(frozen=True)
class Demo:
    """Train a VQ-VAE on the embedded digits, fit a prior over its codes, measure both and write their report.

    Attributes:
        out: the run folder; `demo-run` is replaced if it is there.
        minutes: how long to train: two thirds for the model, one for the prior.
    """

    out: Annotated[str, arg(aliases=("-o",))] = "demo-run"
    minutes: float = 1.5
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def demo(o: Demo) -> int:
    if not o.minutes > 0:
        raise SpecError(f"minutes must be more than zero, not {o.minutes}")
    where = Where(str(o.where.find()))  # said once
    print("1 of 4: training a VQ-VAE, which makes 16 integers of each of 1,797 handwritten digits")
    chosen = {"model": "vqvae", "data": "digits", "options": ModelOptions(side=4, codebook_size=16)}
    first = TrainOptions(minutes=o.minutes * 2 / 3, device=where.device)
    if status := train(Train(**chosen, training=first, out=o.out, overwrite=o.out == Demo.out)):
        return status
    print("2 of 4: fitting a prior, which learns the integers of each digit")
    second = TrainOptions(minutes=o.minutes / 3, weight_decay=0.1, device=where.device)
    if status := prior(Prior(run=o.out, width=32, depth=3, class_conditional=True, training=second)):
        return status
    print("3 of 4: measuring both on digits that they never saw")
    evaluate(Evaluate(run=o.out, importance_samples=50, where=where))
    print("4 of 4: writing the report")
    report(Report(run=o.out, where=where))
    print(f"open {os.path.abspath(os.path.join(o.out, 'report.html'))} in a browser, then try pictures of your own:")
    print("tessella train vqvae --data FOLDER --out RUN --minutes 10 && tessella prior RUN --minutes 10")
    return 0
