"""Reader of text tables as cells of text: finds the encoding, comment lines and the separator."""

from __future__ import annotations

import codecs
import csv as python_csv
import re
from collections import Counter
from dataclasses import dataclass
from typing import final

import pyarrow
from pyarrow import csv

from tessella.data import limits
from tessella.foundation.errors import DataError
from tessella.foundation.text import one_line, shown

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}
ALONE = "\x1f"
"""Separator of a table with one column: a character that occurs in no text."""

MISSING = (
    *("", "NA", "N/A", "#N/A", "n/a", "na", "<NA>", "NaN", "nan", "NAN", "-nan", "NaT", "null", "NULL", "Null", "None"),
    *("?", "-", "--", "#DIV/0!", "#VALUE!", "#REF!", "#NUM!"),
)
"""Texts of missing values in spreadsheets, pandas, R and the UCI repository."""

NUMBER = re.compile(
    r"[+\-\u2212]?(\d+([.,]\d*)?|[.,]\d+|\d{1,3}([.,' \u00a0\u202f]\d{3})+([.,]\d*)?)([eE][+-]?\d+)?"
    r"|[+-]?inf(inity)?|true|false",
    re.IGNORECASE,
)
BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
SAMPLE_BYTES, SAMPLE_LINES, SAMPLE_CELLS = 1 << 20, 200, 500
LARGEST_BLOCK = (1 << 31) - 64  # what pyarrow's parser takes at once
_HINT = re.compile(rb'"?sep=(.)"?\r?\n')
_COMMENT = re.compile(rb"^[ \t]*#[^\n]*(\n|\Z)", re.MULTILINE)
_HOLLOW = re.compile(rb"^[ \t,;|\r]+(\n|\Z)", re.MULTILINE)


@final
@dataclass(frozen=True)
class Cells:
    """Cells of a text table, including its first line.

    Attributes:
        columns: columns of texts, all of one length.
        separator: character between the cells of a line.
        comment: cells of the last comment line above the table, if it has one for each column; else empty.
    """

    columns: list[pyarrow.ChunkedArray]
    separator: str
    comment: tuple[str, ...]


def read_cells(path: str, notes: list[str]) -> Cells:
    """Read the cells of a text table, gzipped or not.

    Raises:
        DataError: if it is empty, not text, too large, or its lines have different numbers of cells.
    """
    try:
        data = limits.content(path)
    except (OSError, EOFError) as error:
        if isinstance(error, PermissionError):
            raise
        raise DataError(f"{path} cannot be read: {one_line(error)}", code="unreadable") from None
    data = _utf8(data, path, notes)
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    hint = _HINT.match(data)
    data, comment = _without_comments(data[hint.end() :] if hint else data, notes)
    data += b"" if data.endswith(b"\n") else b"\n"
    if not data.strip():
        raise DataError(f"{path} is empty: give a table with at least one row", code="empty")
    lines = _sample(data)
    separator = hint[1].decode("latin-1") if hint else _separator(lines)
    if separator not in (",", ALONE):
        notes.append(f"the cells of a line are separated by {SEPARATORS.get(separator, shown(separator))}")
    data = _regular(data, separator, lines)
    columns = _parsed(data, separator, path)
    return Cells(columns, separator, _named_by(comment, separator, len(columns)))


def _utf8(data: bytes, path: str, notes: list[str]) -> bytes:
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            data = data[len(mark) :]
            if encoding == "utf-8":
                return data
            return _recoded(data, encoding, path, notes)
    start = data[:4096]
    if b"\0" in start:
        odd, even = start[1::2].count(0), start[::2].count(0)
        if max(odd, even) < 0.3 * len(start):
            raise DataError(
                f"{path} contains zero bytes, so it is not text: give a text table, or a .parquet or .npy file",
                code="no-text",
            )
        return _recoded(data, "utf-16-le" if odd > even else "utf-16-be", path, notes)
    if data.isascii() or _is_utf8(data):
        return data
    try:
        return _recoded(data, "cp1252", path, notes)
    except DataError:
        return _recoded(data, "latin-1", path, notes)


