"""How to make a run again: the calls, the versions, and the machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tessella
from tessella.evaluation.results import Evaluation
from tessella.foundation.blocks import Block, Call, Calls, Code, Details, Heading, Table
from tessella.models.spec import Spec, TrainOptions
from tessella.training import fitted_priors
from tessella.training.run import Run


def reproduction(run: Run, spec: Spec, e: Evaluation, metrics: list[dict[str, Any]]) -> tuple[Block, ...]:
    """The section of a run's page on how to reproduce it."""
    took = f"{metrics[-1]['step']:,} steps in {duration_text(metrics[-1]['seconds'])}" if metrics else ""
    samples = {"importance_samples": e.importance_bound.samples} if e.importance_bound else {}
    calls = [train_call(spec, run.path, took)]
    if run.prior_in_use is not None:
        home = fitted_priors.prior_home(run.path, run.prior_in_use.split()[0])
        calls.append(prior_call(fitted_priors.read_prior_spec(home), run.path))
    calls += [Call("evaluate", [str(run.path)], samples), Call("report", [str(run.path)])]
    cuda = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = [
        ("trained with", f"tessella {spec.tessella}, seed {spec.training.get('seed', 0)}"),
        (
            "page written with",
            f"tessella {tessella.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        ),
        ("on", f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}{cuda}"),
    ]
    record = Details("the run's specification", [Code(spec.to_json())])
    return Heading("How to reproduce"), Calls(calls), Table(("", ""), versions, figures=()), record


def train_call(spec: Spec, run: Path, note: str = "") -> Call:
    """The call that starts such a run, with every option that is not the default."""
    shown = {k: v for k, v in spec.data.items() if k not in ("spec", "seed")}
    own = {} if spec.config is None else spec.config.changed()
    place = {"data": str(spec.data.get("spec", "?")), "out": str(run)}
    return Call("train", [spec.model], {**place, **own, **_unusual({**spec.training, **shown})}, note)


def prior_call(prior: fitted_priors.PriorSpec, run: Path) -> Call:
    """The call that fits such a prior over the latents of a run."""
    given = {**prior.training, "class_conditional": prior.class_conditional}
    return Call("fit-prior", [str(run)], {"kind": prior.kind, **prior.config.changed(), **_unusual(given)})


def _unusual(given: dict[str, Any]) -> dict[str, Any]:
    """Options of training and of data that are not the default."""
    usual = {**asdict(TrainOptions(steps=1)), "steps": None, "minutes": None, "class_conditional": False}
    return {name: value for name, value in given.items() if value is not None and value != usual.get(name)}


def duration_text(seconds: float) -> str:
    """Seconds in words: `12 minutes`."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "an unnamed processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
