"""Estimators for scikit-learn: `LatentOutlierDetector` and `LatentTransformer`.

`fit` trains a model of this package on rows of numbers `[n, features]`. With `image_shape` the rows are flattened
pictures, and pictures `[n, H, W]` or `[n, H, W, C]` are accepted too. With `signal=True` the examples are signals
`[n, T]` or `[n, C, T]`.

    >>> from tessella import LatentOutlierDetector
    >>> detector = LatentOutlierDetector(contamination=0.05, random_state=0).fit(X)  # doctest: +SKIP
    >>> detector.predict(X_new)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterator
from numbers import Integral
from typing import Any, cast, final

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from tessella.core.batches import Batch, fixed_batches, to_read
from tessella.core.device import resolve_device
from tessella.core.schema import UINT8, Real, Schema
from tessella.data import Split
from tessella.data.arrays import moments
from tessella.data.raw import RawSplit, index_keys
from tessella.data.splits import PartSplit
from tessella.models.base import Model
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.tasks.detect.detector import Detector
from tessella.tasks.detect.series.scores import NEIGHBOURS
from tessella.tasks.detect.series.signals import SignalScorer
from tessella.tasks.detect.tables import (
    GLOBAL,
    LOCAL,
    Surprise,
    TableChoice,
    TableScores,
    choose_local,
    reference_rows,
    smoothed,
)
from tessella.training.loop import fit as train

BATCH = 64
"""Examples per training step."""
ROW_BATCH, ROW_RATE = 128, 4e-3
"""Rows per training step, and the learning rate, of an outlier detector's model."""
BEYOND = 10.0
"""Limit on the coordinates that the model takes, in ranges of their column."""
FEWEST_ROWS, HELD_OUT = 50, 5
"""With so many rows, one in `HELD_OUT` is kept from the training of the model, to validate it and to compare scores."""


