"""All benchmarks but the recipes, each in a process of its own; then the table. `make bench` runs this.

python benchmarks/run.py [--only loop startup] [--with-tests]
python benchmarks/run.py --table            write the table from the records as they are
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import common

SCRIPTS = ("startup", "loop", "pythae_peer", "quantizers", "sampling", "demo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--with-tests", action="store_true", help="time the tests too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    failed = []
    for name in () if chosen.table else chosen.only:
        extra = ["--with-tests"] if name == "demo" and chosen.with_tests else []
        common.say(f"== {name}")
        if subprocess.run([sys.executable, common.HERE / f"{name}.py", *extra]).returncode:
            failed.append(name)
    common.write_table()
    print(f"\n{common.table()}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
