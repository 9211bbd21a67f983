"""Atomic writing of files, and paths that cannot leave their folder through links.

A run or output folder may contain links placed by a stranger. So each draft is written in a new folder with a random
name, a file that is a link is replaced instead of followed, and links to folders below a run are refused. The path of
the run itself may be a link, because the user chose it.
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
"""Age in seconds after which a draft counts as left by a killed process."""


def place(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Return the path of a file below a folder, for writing.

    Raises:
        RunError: if the path leads out of the folder, or passes through a link.
    """
    root, parts = Path(folder), Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in str(name):
        raise RunError(f"{name!s} leads out of the folder {root}: give a path inside it", code="leads-out")
    at = root
    for part in parts[:-1]:
        at = at / part
        if at.is_symlink():
            raise RunError(
                f"{at} is a link, and links to folders are not followed here: replace it with a folder", code="link"
            )
    return at / parts[-1]


def kept(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Return the path of a file below a folder, for reading.

    Raises:
        RunError: if the path or the target of a link leads out of the folder, or a folder in the path is a link.
    """
    path = place(folder, name)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise RunError(f"{path} is a link that leads out of {Path(folder)}, so it is not read: replace it with "
                       "the file itself (cp -L copies the targets of links)", code="link")  # fmt: skip
    return path


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a draft, which then replaces `path`.

    Raises:
        RunError: if the disk is full, the folder cannot be written, or `path` is not a file; an existing file is kept.
    """
    home: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise RunError(
                f"{path} cannot be saved: it exists and is not a file; choose another name", code="not-saved"
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
        raise RunError(f"{path} cannot be saved: {reason}; the previous file is unchanged", code="not-saved") from error
    finally:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)


def append(path: Path, text: str) -> None:
    """Append text to a file, which is created if it does not exist.

    Raises:
        OSError: if it cannot be written, is a link, or is not a file.
    """
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if status.st_nlink == 1:
            file.write(text)
            return
    before = path.read_bytes()  # a hard link: write a new file, so that the other name keeps its content
    write_atomic(path, lambda draft: draft.write_bytes(before + text.encode()))


@cache
def _sweep(folder: Path) -> None:
    """Remove old drafts of killed processes from a folder, once per process."""
    for entry in os.scandir(folder):
        own = DRAFT.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        if own and time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
            shutil.rmtree(entry.path, ignore_errors=True)
