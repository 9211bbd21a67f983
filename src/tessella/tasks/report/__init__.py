"""One page about a run that a stranger understands: curves, pictures, figures and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessella.evaluation.results import Evaluation
from tessella.foundation.blocks import Page
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from tessella.training.run import Run


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html into the run: curves, pictures, figures and what they mean, how to reproduce.

    Attributes:
        data: other data than the run's own, for instance where it lies on this machine.
    """

    data: str | None = None


@dataclass(frozen=True)
class Report(Result):
    """A run's page, and the evaluation that it shows."""

    evaluation: Evaluation
    whole: Page

    def to_json(self) -> Mapping[str, Any]:
        return self.evaluation.to_json()

    def page(self) -> Page:
        return self.whole


@task(
    "report",
    summary="write report.html: curves, pictures, figures and what they mean",
    group="train and measure",
    out="RUN/report.html",
)
def report(run: Run, config: ReportConfig) -> Report:
    """Compose the page of a run; the test split is measured on some examples if no evaluation of it is kept."""
    from tessella.tasks.report.sections import compose

    model = run.model()
    data = run.data(config.data, model)
    return Report(*compose(run, model, data))
