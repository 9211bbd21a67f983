"""Tables as they come from spreadsheets, pandas, R and numpy: read as they are meant, noted, or refused by name."""

from __future__ import annotations

import codecs
import datetime
import decimal
import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from expect import raises
from tessella.cli import main
from tessella.data import Data, open_data
from tessella.foundation.errors import DataError

ROWS = np.round(np.random.default_rng(0).normal(0, 3, (40, 3)), 3)
PLAIN = "a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS.tolist())


def opened(path: Path, content: str | bytes, **options) -> Data:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_data(str(path), **options)


def examples(data: Data) -> np.ndarray:
    split = data.all_examples
    assert split is not None
    return split.batch(np.arange(len(split))).x.numpy()


def refused(path: Path, content: str | bytes, **options) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, content, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def lines(separator: str, *, comma: bool = False, header: str = "a b c", start: str = "", row: str = "") -> str:
    """The table as text; `row` is a format of the row's number, the cell that a line begins with."""
    text = separator.join(header.split()) + "\n" if header else ""
    for i, values in enumerate(ROWS):
        cells = [f"{v:.3f}".replace(".", "," if comma else ".") for v in values]
        text += start + separator.join([row.format(i, 7 * i % 40)] * bool(row) + cells) + "\n"
    return text


WRITTEN = {
    "commas": lines(","),
    "semicolons": lines(";"),
    "decimal commas": lines(";", comma=True),
    "tabs and decimal commas": lines("\t", comma=True),
    "tabs": lines("\t"),
    "bars": lines("|"),
    "blanks": lines("   ", start="  "),
    "savetxt's header": "# " + lines(","),
    "a comment before and after": "# from the lab\n" + lines(",") + "# end\n",
    "quoted decimal commas": lines('","', comma=True, start='"').replace("\n", '"\n').replace("a", '"a', 1),
    "Windows' line ends": lines(",").replace("\n", "\r\n"),
    "old line ends": lines(",").replace("\n", "\r"),
    "Excel's hint": "sep=;\r\n" + lines(";", comma=True),
    "blank and hollow lines": lines(",").replace("\n", "\n\n", 3) + ",,\n",
    "separators at the end": lines(",").replace("\n", ",\n"),
    "separators at the end below": lines(",").replace("\n", ",\n").replace("c,\n", "c\n", 1),
    "quotes": lines('","', start='"').replace("\n", '"\n').replace("a", '"a', 1),
    "a byte-order mark": "\ufeff" + lines(","),
    "UTF-16": lines(";").encode("utf-16"),
    "UTF-16 without a mark": lines(";").encode("utf-16-le"),
    "pandas' row numbers": "," + lines(",", row="{0}"),
    "shuffled row numbers": "," + lines(",", row="{1}"),
    "row numbers saved twice": ",Unnamed: 0," + lines(",", row="{0},{1}"),
    "R's row names": lines(" ", row='"row {0}"'),
    "an index of dates": "," + lines(",", row="2020-01-{0:02d}"),
    "a column index": "index," + lines(",", row="{0}"),
}
SILENT = ("commas", "Windows' line ends", "old line ends", "quotes", "a byte-order mark", "separators at the end")


@pytest.mark.parametrize("how", WRITTEN)
def test_the_same_numbers_are_read_however_they_are_written(tmp_path, how) -> None:
    data = opened(tmp_path / "t.csv", WRITTEN[how])
    np.testing.assert_array_equal(examples(data), ROWS.astype(np.float32))
    assert data.schema.columns == ("a", "b", "c")
    assert data.notes or how in SILENT


@pytest.mark.parametrize("ending", ["csv.gz", "tsv", "txt", "dat.gz"])
def test_endings_of_tables(tmp_path, ending) -> None:
    text = PLAIN.encode()
    data = opened(tmp_path / f"t.{ending}", gzip.compress(text) if ending.endswith("gz") else text)
    np.testing.assert_array_equal(examples(data), ROWS.astype(np.float32))


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        ("1.234,5;0", 1234.5),
        ("1 234,5;0", 1234.5),
        ("1\u00a0234,5;0", 1234.5),
        ("1'234.5;0", 1234.5),
        ("1,234.5;0", 1234.5),
        ('"1,234,567";0', 1234567),
        ("\u22121,5;0", -1.5),
        ("+1.5;0", 1.5),
        ("1,500;0", 1.5),
        ("1.234;0,5", 1234),
    ],
)
def test_marks_of_thousands_and_signs(tmp_path, cells, value) -> None:
    data = opened(tmp_path / "t.csv", f"a;b\n{cells}\n{cells}\n")
    assert examples(data)[0, 0] == value
    assert any("separated by semicolons" in note for note in data.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\n1,234\t2\n2,345\t3\n", "1,234 in column a is a decimal comma or a thousands separator"),
        ("a;b\n1,5;2.5\n2,5;1.25\n", "decimal commas (1,5 in column a) and decimal points (2.5 in column b)"),
    ],
)
def test_a_comma_of_two_meanings_is_refused(tmp_path, text, said) -> None:
    assert said in refused(tmp_path / "t.csv", text)


