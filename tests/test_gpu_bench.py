"""The bench of cards runs where there is none, as a rehearsal."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


def test_a_rehearsal_writes_its_record(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    words = [
        "--device",
        "cpu",
        "--tiny",
        "--seconds",
        "4",
        "--only",
        "search",
        "quantiser",
        "recipes",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    monkeypatch.delenv("TESSELLA_DATA", raising=False)
    assert gpu.main() == 0
    record = json.loads(out.read_text())
    assert record["search"]["largest_excess"] == 0
    assert all(case["ms"]["search"] > 0 for case in record["quantiser"]["cases"].values())
    assert "skipped" in record["recipes"]


def test_a_part_that_fails_leaves_the_others(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place, budget):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(gpu.PARTS, "quantiser", (broken, 0.1))
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--tiny", "--seconds", "4", "--only", "quantiser", "search", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    assert gpu.main() == 1
    record = json.loads(out.read_text())
    assert record["quantiser"]["error"] == "RuntimeError: no kernel"
    assert "largest_excess" in record["search"]


def test_recipes_get_another_budget(gpu) -> None:
    words = gpu._for_minutes(gpu.RECIPES["cifar10-vae"].train.format(data="D"), 0.5)
    assert words[words.index("--minutes") + 1] == "0.500"
