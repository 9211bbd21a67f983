"""How soon `tessella --help` answers, and what it imports to do so.

python benchmarks/startup.py [--processes 11]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common

BAR = 0.4
HEAVY = ("torch", "numpy", "accelerate", "tyro", "rich", "PIL", "sklearn", "matplotlib")


def script() -> list[str]:
    """The installed command of this environment."""
    beside = Path(sys.executable).with_name("tessella")
    found = str(beside) if beside.exists() else shutil.which("tessella")
    return [found] if found else [sys.executable, "-m", "tessella.cli"]


def seconds(command: list[str]) -> float:
    """Wall time of one process from start to end."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def imported(code: str) -> list[str]:
    """Every module that a process imports to run `code`."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return [line.rpartition("|")[2].strip() for line in lines[1:]]


def startup(processes: int = 11) -> common.Record:
    """The record: every process is new; the files are in the system's cache after the first, which is not counted."""
    commands = {
        "tessella --help": [*script(), "--help"],
        "import tessella": [sys.executable, "-c", "import tessella"],
        "python alone": [sys.executable, "-c", "pass"],
    }
    for command in commands.values():
        seconds(command)
    taken = common.alternate({name: lambda c=command: seconds(c) for name, command in commands.items()}, processes)
    modules = {
        "tessella --help": imported("from tessella.cli import main; main(['--help'])"),
        "import tessella": imported("import tessella"),
    }
    roots = {name: {module.partition(".")[0] for module in names} for name, names in modules.items()}
    figure = statistics.median(taken["tessella --help"])
    return {
        "about": f"seconds of {processes} new processes, in turns, and what `python -X importtime` lists",
        "rows": [
            common.row("`tessella --help`, seconds", BAR, figure, unit=" s", better="lower"),
            common.row(
                "modules of torch that it imports",
                0,
                sum(m.partition(".")[0] == "torch" for m in modules["tessella --help"]),
                better="lower",
            ),
        ],
        "seconds": {name: {"median": statistics.median(s), "min": min(s), "max": max(s)} for name, s in taken.items()},
        "imports": {
            name: {"modules": len(names), "heavy": [heavy for heavy in HEAVY if heavy in roots[name]]}
            for name, names in modules.items()
        },
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=11)
    record = startup(parser.parse_args().processes)
    common.write("startup", record)
    common.show(record)


if __name__ == "__main__":
    main()
