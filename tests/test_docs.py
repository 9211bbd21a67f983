"""The documentation says what the catalogue holds."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tessella.foundation.registry import entries

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SECTIONS = ("Generative process", "Objective", "Strengths", "Limits", "When to use it")


def test_catalogue_table_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "catalogue", raising=False)
    import catalogue

    text = catalogue.INDEX.read_text(encoding="utf-8")
    assert text == catalogue.written(text), "docs/index.md is stale: run `make docs`"
    sys.modules.pop("catalogue")


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
