"""Any console, any name: nothing that a terminal would obey is printed or written, and nothing is cut away."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.cli import main
from tessella.commands.tasks import say
from tessella.foundation.blocks import Cell, Page, Table
from tessella.foundation.text import cell, json_text, shown
from tessella.pages.terminal import print_page

CLASSES = (b"\xe7\x8c\xab", b"re\x1b[31md", b"no-utf8\xff", b"[red]", b"=1+1", b"new\nline", b"\xe2\x80\xaeback")
TINY = ("--quiet", "--steps", "2", "--width", "8", "--depth", "1", "--grid-size", "4", "--codebook-size", "8")
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What must not reach a terminal or a file that people open; the end of a line may."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders and files of the worst names, and a run of them."""
    home = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    for kind in CLASSES:
        folder = os.path.join(os.fsencode(home), b"pics", kind)
        os.makedirs(folder)
        for i in range(8):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            with open(os.path.join(folder, (b"\xfe%d.png" if i % 2 else b"-a\x1b]0;%d.png") % i), "wb") as file:
                file.write(buffer.getvalue())
    assert main(["train", "vqvae", "--data", str(home / "pics"), "--out", str(home / "a run"), *TINY]) == 0
    return home


# names


def test_names_are_escaped_once_and_read_as_they_were() -> None:
    for raw, said in {
        "plain \u732b \u00e9 \u3000": "plain \u732b \u00e9 \u3000",
        "\x1b[31m\t\n\r\0": r"\x1b[31m\t\n\r\x00",
        os.fsdecode(b"\xff\xfe"): r"\xff\xfe",
        "\u202e\u2066\u200b": r"\u202e\u2066\u200b",
        "\ud800": r"\ud800",
        "\x9b31m": r"\x9b31m",
    }.items():
        assert shown(raw) == said
        assert shown(said) == said
        shown(raw).encode("utf-8")


def test_cells_are_no_formulas_and_numbers_are_no_nan() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx"):
        assert cell(text).startswith("'")
    assert cell("a=1") == "a=1"
    record = {"a": float("nan"), "b": [float("inf"), (1.5,)], "c": os.fsdecode(b"\xff"), "d": "\x1b", "e": None}
    text = json_text(record)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5]], "c": r"\xff", "d": "\x1b", "e": None}  # fmt: skip  # noqa: E501
    assert not RAW.search(text)


