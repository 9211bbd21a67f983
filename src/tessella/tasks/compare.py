"""Runs beside each other: what each costs, how its samples look, and which of these figures may be ranked.

A bound is of one data set as it is stored, of one split of it, and of p(x) or p(x | label). Runs that agree on all of
that make a group and are ranked; groups are shown beside each other with the reason why they are not. Within a group
all figures are of the same examples and as many samples, looked at through one classifier.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessella.core.schema import Schema
from tessella.data import Data, Split
from tessella.evaluation import classifier, fidelity
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.results import Evaluation, FidelityEvaluation, GapEvaluation
from tessella.foundation.errors import DataError, SpecError
from tessella.models.base import Model
from tessella.tasks import generate
from tessella.training import checkpoint
from tessella.training.results_store import GAP
from tessella.training.run import Run

SHOWN = 10
"""Samples of each run that are kept to look at."""
EXAMPLES = 2000
MINUTES = 5.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Basis:
    """What a bound is of; only bounds of the same can be ranked.

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
        return self.contents, self.schema.shape, self.schema.values, self.binarize, self.conditional

    @property
    def title(self) -> str:
        """In words."""
        of = "p(x | label)" if self.conditional else "p(x)"
        kind = {"binary": "binary values", "bytes": "8-bit values", "real": "real values"}[self.schema.values]
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
        gap: what `tessella gap` found, if it was run.
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
class Comparison:
    """All runs; `reasons` say why runs of different groups are not ranked."""

    groups: tuple[Group, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Opened:
    run: Run
    name: str
    model: Model
    data: Data
    basis: Basis

    @property
    def split(self) -> Split:
        return self.data.split(self.basis.split)


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    split: str = "test",
    data: str | None = None,
    examples: int = EXAMPLES,
    minutes: float = MINUTES,
    seed: int = 0,
    device: str | torch.device = "cpu",
    kept: bool = False,
    progress: Callable[[str], Progress] | None = None,
) -> Comparison:
    """Measure all runs alike.

    Args:
        data: other data than the runs' own.
        examples: samples of each run, and examples that bounds are of, unless all of a group are known for the whole
            split.
        minutes: for drawing the samples of one run; one that takes longer is said to be too slow.
        device: where the models run, as of `tessella.core.device.resolve`.
        kept: take what was found before and kept in the runs; evaluations, if they are of the whole split.
        progress: given what is done, gives what is told (done, in all) of it.

    Raises:
        SpecError: if there are no two runs, or a number is out of its range.
        RunError, DataError: if a run or its data cannot be used.
    """
    if len(runs) < 2:
        raise SpecError("to compare takes two runs or more: of one, tessella evaluate tells the numbers")
    if examples < 2 * fidelity.FEWEST or not minutes > 0:
        raise SpecError(f"compare by at least {2 * fidelity.FEWEST} examples and more than 0 minutes")
    opened = _open(runs, split, data, device)
    together: dict[tuple[Any, ...], list[_Opened]] = {}
    for one in opened:
        together.setdefault(one.basis.key, []).append(one)
    tell = progress or (lambda what: lambda done, total: None)
    groups = tuple(_measured(members, examples, minutes, seed, kept, tell) for members in together.values())
    return Comparison(groups, differences([group.basis for group in groups]))


def _open(
    runs: Sequence[str | os.PathLike[str]], split: str, other: str | None, device: str | torch.device
) -> list[_Opened]:
    """All runs loaded, before anything long is begun; data that several have is opened once."""
    paths = [Path(run) for run in runs]
    for path in paths:
        checkpoint.read_spec(path)  # before anything is loaded
    if twice := [str(p) for n, p in enumerate(paths) if p.resolve() in [q.resolve() for q in paths[:n]]]:
        raise SpecError(f"{twice[0]} is given twice: compare different runs")
    known: dict[str, tuple[Data, str]] = {}
    opened = []
    for path, name in zip(paths, names(paths), strict=True):
        run = Run(path, device)
        model = run.model()
        key = json.dumps([run.spec.data, model.schema.to_json(), model.conditional], sort_keys=True, default=str)
        if key not in known:
            found = run.data(other, model)
            known[key] = found, classifier.fingerprint(found, split)
        found, contents = known[key]
        basis = Basis(
            data=os.path.basename(found.spec.rstrip("/")) or found.spec,
            split=split,
            seed=int(found.options.get("seed") or 0),
            contents=contents,
            schema=found.schema,
            binarize=found.options.get("binarize"),
            conditional=model.conditional,
        )
        opened.append(_Opened(run, name, model, found, basis))
    return opened


