"""`tessella compare`.

Imports beside it: report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tessella.commands.shared import Where, check_file, progress, say, say_table
from tessella.foundation.blocks import Cell
from tessella.foundation.text import json_text

if TYPE_CHECKING:
    from tessella.tasks.compare import Comparison, Group


@dataclass(frozen=True)
class Compare:
    """Runs beside each other: bounds, how their samples look, and what they cost, in one table and one page.

    Only figures of the same thing are ranked: runs of other data, another split, another binarisation, or with labels
    given make groups of their own, with the reason.

    Attributes:
        runs: the run folders, two or more.
        out: the page to write.
        data: other data than the runs' own, read as theirs was.
        split: train, valid or test.
        examples: samples of each run, and examples that bounds are of unless the whole split is known of all.
        minutes: for the samples of one run; of one that takes longer it is not said how they look.
        seed: of the draws.
        json: print all numbers as JSON too.
    """

    runs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "compared.html"
    data: str | None = None
    split: str = "test"
    examples: int = 2000
    minutes: float = 5.0
    seed: int = 0
    json: bool = False
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def compare(o: Compare) -> int:
    check_file(o.out, ".html")
    from tessella.pages import compared
    from tessella.tasks import compare as uses

    device = o.where.find(json=o.json)
    with _bars(quiet=o.json) as told:
        found = uses.compare(
            o.runs,
            split=o.split,
            data=o.data,
            examples=o.examples,
            minutes=o.minutes,
            seed=o.seed,
            device=device,
            kept=not o.data,
            progress=told,
        )
    compared.write_compared(Path(o.out), found)
    if o.json:
        print(json_text(compared.jsonable(found), indent=2))
        return 0
    _say(found)
    say(f"wrote {o.out}")
    return 0


@contextmanager
def _bars(*, quiet: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives a bar for each thing that is done, one after the other."""
    with ExitStack() as stack:

        def told(what: str) -> Callable[[int, int], None]:
            stack.pop_all().close()
            return stack.enter_context(progress(what, quiet=quiet))

        yield told


def _say(found: Comparison) -> None:
    from tessella.pages.compared import footnotes

    for number, group in enumerate(found.groups, 1):
        _table(group.basis.title if len(found.groups) == 1 else f"group {number}: {group.basis.title}", group)
        for note in footnotes(group):
            say(note)
        say("")
    for reason in found.reasons:
        say(f"not ranked: {reason}")


def _table(title: str, group: Group) -> None:
    from tessella.pages.compared import lines

    heads: list[str] = ["", *(entry.name for entry in group.entries), "data"]
    rows = []
    for line in lines(group):
        cells = [Cell(c, tone="best" if b else "") for c, b in zip(line.cells, line.best, strict=True)]
        rows.append([line.name, *cells, line.data])
    say_table(title, heads, rows, figures=range(1, len(heads)))
