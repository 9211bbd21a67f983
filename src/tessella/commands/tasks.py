"""Runs a task from the command line: its options, its progress, and what is printed and written of its result.

What other commands print and check too stands here: lines, the device, places of files.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, Field, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tyro.conf import Positional, arg

from tessella.foundation.config import described as field_texts
from tessella.foundation.errors import DataError, on_command_line
from tessella.foundation.progress import Progress, Report, reporting
from tessella.foundation.text import json_text
from tessella.foundation.text import shown as escaped
from tessella.tasks.task import Result, Task

DESCRIBED = {
    "run": "the run folder.",
    "json": "print all figures as JSON, and nothing else on standard output.",
    "device": "where networks run: auto (the best there is), cpu, cuda, mps or xpu; of several cards cuda:1 is the "
    "second. By default what the environment variable TESSELLA_DEVICE says, or else auto.",
    "quiet": "no progress bar.",
}
"""Options that every task has on the command line, besides those of its config."""


def task_options(task: Task) -> type:
    """The options of a task as one dataclass: its run, those of its config, and those that every task has."""
    hints = get_type_hints(task.config, include_extras=True)
    own = [(f.name, hints[f.name], _as_default(f)) for f in fields(task.config)]
    named = {name for name, *_ in own}
    described = dict(DESCRIBED)
    options: list[tuple[str, Any, Any]] = [("run", Positional[str], field())] if task.takes_run else []
    options += own
    if "out" not in named:
        options.append(("out", Annotated[str | None, arg(aliases=("-o",))], field(default=task.out or None)))
        what = "the page to write (.html)" if not task.out or task.out.endswith(".html") else "where to write"
        described["out"] = f"{what}{f'; by default {task.out}' if '/' in task.out else ''}."
    options.append(("json", bool, field(default=False)))
    if task.takes_run or task.takes_device:
        options.append(("device", str | None, field(default=None)))
    options.append(("quiet", bool, field(default=False)))
    options = [option for number, option in enumerate(options) if option[0] not in [o[0] for o in options[:number]]]
    made = make_dataclass(task.config.__name__, options, kw_only=True, frozen=True)
    about = (inspect.getdoc(task.config) or task.summary).partition("\nAttributes:\n")[0].rstrip()
    texts = {**described, **field_texts(task.config)}
    lines = [f"    {name}: {texts[name]}" for name, *_ in options if name in texts]
    made.__doc__ = "\n".join([about, "", "Attributes:", *lines, ""])
    return made


def _as_default(of: Field[Any]) -> Any:
    """A field of another dataclass with the same default."""
    if of.default_factory is not MISSING:
        return field(default_factory=of.default_factory)
    return field() if of.default is MISSING else field(default=of.default)


def run_task(task: Task, options: Any) -> int:
    """Run a task and give its exit status."""
    out = _checked_place(task, options)
    config = task.config(**{f.name: getattr(options, f.name) for f in fields(task.config)})
    arguments: dict[str, Any] = {"config": config}
    device = getattr(options, "device", None)
    if task.takes_run:
        from tessella.training.run import Run

        arguments["run"] = Run(options.run, device)
    if task.takes_device:
        arguments["device"] = device
    if task.takes_run or task.takes_device:
        _say_device(device, json=options.json)
    with progress_bar(quiet=options.quiet or options.json):
        result = task.function(**arguments)
    written = [] if out is None else _write(task, result, out)
    if options.json:
        print(json_text(_worded(result.to_json()), indent=2))
    else:
        from tessella.pages.terminal import print_page

        print_page(result.page())
        say(*(f"wrote {path}" for path in written))
    return result.status


def _worded(value: Any) -> Any:
    """A record with the options that its texts name worded as flags."""
    if isinstance(value, Mapping):
        return {key: _worded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(one) for one in value]
    return on_command_line(value) if isinstance(value, str) else value


def device_text(asked: str | None) -> str:
    """The device in words, and why it is this one.

    Raises:
        SpecError: if there is none of that name.
    """
    from tessella.core.device import describe_device, device_reason, resolve_device

    why = device_reason(asked)
    return on_command_line(describe_device(resolve_device(asked)) + (f", {why}" if why else ""))


def _say_device(asked: str | None, *, json: bool) -> None:
    """Say in one line which device was chosen and why; nothing if it was asked for by name."""
    from tessella.core.device import device_reason, resolve_device

    resolve_device(asked)
    if device_reason(asked) is not None:
        print(f"device   {device_text(asked)}", file=sys.stderr if json else sys.stdout, flush=True)


def _checked_place(task: Task, options: Any) -> Path | None:
    """Where the result goes, found fit to be written before anything long is begun.

    Raises:
        DataError: if it has another ending, or is a folder where a file goes or the other way round.
    """
    out = options.out if "out" not in {f.name for f in fields(task.config)} else None
    if out is None:
        return None
    if out == task.out and out.startswith("RUN/"):
        out = os.path.join(options.run, out.removeprefix("RUN/"))
    endings = task.endings or (Path(task.out or ".html").suffix,)
    if any(endings) and not ("" in endings and (os.path.isdir(out) or not Path(out).suffix)):
        check_file(out, *filter(None, endings))
    elif os.path.exists(out) and not os.path.isdir(out):
        raise DataError(f"{out} is a file: give a folder to write into", code="is-a-file")
    return Path(out)


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


def _write(task: Task, result: Result, out: Path) -> list[Path]:
    if out.suffix.lower() != ".html":
        result.save(out)
        if not (out.is_dir() and task.page):
            return [out]
    from tessella.pages.html import write_html

    page = out if out.suffix.lower() == ".html" else out / task.page
    write_html(page, result.page())
    return [out]


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[None]:
    """Show the progress of what is done: as a bar on a terminal, else in lines, at every tenth."""
    if quiet or sys.stderr is None:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(reporting(_bar(stack) if sys.stderr.isatty() else _lines()))
        yield


def _bar(stack: ExitStack) -> Report:
    """Make a bar that is gone when the stack is closed."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn
    from rich.progress import Progress as Bar

    parts = (BarColumn(12), TaskProgressColumn(), "{task.fields[left]}", "{task.fields[detail]}")
    bar = Bar("{task.description}", *parts, console=Console(stderr=True), transient=True)
    line = bar.add_task("", start=False, detail="", left="")
    stack.callback(bar.stop)
    started = time.monotonic()

    def show(progress: Progress) -> None:
        bar.start()
        bar.start_task(line)
        bar.update(
            line,
            description=progress.phase,
            completed=progress.done,
            total=progress.total,
            detail=progress.detail,
            left=_time_left(progress, time.monotonic() - started),
        )

    return show


