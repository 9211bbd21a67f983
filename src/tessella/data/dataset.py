"""Open a data set by its SPEC: read, convert to one shape and type, split and binarize."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final, get_args

import numpy as np

from tessella.core.schema import UINT8, Binary, Real, Schema
from tessella.data import arrays
from tessella.data.duplicates import mark_duplicates
from tessella.data.raw import WHOLE, RawDataset, RawSplit
from tessella.data.sources import HUB, find_raw, known_sources
from tessella.data.splits import TEST_FRACTION, VALID_FRACTION, Binarization, BinarizedSplit, PartSplit, Split, divide
from tessella.foundation import registry
from tessella.foundation.errors import DataError, RunError, option
from tessella.foundation.notes import note
from tessella.foundation.text import abridged
from tessella.kinds.base import DataKind, ReadOptions, SoundValues, kind_of

SPLITS = {"train": "training", "valid": "validation", "test": "test"}
RECORDED = ("fingerprint", "examples")
"""Keys of a data record that describe the content of the data, not its place or its reading options."""
MEASURED = 1_000
"""Examples on access whose range, mean and standard deviation are measured."""
LOWEST_RATE, HIGHEST_RATE = 16, 1 << 20
"""Samples per second to which sounds may be resampled."""
SURVEYED = 1 << 25
"""Values of the training split of which the share that is observed is measured."""
TOLD_BY = 4
"""Examples that go into the fingerprint of data that is rendered on access."""


@final
@dataclass(frozen=True)
class Data:
    """Data set with its schema, splits and notes.

    Attributes:
        spec: the SPEC that was opened; a path is absolute.
        options: the reading options; `open_data(data.spec, **data.options)` opens the data again.
        schema: shape and values of an example.
        splits: `train`, and `valid` and `test` if there are enough examples.
        notes: what was skipped or converted, one line each.
        all_examples: all examples in the order of their source; None if the source has splits of its own.
        division: origin of each split, in words.
        labelling: origin of the labels, in words.
        fingerprint: hash of the content in 16 hex digits: shape, values, class names and, for each split, examples and
            labels. It does not depend on the place of the data.
        measure_files: measures the content of the files when called: names and texts, a line each.
    """

    spec: str
    options: dict[str, Any]
    schema: Schema
    splits: dict[str, Split]
    notes: tuple[str, ...]
    all_examples: Split | None = None
    division: str = ""
    labelling: str = ""
    fingerprint: str = ""
    measure_files: Callable[[], list[tuple[str, str]]] = list

    def split(self, name: str) -> Split:
        """Return the split with a given name.

        Raises:
            DataError: if there is no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.spec} has no split {name!r}; there are: {', '.join(self.splits)}",
                code="no-such-split",
                name=name,
            )
        return self.splits[name]

    @property
    def record(self) -> dict[str, Any]:
        """Return the record for a run's specification: SPEC, reading options, fingerprint and counts."""
        counts = {name: len(split) for name, split in self.splits.items()}
        return {"spec": self.spec, **self.options, "fingerprint": self.fingerprint, "examples": counts}

    @property
    def facts(self) -> dict[str, str]:
        """Return the fingerprint and the counts, to check that all processes have the same data."""
        counts = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        return {"data": f"{self.fingerprint} ({counts})"}

    def difference(self, before: Mapping[str, Any]) -> str | None:
        """Describe how the data differs from a record; None if it does not, or without fingerprints."""
        if not self.fingerprint or before.get("fingerprint") in (None, "", self.fingerprint):
            return None
        called = kind_of(self.schema).examples
        now = {name: len(split) for name, split in self.splits.items()}
        then: dict[str, int] = before.get("examples") or {}
        told = [
            f"{then.get(name, 0):,} {SPLITS.get(name, name)} {called} then, {now.get(name, 0):,} now"
            for name in dict.fromkeys((*then, *now))
            if then.get(name, 0) != now.get(name, 0)
        ]
        return "; ".join(told) or f"equally many {called} as before, but not the same ones"

    def check_resumes(self, run: Path, before: Mapping[str, Any], *, changed_data: bool) -> None:
        """Check that a resumed run continues with the data in its record. Note a new place or other data.

        Raises:
            RunError: if the data is not the same and `changed_data` is false.
        """
        what = self.difference(before)
        if what is not None and not changed_data:
            raise RunError(
                f"{run} was trained on other data than {self.spec} holds now ({what}): give the original data with "
                f"{option('data')}, or continue with this data with {option('changed_data')}",
                code="changed-data",
            )
        if what is not None:
            note(f"{run} continues with other data than before ({what})")
        elif before.get("spec") not in (None, self.spec):
            note(f"{run} reads its data from {self.spec} from now on")


