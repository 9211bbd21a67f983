"""Task `detect`: anomaly scores, thresholds with a stated false-positive rate, and heat maps.

statistics   distortion, rate, regret, file length and local scores of examples, from which scores are computed
local        features of each place of a picture, and statistics of normal ones; local_scores: maps, pooled scores
detector     scores, thresholds and p-values of batches
made_up      made-up anomalies; choice: the default score, chosen on them
prepared     a detector with its model, score and thresholds
detection    scores of all inputs, which may exceed memory
regions      masks of what is flagged, and their agreement with known masks
series       scores of the rows of series, a folder of its own
result       JSON, CSV and page; ranking: AUROC and average precision if the anomalies are known
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, UseAppendAction

from tessella.foundation.errors import DataError, SpecError, option
from tessella.tasks.task import task

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.data.inputs import Inputs
    from tessella.models.base import Model
    from tessella.tasks.detect.detection import Extreme
    from tessella.tasks.detect.regions import Regions
    from tessella.tasks.detect.result import DetectionResult, ShownExample
    from tessella.tasks.detect.series.result import SeriesDetection
    from tessella.training.run import Run

FALSE_POSITIVES, TRAINED_RATE = 0.01, 0.05
"""Default false-positive rates: with calibration data, and with `train`, which leaves few examples for it."""
AT_ONCE = 100
"""Number of heat maps per batch."""


@dataclass(frozen=True)
class DetectConfig:
    """Detect anomalies: scores, a threshold with a stated false-positive rate, and heat maps of the examples.

    Attributes:
        inputs: files, folders (sub-folders are classes), numbers of examples (7, 3:20), names of splits
            (valid), or other data; by default the whole split.
        calibration_data: normal examples that were not used in training, which set the thresholds; `valid` is the run's
            own validation split. May be repeated.
        false_positives: share of normal examples that may be flagged; by default 0.01 if there is calibration data.
        anomalies: inputs known to be anomalous; all other inputs then count as normal. May be repeated.
        normal: names of normal classes; examples of all other classes count as anomalous. May be repeated.
        score: score to sort and flag by; of pictures by default the one, or the mean of two, that separates held-out
            normal examples best from made-up anomalies; of rows of tables combined, of signals neighbours, of the rows
            of series combined or what is clearly better on made-up anomalies; else the bound.
        scores: scores to compute; by default all that the model allows, but for the slow regret.
        normalize: `local-contrast` ignores illumination and contrast of a picture in local features, `none` keeps them.
        top: number of examples on the page with the highest scores, and with the lowest.
        train: normal examples to train a model on, of which a quarter is held out to choose the score and set
            the threshold. Then no run is given, and all other arguments are inputs.
        kind: with `train`, signal if arrays (N, C, T) or the rows of a table are signals; series if rows are
            consecutive times: then each row of the inputs gets a score.
        window: rows of a window of a series with `train`; by default twice the period.
        minutes: training time with `train`.
        size: side of pictures with `train`; by default their own, at most 128.
        keep: run folder to keep the model of `train` in; by default it is deleted.
        masks: known anomalous regions of the anomalies (of all inputs if no anomalies are named): a folder of pictures
            named like these, or a file with an array [N, H, W]. What is not 0 is anomalous.
        split: split that numbers refer to, and that is used of other data with several splits.
        prior: kind of the fitted prior to use, or trained (uniform for codes): the model's own; by default the best.
        label: class of files, by name or number, for a conditional model; by default their sub-folder's.
        data: data set to use for numbers and splits instead of the run's own; it is read with the run's options.
        samples: posterior samples of z per example.
        steps: steps of per-example optimisation for the regret.
        seed: seed of the samples.
    """

    inputs: Positional[tuple[str, ...]] = ()
    calibration_data: UseAppendAction[tuple[str, ...]] = ()
    false_positives: float | None = None
    anomalies: UseAppendAction[tuple[str, ...]] = ()
    normal: UseAppendAction[tuple[str, ...]] = ()
    score: str | None = None
    scores: tuple[str, ...] = ()
    normalize: Literal["local-contrast", "none"] = "local-contrast"
    top: int = 40
    train: str | None = None
    kind: Literal["signal", "series"] | None = None
    window: int | None = None
    minutes: float = 2.0
    size: int | None = None
    keep: str | None = None
    masks: str | None = None
    split: str = "test"
    prior: str | None = None
    label: str | None = None
    data: str | None = None
    samples: int = 4
    steps: int = 20
    seed: int = 0

    def check(self) -> None:
        """Raise if an option is out of range or contradicts another."""
        from tessella.tasks.detect.detector import check_rate

        if self.false_positives is not None:
            check_rate(self.false_positives)
            if not (self.calibration_data or self.train):
                raise SpecError(
                    f"{option('false_positives')} needs held-out normal examples: pass them with "
                    f"{option('calibration_data')}, for example valid, the run's own validation split",
                    code="no-calibration-data",
                )
        if self.train is None:
            for name in ("keep", "size", "kind", "window"):
                if getattr(self, name) is not None:
                    raise SpecError(f"{option(name)} can only be used with {option('train')}", code="only-with-train")
        if self.masks is not None and not Path(self.masks).exists():
            raise DataError(f"there are no masks at {self.masks}: give a folder or a file of arrays", code="no-masks")
        if not self.minutes > 0:
            raise SpecError(f"{option('minutes')} must be more than 0, got {self.minutes:g}", code="out-of-range")
        for name, least in (("samples", 1), ("steps", 1), ("top", 0)):
            if (given := getattr(self, name)) < least:
                raise SpecError(
                    f"{option(name)} must be at least {least}, got {given}", code="out-of-range", option=name
                )


@task(
    "detect",
    summary="find anomalies, with a stated false-positive rate",
    group="use",
    out="anomalies",
    page="index.html",
)
def detect(run: Run, config: DetectConfig) -> DetectionResult | SeriesDetection:
    """Score examples by how anomalous they are for a run that was trained on normal ones.

    Raises:
        SpecError: if options are out of range or contradict each other, or the model does not allow a score.
        DataError: if the examples are missing, or there are too few normal ones.
    """
    config.check()
    import os
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from tessella.data.series import is_series
    from tessella.tasks.detect.prepared import train_on

    if is_series(config.train, config.kind) if config.train else is_series(*_source(run)):
        return _detect_series(run, config)
    with ExitStack() as stack:
        trained_on = None
        if (normals := config.train) is not None:
            rate = TRAINED_RATE if config.false_positives is None else config.false_positives
            kept = config.keep or os.path.join(stack.enter_context(TemporaryDirectory()), "detector")
            first = str(run.path)
            how: dict[str, Any] = {
                "size": config.size,
                "kind": config.kind,
                "minutes": config.minutes,
                "rate": rate,
                "seed": config.seed,
            }
            config = replace(config, inputs=(first, *config.inputs), false_positives=rate)
            check = partial(_check_inputs, config)
            run, trained_on = train_on(normals, Path(kept), **how, device=run.device, check=check)
            if not config.calibration_data:
                config = replace(config, calibration_data=("test",))
        return _detected(run, config, trained_on)


def _source(run: Run) -> tuple[str | None, str | None]:
    """Return the SPEC and the kind of a run's data."""
    return run.spec.data.get("spec"), run.spec.data.get("kind")


