"""How long a newcomer waits: `tessella demo`, and the tests if asked.

python benchmarks/demo.py [--with-tests]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from startup import script

DEMO_BAR, TESTS_BAR = 240.0, 480.0


def demo() -> common.Record:
    """`tessella demo` with its defaults, in an empty folder: training, evaluation and report."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run([*script(), "demo"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        run = Path(folder) / "demo-run"
        report, evaluation = run / "report.html", run / "evaluation-test.json"
        whole = done.returncode == 0 and report.is_file()
        return {
            "about": "wall time of `tessella demo` after installation",
            "rows": [
                common.row("`tessella demo`, seconds", DEMO_BAR, seconds if whole else None, unit=" s", better="lower")
            ],
            "status": done.returncode,
            "seconds": seconds,
            "report_bytes": report.stat().st_size if report.is_file() else None,
            "evaluation": json.loads(evaluation.read_text()) if evaluation.is_file() else None,
            "environment": common.environment(),
        }


def tests() -> common.Record:
    """What `make test` does once everything is installed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest"], cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.perf_counter() - started
    passed = done.returncode == 0
    return {
        "about": "wall time of all tests after installation",
        "rows": [common.row("`make test`, seconds", TESTS_BAR, seconds if passed else None, unit=" s", better="lower")],
        "status": done.returncode,
        "seconds": seconds,
        "last_line": next((line for line in reversed(done.stdout.splitlines()) if line.strip()), ""),
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with-tests", action="store_true", help="time the tests too")
    chosen = parser.parse_args()
    records = {"demo": demo()}
    if chosen.with_tests:
        records["tests"] = tests()
    for name, record in records.items():
        common.write(name, record)
        common.show(record)


if __name__ == "__main__":
    main()
