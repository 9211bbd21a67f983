"""What tests expect of errors: `from expect import raises`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tessella.foundation.errors import TessellaError


@contextmanager
def raises(code: str, **parameters: object) -> Iterator[None]:
    """Expect a `TessellaError` of that code, with these of its parameters."""
    with pytest.raises(TessellaError) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert {name: caught.value.parameters.get(name) for name in parameters} == parameters
