"""A detector that is ready for new examples: its model trained, its scores fitted, one chosen, and thresholds set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from tessella.core.batches import Batch
from tessella.data import Data, open_data
from tessella.data.inputs import Inputs
from tessella.data.splits import batches
from tessella.foundation.errors import DataError, SpecError, TessellaError, option
from tessella.foundation.notes import note
from tessella.kinds.base import DataKind, kind_of
from tessella.models.base import Model
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.tasks.detect.choice import FEWEST_TO_CHOOSE, Choice, choose
from tessella.tasks.detect.detector import FEWEST, SCORES, Calibration, Detector, check_rate, needed, too_few
from tessella.tasks.detect.local import Normalization
from tessella.tasks.detect.local_scores import FEWEST_PICTURES, LocalScorer, say_alignment, useful_rows
from tessella.tasks.detect.series.signals import MOST_SIGNALS, SignalScorer
from tessella.tasks.detect.statistics import SAMPLES, STEPS, Statistics
from tessella.tasks.detect.tables import RowScorer, most_rows
from tessella.training.loop import train
from tessella.training.run import Run

FITTED_ON, AT_ONCE = 500, 100
"""Number of validation examples to fit scores on if no normal examples are given, and to read at once."""

SHARE = 3
"""One of so many normal examples serves to fit and choose scores; the others set thresholds."""
SUSPICIOUS = 6.0
"""Robust deviations above the median from which a normal example is suspicious."""
SAMPLE = 100
"""Most normal examples that scores are chosen on."""


@final
@dataclass(frozen=True)
class HeldOut:
    """Held-out normal examples in two parts: one to fit and choose scores on, one to set thresholds.

    Attributes:
        fit: statistics of the first part; None if there are too few examples for two parts.
        thresholds: statistics of the others, or of all.
        sample: examples of the first part, at most `SAMPLE`.
    """

    fit: Statistics | None
    thresholds: Statistics
    sample: Batch | None


def fewest_to_divide(false_positives: float) -> int:
    """Return how many held-out normal examples make two parts: one to choose scores on, one for thresholds."""
    return max(SHARE * FEWEST, math.ceil(needed(false_positives) * SHARE / (SHARE - 1)))


def measure_held_out(plain: Detector, inliers: Inputs, false_positives: float, *, choosing: bool) -> HeldOut:
    """Compute the statistics of held-out normal examples, in two parts if there are enough of them.

    Args:
        plain: detector whose scores are not fitted yet.
        choosing: whether a part is also needed to choose the score.

    Raises:
        SpecError, DataError: if the rate is out of range, or there are too few examples for it.
    """
    check_rate(false_positives)
    total = len(inliers)
    least = fewest_to_divide(false_positives)
    divided = total >= least and (choosing or bool(plain.left_out))
    if not (divided or plain.scores):
        raise DataError(
            f"scores that are fitted on normal examples need at least {least} of them, a third for the fit, and "
            f"{total} are given: give more with {option('calibration_data')}, or choose other {option('scores')}",
            code="too-few-normal-examples",
            needed=least,
        )
    if total < needed(false_positives):
        raise too_few(total, false_positives)
    parts: list[Statistics] = []
    sample: list[Batch] = []
    done, kept = 0, 0
    for named in inliers.track("calibrating"):
        parts.append(plain.extract(named.batch))
        if divided and kept < SAMPLE:
            sample.append(named.batch[slice(-done % SHARE, None, SHARE)])
            kept += len(sample[-1])
        done += len(named.batch)
    found = Statistics.cat(parts)
    if not divided:
        return HeldOut(None, found, None)
    first = np.arange(total) % SHARE == 0
    return HeldOut(found.rows(first), found.rows(~first), Batch.cat(sample)[:SAMPLE])


@final
@dataclass(frozen=True)
class Prepared:
    """A detector with its default score and thresholds.

    Attributes:
        by: name of the score to flag by.
        calibration: thresholds; None without calibration data.
        choice: why this score; None if it was given, or is the only one.

    Example:
        >>> prepared.detector.score(batch)[prepared.by] > prepared.calibration.thresholds[prepared.by]
    """

    detector: Detector
    by: str
    calibration: Calibration | None
    choice: Choice | None


def prepare_detector(
    model: Model,
    own: Callable[[], Data],
    calibration: Inputs | None = None,
    rate: float = 0.01,
    *,
    score: str | None = None,
    scores: Sequence[str] = (),
    normalize: Normalization = "local-contrast",
    samples: int = SAMPLES,
    steps: int = STEPS,
    seed: int = 0,
) -> Prepared:
    """Fit the scores, choose one and set thresholds.

    Args:
        own: opens the data that the model was trained on.
        calibration: normal examples that were not used in training.
        rate: false-positive rate of the thresholds.
        score: score to flag by; None to choose it.
        scores: scores to compute; none for all that are not slow.
        normalize: what local features ignore.
        samples, steps, seed: as in `StatisticsExtractor`.

    Raises:
        SpecError, DataError: as `Detector` and `measure_held_out`.
    """
    asked = (score,) if score is not None and scores else ()
    wanted = sorted({*scores, *asked})
    normals = None if calibration is not None else _own_normals(own)
    independent = normals is not None or (calibration is not None and len(calibration) >= fewest_to_divide(rate))
    local = _local_scorer(model, own, normalize, wanted, independent)
    signals = _signal_scorer(model, own, wanted, calibration)
    rows = signals or _row_scorer(model, own, wanted)
    how: dict[str, Any] = {"samples": samples, "steps": steps, "seed": seed, "local": local, "rows": rows}
    plain = Detector(model, wanted, **how)
    choosing = score is None and kind_of(model.schema).pixels
    thresholds = None
    if calibration is not None:
        held_out = measure_held_out(plain, calibration, rate, choosing=choosing)
        fitted_on, sample, thresholds = held_out.fit, held_out.sample, held_out.thresholds
    else:
        sample = normals
        fitted_on = None if sample is None else plain.statistics(sample.split(AT_ONCE))
    detector = plain if fitted_on is None else Detector(model, wanted, inliers=fitted_on, **how)
    choice = None
    if choosing and len(detector.scores) > 1:
        candidates = None
        if local is not None and (sample is None or len(sample) < FEWEST_TO_CHOOSE):
            sample, candidates = local.rest, local.names
            note(
                "the score is chosen among the local ones, on training pictures that these were not fitted on: to "
                f"compare all, give {SHARE * FEWEST_TO_CHOOSE} normal examples with {option('calibration_data')}"
            )
        if sample is not None:
            detector, choice = choose(detector, sample, candidates, seed)
            note(_choice_text(choice))
    by = _by(score, detector) if choice is None else choice.score
    if thresholds is None:
        return Prepared(detector, by, None, choice)
    calibrated = detector.calibrate(thresholds, rate)
    if signals is not None and signals.names[0] in calibrated.inliers:
        calibrated = Calibration({**calibrated.inliers, signals.names[0]: signals.of_normal}, rate)
    _say_suspicious(calibrated.inliers[by], rate)
    return Prepared(detector, by, calibrated, choice)


def _say_suspicious(scores: np.ndarray, rate: float) -> None:
    """Note if normal examples look like anomalies, which raise the threshold."""
    center = np.median(scores)
    spread = 1.4826 * np.median(np.abs(scores - center))
    strange = int((scores > center + SUSPICIOUS * spread).sum()) if spread > 0 else 0
    if strange > rate * len(scores) / 2:
        note(
            f"{strange} of {len(scores)} held-out normal examples score like anomalies and raise the threshold: check "
            "that all normal examples are normal"
        )


def _local_scorer(
    model: Model, own: Callable[[], Data], normalize: Normalization, wanted: Sequence[str], independent: bool
) -> LocalScorer | None:
    """Fit local scores on the training pictures; None if they are not wanted, or there are too few pictures.

    Args:
        independent: whether there are other normal pictures to choose scores on.
    """
    if not kind_of(model.schema).pixels or _others_alone(wanted):
        return None

    def rows(examples: int) -> int:
        return useful_rows(examples, model.schema.shape)

    normals = _training_examples(own, FEWEST_PICTURES, rows, "local scores")
    if normals is None:
        return None
    scorer = LocalScorer(model, normals, normalize, compare_rest=independent)
    say_alignment(scorer)
    return scorer


def _row_scorer(model: Model, own: Callable[[], Data], wanted: Sequence[str]) -> RowScorer | None:
    """Fit the scores of rows on the training rows; None if they are not wanted, or there are too few rows."""
    if model.schema.rank or _others_alone(wanted):
        return None
    most = most_rows(model.schema.dims)
    normals = _training_examples(own, FEWEST, lambda examples: most, "scores relative to training rows")
    return None if normals is None else RowScorer(normals)


def _signal_scorer(
    model: Model, own: Callable[[], Data], wanted: Sequence[str], calibration: Inputs | None
) -> SignalScorer | None:
    """Fit the distance from normal signals on the training signals and those that set thresholds."""
    kind = kind_of(model.schema)
    if not model.schema.rank or kind.pixels or kind.audible or _others_alone(wanted):
        return None
    inliers = _training_examples(own, FEWEST, lambda examples: MOST_SIGNALS, "distances from normal signals")
    if inliers is None:
        return None
    more = [] if calibration is None else [named.batch.x.float() for named in calibration]
    return SignalScorer(torch.cat([inliers.x.float(), *more]).numpy())


def _others_alone(wanted: Sequence[str]) -> bool:
    """Return whether scores are named, and all of them need no training examples."""
    return bool(wanted) and all(name in [s.name for s in SCORES] for name in wanted)


def _training_examples(own: Callable[[], Data], fewest: int, rows: Callable[[int], int], scores: str) -> Batch | None:
    """Read random training examples to fit scores on; None, and a note, if there are none or too few.

    Args:
        rows: number of examples to read, given how many there are.
        scores: what is left out without them, in words.
    """
    try:
        split = own().split("train")
    except TessellaError as error:
        note(f"{scores} are left out, since the training examples cannot be read: {error.message}")
        return None
    if len(split) < fewest:
        note(f"{scores} are left out: they need at least {fewest} training examples, got {len(split)}")
        return None
    some = split.subset(split.random_rows(rows(len(split))))
    return Batch.cat(list(batches(some, AT_ONCE)))


def _choice_text(choice: Choice) -> str:
    others = sorted((n for n in choice.figures if n != choice.score), key=lambda name: -choice.mean(name))
    second = f"; next {others[0]}, {choice.mean(others[0]):.3f}" if others else ""
    return (
        f"score {choice.score}: mean AUROC {choice.mean(choice.score):.3f} over kinds of made-up anomalies, "
        f"{choice.made_up} against {choice.inliers} held-out normal examples{second}"
    )


def _own_normals(own: Callable[[], Data]) -> Batch | None:
    """Return some of the run's validation split; None if it is missing or too small to fit scores on."""
    try:
        split = own().split("valid")
    except TessellaError:
        return None
    some = split.subset(split.random_rows(FITTED_ON))
    return None if len(some) < FEWEST else Batch.cat(list(batches(some, AT_ONCE)))


