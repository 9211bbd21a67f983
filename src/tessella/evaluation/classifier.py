"""Classifier whose features fidelity is measured in, trained on the training split of the same data.

With labels, it learns to predict the class. Without labels, it learns the task of the kind of data: to recognise the
pose of an example (for pictures, the quarter turn), or to reconstruct it through a narrow layer. The features are the
activations of the last hidden layer, divided by one number so that their total variance on the training split is 1.

So fidelity needs no download and fits any data, but numbers can only be compared if they come from the same classifier.
It is trained once and stored with the run, with the fingerprint of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessella.core.device import precise
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.core.tensors import read_tensors, write_tensors
from tessella.data import Data, Split, batches
from tessella.foundation.errors import RunError
from tessella.foundation.progress import track
from tessella.kinds.base import kind_of
from tessella.networks.conv import pooled_features

FILE = "classifier.safetensors"
FEATURES = 64
SEEN, PASSES = 60_000, 20
"""Training examples that it sees, and the most passes over the training split."""
BATCH, LEARNING_RATE = 64, 2e-3
JUDGED = 5000
"""Most examples from which its score, or the variance of the features, is computed."""
AT_ONCE = 500
HASHED = 256
VERSION = 1


@final
class Classifier(nn.Module):
    """Maps stored values to features, and to the predictions of its task.

    Args:
        schema: shape and values of an example.
        task: what the classifier is trained for: `class`, or the probe task of the kind of data.
    """

    scale: Tensor

    def __init__(self, schema: Schema, task: str) -> None:
        super().__init__()
        self.schema, self.task = schema, task
        self.score: float | None = None
        self.fingerprint = ""
        poses = len(kind_of(schema).poses(torch.zeros(1, *schema.shape)))
        answers = len(schema.classes) if task == "class" else poses or schema.dims
        self.body = pooled_features(schema.shape, FEATURES) if schema.rank else _for_vector(schema.dims)
        self.head = nn.Linear(FEATURES, answers)
        self.register_buffer("scale", torch.ones(()))

    @property
    def names_classes(self) -> bool:
        """Return whether it predicts the class."""
        return self.task == "class"

    def forward(self, x: Tensor) -> Tensor:
        """Predict logits `[B, answers]`, or standardized values for an autoencoder, from stored `[B, *shape]`."""
        return self.head(self.body(self.standard(x)))

    def standard(self, x: Tensor) -> Tensor:
        """Standardize stored values to float32 of about unit scale."""
        s = self.schema
        if s.values.discrete:
            return (x.float() - s.values.low) * (2 / s.values.span) - 1
        per = (-1, *(1,) * s.rank)
        center, scale = (torch.tensor(v, device=x.device).view(per) for v in (s.center, s.scale))
        return (x.float() - center) / scale.clamp_min(1e-6)

    @torch.inference_mode()
    def features(self, x: Tensor) -> Tensor:
        """Compute the features `[B, 64]` of stored values `[B, *shape]`.

        They are float32 on the CPU; `B` may be large, as it is divided into batches.
        """
        return self._in_parts(x, lambda part: self.body(self.standard(part)) / self.scale)

    @torch.inference_mode()
    def classes(self, x: Tensor) -> Tensor:
        """Predict the class of each example, `[B]` int64."""
        return self._in_parts(x, lambda part: self(part).argmax(1))

    def _in_parts(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        device = self.scale.device
        return torch.cat([of(part.to(device)).cpu() for part in x.split(AT_ONCE)])


def _for_vector(dims: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dims, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, FEATURES))


def task_for(data: Data) -> str:
    """Choose the task that can be learned from this data."""
    schema, train = data.schema, data.split("train")
    if train.labels is not None and len(schema.classes) > 1:
        return "class"
    return kind_of(schema).probe


def data_fingerprint(data: Data, *splits: str) -> str:
    """Compute a fingerprint of the values, labels and classes of some splits, 12 hexadecimal digits.

    Values are taken from some hundred examples spread over each split, so that large data need not be read whole.

    Args:
        splits: names of the splits; all by default.
    """
    digest = hashlib.sha256(repr((data.schema.shape, data.schema.values.name, data.schema.classes)).encode())
    digest.update(str(data.options.get("binarize")).encode())
    for name in splits or tuple(data.splits):
        split = data.split(name)
        digest.update(f"{name} {len(split)}".encode())
        digest.update(np.ascontiguousarray(split.example_ids).tobytes())
        digest.update(b"" if split.labels is None else np.ascontiguousarray(split.labels, np.int64).tobytes())
        digest.update(np.ascontiguousarray(split.batch(split.random_rows(HASHED)).x.numpy()).tobytes())
    return digest.hexdigest()[:12]


def train_classifier(
    data: Data,
    *,
    seen: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train a classifier on the training split.

    Args:
        seen: number of training examples, sampled with replacement; by default 60,000 or 20 passes, whichever is less.
    """
    train, task = data.split("train"), task_for(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(data.schema, task)
    model = model.to(device).train()
    steps = max(1, -(-(seen or min(SEEN, PASSES * len(train))) // BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
    for step in track(range(steps), "training the classifier"):
        noise = Noise(seed, step, "classifier")
        at = (noise.uniform(BATCH) * len(train)).long().clamp_max(len(train) - 1)
        batch = train.batch(at, noise.split("data"))
        x, answer = _posed(model, batch.x.to(device), batch.label, noise.split("task"))
        loss = _loss(model, x, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    rows = train.random_rows(JUDGED)
    spread = float(precise(model.features(train.batch(rows).x)).var(0).sum())
    model.scale.fill_(max(spread, 1e-12) ** 0.5)
    model.score = _score(model, data.splits.get("valid") or data.split(next(reversed(data.splits))), seed)
    model.fingerprint = _named(model)
    return model


def _posed(model: Classifier, x: Tensor, label: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of the task for a batch."""
    if model.task == "class" and label is not None:
        return x, label.to(x.device)
    poses = kind_of(model.schema).poses(x)
    if not poses:
        return x, model.standard(x).flatten(1)
    turn = (noise.uniform(len(x)) * len(poses)).long().clamp_max(len(poses) - 1).to(x.device)
    return torch.stack(poses)[turn, torch.arange(len(x), device=x.device)], turn


def _loss(model: Classifier, x: Tensor, answer: Tensor) -> Tensor:
    if model.task == "autoencoder":
        return F.mse_loss(model(x), answer)
    return F.cross_entropy(model(x), answer)


@torch.inference_mode()
def _score(model: Classifier, split: Split, seed: int) -> float:
    """Compute the accuracy, or for an autoencoder the share of the variance that it reconstructs."""
    judged, right, missed, total = split.subset(split.random_rows(JUDGED)), 0.0, 0.0, 0.0
    for number, batch in enumerate(batches(judged, AT_ONCE)):
        noise = Noise(seed, number * AT_ONCE, "classifier score")
        x, answer = _posed(model, batch.x.to(model.scale.device), batch.label, noise)
        if model.task == "autoencoder":
            missed += float(precise(model(x) - answer).square().sum())
            total += float(precise(answer).square().sum())
        else:
            right += float((model(x).argmax(1) == answer).sum())
    return 1 - missed / max(total, 1e-12) if model.task == "autoencoder" else right / max(len(judged), 1)


def _named(model: Classifier) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def store(path: Path, model: Classifier, of: str) -> None:
    """Write a classifier to a file, with the fingerprint `of` its training data."""
    about = {"version": VERSION, "data": of, "task": model.task, "score": model.score}
    write_tensors(path, model.state_dict(), about)


def stored_classifier(path: Path, data: Data, of: str) -> Classifier | None:
    """Read the stored classifier of this data; None if it is missing, damaged or of other data."""
    try:
        kept = read_tensors(path)
        about: dict[str, Any] = kept.progress
        if about.get("data") != of or about.get("version") != VERSION or about.get("task") != task_for(data):
            return None
        model = Classifier(data.schema, about["task"])
        model.load_state_dict(kept.tensors)
        model.score = about["score"]
    except (RunError, RuntimeError, KeyError):
        return None
    model.fingerprint = _named(model)
    return model.eval().requires_grad_(False)


def of_run(run: Path, data: Data) -> Classifier:
    """Read the classifier of this data from `run`, or train and store it there."""
    of = data_fingerprint(data, "train")
    model = stored_classifier(run / FILE, data, of)
    if model is None:
        model = train_classifier(data)
        store(run / FILE, model, of)
    return model
