"""Callbacks of the training loop: metrics and progress, validation, checkpoints."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast, final

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from PIL.Image import Image

from tessella.core.schema import Precision, bits_per_dim
from tessella.data import Data, Split
from tessella.evaluation.bounds import evaluate
from tessella.foundation import files
from tessella.foundation.errors import RunError, option
from tessella.foundation.files import kept, place, write_atomic
from tessella.foundation.notes import note
from tessella.foundation.progress import tracking
from tessella.foundation.text import json_text
from tessella.kinds import pictures
from tessella.models.base import Model
from tessella.training.checkpoint import METRICS, read_metrics
from tessella.training.state import TrainState

EVERY = 50
VALIDATE_AT = (0.01, 0.02, 0.03, *(i / 20 for i in range(1, 20)))
DRAWN_EVERY = 2
"""Validations for one drawing of reconstructions and samples; they are drawn at the end too."""
VALIDATION_SHARE = 0.05
"""Largest share of the training time for validation; the final validation is always made."""
PATIENCE = 4
"""Validations in a row above the best one after which training stops."""
LOST = 0.02
"""Least rise of their cost, as a share of what was learned."""
EXAMPLES = 500
BOUND_ALONE: Any = {"limit": EXAMPLES, "collapse_examples": 0, "quality_examples": 0, "split_name": "valid"}
"""Options of an evaluation during training."""
SHOWN = 16
PARTS = 1000
"""Units into which the budget is divided for progress reports."""
REPORTED = 0.5
"""Seconds between two progress reports."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one training step, in nats per example.

    Attributes:
        values: mean number of observed values of an example.
        bad: number of batches skipped so far.
    """

    loss: float
    gradient: float
    distortion: float
    rate: float | None
    beta: float
    learning_rate: float
    examples: int
    values: float
    bad: int


class ValidationProbe(ABC):
    """Measurements and images for validation during training.

    Attributes:
        notes: warnings of the last measurement, in words.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def measure(self, model: Any) -> dict[str, float | None]:
        """Compute metrics on the validation split, by name; empty without such a split."""

    @abstractmethod
    def cost(self, model: Any, figures: Mapping[str, float | None]) -> float:
        """Compute from the metrics what training lowers, in nats per example."""

    @abstractmethod
    def draw(self, model: Any) -> dict[str, Image]:
        """Render images, by name."""


@final
class ModelProbe(ValidationProbe):
    """Bound, reconstructions and samples of a model.

    Args:
        precision: precision of the networks during validation.
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
        e = evaluate(model, valid, precision=self.precision, **BOUND_ALONE)
        figures = {key: getattr(e, key) for key in ("distortion", "rate", "bound", "bits_per_dim", "mse")}
        if e.codes is not None:
            figures |= {"code_usage": e.codes.code_usage, "perplexity": e.codes.perplexity}
        self.notes = e.notes
        return figures

    def cost(self, model: Model, figures: Mapping[str, float | None]) -> float:
        """Compute distortion + beta * rate; of an autoencoder, which has no rate, the distortion."""
        return (figures["distortion"] or 0.0) + model.objective.beta * (figures["rate"] or 0.0)

    @torch.inference_mode()
    def draw(self, model: Model) -> dict[str, Image]:
        x = self.shown.x.to(model.device)
        label = None if self.shown.label is None else self.shown.label.to(model.device)
        made = {"reconstructions": torch.cat([x.float(), model.reconstruct(x, label)])}
        if model.has_prior:
            labels = None if label is None else label.repeat(-(-2 * SHOWN // len(label)))[: 2 * SHOWN]
            made["samples"] = model.sample(2 * SHOWN, labels)
        return {name: pictures.image_grid(examples, model.schema, columns=len(x)) for name, examples in made.items()}


class Callback(ABC):
    """Callback of the training loop."""

    @abstractmethod
    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Act after one step."""

    @abstractmethod
    def at_end(self, state: TrainState, *, whole: bool) -> None:
        """Act after the last step.

        Args:
            whole: true if the budget is used up, false if training was stopped.
        """


