"""Thresholds that keep a stated false-positive rate, whatever the scores are: split conformal prediction."""

from __future__ import annotations

import math

import numpy as np

from tessella.foundation.errors import DataError, SpecError, option

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
