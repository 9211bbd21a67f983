"""The field's claims, tested on real data by `tessella claims`, kept as data and as the tables of docs/claims.md.

    python benchmarks/claims.py --data digits
    python benchmarks/claims.py --data FOLDER/mnist.npz --minutes 12
    python benchmarks/claims.py --numbers claims.json
    python benchmarks/claims.py --tables

`--numbers` records what the command printed by `--json`.

The record holds every effect with its error, what was predicted and the verdict.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common

DOCS = common.ROOT / "docs" / "claims.md"
BEGIN, END = "<!-- tables: written by benchmarks/claims.py -->", "<!-- end of the tables -->"
DECIDED = ("held", "failed", "not applicable")
MINUTES = 15


def measured(data: str, minutes: float, page: str | None) -> common.Record:
    """What the command finds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = page or str(Path(folder, "claims.html"))
        command = ["claims", "--data", data, "--minutes", str(minutes), "-o", out, "--json"]
        return json.loads(subprocess.check_output([sys.executable, "-m", "tessella", *command]))


def record(found: common.Record) -> common.Record:
    """Add its rows for the table of all benchmarks."""
    name, undecided = Path(found["data"]).stem, [c["number"] for c in found["claims"] if c["verdict"] not in DECIDED]
    rows = [
        common.row(f"tessella claims on {name}: claims left undecided", 0, len(undecided), better="lower"),
    ]
    if name == "digits":
        claim = f"tessella claims on digits: all claims, on the clock, threads: {found['threads']}"
        rows.append(common.row(claim, MINUTES, found["seconds"] / 60, unit=" min", better="lower"))
    return {"about": "what the field claims, as experiments", "rows": rows, **found}


def tables() -> str:
    """All records as Markdown: verdicts side by side, then what was found of each claim."""
    records = [json.loads(path.read_text()) for path in sorted(common.RESULTS.glob("claims-*.json"))]
    order = {"digits": 0, "mnist.npz": 1}
    records.sort(key=lambda r: (order.get(r["data"], 2), r["data"]))
    if not records:
        return "Nothing is measured yet."
    names = [
        f"{Path(r['data']).stem.replace('_', '-')}, {' x '.join(map(str, r['schema']['shape'][1:]))}" for r in records
    ]
    by_number = [{c["number"]: c for c in r["claims"]} for r in records]
    numbers = sorted({number for of in by_number for number in of})
    lines = [f"| | claim | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for number in numbers:
        of = [kept.get(number) for kept in by_number]
        title = next(c["title"] for c in of if c)
        lines.append(f"| {number} | {_cell(title)} | {' | '.join(_verdict(c) for c in of)} |")
    for words, spent in (("minutes given", _given), ("minutes of processor time", _spent)):
        lines.append(f"| | *{words}* | {' | '.join(spent(r) for r in records)} |")
    for number in numbers:
        first = next(kept[number] for kept in by_number if number in kept)
        lines += ["", f"### {number}. {first['title']}", "", f"*Hypothesis.* {first['hypothesis']}", ""]
        for name, kept in zip(names, by_number, strict=True):
            if number in kept:
                lines.append(f"* **{name}: {kept[number]['verdict']}**: {kept[number]['sentence']}")
    return "\n".join(lines)


def write_tables() -> None:
    """Put them between the marks of docs/claims.md."""
    before, _, rest = DOCS.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", "utf-8")


def _given(of: common.Record) -> str:
    return f"{of['minutes']:g}"


def _spent(of: common.Record) -> str:
    return f"{of['processor_seconds'] / 60:.1f}"


def _verdict(claim: common.Record | None) -> str:
    if claim is None:
        return ""
    return f"**{claim['verdict']}**" if claim["verdict"] in ("failed", "undecided") else claim["verdict"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="as of tessella claims")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--page", help="keep the page too")
    parser.add_argument("--numbers", help="a file of what tessella claims --json printed, instead of running it")
    parser.add_argument("--tables", action="store_true", help="write docs/claims.md anew from the records, and no more")
    o = parser.parse_args()
    if not o.tables:
        found = json.loads(Path(o.numbers).read_text()) if o.numbers else measured(o.data, o.minutes, o.page)
        kept = record(found) | {"environment": common.environment()}
        common.write(f"claims-{Path(found['data']).stem}", kept)
        common.show(kept)
    write_tables()


if __name__ == "__main__":
    main()
