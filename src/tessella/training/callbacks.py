"""What a person sees of a training while it runs: progress, metrics, pictures."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from PIL.Image import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import nn

from tessella.core.schema import Precision, bits_per_dim
from tessella.data import Data
from tessella.evaluation.bounds import evaluate
from tessella.foundation import files
from tessella.foundation.errors import RunError
from tessella.foundation.files import kept, place, write_atomic
from tessella.foundation.notes import note
from tessella.foundation.text import json_text
from tessella.kinds import pictures
from tessella.models.base import Model
from tessella.training.checkpoint import METRICS, read_metrics

EVERY = 50
VALIDATE_AT = (0.01, 0.05, *(i / 10 for i in range(1, 10)))
VALIDATION_SHARE = 0.02
"""Of the time that validation may take; the last one is always made."""
EXAMPLES = 500
SHOWN = 16


@dataclass(frozen=True)
class StepMetrics:
    """One training step. Nats per example; `bad` counts the batches that were skipped so far."""

    loss: float
    gradient: float
    distortion: float
    rate: float | None
    beta: float
    learning_rate: float
    examples: int
    bad: int


class ValidationProbe(ABC):
    """What is looked at now and then while something is trained.

    Attributes:
        notes: warnings of the last measurement, in words.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def measure(self, model: Any) -> dict[str, float | None]:
        """Figures on the validation split by name; empty if there is none."""

    @abstractmethod
    def draw(self, model: Any) -> dict[str, Image]:
        """Pictures by name."""


