"""What a newcomer waits for and sees: `tessella demo`, and how long the tests take if asked.

python benchmarks/demo.py [--with-tests] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from startup import script

DEMO_BAR, SAVING_BAR, TESTS_BAR = 210.0, 25.0, 480.0


def demo(keep: str | None = None) -> common.Record:
    """`tessella demo` with its defaults, in an empty folder: training, evaluation and pages.

    Args:
        keep: a new folder that the run is copied to, to look at its pages.
    """
    with tempfile.TemporaryDirectory() as folder:
        started, before = time.perf_counter(), _cpu_seconds()
        done = subprocess.run(
            [*script(), "demo"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - before
        run = Path(folder) / "demo-run"
        page, written = run / "demo.html", run / "results/evaluation-test.json"
        whole = done.returncode == 0 and page.is_file() and (run / "report.html").is_file()
        evaluation = json.loads(written.read_text()) if written.is_file() else None
        if keep is not None:
            shutil.copytree(run, keep)
        return {
            "about": "`tessella demo` after installation: wall time, and what the learned prior saves on test",
            "rows": [
                common.row("`tessella demo`, seconds", DEMO_BAR, seconds if whole else None, unit=" s", better="lower"),
                common.row(
                    "bits of the codes that the learned prior saves, test",
                    SAVING_BAR,
                    _saving(evaluation),
                    unit=" %",
                    better="higher",
                ),
            ],
            "status": done.returncode,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "said": done.stdout.replace(folder, "FOLDER").splitlines(),
            "page_bytes": page.stat().st_size if page.is_file() else None,
            "evaluation": evaluation,
            "environment": common.environment(),
        }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _saving(evaluation: dict[str, Any] | None) -> float | None:
    """Per cent of the bits of the codes; none if the uniform prior is in use."""
    if evaluation is None:
        return None
    codes = evaluation["codes"]
    return 100 * (1 - sum(level["rate"] for level in codes["levels"]) / codes["rate_uniform"])


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
    parser.add_argument("--keep", metavar="FOLDER", help="copy the demo's run there")
    chosen = parser.parse_args()
    records = {"demo": demo(chosen.keep)}
    if chosen.with_tests:
        records["tests"] = tests()
    for name, record in records.items():
        common.write(name, record)
        common.show(record)


if __name__ == "__main__":
    main()