def _is_utf8(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), 1 << 24):  # by pieces: a text takes up to four bytes a character
            decoder.decode(data[start : start + (1 << 24)], start + (1 << 24) >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _recoded(data: bytes, encoding: str, path: str, notes: list[str]) -> bytes:
    try:
        done = data.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        raise DataError(
            f"{path} is not valid {encoding} text ({one_line(error)}): save it as UTF-8", code="no-text"
        ) from None
    notes.append(f"the text is read as {encoding}, because it is not UTF-8")
    return done


def _without_comments(data: bytes, notes: list[str]) -> tuple[bytes, str]:
    """Separate the lines with cells from the last comment line above them."""
    comment, end = "", 0
    found = list(_COMMENT.finditer(data)) if b"#" in data else []
    left = _COMMENT.sub(b"", data) if found else data
    if found and left.strip():
        for match in found:
            if data[end : match.start()].strip():
                break
            comment, end = match[0].decode("utf-8", "replace").strip().lstrip("#").strip(), match.end()
        data = left
        notes.append(f"{len(found)} comment lines (#) were ignored")
    hollow = sum(1 for match in _HOLLOW.finditer(data) if match[0].strip())
    if hollow:
        data = _HOLLOW.sub(b"", data)
        notes.append(f"{hollow} lines with separators only were ignored")
    return data, comment


def _sample(data: bytes) -> list[str]:
    """Return the first lines, at least three if the table has them."""
    end = len(data)
    if end > SAMPLE_BYTES:
        at = 0
        while at < SAMPLE_BYTES or data.count(b"\n", 0, at) < 3:
            following = data.find(b"\n", at)
            if following < 0:
                break
            at = following + 1
        end = at if data.count(b"\n", 0, at) else end
    lines = [line.rstrip("\r") for line in data[:end].decode("utf-8", "replace").split("\n")]
    return [line for line in lines if line.strip()][:SAMPLE_LINES]


def _separator(lines: list[str]) -> str:
    """Find the separator that gives equally many cells per line and most numbers."""
    best, chosen = (-1.0, False, 0), ALONE
    for separator in (*SEPARATORS, ALONE):
        score = _score(_split(lines, separator), separator)
        if score is not None and score > best:
            best, chosen = score, separator
    return chosen


def _split(lines: list[str], separator: str) -> list[list[str]]:
    if separator == " ":
        lines = [re.sub(r"[ \t]+", " ", line.strip()) for line in lines]
    try:
        return list(python_csv.reader(lines, delimiter=separator, skipinitialspace=True))
    except python_csv.Error:  # a cell of more than 128 kB
        return [line.split(separator) for line in lines]


def _score(rows: list[list[str]], separator: str) -> tuple[float, bool, int] | None:
    """Rate a separator: share of numbers, whether the first line fits, cells per line; None if lines differ."""
    body = rows[1:] or rows
    width, often = Counter(map(len, body)).most_common(1)[0]
    first = len(rows[0]) - (len(rows[0]) == width + 1 and not rows[0][-1].strip())
    if often < 0.5 * len(body) or abs(first - width) > 1 or (width < 2 and separator != ALONE):
        return None
    cells = [cell.strip() for row in body for cell in row[:SAMPLE_CELLS]]
    numbers = sum(cell in MISSING or NUMBER.fullmatch(cell) is not None for cell in cells)
    return numbers / max(1, len(cells)), first == width, width


def _regular(data: bytes, separator: str, lines: list[str]) -> bytes:
    """Normalize lines: one separator between cells, and as many cells in the first line as in the others."""
    mark = separator.encode()
    quoted = b'"' in data
    if separator == " ":
        pattern = rb'"[^"]*"|[ \t]+' if quoted else rb"[ \t]+"
        data = re.sub(pattern, lambda match: match[0] if match[0].startswith(b'"') else b" ", data)
        data = re.sub(rb"^ | (?=\r?$)", b"", data, flags=re.MULTILINE)
    elif quoted:
        data = re.sub(rb"(?<=" + re.escape(mark) + rb') +(?=")', b"", data)
    rows = _split(lines, separator)
    width = Counter(map(len, rows[1:])).most_common(1)[0][0] if len(rows) > 1 else len(rows[0])
    data = data.lstrip(b"\r\n")
    first, rest = data.partition(b"\n")[::2]
    if len(rows[0]) == width - 1:  # the other lines end with a separator, or R wrote row names without a header
        ended = all(not row[-1].strip() for row in rows[1:] if len(row) == width)
        return (first.rstrip(b"\r") + mark if ended else b'""' + mark + first) + b"\n" + rest
    if len(rows[0]) == width + 1 and not rows[0][-1].strip():
        return first.rstrip(b"\r \t").removesuffix(mark) + b"\n" + rest
    return data


def _parsed(data: bytes, separator: str, path: str) -> list[pyarrow.ChunkedArray]:
    bad: list[csv.InvalidRow] = []

    def ragged(row: csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    first = data[: data.find(b"\n") + 1 or len(data)].decode("utf-8", "replace")
    width = len(_split([first.rstrip("\r\n")], separator)[0])
    read = csv.ReadOptions(
        autogenerate_column_names=True, block_size=min(len(data) + 1, LARGEST_BLOCK), use_threads=False
    )
    layout = csv.ParseOptions(delimiter=separator, newlines_in_values=b'"' in data, invalid_row_handler=ragged)
    texts = csv.ConvertOptions(
        column_types={f"f{i}": pyarrow.string() for i in range(width)}, strings_can_be_null=False, check_utf8=False
    )
    try:
        return csv.read_csv(pyarrow.BufferReader(data), read, layout, texts).columns
    except (pyarrow.ArrowException, OSError) as error:
        if not bad:
            raise DataError(f"{path} cannot be read: {one_line(error)}", code="unreadable") from None
        row = bad[0]
        line = f"line {row.number}" if row.number else f"the line {shown(row.text[:40])!r}"
        raise DataError(
            f"{path}: {line} has {row.actual_columns} cells, the first line has {row.expected_columns}: "
            "give each row equally many cells, with the same separator",
            code="ragged",
        ) from None


def _named_by(comment: str, separator: str, width: int) -> tuple[str, ...]:
    """Read column names from a comment line above the table, as numpy.savetxt writes them."""
    names = [name.strip() for name in _split([comment], separator)[0]] if comment else []
    if len(names) != width or any(not name or NUMBER.fullmatch(name) for name in names):
        return ()
    return tuple(names)
