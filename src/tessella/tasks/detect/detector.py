"""Anomaly scores in nats per example, higher for examples that fit the model less, with thresholds and p-values.

A score is an entry of `SCORES` and a function that takes the statistics of normal examples and returns the rule from
statistics to scores. Most rules do not depend on the normal examples; the others are fitted on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NoReturn, final

import numpy as np

from tessella.core.batches import Batch
from tessella.foundation.errors import DataError, SpecError, option
from tessella.kinds.base import kind_of
from tessella.models.base import Model
from tessella.tasks.detect.local_scores import NEAREST, LocalScorer
from tessella.tasks.detect.series.scores import NEIGHBOURS
from tessella.tasks.detect.statistics import SAMPLES, STEPS, ReferenceScorer, Statistics, StatisticsExtractor, possible
from tessella.tasks.detect.tables import COMBINED

Rule = Callable[[Statistics], np.ndarray]
"""Maps the statistics of N examples to scores `[N]`."""
FEWEST = 20
"""Minimum number of normal examples to fit a score on."""


def distortion(inliers: Statistics | None) -> Rule:
    """Score by -E_q log p(x | z), the reconstruction error as a log-probability (An & Cho 2015, section 3.2)."""
    return lambda s: s.distortion


def rate(inliers: Statistics | None) -> Rule:
    """Score by KL(q(z | x) || p(z)), or -log p(codes): how unusual the latent is."""
    return lambda s: _given(s.rate)


def bound(inliers: Statistics | None) -> Rule:
    """Score by rate + distortion, the bound on -log p(x): how improbable the example is (Bishop 1994).

    It is low for simple examples, whatever they show (Nalisnick et al. 2018, "Do deep generative models know what they
    don't know?"), so it is not reliable alone.
    """
    return lambda s: s.bound


def regret(inliers: Statistics | None) -> Rule:
    """Score by the decrease of the bound when q is fitted to the example (Xiao et al. 2020, eq. 6)."""
    return lambda s: _given(s.regret)


def complexity_corrected(inliers: Statistics | None) -> Rule:
    """Score by the bound minus the length of the shortest general lossless file (Serra et al. 2020, eq. 1).

    A general compressor defines a probability of all pictures. So this is a log-likelihood ratio of "any picture" to
    "a picture like the training data", in which simplicity cancels.
    """
    return lambda s: s.bound - _given(s.length)


def typicality(inliers: Statistics | None) -> Rule:
    """Score by |bound - mean bound of normal examples|: too improbable or too probable.

    Nalisnick et al. 2019, eq. 5, for a single example.
    """
    expected = _fitted_on(inliers).bound.mean()
    return lambda s: np.abs(s.bound - expected)


def density_of_states(inliers: Statistics | None) -> Rule:
    """Score by -log density of the statistics, fitted on normal examples.

    Morningstar et al. 2021, "Density of States Estimation". The statistics are rate, distortion and, for pictures, file
    length; the density is one Gaussian with full covariance, instead of the paper's kernel estimate for each statistic.
    """
    fitted_on = _table(_fitted_on(inliers))
    center, covariance = fitted_on.mean(0), np.cov(fitted_on.T)
    covariance += np.diag(1e-6 * covariance.diagonal() + 1e-12)  # statistics that are constant or tied
    lower = np.linalg.cholesky(2 * np.pi * covariance)
    whitening, constant = np.linalg.inv(lower), np.log(lower.diagonal()).sum()

    def rule(s: Statistics) -> np.ndarray:
        # no matrix product: its order of summation depends on the number of examples
        apart = (whitening * (_table(s) - center)[:, None]).sum(2)
        return np.pi * np.square(apart).sum(1) + constant

    return rule


@final
@dataclass(frozen=True)
class Score:
    """An anomaly score: its name, the statistics it needs, and a summary.

    Attributes:
        needs_fit: whether its rule is fitted on normal examples.
        slow: whether it is computed only if it is asked for.
    """

    name: str
    needs: frozenset[str]
    rule: Callable[[Statistics | None], Rule]
    summary: str
    needs_fit: bool = False
    slow: bool = False


_BOUND = frozenset({"rate", "distortion"})

SCORES: tuple[Score, ...] = (
    Score("distortion", frozenset({"distortion"}), distortion, "reconstruction error: -log p(x | z)"),
    Score("rate", frozenset({"rate"}), rate, "how unusual the latent is: KL(q || p)"),
    Score("bound", _BOUND, bound, "how improbable the example is: rate + distortion"),
    Score(
        "regret",
        _BOUND | {"regret"},
        regret,
        "decrease of the bound if the latent is optimised for the example",
        slow=True,
    ),
    Score(
        "complexity-corrected",
        _BOUND | {"length"},
        complexity_corrected,
        "the bound minus the size under a general lossless compressor",
    ),
    Score(
        "typicality",
        _BOUND,
        typicality,
        "distance of the bound from its mean over normal examples, in either direction",
        needs_fit=True,
    ),
    Score(
        "density-of-states",
        _BOUND,
        density_of_states,
        "how unusual rate, distortion and file length are together",
        needs_fit=True,
    ),
)
PREFERRED = (COMBINED, NEIGHBOURS, "complexity-corrected", "bound", "distortion")
"""Default score to sort and flag by: the first of these that is available."""


def available(model: Model) -> tuple[Score, ...]:
    """Return the scores that the model and its kind of data allow."""
    return tuple(score for score in SCORES if score.needs <= possible(model))


def chosen(model: Model, names: Sequence[str], local: ReferenceScorer | None = None) -> tuple[Score, ...]:
    """Return the scores with these names; without names, all that are available and not slow.

    Raises:
        SpecError: if a score is unknown, or not available for this model.
    """
    there = {score.name: score for score in (*available(model), *local_scores(model, local))}
    for name in names:
        if name in there:
            continue
        if name in (score.name for score in SCORES):
            raise SpecError(
                f"the model {model.name} on this data does not allow the score {name}; there are: {', '.join(there)}",
                code="score-not-allowed",
                score=name,
            )
        raise SpecError(f"there is no score {name!r}; there are: {', '.join(there)}", code="no-such-score", score=name)
    return tuple(score for score in there.values() if (score.name in names if names else not score.slow))


def local_scores(model: Model, local: ReferenceScorer | None) -> tuple[Score, ...]:
    """Return the scores relative to training examples, one for each column of `Statistics.local`."""
    if local is None:
        return ()
    examples = kind_of(model.schema).examples

    def column(number: int) -> Callable[[Statistics | None], Rule]:
        return lambda inliers: lambda s: _given(s.local)[:, number]

    names, needs = local.names, frozenset({"local"})
    return tuple(Score(name, needs, column(i), local.summary(name, examples)) for i, name in enumerate(names))


def _given(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def _fitted_on(inliers: Statistics | None) -> Statistics:
    if inliers is None or len(inliers) < FEWEST:
        count = 0 if inliers is None else len(inliers)
        raise DataError(
            f"scores that are fitted on normal examples need at least {FEWEST} of them, and {count} are given: give "
            f"more with {option('calibration_data')}, or choose other {option('scores')}",
            code="too-few-normal-examples",
            needed=FEWEST,
        )
    return inliers


def _table(s: Statistics) -> np.ndarray:
    """Stack the statistics, `[N, statistics]`."""
    return np.stack([v for v in (s.rate, s.distortion, s.length) if v is not None], 1)


ROUNDING = 1e-9


def threshold(inliers: np.ndarray, false_positives: float) -> float:
    """Return the ceil((n + 1) (1 - a))-th smallest of n normal scores.

    A new normal score exceeds it with probability at most a, whatever the distribution of the scores, if it is
    exchangeable with the n (Vovk et al. 2005, "Algorithmic Learning in a Random World", section 2.2). The probability
    is an average over the choice of the n; it is at least a - 1 / (n + 1) if no scores are equal.

    Args:
        inliers: `[n]` scores of normal examples that were not used in training or to fit the score.
        false_positives: a.

    Raises:
        SpecError: if a is not between 0 and 1.
        DataError: if n is too small for a.
    """
    check_rate(false_positives)
    place = math.ceil((len(inliers) + 1) * (1 - false_positives) - ROUNDING)
    if place > len(inliers):
        raise too_few(len(inliers), false_positives)
    return float(np.sort(inliers)[max(place, 1) - 1])


def check_rate(false_positives: float) -> None:
    """Check that a false-positive rate is between 0 and 1.

    Raises:
        SpecError: if it is not.
    """
    if not 0 < false_positives < 1:
        raise SpecError(
            f"{option('false_positives')} must be between 0 and 1, got {false_positives:g}: try 0.01",
            code="out-of-range",
            option="false_positives",
        )


def needed(false_positives: float) -> int:
    """Return the minimum number of normal examples for a false-positive rate a: ceil(1 / a) - 1."""
    return max(1, math.ceil(1 / false_positives - ROUNDING) - 1)


def too_few(inliers: int, false_positives: float) -> DataError:
    """Make the error for too few normal examples to set thresholds."""
    return DataError(
        f"{inliers} normal examples are too few for a false-positive rate of {false_positives:g}: give at least "
        f"{needed(false_positives)} with {option('calibration_data')}, or a higher {option('false_positives')}",
        code="too-few-normal-examples",
        needed=needed(false_positives),
    )


def p_values(scores: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    """Compute p-values (1 + number of normal scores at least as high) / (n + 1), `[N]`.

    Vovk et al. 2005, eq. 2.20.
    """
    below = np.searchsorted(np.sort(inliers), scores, side="left")
    return (1 + len(inliers) - below) / (len(inliers) + 1)


@final
class Calibration:
    """Thresholds and p-values of each score, from held-out normal examples.

    Args:
        inliers: `[n]` scores of normal examples for each score; they were not used in training or to fit the scores.
        false_positives: rate that the thresholds guarantee.

    Raises:
        SpecError: if the rate is not between 0 and 1.
        DataError: if there are too few normal examples for it.
    """

    def __init__(self, inliers: dict[str, np.ndarray], false_positives: float) -> None:
        self.inliers, self.false_positives = inliers, false_positives
        self.thresholds = {name: threshold(values, false_positives) for name, values in inliers.items()}

    def p_values(self, name: str, scores: np.ndarray) -> np.ndarray:
        """Compute the p-values of scores `[N]`, as the function `p_values` does."""
        return p_values(scores, self.inliers[name])


@final
class Detector:
    """Computes the anomaly scores of examples under a model.

    Args:
        model: model trained on normal examples.
        scores: names of scores; none for all that the model allows.
        inliers: batches of normal examples that were not used in training, to fit scores on; without them, scores that
            need a fit are left out.
        samples, steps, seed: as in `StatisticsExtractor`.
        local, rows: computes scores relative to training examples, of pictures, or of rows and signals; without it
            there are none.

    Attributes:
        scores: scores that are computed.
        left_out: scores that would need normal examples.
        local: computes the local scores; None if there are none.
        local_maps: names of scores that are pooled from maps.

    Raises:
        SpecError: if a score is unknown or the model does not allow it.
        DataError: if scores need a fit and there are too few normal examples; raised by `preferred` and `score` if
            there are none and no other score is requested.

    Example:
        >>> detector = Detector(model, inliers=batches_of_inliers)
        >>> detector.score(batch)["bound"]  # [B] nats, higher is more anomalous
    """

    def __init__(
        self,
        model: Model,
        scores: Sequence[str] = (),
        *,
        inliers: Iterable[Batch] | Statistics | None = None,
        samples: int = SAMPLES,
        steps: int = STEPS,
        seed: int = 0,
        local: LocalScorer | None = None,
        rows: ReferenceScorer | None = None,
    ) -> None:
        relative = local or rows
        wanted = chosen(model, scores, relative)
        self.left_out = tuple(s for s in wanted if s.needs_fit) if inliers is None else ()
        self.scores = tuple(score for score in wanted if score not in self.left_out)
        needs: frozenset[str] = frozenset().union(*(score.needs for score in wanted))
        if any(score.name == "density-of-states" for score in wanted):
            needs |= {"length"} & frozenset().union(*(s.needs for s in available(model)))
        self.extract = StatisticsExtractor(model, needs, samples=samples, steps=steps, seed=seed, local=relative)
        self.model, self.local = model, local
        self.local_maps = frozenset() if local is None else frozenset(local.names) - {NEAREST}
        fitted_on = inliers if isinstance(inliers, Statistics) or inliers is None else self.statistics(inliers)
        self._rules = {score.name: score.rule(fitted_on if score.needs_fit else None) for score in self.scores}

    @property
    def preferred(self) -> str:
        """Return the name of the default score."""
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

    def mean_of(self, weights: Mapping[str, float], inliers: Statistics) -> Score:
        """Make the weighted mean of several scores, each in deviations from its mean over normal examples."""
        values = self.score(inliers)
        parts = [(self._rules[n], values[n].mean(), values[n].std() + 1e-12, w) for n, w in weights.items()]
        total = sum(weights.values())

        def rule(s: Statistics) -> np.ndarray:
            return sum((w * (of(s) - center) / spread for of, center, spread, w in parts), np.zeros(len(s))) / total

        needs = frozenset().union(*(score.needs for score in self.scores if score.name in weights))
        shares = ", ".join(f"{name} ({w / total:.2f})" for name, w in weights.items())
        return Score(" + ".join(weights), needs, lambda _: rule, f"mean of {shares}, in deviations of normal examples")

    def with_score(self, score: Score) -> Detector:
        """Return the same detector with one more score."""
        more = copy(self)
        more.scores, more._rules = (*self.scores, score), {**self._rules, score.name: score.rule(None)}
        return more

    def calibrate(self, inliers: Iterable[Batch] | Statistics, false_positives: float = 0.01) -> Calibration:
        """Set thresholds from held-out normal examples, not used in training or to fit scores."""
        found = inliers if isinstance(inliers, Statistics) else self.statistics(inliers)
        return Calibration(self.score(found), false_positives)


def _none_to_fit_on() -> NoReturn:
    raise DataError(
        f"all requested scores are fitted on normal examples, and there are none: give {option('calibration_data')}",
        code="no-normal-examples",
    )
