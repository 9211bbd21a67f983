"""Compares runs: what each costs, how its samples look, and which of these figures may be ranked.

A bound is of one data set as it is stored, of one split of it, and of p(x) or p(x | label). Runs that agree on all of
that make a group and are ranked; groups are shown beside each other with the reason why they are not. Within a group
all figures are of the same examples and as many samples, judged by one classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessella.foundation.blocks import Page
from tessella.tasks.compare.records import CompareConfig, Group
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Comparison(Result):
    """All runs in groups.

    Attributes:
        reasons: why runs of different groups are not ranked.
    """

    groups: tuple[Group, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> Mapping[str, Any]:
        from tessella.tasks.compare.page import group_record

        groups = [group_record(group) for group in self.groups]
        return {"version": 1, "groups": groups, "not_ranked": list(self.reasons)}

    def page(self) -> Page:
        from tessella.tasks.compare.page import comparison_page

        return comparison_page(self.groups, self.reasons)


@task("compare", summary="compare runs in one table and one page", group="train and measure", out="compared.html")
def compare(config: CompareConfig, device: str | torch.device | None = None) -> Comparison:
    """Measure all runs alike; what is known of them already is taken from the runs.

    Raises:
        RunError, DataError: if a run or its data cannot be used.
    """
    from tessella.tasks.compare.measuring import differences, measured_groups

    groups = measured_groups(config, device)
    return Comparison(groups, differences([group.basis for group in groups]))
