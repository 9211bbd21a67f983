"""What all tests share."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; said before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest

from tessella.cli import main

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["plugin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker ends with one while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: `TESSELLA_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TESSELLA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "mnist.npz").is_file():
        pytest.skip(f"no real data in {folder}: set TESSELLA_DATA")
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail: status 2, one line on stderr; gives the line."""

    def check(*args: object) -> str:
        capsys.readouterr()
        assert main([str(a) for a in args]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("tessella: ")
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
        return said.err

    return check