@final
class KeepBest(Callback):
    """Callback that keeps the averaged weights with the lowest validation bound, and stops when it no longer falls.

    Args:
        valid: validation split, of which up to `EXAMPLES` are measured.
        times: number of measurements in the budget.
    """

    def __init__(self, valid: Split, times: int = 20) -> None:
        self.valid, self.times, self.measured = valid, times, 0

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Measure the bound at even shares of the budget."""
        if state.used * self.times < self.measured + 1:
            return
        self.measured = int(state.used * self.times)
        self._measure(state)
        costs = state.costs
        state.converged = len(costs) > PATIENCE and min(costs) < min(costs[-PATIENCE:])

    def at_end(self, state: TrainState, *, whole: bool) -> None:
        self._measure(state)

    def _measure(self, state: TrainState) -> None:
        with state.averaged() as model:
            found = evaluate(cast(Model, model), self.valid, **BOUND_ALONE)
            state.validated(found.distortion if found.bound is None else found.bound)


class Metrics(Callback):
    """Callback that writes `metrics.jsonl` of a run, logs to trackers, and reports progress.

    Args:
        resumed_at: step from which the run is resumed; later records are dropped. None for a new run.
        seconds: budget, if it is a time.
        trackers: trackers that receive metrics and images too.
    """

    def __init__(
        self,
        run: Path,
        *,
        resumed_at: int | None,
        seconds: float | None = None,
        trackers: Sequence[GeneralTracker] = (),
    ) -> None:
        self.seconds = seconds
        self.run, self.trackers = run, trackers
        self.recent: deque[tuple[float, StepMetrics]] = deque(maxlen=EVERY)
        self.reported_at = self.reported = 0.0
        if resumed_at is not None:
            _forget_after(run, resumed_at)

    def __enter__(self) -> Metrics:
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.finish)
            self.advance = stack.enter_context(tracking("training", PARTS))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stack.close()

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Record the mean metrics of every 50 steps, and report progress twice a second."""
        self.recent.append((state.seconds, metrics))
        if state.step % EVERY == 0:
            self.record("train", state, self._summary())
        now = time.monotonic()
        if now - self.reported_at > REPORTED:
            self.reported_at = now
            self._report(state)

    def at_end(self, state: TrainState, *, whole: bool) -> None:
        if self.recent:
            self._report(state)

    def record(self, kind: str, state: TrainState, figures: Mapping[str, float | int | None]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            RunError: if it cannot be written ("disk-full").
        """
        record = {"kind": kind, "step": state.step, "seconds": state.seconds, "used": min(state.used, 1.0), **figures}
        try:
            files.append(self.run / METRICS, json_text(record) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.run / METRICS} cannot be written ({error.strerror}): free disk space, then continue with "
                f"{option('resume')}",
                code="disk-full",
            ) from error
        numbers = {key: value for key, value in figures.items() if isinstance(value, float)}
        for tracker in self.trackers:
            tracker.log({f"{kind}/{key}": value for key, value in numbers.items()}, step=state.step)

    def picture(self, name: str, image: Image, step: int) -> None:
        """Save an image in the run, and log it to the trackers."""
        path = place(self.run, f"pictures/{name}-{step:08d}.png")
        write_atomic(path, lambda draft: image.save(draft, format="PNG"))
        for tracker in self.trackers:
            _log_image(tracker, name, image.convert("RGB"), step)

    def _report(self, state: TrainState) -> None:
        done = PARTS * min(state.used, 1.0)
        left = None if self.seconds is None else max(self.seconds - state.seconds, 0.0)
        self.advance(done - self.reported, self._line(), left)
        self.reported = done

    def _summary(self) -> dict[str, float | int | None]:
        """Average the metrics of the recent steps."""
        readings = [r for _, r in self.recent]
        distortion = _mean([r.distortion for r in readings])
        rates = [r.rate for r in readings if r.rate is not None]
        rate = _mean(rates) if rates else None
        bits = None if rate is None else bits_per_dim(distortion + rate, _mean([r.values for r in readings]))
        seconds = self.recent[-1][0] - self.recent[0][0]
        examples = sum(r.examples for r in readings[1:])
        last = readings[-1]
        return {
            "examples_per_second": examples / seconds if seconds > 0 else None,
            "loss": _mean([r.loss for r in readings]),
            "distortion": distortion,
            "rate": rate,
            "bits_per_dim": bits,
            "beta": last.beta,
            "learning_rate": last.learning_rate,
            "gradient": _mean([r.gradient for r in readings]),
            "bad": last.bad,
        }

    def _line(self) -> str:
        now = self._summary()
        rate, bits, speed = now["rate"], now["bits_per_dim"], now["examples_per_second"]
        parts = [f"rate {rate:.1f}"] if rate is not None else []
        parts += [f"distortion {now['distortion']:.1f}"] if now["distortion"] else []  # priors have none
        parts += [f"{bits:.3f} bits/dim"] if bits is not None else []
        parts += [f"{speed:.0f} examples/s"] if speed else []
        return "  ".join(parts)


class Validation(Callback):
    """Callback that validates the averaged weights at fixed shares of the budget and at the end.

    The weights with the lowest cost are kept. Training stops if the last four validations cost more than the best one
    by a share of what was learned until then.

    Args:
        probe: measurements and images to make.
        metrics: callback that records them.
    """

    def __init__(self, probe: ValidationProbe, metrics: Metrics) -> None:
        self.probe, self.metrics = probe, metrics
        self.ahead: list[float] | None = None
        self.spent, self.made = 0.0, 0

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        if self.ahead is None:  # a resumed training validated at the shares before its last step
            before = state.used * (state.step - 2) / (state.step - 1) if state.step > 1 else -1.0
            self.ahead = [at for at in VALIDATE_AT if at > before]
        passed = [at for at in self.ahead if at <= state.used]
        self.ahead = self.ahead[len(passed) :]
        if passed and self.spent <= VALIDATION_SHARE * state.seconds:
            self._validate(state)

    def at_end(self, state: TrainState, *, whole: bool) -> None:
        if whole:
            self._validate(state, final=True)
            for line in self.probe.notes:
                note(line)

    def _validate(self, state: TrainState, *, final: bool = False) -> None:
        started = time.monotonic()
        with state.averaged() as model:
            if figures := self.probe.measure(model):
                self.metrics.record("valid", state, figures)
                state.validated(self.probe.cost(model, figures))
                state.converged = _rises(state.costs)
            drawn = self.probe.draw(model) if final or self.made % DRAWN_EVERY == 0 else {}
            for name, image in drawn.items():
                self.metrics.picture(name, image, state.step)
        self.made += 1
        self.spent += time.monotonic() - started


def _rises(costs: Sequence[float]) -> bool:
    """Return whether the last four costs are above the lowest one by a share of what was learned."""
    lowest = min(costs, default=0.0)
    return len(costs) > PATIENCE and min(costs[-PATIENCE:]) > lowest + LOST * max(costs[0] - lowest, 0.0)


class Checkpoint(Callback):
    """Callback that saves the training state regularly and at the end.

    Args:
        seconds: seconds between two checkpoints.
    """

    def __init__(self, run: Path, seconds: float) -> None:
        self.run, self.seconds, self.saved_at = run, seconds, time.monotonic()

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        if time.monotonic() - self.saved_at > self.seconds and not state.bad_in_a_row:
            state.save(self.run)
            self.saved_at = time.monotonic()

    def at_end(self, state: TrainState, *, whole: bool) -> None:
        state.save(self.run)


def _log_image(tracker: Any, name: str, image: Image, step: int) -> None:
    """Log an image to a tracker, if the tracker supports images."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: [image]}, step=step)


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _forget_after(run: Path, step: int) -> None:
    """Remove records after `step`, and incomplete lines, from `metrics.jsonl`."""
    if not kept(run, METRICS).is_file():
        return
    text = "".join(f"{json.dumps(record)}\n" for record in read_metrics(run) if record["step"] <= step)
    write_atomic(run / METRICS, lambda draft: draft.write_text(text))
