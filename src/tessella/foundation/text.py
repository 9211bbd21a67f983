"""Escaping of untrusted text for terminals, CSV and JSON. Imports little, so that errors are printed quickly."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from tessella.foundation.errors import in_python


def shown(text: str) -> str:
    r"""Escape untrusted text for one line: `\x1b`, `\n`, `\u202e`, and `\xff` for a byte that is not UTF-8.

    Control characters, marks of direction, invisible characters and surrogates are escaped.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(c: str) -> str:
    if c.isprintable() or unicodedata.category(c) == "Zs":
        return c
    if "\udc80" <= c <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode("ascii")


def abridged(items: Sequence[str], most: int = 5) -> str:
    """List the first of many names, and count the rest: `a, b, c ... and 12 more`."""
    more = len(items) - most
    return ", ".join(map(shown, items[:most])) + (f" ... and {more} more" if more > 0 else "")


def one_line(error: BaseException, most: int = 160) -> str:
    """Shorten the message of another library's exception to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def cell(text: str) -> str:
    """Escape untrusted text for a CSV file, with a quote before texts that look like formulas."""
    return shown(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def json_text(record: Any, indent: int | None = None) -> str:
    """Convert a record to standard JSON.

    Numbers that are not finite become null, bytes that are not UTF-8 are escaped, marked options and tasks become
    Python names.
    """
    import json

    return json.dumps(_jsonable(record), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_jsonable(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        value = in_python(value)
        return shown(value) if any("\ud800" <= c <= "\udfff" for c in value) else value
    return value


def duration_text(seconds: float) -> str:
    """Format seconds: `12 minutes`."""
    if seconds < 120:
        return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
