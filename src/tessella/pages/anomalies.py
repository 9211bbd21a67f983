"""The page of what was found by `tessella detect`: examples by how ill they fit, with where they do not."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema, bits_per_dim
from tessella.evaluation.samples import CHUNK
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.models.base import Model
from tessella.pages import blocks
from tessella.tasks.detect import Calibration, Detector
from tessella.tasks.detect.detection import DetectionResult, Shown, joined
from tessella.tasks.detect.maps import Maps, maps
from tessella.tasks.detect.ranking import Ranking

HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])
"""Black to yellow by way of red, each step lighter than the one before."""
BRIGHTEST = 0.998
"""Share of the positions shown that the colours reach up to; the few above are as bright."""
TILE = 96
COLUMNS_SAID = 4


def write_anomalies(
    path: Path,
    run: str,
    detector: Detector,
    findings: DetectionResult,
    calibration: Calibration | None,
    rankings: dict[str, Ranking] | None,
) -> None:
    """Write the page, which stands alone."""
    schema = detector.examine.model.schema
    one = kind_of(schema).example
    title = f"What does not fit {run}"
    body = [
        _opening(title, detector, findings, calibration, rankings, one),
        _scores(detector, findings, calibration, rankings, schema),
        finds(detector.examine.model, findings, calibration),
    ]
    blocks.write_page(path, title, body)


def _opening(
    title: str,
    detector: Detector,
    findings: DetectionResult,
    calibration: Calibration | None,
    rankings: dict[str, Ranking] | None,
    one: str,
) -> str:
    by = findings.by
    summary = next(score.summary for score in detector.scores if score.name == by)
    lead = (
        f"{len(findings):,} {one}s, sorted by the score {by}: {summary}. The higher, the less a {one} fits what the "
        "model learned."
    )
    cards = []
    if calibration is not None:
        flagged = int(findings.flagged(calibration).sum())
        cards += [
            (f"{flagged:,}", f"{one}s of {len(findings):,} lie above the threshold"),
            (
                f"{100 * calibration.false_positives:g} %",
                f"of normal {one}s would, at most on average: {len(calibration.normals[by]):,} held-out ones vouch",
            ),
        ]
    if rankings is not None:
        r = rankings[by]
        cards += [
            (f"{r.auroc:.4f}", f"AUROC, ± {r.auroc_error:.4f}: how often an anomaly scores above a normal {one}"),
            (f"{r.average_precision:.4f}", f"average precision, ± {r.average_precision_error:.4f}"),
        ]
    return f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{blocks.cards(cards) if cards else ""}'


def _scores(
    detector: Detector,
    findings: DetectionResult,
    calibration: Calibration | None,
    rankings: dict[str, Ranking] | None,
    schema: Schema,
) -> str:
    heads = ["score", *(["AUROC", "average precision"] if rankings else []), *(["threshold"] if calibration else [])]
    heads += ["median, bits/dim", "what it says"]
    rows = []
    for score in detector.scores:
        cells = []
        if rankings is not None:
            cells += rankings[score.name].figures
        if calibration is not None:
            cells.append(f"{bits_per_dim(calibration.thresholds[score.name], schema.dims):.4f}")
        cells.append(f"{bits_per_dim(float(np.median(findings.scores[score.name])), schema.dims):.4f}")
        shown = "".join(f"<td class=v>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr><td>{score.name}</td>{shown}<td class=m>{html.escape(score.summary)}</td></tr>")
    note = ""
    if rankings is not None:
        r = rankings[findings.by]
        note = f"<p>Judged on {r.normals:,} normal and {r.anomalies:,} anomalous examples; ± is a standard error.</p>"
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    return f"<h2>The scores</h2>{note}<table><tr>{head}</tr>{''.join(rows)}</table>"


def finds(model: Model, findings: DetectionResult, calibration: Calibration | None) -> str:
    """The examples that fit least and best, each with its heat maps."""
    if not findings.highest:
        return ""
    shown = [*findings.highest, *findings.lowest]
    found = [maps(model, joined(shown[first : first + CHUNK])) for first in range(0, len(shown), CHUNK)]
    legend = _legend(model, found[0])
    rows = _rows(model.schema, shown, found, findings, calibration)
    most = len(findings.highest)
    return (
        f"<h2>What fits least</h2><p>{html.escape(legend)}</p><div class=finds>{''.join(rows[:most])}</div>"
        f"<h2>What fits best</h2><div class=finds>{''.join(rows[most:])}</div>{_STYLE}"
    )


def _legend(model: Model, found: Maps) -> str:
    given_back = [] if found.drawn is None else ["its reconstruction"]
    if model.schema.rank != 2:
        beside = [*given_back, "the columns whose numbers cost most, -log p(x | z)"]
        return f"Each row of numbers as a small plot; beside it {' and '.join(beside)}."
    beside = [*given_back, "the cost of each pixel given the latent, -log p(x | z)"]
    if found.surprise is not None:
        what = "codes" if model.levels else "latents"
        beside.append(f"the cost of the {what} there under the prior")
    return (
        f"Beside each picture: {'; '.join(beside)}. The colours of a kind of map mean the same in all rows: black "
        "costs least, yellow most."
    )


_STYLE = """<style>
.finds { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 14px 22px; margin: 14px 0; }
.find { font-size: 13px; }
.find .strip { display: flex; gap: 3px; } .find b { font-size: 16px; }
.find.flag b { color: var(--second); } .find span { color: var(--soft); margin-left: 12px; overflow-wrap: anywhere; }
</style>"""


def _rows(
    schema: Schema,
    shown: Sequence[Shown],
    found: Sequence[Maps],
    findings: DetectionResult,
    calibration: Calibration | None,
) -> list[str]:
    errors = [e for m in found for e in m.error]
    surprises = [None if m.surprise is None else m.surprise[i] for m in found for i in range(len(m.error))]
    drawn = [None if m.drawn is None else m.drawn[i] for m in found for i in range(len(m.error))]
    spans = [_span(errors), _span([s for s in surprises if s is not None])]
    flags = None if calibration is None else findings.flagged(calibration)
    p = None if calibration is None else calibration.p_values(findings.by, findings.scores[findings.by])
    rows = []
    for one, error, surprise, given_back in zip(shown, errors, surprises, drawn, strict=True):
        images = [_tile(one.batch.x[0], schema)]
        images += [] if given_back is None else [_tile(given_back, schema)]
        if schema.rank == 2:
            images.append(_heat(error, *spans[0]))
            images += [] if surprise is None else [_heat(surprise, *spans[1])]
        strip = "".join(blocks.image_tag(image, "", True, TILE) for image in images)
        score = bits_per_dim(float(findings.scores[findings.by][one.row]), schema.dims)
        words = [findings.names[one.row]]
        kind = findings.classes[one.row]
        words += [f"class {kind}"] if kind is not None else []
        words += [] if p is None else [f"p = {p[one.row]:.4g}"]
        words += [] if schema.rank else [_columns(error)]
        lines = "".join(f"<span>{html.escape(word)}</span>" for word in words)
        flag = " flag" if flags is not None and flags[one.row] else ""
        rows.append(
            f'<div class="find{flag}"><div class=strip>{strip}</div><div><b>{score:.3f} bits/dim</b>{lines}</div></div>'
        )
    return rows


def _span(of: Sequence[Tensor]) -> tuple[float, float]:
    """What is black and what is brightest."""
    if not of:
        return 0.0, 1.0
    every = np.concatenate([m.numpy().ravel() for m in of])
    low, high = np.quantile(every, [1 - BRIGHTEST, BRIGHTEST]).tolist()
    return low, max(high, low + 1e-6)


def _tile(x: Tensor, schema: Schema) -> Image.Image:
    return pictures.grid(x[None], schema, 1, scale=_scale(schema.spatial[0]) if schema.rank == 2 else 1)


def _heat(nats: Tensor, low: float, high: float) -> Image.Image:
    level = np.clip((nats.numpy() - low) / (high - low), 0, 1) * (len(HEAT) - 1)
    step = np.minimum(np.floor(level).astype(int), len(HEAT) - 2)
    part = (level - step)[..., None]
    colours = np.round(HEAT[step] * (1 - part) + HEAT[step + 1] * part).astype(np.uint8)
    scale = _scale(colours.shape[0])
    return Image.fromarray(colours.repeat(scale, 0).repeat(scale, 1))


def _scale(side: int) -> int:
    return max(1, math.ceil(64 / side))


def _columns(error: Tensor) -> str:
    """The columns that cost most: numbers from 0, and nats."""
    worst = error.argsort(descending=True)[:COLUMNS_SAID].tolist()
    return "columns " + ", ".join(f"{i} ({float(error[i]):.3g} nats)" for i in worst)
