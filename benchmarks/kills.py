"""What a run loses when its process is killed: nothing, at any moment.

python benchmarks/kills.py [--moments 100] [--seed 0]

A process that trains (or fits a prior) is killed by SIGKILL at a random moment, some of them again while they are
resumed; then the run is resumed until it ends. Its weights must be, bit for bit, those of a run that nobody killed.
Each process is forked from one that has imported everything, and runs the command line as `tessella` does.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common

TINY = ("--width", "8", "--batch-size", "16", "--save-every", "0.02", "--quiet")
OF_CODES = ("--codebook-size", "16", "--code-dim", "4")
AGAIN = 0.3
"""Share of the moments after which what resumes is killed as well."""
PICTURES = 60
IMPORTED = (
    *("torch._dynamo", "PIL.PngImagePlugin", "zuko.flows"),
    *("tessella.commands.prior", "tessella.commands.train", "tessella.training", "tessella.training.loop"),
)
"""What takes longer to import than a tiny run takes to train."""
PATIENCE = 60.0
"""Seconds after which an orphan, or a resumed run, counts as stuck."""


@dataclass(frozen=True)
class Scenario:
    """What is killed.

    Attributes:
        start: the command, without `resume`; RUN and DATA stand for the run's folder and the pictures'.
        resume: what goes on with it.
        begun: the file in the run without which it has to be started anew.
        weights: the files that must end as those of a run that nobody killed.
        base: the scenario that makes the run which the command goes into, if there is one.
    """

    name: str
    start: tuple[str, ...]
    resume: tuple[str, ...]
    begun: str
    weights: tuple[str, ...]
    base: str | None = None


def scenarios() -> dict[str, Scenario]:
    """Training in memory, with workers that read pictures, and over a run that is replaced; fitting both priors."""
    budget = ("--steps", "20")
    own = ("model.safetensors", "state/last.safetensors")
    resume = ("train", "--resume", "--out", "RUN", "--quiet")
    digits = ("train", "vae", "--data", "digits", "--binarize", "dynamic", "--out", "RUN", *budget, *TINY)
    pictures = ("train", "vqvae", "--data", "DATA", "--out", "RUN", *budget, *TINY, *OF_CODES, "--workers", "2")

    def prior(kind: str, *more: str) -> tuple[tuple[str, ...], tuple[str, ...], str, tuple[str, ...]]:
        start = ("fit-prior", "RUN", "--kind", kind, *budget, *TINY[2:], *more)
        home = f"priors/{kind}"
        again = ("fit-prior", "RUN", "--kind", kind, "--resume", "--quiet")
        return start, again, f"{home}/spec.json", tuple(f"{home}/{file}" for file in own)

    found = (
        Scenario("training", digits, resume, "spec.json", own),
        Scenario("training, streamed by workers", pictures, resume, "spec.json", own),
        Scenario("training, over another run", (*digits, "--overwrite"), resume, "spec.json", own, "training"),
        Scenario(
            "prior over codes", *prior("pixelcnn", "--width", "8", "--depth", "1"), "training, streamed by workers"
        ),
        Scenario("prior over latents", *prior("flow", "--width", "8"), "training"),
    )
    return {scenario.name: scenario for scenario in found}


class Process:
    """A forked process that runs one command of `tessella`; what it says goes into a file."""

    def __init__(self, command: Sequence[str], said: Path) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.said = said
        self.pid = os.fork()
        if self.pid:
            return
        status = 70
        try:
            os.setsid()
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            from tessella.cli import main

            status = main(list(command))
        finally:
            os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """The exit status; None if it has not ended by then."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.005)

    def kill(self) -> list[int]:
        """Kill it, and it alone; its workers, which must end by themselves."""
        workers = children(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return workers


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class Trials:
    """Runs in a folder of their own, and what they should come to.

    Args:
        folder: an empty folder.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        for module in IMPORTED:
            importlib.import_module(module)
        self.folder, self.random = folder, random.Random(seed)
        self.scenarios = scenarios()
        self.whole: dict[str, tuple[Path, float]] = {}
        self.workers: list[int] = []
        _pictures(folder / "data")

    def reference(self, name: str) -> tuple[Path, float]:
        """The run that nobody killed, and how long it took."""
        if name not in self.whole:
            run = self._prepared(self.scenarios[name], f"whole-{len(self.whole)}")
            started = time.monotonic()
            self._finish(self._started(self.scenarios[name].start, run), run)
            self.whole[name] = run, time.monotonic() - started
        return self.whole[name]

    def trial(self, name: str, number: int) -> common.Record:
        """Kill one run at a random moment, resume it, and compare."""
        scenario = self.scenarios[name]
        whole, _ = self.reference(name)
        run = self._prepared(scenario, f"cut-{number}")
        moments: list[float] = []
        while not moments or (len(moments) == 1 and self.random.random() < AGAIN):
            moment = self.random.uniform(0, self.whole[name][1])
            started = time.monotonic()
            process = self._started(self._next(scenario, run), run)
            if process.wait(moment) is None:
                self.workers += process.kill()
                moments.append(moment)
                continue
            if moments:  # what was resumed had ended
                break
            self.whole[name] = whole, time.monotonic() - started  # it ended first: the machine is faster than it was
            shutil.rmtree(run)
            run = self._prepared(scenario, f"cut-{number}")
        begun = (run / scenario.begun).exists()
        self._finish(self._started(self._next(scenario, run), run), run)
        different = [file for file in scenario.weights if digest(run / file) != digest(whole / file)]
        left = [str(path.relative_to(run)) for path in run.rglob(".lock*")]
        shutil.rmtree(run)
        return {"what": name, "moments": moments, "begun": begun, "different": different, "left": left}

    def _prepared(self, scenario: Scenario, name: str) -> Path:
        run = self.folder / name
        if scenario.base is not None:
            shutil.copytree(self.reference(scenario.base)[0], run)
        return run

    def _next(self, scenario: Scenario, run: Path) -> tuple[str, ...]:
        """The command that a user would give now."""
        fresh = scenario.base is not None and "--overwrite" in scenario.start and self._is_base(scenario, run)
        return scenario.resume if (run / scenario.begun).exists() and not fresh else scenario.start

    def _is_base(self, scenario: Scenario, run: Path) -> bool:
        """Whether what lies there is still the run that is to be replaced."""
        assert scenario.base is not None
        spec = run / "spec.json"
        return (
            spec.exists()
            and spec.stat().st_mtime_ns == (self.reference(scenario.base)[0] / "spec.json").stat().st_mtime_ns
        )

    def _started(self, command: Sequence[str], run: Path) -> Process:
        places = {"RUN": str(run), "DATA": str(self.folder / "data")}
        return Process([places.get(word, word) for word in command], self.folder / f"{run.name}.txt")

    def _finish(self, process: Process, run: Path) -> None:
        status = process.wait(PATIENCE)
        if status is None:
            process.kill()
        if status != 0:
            raise SystemExit(f"{run}: status {status}\n{process.said.read_text()}")

    def count_orphans(self) -> int:
        """The workers that are there long after the process that they read for."""
        until = time.monotonic() + PATIENCE
        while any(map(alive, self.workers)) and time.monotonic() < until:
            time.sleep(0.05)
        return sum(map(alive, self.workers))


def digest(path: Path) -> str | None:
    """SHA-256 of a file's tensors, as it says itself."""
    from safetensors import safe_open

    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


def _pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def kills(moments: int, seed: int) -> common.Record:
    """The record."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        trials = Trials(Path(folder), seed)
        names = list(trials.scenarios)
        done = []
        for number in range(moments):
            done.append(trials.trial(names[number % len(names)], number))
            if number % 10 == 9:
                common.say(f"{number + 1} of {moments}")
        orphans = trials.count_orphans()
    lost = sum(bool(trial["different"]) for trial in done)
    counts = {
        name: {
            "killed": sum(t["what"] == name for t in done),
            "killed twice": sum(len(t["moments"]) > 1 for t in done if t["what"] == name),
            "before anything was saved": sum(not t["begun"] for t in done if t["what"] == name),
        }
        for name in names
    }
    return {
        "about": f"{moments} runs, each killed by SIGKILL at a random moment before its end, some twice, and resumed",
        "rows": [
            common.row(f"runs lost or changed by {moments} kills", 0, lost, better="lower"),
            common.row("workers that outlived their process", 0, orphans, better="lower"),
            common.row("locks left behind", 0, sum(bool(trial["left"]) for trial in done), better="lower"),
        ],
        "counts": counts,
        "different": [trial for trial in done if trial["different"]],
        "environment": common.environment(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record = kills(chosen.moments, chosen.seed)
    common.write("kills", record)
    common.show(record)
    return 0 if all(row["reached"] for row in record["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
