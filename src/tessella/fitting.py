"""Fitting priors over codes: the second stage.

The codes of the training and validation splits are made once and kept with the run; then priors of all levels are
fitted together on them, by the same loop that trained the model.

Imports beside it: checkpoint, monitor, training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor, nn

import tessella
from tessella import checkpoint, pictures, registry
from tessella.checkpoint import PriorSpec
from tessella.contracts import CodePrior
from tessella.data import Data, Split
from tessella.data.splits import Indices
from tessella.errors import RunError, SpecError
from tessella.models.codes import CodeModel
from tessella.monitor import SHOWN, View
from tessella.noise import Noise
from tessella.precision import autocast
from tessella.records import Batch, Precision, Schema, Terms, bits_per_dim
from tessella.spec import Objective, TrainOptions
from tessella.training import Training, run_loop

ENCODED = 250
"""Examples that are encoded at a time."""
DRAWS = 4
"""Times that each training example is encoded where the data draws it anew each time."""
MEASURED = 2000
"""Validation examples that a look measures."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fitting:
    """How fitting a prior ended.

    Attributes:
        training: how the loop ended.
        rate: its mean rate on the whole validation split in nats; None without one, or if it was stopped.
        rate_uniform: what the uniform prior pays.
    """

    training: Training
    rate: float | None
    rate_uniform: float


@final
class CodesSplit(Split):
    """The codes of a split's examples, all levels in one row.

    Args:
        codes: `[draws, N, codes]`; of several draws a batch with noise picks one for each example.
        labels: `[N]`, or None.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None, keys: np.ndarray) -> None:
        self._codes, self.keys, self.factors = codes, keys, {}
        self.labels = None if labels is None else labels.numpy()

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        at = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        draws = len(self._codes)
        which = torch.zeros_like(at) if noise is None else (noise.uniform(len(at)) * draws).long()
        label = None if self.labels is None else torch.from_numpy(self.labels)[at]
        return Batch(self._codes[which, at].long(), label)


@final
class Priors(nn.Module):
    """The priors of all levels as the loop trains them: rows of codes to their rate. The model itself stays."""

    learning_rate: float = 1e-3
    """What suits them at the height of training, unless another is asked for."""

    def __init__(self, model: CodeModel, priors: Sequence[CodePrior]) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        model.adopt(priors)
        self.priors = model.priors.requires_grad_(True)
        self._model = (model,)  # in a tuple, so that its weights are not this module's

    @property
    def model(self) -> CodeModel:
        """The model whose codes they are, with these priors."""
        return self._model[0]

    @property
    def schema(self) -> Schema:
        """The data's, so that a rate in nats per dimension is one of the data's dimensions."""
        return self.model.schema

    @property
    def objective(self) -> Objective:
        return Objective()

    def compile_networks(self) -> None:
        for prior in self.priors:
            prior.compile()

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Rows of codes `[B, codes]` to their rate, a part a level; there is no distortion."""
        codes = unpacked(self.model, x)
        log_p = self.model.log_prob_codes(codes, label, noise=noise)
        rates = -torch.stack([level.flatten(1).sum(1) for level in log_p], 1)
        return Terms(torch.zeros_like(rates[:, 0]), rates.sum(1), rates)


def packed(codes: Sequence[Tensor]) -> Tensor:
    """The codes of all levels in one row, `[B, codes]`."""
    return torch.cat([c.flatten(1) for c in codes], 1)


def unpacked(model: CodeModel, rows: Tensor) -> tuple[Tensor, ...]:
    """What `packed` packed."""
    sizes = [int(np.prod(shape)) for shape in model.code_shapes]
    parts = rows.split(sizes, 1)
    return tuple(part.reshape(len(rows), *shape) for part, shape in zip(parts, model.code_shapes, strict=True))


