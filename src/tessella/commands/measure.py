"""`tessella evaluate` and `tessella report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, loaded, say

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Report:
    """Write report.html into the run: curves, pictures, the numbers and what they mean, how to reproduce.

    Attributes:
        run: the run folder.
        data: other data than the run's own, for instance where it lies on this machine.
    """

    run: Positional[str]
    data: str | None = None
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def report(o: Report) -> int:
    model, run = loaded(o.run, where=o.where)
    from tessella.pages.run_page import write

    say(f"wrote {write(run.path, model, run.data(o.data, model))}")
    return 0
