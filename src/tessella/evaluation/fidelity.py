"""Measures the fidelity of samples: how close they are to data in the features of a classifier (or given features).

A split is divided into two random halves. The samples are compared with the first half. The second half is compared
with it too, which gives the values that perfect samples would have. All three sets have the same size n, since every
metric depends on it.

* **Frechet distance** between Gaussians of the features (Dowson & Landau 1982; Heusel et al. 2017, eq. 6):
  |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2). The data's variance in these features is 1. It is a "FID" only in
  Inception's features, for which `standard_fid` uses torchmetrics.
* **Precision and recall** (Kynkaanniemi et al. 2019, eq. 1 and 2): an example is covered by a set if its distance to
  some member is at most the member's distance to its own k-th nearest neighbour in the set, k = 3.
* **Class consistency**: the share of samples that are classified as the class they are conditioned on; for data, the
  share classified as their own class. **Class distance**: the total variation, half the sum over the classes of
  |share of the samples - share of the data|.

Standard errors are those of the grouped jackknife, which leaves out each tenth of samples and data in turn (Efron &
Tibshirani 1993, chapter 11); for class consistency, those of a binomial.
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
from tessella.evaluation.quality.sharpness import sharpness
from tessella.evaluation.results import Against, FidelityEvaluation
from tessella.evaluation.samples import CHUNK, sample_chunks
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.progress import track
from tessella.kinds.base import kind_of
from tessella.models.base import Model

NEIGHBOURS = 3
GROUPS = 10
FEWEST = 20
"""Minimum number of examples in each set."""

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TimedSamples:
    """Samples `[N, *shape]`, the labels they are conditioned on, and the seconds that each took.

    Attributes:
        drawn: whether x is sampled from p(x | z); if not, it is the mean.
    """

    x: Tensor
    label: Tensor | None
    seconds: float
    drawn: bool


def sets(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows of two disjoint sets of equal size, `count` or as many as there are.

    Raises:
        DataError: if the split is too small for two.
    """
    size = min(count, len(split) // 2)
    if size < FEWEST:
        raise DataError(
            f"fidelity needs at least {FEWEST} samples and {2 * FEWEST} examples, got {count} and {len(split)}",
            code="few-examples",
        )
    order = split.random_rows()
    return order[:size], order[size : 2 * size]


def labels(split: Split, rows: np.ndarray) -> Tensor | None:
    """Return the labels of these rows, on which samples are conditioned; None without labels."""
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
    """Sample from a model and measure the time per sample.

    Args:
        label: `[count]`, classes to condition on; ignored if the model is unconditional.
        drawn: whether to sample x ~ p(x | z) rather than take the mean. By default only where the mean is no valid
            example: binary values, and pixels that are sampled one after another.
        seconds: time limit for sampling.

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
    """Sample from `model` and compare the samples with `split`.

    Args:
        features: a classifier of the data, or any function of stored values `[B, *shape]` to features `[B, F]`.
        count: number of samples; at most half the size of the split is used.
        drawn: as in `timed_samples`.

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
        SpecError, DataError: as `measure_fidelity`.
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
    """Compute the metrics that need only features `[n, F]` of samples, data and other data.

    Raises:
        SpecError: if the features differ in length, or are too few.
    """
    if not samples.shape[1:] == data.shape[1:] == others.shape[1:]:
        raise SpecError(
            f"the samples have {samples.shape[1]} features and the data {data.shape[1]}: "
            "compute both with the same network",
            code="other-features",
        )
    if min(len(samples), len(data), len(others)) < FEWEST:
        raise SpecError(
            f"fidelity needs features of at least {FEWEST} samples and {2 * FEWEST} examples", code="few-examples"
        )
    variance = float(data.var(0).sum()) or 1.0

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b) / variance

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


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the squared Frechet distance between Gaussians fitted to features `[n, F]` and `[m, F]`.

    tr (S1 S2)^1/2 is the sum of the singular values of S1^1/2 S2^1/2, with roots from symmetric eigendecompositions. So
    it is stable for singular covariances, which occur if there are fewer examples than features.
    """
    (m1, s1), (m2, s2) = _moments(a), _moments(b)
    return frechet_of_moments(m1, s1, m2, s2)


def frechet_of_moments(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    """Compute |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), at least 0, from means `[F]` and covariances `[F, F]`."""
    shared = np.linalg.svd(_root(s1) @ _root(s2), compute_uv=False).sum()
    return max(0.0, float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * shared))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def _root(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def precision_recall(samples: np.ndarray, data: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Compute precision and recall of samples `[n, F]` against data `[m, F]`.

    Precision is the share of samples that the data covers; recall is the share of data that the samples cover.
    """
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
    """Compute precision and recall from distances `[n, m]`, `[n, n]`, `[m, m]`."""
    about_samples, about_data = (own.kthvalue(min(k + 1, len(own)), 1).values for own in (of_samples, of_data))
    precision = (apart <= about_data).any(1).double().mean()
    recall = (apart <= about_samples[:, None]).any(0).double().mean()
    return float(precision), float(recall)


