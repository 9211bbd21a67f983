"""The default score, chosen without labels: normal examples against made-up anomalies.

An anomaly is a small part that is wrong, or a picture of something else, and which of them will come is unknown. So the
default is a mean of the best local score and the best score of whole examples, each standardised by normal examples.
"Best" is the mean AUROC over kinds of made-up anomalies. If one of the two is so weak that the mean loses more than
`LOSS`, the better one is used alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from tessella.core.batches import Batch
from tessella.foundation.progress import track
from tessella.tasks.detect.detector import Detector
from tessella.tasks.detect.local_scores import levels_of
from tessella.tasks.detect.made_up import CONTENTS, DEFECTS, make_up
from tessella.tasks.detect.ranking import auroc
from tessella.tasks.detect.statistics import Statistics

FEWEST_TO_CHOOSE, MOST_TO_CHOOSE = 20, 100
"""Fewest and most normal examples that scores are compared on."""
EACH = 30
"""Made-up anomalies of each kind."""
WEIGHTS = (1, 3)
"""Weights of the local score and of the other in their mean, chosen on one class of clothes against the others."""
LOSS = 0.1
"""Most that the mean may lose to the better of them and still be chosen."""


@final
@dataclass(frozen=True)
class Choice:
    """The score that separates made-up anomalies best from normal examples.

    Attributes:
        score: its name.
        parts: the scores that it is the mean of, after each has been standardised; only itself if it is single.
        figures: AUROC of each score for each kind of made-up anomalies.
        inliers, made_up: number of normal examples, and of made-up anomalies.
    """

    score: str
    parts: tuple[str, ...]
    figures: Mapping[str, Mapping[str, float]]
    inliers: int
    made_up: int

    def mean(self, score: str) -> float:
        """Return the mean AUROC of a score over the kinds."""
        return float(np.mean(list(self.figures[score].values())))

    def to_json(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "parts": list(self.parts),
            "inliers": self.inliers,
            "made_up": self.made_up,
            "auroc": {name: {"mean": self.mean(name), **kinds} for name, kinds in self.figures.items()},
        }


def choose(
    detector: Detector, inliers: Batch, candidates: Collection[str] | None = None, seed: int = 0
) -> tuple[Detector, Choice]:
    """Compare the scores of a detector on made-up anomalies, and add the mean of the two best.

    Args:
        inliers: normal pictures that were not used to fit the scores, and are not used for thresholds.
        candidates: names of the scores to compare; None for all.
        seed: seed of the made-up anomalies.

    Returns:
        the detector with the chosen score, and the choice.
    """
    inliers = inliers[:MOST_TO_CHOOSE]
    made = make_up(inliers.x.numpy(), (*DEFECTS, *CONTENTS), EACH, levels_of(detector.model.schema), seed)
    x = torch.from_numpy(made.x.round() if detector.model.schema.values.discrete else made.x).to(inliers.x.dtype)
    altered = Batch(x, None if inliers.label is None else inliers.label[torch.from_numpy(made.of)])
    parts = list(track([*inliers.split(EACH), *altered.split(EACH)], "comparing scores on made-up anomalies"))
    found = Statistics.cat(detector.extract(part) for part in parts)
    scores = {name: v for name, v in detector.score(found).items() if candidates is None or name in candidates}
    count = len(inliers)

    def figures(values: np.ndarray) -> dict[str, float]:
        of_kind = {kind: values[count:][made.kind == kind] for kind in dict.fromkeys(made.kind.tolist())}
        return {kind: auroc(values[:count], other)[0] for kind, other in of_kind.items()}

    known = {name: figures(values) for name, values in scores.items()}
    means = {name: float(np.mean(list(kinds.values()))) for name, kinds in known.items()}
    of_maps = detector.local_maps
    families = [[name for name in means if (name in of_maps) == wanted] for wanted in (True, False)]
    best = tuple(max(family, key=means.__getitem__) for family in families if family)
    single = max(best, key=means.__getitem__)
    if len(best) > 1:
        both = detector.mean_of(dict(zip(best, WEIGHTS, strict=True)), found.rows(slice(0, count)))
        known[both.name] = figures(both.rule(None)(found))
        choice = Choice(both.name, best, known, count, len(made.x))
        if choice.mean(both.name) > means[single] - LOSS:
            return detector.with_score(both), choice
    return detector, Choice(single, (single,), known, count, len(made.x))
