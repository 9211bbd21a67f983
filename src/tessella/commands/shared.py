"""What several commands do: open a run, read inputs, show progress, write a picture."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tessella.foundation.blocks import Cell, Page, Table
from tessella.foundation.errors import DataError
from tessella.foundation.text import shown as escaped

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from tessella.core.batches import Batch
    from tessella.data import Data
    from tessella.models.base import Model
    from tessella.training.run import Run


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
    from tessella.core.device import describe_device, reason, resolve

    why = reason(asked)
    return describe_device(resolve(asked)) + (f", {why}" if why else "")


def loaded(path: str, prior: str | None = None, where: Where | None = None, *, json: bool = False) -> tuple[Model, Run]:
    """The model of a run on the device asked for, with that prior over its latents, and the run.

    Args:
        json: whether stdout is for JSON alone.
    """
    from tessella.training.run import Run

    where = where or Where()
    run = Run(path, where.device)
    model = run.model(prior)
    where.say(json=json)
    return model, run


def loaded_without_prior(path: str, where: Where | None = None) -> tuple[Model, Run]:
    """The same for what asks nothing of a fitted prior: it is left out, and with it the label that it may need."""
    from tessella.training.fitted_priors import TRAINED

    return loaded(path, TRAINED, where)


def inputs(model: Model, run: Run, words: Sequence[str], shown: Shown) -> Batch:
    """Read the examples that INPUTS name as one batch."""
    from tessella.data.inputs import Inputs

    def data(spec: str | None) -> Data:
        return run.data(spec or shown.data, model)

    return Inputs(model, words, data, split=shown.split, label=shown.label).batch()


def say(*lines: str) -> None:
    """Print lines in which names from outside may stand: what a terminal would obey is escaped."""
    print("\n".join(map(escaped, lines)), flush=True)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command line that is printed."""
    return shlex.quote(str(path))


def say_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, figures: Collection[int]
) -> None:
    """Print a table of texts."""
    from tessella.pages.terminal import print_page

    print_page(Page("", [Table(heads, rows, list(figures), title)]))


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


def check_file(path: str, *endings: str) -> None:
    """Check that such a file can be written, before anything long is begun.

    Raises:
        DataError: if it has another ending, is a folder, or its folder cannot be had.
    """
    if Path(path).suffix.lower() not in endings:
        raise DataError(f"the output must be a {' or '.join(endings)} file, got {path}", "wrong-ending", path=path)
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder: give a file to write", "is-a-folder", path=path)
    there = next(place for place in Path(path).absolute().parents if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DataError(f"{path} cannot be written: {there} takes no new files; choose another place", "no-place")


def check_picture_name(path: str) -> None:
    check_file(path, ".png")


def write_picture(image: Image, path: str) -> None:
    from tessella.foundation.files import write_atomic

    write_atomic(Path(path), lambda draft: image.save(draft, format="PNG"))
    say(f"wrote {path}")
