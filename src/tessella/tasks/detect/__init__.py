"""Finding what does not fit: scores of anomaly, thresholds with a stated false-positive rate, and heat maps.

statistics   what a model finds of examples: distortion, rate, regret, file length
scores       what is made of them
calibration  thresholds and p-values from held-out normals
ranking      AUROC and average precision, where it is known what is anomalous
maps         where in a picture
inputs       what is to be scored
findings     all of it together, of more examples than fit in memory
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn, final

import numpy as np

from tessella.core.batches import Batch
from tessella.foundation.errors import DataError
from tessella.models.base import Model
from tessella.tasks.detect.calibration import p_values, threshold
from tessella.tasks.detect.scores import PREFERRED, Score, available, chosen
from tessella.tasks.detect.statistics import DRAWS, STEPS, Examiner, Statistics

__all__ = ["DRAWS", "PREFERRED", "STEPS", "Calibration", "Detector", "Score", "Statistics", "available"]


@final
class Calibration:
    """What held-out normals say of each score.

    Args:
        normals: scores of normals by name, each `[n]`; they had no part in training or in learning a score.
        false_positives: the rate that thresholds keep.

    Raises:
        SpecError: if the rate is not between 0 and 1.
        DataError: if there are too few normals for it.
    """

    def __init__(self, normals: dict[str, np.ndarray], false_positives: float) -> None:
        self.normals, self.false_positives = normals, false_positives
        self.thresholds = {name: threshold(values, false_positives) for name, values in normals.items()}

    def p_values(self, name: str, scores: np.ndarray) -> np.ndarray:
        """How many normals would score as high, `[N]`, each at least 1 / (n + 1)."""
        return p_values(scores, self.normals[name])


@final
class Detector:
    """Scores examples by how ill they fit a model.

    Args:
        model: trained on normals.
        scores: names of scores; none for all that the model allows.
        normals: batches of normals that had no part in training, for the scores that are learned from them; without,
            those are left out.
        draws, steps, seed: as of `Examiner`.

    Attributes:
        scores: those that are given.
        left_out: those that would need normals.

    Raises:
        SpecError: if a score is unknown or cannot be had of the model.
        DataError: if scores must be learned from normals and there are too few, or by `preferred` and `score` if there
            are none and no other score is asked for.

    Example:
        >>> detector = Detector(model, normals=batches_of_normals)
        >>> detector.score(batch)["bound"]  # [B] nats, the higher the stranger
    """

    def __init__(
        self,
        model: Model,
        scores: Sequence[str] = (),
        *,
        normals: Iterable[Batch] | Statistics | None = None,
        draws: int = DRAWS,
        steps: int = STEPS,
        seed: int = 0,
    ) -> None:
        wanted = chosen(model, scores)
        self.left_out = tuple(s for s in wanted if s.learns) if normals is None else ()
        self.scores = tuple(score for score in wanted if score not in self.left_out)
        needs: frozenset[str] = frozenset().union(*(score.needs for score in wanted))
        if any(score.name == "states" for score in wanted):
            needs |= {"length"} & frozenset().union(*(s.needs for s in available(model)))
        self.examine = Examiner(model, needs, draws=draws, steps=steps, seed=seed)
        taught = normals if isinstance(normals, Statistics) or normals is None else self.unit_statistics(normals)
        self._rules = {score.name: score.rule(taught if score.learns else None) for score in self.scores}

    @property
    def preferred(self) -> str:
        """The score to go by, unless another is asked for."""
        names = [score.name for score in self.scores] or _none_to_learn_from()
        return next((name for name in PREFERRED if name in names), names[0])

    def unit_statistics(self, batches: Iterable[Batch]) -> Statistics:
        """The statistics of many batches."""
        return Statistics.joined(self.examine(batch) for batch in batches)

    def score(self, examples: Batch | Statistics) -> dict[str, np.ndarray]:
        """Each score of each example, `[N]` float64."""
        statistics = examples if isinstance(examples, Statistics) else self.examine(examples)
        if not self.scores:
            _none_to_learn_from()
        return {name: rule(statistics) for name, rule in self._rules.items()}

    def calibrate(self, normals: Iterable[Batch] | Statistics, false_positives: float = 0.01) -> Calibration:
        """Thresholds from held-out normals: not those of training, nor those that scores were learned from."""
        found = normals if isinstance(normals, Statistics) else self.unit_statistics(normals)
        return Calibration(self.score(found), false_positives)


def _none_to_learn_from() -> NoReturn:
    raise DataError("all scores asked for are learned from normals, and there are none: give some by --calibrate")