def whole(low: int, high: int, seed: int, columns: int = 3) -> str:
    rows = np.random.default_rng(seed).integers(low, high, (40, columns))
    return "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())


@pytest.mark.parametrize(
    ("text", "count", "columns"),
    [
        ("0,1,2\n" + PLAIN[6:], 40, 3),
        ("1,2,3\n" + PLAIN[6:], 40, 3),
        (",0,1,2\n" + "".join(f"{i},{i}.5,1,2\n" for i in range(40)), 40, 3),
        ("0,1,2\n" + whole(0, 10, 0), 40, 3),
        ("0\n" + "".join(f"{v:.3f}\n" for v in ROWS[:, 0]), 40, 1),
        ("0,1,label\n" + "".join(f"{i}.5,1,{'uv'[i % 2]}\n" for i in range(40)), 40, 2),
        (PLAIN[6:], 40, 3),
        (whole(0, 10, 1), 40, 3),
        ("0,1\n" + whole(0, 2, 1, 2), 41, 2),
        ("".join(f"{3 * i},{3 * i + 1},{3 * i + 2}\n" for i in range(10)), 10, 3),
        ("1,2\n3,4\n5,6\n", 3, 2),
        ("0\n1\n3\n2\n", 4, 1),
    ],
)
def test_a_first_line_is_a_header_or_an_example_by_its_type(tmp_path, text, count, columns) -> None:
    data = opened(tmp_path / "t.csv", text)
    assert examples(data).shape == (count, columns)
    assert any("first line" in note for note in data.notes) or text.startswith(",")


def test_a_headerless_table_with_text_is_refused_by_its_columns(tmp_path) -> None:
    said = refused(tmp_path / "t.csv", "M,0.5,?\nF,0.7,1\nM,0.9,2\nF,.1,3\n")
    assert "values that are not numbers in columns 1 (M, F)" in said
    assert "as the labels with label" in said
    assert "empty cells in columns 3 (1, the first in row 1)" in said
    labelled = opened(tmp_path / "u.csv", "M,0.5\nF,0.7\nM,0.9\n", label="column 1")
    assert labelled.schema.classes == ("F", "M")


# the class


@pytest.mark.parametrize(
    ("name", "values", "label", "classes"),
    [
        ("label", [i % 4 for i in range(40)], None, 4),
        ("Class", ["uvw"[i % 3] for i in range(40)], None, 3),
        ("target", [float(i % 2) for i in range(40)], None, 2),
        ("target", list(range(40)), None, 0),
        ("target", [i + 0.5 for i in range(40)], None, 0),
        ("y", [i % 2 for i in range(40)], None, 0),
        ("y", [i % 2 for i in range(40)], "y", 2),
        ("species", ["uv"[i % 2] for i in range(40)], "species", 2),
        ("target", list(range(40)), "target", 40),
    ],
)
def test_the_class_is_a_column_that_says_so(tmp_path, name, values, label, classes) -> None:
    text = f"a,{name},b\n" + "".join(f"{i}.25,{v},{-i}.5\n" for i, v in enumerate(values))
    data = opened(tmp_path / "t.csv", text, label=label)
    assert len(data.schema.classes) == classes
    assert data.schema.columns == (("a", "b") if classes else ("a", name, "b"))
    assert any(name in note for note in data.notes) or name == "y" or label
    assert open_data(data.spec, **data.options).schema == data.schema


@pytest.mark.parametrize(("label", "said"), [("z", "its columns are a, b, c"), ("a", "fractions")])
def test_a_label_that_is_none_is_refused(tmp_path, label, said) -> None:
    assert said in refused(tmp_path / "t.csv", PLAIN, label=label)


@pytest.mark.parametrize("spec", ["digits", "a.npy"])
def test_what_has_no_columns_takes_no_label(tmp_path, monkeypatch, spec) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", ROWS)
    with raises("no-such-label"):
        open_data(spec, label="y")