def open_data(
    spec: str,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    binarize: Binarization | None = None,
    seed: int = 0,
    label: str | None = None,
    kind: DataKind | None = None,
    rate: int | None = None,
    seconds: float | None = None,
    values: SoundValues | None = None,
    whole_windows: bool = False,
    window: int | None = None,
    stride: int | None = None,
    valid_share: float | None = None,
    test_share: float | None = None,
    like: Schema | None = None,
) -> Data:
    """Open a data set.

    Args:
        spec: `clothes`, `digits`, `sprites`, `tones`, `hf:NAME`, a folder of images, or a file (npz, npy, csv,
            parquet, idx, bin).
        size: (height, width) to which images are cropped and resized, or one number for both.
        channels: channels of images: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; of sounds: 1 mono, 2
            stereo.
        binarize: `dynamic` samples each pixel from Bernoulli(v / 255) each time a training batch is read, `static`
            samples it once, `threshold` sets it to 1 if v > 127. Validation and test splits never change.
        seed: seed of the split and of static binarization.
        kind: `signal` to read arrays `[N, C, T]` and `[N, T]`, and the rows of tables, as signals instead of grey
            images and vectors; `series` to read the rows of a table, or of an array `[T, C]`, as consecutive times.
        label: name of the table column, or of the `.npz` array, with the labels. In a folder: a pattern of the file
            names such as `{digit}_{speaker}_{index}:speaker`, whose field after the colon is the class and whose
            other fields are factors, or a column of a CSV file in the folder, whose first column names the files.
        rate: samples per second of sounds; others are resampled. Default: that of most recordings.
        seconds: length of the windows into which recordings are cut, or series whose rows have dates. Default: the
            longest recording, at most 1 s.
        values: values of sounds: `pcm` whole numbers of 16 bits, or of 8 if all files have 8; `mu-law` the 256 codes of
            ITU-T G.711; `real` floats. Default: `pcm`.
        whole_windows: whether the end of a sound that is shorter than a window is left out.
        window: rows of the windows into which series are cut. Default: twice their period.
        stride: rows from one training window of a series to the next. Default: a window, or a quarter of it if there
            would be few. Windows of other splits never overlap.
        valid_share, test_share: shares of the examples that are cut out for validation and test, if the data has no
            such splits; 0.05 and 0.1 by default, 0 for none.
        like: schema of the data that a model was trained on. Table columns are matched with it by name and stored in
            its types; image files with more than 8 bits are converted by its `depth`.

    Raises:
        DataError: if the data cannot be read or does not fit the options.
    """
    box = _checked(size, channels, binarize)
    _check_sound_options(rate, seconds, values)
    _check_series_options(kind, window, stride)
    for name, share in (("valid_share", valid_share), ("test_share", test_share)):
        if share is not None and not 0 <= share < 1:
            raise DataError(f"{option(name)} must be at least 0 and below 1, got {share:g}", code="bad-option")
    spec = _absolute(spec)
    asked = ReadOptions(
        box, channels, rate, seconds, values, whole_windows, kind, window, stride, valid_share, test_share, seed, like
    )
    found = find_raw(spec, asked, label)
    notes = found.notes
    schema = _unified(found, asked, kind)
    series = found.everything is not None
    of_sounds = (rate, values, whole_windows or None, None if series else seconds, channels if schema.rate else None)
    in_files = schema.rate > 0 and spec not in registry.names("data")
    if not in_files and any(given is not None for given in of_sounds):
        raise DataError(
            f"{spec} holds no recordings: leave out {option('rate')}, {option('seconds')}, {option('values')}, "
            f"{option('whole_windows')}" + (f" and {option('channels')}" if schema.rate else ""),
            code="no-sounds",
        )
    if not series and (window is not None or stride is not None):
        raise DataError(
            f"{spec} is not read as series: leave out {option('window')} and {option('stride')}, or give "
            f"{option('kind')} series",
            code="no-series",
        )
    if (schema.rate or series) and binarize is not None:
        what = "series" if series else "sounds"
        raise DataError(f"{what} cannot be binarized: leave out {option('binarize')}", code="no-pictures")
    together = found.parts if found.everything is None else {**found.parts, WHOLE: found.everything}
    labels, classes = arrays.label_numbers(together, found.classes, notes)
    for name, part in together.items():
        part.labels = labels[name]
    mark_duplicates(found, classes, schema)
    shares = {"valid": valid_share, "test": test_share}
    rows = _divided(found, seed, shares, notes)
    splits: dict[str, Split] = {name: PartSplit(part, chosen) for name, (part, chosen) in rows.items()}
    whole = found.everything or (found.parts.get(WHOLE) if len(found.parts) == 1 else None)
    all_examples = None if whole is None else PartSplit(whole, np.arange(len(whole.example_ids)))
    schema = _measured(replace(schema, classes=classes), *rows["train"])
    if binarize is not None and not schema.values.discrete:
        raise DataError(
            f"{spec} has real values, which cannot be binarized: leave out {option('binarize')}", code="real-values"
        )
    fingerprint = _fingerprint(schema, rows, binarize)
    if binarize is not None and schema.values == Binary():
        notes.append("the values are already binary, so they are not binarized")
    elif binarize is not None:
        schema = replace(schema, values=Binary())
        fixed: Binarization = "threshold" if binarize == "threshold" else "static"
        for name, split in splits.items():
            splits[name] = BinarizedSplit(split, binarize if name == "train" else fixed, seed)
        all_examples = all_examples and BinarizedSplit(all_examples, fixed, seed)
    options = {
        "size": box,
        "channels": channels,
        "binarize": binarize,
        "seed": seed,
        "label": label,
        "kind": kind,
        "rate": rate,
        "seconds": seconds,
        "values": values,
        "whole_windows": whole_windows,
        "window": window,
        "stride": stride,
        "valid_share": valid_share,
        "test_share": test_share,
    }
    of = _division(found, rows)
    return Data(
        spec, options, schema, splits, tuple(notes), all_examples, of, found.labelling, fingerprint, found.measure_files
    )