def _detect_series(run: Run, config: DetectConfig) -> SeriesDetection:
    """Score the rows of series, for a run or a model that is trained for it."""
    import os
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from tessella.tasks.detect.series import prepared

    with ExitStack() as stack:
        if config.train is not None:
            inliers, words = prepared.normal_rows(config.train, config.window), (str(run.path), *config.inputs)
            inputs = prepared.inputs_of(words, inliers.schema, inliers)
            kept = config.keep or os.path.join(stack.enter_context(TemporaryDirectory()), "detector")
            how: dict[str, Any] = {"minutes": config.minutes, "seed": config.seed, "device": run.device}
            run, name = prepared.train_on_rows(inliers, config.train, Path(kept), **how), Path(config.train).name
            model = run.model(None)
        else:
            name, model = run.path.name, run.model(config.prior)
            inliers, inputs = prepared.rows_of_run(run, model, config.calibration_data)
            words = tuple(word for word in config.inputs if word != config.split)
            inputs = prepared.inputs_of(words, model.schema, inliers) if words else inputs
        return prepared.detect_rows(
            name, model, inliers, inputs, config.false_positives, score=config.score, seed=config.seed
        )


def _check_inputs(config: DetectConfig, model: Model, own: Data) -> None:
    """Raise if the inputs are missing or the masks do not fit them, before the time of a training is spent."""
    from tessella.data import open_data
    from tessella.kinds.base import kind_of

    like: dict[str, Any] = {"size": model.schema.spatial} if kind_of(model.schema).pixels else {"kind": config.kind}
    _inputs(config, model, _reader(config, model, lambda spec: own if spec is None else open_data(spec, **like)))


