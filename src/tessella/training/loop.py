"""The training loop: a budget, a bound, and a run folder that survives anything.

Every step is a function of (weights, optimizer, seed, step): batches and noise are drawn from (seed, step), so
nothing but weights, optimizer and the step's number has to be saved for a resumed run to end where an uninterrupted
one would.
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
from tessella.core.device import autocast
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.core.tensors import read_tensors, write_tensors
from tessella.data import Data, Split, stream
from tessella.foundation import validation
from tessella.foundation.errors import RunError, SpecError, TrainingError
from tessella.foundation.files import kept, place
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.spec import Objective, Spec, TrainOptions
from tessella.training import checkpoint
from tessella.training.callbacks import ModelProbe, Monitor, StepMetrics, ValidationProbe
from tessella.training.processes import started_trackers, together, writing
from tessella.training.step import (
    Average,
    beta_at,
    budget_in_steps,
    draws_at,
    first_bad_tensor,
    first_infinite,
    learning_rate_factor,
    objective,
    parameter_groups,
)

BAD_IN_A_ROW = 5
REMEDY = "try a lower --learning-rate or --precision float32, or look for values of the data that are far too large"


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Attributes:
        stopped: `budget` when it was used up, `signal` when somebody asked to stop.
    """

    run: Path
    steps: int
    seconds: float
    stopped: Literal["budget", "signal"]


