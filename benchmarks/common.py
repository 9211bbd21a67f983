"""What all benchmarks share: where they ran, ratios of interleaved measurements, records and their table.

A record is a JSON file in `results/`: `about`, `rows` (a claim, its bar, the figure, whether it is reached), whatever
was measured, and `environment`. The table in README.md is written from the rows of all records.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
TABLE = HERE / "README.md"
START, END = "<!-- table: written by run.py -->", "<!-- end of table -->"
ORDER = ("loop", "pythae_peer", "quantizers", "sampling", "startup", "demo", "tests")
"""Of the records in the table; the rest follows by name."""
PACKAGES = (
    "tessella",
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "tyro",
    "rich",
    "tensorboard",
    "pythae",
    "vector-quantize-pytorch",
)

Record = dict[str, Any]


# where


def environment() -> Record:
    """The hardware and the versions that a figure belongs to."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or found.get("Processor") or platform.machine()
    if "cpu family" not in found:
        return name
    return f"{name} (family {found['cpu family']}, model {found.get('model', '?')})"


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that the sources are at; `+` if they were changed since."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git("status", "--porcelain", "--", "src", "benchmarks/*.py") else "")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


# measure


def alternate(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the measures A B A B ..., so that a machine that slows down slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return taken


def ratios(above: Sequence[float], below: Sequence[float]) -> Record:
    """How `above` compares with what was measured beside it: the pairwise ratios, and that of the medians."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "pairs": len(pairs),
        "min": min(pairs),
        "median": statistics.median(pairs),
        "max": max(pairs),
        "of_medians": statistics.median(above) / statistics.median(below),
    }


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing is printed, but progress is drawn as on a terminal, so that its cost is in the figure."""
    before = os.environ.get("TTY_COMPATIBLE")
    os.environ["TTY_COMPATIBLE"] = "1"
    try:
        with ExitStack() as stack:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
            yield
    finally:
        if before is None:
            del os.environ["TTY_COMPATIBLE"]
        else:
            os.environ["TTY_COMPATIBLE"] = before


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


# record


def row(claim: str, bar: float, figure: float | None, *, unit: str = "", better: Literal["lower", "higher"]) -> Record:
    """A line of the table. `figure` is None if it could not be measured; then the bar is not reached."""
    figure = None if figure is None else float(figure)  # numpy's numbers are no JSON
    kept = figure is not None and (figure <= bar if better == "lower" else figure >= bar)
    return {"claim": claim, "bar": bar, "better": better, "unit": unit, "figure": figure, "reached": kept}


def write(name: str, record: Record) -> Path:
    """Keep a record as `results/NAME.json`, and write the table anew."""
    path = RESULTS / f"{name}.json"
    _write_atomic(path, json.dumps(rounded({"name": name, **record}), indent=2, allow_nan=False) + "\n")
    write_table()
    return path


def rounded(value: Any) -> Any:
    """Floats to six significant digits: no clock is better."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_table() -> None:
    """Put the rows of all records between the two marks in README.md."""
    text = TABLE.read_text()
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{TABLE} has lost its marks {START!r} and {END!r}: put them back")
    _write_atomic(TABLE, f"{before}{START}\n\n{table()}\n\n{END}{after}")


def table() -> str:
    """The rows of all records as Markdown."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    records.sort(key=lambda r: (ORDER.index(r["name"]) if r["name"] in ORDER else len(ORDER), r["name"]))
    lines = ["| claim | bar | figure | reached | file |", "|---|---|---|---|---|"]
    for record in records:
        link = f"[{record['name']}](results/{record['name']}.json)"
        for r in record["rows"]:
            sign = "<=" if r["better"] == "lower" else ">="
            figure = "not measured" if r["figure"] is None else f"{r['figure']:.4g}{r['unit']}"
            reached = "yes" if r["reached"] else "**no**"
            lines.append(f"| {r['claim']} | {sign} {r['bar']:g}{r['unit']} | {figure} | {reached} | {link} |")
    return "\n".join(lines) if records else "Nothing is measured yet: `make bench`."


def show(record: Record) -> None:
    """The rows of one record, for whoever ran it."""
    for r in record["rows"]:
        figure = "not measured" if r["figure"] is None else f"{r['figure']:.4g}{r['unit']}"
        sign = "<=" if r["better"] == "lower" else ">="
        print(f"{r['claim']}: {figure} (bar {sign} {r['bar']:g}{r['unit']}, {'' if r['reached'] else 'not '}reached)")


def _write_atomic(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)
