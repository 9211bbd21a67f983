"""Draws the rooms of the package as `images/layers.svg`, from the rows that `tests/test_architecture.py` holds."""

from __future__ import annotations

import ast
import html
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("images") / "layers.svg"
WIDTH, HEIGHT, GAP = 760, 30, 6


def rows() -> list[tuple[str, ...]]:
    """Read the rows from the ground up."""
    for node in ast.parse((ROOT / "tests" / "test_architecture.py").read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "LAYERS":
            assert node.value is not None
            return [row for row in ast.literal_eval(node.value) if row != ("__main__",)]
    raise ValueError("tests/test_architecture.py has no LAYERS")


def says(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    place = ROOT / "src" / "tessella" / room
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def svg() -> str:
    """Draw one bar a row, the ground at the bottom; a room may import from the bars below its own."""
    found = list(reversed(rows()))
    tall = len(found) * (HEIGHT + GAP) + GAP
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif">']
    for number, row in enumerate(found):
        each = (WIDTH - GAP * (len(row) + 1)) / len(row)
        for place, room in enumerate(row):
            x, y = GAP + place * (each + GAP), GAP + number * (HEIGHT + GAP)
            words, most = says(room), int(each / 5.6) - 2 * len(room) // 2 - 4
            words = words if len(words) <= most else words[: max(0, most - 1)].rsplit(" ", 1)[0] + " ..."
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{each:.0f}" height="{HEIGHT}" rx="4" fill="#e9eef2" stroke="#8aa"/>'
                f'<text x="{x + 10:.0f}" y="{y + 20}" font-size="13" fill="#123"><tspan font-weight="bold">'
                f'{room}</tspan><tspan dx="10" font-size="11" fill="#456">{html.escape(words)}</tspan></text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(svg(), "utf-8")
