"""Records of a comparison: its options, the measurements of each run, and which numbers may be ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from tessella.core.schema import Schema
from tessella.evaluation.results import Evaluation, FidelityEvaluation, GapEvaluation
from tessella.foundation.errors import SpecError, option, task_name

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 40
"""Minimum number of examples, divided into two sets to compare samples with."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs in one table and one page: bounds, fidelity of samples, and costs.

    Only comparable numbers are ranked: runs with other data, another split, another binarisation or conditioned on
    labels form their own groups, with the reason.

    Attributes:
        runs: run folders, two or more.
        data: data set to use instead of the runs' own; it is read with their options.
        split: split to compare on: train, valid or test.
        examples: samples per run, and examples for the bounds unless all runs have been evaluated on the whole split.
        minutes: time limit for the samples of one run; if they take longer, their fidelity is not measured.
        seed: seed of all random numbers.
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
                f"a comparison needs two runs or more; measure a single run with {task_name('evaluate')}", "few-runs"
            )
        if self.examples < FEWEST:
            raise SpecError(f"{option('examples')} must be at least {FEWEST}, got {self.examples}", "out-of-range")
        if not self.minutes > 0:
            raise SpecError(f"{option('minutes')} must be more than 0, got {self.minutes}", "out-of-range")


@dataclass(frozen=True)
class Basis:
    """Quantity that a bound bounds; only bounds of the same quantity are ranked.

    Attributes:
        data: name of the data, for readers.
        split: name of the split.
        seed: seed that divided the data.
        contents: fingerprint of the split's contents.
        schema: shape and values of an example.
        binarize: method that made grey values binary; None if they were not.
        conditional: whether the bound is on p(x | label).
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
        """Describe the quantity."""
        of = "p(x | label)" if self.conditional else "p(x)"
        kind = f"{self.schema.values.words} values"
        how = f", binarised ({self.binarize})" if self.binarize else ""
        shape = "x".join(map(str, self.schema.shape))
        return f"{self.data}, split {self.split}: {kind} of shape {shape}{how}, {of}"


@dataclass(frozen=True)
class ComparedRun:
    """Measurements of one run.

    Attributes:
        run: its folder.
        name: short name that is distinct from the others.
        model: name of its model.
        evaluation: evaluation on the split.
        fidelity: fidelity of its samples; None if it has none, or they take too long.
        gap: the inference gap, if it was measured.
        prior: kind of the fitted prior in use; None for the model's own.
        samples: some samples to show, `[n, *shape]`.
        notes: why something is missing.
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
    """Runs that can be ranked against each other.

    Attributes:
        data: examples of the split, to show beside the samples.
        whole: whether the bounds are means over the whole split.
    """

    basis: Basis
    entries: tuple[ComparedRun, ...]
    data: Tensor = field(repr=False)
    whole: bool


# what may be ranked


def differences(bases: Sequence[Basis]) -> tuple[str, ...]:
    """Explain why groups are not ranked against each other, one line per pair."""
    return tuple(
        f"groups {m + 1} and {n + 1} are not ranked against each other: {'; '.join(_why(bases[m], bases[n]))}"
        for n in range(len(bases))
        for m in range(n)
    )


def _why(a: Basis, b: Basis) -> list[str]:
    why = []
    if a.schema.values.discrete != b.schema.values.discrete:
        why.append("one has real values, with densities that depend on their unit, the other has probabilities")
    elif a.schema.values != b.schema.values or a.binarize != b.binarize:
        why.append(f"the values differ, {_values(a)} against {_values(b)}")
    if a.schema.shape != b.schema.shape:
        why.append(f"the shapes differ ({'x'.join(map(str, a.schema.shape))}, {'x'.join(map(str, b.schema.shape))})")
    if a.data != b.data:
        why.append(f"the data differ ({a.data}, {b.data})")
    elif a.seed != b.seed and a.contents != b.contents:
        why.append(f"the data were divided by other seeds ({a.seed}, {b.seed}), so the {a.split} splits differ")
    if a.conditional != b.conditional:
        why.append("-log p(x | label) does not include the cost of the label, -log p(x) does")
    if not why:
        why.append(f"the {a.split} splits hold different examples, labels or values")
    return why


def _values(basis: Basis) -> str:
    kind = basis.schema.values.words
    return f"{kind} by {basis.binarize} binarisation" if basis.binarize else kind


def best(figures: Sequence[tuple[float, float] | None], better: str, alike: Sequence[Any] | None = None) -> list[bool]:
    """Mark the values within two standard errors (of both) of the best one.

    Args:
        figures: value and standard error of each.
        better: `lower`, `higher`, or `one` for ratios that are best at 1.
        alike: only values with equal entries here are compared.
    """
    lost = {"lower": lambda v: v, "higher": lambda v: -v, "one": lambda v: abs(math.log(v)) if v > 0 else math.inf}
    kinds = list(alike) if alike is not None else [None] * len(figures)
    marked = [False] * len(figures)
    for kind in set(kinds):
        scored = {
            n: (lost[better](f[0]), f[1] / f[0] if better == "one" and f[0] > 0 else f[1])
            for n, f in enumerate(figures)
            if f is not None and math.isfinite(f[0]) and kinds[n] == kind
        }
        if len(scored) < 2:
            continue
        first, error = min(scored.values())
        for n, (score, own) in scored.items():
            marked[n] = score <= first + 2 * math.hypot(error, own)
    return marked
