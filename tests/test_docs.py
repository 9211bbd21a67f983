"""The documentation says what the code holds, and the site can be built."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tessella
from tessella import plugin
from tessella.foundation.registry import entries

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SECTIONS = ("Generative process", "Objective", "Strengths", "Limits", "When to use it")


def test_catalogue_table_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = from_docs("catalogue", monkeypatch)
    text = catalogue.PAGE.read_text(encoding="utf-8")
    assert text == catalogue.written(text), "docs/parts.md is stale: run `make docs`"


@pytest.mark.parametrize("name", [entry.name for entry in entries("model")])
def test_every_model_has_its_page(name: str) -> None:
    page = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page.splitlines()[0]
    places = [page.find(f"**{section}.**") for section in SECTIONS]
    assert -1 not in places
    assert places == sorted(places)
    assert "## Sources" in page


def test_every_model_page_is_a_models() -> None:
    assert {page.stem for page in (DOCS / "models").glob("*.md")} == {entry.name for entry in entries("model")}


@pytest.mark.parametrize("name", [entry.name for entry in entries("likelihood")])
def test_every_likelihood_has_its_section(name: str) -> None:
    assert f"\n## {name}\n" in (DOCS / "likelihoods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [entry.name for kind in ("quantizer", "code-prior") for entry in entries(kind)])
def test_every_quantiser_and_prior_over_codes_has_its_row(name: str) -> None:
    assert f"\n| `{name}`" in (DOCS / "codes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} points to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}, target


def from_docs(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_the_picture_of_layers_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = from_docs("layers", monkeypatch)
    assert layers.PICTURE.read_text("utf-8") == layers.svg(), "docs/images/layers.svg is stale: run `make docs`"


def test_korean_pages_are_of_the_english_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes an English page changes its translation and runs `python docs/korean.py --fresh`."""
    assert from_docs("korean", monkeypatch).stale() == []


def test_the_reference_names_all_that_is_public() -> None:
    named = re.findall(r":: (tessella\.[\w.]+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    public = [f"{m.__name__}.{name}" for m in (tessella, plugin) for name in m.__all__]
    assert sorted(named) == sorted(public)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