class _Fitted(BaseEstimator, ABC):
    """Base of both estimators: the model, and the conversion of data to its examples.

    Vectors and pictures of real values are standardised per column (per channel for pictures), and the likelihood is a
    Gaussian with a learned scale. uint8 pictures keep their values and get the likelihood of uint8 values.
    """

    model: str
    max_steps: int
    image_shape: tuple[int, ...] | None
    signal: bool
    model_options: dict[str, Any] | None
    random_state: Any
    device: str | None

    def _fit(self, X: Any) -> np.ndarray:
        """Train on X and return its examples."""
        x = self._examples(self._checked(X, reset=True))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._train(x, batch_size=min(BATCH, max(8, len(x))))
        return x

    def _train(self, x: np.ndarray, valid: np.ndarray | None = None, **training: Any) -> None:
        """Train the model on examples; with validation examples, only as long as it helps."""
        schema = _schema(x)
        options = dict(self.model_options or {})
        if not schema.rank:
            options = {"width": 64, "depth": 2, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            model = ModelConfig.chosen(self.model).from_options(options).build(schema)
        how = TrainOptions(steps=self.max_steps, seed=self.seed_, device=self.device, **training)
        done = train(model, _split(x), how, None if valid is None else _split(valid))
        self.model_, self.n_iter_ = _Kept(model), done.steps

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        """Validate X as `[n, features]` by scikit-learn's own checks."""
        if self.image_shape is not None:
            X = self._flat(X)
        elif self.signal:
            X = self._flat_signals(X, reset=reset)
        kinds: Any = [np.float64, np.float32, np.uint8]
        return cast(np.ndarray, validate_data(self, X, reset=reset, dtype=kinds, ensure_min_samples=2 if reset else 1))

    def _flat(self, X: Any) -> Any:
        """Flatten pictures to rows; leave rows as they are."""
        kind: Any = None
        X = check_array(X, allow_nd=True, dtype=kind, ensure_all_finite=False, ensure_2d=False)
        if X.ndim in (3, 4):
            height, width, channels = self._shape
            if X.shape[1:] != self._shape and (channels, *X.shape[1:]) != (1, height, width):
                raise ValueError(f"X has pictures of shape {X.shape[1:]}, but image_shape is {self.image_shape}")
            return X.reshape(len(X), -1)
        if X.ndim == 2 and X.shape[1] != math.prod(self._shape):
            raise ValueError(
                f"X has {X.shape[1]} features, but pictures of shape {self._shape} have {math.prod(self._shape)}"
            )
        return X

    def _flat_signals(self, X: Any, *, reset: bool) -> Any:
        """Flatten signals `[n, C, T]` to rows; leave `[n, T]` as it is."""
        kind: Any = None
        X = check_array(X, allow_nd=True, dtype=kind, ensure_all_finite=False, ensure_2d=False)
        if X.ndim == 3:
            shape = X.shape[1:]
        elif reset or X.ndim != 2:
            shape = (1, X.shape[-1])
        else:
            shape = self.signal_shape_
        if reset:
            self.signal_shape_ = shape
        if shape != self.signal_shape_:
            raise ValueError(f"X has signals of shape {shape}, but the estimator was fitted on {self.signal_shape_}")
        return X.reshape(len(X), -1) if X.ndim == 3 else X

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        assert self.image_shape is not None
        height, width, *channels = self.image_shape
        return height, width, channels[0] if channels else 1

    def _examples(self, X: np.ndarray) -> np.ndarray:
        """Convert rows to examples `[n, D]`, `[n, C, T]` or `[n, C, H, W]`, uint8 or float32."""
        x = X if X.dtype == np.uint8 and self.image_shape is not None else _single(X)
        if self.image_shape is None and self.signal:
            return x.reshape(len(x), *self.signal_shape_)
        if self.image_shape is None:
            return x
        return np.ascontiguousarray(np.moveaxis(x.reshape(len(x), *self._shape), 3, 1))

    def _known(self, X: Any) -> np.ndarray:
        """Convert new rows to examples of the kind that the estimator was fitted on."""
        check_is_fitted(self)
        x = self._examples(self._checked(X, reset=False))
        bytes_wanted = self.model_.model.schema.values == UINT8
        if bytes_wanted and x.dtype != np.uint8:
            raise ValueError("the estimator was fitted on uint8 pictures: give uint8 data")
        return x if bytes_wanted else x.astype(np.float32)


@final
class LatentOutlierDetector(OutlierMixin, _Fitted):
    """Outlier detector for rows of numbers or pictures, whose training data may contain outliers.

    The score of rows, `combined`, adds a global and a local score. The global one is how far a row is from most rows.
    The local one is how far it is from its nearest rows, by values (`neighbours`) and by ranks (`rank-neighbours`), and
    the model's `bound`. Held-out rows against made-up anomalies tell which of these local scores are used. Rows that
    are far from most rows but close to each other are left out of what the local scores are fitted on.

    Args:
        model: name of a registered model with a bound (any model with `criterion="distortion"`).
        criterion: the outlier score. auto: `combined` for rows, `neighbours` for signals, `complexity-corrected` for
            uint8 pictures, `bound` for other pictures. Or one of distortion, rate, bound and regret, for rows also
            global, neighbours and rank-neighbours, for uint8 pictures complexity-corrected: see
            `tessella.tasks.detect.detector`.
        contamination: share of outliers in the training data, in (0, 0.5]; it determines `offset_`.
        max_steps: largest number of training steps; on rows training stops when the validation bound stops falling.
        image_shape: (height, width) or (height, width, channels) of pictures; None for vectors.
        signal: whether X holds signals `[n, T]` or `[n, C, T]`, not vectors.
        model_options: options of the model and its parts, for instance `{"latent_dim": 4}`.
        random_state: seed of the weights, the order of the examples and all samples.
        device: device of the model: auto (the best available), cpu, cuda, mps or xpu; None: the environment variable
            `TESSELLA_DEVICE`, or else auto. A pickle holds no device; the model runs where it is loaded.

    Attributes:
        offset_: threshold on `score_samples`; rows below it are outliers.
        n_features_in_: number of features in a row.
        signal_shape_: (channels, samples) of signals.
        n_iter_: number of training steps.
        criterion_: the outlier score that is used.
        choice_: for rows, the local scores in `combined`, and the AUROC of each score against made-up anomalies.
        trimmed_: for rows, the share that was left out as close to each other but far from most rows.
    """

    def __init__(
        self,
        model: str = "vae",
        *,
        criterion: str = "auto",
        contamination: float = 0.1,
        max_steps: int = 600,
        image_shape: tuple[int, ...] | None = None,
        signal: bool = False,
        model_options: dict[str, Any] | None = None,
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.contamination = contamination
        self.max_steps = max_steps
        self.image_shape = image_shape
        self.signal = signal
        self.model_options = model_options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> LatentOutlierDetector:
        """Train on rows X `[n, features]`, or pictures; y is ignored.

        Raises:
            ValueError: if X has values that are not finite numbers, or a parameter is out of its range.
        """
        _check_steps(self.max_steps)
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination must be above 0 and at most 0.5, got {self.contamination}")
        if self.signal and self.image_shape is not None:
            raise ValueError("signals are no pictures: give either signal or image_shape")
        if self.signal:
            examples = self._fit(X)
            self.neighbours_ = SignalScorer(examples)
            self.criterion_ = NEIGHBOURS if self.criterion == "auto" else self.criterion
        elif self.image_shape is None:
            examples = self._fit_rows(X)
        else:
            examples = self._fit(X)
            uint8 = self.model_.model.schema.values == UINT8
            self.criterion_ = {"auto": "complexity-corrected" if uint8 else "bound"}.get(self.criterion, self.criterion)
        self.offset_ = float(np.percentile(-self._strangeness(examples), 100 * self.contamination))
        return self

    def _fit_rows(self, X: Any) -> np.ndarray:
        """Fit the scores of rows and train the model on those that are not trimmed; return reference rows."""
        x = self._examples(self._checked(X, reset=True))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = np.random.default_rng(self.seed_)
        rows = reference_rows(x, generator)
        self.scores_ = TableScores(rows.astype(np.float64), seed=self.seed_)
        self.trimmed_ = float(1 - self.scores_.kept.mean())
        kept = generator.permutation(rows[self.scores_.kept])
        count = len(kept) // HELD_OUT if len(kept) >= FEWEST_ROWS else 0
        held_out, kept = kept[:count], kept[count:]
        valid = smoothed(self._ranges(held_out), generator) if count else None
        self._train(smoothed(self._ranges(kept), generator), valid, batch_size=ROW_BATCH, learning_rate=ROW_RATE)
        bound = self.model_.model.has_bound
        if bound:
            self.bound_surprise_ = Surprise(self._model_score(kept, "bound"))
        self.criterion_ = "combined" if self.criterion == "auto" else self.criterion
        self.choice_ = TableChoice()
        if count:
            self.choice_ = choose_local(lambda x: self._row_scores(x, bound), held_out, generator)
        return rows

    def _ranges(self, x: np.ndarray) -> np.ndarray:
        """Scale rows as the model takes them."""
        return self.scores_.ranges(x.astype(np.float64)).clip(-BEYOND, BEYOND).astype(np.float32)

    def _row_scores(self, x: np.ndarray, bound: bool) -> dict[str, np.ndarray]:
        """Compute the scores that the combined one may consist of."""
        scores = self.scores_(x.astype(np.float64))
        if bound:
            scores["bound"] = self.bound_surprise_(self._model_score(x, "bound"))
        return scores

    def score_samples(self, X: Any) -> np.ndarray:
        """Compute how normal each row is, `[n]` nats: the negative outlier score."""
        check_is_fitted(self)
        return -self._strangeness(self._known(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute `score_samples - offset_`, `[n]`: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return 1 for inliers and -1 for outliers, `[n]`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _strangeness(self, x: np.ndarray) -> np.ndarray:
        """Compute the outlier score of examples."""
        if self.criterion_ == "combined":
            return self.choice_.combined(self._row_scores(x, "bound" in self.choice_.local))
        if self.signal and self.criterion_ == NEIGHBOURS:
            return self.neighbours_.pooled(Batch(torch.from_numpy(x)))[:, 0]
        if self.image_shape is None and not self.signal and self.criterion_ in (GLOBAL, *LOCAL):
            return self._row_scores(x, False)[self.criterion_]
        return self._model_score(x, self.criterion_)

    def _model_score(self, x: np.ndarray, criterion: str) -> np.ndarray:
        """Compute a score of examples under the model."""
        model = self.model_.on(self.device)
        detector = Detector(model, [criterion], seed=self.seed_)
        x = self._ranges(x) if self.image_shape is None and not self.signal else x
        return np.concatenate([detector.score(batch)[criterion] for batch in _batches(x, model.device)])


@final
class LatentTransformer(TransformerMixin, _Fitted):
    """Maps rows X to latents as features: the mean of q(z | x), or codes as integers.

    Args:
        model: name of a registered model; `vae` gives real numbers, `vqvae` codes.
        max_steps, image_shape, signal, model_options, random_state, device: as in `LatentOutlierDetector`.

    Attributes:
        n_features_in_: number of features in a row.
        n_iter_: number of training steps.
    """

    def __init__(
        self,
        model: str = "vae",
        *,
        max_steps: int = 1000,
        image_shape: tuple[int, ...] | None = None,
        signal: bool = False,
        model_options: dict[str, Any] | None = None,
        random_state: Any = None,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.max_steps = max_steps
        self.image_shape = image_shape
        self.signal = signal
        self.model_options = model_options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> LatentTransformer:
        """Train on rows X `[n, features]`, or pictures; y is ignored.

        Raises:
            ValueError: if X has values that are not finite numbers, or a parameter is out of its range.
        """
        _check_steps(self.max_steps)
        self._fit(X)
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> np.ndarray:
        """Encode rows to latents `[n, units]` float64, or to the codes of all levels `[n, codes]` int64."""
        found, model = [], self.model_.on(self.device)
        for batch in _batches(self._known(X), model.device):
            for part in fixed_batches(batch, model.device):
                latent = model.encode(part.x)
                flat = [c.flatten(1) for c in latent.codes] or [latent.z.flatten(1).cpu().double()]
                found.append(torch.cat(flat, 1)[: part.count].cpu().numpy())
        return np.concatenate(found)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return `latent0`, `latent1`, ... or `code0`, `code1`, ...; `input_features` is ignored."""
        check_is_fitted(self)
        model = self.model_.model
        kind, count = "latent", math.prod(model.latent_shape)
        if model.levels:
            kind, count = "code", sum(math.prod(shape) for shape in model.code_shapes)
        return np.array([f"{kind}{i}" for i in range(count)], dtype=object)


@final
class _Kept:
    """A model that pickles as its schema, config and plain arrays."""

    def __init__(self, model: Model) -> None:
        self.model = model.eval()

    def on(self, device: str | None) -> Model:
        """Move the model to a device and return it."""
        return self.model.to(resolve_device(device))

    def __getstate__(self) -> dict[str, Any]:
        weights = {name: t.cpu().numpy() for name, t in self.model.state_dict().items()}
        return {"schema": self.model.schema, "config": self.model.config, "weights": weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with torch.random.fork_rng(devices=[]):
            model = state["config"].build(state["schema"])
        model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state["weights"].items()})
        self.model = model.eval()


def _schema(x: np.ndarray) -> Schema:
    if x.dtype == np.uint8:
        return Schema.of(x.shape[1:], "uint8")
    center, scale, low, high = moments(x, np.arange(len(x)))
    return Schema.of(x.shape[1:], Real(low, high), center, scale)


def _split(x: np.ndarray) -> Split:
    return PartSplit(RawSplit(x, None, index_keys(len(x), "sklearn")), np.arange(len(x)))


def _batches(x: np.ndarray, device: torch.device) -> Iterator[Batch]:
    at_once = to_read(x.shape[1:], device)
    for first in range(0, len(x), at_once):
        yield Batch(torch.from_numpy(x[first : first + at_once]))


def _single(X: np.ndarray) -> np.ndarray:
    """Convert to float32, or raise if a value is too large."""
    with np.errstate(over="ignore"):
        x = X.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("X has values that are too large for float32: scale it")
    return x


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, Integral) or cast(int, steps) < 1:
        raise ValueError(f"max_steps must be an integer of at least 1, got {steps!r}")
