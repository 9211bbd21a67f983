"""Detection on series from start to end: normal rows, the model of a run or a new one, thresholds, and the inputs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from tessella.core.schema import Real, Schema
from tessella.data import Data, arrays
from tessella.data.raw import RawSplit, index_keys
from tessella.data.series.read import TimeSeries, read_series
from tessella.data.series.windows import divide_series, training_stride, window_starts
from tessella.data.splits import PartSplit
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.notes import note
from tessella.foundation.progress import track
from tessella.kinds.base import ReadOptions
from tessella.models.base import Model
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.tasks.detect.ranking import ranking
from tessella.tasks.detect.series.made_up import RowChoice, choose_score
from tessella.tasks.detect.series.result import ScoredSeries, SeriesDetection
from tessella.tasks.detect.series.scores import RowScores
from tessella.training.loop import train
from tessella.training.run import Run

FEWEST_NORMAL = 3
"""Fewest windows of normal rows."""
HELD_OUT = 4
"""One of so many normal rows is held out: the last ones of each series."""
DEFAULT_RATE = 0.01
"""Default false-positive rate of rows."""
FEWEST_WINDOWS = 20
"""Windows of held-out rows below which a false-positive rate of rows is uncertain."""
MOST_WINDOWS = 20_000
"""Most training windows."""


@final
@dataclass(frozen=True)
class NormalRows:
    """Normal rows `[T, C]` to fit on and held out.

    Attributes:
        schema: schema of their windows.
        source: path of the series that they come from.
        end: first row after them in that file, by its name; None if the name does not say.
    """

    fit: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    schema: Schema
    source: str
    end: int | None = None

    @property
    def window(self) -> int:
        """Return the rows of a window."""
        return self.schema.spatial[0]


def without_anomalies(series: TimeSeries, first: int, last: int) -> list[np.ndarray]:
    """Return the stretches of rows from `first` to before `last` that no label calls anomalous."""
    x = np.asarray(series.x[first:last], np.float64)
    if series.labels is None or not series.labels[first:last].any():
        return [x]
    edges = np.flatnonzero(np.diff((~series.labels[first:last]).astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [x[a:b] for a, b in edges]


def normal_rows(spec: str, window: int | None) -> NormalRows:
    """Read normal series: the first rows of each to fit on, the last ones held out.

    Raises:
        DataError: as `divide_series`, or if there are fewer than three windows.
    """
    notes: list[str] = []
    divided = divide_series(spec, ReadOptions(kind="series", window=window, valid_share=0, test_share=0), None, notes)
    for line in notes:
        note(line)
    fit, held_out, left_out = [], [], 0
    for series in divided.series:
        end = series.train_end or len(series)
        cut = end - end // HELD_OUT
        fit += without_anomalies(series, 0, cut)
        held_out += without_anomalies(series, cut, end)
        left_out += 0 if series.labels is None else int(series.labels[:end].sum())
    if left_out:
        note(f"{left_out:,} rows that are labelled as anomalous are not used as normal rows")
    least = max(2, divided.window // 2)
    fit, held_out = ([x for x in of if len(x) >= least] for of in (fit, held_out))
    rows = sum(map(len, fit)) + sum(map(len, held_out))
    if rows < FEWEST_NORMAL * divided.window or not held_out:
        raise DataError(
            f"{rows:,} normal rows are too few for windows of {divided.window} rows: give at least "
            f"{FEWEST_NORMAL * divided.window:,}, or a smaller {option('window')}",
            code="too-few-normal-examples",
        )
    end = divided.series[0].train_end if len(divided.series) == 1 else None
    center, scale, low, high = arrays.moments(np.concatenate(fit).astype(np.float32), np.arange(sum(map(len, fit))))
    first = divided.series[0]
    schema = Schema((fit[0].shape[1]), (divided.window,), Real(low, high), missing=True, center=center, scale=scale)
    return NormalRows(fit, held_out, replace(schema, columns=first.columns), os.path.abspath(first.path), end)


def training_windows(rows: Sequence[np.ndarray], window: int) -> np.ndarray:
    """Cut overlapping windows `[N, C, window]` from stretches; NaN fills those that are shorter than a window."""
    segments = [(i, 0, len(x)) for i, x in enumerate(rows)]
    count = sum(map(len, rows))
    stride = max(training_stride(segments, window), -(-count // MOST_WINDOWS))
    starts = window_starts(segments, window, stride, padded=False)
    found = np.full((len(starts), rows[0].shape[1], window), np.nan, np.float32)
    for place, (i, at) in enumerate(starts):
        piece = rows[i][at : at + window]
        found[place, :, : len(piece)] = piece.T
    return found


def train_on_rows(inliers: NormalRows, spec: str, place: Path, *, minutes: float, seed: int, device: Any) -> Run:
    """Train a VAE on windows of the normal rows, hiding parts of each window from its encoder."""
    parts = {
        "train": training_windows(inliers.fit, inliers.window),
        "valid": training_windows(inliers.held_out, inliers.window),
    }
    schema = replace(inliers.schema, observed=float((~np.isnan(parts["train"])).mean()))
    splits = {
        name: PartSplit(RawSplit(of, None, index_keys(len(of), name), name=spec), np.arange(len(of)))
        for name, of in parts.items()
    }
    options = {"kind": "series", "window": inliers.window}
    data = Data(os.path.abspath(spec), options, schema, dict(splits), ())
    torch.manual_seed(seed)
    model = ModelConfig.chosen("vae").from_options({"width": 16, "depth": 1}).build(schema)
    train(model, data, place, TrainOptions(minutes=minutes, batch_size=32, seed=seed, device=device))
    return Run(place, device)


def rows_of_run(run: Run, model: Model, calibration: Sequence[str]) -> tuple[NormalRows, list[ScoredSeries]]:
    """Read the training rows of a run as normal rows, and its validation rows, or other series, as held-out ones.

    Returns:
        the normal rows, and the run's test rows, whose scores are empty yet.
    """
    options = {
        name: run.spec.data.get(name) for name in ("window", "stride", "seconds", "valid_share", "test_share", "seed")
    }
    asked = ReadOptions(kind="series", like=model.schema, **{n: v for n, v in options.items() if v is not None})
    divided = divide_series(str(run.spec.data["spec"]), asked, run.spec.data.get("label"), [])
    stretches: Mapping[str, list[np.ndarray]] = {
        name: [part for i, a, b in of for part in without_anomalies(divided.series[i], a, b)]
        for name, of in divided.segments.items()
    }
    held_out = stretches.get("valid", [])
    others = [word for word in calibration if word != "valid"]
    if others:
        given = [one for word in others for one in read_series(word, [], like=model.schema)]
        held_out = [part for series in given for part in without_anomalies(series, 0, len(series))]
    (window,), least = model.schema.spatial, model.schema.spatial[0] // 2
    fit, held_out = ([x for x in of if len(x) >= least] for of in (stretches["train"], held_out))
    if not held_out:
        raise DataError(
            f"there are no held-out normal rows for windows of {window} rows: give normal series with "
            f"{option('calibration_data')}",
            code="too-few-normal-examples",
        )
    tests = [ScoredSeries(divided.series[i], {}, a) for i, a, _ in divided.segments.get("test", [])]
    return NormalRows(fit, held_out, model.schema, ""), tests


def detect_rows(
    name: str,
    model: Model,
    inliers: NormalRows,
    inputs: Sequence[ScoredSeries],
    rate: float | None,
    *,
    score: str | None,
    seed: int,
) -> SeriesDetection:
    """Score the rows of series, with a threshold that held-out normal rows exceed at a stated rate.

    Args:
        inputs: the series, whose scores are empty yet.
        rate: share of the held-out rows above the threshold; None for `DEFAULT_RATE`, or for no threshold if they are
            too few.
        score: score to flag by; None to choose it on made-up anomalies.

    Raises:
        SpecError: if there is no such score.
        DataError: if there are too few held-out rows, or a series is too short.
    """
    count, asked = sum(map(len, inliers.held_out)), rate is not None
    rate = DEFAULT_RATE if rate is None else rate
    enough = count * rate >= 1
    if asked and not enough:
        raise DataError(
            f"{count:,} held-out normal rows are too few for a false-positive rate of {rate:g}: give more, or a higher "
            f"{option('false_positives')}",
            code="too-few-normal-examples",
            needed=math.ceil(1 / rate),
        )
    if count < FEWEST_WINDOWS * inliers.window:
        note(
            f"the {count:,} held-out normal rows hold {count / inliers.window:.1f} windows: the false-positive rate of "
            "other rows may differ from the stated one"
            if enough
            else f"the {count:,} held-out normal rows are too few for a threshold: give more with "
            f"{option('calibration_data')}"
        )
    scores = RowScores(inliers.fit, inliers.held_out, max(2, inliers.window // 2), model)
    if score is not None and score not in scores.names:
        raise SpecError(
            f"the score {score} is not computed here; there are: {', '.join(scores.names)}", code="no-such-score"
        )
    choice: RowChoice | None = None
    if score is None:
        choice = choose_score(scores, inliers.held_out, inliers.window, seed)
        note(f"score {choice.score}: mean average precision {choice.mean(choice.score):.3f} of made-up anomalies")
    normal = scores.normal if enough else {}
    thresholds = {of: float(np.quantile(values, 1 - rate, method="higher")) for of, values in normal.items()}
    found = [
        replace(one, scores=scores(np.asarray(one.series.x[one.first :], np.float64)))
        for one in track(list(inputs), "scoring")
    ]
    known = [one for one in found if one.labels is not None]
    labels = np.concatenate([one.labels for one in known if one.labels is not None]) if known else np.zeros(0, bool)
    rankings = None
    if labels.any() and not labels.all():
        rankings = {of: ranking(np.concatenate([one.scores[of] for one in known]), labels) for of in scores.names}
    by = score if choice is None else choice.score
    assert by is not None
    return SeriesDetection(
        name, model.name, inliers.window, by, found, rate if enough else None, thresholds, count, choice, rankings
    )


def inputs_of(words: Sequence[str], like: Schema, inliers: NormalRows) -> list[ScoredSeries]:
    """Read the series that words name; of the file of the normal rows, only the rows after those are scored.

    Raises:
        DataError: if a file is missing, does not fit, or all of its rows are normal ones.
    """
    found = []
    for word in words:
        if not os.path.exists(word):
            raise DataError(f"no such input: {word}; give files or folders of series", code="no-such-input", input=word)
        for series in read_series(word, [], like=like):
            same = os.path.abspath(series.path) == inliers.source
            if same and inliers.end is None:
                raise DataError(
                    f"all rows of {series.path} are used as normal ones, so none is left to score: give other inputs",
                    code="all-normal",
                )
            found.append(ScoredSeries(series, {}, (inliers.end or 0) if same else 0))
    return found