def _checked(size: int | tuple[int, int] | None, channels: int | None, binarize: str | None) -> tuple[int, int] | None:
    box, wrong = (size, size) if isinstance(size, int) else size and tuple(size), ""
    if channels is not None and channels not in arrays.CHANNELS:
        wrong = (
            f"{option('channels')} must be 1 (grey, mono), 2 (grey and alpha, stereo), 3 (colour) or 4 (colour and "
            f"alpha), got {channels}"
        )
    if binarize is not None and binarize not in get_args(Binarization):
        wrong = f"{option('binarize')} must be one of {', '.join(get_args(Binarization))}, got {binarize!r}"
    if box is not None and (len(box) != 2 or not all(isinstance(n, int) and 1 <= n <= 1 << 14 for n in box)):
        wrong = f"{option('size')} must be one number, or a height and a width, from 1 to {1 << 14}, got {size}"
    if wrong:
        raise DataError(wrong, code="bad-option")
    return cast("tuple[int, int] | None", box)


def _check_sound_options(rate: int | None, seconds: float | None, values: str | None) -> None:
    if rate is not None and not LOWEST_RATE <= rate <= HIGHEST_RATE:
        wrong = f"{option('rate')} must be from {LOWEST_RATE} to {HIGHEST_RATE:,} samples per second, got {rate}"
    elif seconds is not None and not 0 < seconds < float("inf"):
        wrong = f"{option('seconds')} must be more than 0, got {seconds:g}"
    elif values is not None and values not in get_args(SoundValues):
        wrong = f"{option('values')} must be one of {', '.join(get_args(SoundValues))}, got {values!r}"
    else:
        return
    raise DataError(wrong, code="bad-option")