def test_no_command_says_or_writes_a_name_raw(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, pics = str(home / "a run"), str(home / "pics")
    one = next(str(path) for path in sorted((home / "pics").rglob("*.png")) if b"\xff" in os.fsencode(path))
    for command in (
        ["describe", pics],
        ["sample", run],
        ["report", run],
        ["index", run, pics],
        ["search", run, one, "-k", "60", "--index", str(home / "a run" / "index.safetensors")],
        ["search", run, "--duplicates", "--threshold", "100", "-o", "twice.html"],
        ["encode", run, pics],
        ["decode", run, "codes.npz"],
        ["detect", run, pics, "--scores", "bound", "-o", "found"],
        ["edit", run, one, "--region", "0,0,4,4", "--code", "1"],
        ["edit", run, one, "--region", "0,0,4,4", "--paste", one, "-o", "pasted"],
        ["compress", run, pics, "--quiet"],
        ["inspect", "compressed.tes"],
        ["decompress", "compressed.tes"],
        ["reconstruct", run, one],
    ):
        assert main(command) == 0, command
        said = "".join(capfd.readouterr())
        assert not RAW.search(said), command
        if "search" in command:
            assert r"no-utf8\xff" in said
            assert r"new\nline/" in said
    for wrong in (
        ["sample", run, "--label", "\x1b[31m"],
        ["detect", run, "\x1b"],
        ["describe", "\udcff\x1b"],
        ["\x1b[31m"],
    ):
        assert main(wrong) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert not RAW.search(said)
    pages = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.json"), *tmp_path.rglob("*.csv"), *(home / "a run").glob("*.html")]  # fmt: skip  # noqa: E501
    assert len(pages) >= 8
    for page in pages:
        assert not RAW.search(page.read_text("utf-8")), page
    back = sorted(os.fsencode(path.relative_to(tmp_path / "decompressed")) for path in (tmp_path / "decompressed").rglob("*.png"))  # fmt: skip  # noqa: E501
    given = sorted(os.fsencode(path.relative_to(pics)) for path in Path(pics).rglob("*.png"))
    assert back == given
    rows = list(csv.DictReader(io.StringIO((tmp_path / "found" / "scores.csv").read_text("utf-8"))))
    assert len(rows) == 8 * len(CLASSES)
    assert {row["class"] for row in rows} >= {"'=1+1", r"re\x1b[31md", r"no-utf8\xff", "\u732b", r"new\nline"}
    assert all(float(row["bound"]) > 0 for row in rows)
    assert json.loads((tmp_path / "found" / "scores.json").read_text(), parse_constant=pytest.fail)


def test_what_is_next_can_be_pasted(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["index", str(home / "a run"), "0", "-o", str(tmp_path / "it's.safetensors")]) == 0
    said = capsys.readouterr().out
    assert f"tessella search '{home}/a run' QUERY" in said
    assert """it'"'"'s.safetensors""" in said


# consoles


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_tables_lose_nothing_on_any_width(columns: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [
        ("bits per dimension", "3.1415 of 2.7182", "a long explanation of what the number means, in many words"),
        ("x" * 25, Cell("123,456.789 nats", tone="best"), "[red]short[/red]"),
        ("escape\x1b[31m", "", ":smile: y" + "y" * 30),
    ]
    print_page(Page("", [Table(("what", "value", "what it means"), rows, title="title of [b]it[/b] \x1b")]))
    said = capsys.readouterr().out
    assert not RAW.search(said)
    assert "\u2026" not in said
    assert max(map(len, said.splitlines())) <= columns
    if columns >= 40:
        assert "3.1415 of 2.7182" in said
        assert "123,456.789 nats" in said
    together = re.sub(r"[\s\u2500]", "", said)
    for text in (
        "titleof[b]it[/b]",
        "x" * 25 if columns != 60 else "x" * 12,
        "[red]short[/red]",
        ":smile:",
        "3.1415of2.7182",
    ):
        assert text in together


def test_letters_that_a_stream_lacks_are_escaped_in_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("cp1252", "ascii"):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert main(["detect", str(home / "a run"), "0", "1", "--scores", "bound", "-o", str(home / "d")]) == 0
        assert main(["describe", str(home / "pics"), "-o", str(home / "sheet.png")]) == 0
        assert main(["evaluate", str(home / "a run")]) == 0
        assert main(["describe", "\u732b"]) == 2
        said = out.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
        assert "\\u732b (" in said
        assert "|bits per dimension" in said
        assert "\\u732b" in err.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.skipif(os.name == "nt", reason="of POSIX shells")
@pytest.mark.parametrize(
    ("redirect", "status"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 2), (">/dev/full 2>/dev/full", 2)],
)
def test_streams_that_are_closed_or_full_end_in_a_status(redirect: str, status: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m tessella list {redirect}"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") == (redirect == ">/dev/full")


def test_a_reader_that_goes_away_is_no_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                raise BrokenPipeError(32, "Broken pipe")
            return 0

        def fileno(self) -> int:
            return nowhere

    nowhere = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["list"]) == 141
    assert main(["evaluate", str(home / "a run")]) == 141
    os.close(nowhere)
    assert capfd.readouterr().err == ""


def test_help_fits_a_narrow_console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for command in ([], ["compress"], ["detect"]):
        assert main([*command, "--help"]) == 0
        said = capsys.readouterr().out
        assert "\u2026" not in said
        assert "--overwrite" in said or command != ["compress"]
        assert command or max(map(len, said.splitlines())) < 80
        assert command or all(name in said for name in ("compress", "lossless", "decompress"))


def test_mistakes_are_one_line_on_a_narrow_console(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "--no-such-option-anywhere-at-all" in refused("detect", "run", "--no-such-option-anywhere-at-all", "3")
    assert "there is no command" in refused("nothing")


def test_lines_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb", "c\x1b")
    assert capsys.readouterr().out == "a\\nb\nc\\x1b\n"
