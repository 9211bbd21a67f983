"""Processes that train together: one that is lost or started otherwise ends all of them, with one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tessella.core.tensors import read_tensors
from tessella.training import checkpoint, ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo and signals as Linux has them")

SILENCE = 6.0
SCRIPT = f"""
import sys
from tessella.training import ranks
watched = ranks.watched
ranks.watched = lambda seconds, device: watched({SILENCE}, device)
from tessella.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`tessella`, whose processes are missed sooner than they may take to start."""
LONG = ("--data", "digits", "--width", "8", "--minutes", "9", "--save-every", "0.1", "--rank-timeout", "120", "--quiet")


class Rank:
    """One of `world` processes, as a launcher would start it."""

    def __init__(self, number: int, port: int, *command: object, world: int = 2) -> None:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, command)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Its status, and what it has said of what went wrong (and not of its progress)."""
        _, said = self.process.communicate(timeout=240)
        return self.process.returncode, "".join(
            f"{line}\n" for line in said.splitlines() if not line.startswith("step ")
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(path: Path, *processes: Rank) -> None:
    while not path.exists():
        assert all(rank.process.poll() is None for rank in processes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "how", "what"),
    [(0, signal.SIGKILL, "has ended"), (1, signal.SIGSTOP, "has not answered for 6")],
    ids=["killed", "stopped"],
)
def test_when_one_is_lost_the_other_ends_with_one_line(tmp_path: Path, lost: int, how: int, what: str) -> None:
    run, port = tmp_path / "run", free_port()
    both = [Rank(number, port, "train", "vae", "--out", run, *LONG) for number in (0, 1)]
    wait_for(run / checkpoint.STATE, *both)
    both[lost].send(how)
    status, said = both[1 - lost].ended()
    assert status == ranks.STATUS
    assert said.startswith(f"tessella: process {lost} of 2 {what}")
    assert said.count("\n") == 1
    if how == signal.SIGSTOP:  # it finds out, and adds nothing
        both[lost].send(signal.SIGCONT)
        assert both[lost].ended() == (ranks.STATUS, "")
    read_tensors(run / checkpoint.STATE)


@pytest.mark.slow
def test_one_that_was_started_otherwise_ends_both_with_a_line_that_names_the_option(tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    common = ("train", "vae", "--data", "digits", "--out", run, "--width", "8", "--quiet", "--steps")
    ended = [rank.ended() for rank in [Rank(0, port, *common, 3), Rank(1, port, *common, 4)]]
    line = "tessella: process 1 was started with steps 4, process 0 with 3: start all processes with the same options\n"
    assert ended == [(2, line), (2, "")]
    assert not run.exists()


@pytest.mark.slow
def test_one_that_fails_is_told_of_by_the_first(tmp_path: Path) -> None:
    port = free_port()
    common = ("train", "vae", "--out", tmp_path / "run", "--width", "8", "--quiet", "--steps", "3", "--data")
    ended = [rank.ended() for rank in [Rank(0, port, *common, "digits"), Rank(1, port, *common, tmp_path / "none")]]
    assert [status for status, _ in ended] == [2, 2]
    assert ended[0][1].startswith("tessella: process 1 of 2: no such data")
    assert [said.count("\n") for _, said in ended] == [1, 0]


@pytest.mark.slow
def test_one_that_does_not_come_is_not_waited_for_longer_than_was_said(tmp_path: Path) -> None:
    command = ("train", "vae", "--data", "digits", "--out", tmp_path / "run", "--steps", "3", "--rank-timeout", "1")
    status, said = Rank(0, free_port(), *command).ended()
    assert status == ranks.STATUS
    assert said.startswith("tessella: process 0 of 2 could not join the others at 127.0.0.1")
    assert "--rank-timeout" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