def jackknife(of: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> float:
    """Estimate the standard error of a statistic of two sets by the grouped jackknife."""
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
    """Compute the total variation between class shares: of samples and data, and of other data and data."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        of = [np.bincount(x, minlength=count) / len(x) for x in (a, b)]
        return float(np.abs(of[0] - of[1]).sum() / 2)

    ours, data, others = (n.numpy() for n in named)
    return Against(
        distance(ours, data), jackknife(distance, ours, data), distance(others, data), jackknife(distance, others, data)
    )


def _rows(features: Tensor | np.ndarray) -> np.ndarray:
    """Convert features to rows of float64.

    Raises:
        SpecError: if they are not rows of finite numbers.
    """
    found = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, dtype=np.float64)
    if found.ndim < 2:
        raise SpecError(f"features must have shape [N, F], got {list(found.shape)}", code="other-features")
    found = found.reshape(len(found), -1)
    if not np.isfinite(found).all():
        raise SpecError(
            "the features of samples or data are not finite: check the model and the feature network", code="not-finite"
        )
    return found


def of_file(path: str, count: int) -> FidelityEvaluation:
    """Compute the metrics from a file of features: arrays `samples` `[N, F]` and `data` `[M, F]`.

    Args:
        count: number of samples to use; at most half the size of `data`.

    Raises:
        DataError: if the file does not hold these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in ("samples", "data")}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} holds no features: pass an .npz file with the arrays samples and data, one row per example",
            code="no-features",
        ) from error
    ours, data = (_rows(arrays[name]) for name in ("samples", "data"))
    size = min(count, len(ours), len(data) // 2)
    return replace(of_features(ours[:size], data[:size], data[size : 2 * size]), drawn=False)


def standard_fid(samples: Tensor, data: Tensor, schema: Schema, feature: Any = 2048) -> float:
    """Compute the standard FID of two sets of pictures, by torchmetrics in Inception's features.

    Args:
        feature: a layer of Inception, or a network, as in `torchmetrics.image.fid.FrechetInceptionDistance`.

    Raises:
        SpecError: if the examples are not pictures, or torchmetrics or Inception's weights are not available.
    """
    if not kind_of(schema).pixels:
        raise SpecError(
            "the standard FID needs pictures: use the classifier's features for other data", code="pictures-only"
        )
    try:
        found = importlib.import_module("torchmetrics.image.fid")
        metric = found.FrechetInceptionDistance(feature=feature)
    except (ImportError, OSError) as error:
        raise SpecError(
            "the standard FID needs torchmetrics and Inception's weights, which it downloads "
            f"({' '.join(str(error).split())[:120]}): pip install 'tessella[fidelity]', or omit {option('features')}",
            code="not-installed",
        ) from error
    for x, real in ((data, True), (samples, False)):
        for part in x.split(CHUNK):
            metric.update(_coloured(part, schema), real=real)
    return float(metric.compute())


def _coloured(x: Tensor, schema: Schema) -> Tensor:
    """Convert stored values to three channels of uint8."""
    unit = ((x.float() - schema.values.low) / schema.values.span).clamp(0, 1).mul(255).round().to(torch.uint8)
    return unit[:, :3] if len(unit[0]) >= 3 else unit[:, :1].expand(-1, 3, -1, -1)
