"""State of a training between two steps, and the guard that returns to an earlier one if training diverges."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from torch import Tensor, nn

from tessella.core.tensors import read_tensors, write_tensors
from tessella.foundation import validation
from tessella.foundation.errors import RunError
from tessella.foundation.files import kept, place
from tessella.foundation.notes import note
from tessella.models.spec import TrainOptions
from tessella.training.checkpoint import MODEL, STATE

WINDOW = 20
"""Updates whose median loss is judged, so that single bad batches do not count."""
WINDOWS = 3
"""Windows in a row whose losses must be too high, so that short rises do not count."""
KEPT_EVERY = 50
"""Updates between two copies of a good state."""
MARGIN = 0.35
"""Least rise of the loss, in nats per dimension, that counts as divergence: half a bit."""


class Average:
    """Exponential average of the trained weights; young averages forget faster (Polyak & Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.sources = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self.sources.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = list(self.tensors.values())
        sources: list[Tensor] = list(self.sources.values())
        torch._foreach_lerp_(averages, sources, weight)  # pyright: ignore[reportPrivateImportUsage]

    def swap(self) -> None:
        """Exchange the averaged weights and the weights of the model."""
        for name, source in self.sources.items():
            source.data, self.tensors[name] = self.tensors[name], source.data


class TrainState:
    """State from which a training can resume exactly.

    Args:
        model: model to train, on its device.

    Attributes:
        step: number of steps, including skipped ones.
        seconds: training time.
        used: used fraction of the budget.
        bad, bad_in_a_row: number of skipped batches, in total and since the last good one.
        slowed: factor on the learning rate, halved each time that training diverges.
        recent, first, lowest: losses of the last updates, the first one, and the lowest median (see `Guard`).
        costs: what training lowers, measured on validation examples, of each validation.
        best: averaged weights and buffers with the lowest of them.
        saved: step of the last checkpoint; None if there is none.
        converged: whether a callback asks to stop because training no longer helps.
    """

    def __init__(self, model: nn.Module, options: TrainOptions, learning_rate: float) -> None:
        self.model: Any = model
        self.average = Average(model, options.ema_decay)
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(_parameter_groups(model, options), lr=learning_rate, fused=fused)
        self.step, self.bad, self.bad_in_a_row = 0, 0, 0
        self.seconds = self.used = 0.0
        self.slowed = 1.0
        self.saved: int | None = None
        self.recent: tuple[float, ...] = ()
        self.first: float | None = None
        self.lowest: float | None = None
        self.costs: tuple[float, ...] = ()
        self.best: dict[str, Tensor] = {}
        self.converged = False

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[nn.Module]:
        """Put the averaged weights into the model, in evaluation mode, until the block ends."""
        self.average.swap()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.average.swap()
            self.model.train()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to use: the best validated ones if the last validation was worse, else the averaged."""
        worse = self.costs and self.costs[-1] > min(self.costs)
        return self.best if worse else {**self.model.state_dict(), **self.average.tensors}

    def validated(self, cost: float) -> None:
        """Keep the averaged weights, which the model has now, if no validation had a lower cost."""
        if math.isfinite(cost):
            self.costs = (*self.costs, cost)
            if cost == min(self.costs):
                self.best = {name: t.detach().clone() for name, t in self.model.state_dict().items()}

    def snapshot(self) -> dict[str, Any]:
        """Copy all that a step changes: weights, averaged weights and the optimizer's moments."""
        return copy.deepcopy({
            "model": self.model.state_dict(),
            "average": self.average.tensors,
            "optimizer": self.optimizer.state_dict(),
        })  # fmt: skip

    def go_back(self, snapshot: dict[str, Any]) -> None:
        """Return to a snapshot, with half the learning rate from now on."""
        self.model.load_state_dict(snapshot["model"])
        for name, tensor in snapshot["average"].items():
            self.average.tensors[name].copy_(tensor)
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
        self.slowed /= 2
        self.bad_in_a_row, self.recent = 0, ()

    def finish(self) -> None:
        """Put the weights to use into the model for good, in evaluation mode."""
        self.model.load_state_dict(self.weights())
        self.model.eval()

    def save(self, run: Path) -> None:
        """Save the checkpoint to resume from, then the averaged weights. Save nothing if weights are not finite."""
        if first_not_finite(self.model) is not None:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.tensors.items()}
        names = {id(p): n for n, p in self.model.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{k}.{names[id(parameter)]}": v for k, v in state.items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        progress = {f.name: getattr(self, f.name) for f in fields(_Stored)}
        write_tensors(place(run, STATE), tensors, progress)
        if self.step > self.bad:  # before the first update there is nothing to use
            write_tensors(run / MODEL, self.weights(), {"step": self.step})
        self.saved = self.step

    def restore(self, run: Path) -> None:
        """Load the last checkpoint of a run. Keep the initial state if the run has none.

        Raises:
            RunError: if the checkpoint belongs to another model ("other-model"), or is damaged.
        """
        if not any((run / name).exists() for name in (STATE, MODEL)):
            note(f"{run} was stopped before its first checkpoint: training starts from the beginning")
            return
        path = kept(run, STATE)
        stored = read_tensors(path)
        kinds: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "best": {}}
        for name, tensor in stored.tensors.items():
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
            now: _Stored = validation.fitted(_Stored, stored.progress, "progress", others=True)
        except (RuntimeError, KeyError, validation.Malformed) as error:
            raise RunError(
                f"{path} belongs to another model: resume with the options of the run", code="other-model"
            ) from error
        for name, value in asdict(now).items():
            setattr(self, name, value)
        self.best = kinds["best"]
        self.saved = self.step


