"""Task `evaluate`: measures rate, distortion and bound of a model, and on request the fidelity of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tessella.core.schema import Precision, Schema
from tessella.evaluation.results import Evaluation, FidelityEvaluation
from tessella.foundation.blocks import Page, Table, Text, joined
from tessella.foundation.errors import SpecError, in_python, option
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.models.base import Model
    from tessella.training.run import Run


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model: rate, distortion, and their sum, the bound, in nats and in bits per dimension.

    The bound is the negative ELBO, an upper bound on the negative log-likelihood (NLL), -log p(x).

    Attributes:
        data: data set to use instead of the run's own; it is read with the run's options.
        split: split to measure on: train, valid or test.
        prior: kind of the fitted prior to use, or trained (uniform for codes): the model's own; by default the best.
        importance_samples: samples of z per example for the importance-weighted bound, which is tighter; 0 omits it.
        fidelity: number of samples to compare with data in the features of a small classifier; 0 omits the comparison.
        features: features for the comparison: `classifier`; `inception`, which adds the standard FID (needs
            torchmetrics); or an .npz file of your own features, with the arrays `samples` and `data`.
        codes_used: number of codes of each position to use, of a model trained with the quantizer residual and its
            dropout; fewer codes take fewer bits. Default: all.
        seed: seed of all random numbers.
        precision: arithmetic of the networks; the bound holds for the model at this precision.
    """

    data: str | None = None
    split: str = "test"
    prior: str | None = None
    importance_samples: int = 0
    fidelity: int = 0
    features: str = "classifier"
    codes_used: int | None = None
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.fidelity < 0:
            raise SpecError(f"{option('fidelity')} is a number of samples, at least 0, got {self.fidelity}",
                            "out-of-range")  # fmt: skip
        if self.features != "classifier" and not self.fidelity:
            raise SpecError(
                f"{option('features')} can only be used with a number of samples: give {option('fidelity')} too",
                "no-samples",
            )
        if self.features not in ("classifier", "inception") and not self.of_file:
            raise SpecError(
                f"{option('features')} must be classifier, inception or an .npz file, got {self.features!r}",
                "no-features",
            )

    @property
    def of_file(self) -> bool:
        """Return whether the features are read from a file."""
        return self.features.lower().endswith(".npz")


@dataclass(frozen=True)
class EvaluateResult(Result):
    """Evaluation of a model, and of its samples if requested.

    Attributes:
        passed_over: why a fitted prior is not used; empty if none was passed over.
        conditional: whether all numbers are for p(x | label).
    """

    evaluation: Evaluation
    schema: Schema
    fidelity: FidelityEvaluation | None = None
    passed_over: str = ""
    conditional: bool = False

    def to_json(self) -> Mapping[str, Any]:
        notes = [in_python(line) for line in (*self.evaluation.notes, self.passed_over) if line]
        record = {**self.evaluation.to_json(), "notes": notes}
        return record if self.fidelity is None else {**record, "fidelity": self.fidelity.to_json()}

    def page(self) -> Page:
        from tessella.evaluation.metric_text import fidelity_numbers, numbers

        e, f = self.evaluation, self.fidelity
        given = ", given the label," if self.conditional else ""
        title = f"{e.model}{given} on {e.examples:,} examples of {e.data}, split {e.split}"
        rows = [*numbers(e, self.schema), *(() if f is None else fidelity_numbers(f))]
        table = Table(("what", "value", "what it means"), rows, title=title)
        return Page(title, joined(table, [Text(note, "warning", "Warning:") for note in e.notes]))


@task(
    "evaluate", summary="measure rate, distortion and bits per dimension on a held-out split", group="train and measure"
)
def evaluate_run(run: Run, config: EvaluateConfig) -> EvaluateResult:
    """Measure the model of a run.

    With the run's own data and prior, the result is stored in the run.
    """
    from tessella.evaluation.bounds import evaluate
    from tessella.training.run import EVALUATION, FIDELITY

    model = run.model(config.prior, codes_used=config.codes_used)
    if config.fidelity and not model.has_prior:
        raise model.no_prior_error()
    data = run.data(config.data, model)
    split = data.split(config.split)
    fidelity = _fidelity(run, model, data, config) if config.fidelity else None
    evaluation = evaluate(
        model,
        split,
        importance_samples=config.importance_samples,
        seed=config.seed,
        precision=config.precision,
        data=data.spec,
        split_name=config.split,
    )
    if config.data is None and config.prior is None and config.codes_used is None:
        run.results.save(EVALUATION.format(config.split), evaluation, seed=config.seed, precision=config.precision)
        if fidelity is not None and not config.of_file:
            run.results.save(FIDELITY, fidelity, seed=config.seed)
    passed_over = run.prior_choice(config.prior).note
    return EvaluateResult(evaluation, model.schema, fidelity, passed_over, model.conditional)


def _fidelity(run: Run, model: Model, data: Data, config: EvaluateConfig) -> FidelityEvaluation:
    from tessella.evaluation import classifier, fidelity

    if config.of_file:
        return fidelity.of_file(config.features, config.fidelity)
    split = data.split(config.split)
    first, second = fidelity.sets(split, config.fidelity)
    judge = classifier.of_run(run.path, data)
    samples = fidelity.timed_samples(model, len(first), fidelity.labels(split, second), seed=config.seed)
    found = fidelity.compare_samples(samples, split, judge, model.schema, config.split)
    if config.features != "inception":
        return found
    return replace(found, fid=fidelity.standard_fid(samples.x, split.batch(first).x, model.schema))
