"""Types of table columns: numbers in several notations, dates and texts; and detection of the header line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import pyarrow
import pyarrow.compute
from pyarrow import types

from tessella.data.arrays import EXACT_IN_DOUBLE
from tessella.data.tables.delimited import MISSING, NUMBER, Cells
from tessella.foundation.errors import DataError
from tessella.foundation.text import abridged, one_line, shown

pc: Any = pyarrow.compute
"""Column functions, which pyarrow creates on import, so that type checkers do not know them."""

CHANCE = 0.05
"""A first line 0, 1, 2, ... is read as data if its probability among the other rows is at least this."""

_UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)?", re.IGNORECASE)
_DATE = (
    r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)$"
)


@final
@dataclass(frozen=True, eq=False)
class Column:
    """Column of a table.

    Attributes:
        name: name; empty if it has none.
        kind: type of its cells.
        values: values `[N]`: bool, int64, uint64, float64 or object (over 64 bits) for numbers; else texts or None.
        missing: row numbers `[M]` of the cells without a value.
    """

    name: str
    kind: Literal["numbers", "dates", "text", "other"]
    values: np.ndarray
    missing: np.ndarray

    @property
    def whole(self) -> bool:
        """Return whether all values are whole numbers, stored or written as such."""
        return self.kind == "numbers" and self.values.dtype.kind in "biu"


def is_header(first: list[str], below: list[Column], notes: list[str]) -> bool:
    """Return whether the first line names the columns, by the types of the cells below."""
    texts = [cell not in MISSING and not NUMBER.fullmatch(cell) for cell in first]
    if all(texts) or any(text and column.kind == "numbers" for text, column in zip(texts, below, strict=True)):
        return True
    unnamed = is_unnamed(first[0]) and len(first) > 1
    if unnamed and all(texts[1:]):
        return True
    if any(text and name in column.values for text, name, column in zip(texts, first, below, strict=True)):
        return False
    places = [i for i in range(unnamed, len(first)) if not texts[i]]
    counted = [first[i] for i in places]
    patterns = ([str(n + k) for n in numbers] for k in (0, 1) for numbers in (range(len(places)), places))
    if counted not in patterns:
        return False
    if not unnamed and not any(texts) and not _counts_columns(np.array(counted, np.int64), below):
        return False
    notes.append(f"the first line numbers the columns ({abridged(counted, 3)}): it is read as their names")
    return True


def is_unnamed(name: str) -> bool:
    """Return whether a name is empty, or pandas' name of a column without one."""
    return _UNNAMED.fullmatch(name) is not None


def is_pandas_index(name: str) -> bool:
    """Return whether a name is pandas' name of a stored index without one."""
    return re.fullmatch(r"__index_level_\d+__", name) is not None


def _counts_columns(counted: np.ndarray, below: list[Column]) -> bool:
    """Return whether a first line 0, 1, 2, ... (or 1, 2, ...) is unlikely to be a row of data."""
    rows = len(below[0].values)
    if any(column.kind != "numbers" for column in below):
        return True
    if rows < 2:
        return False
    if any(not column.whole and not np.any(column.values == np.round(column.values)) for column in below):
        return True
    if len(below) == 1:
        return False
    second = np.array([column.values[0] for column in below], np.float64)
    if len(set((second - counted).tolist())) == 1:  # the next row continues counting, as in an arange
        return False
    shares = [(np.count_nonzero(c.values == n) + 1) / (rows + 2) for c, n in zip(below, counted.tolist(), strict=True)]
    return float(np.prod(shares)) < CHANCE


def text_column(name: str, cells: pyarrow.ChunkedArray, style: Style) -> Column:
    """Convert cells of text to numbers if they all are, else to dates or texts."""
    values = _numbers(cells) if style == "plain" else None
    if values is None:
        cells = pc.utf8_trim_whitespace(cells)
        cells = pc.if_else(pc.is_in(cells, pyarrow.array(MISSING)), None, cells)
        values = _numbers(_spelled(cells, style))
    if values is not None:
        missing = np.flatnonzero(np.isnan(values)) if values.dtype.kind == "f" else np.array([], np.int64)
        return Column(name, "numbers", values, missing)
    held = cells.drop_null()
    dates = pc.all(pc.match_substring_regex(held, _DATE)).as_py()
    texts = cells.to_numpy(zero_copy_only=False)
    return Column(name, "dates" if dates else "text", texts, np.flatnonzero(cells.is_null().to_numpy()))