def _check_series_options(kind: str | None, window: int | None, stride: int | None) -> None:
    if kind is not None and kind not in get_args(DataKind):
        raise DataError(f"{option('kind')} must be one of {', '.join(get_args(DataKind))}", code="bad-option")
    for name, rows, least in (("window", window, 2), ("stride", stride, 1)):
        if rows is not None and rows < least:
            raise DataError(f"{option(name)} must be at least {least}, got {rows}", code="bad-option")


def _absolute(spec: str) -> str:
    if spec in registry.names("data"):
        return spec
    if not spec.removeprefix(HUB):
        raise DataError(f"no data given: give {known_sources()}", code="no-such-data")
    hub = HUB if spec.startswith(HUB) else ""
    path = os.path.expanduser(spec.removeprefix(hub))
    return hub + os.path.abspath(path) if os.path.exists(path) or not hub else spec


def _unified(found: RawDataset, asked: ReadOptions, kind: str | None) -> Schema:
    """Convert all parts in place to one type, size and number of channels, and return their schema."""
    if found.schema is not None:  # files, which are converted already
        return found.schema
    size, channels = asked.size, asked.channels
    xs: dict[str, np.ndarray] = {}
    for name, part in found.parts.items():
        if isinstance(part.x, np.ndarray):
            xs[name] = arrays.as_examples(part.x, part.name or name, found.notes, kind)
            continue
        shape = (channels or part.x.shape[0], *(size or part.x.shape[1:]))
        part.x = part.x if shape == part.x.shape else arrays.Fitted(part.x, shape)
    if not xs:
        return Schema.of(next(iter(found.parts.values())).x.shape, UINT8)
    called = {name: part.name or name for name, part in found.parts.items()}
    arrays.check_same_shape(xs, called)
    xs, values, offset = arrays.stored(xs, called, found.notes, found.columns, asked.like)
    for name, x in xs.items():
        if x.ndim < 4 and (size is not None or channels is not None):
            raise DataError(
                f"the examples are not pictures: leave out {option('size')} and {option('channels')}",
                code="no-pictures",
            )
        x = x if channels is None else arrays.recoloured(x, channels, values, called[name])
        found.parts[name].x = x if size is None else arrays.resized(x, size, values)
    shape = next(iter(found.parts.values())).x.shape[1:]
    return replace(Schema.of(shape, values), columns=found.columns, offset=offset)


