"""One writer a run: a second one is told who the first is, and a dead one is in nobody's way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella.cli import main
from tessella.foundation.errors import RunError
from tessella.training import checkpoint
from tessella.training.processes import held

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ("train", "vae", "--data", "digits", "--steps", "2", "--width", "8", "--quiet", "--out")
Refused = Callable[..., str]

HOLDER = """
import os, sys, time
from pathlib import Path
from tessella.training.processes import held
with held(Path(sys.argv[1])):
    if sys.argv[2:] == ["fork"] and not os.fork():
        time.sleep(600)
    print("held", flush=True)
    time.sleep(600)
"""


class Other:
    """A process that holds a run."""

    def __init__(self, run: Path, *more: str) -> None:
        command = [sys.executable, "-c", HOLDER, str(run), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """It and what it has forked."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert main([*TRAIN, str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.fixture
def other(run: Path) -> Iterator[Other]:
    process = Other(run, "fork")
    yield process
    process.end()


def test_a_second_writer_is_told_who_the_first_is_and_readers_are_not_in_its_way(
    run: Path, other: Other, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the first one has forked holds nothing: it may live on when the first one is killed."""
    known = rf"is in use by process {other.process.pid} on \S.* since \d\d:\d\d \(.*\); wait for it, or choose another"
    for command in (
        (*TRAIN, run),
        (*TRAIN, run, "--overwrite"),
        ("train", "--resume", "--out", run),
        ("fit-prior", run, "--kind", "flow"),
    ):
        assert re.search(known, refused(*command)), command
    assert main(["evaluate", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    other.kill()
    assert (run / checkpoint.HOLDER).exists()
    assert main(["train", "--resume", "--out", str(run), "--steps", "3", "--quiet"]) == 0
    assert not (run / checkpoint.HOLDER).exists()
    assert not (run / checkpoint.LOCK).exists()


def test_a_holder_that_cannot_be_read_is_another_process(run: Path, other: Other) -> None:
    for text in ("", "[]", "{", '{"process": "x", "host": 1, "since": 3, "command": []}', "[" * 5000):
        (run / checkpoint.HOLDER).write_text(text)
        with pytest.raises(RunError, match="in use by another process"), held(run):
            pass


def test_a_link_in_the_place_of_the_lock_is_not_followed(run: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "precious").write_text("dear")
    (run / checkpoint.LOCK).symlink_to(tmp_path / "precious")
    assert str(run / checkpoint.LOCK) in refused("train", "--resume", "--out", run, "--steps", "3")
    assert (tmp_path / "precious").read_text() == "dear"


def test_a_process_holds_a_run_twice_and_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    place = tmp_path / "a" / "run"
    with held(place), held(place):
        assert json.loads((place / checkpoint.HOLDER).read_text())["process"] == os.getpid()
    assert not (tmp_path / "a").exists()
    assert main([*TRAIN[:3], "nothing", *TRAIN[4:], str(place)]) == 2
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("left", [(), (".spec.json.x7k2.draft",), (".lock", ".lock.json", ".spec.json.draft")], ids=str)
def test_a_folder_that_a_kill_has_left_before_a_run_had_begun_is_started_again(
    tmp_path: Path, left: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_text("half")
    assert main([*TRAIN, str(run)]) == 0
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


def test_a_run_that_was_killed_while_it_was_replaced_is_started_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted first is what makes a run of it, so that nothing takes the rest for one."""

    class Killed(BaseException):
        pass

    remove = checkpoint.shutil.rmtree

    def die(path: Path, **options: Any) -> None:
        if not str(path).endswith(".draft"):
            raise Killed
        remove(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", die)
    with pytest.raises(Killed):
        checkpoint.prepare_run(run, overwrite=True)
    assert not (run / checkpoint.SPEC).exists()
    assert any(path.is_dir() for path in run.iterdir())
    monkeypatch.undo()
    assert main([*TRAIN, str(run)]) == 0
    assert not (run / checkpoint.REPLACED).exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed_from_the_beginning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (checkpoint.STATE, checkpoint.MODEL):
        (run / path).unlink()
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0
    assert "training starts from the beginning" in capsys.readouterr().err
    assert main([*TRAIN, str(tmp_path / "whole")]) == 0
    assert checkpoint.fingerprint(run) == checkpoint.fingerprint(tmp_path / "whole")
    (run / checkpoint.STATE).unlink()  # with weights there, that would be to lose them
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tried on forked processes")
def test_runs_that_are_killed_at_random_moments_end_as_if_nobody_had(tmp_path: Path) -> None:
    """In a process of its own: what has trained cannot be forked."""
    code = textwrap.dedent("""
        import json, kills
        print(json.dumps(kills.kills(6, seed=3)["rows"]))
        """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["figure"] for row in json.loads(done.stdout.splitlines()[-1])] == [0, 0, 0], done.stdout
