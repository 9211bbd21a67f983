"""Detect anomalies: scores, thresholds with a stated false-positive rate, and heat maps.

statistics   distortion, rate, regret and file length of examples
scores       what is made of them
calibration  thresholds and p-values from held-out normal examples
ranking      AUROC and average precision, where it is known what is anomalous
maps         where in an example
detector     scores and thresholds of batches
detection    scores of all inputs, which may be more than fit in memory
result       all of it, as JSON, CSV and page
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional, UseAppendAction

from tessella.foundation.errors import SpecError, TessellaError, option
from tessella.foundation.notes import note
from tessella.tasks.task import task

if TYPE_CHECKING:
    from tessella.core.batches import Batch
    from tessella.data import Data
    from tessella.models.base import Model
    from tessella.tasks.detect.detection import Extreme
    from tessella.tasks.detect.detector import Detector
    from tessella.tasks.detect.result import DetectionResult, ShownExample
    from tessella.tasks.detect.statistics import Statistics
    from tessella.training.run import Run

FALSE_POSITIVES = 0.01
FITTED_ON, AT_ONCE = 500, 100
"""Examples of the run's validation split that scores are fitted on, where no normal examples are given; and the
examples whose heat maps are computed at a time."""


@dataclass(frozen=True)
class DetectConfig:
    """Detect anomalies: scores, a threshold with a stated false-positive rate, and where an example does not fit.

    Attributes:
        inputs: picture files, folders of them (sub-folders are classes), numbers (7, 3:20), splits (valid) or SPECs;
            none: all of the split.
        calibration_data: normal examples that had no part in training, an input each; they set the thresholds.
            `valid` is the run's own validation split.
        false_positives: share of normal examples that may be flagged; 0.01 where there is calibration data.
        anomalies: inputs known to be anomalous; all others are then known to be normal.
        normal: classes that are normal; examples of others are anomalous.
        score: the score to sort and flag by; by default complexity-corrected, or where that is not allowed the bound.
        scores: which scores to compute; by default all that the model allows.
        top: how many examples the page shows at either end.
        split: the split that numbers refer to, and that is taken of a SPEC that comes divided.
        prior: the kind of a fitted prior, or trained (of codes uniform): the model's own; by default the best.
        label: the class of picture files, by name or number, for a conditional model; by default their sub-folder's.
        data: other data than the run's own, read as the run's was, for numbers and splits.
        samples: samples of z an example.
        steps: of the optimisation for one example that the regret takes.
        seed: of the samples.
    """

    inputs: Positional[tuple[str, ...]] = ()
    calibration_data: UseAppendAction[tuple[str, ...]] = ()
    false_positives: float | None = None
    anomalies: UseAppendAction[tuple[str, ...]] = ()
    normal: UseAppendAction[tuple[str, ...]] = ()
    score: str | None = None
    scores: tuple[str, ...] = ()
    top: int = 40
    split: str = "test"
    prior: str | None = None
    label: str | None = None
    data: str | None = None
    samples: int = 4
    steps: int = 20
    seed: int = 0

    def check(self) -> None:
        """Refuse what is out of range or contradicts itself."""
        from tessella.tasks.detect.detector import check_rate

        if self.false_positives is not None:
            check_rate(self.false_positives)
            if not self.calibration_data:
                raise SpecError(
                    f"{option('false_positives')} needs held-out normal examples: pass them with "
                    f"{option('calibration_data')}, for example valid, the run's own validation split",
                    code="no-calibration-data",
                )
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
def detect(run: Run, config: DetectConfig) -> DetectionResult:
    """Score examples by how ill they fit a run that was trained on normal ones.

    Raises:
        SpecError: if options are out of range or contradict each other, or the model does not allow a score.
        DataError: if there are no such examples, or too few normal ones.
    """
    config.check()
    import numpy as np

    from tessella.data.inputs import Inputs
    from tessella.tasks.detect.detection import calibrate, score_inputs
    from tessella.tasks.detect.detector import Detector
    from tessella.tasks.detect.result import DetectionResult, ranking

    model = run.model(config.prior)
    data = cache(lambda spec: run.data(spec or config.data, model))

    def read(words: Sequence[str]) -> Inputs:
        return Inputs(model, words, data, split=config.split, label=config.label, keep_endings=True)

    inputs, anomalies = read(config.inputs), read(config.anomalies) if config.anomalies else None
    wanted = {*config.scores, *([config.score] if config.score and config.scores else [])}

    def detector_for(normals: Statistics | list[Batch] | None) -> Detector:
        return Detector(
            model, sorted(wanted), normals=normals, samples=config.samples, steps=config.steps, seed=config.seed
        )

    calibration = None
    if config.calibration_data:
        rate = FALSE_POSITIVES if config.false_positives is None else config.false_positives
        detector, calibration = calibrate(detector_for, read(config.calibration_data), rate)
    else:
        detector = detector_for(_own_normals(data))
    by = _by(config.score, detector)
    found = score_inputs(detector, inputs, anomalies, by=by, normal=config.normal, top=config.top)
    rankings = None
    if config.anomalies or config.normal:
        known = [a is not None for a in found.anomalous]
        anomalous = np.array([a for a in found.anomalous if a is not None], bool)
        rankings = {name: ranking(values[known], anomalous) for name, values in found.scores.items()}
    return DetectionResult(
        run.path.name,
        model.name,
        model.schema,
        by,
        {score.name: score.summary for score in detector.scores},
        found.names,
        found.classes,
        found.anomalous,
        found.scores,
        calibration,
        rankings,
        _shown(model, found.highest),
        _shown(model, found.lowest),
    )


def _own_normals(data: Any) -> list[Batch] | None:
    """Some of the run's validation split; None if there is none, or it is too small to fit scores on."""
    from tessella.data.splits import batches
    from tessella.tasks.detect.detector import FEWEST

    try:
        opened: Data = data(None)
        split = opened.split("valid")
    except TessellaError:
        return None
    some = split.subset(split.random_rows(FITTED_ON))
    return None if len(some) < FEWEST else list(batches(some, AT_ONCE))


def _by(asked: str | None, detector: Detector) -> str:
    """The score to sort and flag by."""
    if detector.left_out:
        left = ", ".join(score.name for score in detector.left_out)
        note(f"{left}: left out, for want of normal examples to fit them on; {option('calibration_data')} gives some")
    given = [score.name for score in detector.scores]
    if asked is None:
        return detector.preferred
    if asked not in given:
        raise SpecError(
            f"the score {asked} is not computed here; there are: {', '.join(given)}", code="no-such-score", score=asked
        )
    return asked


def _shown(model: Model, examples: Sequence[Extreme]) -> list[ShownExample]:
    """Compute the heat maps of examples to show."""
    from tessella.core.batches import Batch
    from tessella.tasks.detect.detection import maps
    from tessella.tasks.detect.result import ShownExample

    shown = []
    for first in range(0, len(examples), AT_ONCE):
        some = examples[first : first + AT_ONCE]
        found = maps(model, Batch.cat([one.batch for one in some]))
        for i, one in enumerate(some):
            surprise = None if found.surprise is None else found.surprise[i]
            given_back = None if found.reconstruction is None else found.reconstruction[i]
            shown.append(ShownExample(one.row, one.batch.x[0], found.error[i], surprise, given_back))
    return shown


__all__ = ["DetectConfig", "detect"]