def train(
    model: Model,
    data: Data,
    out: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    changed_data: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train `model` on the training split of `data` and leave a run folder at `out`.

    Args:
        options: the budget and how to use it.
        resume: go on from the last checkpoint in `out`; model, data and options must be those it was started with
            (the budget may grow).
        overwrite: replace a run that is there.
        changed_data: resume although the data is not what it was.
        quiet: no progress bar.

    Raises:
        RunError: if `out` is occupied or cannot be written, or is resumed on other data.
        SpecError: if the model was made for other data.
        TrainingError: if the loss stays infinite or NaN; the last good checkpoint stays.
    """
    options = options or TrainOptions()
    if model.schema.shape != data.schema.shape or model.schema.values != data.schema.values:
        raise SpecError(
            f"the model is made for {model.schema.values} values of shape {model.schema.shape}, "
            f"the data has {data.schema.values} values of shape {data.schema.shape}"
        )
    run = Path(out)
    if resume:
        checkpoint.read_spec(run)
    else:
        checkpoint.check_place(run, overwrite=True)  # whoever writes into it is told of first
    config = model.config and model.config.to_record()
    chosen = {
        "model": model.name,
        "config": config,
        **asdict(options),
        **data.facts,
    }
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
        view = ModelProbe(data, options.precision)
        return run_loop(model, data.split("train"), view, run, options, accelerator, resume=resume, quiet=quiet)


def run_loop(
    model: Trainable,
    split: Split,
    view: ValidationProbe,
    run: Path,
    options: TrainOptions,
    accelerator: Accelerator,
    *,
    resume: bool,
    quiet: bool,
) -> TrainResult:
    """Train anything that gives `Terms` on the examples of `split`, with its checkpoints and records in `run`.

    Raises:
        TrainingError: as of `train`.
    """
    try:
        return _Loop(model, split, view, run, options, accelerator, resume=resume, quiet=quiet).go()
    except RuntimeError as error:
        advice = _advice(error, options)
        if advice is None:
            raise
        raise TrainingError(advice) from error


def fit(model: Trainable, split: Split, options: TrainOptions) -> TrainResult:
    """The same training in memory: nothing is measured on the way or written, and the model is left with its averaged
    weights, in evaluation mode.

    Raises:
        TrainingError: as of `train`.
    """
    with together(options) as accelerator:
        loop = _Loop(model, split, None, None, options, accelerator, resume=False, quiet=True)
        done = loop.go()
        loop.settle()
        return done


class Trainable(Protocol):
    """What the loop trains, besides being a module: a `Model`, or what fits priors."""

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
    """One training: what changes from step to step."""

    def __init__(
        self,
        model: Trainable,
        split: Split,
        view: ValidationProbe | None,
        run: Path | None,
        options: TrainOptions,
        accelerator: Accelerator,
        *,
        resume: bool,
        quiet: bool,
    ) -> None:
        self.options, self.accelerator, self.split, self.run = options, accelerator, split, run or Path()
        self.recorded = run is not None and accelerator.is_main_process
        self.step, self.spent, self.bad, self.bad_in_a_row = 0, 0.0, 0, 0
        self.learned, self.first_bad = 0, ""
        self.saved: int | None = None
        """The step of the checkpoint that is there."""
        assert isinstance(model, nn.Module)
        module: nn.Module = model
        if accelerator.device.type in ("cpu", "cuda"):
            module = module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model: Any = module.to(accelerator.device).train()
        self.learning_rate: float = options.learning_rate or model.learning_rate
        self.average = Average(self.model, options.ema_decay)
        fused = accelerator.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, options), lr=self.learning_rate, fused=fused)
        if resume:
            self._restore()
        if options.compile:
            self.model.compile_networks()
        self.parallel: nn.Module = accelerator.prepare_model(self.model)
        self.autocast = autocast(options.precision, self.model.schema, accelerator.device)
        self.total = budget_in_steps(options, len(split), accelerator.num_processes)
        self.monitor = Monitor(
            self.run,
            view,
            dims=self.model.schema.dims,
            resumed_at=self.step if resume else None,
            quiet=quiet,
            active=self.recorded,
            trackers=started_trackers(accelerator, options.track, self.run, self.step) if self.recorded else (),
        )

    def go(self) -> TrainResult:
        options, accelerator = self.options, self.accelerator
        batches = stream(
            self.split,
            options.batch_size,
            seed=options.seed,
            start_step=self.step,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=options.workers,
        )
        started = time.monotonic() - self.spent
        saved = time.monotonic()
        resumed_at = self.step
        stopped: Literal["budget", "signal"] = "budget"
        with _asked_to_stop() as asked, self.monitor:
            while True:
                used, stop = self._agree(time.monotonic() - started, asked.is_set)
                if used >= 1 or stop:
                    stopped = "signal" if stop and used < 1 else "budget"
                    break
                batch = next(batches)
                reading = self._update(batch, used)
                self.step += 1
                self.spent = time.monotonic() - started
                self.monitor.step(self.step, self.spent, used, reading)
                if self.monitor.due(self.spent, used):
                    self._validate(used)
                if self.recorded and time.monotonic() - saved > options.save_every and not self.bad_in_a_row:
                    self.save()
                    saved = time.monotonic()
            self._check_learned(resumed_at)
            if self.recorded:
                if stopped == "budget":
                    self._validate(1.0)
                self.save()
        accelerator.wait_for_everyone()
        return TrainResult(self.run, self.step, self.spent, stopped)

    def settle(self) -> None:
        """Leave the averaged weights in the model."""
        self.average.swap()
        self.model.eval()

    def _agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The fraction of the budget that is used, and whether to stop: the first process's clock, anybody's wish."""
        used = self.step / self.total if self.total else seconds / (60 * (self.options.minutes or 1))
        if self.accelerator.num_processes > 1:
            word = torch.tensor([used if self.accelerator.is_main_process else 0.0, float(stop)], dtype=torch.float64)
            total = self.accelerator.reduce(word.to(self.accelerator.device), reduction="sum")
            assert isinstance(total, Tensor)
            used, stop = float(total[0]), bool(total[1] > 0)
        return used, stop

    def _update(self, batch: Batch, used: float) -> StepMetrics:
        """One step of AdamW, unless the loss or its gradient is not finite."""
        options, accelerator, model = self.options, self.accelerator, self.model
        rate = self.learning_rate * learning_rate_factor(used)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        noise = self._noise("latent")
        x = batch.x.to(accelerator.device, non_blocking=True)
        label = None if batch.label is None else batch.label.to(accelerator.device, non_blocking=True)
        with self.autocast:
            terms: Terms = self.parallel(x, label, noise=noise, draws=draws_at(model.objective, used))
        beta = beta_at(model.objective, used)
        loss = objective(terms, model.objective, beta) / model.schema.dims
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
        zero = loss.new_zeros(())
        rates = zero if terms.rate is None else terms.rate.detach().mean()
        numbers = self._of_all(torch.stack([loss.detach(), norm, terms.distortion.detach().mean(), rates])).tolist()
        if math.isfinite(numbers[0]) and math.isfinite(numbers[1]):
            self.optimizer.step()
            self.average.update(self.step)
            self.bad_in_a_row = 0
            self.learned += 1
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
            bad=self.bad,
        )

    def _noise(self, stream: str) -> Noise:
        a = self.accelerator
        return Noise(self.options.seed, self.step, stream, rank=a.process_index, world=a.num_processes)

    def _of_all(self, numbers: Tensor) -> Tensor:
        """The mean over the processes: what is bad for one is bad for all, or their weights would part."""
        if self.accelerator.num_processes == 1:
            return numbers
        mean = self.accelerator.reduce(numbers, reduction="mean")
        assert isinstance(mean, Tensor)
        return mean

    def _count_bad(self, x: Tensor, label: Tensor | None) -> None:
        self.bad += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row == 1:
            self.first_bad = first_bad_tensor(self.model, x, label, self._noise("latent"))
        if self.bad_in_a_row == BAD_IN_A_ROW:
            raise TrainingError(
                f"training stopped at step {self.step}: {BAD_IN_A_ROW} batches in a row gave a loss or gradient that "
                f"is not finite, first in {self.first_bad}; {self._left()}: {REMEDY}"
            )

    def _check_learned(self, resumed_at: int) -> None:
        """Whether the steps since `resumed_at` have left weights that are worth keeping.

        Raises:
            TrainingError: naming the first bad tensor.
        """
        made = self.step - resumed_at
        if made and not self.learned:
            raise TrainingError(
                f"nothing was learned: all {made} batches gave a loss or gradient that is not finite, first in "
                f"{self.first_bad}; {self._left()}: {REMEDY}"
            )
        if (name := first_infinite(self.model)) is not None:
            raise TrainingError(f"training ended at step {self.step} with {name} not finite; {self._left()}: {REMEDY}")
        if self.accelerator.is_main_process and made > self.learned:
            note(
                f"{made - self.learned} of {made} batches gave a loss or gradient that is not finite, the last time "
                f"first in {self.first_bad}; they were skipped"
            )

    def _left(self) -> str:
        """What a failure leaves."""
        if self.saved is None:
            return "nothing was saved" if self.recorded else "no weights of use are left"
        return f"the last good checkpoint, of step {self.saved:,}, stays in {self.run}"

    def _validate(self, used: float) -> None:
        """Measure the averaged weights on the validation split and draw what they draw."""
        with self.average.swapped_in(self.model):
            self.monitor.validate(self.model, self.step, self.spent, used)

    def save(self) -> None:
        """The checkpoint to go on from, then the weights to use; nothing once weights are not finite."""
        if first_infinite(self.model) is not None:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.tensors.items()}
        names = {id(p): n for n, p in self.model.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{k}.{names[id(parameter)]}": v for k, v in state.items()}
        progress = {"step": self.step, "seconds": self.spent, "bad": self.bad, "bad_in_a_row": self.bad_in_a_row}
        write_tensors(place(self.run, checkpoint.STATE), tensors, progress)
        if self.step > self.bad:  # before the first update there is nothing to use
            weights = {**self.model.state_dict(), **self.average.tensors}
            write_tensors(self.run / checkpoint.MODEL, weights, {"step": self.step})
        self.saved = self.step

    def _restore(self) -> None:
        """Take up the last checkpoint; a run that was stopped before its first one begins anew."""
        if not any((self.run / name).exists() for name in (checkpoint.STATE, checkpoint.MODEL)):
            note(f"{self.run} was stopped before its first checkpoint: it begins anew")
            return
        path = kept(self.run, checkpoint.STATE)
        state = read_tensors(path)
        kinds: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in state.tensors.items():
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, {})[rest] = tensor
        parameters = dict(self.model.named_parameters())
        try:
            self.model.load_state_dict(kinds["model"])
            for name, tensor in kinds["average"].items():
                self.average.tensors[name].copy_(tensor)
            for name, tensor in kinds["optimizer"].items():
                key, _, parameter = name.partition(".")
                p = parameters[parameter]
                value = tensor.reshape(()) if key == "step" else torch.empty_like(p).copy_(tensor)
                self.optimizer.state[p][key] = value.to(p.device)
            whole = {"step", "exp_avg", "exp_avg_sq"}
            if kinds["average"].keys() != self.average.tensors.keys() or any(
                state.keys() != whole for state in self.optimizer.state.values()
            ):
                raise validation.Malformed("it lacks tensors")
            now: _Progress = validation.fitted(_Progress, state.progress, "progress", others=True)
        except (RuntimeError, KeyError, validation.Malformed) as error:
            raise RunError(f"{path} is of another model than asked for") from error
        self.step, self.spent, self.bad, self.bad_in_a_row = now.step, now.seconds, now.bad, now.bad_in_a_row
        self.saved = self.step


@dataclass(frozen=True)
class _Progress:
    """How far a training has come, as its checkpoint says it."""

    step: int
    seconds: float
    bad: int
    bad_in_a_row: int

    def __post_init__(self) -> None:
        if min(self.step, self.seconds, self.bad, self.bad_in_a_row) < 0:
            raise RunError("a training has not come less far than to its beginning")


def _advice(error: RuntimeError, options: TrainOptions) -> str | None:
    """What to do about a failure of the machine that a user can do something about."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return f"batches of {options.batch_size} need more memory than there is: lower --batch-size"
    if options.compile and any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__):
        return "the networks cannot be compiled here, which takes a C++ compiler: install one, or leave --compile out"
    return None


class _Wish:
    is_set = False


@contextmanager
def _asked_to_stop() -> Iterator[_Wish]:
    """Turn Ctrl-C and SIGTERM into a wish to stop after the step; a second Ctrl-C stops at once."""
    wish = _Wish()

    def note(number: int, frame: Any) -> None:
        if wish.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        wish.is_set = True

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield wish
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
