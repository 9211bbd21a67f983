"""`tessella evaluate` and `tessella report`.

Imports beside it: report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, loaded, progress, say, say_table
from tessella.core.schema import Precision
from tessella.foundation.errors import SpecError
from tessella.foundation.text import json_text

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.evaluation.results import Evaluation, FidelityEvaluation
    from tessella.models.base import Model


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: rate, distortion, and the bound they make, in nats and in bits per dimension.

    Attributes:
        run: the run folder.
        data: other data than the run's own, read as the run's was.
        split: train, valid or test.
        prior: the kind of a fitted prior, or trained (of codes uniform): the model's own; by default the best.
        importance_samples: draws an example for the importance-weighted bound, which is tighter; 0 leaves it out.
        fidelity: samples to draw and compare with data, through a small classifier of the same data; 0 draws none.
        features: what samples and data are compared by: `classifier`; `inception`, the standard FID too (takes
            torchmetrics); or an .npz file of features of your own, arrays `samples` and `data`.
        seed: of the draws.
        precision: of the networks; the bound holds for the model as it runs here.
        json: print all numbers as JSON.
    """

    run: Positional[str]
    data: str | None = None
    split: str = "test"
    prior: str | None = None
    importance_samples: int = 0
    fidelity: int = 0
    features: str = "classifier"
    seed: int = 0
    precision: Precision = "float32"
    json: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def evaluate(o: Evaluate) -> int:
    _check(o)
    model, run = loaded(o.run, o.prior, o.where, json=o.json)
    if o.fidelity and not model.has_prior:
        raise model.no_prior_error()
    from tessella.training.results_store import EVALUATION, FIDELITY

    data = run.data(o.data, model)
    data.split(o.split)
    found = _fidelity(model, data, o) if o.fidelity else None
    result = _measured(model, data, o, quiet=o.json)
    if o.data is None and o.prior is None:
        run.results.save(EVALUATION.format(o.split), result, seed=o.seed, precision=o.precision)
        if found is not None and not _is_file(o.features):
            run.results.save(FIDELITY, found, seed=o.seed)
    if o.json:
        passed_over = run.prior_choice(o.prior).note
        noted = replace(result, notes=(*result.notes, passed_over)) if passed_over else result
        of_samples = {} if found is None else {"fidelity": found.to_json()}
        print(json_text({**noted.to_json(), **of_samples}, indent=2))
    else:
        _print_numbers(result, model, found)
    return 0


def _check(o: Evaluate) -> None:
    """What can be known to be wrong before anything is loaded."""
    if o.fidelity < 0:
        raise SpecError(f"fidelity takes a number of samples, not {o.fidelity}")
    if o.features != "classifier" and not o.fidelity:
        raise SpecError("--features say what samples are compared by: give --fidelity N, how many to draw, too")
    if o.features not in ("classifier", "inception") and not _is_file(o.features):
        raise SpecError(f"features are classifier, inception or an .npz file of your own, not {o.features!r}")


def _is_file(features: str) -> bool:
    return features.lower().endswith(".npz")


def _fidelity(model: Model, data: Data, o: Evaluate) -> FidelityEvaluation:
    from tessella.evaluation import classifier, fidelity

    if _is_file(o.features):
        return fidelity.of_file(o.features, o.fidelity)
    split = data.split(o.split)
    first, second = fidelity.sets(split, o.fidelity)
    with progress("training the classifier", quiet=o.json) as tell:
        looker = classifier.of_run(Path(o.run), data, tell)
    with progress("drawing", quiet=o.json) as tell:
        samples = fidelity.draw(model, len(first), fidelity.labels(split, second), seed=o.seed, progress=tell)
    found = fidelity.compare(samples, split, looker, model.schema, o.split)
    if o.features != "inception":
        return found
    fid = fidelity.standard_fid(samples.x, split.batch(first).x, model.schema)
    return replace(found, fid=fid)


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


def _print_numbers(result: Evaluation, model: Model, found: FidelityEvaluation | None = None) -> None:
    from tessella.pages.metric_text import fidelity_numbers, numbers

    given = ", given the label," if model.conditional else ""
    title = f"{result.model}{given} on {result.examples:,} examples of {result.data}, split {result.split}"
    found_rows = (*numbers(result, model.schema), *(() if found is None else fidelity_numbers(found)))
    rows = [(row.name, row.value, row.meaning) for row in found_rows]
    say_table(title, ("what", "value", "what it means"), rows, figures={1})
    for note in result.notes:
        say(f"warning: {note}")


@dataclass(frozen=True)
class Report:
    """Write report.html into the run: curves, pictures, the numbers and what they mean, how to reproduce.

    Attributes:
        run: the run folder.
        data: other data than the run's own, for instance where it lies on this machine.
    """

    run: Positional[str]
    data: str | None = None
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def report(o: Report) -> int:
    model, run = loaded(o.run, where=o.where)
    from tessella.pages.run_page import write

    say(f"wrote {write(run.path, model, run.data(o.data, model))}")
    return 0