# what may not be changed


def two(values, other: str = ".5") -> str:
    return "t,b\n" + "".join(f"{v},{i % 7}{other}\n" for i, v in enumerate(values))


@pytest.mark.parametrize("other", [".5", ""])
@pytest.mark.parametrize("base", [1_700_000_000, 2**31, -(2**40), 2**53 - 99])
def test_whole_numbers_far_from_zero_are_kept_exactly_from_an_offset(tmp_path, base, other) -> None:
    data = opened(tmp_path / "t.csv", two(range(base, base + 40), other))
    offset = data.schema.offset
    assert [int(v) + offset[0] for v in examples(data)[:, 0]] == list(range(base, base + 40))
    assert any("subtracted" in note and "from t" in note for note in data.notes)
    again = open_data(data.spec, like=data.schema)
    assert again.schema == data.schema
    later = opened(tmp_path / "later.csv", two(range(base + 50, base + 53), other), like=data.schema)
    assert [int(v) + offset[0] for v in examples(later)[:, 0]] == list(range(base + 50, base + 53))


def test_whole_numbers_of_64_bits_are_kept_or_refused(tmp_path) -> None:
    path = tmp_path / "t.csv"
    near = opened(path, two(range(2**63 + 5, 2**63 + 45), ""))
    assert [int(v) + near.schema.offset[0] for v in examples(near)[:, 0]] == list(range(2**63 + 5, 2**63 + 45))
    constant = opened(path, two([2**63 + 5] * 40))
    assert examples(constant)[0, 0] == np.float32(2**63)
    assert any("rounded" in note and "t" in note for note in constant.notes)
    for values in ([3**k for k in range(40)], [10**25 + i for i in range(40)], range(2**60, 2**60 + 40)):
        assert "whole numbers too large" in refused(path, two(values))
    rounded = opened(path, two([10**12 - 7 * 10**10 * i - i for i in range(10)]))
    assert any("rounded" in note for note in rounded.notes)
    np.testing.assert_allclose(examples(rounded)[:, 0], [10**12 - 7 * 10**10 * i for i in range(10)], rtol=1e-6)


def test_fractions_far_from_zero_are_told_apart(tmp_path) -> None:
    data = opened(tmp_path / "t.csv", two([1_700_000_000.25 + i for i in range(40)]))
    assert examples(data)[:, 0].tolist() == [i + 0.25 for i in range(40)]
    assert data.schema.offset == (1_700_000_000, 0)
    usual = opened(tmp_path / "t.csv", two([1013.25 + 0.01 * i for i in range(40)]))
    assert usual.schema.offset == ()