@final
class _PriorView(View):
    """The rate on the validation split, and samples."""

    def __init__(self, model: CodeModel, valid: Split | None, options: TrainOptions) -> None:
        self.model, self.valid = model, valid
        self.precision: Precision = options.precision

    def measure(self, model: Priors) -> dict[str, float | None]:
        if self.valid is None:
            return {}
        rate = mean_rate(model, self.valid, precision=self.precision, limit=MEASURED)
        return {"rate": rate, "bits_per_dim": bits_per_dim(rate, model.schema.dims)}

    @torch.inference_mode()
    def draw(self, model: Priors) -> dict[str, Image]:
        label = torch.arange(2 * SHOWN) % max(1, len(model.schema.classes)) if model.model.conditional else None
        drawn = model.model.sample(2 * SHOWN, None if label is None else label.to(model.model.device))
        return {"samples": pictures.grid(drawn, model.schema, columns=SHOWN)}


def fit_prior(
    run: str | os.PathLike[str],
    data: Data,
    kind: str,
    options: TrainOptions | None = None,
    *,
    width: int | None = None,
    depth: int | None = None,
    class_conditional: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    progress: Progress | None = None,
) -> Fitting:
    """Fit a prior of that kind over the codes of a run's model, and keep it in the run.

    Args:
        run: the run folder of a model of codes.
        data: the data that it was trained on.
        kind: a name of the catalogue.
        options: the budget and how to use it.
        width, depth: of the prior's networks.
        class_conditional: let it see the label: p(codes | label).
        resume: go on from its last checkpoint.
        overwrite: replace a prior of that kind that is there.
        progress: told (examples encoded, examples in all) while the codes are made.

    Raises:
        SpecError: if the model has no codes, the kind cannot be fitted, or labels are missing.
        RunError: if there is such a prior already, or none to go on with.
    """
    options = options or TrainOptions()
    model = checkpoint.read_spec(run).build()
    if not isinstance(model, CodeModel):
        raise SpecError(f"the model {model.name} of {run} has no codes, so no prior over codes: train a vqvae")
    checkpoint.load(run, into=model, prior="uniform")
    _check(model, data, kind, width, depth, class_conditional=class_conditional)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = model.to(accelerator.device)
    home = checkpoint.prior_home(Path(run), kind)
    fingerprint = checkpoint.fingerprint(run)
    spec = PriorSpec(kind, fingerprint, width, depth, class_conditional, asdict(options), tessella.__version__)
    if resume:
        before = checkpoint.read_prior_spec(home)
        if before.codes != fingerprint:
            raise RunError(f"{home} was fitted on codes of other weights ({before.codes}, now {fingerprint}): "
                           "fit it again with --overwrite")  # fmt: skip
        spec = replace(before, training=asdict(options))  # a resumed budget is the one that counts
    splits = cached_codes(Path(run), model, data, options.precision, fingerprint, accelerator, progress)
    if not resume and accelerator.is_main_process:
        checkpoint.prepare_run(home, overwrite=overwrite)
        checkpoint.write_prior_spec(home, spec)
    accelerator.wait_for_everyone()
    torch.manual_seed(options.seed)
    priors = Priors(model, checkpoint.priors_of(model, spec)).to(accelerator.device)
    view = _PriorView(model, splits.get("valid"), options)
    done = run_loop(priors, splits["train"], view, home, options, accelerator, resume=resume, quiet=quiet)
    uniform = sum(int(np.prod(q.code_shape)) * float(np.log(q.codebook_size)) for q in model.levels)
    if done.stopped == "signal" or "valid" not in splits:
        return Fitting(done, None, uniform)
    model.eval()
    checkpoint.load_prior(home, model)
    rate = mean_rate(priors, splits["valid"], precision=options.precision)
    if accelerator.is_main_process:
        checkpoint.write_prior_spec(home, spec.with_rate(rate))
    return Fitting(done, rate, uniform)


