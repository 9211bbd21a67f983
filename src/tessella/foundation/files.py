"""Files written whole or not at all, and paths that no link leads out of their folder.

A run folder, or a folder that is written into, may hold links that a stranger has put there. So a draft is made in a
folder of its own with a name that nobody can know, a file that is a link is replaced and not written through, and what
lies below a run is reached through folders alone. The path of the run itself may be a link: it is the user's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from safetensors import SafetensorError

from tessella.foundation.errors import RunError

PREFIX, SUFFIX = ".tessella-", ".draft"
DRAFT = re.compile(rf"{re.escape(PREFIX)}\w{{8}}{re.escape(SUFFIX)}")
STALE = 24 * 3600.0
"""Seconds after which a draft is what a killed process left."""


def place(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Name a file below a folder, for writing.

    Raises:
        RunError: if the name leads out of the folder, or a folder on the way is a link.
    """
    root, parts = Path(folder), Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in str(name):
        raise RunError(f"{name!s} leads out of the folder {root}", code="leads-out")
    at = root
    for part in parts[:-1]:
        at = at / part
        if at.is_symlink():
            raise RunError(
                f"{at} is a link, and nothing is written or read through one: put a folder in its place", code="link"
            )
    return at / parts[-1]


def kept(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Name a file below a folder, for reading.

    Raises:
        RunError: as of `place`, or if the file is a link that leads out of the folder.
    """
    path = place(folder, name)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise RunError(f"{path} is a link that leads out of {Path(folder)}, so it is not read: put the file in its "
                       "place (cp -L copies what links lead to)", code="link")  # fmt: skip
    return path


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft, then put it at `path`; a reader sees the old file or the new one whole.

    Raises:
        RunError: if the disk is full, the folder cannot be written, or something that is no file stands there; what
            was there stays.
    """
    home: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise RunError(
                f"{path} cannot be saved: something that is no file stands there; choose another name", code="not-saved"
            )
        _sweep(path.parent)
        home = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent))
        draft = home / path.name
        created = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(created).st_mode)  # some writers close their files to others
        os.close(created)
        write(draft)
        draft.chmod(mode)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{path} cannot be saved: {reason}; what was saved before is untouched", code="not-saved"
        ) from error
    finally:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made if there is none.

    Raises:
        OSError: if it cannot be written, is a link, or is no file.
    """
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        if status.st_nlink == 1:
            file.write(text)
            return
    before = path.read_bytes()  # it has another name elsewhere, and what is there stays as it is
    write_atomic(path, lambda draft: draft.write_bytes(before + text.encode()))


@cache
def _sweep(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder long ago; once a process."""
    for entry in os.scandir(folder):
        own = DRAFT.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        if own and time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
            shutil.rmtree(entry.path, ignore_errors=True)