def _numbers(cells: pyarrow.ChunkedArray) -> np.ndarray | None:
    """Convert texts to int64, uint64, float64 (NaN: missing), bool or object (over 64 bits); None if impossible."""

    def cast(kind: pyarrow.DataType) -> np.ndarray | None:
        try:
            return cells.cast(kind).to_numpy(zero_copy_only=False)
        except pyarrow.ArrowInvalid:
            return None

    whole = cast(pyarrow.int64())
    if whole is not None:
        return whole if whole.dtype.kind == "i" else _exactly(cells, whole.astype(np.float64))
    real = cast(pyarrow.float64())
    if real is not None:
        return _exactly(cells, real.astype(np.float64))
    spelled = pc.utf8_lower(cells)
    if not pc.all(pc.is_in(spelled.drop_null(), pyarrow.array(["true", "false"]))).as_py():
        return None
    return pc.equal(spelled, "true").cast(pyarrow.float64() if cells.null_count else pyarrow.bool_()).to_numpy()


def _exactly(cells: pyarrow.ChunkedArray, real: np.ndarray) -> np.ndarray:
    """Replace `real` by exact whole numbers if float64 would change them."""
    large = np.abs(real) >= EXACT_IN_DOUBLE
    if not large.any() or not pc.all(pc.match_substring_regex(cells.drop_null(), r"^-?\d+$")).as_py():
        return real
    if cells.null_count or (real < 0).any():
        return np.array([None if text is None else int(text) for text in cells.to_pylist()], dtype=object)
    try:
        return cells.cast(pyarrow.uint64()).to_numpy()
    except pyarrow.ArrowInvalid:
        return np.array([int(text) for text in cells.to_pylist()], dtype=object)


# how numbers are written

Style = Literal["plain", "points", "commas"]
"""Notation of a table's numbers: as programs write them; with thousands separators; with decimal commas."""

_BLANKS = " '\u2019\u00a0\u202f"
_FORMS = {
    "comma": r"^[+\-]?(\d*,\d+|\d+,)([eE][+\-]?\d+)?$",
    "comma or group": r"^[+\-]?[1-9]\d{0,2},\d{3}$",
    "comma after groups": rf"^[+\-]?[1-9]\d{{0,2}}([.{_BLANKS}]\d{{3}})+,\d+$",
    "groups by commas": r"^[+\-]?[1-9]\d{0,2}((,\d{3}){2,}(\.\d*)?|,\d{3}\.\d*)$",
    "groups by points": r"^[+\-]?[1-9]\d{0,2}(\.\d{3}){2,}$",
    "groups by blanks": rf"^[+\-]?[1-9]\d{{0,2}}([{_BLANKS}]\d{{3}})+$",
    "point after groups": rf"^[+\-]?[1-9]\d{{0,2}}([{_BLANKS}]\d{{3}})+\.\d*$",
    "point or group": r"^[+\-]?[1-9]\d{0,2}\.\d{3}$",
    "point": r"^[+\-]?(\d*\.\d+|\d+\.)([eE][+\-]?\d+)?$",
    "plain": r"^[+\-]?\d+([eE][+\-]?\d+)?$",
}
_BY_STYLE = {
    "points": ("comma or group", "groups by commas", "groups by blanks", "point after groups"),
    "commas": tuple(form for form in _FORMS if form not in ("groups by commas", "point after groups", "point")),
}


def _spelled(cells: pyarrow.ChunkedArray, style: Style) -> pyarrow.ChunkedArray:
    """Rewrite numbers in plain notation."""
    cells = pc.replace_substring_regex(pc.replace_substring(cells, "\u2212", "-"), r"^\+", "")
    if style == "plain":
        return cells
    known = pc.match_substring_regex(cells, "|".join(_FORMS[form] for form in _BY_STYLE[style]))
    cut = pc.replace_substring_regex(cells, f"[{_BLANKS}{',' if style == 'points' else '.'}]", "")
    return pc.if_else(known, pc.replace_substring(cut, ",", "."), cells)


