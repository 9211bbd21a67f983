"""Measures runs alike, in groups of comparable runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessella.data import Data, Split
from tessella.evaluation import classifier, fidelity
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.results import Evaluation, GapEvaluation
from tessella.foundation.errors import DataError, SpecError
from tessella.models.base import Model
from tessella.tasks.compare.records import Basis, CompareConfig, ComparedRun, Group
from tessella.training import checkpoint
from tessella.training.run import GAP, Run

SHOWN = 10
"""Number of samples of each run to show."""


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


def measured_groups(config: CompareConfig, device: str | torch.device | None) -> tuple[Group, ...]:
    """Measure all runs, grouped by what can be ranked."""
    together: dict[tuple[Any, ...], list[_Opened]] = {}
    for one in _open(config, device):
        together.setdefault(one.basis.key, []).append(one)
    return tuple(_measured(members, config) for members in together.values())


def _open(config: CompareConfig, device: str | torch.device | None) -> list[_Opened]:
    """Load all runs before any long computation, opening shared data once."""
    paths = [Path(run) for run in config.runs]
    for path in paths:
        checkpoint.read_spec(path)  # before anything is loaded
    if twice := [str(p) for n, p in enumerate(paths) if p.resolve() in [q.resolve() for q in paths[:n]]]:
        raise SpecError(f"{twice[0]} is given twice: compare different runs", code="run-twice")
    known: dict[str, tuple[Data, str]] = {}
    opened = []
    for path, name in zip(paths, run_names(paths), strict=True):
        run = Run(path, device)
        model = run.model()
        key = json.dumps([run.spec.data, model.schema.to_json(), model.conditional], sort_keys=True, default=str)
        if key not in known:
            found = run.data(config.data, model)
            known[key] = found, classifier.data_fingerprint(found, config.split)
        found, contents = known[key]
        basis = Basis(
            data=os.path.basename(found.spec.rstrip("/")) or found.spec,
            split=config.split,
            seed=int(found.options.get("seed") or 0),
            contents=contents,
            schema=found.schema,
            binarize=found.options.get("binarize"),
            conditional=model.conditional,
        )
        opened.append(_Opened(run, name, model, found, basis))
    return opened


def run_names(paths: Sequence[Path]) -> list[str]:
    """Choose the shortest distinct name for each path: its last parts."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(p[-count:]) for p in parts]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


def _measured(members: Sequence[_Opened], config: CompareConfig) -> Group:
    split, basis, own = members[0].split, members[0].basis, config.data is None
    known = [m.run.results.evaluation(basis.split) if own else None for m in members]
    whole = all(e is not None and e.examples == len(split) for e in known)
    entries = []
    for member, before in zip(members, known, strict=True):
        if not whole or before is None:
            how: dict[str, Any] = {"data": member.data.spec, "split_name": basis.split}
            before = evaluate(member.model, split, limit=config.examples, seed=config.seed, **how)
        entries.append(_entry(member, before, member.run.results.load(GAP, GapEvaluation) if own else None))
    entries = _with_samples(members, entries, config)
    shown = split.batch(split.random_rows(SHOWN)).x.float()
    return Group(basis, tuple(entries), shown, whole or config.examples >= len(split))


def _entry(of: _Opened, evaluation: Evaluation, gap: GapEvaluation | None) -> ComparedRun:
    notes = () if of.model.has_bound else (f"{of.name}: an autoencoder has no prior, so no bound and no samples",)
    if of.model.has_prior and not of.model.has_bound:
        notes = (f"{of.name}: z has no distribution q(z | x), so there are samples but no bound",)
    if gap is not None and gap.split != of.basis.split:
        gap, notes = None, (*notes, f"{of.name}: its gap was measured on the split {gap.split}, so it is left out")
    elif gap is not None and not gap.converged:
        gap, notes = None, (*notes, f"{of.name}: its gap is unknown, since annealing did not converge: measure it "
                            "again with more annealing steps")  # fmt: skip
    prior = of.run.prior_in_use
    return ComparedRun(
        run=str(of.run.path),
        name=of.name,
        model=of.model.name,
        evaluation=evaluation,
        gap=gap,
        prior=None if prior is None else prior.split()[0],
        notes=notes,
    )


def _with_samples(
    members: Sequence[_Opened], entries: Sequence[ComparedRun], config: CompareConfig
) -> list[ComparedRun]:
    """Add samples to the entries, and their fidelity by one classifier."""
    split, basis = members[0].split, members[0].basis
    if not any(m.model.has_prior for m in members):
        return list(entries)
    try:
        first, second = fidelity.sets(split, config.examples)
    except DataError as error:
        few = len(split) // 2
        samples = [_sample(m, SHOWN, None, config) if m.model.has_prior else None for m in members]
        return [
            e if d is None else replace(_shown(e, d), notes=(*e.notes, f"{e.name}: {error} ({few} a set)"))
            for e, d in zip(entries, samples, strict=True)
        ]
    label = fidelity.labels(split, second)
    judge = _classifier(members)
    done = []
    for member, entry in zip(members, entries, strict=True):
        if not member.model.has_prior:
            done.append(entry)
            continue
        samples = _sample(member, len(first), label, config)
        entry = _shown(entry, samples)
        if len(samples.x) < len(first):
            slow = f"{entry.name}: only {len(samples.x)} samples in {config.minutes:g} minutes, too few to measure"
            entry = replace(entry, notes=(*entry.notes, slow))
        else:
            entry = replace(entry, fidelity=fidelity.compare_samples(samples, split, judge, basis.schema, basis.split))
        done.append(entry)
    return done


def _sample(of: _Opened, count: int, label: Tensor | None, config: CompareConfig) -> fidelity.TimedSamples:
    if of.model.conditional and label is None:
        label = torch.arange(count) % max(1, len(of.basis.schema.classes))
    return fidelity.timed_samples(of.model, count, label, seed=config.seed, seconds=60 * config.minutes)


def _shown(entry: ComparedRun, samples: fidelity.TimedSamples) -> ComparedRun:
    return replace(entry, samples=samples.x[:SHOWN].float(), seconds_per_sample=samples.seconds)


def _classifier(members: Sequence[_Opened]) -> classifier.Classifier:
    """Return one classifier for all runs: the first that a run holds, else a new one, stored in the first run."""
    data = members[0].data
    of = classifier.data_fingerprint(data, "train")
    for member in members:
        if (found := classifier.stored_classifier(member.run.path / classifier.FILE, data, of)) is not None:
            return found
    return classifier.of_run(members[0].run.path, data)
