"""Compares runs: what each costs, how its samples look, and which of these figures may be ranked.

A bound is of one data set as it is stored, of one split of it, and of p(x) or p(x | label). Runs that agree on all of
that make a group and are ranked; groups are shown beside each other with the reason why they are not. Within a group
all figures are of the same examples and as many samples, judged by one classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from tessella.core.schema import Schema
from tessella.evaluation.results import Evaluation, FidelityEvaluation, GapEvaluation
from tessella.foundation.blocks import Page
from tessella.foundation.errors import SpecError, option
from tessella.foundation.errors import task as command
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FEWEST = 40
"""Examples to compare by, at least: two sets of samples."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs: bounds, how their samples look, and what they cost, in one table and one page.

    Only figures of the same thing are ranked: runs of other data, another split, another binarisation, or with labels
    given make groups of their own, with the reason.

    Attributes:
        runs: the run folders, two or more.
        data: other data than the runs' own, read as theirs was.
        split: train, valid or test.
        examples: samples of each run, and examples that bounds are of unless the whole split is known of all.
        minutes: for the samples of one run; if they take longer, how they look is left out.
        seed: of all random numbers.
    """

    runs: Positional[tuple[str, ...]] = ()
    data: str | None = None
    split: str = "test"
    examples: int = 2000
    minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise SpecError(
                f"a comparison takes two runs or more; {command('evaluate')} measures a single one", "few-runs"
            )
        if self.examples < FEWEST:
            raise SpecError(f"{option('examples')} must be at least {FEWEST}, got {self.examples}", "out-of-range")
        if not self.minutes > 0:
            raise SpecError(f"{option('minutes')} must be more than 0, got {self.minutes}", "out-of-range")


@dataclass(frozen=True)
class Basis:
    """Quantity that a bound is of; only bounds of the same one are ranked.

    Attributes:
        data: its name, for whoever reads.
        split: the split's name.
        seed: that divided the data.
        contents: fingerprint of what is in the split.
        schema: what an example looks like.
        binarize: how grey values were made binary; None if they were not.
        conditional: whether the bound is of p(x | label).
    """

    data: str
    split: str
    seed: int
    contents: str
    schema: Schema
    binarize: str | None
    conditional: bool

    @property
    def key(self) -> tuple[Any, ...]:
        return self.contents, self.schema.shape, self.schema.values.name, self.binarize, self.conditional

    @property
    def title(self) -> str:
        """In words."""
        of = "p(x | label)" if self.conditional else "p(x)"
        kind = f"{self.schema.values.words} values"
        how = f", binarised ({self.binarize})" if self.binarize else ""
        shape = "x".join(map(str, self.schema.shape))
        return f"{self.data}, split {self.split}: {kind} of shape {shape}{how}, {of}"


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        run: its folder.
        name: what tells it from the others.
        model: of the catalogue.
        evaluation: on the split.
        fidelity: of its samples; None where it has none, or they take too long.
        gap: the inference gap, if it was measured.
        prior: the kind of the fitted prior that it uses; None: its own.
        samples: some to look at, `[n, *shape]`.
        notes: why something is missing, in words.
    """

    run: str
    name: str
    model: str
    evaluation: Evaluation
    fidelity: FidelityEvaluation | None = None
    gap: GapEvaluation | None = None
    prior: str | None = None
    seconds_per_sample: float | None = None
    samples: Tensor | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Runs that can be ranked.

    Attributes:
        data: examples of the split, to look at beside the samples.
        whole: whether the bounds are of the whole split.
    """

    basis: Basis
    entries: tuple[Entry, ...]
    data: Tensor = field(repr=False)
    whole: bool


@dataclass(frozen=True)
class Comparison(Result):
    """All runs in groups.

    Attributes:
        reasons: why runs of different groups are not ranked.
    """

    groups: tuple[Group, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> Mapping[str, Any]:
        from tessella.tasks.compare.page import group_record

        groups = [group_record(group) for group in self.groups]
        return {"version": 1, "groups": groups, "not_ranked": list(self.reasons)}

    def page(self) -> Page:
        from tessella.tasks.compare.page import comparison_page

        return comparison_page(self.groups, self.reasons)


@task("compare", summary="compare runs in one table and one page", group="train and measure", out="compared.html")
def compare(config: CompareConfig, device: str | torch.device | None = None) -> Comparison:
    """Measure all runs alike; what is known of them already is taken from the runs.

    Raises:
        RunError, DataError: if a run or its data cannot be used.
    """
    from tessella.tasks.compare.measuring import differences, measured_groups

    groups = measured_groups(config, device)
    return Comparison(groups, differences([group.basis for group in groups]))
