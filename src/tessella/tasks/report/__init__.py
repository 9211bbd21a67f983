"""Task `report`: one page about a run, readable without other knowledge of it."""

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
    """Write report.html into the run: training curves, pictures, metrics with their meaning, and how to reproduce.

    Attributes:
        data: data set to use instead of the run's own, for instance its path on this machine.
    """

    data: str | None = None


@dataclass(frozen=True)
class Report(Result):
    """Page of a run, and the evaluation that it shows."""

    evaluation: Evaluation
    whole: Page

    def to_json(self) -> Mapping[str, Any]:
        return self.evaluation.to_json()

    def page(self) -> Page:
        return self.whole


@task(
    "report",
    summary="write report.html: training curves, pictures, and metrics with their meaning",
    group="train and measure",
    out="RUN/report.html",
)
def report(run: Run, config: ReportConfig) -> Report:
    """Compose the page of a run, measuring the test split if the run holds no evaluation of it."""
    from tessella.tasks.report.sections import compose

    model = run.model()
    data = run.data(config.data, model)
    return Report(*compose(run, model, data))
