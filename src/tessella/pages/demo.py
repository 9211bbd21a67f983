"""The demo's page: what one small run can do, each part beside the command that does it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessella.coding.baseline_codecs import CodecSize
from tessella.coding.code_atlas import CodedExamples
from tessella.coding.files import Compressed
from tessella.evaluation.metric_text import psnr_text, saving_card
from tessella.evaluation.results import Evaluation
from tessella.models.codes import CodeModel
from tessella.pages import anomalies, blocks, codes
from tessella.tasks.detect import Calibration
from tessella.tasks.detect.detection import DetectionResult
from tessella.tasks.edit.page import sheet
from tessella.tasks.edit.result import Edited
from tessella.tasks.search import SearchResult

PAGE = "demo.html"


@dataclass(frozen=True)
class Edit:
    """One edited picture, its number in the test split, and its region in words."""

    picture: int
    region: str
    edited: Edited


@dataclass(frozen=True)
class Anomalies:
    """What was found among normal and anomalous pictures; AUROC of the score."""

    findings: DetectionResult
    calibration: Calibration
    auroc: float


@dataclass(frozen=True)
class Compression:
    """A file, and what other coders make of the same pictures, a file each."""

    name: str
    file: Compressed
    rivals: Sequence[CodecSize]


@dataclass(frozen=True)
class Demo:
    """All that the page shows.

    Attributes:
        run: the run folder.
        model: with the prior that it uses.
        evaluation: of the test split.
        seen: some pictures of the test split and their codes.
        minutes: that model and prior were trained for together.
        passed_over: why the learned prior is not used; empty if it is.
    """

    run: Path
    model: CodeModel
    evaluation: Evaluation
    seen: CodedExamples
    edit: Edit
    search: SearchResult
    anomalies: Anomalies
    compression: Compression
    minutes: float
    passed_over: str = ""


def write(demo: Demo) -> Path:
    """Write `demo.html` into the run and return its path."""
    run = demo.run
    body = [
        _opening(demo),
        codes.samples(demo.model)
        if demo.model.fitted
        else f'<h2>Samples</h2><p class="warned"><b>Warning:</b> {html.escape(demo.passed_over)}</p>',
        _command(f"tessella sample {run}"),
        "<h2>Codes and reconstructions</h2>",
        codes.strips(demo.model, demo.seen, "test"),
        _command(f"tessella reconstruct {run}", f"tessella encode {run} --split test"),
        _edit(demo),
        _search(demo),
        _anomalies(demo),
        _compression(demo),
        "<h2>All numbers</h2><p>Rate, distortion, bound, usage of the codes, training curves and how to reproduce them "
        'are in <a href="report.html">report.html</a> beside this page.</p>',
        _command(
            "tessella train vqvae --data FOLDER --out RUN --minutes 10",
            "tessella fit-prior RUN --minutes 10",
            "tessella report RUN",
        ),
    ]
    blocks.write_page(run / PAGE, "tessella demo", body)
    return run / PAGE


def _opening(demo: Demo) -> str:
    e, c, a = demo.evaluation, demo.compression, demo.anomalies
    assert e.codes is not None
    lead = (
        f"In {demo.minutes:g} minutes on this machine a VQ-VAE learned to describe small pictures of clothes by "
        f"{e.codes.codes_per_example:,} integers each, and a prior learned which integers go together. Everything "
        f"below was computed with the two, on {e.examples:,} test pictures that had no part in training."
    )
    best = min((rival for rival in c.rivals), key=lambda rival: rival.bytes, default=None)
    cards = [saving_card(e.codes, "picture")] if e.codes.learned else []
    if best is not None:
        smaller = 100 * (1 - c.file.bytes / best.bytes)
        cards.append(
            (
                f"{abs(smaller):.0f} %",
                f"{'smaller' if smaller >= 0 else 'larger'} than {best.name}: a lossless file of {c.file.examples:,} "
                "test pictures",
            )
        )
    cards.append(
        (f"{a.auroc:.3f}", "AUROC: how often a handwritten digit scores as stranger than a picture of clothes")
    )
    if e.psnr is not None:
        cards.append((psnr_text(e.psnr), "PSNR of the reconstructions"))
    return f'<h1>What one small run can do</h1><p class="lead">{html.escape(lead)}</p>{blocks.cards(cards)}'


def _edit(demo: Demo) -> str:
    e = demo.edit
    image = sheet(e.edited, demo.model.schema)
    changed = len(e.edited.changed(0))
    caption = (
        f"Test picture {e.picture}: the lower half of its codes is sampled anew from the prior, given the upper half, "
        f"which stays: {len(e.edited.after)} variants. Below each its difference to the reconstruction, light where "
        f"most. In the first {changed} codes changed; the orange line is the region, the grey one the decoder's reach."
    )

    asked = f"tessella edit {demo.run} {e.picture} --region {e.region} --resample -n {len(e.edited.after)}"
    return f"<h2>An edit</h2>{blocks.figure(image, caption)}{_command(asked)}"


def _search(demo: Demo) -> str:
    s = demo.search
    caption = (
        f"Left, a picture of the validation split; beside it the nearest of {s.examples:,} test pictures, with their "
        "distances in latent space."
    )
    queries = " ".join(row[0].name.replace("-", ":") for row in s.rows)
    return f"<h2>A search</h2>{blocks.figure(s.sheet(), caption)}" + _command(
        f"tessella index {demo.run} --split test", f"tessella search {demo.run} {queries}"
    )


def _anomalies(demo: Demo) -> str:
    a = demo.anomalies
    known = [bool(flag) for flag in a.findings.anomalous]
    flagged = a.findings.flagged(a.calibration)
    caught = sum(f and k for f, k in zip(flagged, known, strict=True))
    false = sum(f and not k for f, k in zip(flagged, known, strict=True))
    text = (
        f"{sum(known)} handwritten digits, which the model never saw, among {len(known) - sum(known):,} test pictures "
        "of clothes, sorted by how ill they fit. The threshold is the score that "
        f"{100 * a.calibration.false_positives:g} % of the validation pictures exceed: {caught} of the digits lie "
        f"above it, and {false} of the clothes. Digits are easily told from clothes; damage to a small part of a "
        "picture is much harder to find."
    )
    return (
        f"<h2>Anomalies</h2><p>{html.escape(text)}</p>{anomalies.finds(demo.model, a.findings, a.calibration)}"
        + _command(f"tessella detect {demo.run} test --anomalies digits --calibrate valid")
    )


def _compression(demo: Demo) -> str:
    c = demo.compression
    each = c.file.examples
    bound = c.file.bound / math.log(2) / 8
    raw = c.file.numbers
    rows = [
        _size("stored raw", raw, each, "8 bits a pixel"),
        *(_size(rival.name, rival.bytes, each, "a file each") for rival in c.rivals),
        _size("the model's bound", bound, each, "what the model says it must take"),
        _size(c.name, c.file.bytes, each, "all of them in one file, names and checksums included"),
    ]
    head = "<tr><th>what</th><th>bytes</th><th>a picture</th></tr>"
    text = f"The first {each:,} test pictures, lossless: decompressed and compared, every pixel is the same."
    return f"<h2>A compressed file</h2><p>{html.escape(text)}</p><table>{head}{''.join(rows)}</table>" + _command(
        f"tessella compress {demo.run} -o clothes.tes", "tessella decompress clothes.tes -o pictures"
    )


def _size(what: str, size: float, count: int, words: str) -> str:
    return blocks.row(what, f"{size:,.0f}", f"{size / count:,.1f} bytes; {words}")


def _command(*lines: str) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
