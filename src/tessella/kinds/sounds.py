"""Sounds: pressure, WAV files, pictures of waveform and spectrogram, and the audio codecs to compare with."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tessella.core.observed import trimmed
from tessella.core.schema import UINT8, Schema
from tessella.kinds import spectra
from tessella.kinds.base import Codec
from tessella.kinds.mu_law import mu_law_codes, mu_law_samples

WAVE_HEIGHT, GAP, MEL_HEIGHT, WIDTH = 36, 2, 62, 152
"""Pixels of a tile: the waveform, the gap below it, the spectrogram, and both in width."""
TILE = (WAVE_HEIGHT + GAP + MEL_HEIGHT, WIDTH)
FAINT, LOUD = -4.0, -0.6
"""Logarithms (base 10) of the magnitudes that are shown palest and darkest."""
CONTRAST = 1.5
PAPER, PALE, INK = 255, 248, 20
PAUSE = 0.25
"""Seconds between sounds that are joined."""
BLOCK = 1 << 14
MOST_CHANNELS, HIGHEST_RATE = 8, 192_000
"""Limits within which the audio codecs are safe to use."""
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)


def pressure(x: Tensor, schema: Schema) -> Tensor:
    """Convert stored values to sound pressure, -1 ... 1 if they are discrete; NaN stays NaN.

    It is differentiable: linear between mu-law codes.
    """
    if not schema.values.discrete:
        return x.float()
    y = x.float().clamp(schema.values.low, schema.values.high)
    if schema.mu_law:
        table = torch.from_numpy(mu_law_samples(np.arange(256))).to(x.device) / 32_768
        below = y.detach().nan_to_num().floor().clamp_max(254)
        return torch.lerp(table[below.int()], table[below.int() + 1], y - below)
    return (y - _middle(schema)) * 2 / schema.values.levels


def from_pressure(p: Tensor, schema: Schema) -> Tensor:
    """Convert sound pressure to the nearest stored values, as float32; NaN stays NaN."""
    values = schema.values
    if not values.discrete:
        return p.float()
    if schema.mu_law:
        whole = (p.nan_to_num() * 32_768).round().clamp(-32_768, 32_767)
        return torch.where(p.isnan(), p, torch.from_numpy(mu_law_codes(whole.cpu().numpy())).to(p))
    return (p * values.levels / 2 + _middle(schema)).round().clamp(values.low, values.high) + 0.0  # no negative zero


def until_end(x: Tensor) -> Tensor:
    """Cut off what comes after the end of one example `[C, T]`."""
    return trimmed(x[None], 1)[0]


def wav(x: Tensor, schema: Schema) -> bytes:
    """Encode one example `[C, T]` as a WAV file; see `write_wav`."""
    buffer = io.BytesIO()
    write_wav(buffer, [x], schema)
    return buffer.getvalue()


def write_wav(file: Path | io.BytesIO, windows: Iterable[Tensor], schema: Schema) -> None:
    """Write consecutive windows `[C, T]` as a WAV file.

    Samples have 8 or 16 bits as stored, those of mu-law codes 16 bits, and real values are floats. What comes after the
    end of a window is left out.
    """
    import soundfile

    bits = _wav_samples(torch.zeros(schema.channels, 1), schema)[1]
    rate, subtype = max(1, round(schema.rate)), _subtype(bits, "WAV")
    with soundfile.SoundFile(file, "w", rate, schema.channels, subtype, format="WAV") as sound:
        for x in windows:
            sound.write(_wav_samples(x, schema)[0].T)


def one_after_another(examples: Sequence[Tensor], schema: Schema) -> Tensor:
    """Join examples `[C, T]` without what comes after their ends. The pause after each is not observed."""
    pause = torch.full((schema.channels, round(PAUSE * schema.rate)), math.nan)
    return torch.cat([part for x in examples for part in (until_end(x.float()), pause)], 1)


def codecs(schema: Schema, *, lossy: bool) -> tuple[Codec, ...]:
    """List the installed audio codecs, applied to each example without what comes after its end."""
    found: dict[str, Callable[[Tensor], bytes]] = {}
    if not codable(schema):
        return ()
    if lossy:
        found["Ogg Vorbis, lowest quality"] = partial(_lossy, schema=schema, subtype="VORBIS")
        if schema.rate in OPUS_RATES:
            found["Opus, lowest quality"] = partial(_lossy, schema=schema, subtype="OPUS")
    elif schema.values.discrete and _samples(torch.zeros(1, 1), schema)[1]:
        found["FLAC"] = lambda x: _encoded(*_samples(x, schema), schema, "FLAC")
        if program := shutil.which("wavpack"):
            found["WavPack"] = lambda x: _wavpack(program, _encoded(*_samples(x, schema), schema, "WAV"))

    def size(examples: Sequence[Tensor], encode: Callable[[Tensor], bytes]) -> int:
        return sum(len(encode(x)) for x in examples)

    return tuple(Codec(name, partial(size, encode=encode)) for name, encode in found.items())


def codable(schema: Schema) -> bool:
    """Return whether audio codecs take sounds with so many channels and samples per second."""
    return schema.channels <= MOST_CHANNELS and schema.rate <= HIGHEST_RATE


def lossy_copy(x: Tensor, schema: Schema) -> Tensor:
    """Encode one example as Ogg Vorbis at middle quality and decode it; what was not observed stays so."""
    import soundfile

    p = pressure(x.cpu(), schema)
    kept = until_end(p).nan_to_num()
    if not kept.shape[1]:
        return x.float()
    file = io.BytesIO(_ogg(kept, schema, "VORBIS", 0.5))
    again = torch.from_numpy(soundfile.read(file, dtype="float32", always_2d=True)[0].T)
    p = torch.cat([again[:, : kept.shape[1]], p[:, again.shape[1] :]], 1)[:, : x.shape[1]]
    return torch.where(x.isnan(), x, from_pressure(p, schema).to(x.device))


def tiles(x: Tensor, schema: Schema, channels: int) -> np.ndarray:
    """Picture sounds `[B, C, T]` with the waveform above the log-mel spectrogram: `[B, H, W, 1]` uint8.

    The first channels have a waveform each; the spectrogram is that of their mean. What was not observed is blank.
    """
    p = pressure(x.detach().cpu(), schema)
    height = WAVE_HEIGHT // channels
    waves = np.concatenate([_waveform(p[:, c].numpy(), height) for c in range(channels)], 1)
    gap = np.full((len(p), WAVE_HEIGHT - height * channels + GAP, WIDTH), PAPER, np.uint8)
    return np.concatenate([waves, gap, _spectrogram(p.nanmean(1), schema.rate)], 1)[..., None]


def _waveform(p: np.ndarray, height: int) -> np.ndarray:
    """Draw the envelope of `[B, T]`: `[B, height, WIDTH]`. Heights are square roots, so that soft sounds show."""
    p = np.sign(p) * np.sqrt(np.abs(p))
    at = np.linspace(0, p.shape[1], WIDTH, endpoint=False).astype(int)
    low, high = np.fmin.reduceat(p, at, axis=1), np.fmax.reduceat(p, at, axis=1)
    low[:, 1:], high[:, 1:] = np.fmin(low[:, 1:], high[:, :-1]), np.fmax(high[:, 1:], low[:, :-1])  # no gaps
    row = (np.arange(height)[:, None] + 0.5) * 2 / height - 1
    half = 1 / height
    inked = (row <= half - low[:, None]) & (row >= -high[:, None] - half)
    return np.where(inked, INK, PAPER).astype(np.uint8)


def _spectrogram(p: Tensor, rate: float) -> np.ndarray:
    """Draw the log-mel spectrogram of `[B, T]`, low frequencies below: `[B, MEL_HEIGHT, WIDTH]`."""
    window, hop = spectra.frame_sizes(rate)[0], max(1, p.shape[1] // WIDTH)
    mel = spectra.mel_magnitudes(p, rate, window, hop, min(MEL_HEIGHT, spectra.band_count(window)))
    dark = ((mel.clamp_min(spectra.FLOOR).log10() - FAINT) / (LOUD - FAINT)).clamp(0, 1).pow(CONTRAST).flip(1)
    dark = interpolate(dark[:, None], (MEL_HEIGHT, WIDTH), mode="bilinear")[:, 0]
    seen = interpolate(spectra.observed_frames(p, hop)[:, None].float(), WIDTH)[:, 0] > 0
    return np.where(seen[:, None], (PALE - (PALE - INK) * dark).round(), PAPER).astype(np.uint8)


def _middle(schema: Schema) -> float:
    """Return the stored value of silence."""
    return schema.values.low + schema.values.levels / 2


def _samples(x: Tensor, schema: Schema) -> tuple[np.ndarray, int]:
    """Convert stored values `[C, T]` to the samples of a file and their number of bits; 0 bits are floats.

    Eight bits, also those of mu-law codes, become the upper half of 16.
    """
    values, x = schema.values, until_end(x.detach().cpu().float())
    if values == UINT8:
        return ((x.nan_to_num(128).round().clamp(0, 255) - 128) * 256).numpy().astype(np.int16), 8
    if values.discrete and values.low >= -32_768 and values.high <= 32_767:
        whole = x.nan_to_num(_middle(schema)).round().clamp(values.low, values.high)
        return whole.numpy().astype(np.int16), 16
    return pressure(x, schema).nan_to_num().numpy(), 0


def _wav_samples(x: Tensor, schema: Schema) -> tuple[np.ndarray, int]:
    """Convert as `_samples` does, but mu-law codes to the samples of 16 bits that they stand for."""
    if not schema.mu_law:
        return _samples(x, schema)
    p = pressure(until_end(x.detach().cpu()).round(), schema).nan_to_num()
    return (p * 32_768).numpy().astype(np.int16), 16


def _subtype(bits: int, form: str) -> str:
    return {0: "FLOAT", 8: "PCM_U8" if form == "WAV" else "PCM_S8", 16: "PCM_16"}[bits]


def _encoded(samples: np.ndarray, bits: int, schema: Schema, form: str) -> bytes:
    options = {"compression_level": 1.0} if form == "FLAC" else {}
    return _file(samples, schema.rate, form, _subtype(bits, form), options)


def _lossy(x: Tensor, schema: Schema, subtype: str) -> bytes:
    return _ogg(until_end(pressure(x, schema)).nan_to_num(), schema, subtype, 1.0)


def _ogg(p: Tensor, schema: Schema, subtype: str, level: float) -> bytes:
    return _file(p.cpu().numpy(), schema.rate, "OGG", subtype, {"compression_level": level})


def _file(samples: np.ndarray, rate: float, form: str, subtype: str, options: dict[str, Any]) -> bytes:
    """Encode samples `[C, T]` as a file, in blocks, as the Vorbis encoder of libsndfile 1.2 overflows its stack."""
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", max(1, round(rate)), len(samples), subtype, format=form, **options) as file:
        for start in range(0, samples.shape[1], BLOCK):
            file.write(samples[:, start : start + BLOCK].T)
    return buffer.getvalue()


def _wavpack(program: str, file: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, packed = Path(folder, "a.wav"), Path(folder, "a.wv")
        source.write_bytes(file)
        subprocess.run([program, "-hh", "-q", str(source), "-o", str(packed)], check=True, capture_output=True)
        return packed.read_bytes()
