"""Task `inference-gap`: estimates log p(x), and splits the gap to the bound into approximation and amortisation gap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessella.core.schema import bits_per_dim
from tessella.evaluation.results import Estimate, GapConfig, GapEvaluation
from tessella.foundation.blocks import Block, Chart, Charts, Heading, Page, Series, Table, Text, joined
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from tessella.training.run import Run

FAMILIES = {
    "gaussian": "diagonal Gaussians",
    "flow": "the model's flow with parameters for each example",
    "dequantisation": "the dequantisation u",
}


@dataclass(frozen=True)
class GapResult(Result):
    """The inference gap and its parts."""

    gap: GapEvaluation

    def to_json(self) -> Mapping[str, Any]:
        return self.gap.to_json()

    def page(self) -> Page:
        g = self.gap
        title = f"{g.model} on {g.examples:,} examples of {g.data}, split {g.split}"
        return Page(title, joined(gap_chart(g), gap_table(g, title), gap_notes(g)))


@task("inference-gap", summary="estimate log p(x) by AIS and split the inference gap", group="train and measure")
def inference_gap(run: Run, config: GapConfig) -> GapResult:
    """Measure the inference gap of a run's model.

    With the run's own data and prior, the result is stored in the run.
    """
    from tessella.evaluation.gap import measure_gap
    from tessella.training.run import GAP

    model = run.model(config.prior)
    data = run.data(config.data, model)
    found = measure_gap(model, data.split(config.split), config, data=data.spec)
    if config.data is None and config.prior is None:
        run.results.save(GAP, found, seed=config.seed)
    return GapResult(found)


def gap_section(g: GapEvaluation) -> tuple[Block, ...]:
    """Build the section of a run's page on its inference gap."""
    lead = (
        f"On {g.examples:,} examples of the {g.split} split. The bound is never below -log p(x). The difference is "
        "the loss from approximate inference; it says nothing about the quality of p(x) itself."
    )
    return joined(Heading("Inference gap"), Text(lead), gap_notes(g), gap_chart(g), gap_table(g))


def gap_notes(g: GapEvaluation) -> list[Block]:
    """Return the notes on the measurement, with a warning if annealing has not converged."""
    return [Text(note) if g.converged else Text(note, "warning", "Warning:") for note in g.notes]


def gap_table(g: GapEvaluation, title: str = "") -> Table:
    """Tabulate the parts with their standard errors, in the order in which they add up."""
    method = {
        "exact": f"-log p(x): {bits_per_dim(g.exact.nats, g.dims):.4f} bits/dim, exactly",
        "importance sampling": f"-log p(x), from above: importance sampling with {g.chains:,} samples",
        "annealed importance sampling": f"-log p(x), on average from above: {g.chains} chains of {g.steps:,} steps",
    }[g.method]
    rows: list[tuple[str, Estimate | None, str]] = [
        ("-log p(x)", g.exact, method),
        ("bound", g.bound, "rate + distortion, as trained"),
    ]
    if g.family != "dequantisation":
        rows.append(("bound, own q", g.own, f"q optimised for each example, of {FAMILIES[g.family]}"))
    width = "" if g.converged else "too wide, so the parts are unreliable"
    rows += [
        ("bound, own flow", g.flow, "q optimised for each example, with its own flow"),
        ("approximation gap", g.approximation, "loss from the family of q, with the best q for each example"),
        ("amortisation gap", g.amortisation, "loss from the encoder, which finds q in one pass"),
        ("total gap", g.total, "bound minus -log p(x)"),
        ("approximation, flow", g.approximation_flow, "approximation gap with a flow for each example"),
        (
            "bracket",
            g.bracket,
            f"upper minus lower estimate on simulated examples; {width or 'limits the error of annealing'}",
        ),
    ]
    shown = [(name, estimate_text(e), meaning) for name, e, meaning in rows if e is not None]
    return Table(("what", "nats", "what it means"), shown, title=title)


def gap_chart(g: GapEvaluation) -> Charts | None:
    """Chart the total gap as one bar of its parts; None if it is zero."""
    parts = {"approximation": g.approximation, "amortisation": g.amortisation}
    sizes = [max(e.nats, 0.0) for e in parts.values()]
    if not 1e-3 < sum(sizes) < math.inf:
        return None
    names = [f"{name} {estimate_text(e)} nats" for name, e in parts.items()]
    words = f"The gap of {estimate_text(g.total)} nats: the part of q's family, and the part of the encoder."
    title = f"a gap of {estimate_text(g.total)} nats in its parts"
    return Charts([Chart(title, [Series(names, sizes)], kind="stack", wide=True)], words)


def estimate_text(e: Estimate) -> str:
    """Format an estimate with its standard error."""
    return f"{e.nats:.2f} ± {e.error:.2f}"
