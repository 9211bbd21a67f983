"""Result of a detection: scores as JSON and CSV, and a page of the most and least anomalous examples."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema, bits_per_dim
from tessella.foundation.blocks import Block, Cards, Grid, Heading, Page, Table, Text, Tile
from tessella.foundation.errors import DataError
from tessella.foundation.files import write_atomic
from tessella.foundation.text import cell, json_text
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.tasks.detect.detector import Calibration
from tessella.tasks.task import Result

BRIGHTEST = 0.998
"""Share of the positions shown that lie within the colour scale; the few above have its brightest colour."""
COLUMNS_NAMED = 4


@final
@dataclass(frozen=True)
class ShownExample:
    """An example to show, with its heat maps.

    Attributes:
        row: its number among all.
        x: `[*shape]`.
        error, surprise, reconstruction: as in `detection.Maps`, for this example.
    """

    row: int
    x: Tensor
    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None


@final
@dataclass(frozen=True)
class DetectionResult(Result):
    """Scores of N examples, in the order of the inputs.

    Attributes:
        run, model: names of the run and of its model.
        schema: schema of the examples.
        by: score that examples are sorted and flagged by.
        summaries: one line on each score.
        names, classes: names of the examples and of their classes (None if unknown).
        anomalous: whether each is known to be anomalous; None if unknown.
        scores: `[N]` nats for each score; higher is more anomalous.
        calibration: thresholds, if there was calibration data.
        rankings: how well each score separates known anomalies from known normal examples, if some are known.
        highest, lowest: examples with the highest and the lowest scores, most extreme first.
    """

    run: str
    model: str
    schema: Schema
    by: str
    summaries: Mapping[str, str]
    names: Sequence[str]
    classes: Sequence[str | None]
    anomalous: Sequence[bool | None]
    scores: Mapping[str, np.ndarray]
    calibration: Calibration | None
    rankings: Mapping[str, Ranking] | None
    highest: Sequence[ShownExample]
    lowest: Sequence[ShownExample]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def flagged(self) -> np.ndarray | None:
        """Return whether each example exceeds the threshold, `[N]`; None without calibration."""
        return None if self.calibration is None else self.scores[self.by] > self.calibration.thresholds[self.by]

    @property
    def p_values(self) -> np.ndarray | None:
        """Return the p-value of each example, `[N]`; None without calibration."""
        return None if self.calibration is None else self.calibration.p_values(self.by, self.scores[self.by])

    def summary(self) -> dict[str, Any]:
        """Return what applies to all examples together."""
        c = self.calibration
        return {
            "version": 1,
            "run": self.run,
            "model": self.model,
            "dims": self.schema.dims,
            "units": "nats per example; higher is more anomalous",
            "by": self.by,
            "scores": dict(self.summaries),
            "false_positives": None if c is None else c.false_positives,
            "inliers": None if c is None else len(c.inliers[self.by]),
            "thresholds": None if c is None else c.thresholds,
            "rankings": None if self.rankings is None else {name: asdict(r) for name, r in self.rankings.items()},
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a flat record for each example: name, class, whether anomalous, p-value, flag and scores."""
        p, flagged = self.p_values, self.flagged
        for i, name in enumerate(self.names):
            record: dict[str, Any] = {"name": name, "class": self.classes[i], "anomalous": self.anomalous[i]}
            if p is not None and flagged is not None:
                record |= {"p": float(p[i]), "flagged": bool(flagged[i])}
            yield record | {name: float(values[i]) for name, values in self.scores.items()}

    def to_json(self) -> Mapping[str, Any]:
        return {**self.summary(), "examples": list(self.records())}

    def page(self) -> Page:
        one, by = kind_of(self.schema).example, self.by
        lead = f"{len(self):,} {one}s, sorted by the score {by}: {self.summaries[by]}. Higher is more anomalous."
        return Page(f"Anomalies in {self.run}", [*_cards(self, one), *_scores(self), *shown_extremes(self)], lead)

    def save(self, out: Path) -> None:
        """Write scores.csv and scores.json into a folder, one example at a time, since there may be very many."""
        write_atomic(out / "scores.csv", self._write_csv)
        write_atomic(out / "scores.json", self._write_json)

    def _write_csv(self, path: Path) -> None:
        records = self.records()
        first = next(records)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(first), lineterminator="\n")
            writer.writeheader()
            for record in chain([first], records):
                writer.writerow({k: cell(v) if isinstance(v, str) else v for k, v in record.items()})

    def _write_json(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.write(json_text(self.summary(), indent=1).removesuffix("\n}") + ',\n "examples": [')
            for number, record in enumerate(self.records()):
                file.write(("," if number else "") + "\n  " + json_text(record, indent=1).replace("\n", "\n  "))
            file.write("\n ]\n}")


def _cards(result: DetectionResult, one: str) -> list[Block]:
    cards = []
    if result.calibration is not None and result.flagged is not None:
        calibration, flagged = result.calibration, int(result.flagged.sum())
        held_out = len(calibration.inliers[result.by])
        cards = [
            (f"{flagged:,}", f"{one}s of {len(result):,} lie above the threshold"),
            (
                f"{100 * calibration.false_positives:g} %",
                f"of normal {one}s lie above it on average, at most; calibrated on {held_out:,} held-out ones",
            ),
        ]
    if result.rankings is not None:
        r = result.rankings[result.by]
        cards += [
            (f"{r.auroc:.4f}", f"AUROC, ± {r.auroc_error:.4f}: how often an anomaly scores above a normal {one}"),
            (f"{r.average_precision:.4f}", f"average precision, ± {r.average_precision_error:.4f}"),
        ]
    return [Cards(cards)] if cards else []


def _scores(result: DetectionResult) -> list[Block]:
    calibration, rankings, dims = result.calibration, result.rankings, result.schema.dims
    heads = ["score", *(["AUROC", "average precision"] if rankings else [])]
    heads += [*(["threshold, nats", "above it"] if calibration else []), "median, bits/dim"]
    rows = []
    for name, values in result.scores.items():
        cells = [] if rankings is None else [*rankings[name].figures]
        if calibration is not None:
            limit = calibration.thresholds[name]
            cells += [f"{limit:.2f}", f"{int((values > limit).sum()):,}"]
        cells.append(f"{bits_per_dim(float(np.median(values)), dims):.4f}")
        rows.append([f"{name}{' *' if name == result.by else ''}", *cells, result.summaries[name]])
    words = "* examples are sorted and flagged by this score"
    if rankings is not None:
        r = rankings[result.by]
        words += f"; measured on {r.inliers:,} normal and {r.anomalies:,} anomalous examples, ± is a standard error"
    return [Heading("Scores"), Table([*heads, "meaning"], rows, range(1, len(heads))), Text(words, "soft")]


def shown_extremes(result: DetectionResult) -> list[Block]:
    """Show the most and the least anomalous examples with their heat maps."""
    shown = [*result.highest, *result.lowest]
    if not shown:
        return []
    spans = [_span([one.error for one in shown]), _span([one.surprise for one in shown if one.surprise is not None])]
    tiles = [_tile(result, one, spans) for one in shown]
    most = len(result.highest)
    return [
        Heading("Most anomalous"),
        Text(_legend(result.schema, shown[0])),
        Grid(tiles[:most], width=400),
        Heading("Least anomalous"),
        Grid(tiles[most:], width=400),
    ]


def _legend(schema: Schema, one: ShownExample) -> str:
    beside = [] if one.reconstruction is None else ["its reconstruction"]
    if not schema.rank:
        beside.append("the columns with the highest cost, -log p(x | z)")
        return f"Each row of numbers is a small plot; beside it {' and '.join(beside)}."
    beside.append("the cost of each position given the latent, -log p(x | z)")
    if one.surprise is not None:
        beside.append("the rate of the latent there, its cost under the prior")
    return (
        f"Beside each {kind_of(schema).example}: {'; '.join(beside)}. Each kind of map has one colour scale on the "
        "whole page, from black (lowest cost) to yellow (highest)."
    )


def _tile(result: DetectionResult, one: ShownExample, spans: Sequence[tuple[float, float]]) -> Tile:
    schema, row = result.schema, one.row
    images = [_image(one.x, schema)]
    images += [] if one.reconstruction is None else [_image(one.reconstruction, schema)]
    details = []
    if (kind := result.classes[row]) is not None:
        details.append(f"class {kind}")
    if (p := result.p_values) is not None:
        details.append(f"p = {p[row]:.4g}")
    if schema.rank:
        for values, span in ((one.error, spans[0]), (one.surprise, spans[1])):
            if values is not None:
                heat = pictures.heat_map(values.view(-1, values.shape[-1]).numpy(), *span)
                images.append(heat.resize(images[0].size, Image.Resampling.NEAREST))
    else:
        worst = one.error.argsort(descending=True)[:COLUMNS_NAMED].tolist()
        details.append("columns " + ", ".join(f"{i} ({float(one.error[i]):.3g} nats)" for i in worst))
    score = bits_per_dim(float(result.scores[result.by][row]), schema.dims)
    marked = result.flagged is not None and bool(result.flagged[row])
    return Tile(images, result.names[row], f"{score:.3f} bits/dim", details, marked)


def _span(of: Sequence[Tensor]) -> tuple[float, float]:
    """Return the values of the darkest and the brightest colour."""
    if not of:
        return 0.0, 1.0
    every = np.concatenate([m.numpy().ravel() for m in of])
    low, high = np.quantile(every, [1 - BRIGHTEST, BRIGHTEST]).tolist()
    return low, max(high, low + 1e-6)


def _image(x: Tensor, schema: Schema) -> Image.Image:
    return pictures.image_grid(x[None], schema, 1, scale=max(1, math.ceil(64 / kind_of(schema).tile_size[0])))


RESAMPLES = 200


@final
@dataclass(frozen=True)
class Ranking:
    """How well a score separates anomalies from normal examples; each metric with its standard error.

    Attributes:
        auroc: probability that an anomaly scores above a normal example; ties count half.
        average_precision: mean over the anomalies of the share of anomalies among all that score as high.
        inliers, anomalies: numbers of examples.
    """

    auroc: float
    auroc_error: float
    average_precision: float
    average_precision_error: float
    inliers: int
    anomalies: int

    @property
    def figures(self) -> tuple[str, str]:
        """Format AUROC and average precision."""
        return (
            f"{self.auroc:.4f} ± {self.auroc_error:.4f}",
            f"{self.average_precision:.4f} ± {self.average_precision_error:.4f}",
        )


def ranking(scores: np.ndarray, anomalous: np.ndarray, seed: int = 0) -> Ranking:
    """Measure how well scores `[N]` separate anomalous examples `[N]`.

    Raises:
        DataError: if all are normal, or all anomalous.
    """
    anomalous = np.asarray(anomalous, dtype=bool)
    counts = int((~anomalous).sum()), int(anomalous.sum())
    if 0 in counts:
        raise DataError(
            f"all {len(anomalous)} examples are {'normal' if counts[0] else 'anomalous'}, so no score can be ranked: "
            "give examples of both",
            code="one-kind-alone",
        )
    area, error = auroc(scores[~anomalous], scores[anomalous])
    precision = average_precision(scores, anomalous)
    generator = np.random.Generator(np.random.PCG64(seed))
    again = [
        average_precision(scores, anomalous, generator.multinomial(len(scores), np.full(len(scores), 1 / len(scores))))
        for _ in range(RESAMPLES)
    ]
    spread = float(np.nanstd(again, ddof=1)) if min(counts) > 1 else float("nan")
    return Ranking(area, error, precision, spread, *counts)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Rank numbers from 1; equal ones share their mean rank."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def auroc(inliers: np.ndarray, anomalies: np.ndarray) -> tuple[float, float]:
    """Compute the area under the ROC curve and its standard error.

    DeLong et al. 1988, eq. 5; the error is NaN for a single example.
    """
    n, m = len(inliers), len(anomalies)
    both = _ranks(np.concatenate([inliers, anomalies]))
    above = (both[n:] - _ranks(anomalies)) / n  # of each anomaly, the share of inliers below it
    below = 1 - (both[:n] - _ranks(inliers)) / m  # of each normal, the share of anomalies above it
    error = float("nan")
    if min(n, m) > 1:
        error = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return float(above.mean()), error


def average_precision(scores: np.ndarray, anomalous: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute sum_k (R_k - R_(k-1)) P_k over the thresholds in falling order.

    Args:
        weights: how many times each example counts; once by default.
    """
    weight = np.ones(len(scores)) if weights is None else weights.astype(float)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # equal scores are one threshold
    found = np.cumsum((weight * anomalous)[order])[ends]
    counted = np.cumsum(weight[order])[ends]
    if not found[-1]:
        return float("nan")
    return float((np.diff(found, prepend=0.0) * found / np.maximum(counted, 1e-300)).sum() / found[-1])
