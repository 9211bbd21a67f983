"""`tessella evaluate`, `tessella report` and `tessella parts`.

Imports beside it: report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tyro.conf import Positional

from tessella import registry
from tessella.commands.shared import loaded, progress
from tessella.records import Precision

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.models.model import Model
    from tessella.records import Evaluation


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: rate, distortion, and the bound they make, in nats and in bits per dimension.

    Attributes:
        run: the run folder.
        data: other data than the run's own, read as the run's was.
        split: train, valid or test.
        prior: of a model of codes: uniform, or the kind of a fitted prior; by default the best that was fitted.
        importance_samples: draws an example for the importance-weighted bound, which is tighter; 0 leaves it out.
        seed: of the draws.
        precision: of the networks; the bound holds for the model as it runs here.
        json: print all numbers as JSON.
    """

    run: Positional[str]
    data: str | None = None
    split: str = "test"
    prior: str | None = None
    importance_samples: int = 0
    seed: int = 0
    precision: Precision = "float32"
    json: bool = False


def evaluate(o: Evaluate) -> int:
    model, source = loaded(o.run, o.prior)
    from tessella import report
    from tessella.uses.look import data_for

    data = data_for(model, source, o.data)
    result = _measured(model, data, o, quiet=o.json)
    if o.data is None and o.prior is None:
        report.store(Path(o.run), result, seed=o.seed, precision=o.precision)
    if o.json:
        print(json.dumps(report.jsonable(result), indent=2))
    else:
        _print_numbers(result, model)
    return 0


def _measured(model: Model, data: Data, o: Evaluate, *, quiet: bool) -> Evaluation:
    from tessella.evaluation.bounds import evaluate as measure

    with progress("evaluating", quiet=quiet) as tell:
        return measure(
            model,
            data.split(o.split),
            importance_samples=o.importance_samples,
            seed=o.seed,
            precision=o.precision,
            data=data.spec,
            split_name=o.split,
            progress=tell,
        )


def _print_numbers(result: Evaluation, model: Model) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tessella.report import numbers

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    given = ", given the label," if model.conditional else ""
    table.title = f"{result.model}{given} on {result.examples:,} examples of {result.data}, split {result.split}"
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it means")
    for row in numbers(result, model.schema):
        table.add_row(row.name, row.value, row.meaning)
    console = Console(highlight=False)
    console.print(table)
    for note in result.notes:
        console.print(f"[bold]warning:[/bold] {escape(note)}", soft_wrap=True)


@dataclass(frozen=True)
class Report:
    """Write report.html into the run: curves, pictures, the numbers and what they mean, how to reproduce.

    Attributes:
        run: the run folder.
        data: other data than the run's own, for instance where it lies on this machine.
    """

    run: Positional[str]
    data: str | None = None


def report(o: Report) -> int:
    model, source = loaded(o.run)
    from tessella.report import write
    from tessella.uses.look import data_for

    print(f"wrote {write(Path(o.run), model, data_for(model, source, o.data))}")
    return 0


@dataclass(frozen=True)
class Parts:
    """List the models and what they are made of."""


def parts(o: Parts) -> int:
    kinds = [kind for kind in get_args(registry.Kind) if kind != "evaluation"]
    wide = max(len(entry.name) for entry in registry.CATALOGUE)
    for kind in ("model", *(k for k in kinds if k != "model")):
        print(f"{kind}:")
        for entry in registry.entries(kind):
            print(f"  {entry.name:{wide}}  {entry.summary}")
    return 0
