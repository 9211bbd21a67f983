"""The page of the claims: what was predicted, what was measured, what held."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tessella
from tessella.data import Data
from tessella.data.sources import BUILT_IN
from tessella.pages import blocks
from tessella_experiments import Claim, Result
from tessella_experiments.charts import chart

VERSION = 1
VERDICTS = ("held", "failed", "undecided", "not applicable")
Record = dict[str, Any]


def record(
    data: Data,
    claims: Iterable[Claim],
    results: Mapping[int, Result],
    *,
    seeds: int,
    minutes: float,
    seconds: float,
    processor_seconds: float,
) -> Record:
    """Everything that was found, as plain data without infinities; the page is written from it."""
    return _finite(
        {
            "version": VERSION,
            "tessella": tessella.__version__,
            "data": data.spec if data.spec in BUILT_IN else Path(data.spec).name,
            "schema": asdict(data.schema),
            "examples": {name: len(split) for name, split in data.splits.items()},
            "notes": list(data.notes),
            "seeds": seeds,
            "minutes": minutes,
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "threads": torch.get_num_threads(),
            "claims": [
                {
                    "number": c.number,
                    "title": c.title,
                    "hypothesis": c.hypothesis,
                    "method": c.method,
                    **results[c.number].to_json(),
                }
                for c in claims
            ],
        }
    )


def counted(found: Record) -> str:
    """How many claims came to which verdict, in words."""
    counts = {verdict: sum(c["verdict"] == verdict for c in found["claims"]) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def write(path: Path, found: Record) -> None:
    """Write the page."""
    claims = found["claims"]
    counts = {verdict: sum(c["verdict"] == verdict for c in claims) for verdict in VERDICTS}
    meanings = {
        "held": "what was predicted is there, beyond chance",
        "failed": "what was predicted is not there on this data",
        "undecided": "too noisy to say: give more --minutes or --seeds",
        "not applicable": "cannot be tested on this data",
    }
    cards = [(f"{counts[v]} {v}", meanings[v]) for v in VERDICTS if counts[v]]
    name = str(found["data"])
    sizes = ", ".join(f"{count:,} {split}" for split, count in found["examples"].items())
    lead = (
        f"{len(claims)} claims of the field, each as an experiment on {name} ({sizes}). Every effect is measured with "
        f"{found['seeds']} seeds and judged against its standard error; thresholds were fixed beforehand."
    )
    body = [
        f"<h1>Claims, tested on {html.escape(name)}</h1>",
        f'<p class="lead">{html.escape(lead)}</p>',
        *(f'<p class="soft">{html.escape(note)}</p>' for note in found["notes"]),
        blocks.cards(cards),
        _summary(claims),
        *(part for c in claims for part in _claim(c)),
        f'<p class="soft">{found["seconds"] / 60:.1f} min, {found["processor_seconds"] / 60:.1f} of processor time, '
        f"on {found['threads']} threads.</p>",
    ]
    blocks.write_page(path, f"Claims, tested on {name}", body)


def _summary(claims: list[Record]) -> str:
    rows = "".join(
        f'<tr><td class=v>{c["number"]}</td><td><a href="#claim-{c["number"]}">{html.escape(c["title"])}</a></td>'
        f"<td>{_verdict(c['verdict'])}</td><td class=m>{html.escape(c['sentence'])}</td></tr>"
        for c in claims
    )
    return f"<table><tr><th></th><th>claim</th><th>verdict</th><th>what was found</th></tr>{rows}</table>"


def _verdict(verdict: str) -> str:
    colour = {"held": "var(--accent)", "failed": "var(--second)"}.get(verdict, "var(--soft)")
    return f'<b style="color: {colour}; white-space: nowrap">{html.escape(verdict)}</b>'


def _claim(c: Record) -> list[str]:
    parts = [
        f'<h2 id="claim-{c["number"]}">{c["number"]}. {html.escape(c["title"])}: {_verdict(c["verdict"])}</h2>',
        f"<p><b>Hypothesis.</b> {html.escape(c['hypothesis'])}</p>",
        f'<p class="soft"><b>Measured by</b> {html.escape(c["method"])}</p>',
        f"<p>{html.escape(c['sentence'][:1].upper() + c['sentence'][1:])}.</p>",
    ]
    if c["effects"]:
        rows = "".join(
            f"<tr><td>{html.escape(t['what'])}</td><td class=v>{number(t['effect'], t['error'])} "
            f"{html.escape(t['unit'])}</td><td class=m>{html.escape(predicted(t))}</td>"
            f"<td>{_verdict(t['verdict'])}</td></tr>"
            for t in c["effects"]
        )
        head = "<tr><th>effect</th><th>measured</th><th>predicted</th><th></th></tr>"
        parts.append(f"<table>{head}{rows}</table>")
    charts = [chart(p) for p in c["plots"] if p["kind"] in ("lines", "bars")]
    if charts:
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    for p in c["plots"]:
        if p["kind"] == "pictures":
            rows = "".join(
                f'<span>{html.escape(label)}</span><img class="pixels" src="{uri}" alt="{html.escape(label)}">'
                for label, uri in p["rows"]
            )
            caption = f"<figcaption>{html.escape(p['caption'])}</figcaption>"
            parts.append(f'<figure><div class="rows">{rows}</div>{caption}</figure>')
    if c["trained"]:
        of = "; ".join(f"{name}: {steps:,.0f}" for name, steps in c["trained"].items())
        parts.append(f'<p class="soft">Updates of {html.escape(of)}.</p>')
    if c["measures"]:
        rows = "".join(
            f"<tr><td>{html.escape(m['name'])}</td><td class=v>{number(m['value'], m['error'])}</td>"
            f"<td class=m>{html.escape(m['unit'])}</td></tr>"
            for m in c["measures"]
        )
        parts.append(f"<details><summary>All that was measured</summary><table>{rows}</table></details>")
    return parts


def number(value: float | None, error: float | None = None) -> str:
    """`12.3 +- 0.4`, with as many digits as the error leaves; three without one."""
    if value is None:
        return "not finite"
    if not error:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    power = math.floor(math.log10(error))
    digits = max(0, -power + (error < 2 * 10**power))  # 12.35 ± 0.14, 12.3 ± 0.4
    if digits > 4 or abs(value) >= 1e6:
        return f"{value:.3g} ± {error:.1g}"
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def predicted(effect_test: Record) -> str:
    """The threshold in words."""
    least, most = effect_test["least"], effect_test["most"]
    if least is not None and most is not None:
        return f"between {least:g} and {most:g}"
    return f"above {least:g}" if most is None else f"below {most:g}"


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON does not know: None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
