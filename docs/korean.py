"""Says which Korean pages are older than their English ones; `--fresh` marks all of them as up to date."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
_FRONT = re.compile(r"\A---\nenglish: (\S+)\nhash: (\w+)\n---\n")


def stale() -> list[str]:
    """Name the Korean pages whose English page is another than the one that they were translated from."""
    return [page.name for page, english, known in _pages() if known != _hash(english)]


def _pages() -> list[tuple[Path, Path, str]]:
    found = []
    for page in sorted((DOCS / "ko").glob("*.md")):
        front = _FRONT.match(page.read_text("utf-8"))
        if front is None:
            raise ValueError(f"{page} does not say which English page it is of, and that page's hash")
        found.append((page, DOCS / front[1], front[2]))
    return found


def _hash(page: Path) -> str:
    return hashlib.sha256(page.read_bytes()).hexdigest()[:12]


if __name__ == "__main__":
    if "--fresh" in sys.argv:
        for page, english, known in _pages():
            page.write_text(page.read_text("utf-8").replace(f"hash: {known}", f"hash: {_hash(english)}", 1), "utf-8")
    print("\n".join(stale()) or "no page is stale")
