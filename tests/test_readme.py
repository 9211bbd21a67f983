"""What the pages tell people to type works: commands and Python blocks run, with budgets of a step or two."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tessella import cli
from tessella.diffusion import chain
from tessella.evaluation import per_example_posterior
from tessella.models import diffusion

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
KOREAN = sorted((ROOT / "docs" / "ko").glob("*.md"))
TYPED = [page for page in PAGES if page not in KOREAN and BLOCK.search(page.read_text("utf-8"))]
SMALL = {
    "train": {"--width": "8", "--depth": "1", "--batch-size": "8", "--workers": "0"},
    "fit-prior": {"--batch-size": "8"},
    "fit-prior diffusion": {"--batch-size": "8", "--width": "8", "--depth": "1"},
    "fit-prior masked": {"--batch-size": "8", "--width": "8", "--depth": "1"},
    "claims": {"--only": "4", "--seeds": "2"},
    "inference-gap": {"--chains": "2", "--steps": "16"},
    "detect": {"--scores": "bound"},
    "detect series": {},
    "compare": {"--minutes": "0.02"},
}
"""What is added to a command so that it takes a moment, unless the page says it."""
FEW = {"--size": "24", "--importance-samples": "2", "--examples": "2", "--false-positives": "0.5"}
"""What is said instead."""


UCR = "001_UCR_Anomaly_X_500_700_720.txt"
RUNS = (
    "train vae --size 8 --channels 1 --latent-dim 4 --out runs/mine",
    "train vqvae --size 24 --out runs/codes",
)
"""The runs of the README that other pages take."""


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures and sounds that the pages speak of, and the runs of the README."""
    place = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    names = [f"my-pictures/{c}/{n}.png" for c in "ab" for n in range(30)]
    for name in (*names, "a.png", "b.png", *(f"new-pictures/{n}.png" for n in range(4))):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(place / name)
    for name in ("clip.wav", *(f"my-recordings/{c}/{n}.wav" for c in "ab" for n in range(20))):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / name, random.uniform(-0.1, 0.1, 2000), 4000, "PCM_16")
    for name, count in (("normal.csv", 900), ("new.csv", 400), (UCR, 900)):
        wave = np.sin(np.arange(count) / 4) + 0.1 * random.normal(size=count)
        (place / name).write_text("value\n" * name.endswith(".csv") + "\n".join(f"{v:.4f}" for v in wave), "ascii")
    with chdir(place):
        for line in RUNS:
            small = "--data my-pictures --steps 2 --width 8 --depth 1 --batch-size 8 --workers 0 --quiet"
            assert cli.main([*line.split(), *small.split()]) == 0
    return place


def quick(line: str) -> list[str]:
    """The words of a command, with a budget of two steps."""
    name, *rest = shlex.split(line.split(" #")[0])[1:]
    if name != "claims" and "--minutes" in rest:
        rest[rest.index("--minutes") : rest.index("--minutes") + 2] = ["--steps", "2"]
    if "--train" in rest:
        rest += ["--minutes", "0.01"]
    if name == "claims":
        rest[rest.index("--data") + 1] = "digits"  # claims need 200 examples
    for flag, value in FEW.items():
        if flag in rest:
            rest[rest.index(flag) + 1] = value
    kind = f"{name} {rest[rest.index('--kind') + 1]}" if "--kind" in rest else name
    kind = f"{name} series" if any("_UCR_" in word for word in rest) else kind
    for flag, value in SMALL.get(kind, SMALL.get(name, {})).items():
        if flag in rest and flag in ("--width", "--depth"):
            rest[rest.index(flag) + 1] = value
        elif flag not in rest and "--resume" not in rest:
            rest += [flag, value]
    return [name, *rest]


@pytest.fixture
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """What many steps are good for is tested where diffusion and the gap are."""
    for module, name, few in (
        (chain, "STEPS", 3),
        (chain, "LINKS", 3),
        (diffusion, "TIMES", 2),
        (per_example_posterior, "ROUND", 1),
        (per_example_posterior, "ROUNDS", 2),
    ):
        monkeypatch.setattr(module, name, few)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_short_chains")
@pytest.mark.parametrize("page", TYPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_runs(page: Path, readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in their order, in one folder and one Python session."""
    taken = None if "README.md)" in page.read_text("utf-8") else shutil.ignore_patterns("runs")
    shutil.copytree(readme, tmp_path / "page", ignore=taken)
    monkeypatch.chdir(tmp_path / "page")
    namespace: dict[str, object] = {"__name__": page.stem}
    for language, block in BLOCK.findall(page.read_text("utf-8")):
        if language == "python":
            few = re.sub(r"TrainOptions\(steps=\d+", "TrainOptions(steps=2", block)
            exec(compile(few, str(page), "exec"), namespace)
            continue
        for line in block.splitlines():
            if line.startswith("tessella "):
                assert cli.main(quick(line)) == 0, line


@pytest.mark.parametrize("page", KOREAN, ids=lambda p: p.name)
def test_a_korean_page_has_the_blocks_of_the_english_one(page: Path) -> None:
    english, korean = (
        [(language, re.sub(r" *#.*", "", block)) for language, block in BLOCK.findall(p.read_text("utf-8"))]
        for p in (ROOT / "docs" / page.name, page)
    )
    assert korean == english


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_knows_the_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets
