"""Renders a page as text on a terminal of any width: text and tables, without images, players and charts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text as RichText

from tessella.foundation.blocks import Block, Calls, Cards, Cell, Clips, Code, Heading, Page, Table, Text
from tessella.foundation.errors import on_command_line
from tessella.foundation.text import shown
from tessella.pages.command_lines import command_line

STYLES = {"": "", "best": "bold", "bad": "bold", "soft": "dim"}
FOLDED = 12
"""Least width of a text column with longer words, in characters."""


def print_page(page: Page, file: IO[str] | None = None) -> None:
    """Print a page as text, with untrusted text escaped.

    Args:
        file: output file; None for standard output.
    """
    file = file or sys.stdout
    assert file is not None
    console = Console(highlight=False, file=file)
    with console.capture() as printed:  # or Rich would end the process where nobody reads on
        for block in page.blocks:
            _print_block(console, block)
    file.write(printed.get())
    file.flush()


def _print_block(console: Console, block: Block) -> None:
    if isinstance(block, Heading):
        console.print(RichText(_worded(block.text), style="bold"), overflow="fold")
    elif isinstance(block, Text):
        console.print(RichText(_worded(f"{block.strong} {block.text}".strip())), soft_wrap=True)
    elif isinstance(block, Cards):
        _print_table(console, Table(("", ""), block.items, figures=(0,)))
    elif isinstance(block, Table):
        _print_table(console, block)
    elif isinstance(block, Calls):
        console.print(RichText("\n".join(shown(command_line(call)) for call in block.calls)), soft_wrap=True)
    elif isinstance(block, Clips):
        heard = "1 sound" if len(block.clips) == 1 else f"{len(block.clips)} sounds"
        console.print(RichText(f"{heard} to play on the page, which --out NAME.html writes"), soft_wrap=True)
    elif isinstance(block, Code):
        console.print(RichText("\n".join(map(shown, block.text.split("\n")))), soft_wrap=True)


def _print_table(console: Console, table: Table) -> None:
    """Print a table, or a list if the console is too narrow for it. Numbers are never wrapped or cut."""
    heads = [_text(head) for head in table.heads]
    rows = [[_text(cell) for cell in row] for row in table.rows]
    if table.title:
        console.print(RichText(_worded(table.title), style="italic"), overflow="fold")
    if _least(heads, rows, table.figures) <= console.width:
        whole = any(head.plain for head in heads)
        printed = RichTable(box=box.SIMPLE_HEAD if whole else None, pad_edge=False, show_header=whole)
        for number, head in enumerate(heads):
            side, figure = ("right", True) if number in table.figures else ("left", False)
            printed.add_column(head, justify=side, no_wrap=figure, overflow="fold")
        for row in rows:
            printed.add_row(*row)
        console.print(printed)
        return
    names = [f"{head.plain}: " if number in table.figures and head.plain else "" for number, head in enumerate(heads)]
    for first, *rest in rows:
        below = [RichText(name) + one for name, one in zip(names[1:], rest, strict=True) if one.plain]
        first.stylize("bold")
        console.print(first, Padding(Group(*below), (0, 0, 0, 2), expand=False), overflow="fold")


def _least(heads: Sequence[RichText], rows: Sequence[Sequence[RichText]], figures: Sequence[int]) -> int:
    """Compute the least width of a table, in characters."""
    least = 0
    for number, head in enumerate(heads):
        words = [word for row in rows for word in row[number].plain.split()] + head.plain.split()
        whole = [row[number].plain for row in rows] if number in figures else []
        longest = max(map(len, [*whole, *words]), default=0)
        least += 2 + (longest if number in figures else min(longest, FOLDED))
    return least


def _text(cell: str | Cell) -> RichText:
    cell = Cell(cell) if isinstance(cell, str) else cell
    return RichText(_worded(cell.text), style=STYLES[cell.tone])


def _worded(text: str) -> str:
    """Replace marked options with flags, and escape control characters."""
    return shown(on_command_line(text))
