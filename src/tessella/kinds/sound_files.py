"""Sound files: recordings cut into windows of one length, converted to one rate, number of channels and values."""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor

from tessella.core.schema import LARGEST, UINT8, Integers, Real, Schema, Values
from tessella.foundation.errors import DataError, option
from tessella.foundation.progress import track
from tessella.foundation.text import one_line
from tessella.kinds.base import File, FileHeader, FileReader, ReadOptions
from tessella.kinds.mu_law import mu_law_codes

if TYPE_CHECKING:
    from soundfile import SoundFile

PCM16 = Integers(65536, -32768.0)
"""Values of 16-bit samples."""
SLOWEST, SHORTEST = 16, 16
"""Smallest number of samples per second, and in a window."""
WHOLE_UP_TO, MULTIPLE = 1.0, 64
"""By default, windows hold the longest recording but at most a second, rounded up to a multiple of samples."""
SHORT_SHARE = 0.1
"""Share of the recordings that may be shorter than a window, if windows must be whole."""
MARGIN = 2048
"""Samples of the lower rate that are resampled on both sides of a window, so that its ends do not differ."""
PREROLL = 8192
"""Samples that a Vorbis decoder is given before a window: a block depends on the one before it."""
BLOCK = 1 << 18
FRAME_SECONDS, SILENCE = 0.02, 0.001
"""Length of the frames in which silence is measured, and the peak (-60 dBFS) below which a frame is silent."""
FEW_LEVELS = 256

