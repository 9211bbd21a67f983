"""The parts of this package keep the promises of their kinds."""

import pytest

from tessella.plugin import PartKind, check_entry, find


@pytest.mark.parametrize(
    ("kind", "name"), [("quantizer", "bsq"), ("likelihood", "laplace"), ("data", "rings"), ("task", "brightness")]
)
def test_part(kind: PartKind, name: str) -> None:
    check_entry(find(kind, name))
