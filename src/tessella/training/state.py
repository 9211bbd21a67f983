"""State of a training between two steps: weights, averaged weights, optimizer and progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessella.core.tensors import read_tensors, write_tensors
from tessella.foundation import validation
from tessella.foundation.errors import RunError
from tessella.foundation.files import kept, place
from tessella.foundation.notes import note
from tessella.models.spec import TrainOptions
from tessella.training.checkpoint import MODEL, STATE


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
        self.saved: int | None = None
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

    def finish(self) -> None:
        """Put the averaged weights into the model for good, in evaluation mode."""
        self.average.swap()
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
        progress = {"step": self.step, "seconds": self.seconds, "bad": self.bad, "bad_in_a_row": self.bad_in_a_row}
        write_tensors(place(run, STATE), tensors, progress)
        if self.step > self.bad:  # before the first update there is nothing to use
            weights = {**self.model.state_dict(), **self.average.tensors}
            write_tensors(run / MODEL, weights, {"step": self.step})
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
        kinds: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
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
        self.step, self.seconds, self.bad, self.bad_in_a_row = now.step, now.seconds, now.bad, now.bad_in_a_row
        self.saved = self.step


@dataclass(frozen=True)
class _Stored:
    """Progress of a training in its checkpoint."""

    step: int
    seconds: float
    bad: int
    bad_in_a_row: int

    def __post_init__(self) -> None:
        if min(self.step, self.seconds, self.bad, self.bad_in_a_row) < 0:
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
