"""What a file may unpack to: judged by what its header promises, before anything of that size is read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from tessella.foundation.errors import DataError

SUSPICIOUS_RATIO, SUSPICIOUS_BYTES = 300, 64 << 20
SHARE_OF_MEMORY = 3
CHUNK = 1 << 20
UNKNOWN_MEMORY = 8 << 30
GZIP = b"\x1f\x8b"


def memory() -> int:
    """Return the bytes of memory this process may use: of the machine, its container, its own limit."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text("ascii")))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    try:
        import resource
    except ImportError:  # Windows
        return min(found, default=UNKNOWN_MEMORY)
    found += [soft for soft in (resource.getrlimit(resource.RLIMIT_AS)[0],) if soft != resource.RLIM_INFINITY]
    return min((n for n in found if n > 0), default=UNKNOWN_MEMORY)


def check_size(where: str, size: int, packed: int | None = None, remedy: str = "unpack it first") -> None:
    """Refuse what unpacks to more than is plausible or than fits in memory.

    Args:
        where: what to call it.
        size: bytes that it promises.
        packed: bytes that it takes as it lies in its file; None if it is not compressed.
        remedy: what to do if so much is meant.

    Raises:
        DataError: naming both sizes.
    """
    if packed is not None and size > max(SUSPICIOUS_BYTES, SUSPICIOUS_RATIO * packed):
        raise DataError(
            f"{where} would unpack from {human(packed)} to {human(size)}: if that is meant, {remedy}",
            code="unpacks-to-too-much",
        )
    if size > memory() // SHARE_OF_MEMORY:
        raise DataError(
            f"{where} takes {human(size)}, which does not fit: there are {human(memory())} of memory; divide it",
            code="too-large",
        )


def is_gzipped(path: str) -> bool:
    """Return whether a file starts as gzip files do, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def content(path: str) -> bytes:
    """Read a file, gzipped or not, and no more of it than fits.

    Raises:
        DataError: as `check_size`.
        OSError, EOFError, zlib.error: if it cannot be read.
    """
    packed = os.path.getsize(path)
    if not is_gzipped(path):
        check_size(path, packed)
        return Path(path).read_bytes()
    done = bytearray()
    with gzip.open(path) as file:
        while piece := file.read(CHUNK):
            done += piece
            check_size(path, len(done), packed)
    return bytes(done)


def human(size: int) -> str:
    """Return a number of bytes as it is read best: `468 kB`, `3.0 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
