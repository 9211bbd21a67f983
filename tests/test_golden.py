"""Golden files: what `--json` says on tiny runs, every help, a report's blocks.

    TESSELLA_GOLDEN=write pytest tests/test_golden.py

writes them anew. Figures may change only where a computation does, and the change is named when they are written: last
for the rise of the learning rate over updates. Times, wordings and places are left out of the comparison.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tessella import cli
from tessella.foundation import registry
from tessella.tasks.report import ReportConfig, report
from tessella.training.run import Run

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-3
"""Relative: another processor rounds otherwise, and twenty updates let that grow."""
OTHER = ("seconds", "notes", "run", "best", "classifier", "values", "contents", "passed_over", "not_ranked", "data")
"""Keys of times, words, places and names."""
SMALL = "--data digits --quiet --steps 20 --batch-size 16 --width 8 --depth 1 --seed 1"
MODELS = {"vae": "--latent-dim 3", "ae": "--latent-dim 3", "vqvae": "--grid-size 4 --codebook-size 16"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for model, options in MODELS.items():
        words = ["train", model, *SMALL.split(), *options.split(), "--out", str(folder / model)]
        assert cli.main(words) == 0
    return folder


def differences(golden: Any, now: Any, path: str = "") -> list[str]:
    """Where two records differ by more than rounding."""
    if isinstance(golden, dict) and isinstance(now, dict):
        keys = [key for key in golden if not key.startswith(OTHER)]
        lost = [f"{path}.{key} is missing" for key in keys if key not in now]
        return lost + [d for key in keys if key in now for d in differences(golden[key], now[key], f"{path}.{key}")]
    if isinstance(golden, list) and isinstance(now, list):
        if len(golden) != len(now):
            return [f"{path} has {len(now)} entries, not {len(golden)}"]
        return [d for n, pair in enumerate(zip(golden, now, strict=True)) for d in differences(*pair, f"{path}[{n}]")]
    if isinstance(golden, float) and isinstance(now, int | float):
        same = math.isclose(golden, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    else:
        same = golden == now
    return [] if same else [f"{path}: {now!r}, not {golden!r}"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluate-vae", "evaluate vae --importance-samples 4 --split valid"),
        ("evaluate-ae", "evaluate ae --split valid"),
        ("evaluate-vqvae", "evaluate vqvae --prior uniform --split valid"),
        ("gap", "inference-gap vae --examples 4 --chains 2 --steps 4 --simulated 4"),
        ("compare", "compare vae vqvae ae --examples 40 -o compared.html"),
    ],
)
def test_figures_are_as_they_were(
    name: str, words: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    assert cli.main([*words.split(), "--json"]) == 0
    now = json.loads(capsys.readouterr().out)
    file = GOLDEN / f"{name}.json"
    if os.environ.get("TESSELLA_GOLDEN") == "write":
        file.write_text(json.dumps(now, indent=1) + "\n", "utf-8")
    golden = json.loads(file.read_text("utf-8"))
    assert not differences(golden, now), "\n".join(differences(golden, now))


def golden(name: str, text: str) -> None:
    """Compare a text with its golden file, or write it."""
    file = GOLDEN / name
    if os.environ.get("TESSELLA_GOLDEN") == "write":
        file.write_text(text, "utf-8")
    if text != file.read_text("utf-8"):
        (file.parent / f"{name}.now").write_text(text, "utf-8")
        pytest.fail(f"{name} has changed: compare it with {name}.now, and write it anew with TESSELLA_GOLDEN=write")


def outline(block: Any, depth: int = 0) -> list[str]:
    """Name a block, its words without numbers, and the blocks in it."""
    parts = [*getattr(block, "blocks", ()), *getattr(block, "charts", ())]
    heads = [str(getattr(head, "text", head)) for head in getattr(block, "heads", ())]
    said = [
        getattr(block, name, "") for name in ("text", "title", "summary", "caption") if type(block).__name__ != "Code"
    ]
    words = " | ".join(re.sub(r"[-\d.,]*\d", "N", word) for word in (*said, *heads) if word)
    lines = [f"{'  ' * depth}{type(block).__name__}: {words}".rstrip(": ")]
    return lines + [line for part in parts for line in outline(part, depth + 1)]


def test_the_blocks_of_a_report_are_as_they_were(runs: Path) -> None:
    page = report(Run(runs / "vqvae"), ReportConfig()).page()
    golden("report-vqvae.txt", "\n".join(outline(page)).replace(str(runs), "RUNS") + "\n")


def test_helps_are_as_they_were(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    helps = []
    models = [["train", name] for name in registry.names("model")]
    priors = [["fit-prior", "--kind", name] for kind in ("code-prior", "prior") for name in registry.names(kind)]
    for words in ([], *([name] for name in sorted(cli.summaries())), *models, *priors):
        assert cli.main([*words, "--help"]) == 0
        helps.append(re.sub(r" +\n", "\n", capsys.readouterr().out))
    golden("help.txt", "\n".join(helps))
