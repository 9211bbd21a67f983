"""The one ruler: rate, distortion and bound of a model on a split, and the importance-weighted bound.

Every draw is a function of the seed and the batch's number, and batches have one size, so that evaluating twice
gives the same digits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tessella.data import Split, chunks
from tessella.errors import SpecError
from tessella.models.model import Model
from tessella.noise import Noise
from tessella.precision import autocast
from tessella.records import Batch, Evaluation, ImportanceBound, Precision, bits_per_dim

BATCH = 250
ACTIVE = 0.01
"""Nats: a unit is active if its mean KL is above this."""
PASS = 2**21
"""Numbers of data decoded in one pass of the importance bound: some hundred megabytes with usual networks' features."""


@torch.inference_mode()
def evaluate(
    model: Model,
    split: Split,
    *,
    importance_samples: int = 0,
    seed: int = 0,
    limit: int | None = None,
    precision: Precision = "float32",
    data: str = "",
    split_name: str = "test",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure `model` on `split`; nats per example, averaged.

    Args:
        importance_samples: draws an example for the importance-weighted bound; 0 leaves it out.
        limit: measure only so many examples, the same ones each time, spread over the split.
        precision: of the networks; the bound holds for the model as it runs here.
        data, split_name: what to call them in the result.
        progress: told (examples done, examples in all) after each batch.

    Raises:
        SpecError: if an importance-weighted bound is asked of a model without a rate.
    """
    if importance_samples < 0:
        raise SpecError(f"importance samples must not be negative, and {importance_samples} is")
    if importance_samples and not model.has_prior:
        raise SpecError(f"the model {model.name} has no prior, so no bound: leave the importance samples out")
    started = time.perf_counter()
    training = model.training
    model.eval()
    total = min(len(split), limit or len(split))
    sums: dict[str, float] = dict.fromkeys(("rate", "distortion", "squared", "weighted"), 0.0)
    per_unit: Tensor | float = 0.0
    done = 0
    for number, batch in enumerate(_batches(split, limit)):
        x = batch.x.to(model.device)
        label = None if batch.label is None else batch.label.to(model.device)
        noise = Noise(seed, number, "evaluation")
        with autocast(precision, model.schema, model.device):
            terms = model(x, label, noise=noise)
            rebuilt = model.reconstruct(x, label)
            weights = (
                importance_log_likelihood(model, x, label, importance_samples, noise.split("importance"))
                if importance_samples
                else None
            )
        sums["distortion"] += float(terms.distortion.double().sum())
        if terms.rate is not None:
            sums["rate"] += float(terms.rate.double().sum())
        if terms.rate_per_unit is not None:
            per_unit = per_unit + terms.rate_per_unit.double().sum(0)
        error = (rebuilt - x).double()
        sums["squared"] += float((error * error).mean(dim=tuple(range(1, error.dim()))).sum())
        if weights is not None:
            sums["weighted"] -= float(weights.double().sum())
        done += len(x)
        if progress:
            progress(done, total)
    model.train(training)
    mean = {name: value / done for name, value in sums.items()}
    has_rate = model.has_prior
    bound = mean["rate"] + mean["distortion"] if has_rate else None
    units = tuple((per_unit / done).tolist()) if isinstance(per_unit, Tensor) else None
    dims = model.schema.dims
    return Evaluation(
        model=model.name,
        data=data,
        split=split_name,
        examples=done,
        dims=dims,
        rate=mean["rate"] if has_rate else None,
        distortion=mean["distortion"],
        bound=bound,
        bits_per_dim=None if bound is None else bits_per_dim(bound, dims),
        importance_bound=ImportanceBound(importance_samples, mean["weighted"], bits_per_dim(mean["weighted"], dims))
        if importance_samples
        else None,
        kl_per_unit=units,
        active_units=None if units is None else sum(u > ACTIVE for u in units),
        mse=mean["squared"],
        psnr=psnr(mean["squared"], model.schema.high - model.schema.low),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.perf_counter() - started,
    )


def importance_log_likelihood(model: Model, x: Tensor, label: Tensor | None, samples: int, noise: Noise) -> Tensor:
    """log p(x) bounded from below, `[B]`: log 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q (Burda et al. 2015, eq. 8).

    The draws come in passes of a fixed size, so memory does not grow with `samples`.
    """
    each = max(1, PASS // (len(x) * model.schema.dims))
    total: Tensor | None = None
    for number, first in enumerate(range(0, samples, each)):
        count = min(each, samples - first)
        weights = model(x, label, noise=noise.split(str(number)), draws=count).log_weights
        part = torch.logsumexp(weights, 0)
        total = part if total is None else torch.logaddexp(total, part)
    if total is None:
        raise ValueError("at least one sample is needed")
    return total - math.log(samples)


def psnr(mse: float, span: float) -> float:
    """Peak signal-to-noise ratio in decibels, 10 log10(span^2 / mse); infinite for an exact copy."""
    return math.inf if mse == 0 else 10 * math.log10((span or 1.0) ** 2 / mse)


def _batches(split: Split, limit: int | None) -> Iterator[Batch]:
    if limit is None or limit >= len(split):
        yield from chunks(split, BATCH)
        return
    order = np.argsort(split.keys)[:limit]
    for first in range(0, limit, BATCH):
        yield split.batch(order[first : first + BATCH])
