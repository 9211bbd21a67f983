"""`tessella claims`.

Imports beside it: report.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from tessella.commands.options import DataOptions
from tessella.commands.shared import Where, check_file, say
from tessella.foundation.errors import SpecError
from tessella.foundation.text import json_text

if TYPE_CHECKING:
    from tessella.claims import Claim, Result

MINUTES = 14.0


@dataclass(frozen=True)
class Claims:
    """Test the field's claims on data of your own: small experiments, each with its verdict, numbers and a plot.

    A claim that does not hold on the data is reported as failed, and one that cannot be tested on it as not applicable.

    Attributes:
        data: clothes, digits, sprites, hf:NAME, a folder of pictures, or a file.
        only: the numbers of claims, such as 6,10; all unless given.
        minutes: about how long all of them may take; less where the models have learned enough before. More than 14
            minutes train them for longer, which data larger than small pictures needs.
        seeds: how often each experiment is repeated; its standard errors are over these.
        out: the page to write.
        json: a file for all numbers as JSON.
    """

    data: str
    how: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    only: str | None = None
    minutes: float = MINUTES
    seeds: int = 3
    out: Annotated[str, arg(aliases=("-o",))] = "claims.html"
    json: str | None = None
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def claims(o: Claims) -> int:
    numbers = _numbers(o.only)
    if not o.minutes > 0:
        raise SpecError(f"minutes must be more than zero, not {o.minutes}")
    if not 2 <= o.seeds <= 100:
        raise SpecError(f"seeds must lie between 2 and 100, as errors are over them, and are {o.seeds}")
    check_file(o.out, ".html")
    if o.json is not None:
        check_file(o.json, ".json")
    from tessella import claims as experiments
    from tessella.data import describe
    from tessella.pages import claims as page
    from tessella.training import checkpoint

    chosen = experiments.chosen(numbers)
    data = o.how.open(o.data)
    say(*describe(data).split("\n"))
    device = o.where.find()
    started, worked = time.monotonic(), time.process_time()
    results = experiments.run(
        data,
        chosen,
        minutes=o.minutes,
        seeds=tuple(range(o.seeds)),
        device=str(device),
        tell=lambda claim, result: _report(claim, result),
    )
    seconds = time.monotonic() - started
    spent = time.process_time() - worked
    record = page.record(
        data, chosen, results, seeds=o.seeds, minutes=o.minutes, seconds=seconds, processor_seconds=spent
    )
    page.write(Path(o.out), record)
    say(f"{page.counted(record)}, in {seconds / 60:.1f} minutes")
    say(f"wrote {o.out}")
    if o.json is not None:
        text = json_text(record, indent=1)
        checkpoint.write_atomic(Path(o.json), lambda draft: draft.write_text(text, "utf-8"))
        say(f"wrote {o.json}")
    return 0


def _numbers(only: str | None) -> tuple[int, ...]:
    if only is None:
        return ()
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", only):
        raise SpecError(f"--only {only!r} is no list of numbers: give claims by their numbers, such as --only 6,10")
    return tuple(int(number) for number in only.split(","))


def _report(claim: Claim, result: Result) -> None:
    say(f"{claim.number:>2}  {result.verdict:14}  {claim.title}: {result.sentence}")
