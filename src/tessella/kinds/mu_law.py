"""Mu-law companding of sound (ITU-T G.711, mu = 255): 16-bit samples as 8-bit codes, finer where the sound is soft.

Codes are numbered from the lowest pressure up: 0 is the most negative sample, 255 the most positive. The byte of G.711
is c for a code c < 128, and 383 - c otherwise.
"""

from __future__ import annotations

import numpy as np

_BIAS, _LARGEST = 132, 32635
"""Offset of the magnitudes, at which the eight segments begin at powers of two; and the largest magnitude coded."""


def _magnitudes() -> np.ndarray:
    """Return the decoded magnitudes `[128]`, rising: segments s of 16 steps of size 2^(s + 3)."""
    segment, step = np.divmod(np.arange(128), 16)
    return ((8 * step + _BIAS) << segment) - _BIAS


SAMPLES = np.concatenate([-_magnitudes()[::-1], _magnitudes()]).astype(np.int16)
"""Sample of each code `[256]`, from -32,124 to 32,124; codes 127 and 128 are both 0."""


def mu_law_samples(codes: np.ndarray) -> np.ndarray:
    """Decode mu-law codes 0 ... 255 of any shape to 16-bit samples, int16."""
    return SAMPLES[codes]


def mu_law_codes(samples: np.ndarray) -> np.ndarray:
    """Encode 16-bit samples of any shape as mu-law codes 0 ... 255, uint8, by the decision values of G.711."""
    biased = np.minimum(np.abs(samples.astype(np.int32)), _LARGEST) + _BIAS
    segment = np.frexp(biased.astype(np.float64))[1] - 8  # the segment begins at 2^(segment + 7)
    magnitude = 16 * segment + ((biased >> (segment + 3)) & 15)
    return np.where(samples < 0, 127 - magnitude, 128 + magnitude).astype(np.uint8)
