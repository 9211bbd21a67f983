"""One writer a run: whoever trains into it holds it, and the next is told who that is, and since when.

Held by a lock of the operating system, which ends with its process however that ends; beside it lies who holds it.

Imports beside it: checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from tessella.data.raw import shown
from tessella.foundation.errors import RunError
from tessella.foundation.files import write_atomic
from tessella.training.checkpoint import HOLDER, LOCK

LONGEST = 60
"""Characters of a command line that are told of."""
_held: set[Path] = set()
"""What this process holds."""


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's folder until the block ends; a folder that is made for it and stays empty goes again.

    A process that holds it already goes on holding it.

    Raises:
        RunError: if another process holds it, naming that, or the folder cannot be written.
    """
    place = Path(os.path.abspath(run))
    if place in _held:
        yield
        return
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    lock = FileLock(place / LOCK, timeout=0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(f"{run} is in use by {_holder(place)}; wait for it, or choose another folder") from None
    except OSError as error:
        where = error.filename or place
        raise RunError(f"{shown(str(where))} cannot be written ({error.strerror}): choose another folder") from error
    _held.add(place)
    try:
        write_atomic(place / HOLDER, lambda draft: draft.write_text(json.dumps(_self())))
        yield
    finally:
        _held.discard(place)
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (place / name).unlink()
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _self() -> dict[str, str | int]:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command if len(command) <= LONGEST else f"{command[: LONGEST - 4]} ...",
    }


def _holder(run: Path) -> str:
    """Who holds a run, in words, as far as that is known."""
    try:
        with open(os.open(run / HOLDER, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), encoding="utf-8") as file:
            who = json.loads(file.read(4096))
        since = datetime.fromisoformat(who["since"]).astimezone()
        day = "" if since.date() == datetime.now().astimezone().date() else f"{since:%Y-%m-%d} "
        process, host, command = int(who["process"]), shown(str(who["host"])), shown(str(who["command"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {process} on {host} since {day}{since:%H:%M} ({command})"
