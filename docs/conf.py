"""How Sphinx builds the site: `make docs`."""

from __future__ import annotations

import re
from typing import Any

import tessella

project = "Tessella"
author = "The Tessella founders"
version = release = tessella.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Tessella"
html_show_sourcelink = False
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3
nitpicky = False
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which a test follows
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
default_role = "code"
napoleon_use_ivar = True  # an attribute of several classes is no second object


def _plain(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Escape in docstrings what is mathematics to us and markup to reStructuredText."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(`[^`]*`)|([|*])", lambda m: m[1] or "\\" + m[2], line)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plain, priority=100)
