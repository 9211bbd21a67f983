"""Fidelity: how much samples look like data, through a classifier of the same data (or features of one's own).

The split is cut in two halves by the order of its keys. Samples are compared with the first half, and so, as what
perfect samples would have, is the second half; all three sets have the same size n, as every figure here depends on it.

* **Frechet distance** between Gaussians of the features (Dowson & Landau 1982; Heusel et al. 2017, eq. 6):
  |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2). The data's variance in these features is 1. It is a "FID" only through
  Inception's features, which `standard_fid` asks of torchmetrics.
* **Precision and recall** (Kynkaanniemi et al. 2019, eq. 1 and 2): an example lies among a set if it is no farther from
  one of the set than that one's k-th nearest neighbour of the set, k = 3.
* **Class consistency**: the share of samples that are seen as the class that was asked for; beside it that of data seen
  as its own class. **Class distance**: half the sum of |share of the samples - share of the data| over the classes.

Standard errors are of the grouped jackknife: everything again without each tenth of samples and data (Efron &
Tibshirani 1993, chapter 11); of shares of samples those of a binomial.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessella.core.outputs import Sampling
from tessella.core.schema import Binary, Schema
from tessella.data import Split
from tessella.evaluation.classifier import Classifier
from tessella.evaluation.results import Against, FidelityEvaluation
from tessella.evaluation.samples import CHUNK, sample_chunks
from tessella.evaluation.sharpness import sharpness
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.progress import track
from tessella.models.base import Model

NEIGHBOURS = 3
GROUPS = 10
FEWEST = 20
"""Examples in each set under which nothing is said."""

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TimedSamples:
    """Samples `[N, *shape]`, the labels they were asked for, and seconds taken for each."""

    x: Tensor
    label: Tensor | None
    seconds: float
    drawn: bool


def sets(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the split: the first set and the second, of equal size, `count` or as many as there are.

    Raises:
        DataError: if the split is too small for two.
    """
    size = min(count, len(split) // 2)
    if size < FEWEST:
        raise DataError(
            f"fidelity takes at least {FEWEST} samples and twice as many examples: here are {count} and {len(split)}"
        )
    order = split.random_rows()
    return order[:size], order[size : 2 * size]


def labels(split: Split, rows: np.ndarray) -> Tensor | None:
    """The labels of these rows, so that samples are asked for in the classes that data has; None without labels."""
    return None if split.labels is None else torch.from_numpy(np.asarray(split.labels)[rows])


def timed_samples(
    model: Model,
    count: int,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    drawn: bool | None = None,
    sampling: Sampling | None = None,
    seconds: float = math.inf,
) -> TimedSamples:
    """Samples of a model, with the time that they take.

    Args:
        label: `[count]`, the classes to ask for, of a model that sees them.
        drawn: whether x is drawn from p(x | z). By default only where the mean is no example: binary values, and pixels
            drawn one after another; else samples are the means.
        seconds: after so many no more are drawn.

    Raises:
        SpecError: if the model cannot be sampled.
    """
    if not model.has_prior:
        raise model.no_prior_error()
    outright = drawn
    if outright is None:
        outright = model.schema.values == Binary() or model.likelihood.sequential_mean
    asked = label if model.conditional else None
    parts: list[Tensor] = []
    done, started = 0, time.perf_counter()
    for part in track(sample_chunks(model, count, asked, seed=seed, sampling=sampling, draw=outright), "sampling",
                      -(-count // CHUNK)):  # fmt: skip
        parts.append(part)
        done += len(part)
        if time.perf_counter() - started >= seconds:
            break
    taken = (time.perf_counter() - started) / done
    return TimedSamples(torch.cat(parts), None if asked is None else asked[:done], taken, outright)


def measure_fidelity(
    model: Model,
    split: Split,
    features: Classifier | Features,
    *,
    count: int = 2000,
    split_name: str = "test",
    seed: int = 0,
    drawn: bool | None = None,
) -> FidelityEvaluation:
    """Draw from `model` and compare with `split`.

    Args:
        features: a classifier of the data, or any function of stored values `[B, *shape]` to features `[B, F]`.
        count: samples; no more than half the split are used.
        drawn: as of `timed_samples`.

    Raises:
        SpecError: if the model cannot be sampled, or the features are not rows of finite numbers.
        DataError: if the split is too small.
    """
    first, second = sets(split, count)
    samples = timed_samples(model, len(first), labels(split, second), seed=seed, drawn=drawn)
    return compare_samples(samples, split, features, model.schema, split_name)


def compare_samples(
    samples: TimedSamples, split: Split, features: Classifier | Features, schema: Schema, split_name: str = "test"
) -> FidelityEvaluation:
    """Compare samples with as many examples of a split.

    Raises:
        as of `measure_fidelity`.
    """
    first, second = sets(split, len(samples.x))
    data, others = split.batch(first), split.batch(second)
    look = features.features if isinstance(features, Classifier) else features
    seen = [_rows(look(x)) for x in (samples.x[: len(first)], data.x.float(), others.x.float())]
    result = of_features(*seen)
    detail = None
    if max(schema.spatial, default=1) > 1:
        detail = sharpness(samples.x, data.x, others.x, schema)
    result = replace(
        result,
        split=split_name,
        drawn=samples.drawn,
        sharpness=detail,
        seconds_per_sample=samples.seconds,
    )
    if not isinstance(features, Classifier):
        return result
    result = replace(result, features=features.task, classifier=features.fingerprint, classifier_score=features.score)
    if not features.names_classes:
        return result
    named = [features.classes(x) for x in (samples.x[: len(first)], data.x, others.x)]
    count = len(schema.classes)
    shares = [torch.bincount(n, minlength=count).double() / len(n) for n in named]
    consistency = None
    if samples.label is not None and others.label is not None:
        hits = (named[0] == samples.label[: len(first)]).double()
        own = (named[2] == others.label).double()
        consistency = Against(*_of_binary(hits), *_of_binary(own))
    return replace(
        result,
        consistency=consistency,
        class_shares=tuple(shares[0].tolist()),
        class_distance=_class_distance(named, count),
    )


def of_features(samples: np.ndarray, data: np.ndarray, others: np.ndarray) -> FidelityEvaluation:
    """The figures that take nothing but features `[n, F]` of samples, data, and other data; sets of one size.

    Raises:
        SpecError: if they do not fit together.
    """
    if not samples.shape[1:] == data.shape[1:] == others.shape[1:]:
        raise SpecError(
            f"features of samples have {samples.shape[1]} numbers and those of the data {data.shape[1]}: "
            "take both from the same network"
        )
    if min(len(samples), len(data), len(others)) < FEWEST:
        raise SpecError(f"fidelity takes features of at least {FEWEST} samples and twice as many examples")
    variance = float(data.var(0).sum()) or 1.0

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet(a, b) / variance

    precision, recall = precision_recall(samples, data)
    data_precision, data_recall = precision_recall(others, data)
    errors = _jackknife_neighbours(samples, data)
    data_errors = _jackknife_neighbours(others, data)
    return FidelityEvaluation(
        samples=len(samples),
        split="",
        drawn=False,
        features="given",
        feature_count=data.shape[1],
        classifier="",
        classifier_score=None,
        frechet=Against(
            distance(samples, data),
            jackknife(distance, samples, data),
            distance(others, data),
            jackknife(distance, others, data),
        ),
        precision=Against(precision, errors[0], data_precision, data_errors[0]),
        recall=Against(recall, errors[1], data_recall, data_errors[1]),
    )


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians with the mean and covariance of features `[n, F]` and `[m, F]`, squared.

    tr (S1 S2)^1/2 is the sum of the singular values of S1^1/2 S2^1/2, whose roots are taken by symmetric
    eigendecompositions: so it is stable where covariances are singular, as they are with fewer examples than features.
    """
    (m1, s1), (m2, s2) = _moments(a), _moments(b)
    return frechet_of_moments(m1, s1, m2, s2)


def frechet_of_moments(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), from means `[F]` and covariances `[F, F]`; never below 0."""
    shared = np.linalg.svd(_root(s1) @ _root(s2), compute_uv=False).sum()
    return max(0.0, float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * shared))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def _root(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def precision_recall(samples: np.ndarray, data: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of samples that lie among the data, and of data that lie among the samples (`[n, F]` and `[m, F]`)."""
    apart, of_samples, of_data = _distances(samples, data)
    return _among(apart, of_samples, of_data, k)


def _distances(samples: np.ndarray, data: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.from_numpy(samples).float(), torch.from_numpy(data).float()
    exact = "donot_use_mm_for_euclid_dist"  # by the product, a point is not at distance 0 from itself
    return (
        torch.cdist(a, b, compute_mode=exact),
        torch.cdist(a, a, compute_mode=exact),
        torch.cdist(b, b, compute_mode=exact),
    )


def _among(apart: Tensor, of_samples: Tensor, of_data: Tensor, k: int) -> tuple[float, float]:
    """From distances `[n, m]`, `[n, n]`, `[m, m]`."""
    about_samples, about_data = (own.kthvalue(min(k + 1, len(own)), 1).values for own in (of_samples, of_data))
    precision = (apart <= about_data).any(1).double().mean()
    recall = (apart <= about_samples[:, None]).any(0).double().mean()
    return float(precision), float(recall)


def jackknife(of: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> float:
    """The standard error of a figure of two sets, by leaving out a tenth of both at a time."""
    return _spread([of(a[_without(len(a), g)], b[_without(len(b), g)]) for g in range(GROUPS)])


def _jackknife_neighbours(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    apart, own_a, own_b = _distances(a, b)
    left = []
    for g in range(GROUPS):
        i, j = torch.from_numpy(_without(len(a), g)), torch.from_numpy(_without(len(b), g))
        left.append(_among(apart[i][:, j], own_a[i][:, i], own_b[j][:, j], NEIGHBOURS))
    return _spread([p for p, _ in left]), _spread([r for _, r in left])


def _without(count: int, group: int) -> np.ndarray:
    return np.arange(count)[np.arange(count) % GROUPS != group]


def _spread(left: Sequence[float]) -> float:
    figures = np.asarray(left)
    return float(math.sqrt((GROUPS - 1) / GROUPS * np.square(figures - figures.mean()).sum()))


def _of_binary(hits: Tensor) -> tuple[float, float]:
    share = float(hits.mean())
    return share, math.sqrt(share * (1 - share) / len(hits))


def _class_distance(named: Sequence[Tensor], count: int) -> Against:
    """Total variation between the class shares of samples and data, and of other data and data."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        of = [np.bincount(x, minlength=count) / len(x) for x in (a, b)]
        return float(np.abs(of[0] - of[1]).sum() / 2)

    ours, data, others = (n.numpy() for n in named)
    return Against(
        distance(ours, data), jackknife(distance, ours, data), distance(others, data), jackknife(distance, others, data)
    )


def _rows(features: Tensor | np.ndarray) -> np.ndarray:
    """Features as rows of float64.

    Raises:
        SpecError: if they are not rows of finite numbers.
    """
    found = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
    if found.ndim < 2:
        raise SpecError(f"features must be rows of numbers, not of shape {found.shape}")
    found = found.reshape(len(found), -1)
    if not np.isfinite(found).all():
        raise SpecError("the features of samples or data are not finite: the model or the features are broken")
    return found


def of_file(path: str, count: int) -> FidelityEvaluation:
    """The figures from features of one's own: a file of two arrays, `samples` and `data`, `[N, F]` and `[M, F]`.

    Args:
        count: samples to use at most; no more than half of `data`.

    Raises:
        DataError: if the file holds nothing of the kind.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in ("samples", "data")}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} holds no features: give an .npz file with the arrays samples and data, one row an example"
        ) from error
    ours, data = (_rows(arrays[name]) for name in ("samples", "data"))
    size = min(count, len(ours), len(data) // 2)
    return replace(of_features(ours[:size], data[:size], data[size : 2 * size]), drawn=False)


def standard_fid(samples: Tensor, data: Tensor, schema: Schema, feature: Any = 2048) -> float:
    """The standard FID, by torchmetrics and Inception's published weights, of two sets of pictures.

    Args:
        feature: as of `torchmetrics.image.fid.FrechetInceptionDistance`: a layer of Inception, or a network.

    Raises:
        SpecError: if the examples are not pictures, or torchmetrics or the weights are not to be had.
    """
    if schema.rank != 2:
        raise SpecError("the FID is of pictures, and these are vectors: use the classifier's features")
    try:
        found = importlib.import_module("torchmetrics.image.fid")
        metric = found.FrechetInceptionDistance(feature=feature)
    except (ImportError, OSError) as error:
        raise SpecError(
            "the standard FID needs torchmetrics and Inception's weights, which it downloads "
            f"({' '.join(str(error).split())[:120]}): pip install 'tessella[fidelity]', or leave "
            f"{option('features')} out"
        ) from error
    for x, real in ((data, True), (samples, False)):
        for part in x.split(CHUNK):
            metric.update(_coloured(part, schema), real=real)
    return float(metric.compute())


def _coloured(x: Tensor, schema: Schema) -> Tensor:
    """Stored values as three channels of 8 bits."""
    unit = ((x.float() - schema.values.low) / schema.values.span).clamp(0, 1).mul(255).round().to(torch.uint8)
    return unit[:, :3] if len(unit[0]) >= 3 else unit[:, :1].expand(-1, 3, -1, -1)
