"""The command line: `tessella COMMAND ...`.

The overview is made here from a table, so that `tessella --help` is printed without loading PyTorch or the option
parser. The package `commands` defines the options and actions of each command.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tessella import __version__
from tessella.foundation.errors import TessellaError, on_command_line
from tessella.foundation.notes import listening
from tessella.foundation.text import shown

GROUPS = ("start here", "train and measure", "look", "codes", "use", "understand")
"""Groups of commands, in the order of the overview."""
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train and measure", "train a model; --resume --out RUN goes on"),
    "fit-prior": ("train and measure", "train a prior over the latents of a trained model"),
    "completion": ("start here", "print the script that lets bash, zsh or fish complete commands and options"),
}
"""Commands that are not tasks: their groups and summaries."""
FIRST = ("demo", "describe", "list", "train", "fit-prior", "evaluate", "report")
"""Commands listed first in their groups."""


def summaries() -> dict[str, tuple[str, str]]:
    """Return the group and summary of each command; tasks are found without importing them."""
    from tessella.foundation.registry import entries

    tasks = {entry.name: (str(entry.facts.get("group", "use")), entry.summary) for entry in entries("task")}
    known = {**tasks, **COMMANDS}
    return {name: known[name] for name in sorted(known, key=lambda name: (*FIRST, name).index(name))}


class UsageError(TessellaError):
    """Error: the command line is not valid."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status: 0, 2 for an error of the user, 130 if interrupted."""
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what an Apple GPU lacks runs on the processor
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # longer, waiting threads starve the others on a busy machine
    first, *rest = args if args is not None else sys.argv[1:] or ["--help"]
    _open_streams()
    try:
        with ExitStack() as stack:
            if not _is_main_process():
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.showwarning = _note
            stack.enter_context(listening(lambda message: _print_line(f"tessella: note: {on_command_line(message)}")))
            status = _dispatch(first, rest)
        sys.stdout.flush()
    except TessellaError as error:
        return _print_error(on_command_line(error.message))
    except BrokenPipeError:  # whoever was reading has gone
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _print_error(f"{where}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _print_error("there is not enough memory: give fewer or smaller examples, or use a smaller model")
    except KeyboardInterrupt:
        return _print_error("interrupted", 130)
    finally:
        _release(sys.stdout)
        _release(sys.stderr)
    return status


def _open_streams() -> None:
    """Prepare the standard streams: open missing ones, and escape characters that they cannot encode."""
    for name in ("stdin", "stdout", "stderr"):  # in this order, for a new file takes the number of a closed one
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _release(stream: TextIO) -> None:
    """Flush a stream. Redirect a broken one to the null device, so that Python exits without an error."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def overview() -> str:
    """Return the text of `tessella --help`."""
    columns = shutil.get_terminal_size((120, 24)).columns
    lines = ["tessella: learn the tiles that data is made of, and measure how well in bits", ""]
    lines += ["usage: tessella COMMAND ...    (tessella COMMAND --help lists its options)", ""]
    known = summaries()
    wide = max(map(len, known))
    for title in (*GROUPS, *sorted({group for group, _ in known.values()} - set(GROUPS))):
        lines.append(f"{title}:")
        for name, (group, summary) in known.items():
            lines += _entry(name, summary, wide, columns) if group == title else ()
        lines.append("")
    lines += textwrap.wrap(
        "SPEC is clothes, digits, sprites, tones, hf:NAME, a folder of pictures or sounds (sub-folders are classes), "
        "or a file: .npz, .npy, .csv, .parquet, idx, CIFAR .bin. RUN is the folder that training fills.",
        min(columns, 106),
    )
    return "\n".join(lines)


def _entry(command: str, summary: str, wide: int, columns: int) -> Iterator[str]:
    """Yield the lines of a command and its summary, beside it or, on a narrow terminal, below it."""
    room = columns - wide - 4
    if room < 24:
        yield f"  {command}"
        yield from textwrap.wrap(summary, max(columns, 20), initial_indent="      ", subsequent_indent="      ")
        return
    first, *more = textwrap.wrap(summary, room)
    yield f"  {command:{wide}}  {first}"
    yield from (f"{'':{wide + 4}}{line}" for line in more)


def _dispatch(first: str, rest: list[str]) -> int:
    if first in ("-h", "--help", "help"):
        print(overview())
        return 0
    if first == "--version":
        print(f"tessella {__version__}")
        return 0
    if first not in COMMANDS and first not in summaries():
        raise UsageError(f"there is no command {first!r}; there are: {', '.join(summaries())}")
    from tessella.commands import command

    if first == "completion":
        from tessella.commands.completion import answer

        if (text := answer(rest, list(summaries()), lambda *words: command(*words)[0])) is not None:
            print(text, end="\n" if text else "")
            return 0
    if first == "train" and rest in ([], ["-h"], ["--help"]):
        from tessella.commands.train import models_overview

        print(models_overview())
        return 0
    options, run = command(first, rest)
    if first == "train" and not rest[0].startswith("-"):  # the model: its options are the command's
        first, rest = f"{first} {rest[0]}", rest[1:]
    chosen = _parsed(options, first, rest)
    return 0 if chosen is None else run(chosen)


def _parsed(options: Any, name: str, args: list[str]) -> Any:
    """Parse the options of a command; return None if its help was requested.

    Raises:
        UsageError: if they are not valid, with tyro's message in one line.
    """
    import tyro
    from tyro.conf import DisallowNone, FlagCreatePairsOff, PositionalMetavarFromFieldName

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            plain = (FlagCreatePairsOff, DisallowNone, PositionalMetavarFromFieldName)
            chosen = tyro.cli(options, prog=f"tessella {name}", args=args, config=plain)
    except SystemExit as end:
        if not end.code:
            return None
        raise UsageError(f"{_tyro_error_text(said.getvalue())}; see tessella {name} --help") from None
    return chosen


def _tyro_error_text(text: str) -> str:
    """Extract the first message from tyro's framed output: the text below the title, up to a rule or gap."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        inside = line.strip("│ ")
        if inside.startswith(("╭", "╰")) or not inside.strip("─-"):
            blocks.append([])
        else:
            blocks[-1].append(inside)
    filled = [" ".join(block) for block in blocks if block]
    titled = text.startswith("╭")  # in the rule itself; otherwise the title is a block of its own
    message = next(iter(filled[0 if titled else 1 :]), "the command line cannot be understood").rstrip(".")
    return message[:1].lower() + message[1:]


def _print_error(message: str, status: int = 2) -> int:
    _print_line(f"tessella: {message}")
    return status


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error means too little memory. On the CPU, PyTorch says so only in its message."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _note(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    """Print a warning of this package as one line; ignore warnings of other packages."""
    if issubclass(category, UserWarning) and filename.startswith(os.path.dirname(__file__)):
        _print_line(f"tessella: note: {message}")


def _print_line(text: str) -> None:
    """Print one line on stderr, in the main process only."""
    if _is_main_process():
        with suppress(OSError, ValueError):
            print(shown(" ".join(text.split())), file=sys.stderr, flush=True)


def _is_main_process() -> bool:
    """Return whether this is the main process of those started by `torchrun` or `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
