"""Scores of anomaly: the higher, the less an example fits what the model learned. All in nats per example.

A score is an entry of `SCORES` and one function that, given the statistics of normal examples, makes the rule that
turns statistics into scores. Most rules ask nothing of the normal examples; the others need a fit to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

import numpy as np

from tessella.core.batches import Batch
from tessella.foundation.errors import DataError, SpecError, option
from tessella.models.base import Model
from tessella.tasks.detect.statistics import SAMPLES, STEPS, Statistics, StatisticsExtractor, possible

Rule = Callable[[Statistics], np.ndarray]
"""Statistics of N examples to scores `[N]`."""
FEWEST = 20
"""Normal examples that a score can be fitted on, at least."""


def distortion(normals: Statistics | None) -> Rule:
    """-E_q log p(x | z): how badly the example is reconstructed, as a log-probability (An & Cho 2015, section 3.2)."""
    return lambda s: s.distortion


def rate(normals: Statistics | None) -> Rule:
    """KL(q(z | x) || p(z)), of codes -log p(codes): how unusual its latent is."""
    return lambda s: _given(s.rate)


def bound(normals: Statistics | None) -> Rule:
    """rate + distortion, which bounds -log p(x): how improbable it is (Bishop 1994).

    It is low for anything simple, whatever that shows (Nalisnick et al. 2018, "Do deep generative models know what
    they don't know?"), so it should not be trusted alone.
    """
    return lambda s: s.bound


def regret(normals: Statistics | None) -> Rule:
    """The bound less what it falls to when q is fitted to the example (Xiao et al. 2020, eq. 6)."""
    return lambda s: _given(s.regret)


def complexity_corrected(normals: Statistics | None) -> Rule:
    """The bound less the length of the example's shortest general lossless file (Serra et al. 2020, eq. 1).

    A general compressor is a probability of all pictures whatever; so this is a log-likelihood ratio of "any picture"
    against "one such as the model learned", and what makes a picture simple for both cancels.
    """
    return lambda s: s.bound - _given(s.length)


def typicality(normals: Statistics | None) -> Rule:
    """|bound - its mean of normal examples|: too improbable or too probable (Nalisnick et al. 2019, eq. 5, of one)."""
    expected = _fitted_on(normals).bound.mean()
    return lambda s: np.abs(s.bound - expected)


def density_of_states(normals: Statistics | None) -> Rule:
    """-log density of the example's statistics among those of normals (Morningstar et al. 2021, "Density of States").

    The statistics are rate, distortion and, of pictures, file length; the density is one Gaussian with all
    covariances, in place of the paper's kernel estimates of each statistic by itself.
    """
    fitted_on = _table(_fitted_on(normals))
    center, covariance = fitted_on.mean(0), np.cov(fitted_on.T)
    covariance += np.diag(1e-6 * covariance.diagonal() + 1e-12)  # statistics that are constant or tied
    lower = np.linalg.cholesky(2 * np.pi * covariance)
    whitening, constant = np.linalg.inv(lower), np.log(lower.diagonal()).sum()

    def rule(s: Statistics) -> np.ndarray:
        # no matrix product: how that adds hangs on the number of examples
        apart = (whitening * (_table(s) - center)[:, None]).sum(2)
        return np.pi * np.square(apart).sum(1) + constant

    return rule


@final
@dataclass(frozen=True)
class Score:
    """One score: its name at the faces, what it needs, and in a line what it says.

    Attributes:
        needs_fit: whether its rule is fitted on normal examples.
    """

    name: str
    needs: frozenset[str]
    rule: Callable[[Statistics | None], Rule]
    summary: str
    needs_fit: bool = False


_BOUND = frozenset({"rate", "distortion"})

SCORES: tuple[Score, ...] = (
    Score("distortion", frozenset({"distortion"}), distortion, "how badly it is reconstructed: -log p(x | z)"),
    Score("rate", frozenset({"rate"}), rate, "how unusual its latent is: KL(q || p)"),
    Score("bound", _BOUND, bound, "how improbable it is: rate + distortion"),
    Score("regret", _BOUND | {"regret"}, regret, "how much a latent of its own would save"),
    Score(
        "complexity-corrected",
        _BOUND | {"length"},
        complexity_corrected,
        "the bound less what a general lossless compressor needs",
    ),
    Score(
        "typicality",
        _BOUND,
        typicality,
        "how far its bound is from that of normal examples, to either side",
        needs_fit=True,
    ),
    Score(
        "density-of-states",
        _BOUND,
        density_of_states,
        "how unusual its rate, distortion and file length are together",
        needs_fit=True,
    ),
)
PREFERRED = ("complexity-corrected", "bound", "distortion")
"""What is sorted by and flagged by unless another score is asked for: the first that can be had."""


def available(model: Model) -> tuple[Score, ...]:
    """The scores that the model, and the kind of its data, allow."""
    return tuple(score for score in SCORES if score.needs <= possible(model))


def chosen(model: Model, names: Sequence[str]) -> tuple[Score, ...]:
    """The scores of these names; of none, all that there are.

    Raises:
        SpecError: if one is unknown, or cannot be had of this model.
    """
    there = {score.name: score for score in available(model)}
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
    return tuple(score for score in there.values() if not names or score.name in names)


def _given(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def _fitted_on(normals: Statistics | None) -> Statistics:
    if normals is None or len(normals) < FEWEST:
        count = 0 if normals is None else len(normals)
        raise DataError(
            f"scores that are fitted on normal examples need at least {FEWEST} of them, and {count} are given: give "
            f"more with {option('calibration_data')}, or choose other {option('scores')}",
            code="too-few-normal-examples",
            needed=FEWEST,
        )
    return normals


def _table(s: Statistics) -> np.ndarray:
    """`[N, statistics]`."""
    return np.stack([v for v in (s.rate, s.distortion, s.length) if v is not None], 1)


ROUNDING = 1e-9


def threshold(normals: np.ndarray, false_positives: float) -> float:
    """The ceil((n + 1) (1 - a))-th smallest of n normals' scores.

    A fresh normal exceeds it with probability at most a, whatever the distribution of the scores, if it is
    exchangeable with those n (Vovk et al. 2005, "Algorithmic Learning in a Random World", section 2.2); averaged over
    the choice of the n, and with a probability of at least a - 1 / (n + 1) where no scores are equal.

    Args:
        normals: `[n]` scores of normals that had no part in training or in learning the score.
        false_positives: a.

    Raises:
        SpecError: if a is not between 0 and 1.
        DataError: if n is too few for a.
    """
    check_rate(false_positives)
    place = math.ceil((len(normals) + 1) * (1 - false_positives) - ROUNDING)
    if place > len(normals):
        raise too_few(len(normals), false_positives)
    return float(np.sort(normals)[max(place, 1) - 1])


def check_rate(false_positives: float) -> None:
    """Refuse a rate that is none.

    Raises:
        SpecError: if it is not between 0 and 1.
    """
    if not 0 < false_positives < 1:
        raise SpecError(
            f"{option('false_positives')} must lie between 0 and 1, got {false_positives:g}: try 0.01",
            code="out-of-range",
            option="false_positives",
        )


def needed(false_positives: float) -> int:
    """The fewest normals that can vouch for the rate a: ceil(1 / a) - 1."""
    return max(1, math.ceil(1 / false_positives - ROUNDING) - 1)


def too_few(normals: int, false_positives: float, share: int = 1) -> DataError:
    """What to say where there are too few normals; `share` of them, one in so many, set thresholds."""
    return DataError(
        f"{normals} normal examples cannot vouch for a false-positive rate of {false_positives:g}: give at least "
        f"{share * needed(false_positives)}, or allow a higher rate",
        code="too-few-normal-examples",
        needed=share * needed(false_positives),
    )


def p_values(scores: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(1 + number of normals that score at least as high) / (n + 1), `[N]` (Vovk et al. 2005, eq. 2.20)."""
    below = np.searchsorted(np.sort(normals), scores, side="left")
    return (1 + len(normals) - below) / (len(normals) + 1)


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
        samples, steps, seed: as of `StatisticsExtractor`.

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
        samples: int = SAMPLES,
        steps: int = STEPS,
        seed: int = 0,
    ) -> None:
        wanted = chosen(model, scores)
        self.left_out = tuple(s for s in wanted if s.needs_fit) if normals is None else ()
        self.scores = tuple(score for score in wanted if score not in self.left_out)
        needs: frozenset[str] = frozenset().union(*(score.needs for score in wanted))
        if any(score.name == "density-of-states" for score in wanted):
            needs |= {"length"} & frozenset().union(*(s.needs for s in available(model)))
        self.extract = StatisticsExtractor(model, needs, samples=samples, steps=steps, seed=seed)
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
