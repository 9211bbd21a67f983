"""Task `detect`: anomaly scores, thresholds with a stated false-positive rate, and heat maps.

statistics   distortion, rate, regret and file length of examples, from which scores are computed
detector     scores, thresholds and p-values of batches
detection    scores of all inputs, which may exceed memory, and heat maps
result       JSON, CSV and page; AUROC and average precision if the anomalies are known
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, UseAppendAction

from tessella.foundation.errors import SpecError, TessellaError, option
from tessella.foundation.notes import note
from tessella.tasks.task import task

if TYPE_CHECKING:
    from tessella.core.batches import Batch
    from tessella.data import Data
    from tessella.models.base import Model
    from tessella.tasks.detect.choice import Choice
    from tessella.tasks.detect.detection import Extreme
    from tessella.tasks.detect.detector import Detector
    from tessella.tasks.detect.local_scores import LocalScorer
    from tessella.tasks.detect.result import DetectionResult, ShownExample
    from tessella.training.run import Run

FALSE_POSITIVES = 0.01
FITTED_ON, AT_ONCE = 500, 100
"""Number of validation examples to fit scores on if no normal examples are given, and of heat maps per batch."""


@dataclass(frozen=True)
class DetectConfig:
    """Detect anomalies: scores, a threshold with a stated false-positive rate, and heat maps of the examples.

    Attributes:
        inputs: picture files, folders (sub-folders are classes), numbers of examples (7, 3:20), names of splits
            (valid), or other data; by default the whole split.
        calibration_data: normal examples that were not used in training, which set the thresholds; `valid` is the run's
            own validation split. May be repeated.
        false_positives: share of normal examples that may be flagged; by default 0.01 if there is calibration data.
        anomalies: inputs known to be anomalous; all other inputs then count as normal. May be repeated.
        normal: names of normal classes; examples of all other classes count as anomalous. May be repeated.
        score: score to sort and flag by; of pictures by default the one, or the mean of two, that separates held-out
            normal examples best from made-up anomalies; else the bound.
        scores: scores to compute; by default all that the model allows, but for the slow regret.
        normalize: `local-contrast` ignores illumination and contrast of a picture in local features, `none` keeps them.
        top: number of examples on the page with the highest scores, and with the lowest.
        split: split that numbers refer to, and that is used of other data with several splits.
        prior: kind of the fitted prior to use, or trained (uniform for codes): the model's own; by default the best.
        label: class of picture files, by name or number, for a conditional model; by default their sub-folder's.
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
    """Score examples by how anomalous they are for a run that was trained on normal ones.

    Raises:
        SpecError: if options are out of range or contradict each other, or the model does not allow a score.
        DataError: if the examples are missing, or there are too few normal ones.
    """
    config.check()
    import numpy as np

    from tessella.data.inputs import Inputs
    from tessella.kinds.base import kind_of
    from tessella.tasks.detect.choice import FEWEST_TO_CHOOSE, choose
    from tessella.tasks.detect.detection import SHARE, measure_held_out, score_inputs
    from tessella.tasks.detect.detector import Detector
    from tessella.tasks.detect.ranking import ranking
    from tessella.tasks.detect.result import DetectionResult

    model = run.model(config.prior)
    data = cache(lambda spec: run.data(spec or config.data, model))

    def read(words: Sequence[str]) -> Inputs:
        return Inputs(model, words, data, split=config.split, label=config.label, keep_endings=True)

    inputs, anomalies = read(config.inputs), read(config.anomalies) if config.anomalies else None
    own = (config.score,) if config.score is not None and config.scores else ()
    wanted = sorted({*config.scores, *own})
    local = _local_scorer(run, model, config, wanted)
    how = {"samples": config.samples, "steps": config.steps, "seed": config.seed, "local": local}
    plain = Detector(model, wanted, **how)
    choosing = config.score is None and kind_of(model.schema).pixels
    thresholds, rate = None, FALSE_POSITIVES if config.false_positives is None else config.false_positives
    if config.calibration_data:
        held_out = measure_held_out(plain, read(config.calibration_data), rate, choosing=choosing)
        fitted_on, sample, thresholds = held_out.fit, held_out.sample, held_out.thresholds
    else:
        sample = _own_normals(data)
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
            detector, choice = choose(detector, sample, candidates, config.seed)
            note(_choice_text(choice))
    by = _by(config.score, detector) if choice is None else choice.score
    calibration = None if thresholds is None else detector.calibrate(thresholds, rate)
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
        choice,
        rankings,
        _shown(model, found.highest),
        _shown(model, found.lowest),
    )


def _local_scorer(run: Run, model: Model, config: DetectConfig, wanted: Sequence[str]) -> LocalScorer | None:
    """Fit local scores on the training pictures; None if they are not wanted, or there are too few pictures."""
    from tessella.core.batches import Batch
    from tessella.data.splits import batches
    from tessella.kinds.base import kind_of
    from tessella.tasks.detect.detector import SCORES
    from tessella.tasks.detect.local_scores import FEWEST_PICTURES, LocalScorer, fitting_rows, say_alignment

    table = not model.schema.rank
    if not (table or kind_of(model.schema).pixels) or (wanted and all(n in [s.name for s in SCORES] for n in wanted)):
        return None
    try:
        split = run.data(None, model).split("train")
    except TessellaError as error:
        note(f"local scores are left out, since the training pictures cannot be read: {error.message}")
        return None
    if len(split) < FEWEST_PICTURES:
        note(f"local scores are left out: they need at least {FEWEST_PICTURES} training pictures, got {len(split)}")
        return None
    some = split.subset(split.random_rows(fitting_rows(len(split), model.schema.shape)))
    scorer = LocalScorer(model, Batch.cat(list(batches(some, AT_ONCE))), config.normalize)
    say_alignment(scorer)
    return scorer


def _choice_text(choice: Choice) -> str:
    others = sorted((n for n in choice.figures if n != choice.score), key=lambda name: -choice.mean(name))
    second = f"; next {others[0]}, {choice.mean(others[0]):.3f}" if others else ""
    return (
        f"score {choice.score}: mean AUROC {choice.mean(choice.score):.3f} over kinds of made-up anomalies, "
        f"{choice.made_up} against {choice.inliers} held-out normal examples{second}"
    )


def _own_normals(data: Any) -> Batch | None:
    """Return some of the run's validation split; None if it is missing or too small to fit scores on."""
    from tessella.core.batches import Batch
    from tessella.data.splits import batches
    from tessella.tasks.detect.detector import FEWEST

    try:
        opened: Data = data(None)
        split = opened.split("valid")
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


def _shown(model: Model, examples: Sequence[Extreme]) -> list[ShownExample]:
    """Compute the heat maps of the examples to show."""
    from tessella.core.batches import Batch
    from tessella.tasks.detect.heat_maps import maps
    from tessella.tasks.detect.result import ShownExample

    shown = []
    for first in range(0, len(examples), AT_ONCE):
        some = examples[first : first + AT_ONCE]
        found = maps(model, Batch.cat([one.batch for one in some]))
        for i, one in enumerate(some):
            surprise = None if found.surprise is None else found.surprise[i]
            reconstruction = None if found.reconstruction is None else found.reconstruction[i]
            shown.append(ShownExample(one.row, one.batch.x[0], found.error[i], surprise, reconstruction))
    return shown


__all__ = ["DetectConfig", "detect"]