@final
class Guard:
    """Watches the loss of each update, in nats per example of the mean number of observed values.

    Let `b` be the lowest median of 20 losses so far, at most the larger one of the first loss and `r`, the loss of
    knowing nothing: that of the marginal distribution of the values, or else the first loss. Training has diverged if
    the median of the last 20 losses is above `b` by half of `r - b`, which is half of what was learned, and by half a
    bit per dimension, and so are those of the 20 updates before and the 20 before those, and nine tenths of all
    60: a short rise passes by itself, and where losses differ from batch to batch, the lowest median is a lucky one.
    Then the last copy of a good state comes back, and the learning rate is halved.

    Args:
        state: state of the training, which also stores the losses, so that a resumed training goes on with them.
        marginal: bound of the marginal distribution in nats per example (None: not known).
        dims: dimensions of an example.
    """

    def __init__(self, state: TrainState, marginal: float | None, dims: int) -> None:
        self.state, self.marginal, self.margin = state, marginal, MARGIN * dims
        self.good: dict[str, Any] = state.snapshot()
        self.good_at, self.good_lowest = state.step, state.lowest

    def after_update(self, loss: float) -> None:
        """Judge the loss of an update, and return to the last good state if training has diverged."""
        state = self.state
        state.first = loss if state.first is None else state.first
        state.recent = (*state.recent, loss)[-WINDOWS * WINDOW :]
        if len(state.recent) < WINDOW:
            return
        medians = [median(state.recent[max(0, end - WINDOW) : end]) for end in range(len(state.recent), 0, -WINDOW)]
        now = medians[0]
        nothing = state.first if self.marginal is None else self.marginal
        lowest = min(now, max(state.first, nothing) if state.lowest is None else state.lowest)
        allowed = max((nothing - lowest) / 2, self.margin)
        tenth = sorted(state.recent)[len(state.recent) // 10]
        if len(state.recent) == WINDOWS * WINDOW and min(*medians, tenth) > lowest + allowed:
            self.go_back(f"the loss rose from {lowest:,.0f} to {now:,.0f} nats")
            return
        state.lowest = lowest
        if state.step - self.good_at >= KEPT_EVERY and now <= lowest + allowed / 4:
            self.good, self.good_at, self.good_lowest = state.snapshot(), state.step, lowest

    def go_back(self, why: str) -> None:
        """Return to the last good state with half the learning rate, and say so."""
        self.state.go_back(self.good)
        self.state.lowest = self.good_lowest  # the good state is judged by what it had reached
        note(
            f"training diverged at step {self.state.step:,}: {why}; it continues from step {self.good_at:,} with "
            f"{self.state.slowed:g} times the learning rate"
        )

    @property
    def can_help(self) -> bool:
        """Return whether training went on since the last good state, so that it may go better from there."""
        return len(self.state.recent) >= WINDOW

    def forget(self) -> None:
        """Judge later losses by themselves, because the objective changed."""
        self.state.recent, self.state.first, self.state.lowest = (), None, None


@dataclass(frozen=True)
class _Stored:
    """Progress of a training in its checkpoint."""

    step: int
    seconds: float
    bad: int
    bad_in_a_row: int
    slowed: float
    recent: tuple[float, ...]
    first: float | None
    lowest: float | None
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.step, self.seconds, self.bad, self.bad_in_a_row, self.slowed) < 0:
            raise RunError("the checkpoint has negative counts: train again", code="damaged")


def _parameter_groups(model: nn.Module, options: TrainOptions) -> list[dict[str, Any]]:
    """Divide the weights into those with weight decay and the others, such as biases."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]


def first_not_finite(model: nn.Module) -> str | None:
    """Name the first weight or buffer that is not finite; None if all are finite."""
    named = [(name, t) for name, t in model.state_dict().items() if t.is_floating_point() and t.numel()]
    if not named or torch.stack([t.detach().isfinite().all() for _, t in named]).all():
        return None
    return next(f"the weights {name}" for name, t in named if not t.isfinite().all())
