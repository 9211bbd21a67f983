"""Result of a detection: scores as JSON and CSV, and a page of the most and least anomalous examples."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, final

import numpy as np
from PIL import Image
from torch import Tensor

from tessella.core.schema import Schema
from tessella.foundation.blocks import Block, Cards, Grid, Heading, Page, Table, Text, Tile
from tessella.foundation.files import write_atomic
from tessella.foundation.text import cell, json_text
from tessella.kinds import pictures
from tessella.kinds.base import kind_of
from tessella.tasks.detect.choice import Choice
from tessella.tasks.detect.detection import Scored
from tessella.tasks.detect.detector import Calibration
from tessella.tasks.detect.ranking import AtThreshold, Ranking, at_threshold
from tessella.tasks.detect.regions import RegionResult, contour
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
        error, surprise, reconstruction: as in `local_scores.Maps`, for this example.
        unusual: map of a local score, `[H, W]`; None if there is none.
    """

    row: int
    x: Tensor
    error: Tensor
    surprise: Tensor | None
    reconstruction: Tensor | None
    unusual: np.ndarray | None


@final
@dataclass(frozen=True)
class DetectionResult(Result):
    """Scores of N examples, in the order of the inputs.

    Attributes:
        run, model: names of the run and of its model.
        schema: schema of the examples.
        by: score that examples are sorted and flagged by.
        summaries: one line on each score.
        found: names, classes and scores of the examples; higher is more anomalous.
        calibration: thresholds, if there was calibration data.
        choice: comparison of the scores on made-up anomalies, if the score was chosen by it.
        rankings: how well each score separates known anomalies from known normal examples, if some are known.
        regions: anomalous regions of pictures, if there are local scores.
        highest, lowest: examples with the highest and the lowest scores, most extreme first.
    """

    run: str
    model: str
    schema: Schema
    by: str
    summaries: Mapping[str, str]
    found: Scored
    calibration: Calibration | None
    choice: Choice | None
    rankings: Mapping[str, Ranking] | None
    regions: RegionResult | None
    highest: Sequence[ShownExample]
    lowest: Sequence[ShownExample]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def names(self) -> Sequence[str]:
        return self.found.names

    @property
    def classes(self) -> Sequence[str | None]:
        return self.found.classes

    @property
    def anomalous(self) -> Sequence[bool | None]:
        return self.found.anomalous

    @property
    def scores(self) -> Mapping[str, np.ndarray]:
        return self.found.scores

    @property
    def status(self) -> int:
        return 130 if self.found.interrupted else 0

    @property
    def at_threshold(self) -> AtThreshold | None:
        """Return the figures at the calibrated threshold; None without calibration or known anomalies."""
        known = np.array([a is not None for a in self.anomalous])
        if self.flagged is None or self.rankings is None:
            return None
        return at_threshold(self.flagged[known], np.array([a for a in self.anomalous if a is not None], bool))

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
            "units": "nats per example, local scores in deviations of normal examples; higher is more anomalous",
            "by": self.by,
            "scores": dict(self.summaries),
            "false_positives": None if c is None else c.false_positives,
            "inliers": None if c is None else len(c.inliers[self.by]),
            "thresholds": None if c is None else c.thresholds,
            "choice": None if self.choice is None else self.choice.to_json(),
            "milliseconds": 1000 * self.found.seconds / len(self),
            "interrupted": self.found.interrupted,
            "at_threshold": None if self.at_threshold is None else asdict(self.at_threshold),
            "regions": None if self.regions is None else self.regions.to_json(),
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
        return Page(
            f"Anomalies in {self.run}",
            [*_cards(self, one), *shown_extremes(self), *_scores(self), *_choice(self)],
            lead,
        )

    def save(self, out: Path) -> None:
        """Write scores.csv, scores.json and masks/*.png into a folder, one by one, since there may be very many."""
        write_atomic(out / "scores.csv", self._write_csv)
        for row, mask in {} if self.regions is None else self.regions.masks.items():
            image = Image.fromarray(np.uint8(255) * mask)
            write_atomic(out / self._mask_file(row), partial(image.save, format="PNG"))
        write_atomic(out / "scores.json", self._write_json)

    def _mask_file(self, row: int) -> str:
        """Return where the predicted mask of a flagged example is written."""
        stem = re.sub(r"[^\w.-]", "_", Path(self.names[row]).stem)[-80:]
        return f"masks/{row:06d}-{stem}.png"

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
    if (at := result.at_threshold) is not None:
        words = f"F1 at the threshold: precision {at.precision:.3f}, recall {at.recall:.3f}"
        cards.append((f"{at.f1:.3f}", f"{words}, {100 * at.flagged_normal:.1f} % of normal {one}s flagged"))
    if result.regions is not None and (figures := result.regions.figures) is not None:
        cards += [
            (f"{figures.pixel_auroc:.4f}", f"pixel AUROC, of the map of {result.regions.source}"),
            (f"{figures.pro:.4f}", f"PRO: share of each of {figures.regions:,} known regions found, up to 30 % false"),
        ]
    cards.append((f"{1000 * result.found.seconds / len(result):.1f} ms", f"per {one}, reading and all scores included"))
    return [Cards(cards)]


