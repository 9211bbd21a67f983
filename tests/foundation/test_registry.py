"""Registry: parts are found without importing them, and names are unique."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from expect import raises
from tessella.foundation import registry


@pytest.fixture(autouse=True)
def _made() -> Iterator[None]:
    """Forget what a test registers."""
    known, known_as = dict(registry._MADE), dict(registry._MADE_AS)
    yield
    for table, before in ((registry._MADE, known), (registry._MADE_AS, known_as)):
        table.clear()
        table.update(before)


def test_finding_imports_nothing() -> None:
    code = (
        "import sys; from tessella.foundation import registry; assert 'fsq' in registry.names('quantizer'); "
        "assert not {'torch', 'tessella.bottlenecks'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_unique() -> None:
    every = registry.entries()
    assert len({(e.kind, e.name) for e in every}) == len(every)


def test_a_part_is_found_once_it_is_made() -> None:
    @registry.register("task", "count-examples", summary="count examples", group="measure")
    def count_examples() -> None: ...

    entry = registry.find("task", "count-examples")
    assert registry.entry_of(count_examples) is entry
    assert (entry.summary, entry.facts) == ("count examples", {"group": "measure"})


def test_a_name_is_given_once() -> None:
    with raises("name-clash", kind="quantizer", name="fsq"):

        @registry.register("quantizer", "fsq", summary="another")
        class Another: ...


def test_unknown_names() -> None:
    with raises("no-such-part", kind="model", name="vea"):
        registry.find("model", "vea")
    with raises("not-registered"):
        registry.entry_of(object)
