"""What a run was trained on: the record in its specification, and whether data is still that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessella.data import Data
from tessella.foundation.errors import RunError
from tessella.foundation.notes import note
from tessella.kinds.base import kind_of

RECORDED = ("fingerprint", "examples")
"""What a run's specification says of its data besides where it lies and how it is read."""


def source_of(data: Data) -> dict[str, Any]:
    """Where data lies, how it is read, and what tells it from other data: a specification's record of it."""
    counts = {name: len(split) for name, split in data.splits.items()}
    return {"spec": data.spec, **data.options, "fingerprint": data.fingerprint, "examples": counts}


def difference(before: Mapping[str, Any], data: Data) -> str | None:
    """Say in what data differs from its record; None if it is the same, or the record has no fingerprint."""
    if not data.fingerprint or before.get("fingerprint") in (None, "", data.fingerprint):
        return None
    called = kind_of(data.schema).examples
    now = {name: len(split) for name, split in data.splits.items()}
    then: dict[str, int] = before.get("examples") or {}
    names = {"train": "training", "valid": "validation", "test": "test"}
    told = [
        f"{then.get(name, 0):,} {names.get(name, name)} {called} then, {now.get(name, 0):,} now"
        for name in dict.fromkeys((*then, *now))
        if then.get(name, 0) != now.get(name, 0)
    ]
    return "; ".join(told) or f"as many {called} as then, but not the same"


def check_data(run: Path, before: Mapping[str, Any], data: Data, *, changed_data: bool) -> None:
    """Let what is resumed go on with the data that it was started with, wherever it lies; a warning says what is new.

    Raises:
        RunError: if the data is other data, unless `changed_data` says that it may be.
    """
    what = difference(before, data)
    if what is not None and not changed_data:
        raise RunError(
            f"{run} was trained on other data than {data.spec} holds now ({what}): give --data with the place of what "
            "it was trained on, or go on with this data by --changed-data"
        )
    if what is not None:
        note(f"{run} goes on with other data than before ({what})")
    elif before.get("spec") not in (None, data.spec):
        note(f"{run} finds its data in {data.spec} from now on")


def facts_of(data: Data) -> dict[str, str]:
    """What tells data from other data, for processes that must all have the same."""
    counts = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    return {"data": f"{data.fingerprint} ({counts})"}