PATIENCE = 10.0


def _lines() -> Report:
    """Print a line for each tenth of what has details, and of any other phase that has lasted `PATIENCE` seconds."""
    shown, started, phase = -1, time.monotonic(), ""

    def show(progress: Progress) -> None:
        nonlocal shown, started, phase
        if progress.phase != phase:
            shown, started, phase = -1, time.monotonic(), progress.phase
        done = progress.done / progress.total if progress.total else 0.0
        if (progress.detail or time.monotonic() - started > PATIENCE) and int(10 * done) > shown:
            shown = int(10 * done)
            left = _time_left(progress, time.monotonic() - started)
            parts = (f"{progress.phase} {100 * done:.0f} %", progress.detail, left)
            print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)

    return show


def _time_left(progress: Progress, seconds: float) -> str:
    """The time left: of the budget, or else estimated from the seconds that were used; empty if there is no telling."""
    left = progress.left
    if left is None and progress.total and progress.done:
        left = seconds * (progress.total - progress.done) / progress.done
    return "" if left is None else f"{int(left // 60)}:{int(left % 60):02d} left"


def say(*lines: str) -> None:
    """Print lines in which names from outside may stand: what a terminal would obey is escaped."""
    print("\n".join(escaped(on_command_line(line)) for line in lines), flush=True)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a word of a command line that is printed."""
    return shlex.quote(str(path))
