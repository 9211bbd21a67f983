"""Task `compare`: compares the bounds, samples and costs of runs, and ranks those that are comparable.

A bound belongs to one data set as it is stored, to one split of it, and to p(x) or p(x | label). Runs that agree on all
of that form a group and are ranked; groups are shown beside each other with the reason why they are not ranked. Within
a group all numbers come from the same examples and as many samples, measured by one classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessella.core.schema import bits_per_dim
from tessella.evaluation.results import Against
from tessella.foundation.blocks import Block, Cell, Chart, Charts, Heading, Page, Rows, Series, Table, Text, joined
from tessella.tasks.compare.records import CompareConfig, ComparedRun, Group, best, differences
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Comparison(Result):
    """All runs in groups.

    Attributes:
        reasons: why runs of different groups are not ranked.
    """

    groups: tuple[Group, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> Mapping[str, Any]:
        groups = [group_record(group) for group in self.groups]
        return {"version": 1, "groups": groups, "not_ranked": list(self.reasons)}

    def page(self) -> Page:
        return comparison_page(self.groups, self.reasons)


@task("compare", summary="compare runs in one table and one page", group="train and measure", out="compared.html")
def compare(config: CompareConfig, device: str | torch.device | None = None) -> Comparison:
    """Measure all runs alike, reusing the results that they hold.

    Raises:
        RunError, DataError: if a run or its data cannot be used.
    """
    from tessella.tasks.compare.measuring import measured_groups

    groups = measured_groups(config, device)
    return Comparison(groups, differences([group.basis for group in groups]))


NONE = "none"


@dataclass(frozen=True)
class Line:
    """One metric of all runs of a group.

    Attributes:
        cells: one text per run.
        best: for each run whether it is best, or not distinguishable from the best.
        data: value of the data itself; empty if it does not apply.
    """

    name: str
    meaning: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]
    data: str = ""


def lines(group: Group) -> list[Line]:
    """Tabulate a group, one metric per line, without those that no run has."""
    from tessella.evaluation.metric_text import time_text
    from tessella.kinds.base import kind_of

    schema, entries = group.basis.schema, group.entries
    one = kind_of(schema).example
    given = f"{one}, given its label" if group.basis.conditional else one
    bound = [e.evaluation.bound for e in entries]
    found = [
        _line(
            "bits per dimension",
            f"upper bound on -log p(x) per value of a {given}",
            [None if b is None else (bits_per_dim(b, schema.observed_dims), 0.0) for b in bound],
            lambda v, _: f"{v:.3f}",
            "lower",
        ),
        _line("bound", "rate + distortion, nats", [_plain(b) for b in bound], _nats, "lower"),
        _line("rate", "part for the latent", [_plain(e.evaluation.rate) for e in entries], _nats),
        _line(
            "distortion",
            f"part for the {one} given the latent",
            [_plain(e.evaluation.distortion) for e in entries],
            _nats,
        ),
        _line("gap", "bound minus -log p(x), nats", [_gap(e) for e in entries], _with_error, "lower"),
        _collapse(entries, one),
    ]
    for name, meaning, better in (
        ("frechet", "Frechet distance: between samples and data", "lower"),
        ("precision", "precision: share of samples among the data", "higher"),
        ("recall", "recall: share of data among the samples", "higher"),
        ("consistency", "class consistency: share of samples classified as their class", "higher"),
        ("class_distance", "class distance: total variation between the class frequencies", "lower"),
        ("sharpness", "sharpness: high-frequency energy relative to data", "one"),
    ):
        found.append(_of_samples(name, meaning, better, entries))
    found += [
        _line(
            "time per sample",
            "many at once, on this machine",
            [_plain(e.seconds_per_sample) for e in entries],
            lambda v, _: time_text(v),
            "lower",
        ),
        _line("parameters", "trained weights of the model", [_plain(e.evaluation.parameters) for e in entries], _count),
    ]
    return [line for line in found if any(cell not in (NONE, "") for cell in line.cells)]


def _line(
    name: str,
    meaning: str,
    figures: Sequence[tuple[float, float] | None],
    text: Callable[[float, float], str],
    better: str = "",
    *,
    alike: Sequence[Any] | None = None,
    data: str = "",
) -> Line:
    cells = tuple(NONE if f is None else text(*f) for f in figures)
    marked = best(figures, better, alike) if better else [False] * len(figures)
    return Line(name, meaning, cells, tuple(marked), data)


def _of_samples(name: str, meaning: str, better: str, entries: Sequence[ComparedRun]) -> Line:
    of = [None if e.fidelity is None else getattr(e.fidelity, name) for e in entries]
    figures = [None if a is None else (a.value, a.error) for a in of]
    known = next((a for a in of if isinstance(a, Against)), None)
    title, _, rest = meaning.partition(": ")
    data = "" if known is None else f"{known.data:.3f}"
    alike = [None if e.fidelity is None else e.fidelity.drawn for e in entries]
    return _line(title, rest, figures, _with_error, better, alike=alike, data=data)


def _collapse(entries: Sequence[ComparedRun], one: str) -> Line:
    cells = []
    for e in entries:
        c = e.evaluation.collapse
        cells.append(
            NONE if c is None else f"collapsed ({c.shuffle_cost:.2f})" if c.collapsed else f"{c.shuffle_cost:,.1f}"
        )
    meaning = f"loss in nats if a {one} gets another's latent; near 0: collapse"
    return Line("shuffle cost", meaning, tuple(cells), (False,) * len(cells))


def _gap(e: ComparedRun) -> tuple[float, float] | None:
    return None if e.gap is None else (e.gap.total.nats, e.gap.total.error)


def _plain(value: float | None) -> tuple[float, float] | None:
    return None if value is None else (float(value), 0.0)


def _nats(value: float, _: float) -> str:
    return f"{value:,.2f}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _count(value: float, _: float) -> str:
    return f"{value:,.0f}"


def comparison_page(groups: Sequence[Group], reasons: Sequence[str]) -> Page:
    """Build the page: one table, one rate-distortion plot, and samples side by side, for each group."""
    count = sum(len(group.entries) for group in groups)
    blocks: list[Block] = [Text(f"{reason}.", "warning", "Not ranked:") for reason in reasons]
    for number, group in enumerate(groups, 1):
        title = group.basis.title if len(groups) == 1 else f"Group {number}: {group.basis.title}"
        notes = [Text(note, "soft") for note in footnotes(group)]
        blocks += joined(Heading(title), _table(group), notes, _plane(group), _samples(group))
    return Page(f"{count} runs compared", blocks, _lead(groups))


def _lead(groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return (
            "All are measured on the same examples, and their samples by the same network. Bold numbers are the best, "
            "or within two standard errors of the best."
        )
    return (
        f"The runs form {len(groups)} groups whose numbers are not comparable. Within a group all runs are measured "
        "alike, and the best numbers are bold; between groups nothing is ranked."
    )


def _table(group: Group) -> Table:
    found = lines(group)
    known = any(line.data for line in found)
    heads = [Cell(""), *(Cell(e.name, _kind(e)) for e in group.entries)]
    heads += [Cell("data", "instead of samples")] if known else []
    rows = []
    for line in found:
        cells = [Cell(cell, tone="best" if best else "") for cell, best in zip(line.cells, line.best, strict=True)]
        rows.append([Cell(line.name, line.meaning), *cells, *([Cell(line.data)] if known else [])])
    return Table(heads, rows, figures=range(1, len(heads)))


def _kind(e: ComparedRun) -> str:
    return e.model if e.prior is None else f"{e.model}, prior {e.prior}"


def footnotes(group: Group) -> list[str]:
    """List what must be known to read the table of a group."""
    counts = {e.evaluation.examples for e in group.entries}
    of = f"{', all' if group.whole else ''} of the split {group.basis.split}"
    notes = [f"Bounds are means over {min(counts):,} examples{of}."]
    known = [e.fidelity for e in group.entries if e.fidelity is not None]
    if known:
        f = known[0]
        by = {
            "class": "a classifier trained on the same data",
            "rotation": "a network trained to predict rotations of the same data",
            "flip": "a network trained to predict reflections of the same data",
            "autoencoder": "an autoencoder of the same data",
        }.get(f.features, f.features)
        score = "" if f.classifier_score is None else f" (score {100 * f.classifier_score:.1f} %)"
        notes.append(
            f"{f.samples:,} samples of each run against as many examples, in the features of {by}{score}: this is not "
            "FID. The last column has other examples of the data instead of samples. ± is a standard error."
        )
        kinds = {g.drawn for g in known}
        if len(kinds) > 1:
            drawn = ", ".join(e.name for e in group.entries if e.fidelity is not None and e.fidelity.drawn)
            notes.append(f"{drawn}: sampled from p(x | z); the other samples are means, and not ranked with these.")
        elif kinds == {True}:
            notes.append("Samples are sampled from p(x | z).")
        else:
            notes.append("Samples are the means of p(x | z).")
    return [*notes, *(note for e in group.entries for note in e.notes)]


def _plane(group: Group) -> Charts | None:
    points = {e.name: (e.evaluation.rate, e.evaluation.distortion) for e in group.entries}
    placed = {n: (r, d) for n, (r, d) in points.items() if r is not None and math.isfinite(r) and math.isfinite(d)}
    if not placed:
        return None
    caption = (
        "Rate and distortion of each run. On a dotted line the bound, their sum, is constant; lower left is better."
    )
    if without := [name for name, (rate, _) in points.items() if rate is None]:
        caption += f" Not shown, since without a rate: {', '.join(without)}."
    series = Series([r for r, _ in placed.values()], [d for _, d in placed.values()])
    how = {"kind": "scatter", "x_label": "rate, nats", "sums": True, "wide": True}
    return Charts([Chart("distortion, nats", [series], names=list(placed), **how)], caption)


def _samples(group: Group) -> Rows | None:
    import torch

    from tessella.kinds.figures import examples_in_a_row, labelled_rows

    rows = {"data": group.data, **{e.name: e.samples for e in group.entries if e.samples is not None}}
    count = min(examples_in_a_row(group.basis.schema), *map(len, rows.values()))
    if len(rows) < 2 or not count:
        return None
    shown = torch.stack([x[:count] for x in rows.values()])
    caption = "Examples of the data, and below them the first samples of each run."
    return labelled_rows(shown, list(rows), group.basis.schema, caption)


def group_record(group: Group) -> dict[str, Any]:
    """Convert a group to plain data."""
    b = group.basis
    return {
        "data": b.data,
        "split": b.split,
        "contents": b.contents,
        "values": b.schema.values.name,
        "shape": b.schema.shape,
        "binarize": b.binarize,
        "conditional": b.conditional,
        "whole_split": group.whole,
        "runs": [_record(e) for e in group.entries],
        "best": {
            line.name: [e.name for e, marked in zip(group.entries, line.best, strict=True) if marked]
            for line in lines(group)
            if any(line.best)
        },
        "notes": footnotes(group),
    }


def _record(e: ComparedRun) -> dict[str, Any]:
    return {
        "run": e.run,
        "name": e.name,
        "model": e.model,
        "prior": e.prior,
        "evaluation": e.evaluation.to_json(),
        "fidelity": None if e.fidelity is None else e.fidelity.to_json(),
        "gap": None if e.gap is None else e.gap.to_json(),
        "seconds_per_sample": e.seconds_per_sample,
        "notes": list(e.notes),
    }
