"""Classes of files by a pattern of their names, or by a column of a CSV file beside them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence

from tessella.data.folders.layout import Layout
from tessella.data.limits import content
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import abridged, shown

TABLES = (".csv", ".tsv")
"""Endings of the files that may name the classes of the files beside them."""

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


def is_pattern(label: str) -> bool:
    """Return whether a label is a pattern of file names, not the name of a column."""
    return "{" in label


def set_labels(layout: Layout, names: Sequence[str], label: str, folder: str, examples: str, *, known: bool) -> None:
    """Set the class of each file; files without one are left out, with a note.

    Args:
        layout: splits of the files; receives the labels, and the other fields of a pattern as factors.
        names: paths of the files below the folder.
        label: pattern of file names `{digit}_{speaker}_{index}:speaker`, or column of a CSV file in the folder.
        examples: word for several files.
        known: whether the classes are known from a model, so that data without labels will do.

    Raises:
        DataError: if no file gets a class (`no-such-label`).
    """
    rows = [row for row, split in enumerate(layout.splits) if split]
    try:
        chosen = [names[row] for row in rows]
        found, layout.labelling = find_labels(chosen, label, folder)
        layout.factors = _other_fields(names, label) if is_pattern(label) else {}
    except DataError as error:
        if not known:
            raise
        layout.notes.append(f"the {examples} have no labels: {error.message}")
        found = [None] * len(rows)
    else:
        if left := [row for row, name in zip(rows, found, strict=True) if name is None]:
            of = f"{len(left):,} of {len(rows):,} {examples}"
            layout.notes.append(f"{of} without a label were left out: {abridged([names[row] for row in left], 3)}")
        for row in left:
            layout.splits[row] = ""
    for row, name in zip(rows, found, strict=True):
        layout.labels[row] = name


def find_labels(names: Sequence[str], label: str, folder: str) -> tuple[list[str | None], str]:
    """Find the class of each file, or None; and say in words where the classes come from.

    Args:
        names, label, folder: as `set_labels` takes them.

    Raises:
        DataError: if no file gets a class (`no-such-label`), or the pattern has no such field (`bad-option`).
    """
    return (_by_pattern if is_pattern(label) else _by_column)(names, label, folder)


def _by_pattern(names: Sequence[str], label: str, folder: str) -> tuple[list[str | None], str]:
    """Match the paths without ending, or as many of their last parts as the pattern has, and return a field of each."""
    pattern, field = _divided(label)
    fields = _FIELD.findall(pattern)
    field = field or (fields[0] if len(fields) == 1 else "")
    texts = _FIELD.split(pattern)  # the texts between the fields, and the fields
    if field not in fields or len(set(fields)) < len(fields) or any("{" in text or "}" in text for text in texts[::2]):
        raise DataError(
            f"the pattern {shown(label)!r} does not say which field is the class: give {option('label')} such as "
            "{digit}_{speaker}_{index}:speaker",
            code="bad-option",
        )
    matches = _matches(names, pattern)
    if not any(matches):
        raise DataError(
            f"no file name in {folder} fits the pattern {shown(pattern)!r}; one of them is {shown(names[0])!r}",
            code="no-such-label",
            example=names[0],
        )
    return [match and match[field] for match in matches], f"by {field} in the file names"


def _divided(label: str) -> tuple[str, str]:
    """Divide `pattern:field`; the field may be missing."""
    pattern, _, field = label.rpartition(":")
    return (pattern, field) if pattern else (label, "")


def _matches(names: Sequence[str], pattern: str) -> list[re.Match[str] | None]:
    texts = _FIELD.split(pattern)
    parts = [f"(?P<{text}>[^/]+?)" if at % 2 else re.escape(text) for at, text in enumerate(texts)]
    fitting = re.compile("(?:.*/)?" + "".join(parts))
    return [fitting.fullmatch(os.path.splitext(name)[0]) for name in names]


def _other_fields(names: Sequence[str], label: str) -> dict[str, list[str]]:
    """Return the fields of a pattern that are not the class, by name; empty for files that do not fit."""
    pattern, field = _divided(label)
    matches = _matches(names, pattern)
    others = [name for name in _FIELD.findall(pattern) if name != field]
    return {name: ["" if match is None else match[name] for match in matches] for name in others if field}


def _by_column(names: Sequence[str], label: str, folder: str) -> tuple[list[str | None], str]:
    """Look up the files in the CSV files beside them, whose first column names files with or without ending."""
    found: dict[str, str] = {}
    others: list[str] = []
    used: list[str] = []
    for place in sorted({"", *map(os.path.dirname, names)}):
        for name in sorted(os.listdir(os.path.join(folder, place))):
            if not name.lower().endswith(TABLES):
                continue
            header, *rows = _table(os.path.join(folder, place, name))
            others += header[1:]
            if label not in header[1:]:
                continue
            at = header.index(label, 1)
            used.append(os.path.join(place, name))
            found |= {os.path.normpath(os.path.join(place, row[0])): row[at] for row in rows if len(row) > at}
    labels = [_first(found, name, os.path.splitext(name)[0]) for name in names]
    if not used:
        has = f"they have the columns {abridged(sorted(set(others)))}" if others else "there is no CSV file"
        raise DataError(
            f"no CSV file in {folder} has a column {shown(label)!r} with the labels: {has}",
            code="no-such-label",
            label=label,
        )
    if not any(labels):
        raise DataError(
            f"the first column of {abridged(used)} names none of the files in {folder}, such as {shown(names[0])!r}",
            code="no-such-label",
            example=names[0],
        )
    return labels, f"by the column {shown(label)} of {abridged(used)}"


def _first(found: dict[str, str], *names: str) -> str | None:
    return next((found[name] for name in names if found.get(name)), None)


def _table(path: str) -> list[list[str]]:
    """Read the rows of a CSV file, whose cells are separated by commas, semicolons or tabs."""
    text = content(path).decode("utf-8-sig", "replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        return [row for row in csv.reader(text.splitlines(), delimiter=separator) if row] or [[""]]
    except csv.Error:  # something else under this name
        return [[""]]
