"""Limits on the unpacked size of files, checked by their headers before reading."""

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
    """Return the memory that this process may use, in bytes: the least of machine, container and process limit."""
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
    """Check that the unpacked size is plausible and fits in memory.

    Args:
        where: name for messages.
        size: unpacked size in bytes, by the header.
        packed: compressed size in bytes; None if it is not compressed.
        remedy: what to do if the size is intended.

    Raises:
        DataError: if it is not plausible or does not fit.
    """
    if packed is not None and size > max(SUSPICIOUS_BYTES, SUSPICIOUS_RATIO * packed):
        raise DataError(
            f"{where} would unpack from {human(packed)} to {human(size)}: if this is intended, {remedy}",
            code="unpacks-to-too-much",
        )
    if size > memory() // SHARE_OF_MEMORY:
        raise DataError(
            f"{where} needs {human(size)}, too much for {human(memory())} of memory: split it into smaller files",
            code="too-large",
        )


def is_gzipped(path: str) -> bool:
    """Return whether a file starts with the gzip signature, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def content(path: str) -> bytes:
    """Read a file, gzipped or not, within the limits of `check_size`.

    Raises:
        DataError: if it exceeds these limits.
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
    """Format a number of bytes with a unit: `468 kB`, `3 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
