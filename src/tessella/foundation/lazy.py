"""Load the names of a module when they are first used, as its stub file lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

_LISTED = re.compile(r"^from (\S+) import (\w+) as \2$", re.MULTILINE)


def lazy_names(module: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return the `__getattr__` and the `__all__` of a module whose stub has lines `from HOME import NAME as NAME`.

    So type checkers and the running program read one list, and nothing is imported before it is used.
    """
    with open(os.path.splitext(file)[0] + ".pyi", encoding="utf-8") as stub:
        homes = {name: home for home, name in _LISTED.findall(stub.read())}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return load, sorted(homes)
