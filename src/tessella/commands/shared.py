"""What several commands do: open a run, read inputs, show progress, write a picture."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.foundation.errors import DataError
from tessella.foundation.text import shown as escaped

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from rich.text import Text

    from tessella.core.batches import Batch
    from tessella.data import Data
    from tessella.models.base import Model


@dataclass(frozen=True)
class Shown:
    """Which examples are looked at.

    Attributes:
        data: other data than the run's own, read as the run's was.
        split: the split that numbers of examples refer to.
        label: the class of picture files, by name or number, for a conditional model.
    """

    data: str | None = None
    split: str = "test"
    label: str | None = None


@dataclass(frozen=True)
class Where:
    """Where networks run.

    Attributes:
        device: auto (the best there is), cpu, cuda, mps or xpu; of several cards cuda:1 is the second. By default what
            the environment variable TESSELLA_DEVICE says, or else auto.
    """

    device: str | None = None

    def find(self, *, json: bool = False) -> torch.device:
        """The device, said in one line unless it was asked for by name; on stderr if stdout is for JSON.

        Raises:
            SpecError: if there is none of that name.
        """
        from tessella.core.device import resolve

        device = resolve(self.device)
        self.say(json=json)
        return device

    def say(self, *, json: bool = False) -> None:
        """Say what was chosen and why; nothing if it was asked for by name."""
        from tessella.core.device import reason

        if reason(self.device) is not None:
            print(f"device   {said_of_device(self.device)}", file=sys.stderr if json else sys.stdout, flush=True)


def said_of_device(asked: str | None) -> str:
    """The device in words, and why it is this one.

    Raises:
        SpecError: if there is none of that name.
    """
    from tessella.core.device import described, reason, resolve

    why = reason(asked)
    return described(resolve(asked)) + (f", {why}" if why else "")


def loaded(
    run: str, prior: str | None = None, where: Where | None = None, *, json: bool = False
) -> tuple[Model, dict[str, Any]]:
    """The model of a run on the device asked for, with that prior over its latents, and where its data comes from.

    Args:
        json: whether stdout is for JSON alone.
    """
    from tessella.core.device import resolve
    from tessella.training import checkpoint

    where = where or Where()
    device = resolve(where.device)
    source = checkpoint.read_spec(run).data
    model = checkpoint.load(run, prior=prior, device=device)
    where.say(json=json)
    return model, source


def loaded_without_prior(run: str, where: Where | None = None) -> tuple[Model, dict[str, Any]]:
    """The same for what asks nothing of a fitted prior: it is left out, and with it the label that it may need."""
    from tessella.training import checkpoint

    return loaded(run, checkpoint.TRAINED, where)


def inputs(model: Model, source: dict[str, Any], words: Sequence[str], shown: Shown) -> Batch:
    """Read the examples that INPUTS name as one batch."""
    from tessella.data.inputs import Inputs
    from tessella.tasks.generate import data_for

    def data(spec: str | None) -> Data:
        return data_for(model, source, spec or shown.data)

    return Inputs(model, words, data, split=shown.split, label=shown.label).batch()


def say(*lines: str) -> None:
    """Print lines in which names from outside may stand: what a terminal would obey is escaped."""
    print("\n".join(map(escaped, lines)), flush=True)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command line that is printed."""
    return shlex.quote(str(path))


def say_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]], *, figures: Collection[int]
) -> None:
    """Print a table, or on a console that is too narrow for it a list: no figure is ever cut or broken.

    Args:
        title: the line above it; it may be empty.
        heads: a name for each column.
        rows: the cells, each a text or a styled one.
        figures: the numbers of the columns that hold figures; in the others words are folded.
    """
    from rich import box
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    cells = [[Text(escaped(c)) if isinstance(c, str) else c for c in row] for row in rows]
    least = 0
    for number, head in enumerate(heads):
        words = [word for row in cells for word in row[number].plain.split()] + head.split()
        whole = [row[number].plain for row in cells] if number in figures else []
        longest = max(map(len, [*whole, *words]), default=0)
        least += 2 + (longest if number in figures else min(longest, 12))
    with console.capture() as printed:  # or Rich would end the process where nobody reads on
        if title:
            console.print(Text(escaped(title), style="italic"), overflow="fold")
        if least <= console.width:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for number, head in enumerate(heads):
                side, figure = ("right", True) if number in figures else ("left", False)
                table.add_column(Text(escaped(head)), justify=side, no_wrap=figure, overflow="fold")
            for row in cells:
                table.add_row(*row)
            console.print(table)
        for first, *rest in cells if least > console.width else ():
            names = [f"{escaped(heads[n])}: " if n in figures else "" for n in range(1, len(heads))]
            below = [Text(name) + one for name, one in zip(names, rest, strict=True) if one.plain]
            console.print(
                Text(first.plain, style="bold"), Padding(Group(*below), (0, 0, 0, 2), expand=False), overflow="fold"
            )
    sys.stdout.write(printed.get())
    sys.stdout.flush()


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal that is told (done, in all), and is gone when all is done."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty())
    task = bar.add_task(what)

    def tell(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()

    try:
        yield tell
    finally:
        bar.stop()


def check_file(path: str, ending: str, what: str) -> None:
    """Whether such a file can be written, before anything long is begun.

    Raises:
        DataError: if it has another ending, is a folder, or its folder cannot be had.
    """
    if Path(path).suffix.lower() != ending:
        raise DataError(f"{path} has no {what} ending: let it end in {ending}")
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder: give a file to write")
    there = next(place for place in Path(path).absolute().parents if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DataError(f"{path} cannot be written: {there} is no folder that takes new files; choose another place")


def check_picture_name(path: str) -> None:
    check_file(path, ".png", "picture's")


def write_picture(image: Image, path: str) -> None:
    from tessella.training.checkpoint import write_atomic

    write_atomic(Path(path), lambda draft: image.save(draft, format="PNG"))
    say(f"wrote {path}")
