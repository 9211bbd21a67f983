"""Tasks: what can be done with a run, as functions from a config to a result, for every face.

    @task("list", summary="list the models and what they are made of", group="start here")
    def list_parts(config: ListConfig) -> PartList: ...

is the shortest of them, at the end of this page; others take `run` and `device`.

The config is the one declaration of the options: the command line, Python and the studio's forms are made from it.
Its docstring is the command's help. Fields marked by tyro's `Positional` are words of the command line, in their order;
other names of a flag are given by `Annotated[int, tyro.conf.arg(aliases=("-n",))]`.

A task prints nothing, writes no page and names no flag. It tells how far it is by `progress.track`, and decisions by
`notes.note`. Its arguments besides the config are named `run` and `device`, where it takes them; a `Run` knows its
device. PyTorch is imported by the function and not by its module, so that a command's help does not wait for it.
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
    """What a task found: a frozen record."""

    @abstractmethod
    def to_json(self) -> Mapping[str, Any]:
        """All figures, as plain data; numbers that are not finite become null."""

    @abstractmethod
    def page(self) -> Page:
        """What there is to see: for a terminal, and as a page."""

    @property
    def status(self) -> int:
        """The exit status of the command: 0, unless what was found is worth another."""
        return 0

    def save(self, out: Path) -> None:
        """Write what the task made to that file, or into that folder, whole or not at all.

        Raises:
            RunError, DataError: if it cannot be written.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no file, but a page")


@final
@dataclass(frozen=True)
class Task:
    """A task as a face sees it.

    Attributes:
        function: `(run, config) -> Result`, `(config, device) -> Result`, or `(config) -> Result`.
        out: where the result goes unless another place is given, `RUN/` standing for the run folder: a file that ends
            in .html is the page; any other place is given to `Result.save`, and a folder gets the page too, as
            `page`. Empty: the page is only written if a place is given. A task whose config has a field `out` writes
            by itself.
        page: the name of the page in a folder.
        endings: of the files that `out` may be; by default its own.
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
        """Whether it is about one run, its first argument."""
        return "run" in self.function.__annotations__

    @property
    def takes_device(self) -> bool:
        """Whether it runs networks of no run of its own, on a device that is its argument."""
        return "device" in self.function.__annotations__

    @property
    def config(self) -> type:
        """The dataclass of its options."""
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
    """Register a function as a task. All arguments must be literals, for they are read from the source.

    Args:
        summary: one line, verb first.
        out, page, endings: as of `Task`.
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
        SpecError: if there is none of that name.
    """
    return _TASKS[find("task", name).load()]


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
