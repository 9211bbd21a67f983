"""Training loop with a budget and a run folder from which it can resume.

Each step is a function of (weights, optimizer, seed, step): batches and noise depend on (seed, step) only. So a
checkpoint needs only the weights, the optimizer and the step number, and a resumed run gives the result of an
uninterrupted one.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import tessella
from tessella.core.batches import Batch
from tessella.core.device import autocast, thread_count
from tessella.core.observed import count_observed
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data import Data, Split, stream
from tessella.evaluation.verdict.marginal import marginal_bound
from tessella.foundation.errors import SpecError, TrainingError, option
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.spec import Objective, Spec, TrainOptions
from tessella.training import checkpoint
from tessella.training.callbacks import (
    Callback,
    Checkpoint,
    KeepBest,
    Metrics,
    ModelProbe,
    StepMetrics,
    Validation,
    ValidationProbe,
)
from tessella.training.processes import started_trackers, together, writing
from tessella.training.state import Guard, TrainState, first_not_finite
from tessella.training.step import (
    beta_at,
    budget_in_steps,
    clipped_norm,
    draws_at,
    first_bad_tensor,
    learning_rate_factor,
    objective,
    separately_trained,
    usual_batch_size,
)

BAD_IN_A_ROW = 5
REMEDY = (
    f"try a lower {option('learning_rate')} or {option('precision')} float32, or check the data for extremely large "
    "values"
)


@dataclass(frozen=True)
class TrainResult:
    """Result of a training.

    Attributes:
        run: run folder.
        steps: number of steps taken.
        seconds: training time.
        stopped: `budget` if the budget was used up, `converged` if validation examples no longer gained from training,
            `signal` if it was interrupted.
    """

    run: Path
    steps: int
    seconds: float
    stopped: Literal["budget", "converged", "signal"]


def train(
    model: Model,
    data: Data,
    out: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    changed_data: bool = False,
) -> TrainResult:
    """Train `model` on the training split of `data`, and write a run folder at `out`.

    Args:
        options: training options, with the budget.
        resume: continue from the last checkpoint in `out`, with the same model, data and options (the budget may grow).
        overwrite: replace an existing run.
        changed_data: resume even if the data has changed.

    Raises:
        RunError: if `out` exists or cannot be written, or is resumed on other data.
        SpecError: if the model does not fit the data.
        TrainingError: if the loss stays infinite or NaN; the last good checkpoint is kept.
    """
    options = options or TrainOptions()
    options = replace(options, batch_size=options.batch_size or usual_batch_size(model.schema.dims))
    if model.schema.shape != data.schema.shape or model.schema.values != data.schema.values:
        raise SpecError(
            f"the model expects {model.schema.values} values of shape {model.schema.shape}, but the data has "
            f"{data.schema.values} values of shape {data.schema.shape}: build the model with the schema of the data",
            code="other-data",
        )
    run = Path(out)
    if resume:
        checkpoint.read_spec(run)
    else:
        checkpoint.check_place(run, overwrite=True)  # an existing run is an error only after a lock on it
    config = model.config and model.config.to_record()
    chosen = {"model": model.name, "config": config, **asdict(options), **data.facts}
    with writing(run, options, chosen) as accelerator:
        if resume:
            before = checkpoint.read_spec(run)
            data.check_resumes(run, before.data, changed_data=changed_data)
            spec = replace(before, data=data.record, training=asdict(options))
        else:
            spec = Spec(model.name, model.schema, model.config, data.record, asdict(options), tessella.__version__)
        if accelerator.is_main_process:
            run = run if resume else checkpoint.prepare_run(run, overwrite=overwrite)
            checkpoint.write_spec(run, spec)
        accelerator.wait_for_everyone()
        probe, train_split = ModelProbe(data, options.precision), data.split("train")
        marginal = marginal_bound(train_split, model.schema)
        return run_loop(model, train_split, probe, run, options, accelerator, resume=resume, marginal=marginal)


def run_loop(
    model: Trainable,
    split: Split,
    probe: ValidationProbe,
    run: Path,
    options: TrainOptions,
    accelerator: Accelerator,
    *,
    resume: bool,
    marginal: float | None,
) -> TrainResult:
    """Train a model or a prior, with checkpoints and metrics in the folder `run`.

    Args:
        marginal: loss of knowing nothing, in nats per example, from which divergence is told; None: not known.

    Raises:
        TrainingError: if the loss stays infinite or NaN, or memory or a compiler is missing.
    """
    try:
        loop = _Loop(model, split, options, accelerator, run, resume=resume, marginal=marginal)
        if not accelerator.is_main_process:
            return loop.go()
        metrics = Metrics(
            run,
            resumed_at=loop.state.step if resume else None,
            seconds=options.minutes and 60 * options.minutes,
            trackers=started_trackers(accelerator, options.track, run, loop.state.step),
        )
        with metrics:
            return loop.go(metrics, Validation(probe, metrics), Checkpoint(run, options.save_every))
    except RuntimeError as error:
        if (better := _better_error(error, options)) is None:
            raise
        raise better from error


def fit(model: Trainable, split: Split, options: TrainOptions, valid: Split | None = None) -> TrainResult:
    """Train a model in memory, without files.

    The model then has its averaged weights and is in evaluation mode.

    Args:
        valid: validation split of a `Model`; the weights that are best on it are kept, and training stops when it no
            longer improves.

    Raises:
        TrainingError: if the loss stays infinite or NaN.
    """
    with together(options) as accelerator:
        loop = _Loop(model, split, options, accelerator)
        done = loop.go(*([] if valid is None else [KeepBest(valid)]))
        loop.state.finish()
        return done


class Trainable(Protocol):
    """Module that the loop can train: a `Model` or a `PriorTrainer`."""

    @property
    def schema(self) -> Schema: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def learning_rate(self) -> float: ...

    def compile_networks(self) -> None: ...

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms: ...


class _Loop:
    """State and steps of one training.

    Args:
        run: run folder; None to train in memory.
        resume: continue from the last checkpoint in `run`.
    """

    def __init__(
        self,
        model: Trainable,
        split: Split,
        options: TrainOptions,
        accelerator: Accelerator,
        run: Path | None = None,
        *,
        resume: bool = False,
        marginal: float | None = None,
    ) -> None:
        self.options, self.accelerator, self.split, self.run = options, accelerator, split, run
        self.learned, self.first_bad, self.final_beta = 0, "", True
        assert isinstance(model, nn.Module)
        module: nn.Module = model
        if accelerator.device.type in ("cpu", "cuda"):
            module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model: Any = module.to(accelerator.device).train()
        self.learning_rate: float = options.learning_rate or model.learning_rate
        self.groups = separately_trained(self.model)
        self.state = TrainState(self.model, options, self.learning_rate)
        if resume and run is not None:
            self.state.restore(run)
        self.guard = Guard(self.state, marginal, self.model.schema.dims)
        if options.compile == "yes":
            self.model.compile_networks()
        self.parallel: nn.Module = accelerator.prepare_model(self.model)
        self.autocast = autocast(options.precision, self.model.schema, accelerator.device)
        self.batch_size = options.batch_size or usual_batch_size(self.model.schema.dims)
        self.total = budget_in_steps(options, len(split), self.batch_size * accelerator.num_processes)

    def go(self, *callbacks: Callback) -> TrainResult:
        """Train until the budget is used up or a signal asks to stop."""
        options, accelerator, state = self.options, self.accelerator, self.state
        batches = stream(
            self.split,
            self.batch_size,
            seed=options.seed,
            start_step=state.step,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=options.workers,
        )
        started, resumed_at = time.monotonic() - state.seconds, state.step
        with _asked_to_stop() as asked, thread_count(options.threads):
            while True:
                state.used, stop = self._agree(time.monotonic() - started, asked.is_set)
                if state.used >= 1 or stop or state.converged:
                    break
                metrics = self._update(next(batches))
                state.step += 1
                state.seconds = time.monotonic() - started
                for callback in callbacks:
                    callback.after_step(state, metrics)
            self._check_learned(resumed_at)
            whole = state.used >= 1 or state.converged
            stopped = "converged" if state.converged else "budget" if whole else "signal"
            for callback in callbacks:
                callback.at_end(state, whole=whole)
        accelerator.wait_for_everyone()
        return TrainResult(self.run or Path(), state.step, state.seconds, stopped)

    def _agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Agree with all processes on the used budget and convergence (process 0's), and on stopping (if one asks)."""
        used = self.state.step / self.total if self.total else seconds / (60 * (self.options.minutes or 1))
        if self.accelerator.num_processes > 1:
            first = self.accelerator.is_main_process  # only it validates
            mine = [used if first else 0.0, float(stop), float(first and self.state.converged)]
            word = torch.tensor(mine, dtype=torch.float64)
            total = self.accelerator.reduce(word.to(self.accelerator.device), reduction="sum")
            assert isinstance(total, Tensor)
            used, stop, self.state.converged = float(total[0]), bool(total[1] > 0), bool(total[2] > 0)
        return used, stop

    def _update(self, batch: Batch) -> StepMetrics:
        """Update the weights by one step of AdamW, unless loss or gradient is not finite."""
        options, accelerator, model, state, used = (
            self.options,
            self.accelerator,
            self.model,
            self.state,
            self.state.used,
        )
        rate = self.learning_rate * state.slowed * learning_rate_factor(used, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        noise = self._noise("latent")
        x = batch.x.to(accelerator.device, non_blocking=True)
        label = None if batch.label is None else batch.label.to(accelerator.device, non_blocking=True)
        with self.autocast:
            terms: Terms = self.parallel(x, label, noise=noise, draws=draws_at(model.objective, used))
        beta = beta_at(model.objective, used)
        loss = objective(terms, model.objective, beta) / model.schema.dims
        accelerator.backward(loss)
        norm = clipped_norm(self.groups, options.grad_clip)
        zero = loss.new_zeros(())
        rates = zero if terms.rate is None else terms.rate.detach().mean()
        measured = [loss.detach(), norm, terms.distortion.detach().mean(), rates, zero + self._values(batch.x)]
        *numbers, values = self._of_all(torch.stack(measured)).tolist()
        if math.isfinite(numbers[0]) and math.isfinite(numbers[1]):
            state.optimizer.step()
            state.average.update(state.step)
            state.bad_in_a_row = 0
            self.learned += 1
            self._watch(numbers, beta, model.schema.observed_dims / max(values, 1e-6))
        else:
            self._count_bad(x, label)
        return StepMetrics(
            loss=numbers[0] * model.schema.dims,
            gradient=numbers[1],
            distortion=numbers[2],
            rate=None if terms.rate is None else numbers[3],
            beta=beta,
            learning_rate=rate,
            examples=len(x) * accelerator.num_processes,
            values=values,
            bad=state.bad,
        )

    def _values(self, x: Tensor) -> float:
        """Return the mean number of observed values of an example."""
        schema = self.model.schema
        whole = not schema.partial or x.shape[1:] != schema.shape  # rows of a prior are no examples
        return schema.observed_dims if whole else count_observed(x) / len(x)

    def _watch(self, numbers: list[float], beta: float, scale: float) -> None:
        """Let the guard judge the loss; while the weight of the rate rises, only the distortion.

        Args:
            scale: factor to nats of an example with the mean number of observed values; batches are of one length.
        """
        final = beta == beta_at(self.model.objective, 1.0)
        if final != self.final_beta:
            self.guard.forget()
            self.final_beta = final
        self.guard.after_update(scale * (numbers[0] * self.model.schema.dims if final else numbers[2]))

    def _noise(self, stream: str) -> Noise:
        a = self.accelerator
        return Noise(self.options.seed, self.state.step, stream, rank=a.process_index, world=a.num_processes)

    def _of_all(self, numbers: Tensor) -> Tensor:
        """Average over the processes, so that all skip the same batches and keep equal weights."""
        if self.accelerator.num_processes == 1:
            return numbers
        mean = self.accelerator.reduce(numbers, reduction="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _count_bad(self, x: Tensor, label: Tensor | None) -> None:
        state = self.state
        state.bad += 1
        state.bad_in_a_row += 1
        if state.bad_in_a_row == 1:
            self.first_bad = first_bad_tensor(self.model, x, label, self._noise("latent"))
        if state.bad_in_a_row < BAD_IN_A_ROW:
            return
        if self.guard.can_help:
            self.guard.go_back(f"{BAD_IN_A_ROW} batches in a row gave a loss or gradient that is not finite")
        else:
            raise TrainingError(
                f"training stopped at step {state.step}: {BAD_IN_A_ROW} batches in a row gave a loss or gradient that "
                f"is not finite, first in {self.first_bad}; {self._left()}; {REMEDY}",
                code="not-finite",
            )

    def _check_learned(self, resumed_at: int) -> None:
        """Check that the steps since `resumed_at` updated the weights, and that all weights are finite.

        Raises:
            TrainingError: if not, with the first bad tensor.
        """
        made = self.state.step - resumed_at
        if made and not self.learned:
            raise TrainingError(
                f"nothing was learned: all {made} batches gave a loss or gradient that is not finite, first in "
                f"{self.first_bad}; {self._left()}; {REMEDY}",
                code="nothing-learned",
            )
        if (name := first_not_finite(self.model)) is not None:
            raise TrainingError(
                f"training ended at step {self.state.step} with {name} not finite; {self._left()}; {REMEDY}",
                code="not-finite",
            )
        if self.accelerator.is_main_process and made > self.learned:
            note(
                f"{made - self.learned} of {made} batches gave a loss or gradient that is not finite and were skipped; "
                f"the first bad tensor of the last one was {self.first_bad}"
            )

    def _left(self) -> str:
        """Describe what was saved before a failure."""
        if self.state.saved is None:
            return "the weights cannot be used" if self.run is None else "nothing was saved"
        return f"the last good checkpoint (step {self.state.saved:,}) is kept in {self.run}"


def without_compiler(error: RuntimeError) -> bool:
    """Return whether the error says that networks cannot be compiled on this machine."""
    return any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__)


def _better_error(error: RuntimeError, options: TrainOptions) -> TrainingError | None:
    """Return a better error for a lack of memory or of a compiler, else None."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        lower = f"lower {option('batch_size')}"
        return TrainingError(
            f"there is not enough memory for batches of {options.batch_size}: {lower}", code="out-of-memory"
        )
    if options.compile == "yes" and without_compiler(error):
        return TrainingError(
            f"the networks cannot be compiled without a C++ compiler: install one, or give {option('compile')} no",
            code="no-compiler",
        )
    return None


class _Wish:
    is_set = False


@contextmanager
def _asked_to_stop() -> Iterator[_Wish]:
    """Handle Ctrl-C and SIGTERM by stopping after the current step. A second Ctrl-C stops at once."""
    wish = _Wish()

    def ask(number: int, frame: Any) -> None:
        if wish.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        wish.is_set = True

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread can handle signals
        before = {}
    try:
        yield wish
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
