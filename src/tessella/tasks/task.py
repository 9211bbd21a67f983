"""Tasks: what can be done with a run, as functions from a config to a result, for every face.

    @task("list", summary="list the models and what they are made of", group="start here")
    def list_parts(config: ListConfig) -> PartList: ...

is the shortest of them, at the end of this file; others take `run` and `device`.

The config is the only declaration of the options: the command line, Python and the forms of a studio are made from it.
Its docstring is the command's help. Fields marked by tyro's `Positional` are positional arguments of the command, in
their order; other names of a flag are given by `Annotated[int, tyro.conf.arg(aliases=("-n",))]`.

A task prints nothing, writes no page and names no flag. It reports progress by `progress.track`, and decisions by
`notes.note`. Its arguments besides the config are named `run` and `device`, where it takes them; a `Run` knows its
device. The function imports PyTorch, and its module does not, so that a command's help does not wait for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from tessella.foundation import registry
from tessella.foundation.blocks import Heading, Page, Table, joined
from tessella.foundation.registry import find, register

Group = Literal["start here", "train and measure", "look", "codes", "use", "understand"]
F = TypeVar("F", bound=Callable[..., "Result"])


class Result(ABC):
    """Result of a task: a frozen record."""

    @abstractmethod
    def to_json(self) -> Mapping[str, Any]:
        """Return all numbers as plain data; numbers that are not finite become null."""

    @abstractmethod
    def page(self) -> Page:
        """Build the page that a terminal or a browser shows."""

    @property
    def status(self) -> int:
        """Return the exit status of the command, 0 by default."""
        return 0

    def save(self, out: Path) -> None:
        """Write the result to a file or into a folder, atomically.

        Raises:
            RunError, DataError: if it cannot be written.
        """
        raise NotImplementedError(f"{type(self).__name__} has no file to write, only a page")


@final
@dataclass(frozen=True)
class Task:
    """A registered task, as the faces use it.

    Attributes:
        function: `(run, config) -> Result`, `(config, device) -> Result`, or `(config) -> Result`.
        out: default place of the result; `RUN/` stands for the run folder. A file that ends in .html is the page; any
            other place is passed to `Result.save`, and a folder also gets the page, named `page`. Empty: the page is
            written only if a place is given. A task whose config has a field `out` writes its files itself.
        page: file name of the page in a folder.
        endings: endings that `out` may have, "" for a folder; by default its own.
    """

    name: str
    summary: str
    group: str
    function: Callable[..., Result]
    out: str = ""
    page: str = ""
    endings: tuple[str, ...] = ()

    @property
    def takes_run(self) -> bool:
        """Return whether its first argument is a run."""
        return "run" in self.function.__annotations__

    @property
    def takes_device(self) -> bool:
        """Return whether it has a device as argument, to run networks that belong to no run."""
        return "device" in self.function.__annotations__

    @property
    def config(self) -> type:
        """Return the dataclass of its options."""
        named = self.function.__annotations__["config"]
        return self.function.__globals__[named] if isinstance(named, str) else named


_TASKS: dict[Callable[..., Result], Task] = {}


def task(
    name: str,
    *,
    summary: str,
    group: Group,
    out: str = "",
    page: str = "",
    endings: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Register a function as a task.

    All arguments must be literals, since they are read from the source.

    Args:
        summary: one line that begins with a verb.
        out, page, endings: as in `Task`.
    """

    def registered(function: F) -> F:
        facts = {"out": out, "page": page, "endings": endings}
        register("task", name, summary=summary, group=group, **facts)(function)
        _TASKS[function] = Task(name, summary, group, function, out, page, endings)
        return function

    return registered


def load_task(name: str) -> Task:
    """Import a task.

    Raises:
        SpecError: if no task has this name.
    """
    return _TASKS[find("task", name).load()]


@dataclass(frozen=True)
class ListConfig:
    """List the models and what they are made of."""


@dataclass(frozen=True)
class PartList(Result):
    """Names and summaries of all parts, grouped by kind."""

    parts: Mapping[str, Mapping[str, str]]

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, "parts": self.parts}

    def page(self) -> Page:
        each = ((Heading(kind), Table(("", ""), list(parts.items()), figures=())) for kind, parts in self.parts.items())
        return Page("Models and parts", joined(*each))


@task("list", summary="list the models and what they are made of", group="start here")
def list_parts(config: ListConfig) -> PartList:
    """List every registered part, models first."""
    kinds: list[registry.PartKind] = ["model", *(k for k in registry.PART_KINDS if k != "model")]
    found = {str(kind): {entry.name: entry.summary for entry in registry.entries(kind)} for kind in kinds}
    return PartList({kind: parts for kind, parts in found.items() if parts})