def style_of(columns: list[Column], cells: Cells, where: str, notes: list[str]) -> Style:
    """Find the notation of a table's numbers.

    Raises:
        DataError: if a comma can be a decimal comma or a thousands separator.
    """
    forms: dict[str, str] = {}
    for column, raw in zip(columns, cells.columns, strict=True):
        if column.kind == "text":
            forms = _forms(raw.slice(1), column.name) | forms
    decimal = forms.get("comma") or forms.get("comma after groups") or forms.get("groups by points")
    grouped, unclear = forms.get("groups by commas"), forms.get("comma or group")
    if unclear and not decimal and not grouped:
        if cells.separator not in ",;":
            raise DataError(
                f"{where}: it is unclear whether the comma of {unclear} is a decimal comma or a "
                "thousands separator: write decimal points",
                code="unclear-comma",
            )
        decimal, grouped = (unclear, None) if cells.separator == ";" else (None, unclear)
    if decimal:
        for column, raw in zip(columns, cells.columns, strict=True):
            if column.kind == "numbers" and not column.whole:
                forms = _forms(raw.slice(1), column.name) | forms
        other = grouped or forms.get("point") or forms.get("point after groups")
        if other:
            raise DataError(
                f"{where} has decimal commas ({decimal}) and decimal points ({other}): use only one of them",
                code="mixed-commas",
            )
        notes.append(f"commas are read as decimal points: {decimal}")
        if "point or group" in forms:
            notes.append(f"points are read as thousands separators: {forms['point or group']}")
        return "commas"
    grouped = grouped or forms.get("groups by blanks") or forms.get("point after groups")
    if grouped:
        notes.append(f"thousands separators are removed: {grouped}")
    return "points" if grouped else "plain"


def _forms(cells: pyarrow.ChunkedArray, name: str) -> dict[str, str]:
    """Find the number formats in a column, with examples. The result is empty if a cell is not a number."""
    cells = _spelled(pc.utf8_trim_whitespace(cells), "plain")
    cells = cells.filter(pc.invert(pc.is_in(cells, pyarrow.array(MISSING))))
    found, left = {}, cells
    for form in ("comma or group", "point or group", *_FORMS):  # ambiguous formats before the others
        matched = pc.match_substring_regex(left, _FORMS[form])
        if pc.any(matched).as_py():
            found[form] = f"{left.filter(matched)[0].as_py()} in column {shown(name)}"
            left = left.filter(pc.invert(matched))
    return {} if len(left) else found


# typed tables


def arrow_columns(read: pyarrow.Table, where: str) -> list[Column]:
    try:
        return [_arrow_column(name, column) for name, column in zip(read.column_names, read.columns, strict=True)]
    except pyarrow.ArrowException as error:
        raise DataError(f"{where} cannot be read: {one_line(error)}", code="unreadable") from None


def _arrow_column(name: str, cells: pyarrow.ChunkedArray) -> Column:
    """Convert a typed column; texts that are numbers become numbers."""
    if types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    kind = cells.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return text_column(name, cells.cast(pyarrow.string()), "plain")
    missing = np.flatnonzero(cells.is_null(nan_is_null=types.is_floating(kind)).to_numpy())
    if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        values = cells.to_numpy(zero_copy_only=False)
        return Column(name, "numbers", values if values.dtype.kind in "biu" else values.astype(np.float64), missing)
    if types.is_decimal(kind):
        if kind.scale <= 0 and not len(missing):
            whole = [int(value) for value in cells.to_pylist()]
            small = all(-(1 << 63) <= value < 1 << 63 for value in whole)
            return Column(name, "numbers", np.array(whole, dtype=np.int64 if small else object), missing)
        return Column(name, "numbers", cells.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), missing)
    dates = types.is_temporal(kind)
    shown_cells = np.array([None if value is None else str(value) for value in cells[:1000].to_pylist()], dtype=object)
    texts = np.full(len(cells), None, dtype=object)
    texts[: len(shown_cells)] = shown_cells
    return Column(name, "dates" if dates else "other", texts, missing)
