"""Scores examples by how ill they fit a model, and keeps thresholds from held-out normal examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn, final

import numpy as np

from tessella.core.batches import Batch
from tessella.foundation.errors import DataError, option
from tessella.models.base import Model
from tessella.tasks.detect.calibration import p_values, threshold
from tessella.tasks.detect.scores import PREFERRED, available, chosen
from tessella.tasks.detect.statistics import DRAWS, STEPS, Statistics, StatisticsExtractor


@final
class Calibration:
    """Thresholds and p-values of each score from held-out normal examples.

    Args:
        normals: scores of normal examples by name, each `[n]`; no part of training, and no score was fitted on them.
        false_positives: the rate that thresholds keep.

    Raises:
        SpecError: if the rate is not between 0 and 1.
        DataError: if there are too few normal examples for it.
    """

    def __init__(self, normals: dict[str, np.ndarray], false_positives: float) -> None:
        self.normals, self.false_positives = normals, false_positives
        self.thresholds = {name: threshold(values, false_positives) for name, values in normals.items()}

    def p_values(self, name: str, scores: np.ndarray) -> np.ndarray:
        """Compute the p-values of scores `[N]`: how many normal examples score as high, each at least 1 / (n + 1)."""
        return p_values(scores, self.normals[name])


@final
class Detector:
    """Scores examples by how ill they fit a model.

    Args:
        model: trained on normal examples.
        scores: names of scores; none for all that the model allows.
        normals: batches of normal examples that had no part in training, for the scores that need a fit to them;
            without, those are left out.
        draws, steps, seed: as of `StatisticsExtractor`.

    Attributes:
        scores: those that are computed.
        left_out: those that would need normal examples.

    Raises:
        SpecError: if a score is unknown or the model does not allow it.
        DataError: if scores need a fit and there are too few normal examples, or by `preferred` and `score` if there
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
        self.left_out = tuple(s for s in wanted if s.needs_fit) if normals is None else ()
        self.scores = tuple(score for score in wanted if score not in self.left_out)
        needs: frozenset[str] = frozenset().union(*(score.needs for score in wanted))
        if any(score.name == "density-of-states" for score in wanted):
            needs |= {"length"} & frozenset().union(*(s.needs for s in available(model)))
        self.extract = StatisticsExtractor(model, needs, draws=draws, steps=steps, seed=seed)
        fitted_on = normals if isinstance(normals, Statistics) or normals is None else self.statistics(normals)
        self._rules = {score.name: score.rule(fitted_on if score.needs_fit else None) for score in self.scores}

    @property
    def preferred(self) -> str:
        """The score to go by, unless another is asked for."""
        names = [score.name for score in self.scores] or _none_to_fit_on()
        return next((name for name in PREFERRED if name in names), names[0])

    def statistics(self, batches: Iterable[Batch]) -> Statistics:
        """Compute the statistics of many batches."""
        return Statistics.cat(self.extract(batch) for batch in batches)

    def score(self, examples: Batch | Statistics) -> dict[str, np.ndarray]:
        """Compute each score of each example, `[N]` float64."""
        found = examples if isinstance(examples, Statistics) else self.extract(examples)
        if not self.scores:
            _none_to_fit_on()
        return {name: rule(found) for name, rule in self._rules.items()}

    def calibrate(self, normals: Iterable[Batch] | Statistics, false_positives: float = 0.01) -> Calibration:
        """Set thresholds by held-out normal examples: not those of training, nor those that scores were fitted on."""
        found = normals if isinstance(normals, Statistics) else self.statistics(normals)
        return Calibration(self.score(found), false_positives)


def _none_to_fit_on() -> NoReturn:
    raise DataError(
        f"all scores asked for need a fit to normal examples, and there are none: give {option('calibration_data')}",
        code="no-normal-examples",
    )
