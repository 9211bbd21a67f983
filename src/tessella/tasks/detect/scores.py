"""Scores of anomaly: the higher, the less an example fits what the model learned. All in nats per example.

A score is an entry of `SCORES` and one function that, given the statistics of normal examples, makes the rule that
turns statistics into scores. Most rules ask nothing of the normal examples; the others need a fit to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tessella.foundation.errors import DataError, SpecError, option
from tessella.models.base import Model
from tessella.tasks.detect.statistics import Statistics, possible

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