def _inputs(config: DetectConfig, model: Model, read: Callable[..., Inputs]) -> tuple[Inputs, Inputs | None]:
    """Find the inputs and the anomalies; raise if the masks do not fit them."""
    from tessella.tasks.detect.regions import read_masks

    inputs, anomalies = read(config.inputs), read(config.anomalies) if config.anomalies else None
    if config.masks is not None and not config.normal:
        read_masks(config.masks, (anomalies or inputs).names, model.schema)
    return inputs, anomalies


def _reader(config: DetectConfig, model: Model, data: Callable[[str | None], Data]) -> Callable[..., Inputs]:
    """Make a function that finds the examples that words name; `data` opens a SPEC, or the run's own data."""
    from tessella.data.inputs import Inputs

    return partial(Inputs, model, data=data, split=config.split, label=config.label, keep_endings=True)


def _detected(run: Run, config: DetectConfig, trained_on: Data | None) -> DetectionResult:
    """Score examples with a run; `trained_on` is its data if it was just trained."""
    import numpy as np

    from tessella.tasks.detect.detection import score_inputs
    from tessella.tasks.detect.prepared import prepare_detector
    from tessella.tasks.detect.ranking import ranking
    from tessella.tasks.detect.regions import Regions
    from tessella.tasks.detect.result import DetectionResult

    model = run.model(config.prior)
    own = cache(lambda: trained_on or run.data(None, model))
    data = cache(lambda spec: own() if spec is None and config.data is None else run.data(spec or config.data, model))

    read = _reader(config, model, data)
    inputs, anomalies = _inputs(config, model, read)
    rate = FALSE_POSITIVES if config.false_positives is None else config.false_positives
    how = {name: getattr(config, name) for name in ("score", "scores", "normalize", "samples", "steps", "seed")}
    ready = prepare_detector(
        model, own, read(config.calibration_data) if config.calibration_data else None, rate, **how
    )
    regions = Regions.of(ready, config.masks)
    found = score_inputs(ready, inputs, anomalies, regions, normal=config.normal, top=config.top)
    rankings = None
    if config.anomalies or config.normal:
        known = [a is not None for a in found.anomalous]
        anomalous = np.array([a for a in found.anomalous if a is not None], bool)
        rankings = {name: ranking(values[known], anomalous) for name, values in found.scores.items()}
    return DetectionResult(
        run.path.name if config.train is None else Path(config.train).name,
        model.name,
        model.schema,
        ready.by,
        {score.name: score.summary for score in ready.detector.scores},
        found,
        ready.calibration,
        ready.choice,
        rankings,
        None if regions is None else regions.finished(found.names, found.anomalous),
        _shown(model, found.highest, regions),
        _shown(model, found.lowest, regions),
    )


def _shown(model: Model, examples: Sequence[Extreme], regions: Regions | None) -> list[ShownExample]:
    """Compute the heat maps of the examples to show."""
    from tessella.core.batches import Batch
    from tessella.tasks.detect.local_scores import maps
    from tessella.tasks.detect.result import ShownExample

    shown = []
    for first in range(0, len(examples), AT_ONCE):
        some = examples[first : first + AT_ONCE]
        batch = Batch.cat([one.batch for one in some])
        found = maps(model, batch)
        local = None if regions is None else regions.maps(batch)
        for i, one in enumerate(some):
            surprise = None if found.surprise is None else found.surprise[i]
            reconstruction = None if found.reconstruction is None else found.reconstruction[i]
            unusual = None if local is None else local[i]
            shown.append(ShownExample(one.row, one.batch.x[0], found.error[i], surprise, reconstruction, unusual))
    return shown


__all__ = ["DetectConfig", "detect"]
