"""A package of its own extends tessella by entry points: see `tests/plugin`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessella import testing
from tessella.cli import main, overview
from tessella.foundation import registry
from tessella.testing.examples import schema_of

PLUGIN = Path(__file__).parent / "plugin"
WITHOUT_A_NETWORK = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the plug-in is installed into."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", *WITHOUT_A_NETWORK, "--target"]
    subprocess.run([*install, str(target), str(PLUGIN)], check=True)
    return target


@pytest.fixture
def plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    registry.refresh()
    yield
    for table in (registry._MADE, registry._MADE_AS):
        for key in [key for key, entry in table.items() if entry.target.startswith("tessella_rings")]:
            del table[key]  # pyright: ignore[reportArgumentType]
    for name in [name for name in sys.modules if name.startswith("tessella_rings")]:
        del sys.modules[name]
    monkeypatch.undo()
    registry.refresh()


def test_its_parts_are_found_without_importing_it(plugin: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "brightness" in overview()
    assert main(["list"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("binary spherical quantisation", "absolute error as a likelihood", "600 points near two rings"):
        assert words in said
    assert not any(name.startswith("tessella_rings") for name in sys.modules)


def test_its_own_tests_pass(plugin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGIN))
    test_rings = importlib.import_module("test_rings")
    for kind, name in test_rings.test_part.pytestmark[0].args[1]:
        test_rings.test_part(kind, name)


def test_a_model_of_its_parts_keeps_the_promises(plugin: None) -> None:
    options = {"quantizer": "bsq", "bits": 3, "likelihood": "laplace", "sharpness": 2}
    model = testing.small_model("vqvae", schema_of("real", (2, 9)), **options)
    testing.check_model(model)
    assert model.config is not None
    record = model.config.to_record()
    assert record["quantizer"] == {"type": "bsq", "bits": 3}
    assert record["likelihood"] == {"type": "laplace", "sharpness": 2}


def test_it_is_used_from_the_command_line(plugin: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "vqvae", "--quantizer", "bsq", "--likelihood", "laplace", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--bits INT" in said
    assert "--sharpness FLOAT" in said
    words = ["--quantizer", "bsq", "--bits", "3", "--likelihood", "laplace", "--width", "8", "--depth", "1"]
    assert main(["train", "vqvae", "--data", "rings", *words, "--steps", "3", "--quiet", "--out", run]) == 0
    capsys.readouterr()
    assert main(["brightness", run, "--count", "4", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"data", "samples"}
    page = tmp_path / "page.html"
    assert main(["brightness", run, "-o", str(page)]) == 0
    assert "mean of the data" in page.read_text()


def test_an_option_of_its_part_is_named(plugin: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "vqvae", "--data", "rings", "--bits", "3", "--out", "x"]) == 2
    assert "--quantizer bsq" in capsys.readouterr().err
