"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: `TESSELLA_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TESSELLA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "mnist.npz").is_file():
        pytest.skip(f"no real data in {folder}: set TESSELLA_DATA")
    return folder