_BYTES = ("PCM_U8", "PCM_S8")
_BITS = {**dict.fromkeys(_BYTES, 8), "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FLOATS = ("FLOAT", "DOUBLE")
_LOSSY = {"VORBIS": "Vorbis", "OPUS": "Opus", "MPEG_LAYER_I": "MP1", "MPEG_LAYER_II": "MP2", "MPEG_LAYER_III": "MP3"}
_STATED = re.compile(r"(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)")
"""Line in the log of libsndfile: the bytes of sound by the header, and those that the file holds."""
_UNKNOWN = 0x7FFFF000
"""Such a number of bytes, or a larger one, is in headers that were written before the length was known; or 0 is."""


@final
class SoundFiles(FileReader):
    """Reader of sound files by libsndfile."""

    endings = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
    example, examples = "recording", "recordings"
    windowed = True

    def header(self, file: File) -> FileHeader:
        try:
            with _opened(file) as sound:
                header = FileHeader((sound.frames,), sound.channels, rate=sound.samplerate, coding=sound.subtype)
                return replace(header, trouble=_trouble(header, sound.extra_info))
        except Exception as error:  # decoders of broken files raise nearly anything
            return FileHeader(trouble=self.trouble(error))

    def schema(
        self, files: Sequence[tuple[Callable[[], File], FileHeader]], options: ReadOptions, notes: list[str]
    ) -> Schema:
        headers = [header for _, header in files]
        if options.size is not None:
            raise DataError(f"recordings are not pictures: leave out {option('size')}", code="no-pictures")
        if options.like is not None and options.like.rate:
            schema = replace(options.like, classes=())
        else:
            schema = _agreed(headers, options)
        lengths = [self.length(header, schema) for header in headers]
        changes = self.changes(headers, schema)
        if changes and options.like is None:
            changes[-1] += f"; choose otherwise with {option('rate')}, {option('channels')} or {option('values')}"
        ends = _left_out(lengths, schema) if options.whole_windows else []
        notes += [*changes, *ends, _windows(lengths, schema, options)]
        return schema

    def holds(self, schema: Schema) -> bool:
        return schema.rate > 0

    def parts(self, header: FileHeader, schema: Schema) -> int:
        """Return the number of windows of a recording; its last one may be shorter."""
        return max(1, math.ceil(self.length(header, schema) / schema.spatial[0]))

    def length(self, header: FileHeader, schema: Schema) -> int:
        return header.spatial[0] * round(schema.rate) // header.rate

    def read(self, file: File, schema: Schema, part: int = 0) -> Tensor:
        """Decode one window of a recording, found by seeking; positions after the end of the recording are NaN.

        Samples of up to 32 bits are exact until they are rounded to the values of the schema. Channels are mixed by
        their mean, or one is repeated. A sound of another rate is resampled with a margin on both sides of the window.
        """
        with _opened(file) as sound:
            x = _in_channels(_samples(sound, schema, part), schema.channels)
        if not np.isfinite(x).all():
            raise ValueError("it holds values that are NaN or infinite")
        (window,) = schema.spatial
        if len(x) < window and not schema.lengths:
            raise ValueError(f"it ends within a window of {window:,} samples, but the model takes whole windows only")
        stored = np.full((schema.channels, window), np.nan if schema.partial else 0, np.float32)
        stored[:, : len(x)] = _quantized(x, schema).T
        return torch.from_numpy(stored.astype(np.uint8) if schema.in_bytes else stored)

    def changes(self, headers: Sequence[FileHeader], schema: Schema) -> list[str]:
        count, rate, levels = len(headers), round(schema.rate), schema.values.levels
        lines = []

        def line(chosen: list[FileHeader], which: str, change: str) -> None:
            if chosen:
                lines.append(f"{len(chosen):,} of {count:,} recordings {which} are {change}")

        other = [h for h in headers if h.rate != rate]
        rates = ", ".join(f"{r:,}" for r in sorted({h.rate for h in other}))
        line(other, f"of {rates} Hz", f"resampled to {rate:,} Hz")
        other = [h for h in headers if h.channels != schema.channels]
        have = " or ".join(channel_words(c) for c in sorted({h.channels for h in other}))
        how = "mixed down to mono" if schema.channels == 1 else f"converted to {channel_words(schema.channels)}"
        line(other, f"in {have}", how)
        if schema.mu_law:
            lines.append(
                "samples are stored as 8-bit mu-law codes: compression without loss restores the codes, not the files"
            )
        elif levels:
            bits = levels.bit_length() - 1
            kept = f"compression without loss restores these {bits}-bit samples, not the file"
            for deep in sorted({_BITS.get(h.coding, 0) for h in headers}):
                if deep > bits:
                    these = [h for h in headers if _BITS.get(h.coding) == deep]
                    line(these, f"of {deep} bits", f"rounded to {bits} bits: {kept}")
            floats = [h for h in headers if h.coding in _FLOATS]
            line(floats, "of floats", f"rounded to {bits} bits and clipped: {kept}")
            lossy = [h for h in headers if h.coding in _LOSSY]
            names = " or ".join(sorted({_LOSSY[h.coding] for h in lossy}))
            line(lossy, f"in {names}", f"decoded and rounded to {bits} bits: {kept}")
            small = [h for h in headers if h.coding in _BYTES and bits > 8]
            line(small, "of 8 bits", f"stored as {bits} bits, each value times {1 << (bits - 8)}")
        else:
            line([h for h in headers if h.coding in ("PCM_32", "DOUBLE")], "of 32 or 64 bits", "rounded to float32")
        return lines

    def facts(self, files: Sequence[tuple[Callable[[], File], FileHeader]], schema: Schema) -> list[tuple[str, str]]:
        """Measure durations, rates, levels and lattices of recordings as they are in their files."""
        headers = [header for _, header in files]
        seconds = np.array([header.spatial[0] / header.rate for header in headers])
        ends = (seconds.min(), np.median(seconds), seconds.max())
        least, middle, most = (f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in ends)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            measured = threads.map(lambda each: _levels(each[0]()), files)
            levels = [one for one in track(measured, "measuring", len(files)) if one is not None]
        samples, frames = sum(one.samples for one in levels), sum(one.frames for one in levels)
        loudness = math.sqrt(sum(one.energy for one in levels) / max(1, samples))
        clipped, silent = sum(one.clipped for one in levels), sum(one.silent for one in levels)
        lattice = _lattice(levels)
        return [
            (
                "recordings",
                f"{len(files):,} of {least} to {most} s, median {middle} s; {seconds.sum() / 60:,.1f} minutes in all",
            ),
            ("rates", _counted(f"{header.rate:,} Hz" for header in headers)),
            ("channels", _counted(channel_words(header.channels) for header in headers)),
            ("coding", _counted(_coding_words(header.coding) for header in headers)),
            (
                "levels",
                f"peak {_decibels(max((one.peak for one in levels), default=0))}, RMS {_decibels(loudness)}; "
                f"{clipped / max(1, samples):.2%} of the samples at full scale (clipped), "
                f"{silent / max(1, frames):.1%} of the time silent (below -60 dBFS)",
            ),
            *([("lattice", "; ".join(lattice))] if lattice else []),
        ]

    def trouble(self, error: Exception) -> str:
        import soundfile

        known = {PermissionError: "no permission", FileNotFoundError: "no such file"}
        words = next((words for kind, words in known.items() if isinstance(error, kind)), None)
        text = error.error_string if isinstance(error, soundfile.LibsndfileError) else one_line(error, 90)
        return words or ("not a sound" if "not recognised" in text else text)


@contextmanager
def _opened(file: File) -> Iterator[SoundFile]:
    """Open a sound and read its header.

    Raises:
        OSError: if it is not a regular file.
        soundfile.LibsndfileError: if it is not a sound.
    """
    import soundfile

    if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    with soundfile.SoundFile(file if isinstance(file, str) else io.BytesIO(file)) as sound:
        yield sound


def _trouble(header: FileHeader, log: str) -> str:
    """Return why a recording cannot be used, by its header and the log of libsndfile, or ""."""
    for stated, there in _STATED.findall(log):
        if int(there) < int(stated) < _UNKNOWN:
            return f"truncated: {int(there):,} of {int(stated):,} bytes of sound are there"
    if not header.spatial[0]:
        return "it holds no samples"
    if header.rate < SLOWEST:
        return f"its rate is {header.rate} Hz, but at least {SLOWEST} are needed"
    return ""


# reading


def _samples(sound: SoundFile, schema: Schema, part: int) -> np.ndarray:
    """Decode the samples `[n, channels]` float64 of a window, at the rate of the schema."""
    old, new = sound.samplerate, round(schema.rate)
    start = part * schema.spatial[0]
    stop = min(start + schema.spatial[0], sound.frames * new // old)
    if stop <= start:
        raise ValueError(f"it is shorter than one sample at {new:,} Hz")
    if old == new:
        return _decoded(sound, start, stop)
    import soxr

    common = math.gcd(old, new)
    up, down = new // common, old // common
    margin = MARGIN * max(1, new // old)
    first = max(0, start - margin) // up * up  # a sample of both rates
    last = min(sound.frames, -(-(stop + margin) * down // up))
    x = soxr.resample(_decoded(sound, first // up * down, last), old, new, "VHQ")
    return x[start - first : stop - first]


def _decoded(sound: SoundFile, start: int, stop: int) -> np.ndarray:
    """Decode samples `start ... stop - 1`, `[n, channels]` float64.

    Raises:
        ValueError: if the file ends before.
    """
    early = min(start, PREROLL) if sound.subtype == "VORBIS" else 0
    sound.seek(start - early)
    x = sound.read(stop - start + early, dtype="float64", always_2d=True)[early:]
    if len(x) < stop - start:
        raise ValueError(f"truncated: it ends after {start + len(x):,} of {sound.frames:,} samples")
    return x


def _in_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Convert samples `[n, C]` to another number of channels: their mean, or one channel repeated."""
    if x.shape[1] == channels:
        return x
    if channels > 1 < x.shape[1]:
        raise ValueError(f"it has {x.shape[1]} channels, which cannot become {channels}")
    return x.mean(1, keepdims=True).repeat(channels, 1)


def _quantized(x: np.ndarray, schema: Schema) -> np.ndarray:
    """Convert samples in -1 ... 1 to the values of a schema: rounded to its levels and clipped, or unchanged."""
    if not schema.values.discrete:
        return x
    if schema.mu_law:
        return mu_law_codes(_rounded(x, PCM16))
    return _rounded(x, schema.values)


def _rounded(x: np.ndarray, values: Values) -> np.ndarray:
    half = values.levels // 2
    return np.clip(np.rint(x * half) + (values.low + half), values.low, values.high)


# one rate, number of channels, length and values for all recordings of a data set


def _agreed(headers: Sequence[FileHeader], options: ReadOptions) -> Schema:
    """Choose the schema of recordings: what most of them have, or the user asks for.

    Raises:
        DataError: if an option is out of its range.
    """
    rates, channels = Counter(header.rate for header in headers), {header.channels for header in headers}
    rate = options.rate or max(rates, key=lambda rate: (rates[rate], rate))
    of = options.channels or (1 if len(channels) > 1 else channels.pop())
    values: Values = PCM16
    if options.values == "mu-law" or (options.values != "real" and all(h.coding in _BYTES for h in headers)):
        values = UINT8
    elif options.values == "real":
        values = Real(-1.0, 1.0)
    lengths = [header.spatial[0] * rate // header.rate for header in headers]
    if options.seconds is None and options.whole_windows:
        longest = min(float(np.quantile(lengths, SHORT_SHARE)), WHOLE_UP_TO * rate)
        window = max(SHORTEST, math.floor(longest / MULTIPLE) * MULTIPLE)
    elif options.seconds is None:
        window = math.ceil(min(max(lengths), WHOLE_UP_TO * rate) / MULTIPLE) * MULTIPLE
    else:
        window = round(options.seconds * rate)
    if not SHORTEST <= window <= LARGEST // of:
        raise DataError(
            f"windows of {options.seconds:g} s are {window:,} samples at {rate:,} Hz: give {option('seconds')} from "
            f"{SHORTEST / rate:.2g} to {LARGEST // of / rate:,.0f}",
            code="bad-option",
        )
    partial = not options.whole_windows and any(length % window for length in lengths)
    return Schema(of, (window,), values, lengths=partial, rate=float(rate), mu_law=options.values == "mu-law")


def _left_out(lengths: Sequence[int], schema: Schema) -> list[str]:
    """Say how much sound is left out where windows must be whole.

    Raises:
        DataError: if no recording is as long as a window.
    """
    (window,), longest = schema.spatial, max(lengths)
    if longest < window:
        raise DataError(
            f"no recording is as long as a window of {window / schema.rate:.4g} s; the longest has "
            f"{longest / schema.rate:.4g} s: choose the length with {option('seconds')}",
            code="too-short",
        )
    over, short = sum(n % window for n in lengths), sum(n < window for n in lengths)
    none = f", and {short:,} of {len(lengths):,} recordings have no whole one" if short else ""
    share = f"{over / sum(lengths):.0%} of the sound"
    return [f"ends that are shorter than a window are left out, {share}{none}"] if over else []


def _windows(lengths: Sequence[int], schema: Schema, options: ReadOptions) -> str:
    """Describe the windows into which recordings of these lengths in samples are cut."""
    (window,) = schema.spatial
    size = f"{window / schema.rate:.4g} s ({window:,} samples)"
    whole, longest = options.whole_windows, max(lengths)
    count = sum(n // window if whole else max(1, math.ceil(n / window)) for n in lengths)
    if count == len(lengths) and longest <= window:
        return f"windows of {size} hold every recording whole; the longest has {longest:,} samples"
    choose = "" if options.like is not None else f"; choose the length with {option('seconds')}"
    return f"{len(lengths):,} recordings are cut into {count:,} windows of {size}{choose}"


# levels


@final
@dataclass(frozen=True)
class _Levels:
    """Levels of one recording.

    Attributes:
        samples, energy: number of its samples in all channels, and the sum of their squares.
        peak: largest magnitude; 1 is full scale.
        clipped: number of samples at full scale.
        frames, silent: number of its frames, and of those below `SILENCE`.
        step: greatest common divisor of the differences of its values, in units of its own bits; 0 if unknown.
        distinct: number of different values; 0 if unknown.
        spread: number of values of its bits from its lowest to its highest; 0 if unknown.
    """

    samples: int = 0
    energy: float = 0.0
    peak: float = 0.0
    clipped: int = 0
    frames: int = 0
    silent: int = 0
    step: int = 0
    distinct: int = 0
    spread: int = 0


def _levels(file: File) -> _Levels | None:
    """Decode a recording block by block and measure it; None if it cannot be read, which its reading reports."""
    found, step, first = _Levels(), 0, None
    try:
        with _opened(file) as sound:
            bits = _BITS.get(sound.subtype, 0)
            top = 1 - 2.0 ** (1 - bits) if bits else 1.0
            frame = max(1, round(FRAME_SECONDS * sound.samplerate))
            counts = np.zeros(1 << min(bits, 16), np.int64)  # of each value, of up to 16 bits
            for x in sound.blocks(frame * max(1, BLOCK // frame), dtype="float64", always_2d=True):
                loud = np.abs(x).max(1)
                peaks = np.maximum.reduceat(loud, np.arange(0, len(x), frame))
                found = _Levels(
                    found.samples + x.size,
                    found.energy + float((x**2).sum()),
                    max(found.peak, float(loud.max())),
                    found.clipped + int(((x >= top) | (x <= -1)).sum()),
                    found.frames + len(peaks),
                    found.silent + int((peaks < SILENCE).sum()),
                )
                whole = np.rint((x + 1) * 2.0 ** (bits - 1)).astype(np.int64).ravel() if bits else np.empty(0, int)
                if 0 < bits <= 16:
                    counts += np.bincount(whole, minlength=len(counts))
                elif bits:
                    first = whole[0] if first is None else first
                    step = math.gcd(step, int(np.gcd.reduce(whole - first)))
    except Exception:  # decoders of broken files raise nearly anything
        return None
    values = np.flatnonzero(counts)
    if len(values) < 2:
        return replace(found, step=step)
    spread = int(values[-1] - values[0]) + 1
    return replace(found, step=int(np.gcd.reduce(np.diff(values))), distinct=len(values), spread=spread)


def _lattice(levels: Sequence[_Levels]) -> list[str]:
    """Describe the recordings whose values are few among those of their bits."""
    count, lines = len(levels), []
    for step, number in sorted(Counter(one.step for one in levels if one.step > 1).items()):
        every = {2: "second", 3: "third"}.get(step, f"{step}th")
        lines.append(f"{number:,} of {count:,} recordings use only every {every} value")
    few = [n for n in levels if 1 < n.distinct <= FEW_LEVELS and n.spread > 4 * n.distinct * n.step]
    if few:
        most = max(one.distinct for one in few)
        lines.append(f"{len(few):,} of {count:,} recordings use only up to {most} of the values in their range")
    return lines


def _counted(words: Iterable[str]) -> str:
    """List words, the most frequent first, with their counts if they differ."""
    found = Counter(words).most_common()
    return ", ".join(f"{word} ({count:,})" if len(found) > 1 else word for word, count in found)


def _coding_words(coding: str) -> str:
    """Describe the storage of samples: 16 bits, floats, Vorbis."""
    bits = _BITS.get(coding)
    return f"{bits} bits" if bits else "floats" if coding in _FLOATS else _LOSSY.get(coding, coding.lower())


def _decibels(amplitude: float) -> str:
    """Format an amplitude relative to full scale."""
    return f"{20 * math.log10(amplitude):.1f} dBFS" if amplitude > 0 else "-inf dBFS"


def channel_words(channels: int) -> str:
    """Describe a number of channels: mono, stereo, 6 channels."""
    return {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
