"""Writes the catalogue's tables into `docs/parts.md`: `python docs/catalogue.py`, or `make docs`."""

from __future__ import annotations

from pathlib import Path

from tessella.foundation.registry import Entry, PartKind, entries

PAGE = Path(__file__).with_name("parts.md")
BEGIN, END = "<!-- catalogue: written by `make docs` -->", "<!-- end of the catalogue -->"

SECTIONS: tuple[tuple[PartKind, str, str], ...] = (
    ("model", "Models", "model"),
    ("likelihood", "Likelihoods", "`--likelihood`"),
    ("bottleneck", "Bottlenecks", "bottleneck"),
    ("prior", "Priors", "prior"),
    ("quantizer", "Quantisers", "`--quantizer`"),
    ("code-prior", "Priors over codes", "`--kind`"),
)


def tables() -> str:
    """The tables of all parts, as Markdown."""
    return "\n\n".join(_table(kind, title, head) for kind, title, head in SECTIONS)


def written(text: str) -> str:
    """The page with its tables written anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _table(kind: PartKind, title: str, head: str) -> str:
    extra = kind == "likelihood"
    rows = [[head, "stored values", "what it is"] if extra else [head, "what it is"]]
    rows.append(["---"] * len(rows[0]))
    rows += [[_named(e), ", ".join(e.values), e.summary] if extra else [_named(e), e.summary] for e in entries(kind)]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows)


def _named(entry: Entry) -> str:
    pages = {"model": f"models/{entry.name}.md", "likelihood": f"likelihoods.md#{entry.name}"}
    return f"[`{entry.name}`]({pages[entry.kind]})" if entry.kind in pages else f"`{entry.name}`"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