def _scores(result: DetectionResult) -> list[Block]:
    calibration, rankings = result.calibration, result.rankings
    heads = ["score", *(["AUROC", "average precision"] if rankings else [])]
    heads += [*(["threshold", "above it"] if calibration else []), "median"]
    rows = []
    for name, values in result.scores.items():
        cells = [] if rankings is None else [*rankings[name].figures]
        if calibration is not None:
            limit = calibration.thresholds[name]
            cells += [f"{limit:.4g}", f"{int((values > limit).sum()):,}"]
        cells.append(f"{np.median(values):.4g}")
        rows.append([f"{name}{' *' if name == result.by else ''}", *cells, result.summaries[name]])
    words = "* examples are sorted and flagged by this score"
    if rankings is not None:
        r = rankings[result.by]
        words += f"; measured on {r.inliers:,} normal and {r.anomalies:,} anomalous examples, ± is a standard error"
    return [Heading("Scores"), Table([*heads, "meaning"], rows, range(1, len(heads))), Text(words, "soft")]


def _choice(result: DetectionResult) -> list[Block]:
    """Show how well each score separates made-up anomalies from normal examples."""
    choice = result.choice
    if choice is None:
        return []
    kinds = list(choice.figures[choice.score])
    ranked = sorted(choice.figures, key=lambda name: -choice.mean(name))
    rows = [
        [
            f"{name}{' *' if name == choice.score else ''}",
            f"{choice.mean(name):.3f}",
            *(f"{choice.figures[name][kind]:.2f}" for kind in kinds),
        ]
        for name in ranked
    ]
    text = (
        f"AUROC of each score for {choice.made_up:,} made-up anomalies against {choice.inliers:,} held-out normal "
        "examples; no known anomaly was used. * is the best local score, the best of whole examples, or their mean."
    )
    return [
        Heading("Choice of the score"),
        Text(text),
        Table(["score", "mean", *kinds], rows, range(1, len(kinds) + 2)),
    ]


def shown_extremes(result: DetectionResult) -> list[Block]:
    """Show the most and the least anomalous examples with their heat maps."""
    shown = [*result.highest, *result.lowest]
    if not shown:
        return []
    heats = [_heats(one) for one in shown]
    spans = {name: _span([heat[name] for heat in heats]) for name in heats[0]}
    tiles = [_tile(result, one, heat, spans) for one, heat in zip(shown, heats, strict=True)]
    most = len(result.highest)
    return [
        Heading("Most anomalous"),
        Text(_legend(result, shown[0])),
        Grid(tiles[:most], width=400),
        Heading("Least anomalous"),
        Grid(tiles[most:], width=400),
    ]


def _heats(one: ShownExample) -> dict[str, np.ndarray]:
    """Return the heat maps of an example, with what they show."""
    named = (
        ("how unusual each position is, in deviations of normal pictures", one.unusual),
        ("the cost of each position given the latent, -log p(x | z)", one.error),
        ("the rate of the latent there, its cost under the prior", one.surprise),
    )
    return {name: np.asarray(values) for name, values in named if values is not None}


def _legend(result: DetectionResult, one: ShownExample) -> str:
    schema = result.schema
    beside = [] if one.reconstruction is None else ["its reconstruction"]
    if not schema.rank:
        beside.append("the columns with the highest cost, -log p(x | z)")
        return f"Each row of numbers is a small plot; beside it {' and '.join(beside)}."
    regions = result.regions
    lines = "" if regions is None or not regions.masks else " Red line: what exceeds the threshold of its map."
    lines += "" if regions is None or not regions.known else " Green line: the known region."
    return (
        f"Beside each {kind_of(schema).example}: {'; '.join([*beside, *_heats(one)])}. Each kind of map has one colour "
        f"scale on the whole page, from black (lowest) to yellow (highest).{lines}"
    )


def _tile(
    result: DetectionResult,
    one: ShownExample,
    heats: Mapping[str, np.ndarray],
    spans: Mapping[str, tuple[float, float]],
) -> Tile:
    schema, row = result.schema, one.row
    images = [_outlined(_image(one.x, schema), result.regions, row)]
    images += [] if one.reconstruction is None else [_image(one.reconstruction, schema)]
    details = []
    if (kind := result.classes[row]) is not None:
        details.append(f"class {kind}")
    if (p := result.p_values) is not None:
        details.append(f"p = {p[row]:.4g}")
    if schema.rank:
        for name, values in heats.items():
            heat = pictures.heat_map(values.reshape(-1, values.shape[-1]), *spans[name])
            images.append(heat.resize(images[0].size, Image.Resampling.NEAREST))
    else:
        worst = one.error.argsort(descending=True)[:COLUMNS_NAMED].tolist()
        details.append("columns " + ", ".join(f"{i} ({float(one.error[i]):.3g} nats)" for i in worst))
    marked = result.flagged is not None and bool(result.flagged[row])
    return Tile(images, result.names[row], f"{result.scores[result.by][row]:.4g}", details, marked)


RED, GREEN = (230, 30, 30), (30, 200, 60)


def _outlined(image: Image.Image, regions: RegionResult | None, row: int) -> Image.Image:
    """Draw the outlines of the predicted and the known region of an example."""
    outlines = [] if regions is None else [(regions.known.get(row), GREEN), (regions.masks.get(row), RED)]
    for mask, colour in outlines:
        if mask is not None and mask.any():
            large = Image.fromarray(np.uint8(255) * mask).resize(image.size, Image.Resampling.NEAREST)
            line = Image.fromarray(np.uint8(255) * contour(np.asarray(large) > 0))
            image = image.convert("RGB")
            image.paste(colour, mask=line)
    return image


def _span(of: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the values of the darkest and the brightest colour."""
    every = np.concatenate([values.ravel() for values in of])
    low, high = np.quantile(every, [1 - BRIGHTEST, BRIGHTEST]).tolist()
    return low, max(high, low + 1e-6)


def _image(x: Tensor, schema: Schema) -> Image.Image:
    return pictures.image_grid(x[None], schema, 1, scale=max(1, math.ceil(64 / kind_of(schema).tile_size[0])))