@pytest.mark.parametrize("cell", ["2020-01-31", "2020-01-31 10:00:00", "31.12.2020", "1/31/2020", "12:30"])
def test_dates_are_refused_by_their_column(tmp_path, cell) -> None:
    assert f"dates or times in columns t ({cell})" in refused(tmp_path / "t.csv", two([cell] * 4))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1.5", "NA", "?", ""], "empty cells in columns t (3, the first in row 2)"),
        (["1.5", "2", "inf", "-inf"], "infinite values in columns t (2, the first in row 3)"),
        (["1.5", "2", "1e300", "4"], "too large for 32 bits in columns t (1e+300 in row 3)"),
        (["1.5", "low", "high", "4"], "values that are not numbers in columns t (1.5, low, high, ...)"),
    ],
)
def test_what_is_no_number_is_named_by_file_column_and_row(tmp_path, cells, said) -> None:
    assert said in refused(tmp_path / "t.csv", two(cells))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, the first line has 2"),
        (b"\x00\x01\x02\x03" * 99, "not text"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8a", "not valid utf-16-le text"),
        ("\n\n", "is empty"),
        ("a,b\n", "no rows"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, said) -> None:
    assert said in refused(tmp_path / "t.csv", content)


def test_other_encodings_and_double_names_are_noted(tmp_path) -> None:
    data = opened(tmp_path / "t.csv", "größe,größe\n1.5,2\n2.5,3\n".encode("cp1252"))
    assert data.schema.columns == ("größe", "größe.1")
    assert any("cp1252" in note for note in data.notes)
    assert any("größe.1" in note for note in data.notes)


def test_very_wide_tables_and_late_fractions_are_read(tmp_path) -> None:
    wide = ",".join(f"ENSG{i:011d}" for i in range(12_000)) + "\n" + (",".join(["0.25"] * 12_000) + "\n") * 9
    wide = wide.replace("ENSG", "ENSG" + "0" * 100)  # a header of more than a megabyte
    assert opened(tmp_path / "wide.csv", wide).schema.shape == (12_000,)
    long = opened(tmp_path / "long.csv", "a,b\n" + "1,2\n" * 300_000 + "1.5,2\n")
    assert examples(long)[-1].tolist() == [1.5, 2]


# parquet


def test_parquet_of_every_type(tmp_path) -> None:
    path = tmp_path / "t.parquet"

    def read(table: pa.Table) -> Data:
        parquet.write_table(table, path)
        return open_data(str(path))

    money = pa.array([decimal.Decimal("1.25"), decimal.Decimal("2.5")])
    columns = {"a": money, "b": [True, False], "c": ["1", "2"], "label": pa.array(["u", "v"]).dictionary_encode()}
    data = read(pa.table(columns))
    assert examples(data).tolist() == [[1.25, 1, 1], [2.5, 0, 2]]
    assert data.schema.classes == ("u", "v")
    index = read(pa.table({"a": [1.5, 2.5], "__index_level_0__": [7, 3]}))
    assert index.schema.columns == ("a",)
    assert any("__index_level_0__" in note for note in index.notes)
    troubles = {
        "dates or times in columns z": pa.array([datetime.date(2020, 1, 1)] * 2),
        "values that are not numbers in columns z": [[1.0], [2.0]],
        "empty cells in columns z (1, the first in row 2)": [1.0, float("nan")],
        "empty cells in columns z (1, the first in row 1)": [None, 1],
    }
    for said, cells in troubles.items():
        parquet.write_table(pa.table({"a": [1, 2], "z": cells}), path)
        with pytest.raises(DataError, match=re.escape(said)):
            open_data(str(path))


# later uses


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model of a table whose columns lie far apart."""
    folder = tmp_path_factory.mktemp("table")
    rows = ROWS * [1, 10, 100] + [0, 50, 1_700_000_000]
    text = "".join(f"{a:.3f},{b:.3f},{c:.0f},{'uv'[i % 2]}\n" for i, (a, b, c) in enumerate(rows))
    (folder / "fit.csv").write_text("a,b,t,kind\n" + text)
    train = ["train", "vae", "--data", str(folder / "fit.csv"), "--label", "kind", "--out", str(folder / "run")]
    assert main([*train, "--steps", "3", "--quiet"]) == 0
    return folder / "run"


def bits(run: Path, data: Path | None, capsys) -> tuple[int, str, str]:
    status = main(["evaluate", str(run), *([] if data is None else ["--data", str(data)])])
    out, err = capsys.readouterr()
    return status, next((line for line in out.splitlines() if "bits per dimension" in line), ""), err


@pytest.mark.parametrize(
    ("order", "extra", "header", "said"),
    [
        ("tba", {}, True, "sorted in the order"),
        ("abt", {"kind": "u"}, True, ""),
        ("abt", {"": "7"}, True, "row n"),
        ("abt", {}, False, "the columns have no names"),
        ("ab", {}, True, "lacks t"),
        ("abtz", {}, True, "has the unknown z"),
        ("ab", {}, False, "2 columns without names"),
    ],
)
def test_columns_are_matched_by_name_at_every_later_use(run, tmp_path, capsys, order, extra, header, said) -> None:
    text = (run.parent / "fit.csv").read_text().splitlines()
    columns = dict(zip("abt", zip(*(line.split(",")[:3] for line in text[1:]), strict=True), strict=True))
    columns["z"] = columns["a"]
    names = [*extra, *order] if "" in extra else [*order, *extra]
    columns |= {name: tuple(value if name else str(i) for i in range(40)) for name, value in extra.items()}
    rows = [",".join(columns[name][i] for name in names) for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join([",".join(names)] * header + rows) + "\n")
    _, own, _ = bits(run, None, capsys)
    status, line, err = bits(run, tmp_path / "t.csv", capsys)
    if "lacks" in said or "unknown" in said or "without names" in said:
        assert status == 2
        assert "t.csv" in err
    else:
        assert status == 0
        assert line == own
    assert said in err


def test_a_few_whole_rows_are_read_as_the_model_was_trained(run, tmp_path) -> None:
    (tmp_path / "few.csv").write_text("t,b,a\n1700000003,1,0\n1700000004,2,1\n")
    out = tmp_path / "out"
    assert main(["detect", str(run), str(tmp_path / "few.csv"), "-o", str(out)]) == 0
    assert (out / "scores.csv").is_file()
