"""`tessella gap`.

Imports beside it: report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, loaded, progress, say, say_table
from tessella.foundation.text import json_text

if TYPE_CHECKING:
    from tessella.evaluation.results import GapEvaluation


@dataclass(frozen=True)
class Gap:
    """The inference gap: by how much the bound misses log p(x), and whether the encoder or q's family is to blame.

    log p(x) is estimated by annealed importance sampling, and bracketed on examples that the model drew itself.

    Attributes:
        run: the run folder.
        data: other data than the run's own, read as the run's was.
        split: train, valid or test.
        prior: the kind of a fitted prior, or the one that the model was trained with; by default as for evaluate.
        examples: how many are measured, the same ones each time, spread over the split.
        chains: of annealing, an example.
        steps: of annealing; by default doubled from 16 on until the bracket is narrow enough.
        simulated: on how many examples of the model's own the bracket is found; by default on half as many.
        tolerance: nats that the bracket may be wide, with its standard error.
        base: what annealing starts from: a Gaussian like q(z | x), or like p(z).
        minutes: do not double the steps again if finding log p(x) would then take longer than about that.
        seed: of the draws.
        json: print all numbers as JSON.
    """

    run: Positional[str]
    data: str | None = None
    split: str = "test"
    prior: str | None = None
    examples: int = 100
    chains: int = 16
    steps: int | None = None
    simulated: int | None = None
    tolerance: float = 0.3
    base: Literal["posterior", "prior"] = "posterior"
    minutes: float | None = None
    seed: int = 0
    json: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def gap(o: Gap) -> int:
    model, run = loaded(o.run, o.prior, o.where, json=o.json)
    from tessella.evaluation.gap import measure
    from tessella.training.results_store import GAP

    data = run.data(o.data, model)
    with progress("measuring the gap", quiet=o.json) as tell:
        result = measure(
            model,
            data.split(o.split),
            examples=o.examples,
            chains=o.chains,
            steps=o.steps,
            simulated=o.simulated,
            tolerance=o.tolerance,
            base=o.base,
            seed=o.seed,
            minutes=o.minutes,
            data=data.spec,
            split_name=o.split,
            progress=tell,
        )
    if o.data is None and o.prior is None:
        run.results.save(GAP, result, seed=o.seed)
    if o.json:
        print(json_text(result.to_json(), indent=2))
    else:
        _print(result)
    return 0


def _print(result: GapEvaluation) -> None:
    from tessella.pages import gap as page

    title = f"{result.model} on {result.examples:,} examples of {result.data}, split {result.split}"
    rows = [(row.name, row.value, row.meaning) for row in page.rows(result)]
    say_table(title, ("what", "nats", "what it means"), rows, figures={1})
    if result.converged:  # if not, a warning has said so
        for note in result.notes:
            say(note)
