"""Lists the models and the parts that they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessella.foundation import registry
from tessella.foundation.blocks import Heading, Page, Table, joined
from tessella.tasks.task import Result, task


@dataclass(frozen=True)
class ListConfig:
    """List the models and what they are made of."""


@dataclass(frozen=True)
class PartList(Result):
    """Names and summaries of all parts, by their kinds."""

    parts: Mapping[str, Mapping[str, str]]

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, "parts": self.parts}

    def page(self) -> Page:
        each = ((Heading(kind), Table(("", ""), list(parts.items()), figures=())) for kind, parts in self.parts.items())
        return Page("Models and parts", joined(*each))


@task("list", summary="list the models and what they are made of", group="start here")
def list_parts(config: ListConfig) -> PartList:
    """List every part that is registered, models first."""
    kinds: list[registry.PartKind] = ["model", *(k for k in registry.PART_KINDS if k != "model")]
    found = {str(kind): {entry.name: entry.summary for entry in registry.entries(kind)} for kind in kinds}
    return PartList({kind: parts for kind, parts in found.items() if parts})