def _by(asked: str | None, detector: Detector) -> str:
    """Choose the score to sort and flag by."""
    if detector.left_out:
        left = ", ".join(score.name for score in detector.left_out)
        note(f"{left}: left out, since they are fitted on normal examples: give some with {option('calibration_data')}")
    given = [score.name for score in detector.scores]
    if asked is None:
        return detector.preferred
    if asked not in given:
        raise SpecError(
            f"the score {asked} is not computed here; there are: {', '.join(given)}", code="no-such-score", score=asked
        )
    return asked


HELD_OUT = 4
"""One of so many normal examples is held out."""
MOST_HELD_OUT, VALIDATION = 1000, 20
"""Most held-out examples; one of so many normal examples watches over the training."""
LARGEST_SIDE = 128
"""Larger pictures are reduced to this side, unless a size is given."""
SMALL: dict[str, Any] = {"width": 16, "depth": 1}
"""Options of the model for pictures, which have to be trained in minutes."""


def train_on(
    spec: str,
    place: Path,
    *,
    size: int | None,
    kind: DataKind | None,
    minutes: float,
    rate: float,
    seed: int,
    device: Any,
    check: Callable[[Model, Data], None],
) -> tuple[Run, Data]:
    """Train a VAE on three quarters of the normal examples, and return it with its data.

    Args:
        spec: SPEC of the normal examples.
        place: the run folder.
        size: side of the pictures; None for their own.
        kind: how arrays and tables are read, as in `open_data`.
        rate: false-positive rate that the held-out examples are to calibrate.
        check: called with the model and the data before the training; raises if they will not do.

    Returns:
        the run, and the data: the split `test` has the held-out normal examples, `train` all others.

    Raises:
        DataError: if there are too few examples for the rate.
    """
    data = open_data(spec, size=size, kind=kind)
    described = kind_of(data.schema)
    if described.pixels and size is None and max(data.schema.spatial) > LARGEST_SIDE:
        data = open_data(spec, size=LARGEST_SIDE)
        note(f"pictures are reduced to {LARGEST_SIDE} pixels per side: keep more with {option('size')}")
    everything = data.all_examples or data.split("train")
    rows = everything.random_rows()
    held_out = min(len(rows) // HELD_OUT, MOST_HELD_OUT)
    if held_out < needed(rate):
        raise DataError(
            f"{len(rows)} normal {described.examples} are too few for a false-positive rate of {rate:g}, since a "
            f"quarter is held out to set the threshold: give at least {HELD_OUT * needed(rate)}, or a higher "
            f"{option('false_positives')}",
            code="too-few-normal-examples",
            needed=HELD_OUT * needed(rate),
        )
    watched = held_out + max(1, len(rows) // VALIDATION)
    splits = {
        "train": everything.subset(rows[watched:]),
        "valid": everything.subset(rows[held_out:watched]),
        "test": everything.subset(rows[:held_out]),
    }
    data = replace(data, splits=splits, all_examples=None)
    note(
        f"{len(rows) - held_out} normal {described.examples} to train on, {held_out} held out to choose the score and "
        "set its threshold"
    )
    torch.manual_seed(seed)
    model = ModelConfig.chosen("vae").from_options(SMALL if described.pixels else {}).build(data.schema)
    check(model, data)
    train(model, data, place, TrainOptions(minutes=minutes, batch_size=32, seed=seed, device=device))
    splits = {"train": everything.subset(rows[held_out:]), "test": splits["test"]}
    return Run(place, device), replace(data, splits=splits)
