"""Output folders with one file per example: names are checked first, then all files appear or none."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import final

from tessella.foundation.errors import DataError, RunError, option
from tessella.foundation.files import place
from tessella.foundation.notes import note
from tessella.foundation.text import shown

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
"""Names that Windows reserves for devices, with any ending."""
CHECKED = 100_000
"""Number of names that are checked before the first file is written; the others are checked at the end."""


def target(folder: str, name: str, ending: str = ".png") -> Path:
    """Return the path of an example's file inside the folder.

    Raises:
        DataError: if the path leads out of the folder, or passes through a link.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
        raise DataError(
            f"the example name {shown(name)!r} leads out of the folder {folder}: rename the example", code="leads-out"
        )
    try:
        return place(folder, _allowed(name + ending) if os.name == "nt" else name + ending)
    except RunError as error:
        raise DataError(error.message, code=error.code) from error


def check_folder(folder: str) -> None:
    """Check that files can be written into a folder.

    Raises:
        DataError: if it is a file.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise DataError(f"{folder} is a file: give a folder to write into", code="no-folder")


@final
class Outputs:
    """Writer of one file per name into a folder. The files are moved there when all are complete, or not at all.

    Args:
        folder: folder, created if it does not exist.
        names: paths in the folder with `/`, without `ending`.
        others: further paths in the folder, with their endings.
        overwrite: replace existing files.

    Raises:
        DataError: if a name leads out of the folder, is too long, equals another one on this system, or exists.
    """

    def __init__(
        self, folder: str, names: Sequence[str], ending: str, others: Sequence[str] = (), *, overwrite: bool = False
    ) -> None:
        check_folder(folder)
        self.folder, self._overwrite = Path(folder), overwrite
        self._made: list[Path] = []
        self._written: list[tuple[Path, Path]] = []
        some = [*(name + ending for name in names[:CHECKED]), *others]
        paths = [target(folder, name, "") for name in some]
        self._check_lengths(paths)
        if not overwrite:
            self._refuse([path for path in paths if os.path.lexists(path)])
        if os.name == "nt" and (changed := sum(_allowed(name) != name for name in some)):
            note(f"{changed} names that Windows does not allow were changed")
        self._paths = paths

    def __enter__(self) -> Outputs:
        try:
            self._make(self.folder)
            self._drafts = Path(tempfile.mkdtemp(prefix=".tessella-", dir=self.folder))
        except OSError as error:
            self._unmake()
            raise RunError(
                f"{self.folder} cannot be written: {error.strerror}; choose another folder", code="not-saved"
            ) from error
        try:
            self._check_alike()
        except DataError as error:
            self.__exit__(DataError, error, None)
            raise
        return self

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Write the file with a given name (with ending) by calling `save` with its draft.

        Raises:
            RunError: if it cannot be written.
        """
        path, draft = target(str(self.folder), name, ""), self._drafts / str(len(self._written))
        try:
            save(draft)
        except OSError as error:
            raise _unsaved(path, error) from error
        self._written.append((draft, path))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._put_in_place()
        finally:
            shutil.rmtree(self._drafts, ignore_errors=True)
            self._unmake()

    def _put_in_place(self) -> None:
        if not self._overwrite:
            self._refuse([path for _, path in self._written if os.path.lexists(path)])
        placed: list[Path] = []
        try:
            for draft, path in self._written:
                new = not os.path.lexists(path)
                try:
                    self._make(path.parent)
                    if not new and not self._overwrite:
                        self._refuse([path])
                    os.replace(draft, path)
                except OSError as error:
                    raise _unsaved(path, error) from error
                placed += [path] if new else []
        except BaseException:
            for path in placed:
                with suppress(OSError):
                    path.unlink()
            raise

    def _make(self, folder: Path) -> None:
        """Make a folder, and remember all folders that were created."""
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def _unmake(self) -> None:
        """Remove the created folders that are empty."""
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()

    def _check_lengths(self, paths: Sequence[Path]) -> None:
        there = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        most = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        for path in paths:
            if max(len(os.fsencode(part)) for part in path.parts) > most:
                raise DataError(
                    f"the name {shown(path.name[:40])}... is longer than {most} bytes, the limit of the file system: "
                    "shorten it",
                    code="long-name",
                )

    def _check_alike(self) -> None:
        """Check that all names are distinct in the folder: some systems ignore case or accents."""
        alike = (self.folder / self._drafts.name.swapcase()).exists()
        seen: dict[str, Path] = {}
        for path in self._paths:
            key = unicodedata.normalize("NFC", str(path)).casefold() if alike else str(path)
            if key in seen:
                raise DataError(
                    f"{seen[key]} and {path} are the same name in {self.folder}: choose a folder on "
                    "another file system",
                    code="same-name",
                )
            seen[key] = path

    def _refuse(self, there: Sequence[Path]) -> None:
        """Refuse to replace existing files."""
        if there:
            more = f" and {len(there) - 1:,} others" if len(there) > 1 else ""
            raise DataError(
                f"{there[0]}{more} already exist: choose another folder with {option('out')}, or give "
                f"{option('overwrite')}",
                code="exists",
            )


def _allowed(name: str) -> str:
    """Change a path to one that Windows allows: without reserved names, characters and endings."""
    parts = []
    for part in name.split("/"):
        part = re.sub(r'[<>:"\\|?*\x00-\x1f]', "_", part)
        if part[-1:] in (".", " ") and part.strip("."):
            part = f"{part[:-1]}_"
        parts.append(f"_{part}" if part.partition(".")[0].rstrip().lower() in RESERVED else part)
    return "/".join(parts)


def _unsaved(path: Path, error: OSError) -> RunError:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return RunError(f"{path} cannot be saved: {reason}; nothing was written", code="not-saved")
