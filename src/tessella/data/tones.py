"""Built-in data set of tones: made sounds with known factors of variation."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from tessella.core.schema import Integers, Schema
from tessella.data.raw import WHOLE, RawDataset, RawSplit, index_keys
from tessella.foundation.errors import DataError, option
from tessella.foundation.registry import register

RATE, SAMPLES = 8000, 4096
SCHEMA = Schema(1, (SAMPLES,), Integers(1 << 16, -32_768.0), rate=float(RATE))
TIMBRES = {"sine": (math.inf, 1), "triangle": (2.0, 2), "square": (1.0, 2), "sawtooth": (1.0, 1)}
"""Exponent at which harmonics fall off, and the step from one harmonic to the next."""
LOWEST, HIGHEST = 110.0, 3600.0
"""Pitch of the lowest tone, the note A2, and highest frequency of a harmonic, in hertz."""
PEAKS = np.array([0.1, 0.2, 0.4, 0.8])  # amplitudes: steps of 6 dB
CENTS, VIBRATO_RATE = np.array([0.0, 12.5, 25.0, 50.0]), 6.0  # largest change of the pitch, and changes per second
ATTACK, RELEASE, DECAY = 0.01, 0.04, 0.5  # seconds
TABLE = 1 << 14

TONE_FACTORS = {"pitch": 24, "timbre": len(TIMBRES), "loudness": len(PEAKS), "vibrato": len(CENTS)}
"""Factors of variation and their numbers of values; example i is combination i, the last factor varying fastest.

Pitches are semitones.
"""


def tone_factors(rows: np.ndarray) -> np.ndarray:
    """Convert row numbers `[B]` to factor values `[B, 4]` int64, in the order of `TONE_FACTORS`."""
    return np.stack(np.unravel_index(rows, tuple(TONE_FACTORS.values())), axis=-1)


def pitch_hertz(pitch: np.ndarray) -> np.ndarray:
    """Convert pitches in semitones to hertz."""
    return LOWEST * 2 ** (pitch / 12)


def render_tones(numbers: np.ndarray) -> np.ndarray:
    """Render factor values `[B, 4]` as sounds `[B, 1, SAMPLES]` of 16-bit values, float32."""
    pitch, timbre, loudness, vibrato = np.moveaxis(numbers, -1, 0)
    time = np.arange(SAMPLES) / RATE
    hertz = pitch_hertz(pitch)
    swing = np.sin(2 * math.pi * VIBRATO_RATE * time) / 1200
    phase = np.cumsum(hertz[:, None] * 2 ** (CENTS[vibrato, None] * swing), 1) / RATE
    highest = (HIGHEST / (hertz * 2 ** (CENTS[-1] / 1200))).astype(int)
    left = time[-1] - time
    envelope = np.minimum(1, time / ATTACK) * np.minimum(1, left / RELEASE) * np.exp(-time / DECAY)
    waves = np.stack([_wave(phase[i], _period(timbre[i], highest[i])) for i in range(len(numbers))])
    whole = np.round(32_767 * PEAKS[loudness, None] * envelope * waves).astype(np.int16)
    return whole.astype(np.float32)[:, None]  # by way of integers, which have no negative zero


def _wave(phase: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Look a period up at phases in cycles, with linear interpolation."""
    at = (phase % 1) * TABLE
    whole = at.astype(int)
    return period[whole] + (at - whole) * (period[whole + 1] - period[whole])


@lru_cache(256)
def _period(timbre: int, highest: int) -> np.ndarray:
    """Compute one period of a timbre `[TABLE + 1]` from its harmonics up to a number, with a peak of 1."""
    fall, step = list(TIMBRES.values())[timbre]
    at = 2 * math.pi * np.arange(TABLE + 1) / TABLE
    # alternating signs give the triangle its corners
    sign = -1 if fall == 2 else 1
    harmonics = [k for k in range(1, max(highest, 1) + 1, step) if k == 1 or fall < math.inf]
    wave = sum(sign ** (k // 2) * k**-fall * np.sin(k * at) for k in harmonics)
    return wave / np.abs(wave).max()


class ToneReader:
    """Reader that renders each combination of `TONE_FACTORS` as a sound."""

    shape = SCHEMA.shape

    def __len__(self) -> int:
        return math.prod(TONE_FACTORS.values())

    def read(self, rows: np.ndarray) -> np.ndarray:
        return render_tones(tone_factors(rows))


@register("data", "tones", summary="1,536 made sounds of half a second, with known factors of variation")
def tones(size: tuple[int, int] | None) -> RawDataset:
    """Open 1,536 tones of 0.5 s at 8 kHz and 16 bits, rendered on access. Their classes are the timbres."""
    if size is not None:
        raise DataError(f"tones are no pictures: leave out {option('size')}", code="no-pictures")
    reader = ToneReader()
    numbers = tone_factors(np.arange(len(reader)))
    known = {name: numbers[:, column] for column, name in enumerate(TONE_FACTORS)}
    part = RawSplit(reader, known["timbre"], index_keys(len(reader), "tones"), factors=known)
    return RawDataset({WHOLE: part}, tuple(TIMBRES), schema=SCHEMA)
