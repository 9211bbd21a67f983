"""The inference gap in words, and as a part of a run's page."""

from __future__ import annotations

import html
import math
from pathlib import Path

from tessella.core.schema import bits_per_dim
from tessella.evaluation.results import Estimate, GapEvaluation
from tessella.pages import blocks
from tessella.pages.metric_text import Number
from tessella.training.results_store import GAP, ResultsStore

FAMILIES = {
    "gaussian": "Gaussians of independent numbers",
    "flow": "the model's flow, all numbers of it its own",
    "dequantisation": "the dequantisation u",
}


def rows(g: GapEvaluation) -> list[Number]:
    """The figures with their standard errors, in the order in which they add up."""
    by = {
        "exact": f"-log p(x): {bits_per_dim(g.exact.nats, g.dims):.4f} bits/dim, exactly",
        "importance sampling": f"-log p(x), from above: importance sampling with {g.chains:,} draws",
        "annealed importance sampling": f"-log p(x), on average from above: {g.chains} chains of {g.steps:,} steps",
    }[g.method]
    found = [
        Number("-log p(x)", _said(g.exact), by),
        Number("bound", _said(g.bound), "rate + distortion, as trained"),
    ]
    if g.family != "dequantisation":
        found.append(Number("bound, own q", _said(g.own), f"q optimised for each example, of {FAMILIES[g.family]}"))
    if g.flow is not None:
        found.append(Number("bound, own flow", _said(g.flow), "q optimised for each example, with a flow of its own"))
    found += [
        Number("approximation gap", _said(g.approximation), "what q's family cannot say, whatever the encoder"),
        Number("amortisation gap", _said(g.amortisation), "what the encoder loses by finding q in one pass"),
        Number("total gap", _said(g.total), "by how much the bound misses -log p(x)"),
    ]
    if g.approximation_flow is not None:
        found.append(Number("approximation, flow", _said(g.approximation_flow), "what would be left with own flows"))
    if g.bracket is not None:
        wide = "at most that much of it is annealing's" if g.converged else "too wide: do not trust the parts"
        found.append(Number("bracket", _said(g.bracket), f"upper less lower on simulated examples; {wide}"))
    return found


def section(run: Path) -> str:
    """The part of the run's page; empty if no gap was measured of the weights as they are."""
    g = ResultsStore(run).load(GAP, GapEvaluation)
    if g is None:
        return ""
    lead = (
        f"On {g.examples:,} examples of the {g.split} split. The bound is never below -log p(x); what lies between "
        "them is what inference loses, and tells nothing of how good p(x) itself is."
    )
    warned = "" if g.converged else f'<p class="warned"><b>Warning:</b> {html.escape(g.notes[0])}</p>'
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in g.notes) if g.converged else ""
    head = "<tr><th>what</th><th>nats</th><th>what it means</th></tr>"
    table = "".join(blocks.row(n.name, n.value, n.meaning) for n in rows(g))
    return (
        f"<h2>What inference loses</h2><p>{html.escape(lead)}</p>{warned}{notes}{_bars(g)}<table>{head}{table}</table>"
    )


def _bars(g: GapEvaluation) -> str:
    """The total gap as one bar of its parts, drawn to scale."""
    parts = [("approximation", g.approximation, "bar"), ("amortisation", g.amortisation, "idle")]
    shown = [(name, e, kind, max(e.nats, 0.0)) for name, e, kind in parts]
    whole = sum(size for *_, size in shown)
    if not 1e-3 < whole < math.inf:
        return ""
    pieces, at = [], 0.0
    for name, estimate, kind, size in shown:
        wide, middle = 840 * size / whole, 10 + at + 420 * size / whole
        pieces.append(f'<rect class="{kind}" x="{10 + at:.1f}" y="24" width="{max(wide, 1):.1f}" height="26"/>')
        anchor = "start" if middle < 120 else "end" if middle > 740 else "middle"
        where, text = min(max(middle, 10), 850), f"{name} {_said(estimate)} nats"
        below = 14 if kind == "bar" else 68
        pieces.append(f'<text x="{where:.1f}" y="{below}" text-anchor="{anchor}">{html.escape(text)}</text>')
        at += wide
    label = f"a gap of {_said(g.total)} nats in its parts"
    words = f"The gap of {_said(g.total)} nats: what the family of q costs, and what the encoder costs."
    svg = f'<svg viewBox="0 0 860 76" role="img" aria-label="{html.escape(label, quote=True)}">{"".join(pieces)}</svg>'
    return f"<figure>{svg}<figcaption>{html.escape(words)}</figcaption></figure>"


def _said(e: Estimate) -> str:
    return f"{e.nats:.2f} ± {e.error:.2f}"