@final
class ModelProbe(ValidationProbe):
    """A model's bound, reconstructions and samples.

    Args:
        precision: of the networks when the model is looked at.
    """

    def __init__(self, data: Data, precision: Precision) -> None:
        self.data = data
        self.precision: Precision = precision
        split = data.splits.get("valid") or data.split("train")
        self.shown = split.batch(split.random_rows(SHOWN))

    def measure(self, model: Model) -> dict[str, float | None]:
        if "valid" not in self.data.splits:
            return {}
        valid = self.data.split("valid")
        e = evaluate(model, valid, limit=EXAMPLES, collapse_examples=0, precision=self.precision, split_name="valid")
        figures = {key: getattr(e, key) for key in ("distortion", "rate", "bound", "bits_per_dim", "mse")}
        if e.codes is not None:
            figures |= {"code_usage": e.codes.code_usage, "perplexity": e.codes.perplexity}
        self.notes = e.notes
        return figures

    @torch.inference_mode()
    def draw(self, model: Model) -> dict[str, Image]:
        x = self.shown.x.to(model.device)
        label = None if self.shown.label is None else self.shown.label.to(model.device)
        made = {"reconstructions": torch.cat([x.float(), model.reconstruct(x, label)])}
        if model.has_prior:
            labels = None if label is None else label.repeat(-(-2 * SHOWN // len(label)))[: 2 * SHOWN]
            made["samples"] = model.sample(2 * SHOWN, labels)
        return {name: pictures.grid(examples, model.schema, columns=len(x)) for name, examples in made.items()}


class Monitor:
    """Keeps `metrics.jsonl` and pictures of a run, tells trackers of both, and shows a progress bar.

    Args:
        view: what to look at now and then; None where nothing is recorded.
        dims: numbers in one example, for bits per dimension.
        resumed_at: the step that the run goes on from; what was noted after it is forgotten. None for a new run.
        quiet: no progress on the terminal.
        active: whether this process is the one that keeps records.
        trackers: others that are told of metrics and pictures.
    """

    def __init__(
        self,
        run: Path,
        view: ValidationProbe | None,
        *,
        dims: int,
        resumed_at: int | None,
        quiet: bool,
        active: bool,
        trackers: Sequence[GeneralTracker] = (),
    ) -> None:
        self.run, self.view, self.dims, self.active, self.trackers = run, view, dims, active, trackers
        self.recent: deque[tuple[float, StepMetrics]] = deque(maxlen=EVERY)
        self.ahead = list(VALIDATE_AT)
        self.drawn = self.validating = 0.0
        self.progress: Progress | None = None
        if not active:
            return
        if resumed_at is not None:
            _forget_after(run, resumed_at)
        console = Console(stderr=True)
        self.plain = not quiet and not console.is_terminal
        if not quiet and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}"))
            self.progress = Progress(*columns, console=console, auto_refresh=False)
            self.task = self.progress.add_task("training", total=1.0, numbers="")

    def __enter__(self) -> Monitor:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.progress:
            self.progress.stop()
        for tracker in self.trackers:
            tracker.finish()

    def step(self, step: int, seconds: float, used: float, reading: StepMetrics) -> None:
        """Note one step; every 50th goes to the files, and the bar moves twice a second."""
        if not self.active:
            return
        self.recent.append((seconds, reading))
        if step % EVERY == 0:
            self._note({"kind": "train", "step": step, "seconds": seconds, "used": used, **self._summary()})
        now = time.monotonic()
        if self.progress and now - self.drawn > 0.5:
            self.drawn = now
            self.progress.update(self.task, completed=min(used, 1.0), numbers=self._line(seconds, used))
            self.progress.refresh()

    def due(self, seconds: float, used: float) -> bool:
        """Say whether to validate now: it is time to, and validation has not taken too much of it yet."""
        passed = [at for at in self.ahead if at <= used]
        self.ahead = self.ahead[len(passed) :]
        return self.active and bool(passed) and self.validating <= VALIDATION_SHARE * seconds

    def validate(self, model: nn.Module, step: int, seconds: float, used: float) -> None:
        """Measure `model` on the validation split and draw what it makes."""
        assert self.view is not None
        started = time.monotonic()
        if figures := self.view.measure(model):
            self._note({"kind": "valid", "step": step, "seconds": seconds, "used": used, **figures})
        for name, image in self.view.draw(model).items():
            path = place(self.run, f"pictures/{name}-{step:08d}.png")
            write_atomic(path, lambda draft, image=image: image.save(draft, format="PNG"))
            for tracker in self.trackers:
                _log_image(tracker, name, image.convert("RGB"), step)
        if self.plain and self.recent:
            print(f"step {step}, {self._line(seconds, used)}", file=sys.stderr, flush=True)
        for line in self.view.notes if used >= 1 else ():
            note(line)
        self.validating += time.monotonic() - started

    def _summary(self) -> dict[str, float | int | None]:
        """The mean of the recent steps."""
        readings = [r for _, r in self.recent]
        distortion = _mean([r.distortion for r in readings])
        rates = [r.rate for r in readings if r.rate is not None]
        rate = _mean(rates) if rates else None
        seconds = self.recent[-1][0] - self.recent[0][0]
        examples = sum(r.examples for r in readings[1:])
        last = readings[-1]
        return {
            "examples_per_second": examples / seconds if seconds > 0 else None,
            "loss": _mean([r.loss for r in readings]),
            "distortion": distortion,
            "rate": rate,
            "bits_per_dim": None if rate is None else bits_per_dim(distortion + rate, self.dims),
            "beta": last.beta,
            "learning_rate": last.learning_rate,
            "gradient": _mean([r.gradient for r in readings]),
            "bad": last.bad,
        }

    def _line(self, seconds: float, used: float) -> str:
        now = self._summary()
        rate, bits, speed = now["rate"], now["bits_per_dim"], now["examples_per_second"]
        parts = [f"{100 * min(used, 1):.0f} %"]
        parts += [f"rate {rate:.1f}"] if rate is not None else []
        parts += [f"distortion {now['distortion']:.1f}"] if now["distortion"] else []  # priors have none
        parts += [f"{bits:.3f} bits/dim"] if bits is not None else []
        parts += [f"{speed:.0f} examples/s"] if speed else []
        left = seconds * (1 - used) / used if used > 0 else 0
        return "  ".join([*parts, f"{int(left // 60)}:{int(left % 60):02d} left"])

    def _note(self, record: dict[str, float | int | str | None]) -> None:
        try:
            files.append(self.run / METRICS, json_text(record) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.run / METRICS} cannot be written ({error.strerror}): free some space, then --resume"
            ) from error
        numbers = {key: value for key, value in record.items() if isinstance(value, float)}
        told = {f"{record['kind']}/{key}": value for key, value in numbers.items() if key not in ("seconds", "used")}
        for tracker in self.trackers:
            tracker.log(told, step=int(record["step"] or 0))


def _log_image(tracker: Any, name: str, image: Image, step: int) -> None:
    """Tell a tracker of a picture, if it takes any."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: [image]}, step=step)


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _forget_after(run: Path, step: int) -> None:
    """Drop what was noted after `step`, and a line that was cut off."""
    if not kept(run, METRICS).is_file():
        return
    text = "".join(f"{json.dumps(record)}\n" for record in read_metrics(run) if record["step"] <= step)
    write_atomic(run / METRICS, lambda draft: draft.write_text(text))
