"""FitResult priors over codes.

The codes of the training and validation splits are made once and kept with the run; then priors of all levels are
fitted together on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast, final

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tessella.core.batches import Batch
from tessella.core.contracts import CodePrior
from tessella.core.device import autocast
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Precision
from tessella.core.tensors import TensorsHeader, read_header, read_tensors, write_tensors
from tessella.data import Data, Split
from tessella.data.splits import Indices
from tessella.foundation.errors import RunError
from tessella.foundation.files import kept
from tessella.foundation.notes import note
from tessella.models.codes import CodeModel
from tessella.training import checkpoint
from tessella.training.prior_trainer import DRAWS, ENCODED, Frozen, Progress


@final
class CodesSplit(Split):
    """The codes of a split's examples, all levels in one row.

    Args:
        codes: `[draws, N, codes]`; of several draws a batch with noise picks one for each example.
        labels: `[N]`, or None.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None, keys: np.ndarray) -> None:
        self._codes, self.example_ids, self.factors = codes, keys, {}
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
class Priors(Frozen):
    """The priors of all levels as the loop trains them: rows of codes to their rate."""

    def __init__(self, model: CodeModel, priors: Sequence[CodePrior]) -> None:
        super().__init__(model)
        model.set_prior(priors)
        self.priors = model.priors.requires_grad_(True)

    @property
    def model(self) -> CodeModel:
        return cast(CodeModel, self._model[0])

    def measuring(self, number: int) -> None:
        """Nothing: the order of the codes is fixed."""

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
    path = kept(run, checkpoint.CODES)
    if accelerator.is_main_process and not _is_of(path, fingerprint, data, model):
        splits = {name: data.split(name) for name in ("train", "valid") if name in data.splits}
        anew = data.options.get("binarize") == "dynamic" or model.objective.iwae_samples > 1
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
        write_tensors(path, tensors, {"codes": fingerprint, "data": data.fingerprint})
    accelerator.wait_for_everyone()
    stored = read_tensors(path).tensors
    return {
        name: CodesSplit(stored[f"{name}.codes"], stored.get(f"{name}.labels"), data.split(name).example_ids)
        for name in ("train", "valid")
        if f"{name}.codes" in stored
    }


@torch.inference_mode()
def _encoded(model: CodeModel, x: Tensor, precision: Precision, noise: Noise | None) -> Tensor:
    """The chosen codes; of a model trained on several draws, with noise, drawn as they were in training."""
    x = x.to(model.device)
    with autocast(precision, model.schema, model.device):
        if noise is None or model.objective.iwae_samples == 1:
            rows = packed(model.encode(x).codes)
        else:
            rows = packed(model.draw_codes(x, noise))
    return rows.to("cpu", torch.int32 if int(rows.max()) > 32767 else torch.int16)


def _is_of(path: Path, fingerprint: str, data: Data, model: CodeModel) -> bool:
    """Whether these are codes of the data by these weights, each of a value that it can have."""
    if not path.is_file():
        return False
    try:
        header = read_header(path)
        if (header.progress.get("codes"), header.progress.get("data")) != (fingerprint, data.fingerprint):
            return False
        _check(header, data, model)
        tensors = read_tensors(path, header).tensors
    except RunError as error:
        note(f"{str(error).partition(': ')[0]}; the codes are made anew")
        return False
    largest = torch.cat([torch.full((math.prod(q.code_shape),), q.codebook_size - 1) for q in model.levels])
    for name, rows in tensors.items():
        most = largest if name.endswith(".codes") else torch.tensor(max(len(data.schema.classes) - 1, 0))
        flat = rows.flatten(0, -2) if rows.dim() > 1 else rows
        if not all(bool(((some >= 0) & (some <= most)).all()) for some in flat.split(ENCODED)):
            note(f"{path}: {name} has values that cannot be; the codes are made anew")
            return False
    return True


def _check(header: TensorsHeader, data: Data, model: CodeModel) -> None:
    """Whether a file holds rows of codes for each example of the data.

    Raises:
        RunError: if it holds anything else.
    """
    width = sum(math.prod(q.code_shape) for q in model.levels)
    wanted = {f"{name}.codes": len(data.split(name)) for name in ("train", "valid") if name in data.splits}
    labelled = {f"{name}.labels" for name in ("train", "valid")}
    for name, (dtype, shape) in header.kinds.items():
        shapes = [(draws, wanted.get(name), width) for draws in (1, DRAWS)] if name in wanted else []
        of_codes = dtype in (torch.int16, torch.int32) and shape in shapes
        of_labels = dtype == torch.int64 and shape == (wanted.get(name.replace("labels", "codes")),)
        if of_codes or (name in labelled and of_labels):
            continue
        raise RunError(f"{header.path} holds {name[:40]!r}, which are no codes of this data by this model")
    if missing := wanted.keys() - header.kinds.keys():
        raise RunError(f"{header.path} holds no {min(missing)}")