def names(paths: Sequence[Path]) -> list[str]:
    """What tells each path from the others: as many of its last parts as that takes."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-count:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


def _measured(
    members: Sequence[_Opened],
    examples: int,
    minutes: float,
    seed: int,
    kept: bool,
    tell: Callable[[str], Progress],
) -> Group:
    split, basis = members[0].split, members[0].basis
    known = [m.run.results.evaluation(basis.split) if kept else None for m in members]
    whole = all(e is not None and e.examples == len(split) for e in known)
    entries = []
    for member, before in zip(members, known, strict=True):
        if not whole or before is None:
            told = tell(f"{member.name}: evaluating")
            options: dict[str, Any] = {"data": member.data.spec, "split_name": basis.split, "progress": told}
            before = evaluate(member.model, split, limit=examples, seed=seed, **options)
        entries.append(_entry(member, before, member.run.results.load(GAP, GapEvaluation) if kept else None))
    entries = _with_samples(members, entries, examples, minutes, seed, tell)
    shown = split.batch(generate.some(split, SHOWN)).x.float()
    return Group(basis, tuple(entries), shown, whole or examples >= len(split))


def _entry(of: _Opened, evaluation: Evaluation, gap: GapEvaluation | None) -> Entry:
    notes = () if of.model.has_bound else (f"{of.name}: an autoencoder has no prior, so no bound and no samples",)
    if of.model.has_prior and not of.model.has_bound:
        notes = (f"{of.name}: z has no distribution q(z | x), so there are samples but no bound",)
    if gap is not None and gap.split != of.basis.split:
        gap, notes = None, (*notes, f"{of.name}: its gap is of the split {gap.split}, and left out")
    elif gap is not None and not gap.converged:
        gap, notes = None, (*notes, f"{of.name}: its gap is not known, as annealing had not converged: repeat "
                            "tessella gap with more --steps")  # fmt: skip
    prior = of.run.prior_in_use
    return Entry(
        run=str(of.run.path),
        name=of.name,
        model=of.model.name,
        evaluation=evaluation,
        gap=gap,
        prior=None if prior is None else prior.split()[0],
        notes=notes,
    )


def _with_samples(
    members: Sequence[_Opened],
    entries: Sequence[Entry],
    examples: int,
    minutes: float,
    seed: int,
    tell: Callable[[str], Progress],
) -> list[Entry]:
    """The same with samples, and through one classifier what is to be said of them."""
    split, basis = members[0].split, members[0].basis
    if not any(m.model.has_prior for m in members):
        return list(entries)
    try:
        first, second = fidelity.sets(split, examples)
    except DataError as error:
        few = len(split) // 2
        drawn = [_drawn(m, SHOWN, None, minutes, seed, tell) if m.model.has_prior else None for m in members]
        return [
            e if d is None else replace(_shown(e, d), notes=(*e.notes, f"{e.name}: {error} ({few} a set)"))
            for e, d in zip(entries, drawn, strict=True)
        ]
    label = fidelity.labels(split, second)
    looker = _classifier(members, tell)
    done = []
    for member, entry in zip(members, entries, strict=True):
        if not member.model.has_prior:
            done.append(entry)
            continue
        drawn = _drawn(member, len(first), label, minutes, seed, tell)
        entry = _shown(entry, drawn)
        if len(drawn.x) < len(first):
            slow = f"{entry.name}: only {len(drawn.x)} samples in {minutes:g} minutes, too few to say how they look"
            entry = replace(entry, notes=(*entry.notes, slow))
        else:
            entry = replace(entry, fidelity=fidelity.compare(drawn, split, looker, basis.schema, basis.split))
        done.append(entry)
    return done


def _drawn(
    of: _Opened, count: int, label: Tensor | None, minutes: float, seed: int, tell: Callable[[str], Progress]
) -> fidelity.Drawn:
    if of.model.conditional and label is None:
        label = torch.arange(count) % max(1, len(of.basis.schema.classes))
    return fidelity.draw(
        of.model, count, label, seed=seed, seconds=60 * minutes, progress=tell(f"{of.name}: drawing samples")
    )


def _shown(entry: Entry, drawn: fidelity.Drawn) -> Entry:
    return replace(entry, samples=drawn.x[:SHOWN].float(), seconds_per_sample=drawn.seconds)


def _classifier(members: Sequence[_Opened], tell: Callable[[str], Progress]) -> classifier.Classifier:
    """One for all: the first that a run has, else a new one, kept in the first run."""
    data = members[0].data
    of = classifier.fingerprint(data, "train")
    for member in members:
        if (found := classifier.stored(member.run.path / classifier.FILE, data, of)) is not None:
            return found
    return classifier.of_run(members[0].run.path, data, tell("training the classifier"))


# what may be ranked


def differences(bases: Sequence[Basis]) -> tuple[str, ...]:
    """Why no two of these are ranked, a line a pair."""
    return tuple(
        f"groups {m + 1} and {n + 1} are not ranked against each other: {'; '.join(_why(bases[m], bases[n]))}"
        for n in range(len(bases))
        for m in range(n)
    )


def _why(a: Basis, b: Basis) -> list[str]:
    why = []
    if "real" in (a.schema.values, b.schema.values) and a.schema.values != b.schema.values:
        why.append("real values have densities, which depend on the unit, the others probabilities")
    elif a.schema.values != b.schema.values or a.binarize != b.binarize:
        why.append(f"the values differ, {_values(a)} against {_values(b)}")
    if a.schema.shape != b.schema.shape:
        why.append(f"the shapes differ ({'x'.join(map(str, a.schema.shape))}, {'x'.join(map(str, b.schema.shape))})")
    if a.data != b.data:
        why.append(f"the data differ ({a.data}, {b.data})")
    elif a.seed != b.seed and a.contents != b.contents:
        why.append(f"the data were divided by other seeds ({a.seed}, {b.seed}), so the {a.split} splits differ")
    if a.conditional != b.conditional:
        why.append("-log p(x | label) leaves out what the label costs, -log p(x) does not")
    if not why:
        why.append(f"the {a.split} splits hold other examples, labels or values")
    return why


def _values(basis: Basis) -> str:
    kind = {"binary": "binary", "bytes": "8-bit", "real": "real"}[basis.schema.values]
    return f"{kind} by {basis.binarize} binarisation" if basis.binarize else kind


def best(figures: Sequence[tuple[float, float] | None], better: str, alike: Sequence[Any] | None = None) -> list[bool]:
    """Which of the figures (value, standard error) cannot be told from the best by two standard errors of both.

    Args:
        better: `lower`, `higher`, or `one` for shares that are best at 1, by their ratio to it.
        alike: only figures for which this is the same are compared.
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