def _check(
    model: CodeModel, data: Data, kind: str, width: int | None, depth: int | None, *, class_conditional: bool
) -> None:
    """What can be known to be wrong before anything is encoded."""
    registry.find("code-prior", kind)
    if kind == "uniform":
        raise SpecError("the uniform prior has nothing to fit; choose pixelcnn, transformer or masked")
    for name, value in (("width", width), ("depth", depth)):
        if value is not None and value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")
    if class_conditional and not data.schema.classes:
        raise SpecError(f"{data.spec} has no labels: leave --class-conditional out")
    if class_conditional and data.schema.classes != model.schema.classes:
        raise SpecError(f"{data.spec} has other classes than the model was trained on: leave --class-conditional out")


@torch.inference_mode()
def mean_rate(priors: Priors, split: Split, *, precision: Precision, limit: int | None = None) -> float:
    """The mean rate of a split's codes in nats."""
    training = priors.training
    priors.eval()
    device, total = priors.model.device, min(len(split), limit or len(split))
    order = np.argsort(split.keys)[:total]
    nats = 0.0
    for first in range(0, total, ENCODED):
        batch = split.batch(order[first : first + ENCODED])
        label = None if batch.label is None else batch.label.to(device)
        with autocast(precision, priors.schema, device):
            nats += float(priors(batch.x.to(device), label).rate.double().sum())
    priors.train(training)
    return nats / total


def cached_codes(
    run: Path,
    model: CodeModel,
    data: Data,
    precision: Precision,
    fingerprint: str,
    accelerator: Accelerator,
    progress: Progress | None = None,
) -> dict[str, Split]:
    """The codes of the training and validation splits, made once for a model's weights and kept in the run."""
    path = run / checkpoint.CODES
    if accelerator.is_main_process and not _is_of(path, fingerprint, data):
        splits = {name: data.split(name) for name in ("train", "valid") if name in data.splits}
        anew = data.options.get("binarize") == "dynamic" or model.objective.draws > 1
        draws = {name: DRAWS if name == "train" and anew else 1 for name in splits}
        total = sum(draws[name] * len(split) for name, split in splits.items())
        tensors: dict[str, Tensor] = {}
        done = 0
        for name, split in splits.items():
            rows, labels = [], []
            for draw in range(draws[name]):
                for first in range(0, len(split), ENCODED):
                    at = np.arange(first, min(first + ENCODED, len(split)))
                    noise = Noise(draw, first, "codes") if draws[name] > 1 else None
                    batch = split.batch(at, noise)
                    rows.append(_encoded(model, batch.x, precision, noise))
                    labels += [batch.label] if draw == 0 and batch.label is not None else []
                    done += len(at)
                    if progress:
                        progress(done, total)
            tensors[f"{name}.codes"] = torch.cat(rows).unflatten(0, (draws[name], len(split)))
            if labels:
                tensors[f"{name}.labels"] = torch.cat(labels)
        checkpoint.write_tensors(path, tensors, {"codes": fingerprint, "data": data.spec})
    accelerator.wait_for_everyone()
    kept = checkpoint.read_tensors(path).tensors
    return {
        name: CodesSplit(kept[f"{name}.codes"], kept.get(f"{name}.labels"), data.split(name).keys)
        for name in ("train", "valid")
        if f"{name}.codes" in kept
    }


@torch.inference_mode()
def _encoded(model: CodeModel, x: Tensor, precision: Precision, noise: Noise | None) -> Tensor:
    """The chosen codes; of a model trained on several draws, with noise, drawn as they were in training."""
    x = x.to(model.device)
    with autocast(precision, model.schema, model.device):
        if noise is None or model.objective.draws == 1:
            rows = packed(model.encode(x).codes)
        else:
            rows = packed(model.draw_codes(x, noise))
    return rows.to("cpu", torch.int32 if int(rows.max()) > 32767 else torch.int16)


def _is_of(path: Path, fingerprint: str, data: Data) -> bool:
    try:
        progress: dict[str, Any] = checkpoint.read_tensors(path).progress
    except RunError:
        return False
    return progress.get("codes") == fingerprint and progress.get("data") == data.spec