def _divided(
    found: RawDataset, seed: int, shares: Mapping[str, float | None], notes: list[str]
) -> dict[str, tuple[RawSplit, np.ndarray]]:
    """Choose the part and the rows of each split: official splits stay, missing ones are taken from training."""
    parts = found.parts
    main = parts.get("train", parts.get(WHOLE))
    if main is None:
        raise DataError(
            f"the data has no training split, only {abridged(list(parts))}: add a training split",
            code="no-training-examples",
        )
    usual = {"valid": VALID_FRACTION, "test": TEST_FRACTION}
    share = {name: usual[name] if given is None else given for name, given in shares.items()}
    for name in ("valid", "test"):
        if name in parts:
            share[name] = 0.0
            if shares[name] is not None and found.everything is None:
                notes.append(f"the data has a {name} split of its own, so no share is cut out for it")
    if found.everything is not None:
        share = dict.fromkeys(share, 0.0)
    taken = divide(main, test=share["test"], valid=share["valid"], seed=seed)
    rows = {name: (main, chosen) for name, chosen in taken.items()}
    for name in ("valid", "test"):
        if name in parts and parts[name] is not main:
            rows[name] = (parts[name], np.arange(len(parts[name].example_ids)))
        elif name not in rows and share[name] and found.everything is None:
            count = len(main.example_ids)
            apart = count if main.groups is None else len(np.unique(main.groups))
            different = apart if main.content is None else len(np.unique(main.content))
            why = "too few examples"
            if 1 == different < count:
                why = f"all {count:,} examples are the same, so there is none"
            elif apart < different:
                files = "one file, which is" if apart == 1 else f"{apart} files, which are"
                why = f"all {count:,} examples come from {files} not divided, so there is none"
            notes.append(f"{why} for a {name} split")
    if found.by_content:
        rows = {name: (part, chosen[np.argsort(part.example_ids[chosen])]) for name, (part, chosen) in rows.items()}
    return {name: rows[name] for name in SPLITS if name in rows}


def _division(found: RawDataset, rows: dict[str, tuple[RawSplit, np.ndarray]]) -> str:
    """Describe the origin of each split: `test: folder test/; valid: cut out of train`."""
    whole = WHOLE in found.parts
    given = {name: found.origins.get(name) or _short(found.parts[name].name) for name in rows if name in found.parts}
    cut = [name for name in rows if name not in found.parts and name != "train"]
    parts = [f"{name}: {origin}" for name, origin in given.items()]
    if cut:
        parts.append(f"{' and '.join(cut)}: cut out of {found.origins.get(WHOLE, 'all') if whole else 'train'}")
    return "; ".join(parts)


def _short(name: str) -> str:
    """Shorten a part's name: `folder/file.npz: x_train` to `x_train`."""
    return os.path.basename(name.rpartition(": ")[2]) or "given"


def _fingerprint(schema: Schema, rows: dict[str, tuple[RawSplit, np.ndarray]], binarize: str | None) -> str:
    head: list[Any] = [list(schema.shape), schema.values.name, list(schema.classes), binarize]
    head += [schema.rate, schema.mu_law] if schema.rate else []
    digest = hashlib.blake2b(json.dumps(head).encode("utf-8", "surrogateescape"), digest_size=8)
    for name, (part, chosen) in rows.items():
        digest.update(f"{name} {len(chosen)}".encode())
        if part.content is not None:
            digest.update(part.content[chosen].astype("<u8").tobytes())
        elif not isinstance(part.x, np.ndarray):  # rendered on access: ids and a few rendered examples
            digest.update(part.example_ids[chosen].astype("<u8").tobytes())
            digest.update(part.read(chosen[:TOLD_BY]).tobytes())
        if part.labels is not None:
            digest.update(part.labels[chosen].astype("<i8").tobytes())
    return digest.hexdigest()


def _measured(schema: Schema, part: RawSplit, rows: np.ndarray) -> Schema:
    """Measure on the training split the share of observed values, and range, mean and deviation of real values.

    Of sounds of integers the level is measured, as most are far softer than the largest values.
    """
    if schema.partial:
        some = part.read(rows[: max(1, SURVEYED // schema.dims)])
        schema = replace(schema, observed=max(float((~np.isnan(some)).mean()), 1 / some.size))
    values = schema.values
    if values.discrete:
        if not schema.rate or schema.mu_law:
            return schema
        some = part.read(rows[: max(1, SURVEYED // schema.dims)]).astype(np.float64)
        level = math.sqrt(np.nanmean((some - (values.low + values.span / 2)) ** 2))
        return replace(schema, scale=(max(1.0, level),))
    x = part.x
    if not isinstance(x, np.ndarray):
        x, rows = part.read(rows[:MEASURED]), np.arange(min(len(rows), MEASURED))
    center, scale, low, high = arrays.moments(x, rows)
    return replace(schema, values=Real(low, high), center=center, scale=scale)
