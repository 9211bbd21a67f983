"""Result of a detection on series: scores on the original time axis as CSV and JSON, and a page with marked rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from tessella.data.series.read import TimeSeries
from tessella.foundation.blocks import Block, Cards, Chart, Charts, Heading, Page, Series, Table, Text
from tessella.foundation.files import write_atomic
from tessella.foundation.text import cell, json_text
from tessella.tasks.detect.ranking import Ranking
from tessella.tasks.detect.series.made_up import RowChoice
from tessella.tasks.detect.series.scores import SUMMARIES
from tessella.tasks.task import Result

POINTS, CHANNELS, LISTED = 600, 4, 20
"""Most points of a chart, channels shown, and flagged stretches listed for each series."""


@final
@dataclass(frozen=True)
class ScoredSeries:
    """A series with the scores of its rows.

    Attributes:
        series: the series.
        scores: score of each row from `first` on, by name.
        first: first row that is scored; rows before it were used for training.
    """

    series: TimeSeries
    scores: Mapping[str, np.ndarray]
    first: int = 0

    @property
    def labels(self) -> np.ndarray | None:
        """Return whether each scored row is known to be anomalous; None if unknown."""
        return None if self.series.labels is None else self.series.labels[self.first :]


@final
@dataclass(frozen=True)
class SeriesDetection(Result):
    """Scores of the rows of series.

    Attributes:
        run, model: names of the run and of its model.
        window: rows of a window of the model.
        by: score that rows are flagged by.
        found: the series with their scores; higher is more anomalous.
        false_positives: share of normal rows that may be flagged; None without held-out normal rows.
        thresholds: threshold of each score.
        held_out: number of held-out normal rows that set the thresholds.
        choice: comparison of the scores on made-up anomalies, if the score was chosen by it.
        rankings: how well each score separates rows with labels, if there are some.
    """

    run: str
    model: str
    window: int
    by: str
    found: Sequence[ScoredSeries]
    false_positives: float | None
    thresholds: Mapping[str, float]
    held_out: int
    choice: RowChoice | None
    rankings: Mapping[str, Ranking] | None

    def flagged(self, one: ScoredSeries) -> np.ndarray | None:
        """Return whether each scored row of a series exceeds the threshold; None without thresholds."""
        return one.scores[self.by] > self.thresholds[self.by] if self.thresholds else None

    def stretches(self, one: ScoredSeries) -> list[tuple[int, int, float]]:
        """List the flagged stretches of a series: first and last row, and highest score."""
        flagged = self.flagged(one)
        if flagged is None:
            return []
        edges = np.flatnonzero(np.diff(flagged.astype(int), prepend=0, append=0)).reshape(-1, 2)
        scores = one.scores[self.by]
        return [(int(a) + one.first, int(b) - 1 + one.first, float(scores[a:b].max())) for a, b in edges]

    def summary(self) -> dict[str, Any]:
        """Return what applies to all rows together."""
        return {
            "version": 1,
            "run": self.run,
            "model": self.model,
            "window": self.window,
            "by": self.by,
            "scores": {name: SUMMARIES[name] for name in self.found[0].scores},
            "false_positives": self.false_positives,
            "thresholds": dict(self.thresholds),
            "held_out": self.held_out,
            "choice": None if self.choice is None else self.choice.to_json(),
            "rankings": None if self.rankings is None else {name: asdict(r) for name, r in self.rankings.items()},
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a flat record for each row: series, row, time, score, flag, label and all scores."""
        for one in self.found:
            times, flagged, labels = one.series.written_times, self.flagged(one), one.labels
            for i in range(len(one.scores[self.by])):
                record = {"series": one.series.name, "row": one.first + i, "time": times[one.first + i]}
                record["score"] = float(one.scores[self.by][i])
                if flagged is not None:
                    record["flagged"] = bool(flagged[i])
                if labels is not None:
                    record["anomalous"] = bool(labels[i])
                yield record | {name: float(values[i]) for name, values in one.scores.items()}

    def to_json(self) -> Mapping[str, Any]:
        series = []
        for one in self.found:
            times = one.series.written_times
            stretches = [
                {"first": a, "last": b, "from": times[a], "to": times[b], "score": score}
                for a, b, score in self.stretches(one)
            ]
            highest = int(one.scores[self.by].argmax()) + one.first
            named = {"series": one.series.name, "file": one.series.path, "rows": len(one.series), "first": one.first}
            series.append(
                {**named, "highest": {"row": highest, "time": times[highest]}, "flagged": stretches}
                | {"scores": {name: values.tolist() for name, values in one.scores.items()}}
            )
        return {**self.summary(), "series": series}

    def save(self, out: Path) -> None:
        """Write scores.csv, a line for each row, and scores.json into a folder."""
        write_atomic(out / "scores.csv", self._write_csv)
        write_atomic(out / "scores.json", lambda path: path.write_text(json_text(self.to_json()), encoding="utf-8"))

    def _write_csv(self, path: Path) -> None:
        columns = dict.fromkeys(name for one in self.found for name in next(self._of(one)))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            for record in self.records():
                writer.writerow({k: cell(v) if isinstance(v, str) else v for k, v in record.items()})

    def _of(self, one: ScoredSeries) -> Iterator[dict[str, Any]]:
        return (record for record in self.records() if record["series"] == one.series.name)

    def page(self) -> Page:
        rows = sum(len(one.scores[self.by]) for one in self.found)
        blocks: list[Block] = [Cards(self._cards(rows))]
        for one in self.found:
            blocks += self._shown(one)
        meaning = [[name + (" *" if name == self.by else ""), SUMMARIES[name]] for name in self.found[0].scores]
        blocks += [
            Heading("Scores"),
            Table(["score", "meaning"], meaning, ()),
            Text("* rows are flagged by it", "soft"),
        ]
        if self.choice is not None:
            blocks += _choice(self.choice)
        return Page(
            f"Anomalies in {self.run}",
            blocks,
            f"{rows:,} rows of {len(self.found):,} series, scored by {self.by}: {SUMMARIES[self.by]}.",
        )

    def _cards(self, rows: int) -> list[tuple[str, str]]:
        cards = []
        if self.false_positives is not None:
            stretches = sum(len(self.stretches(one)) for one in self.found)
            count = sum(int(flagged.sum()) for one in self.found if (flagged := self.flagged(one)) is not None)
            cards = [
                (f"{stretches:,}", f"stretches lie above the threshold, {count:,} of {rows:,} rows"),
                (
                    f"{100 * self.false_positives:g} %",
                    f"of held-out normal rows lie above it, set on {self.held_out:,} rows",
                ),
            ]
        if self.rankings is not None:
            ranking = self.rankings[self.by]
            cards += [
                (f"{ranking.auroc:.4f}", "AUROC of the rows with labels"),
                (f"{ranking.average_precision:.4f}", "average precision of the rows with labels"),
            ]
        return cards

    def _shown(self, one: ScoredSeries) -> list[Block]:
        """Chart a series and its score with the flagged rows marked, and list the flagged stretches."""
        x, scores, flagged = one.series.x[one.first :], one.scores[self.by], self.flagged(one)
        bins = np.unique(np.linspace(0, len(x), min(POINTS, len(x)) + 1).astype(int))
        at = [float(one.first + row) for row in bins[:-1]]
        marked = None if flagged is None else np.maximum.reduceat(flagged, bins[:-1])
        names = one.series.columns or tuple(f"channel {c}" for c in range(x.shape[1]))
        charts = []
        for channel, name in list(enumerate(names))[:CHANNELS]:
            values = [float(v) if np.isfinite(v) else None for v in x[bins[:-1], channel].astype(float)]
            charts.append(_chart(name, at, values, marked))
        peaks = np.maximum.reduceat(scores, bins[:-1])
        charts.append(_chart(f"score {self.by}", at, peaks.tolist(), marked))
        times = one.series.written_times
        listed = sorted(self.stretches(one), key=lambda stretch: -stretch[2])[:LISTED]
        table = [[f"{a:,} to {b:,}", f"{times[a]} to {times[b]}", f"{score:.4g}"] for a, b, score in listed]
        found: list[Block] = [Heading(one.series.name), Charts(charts, "Flagged rows are drawn in the second colour.")]
        if table:
            found.append(Table(["rows", "time", "highest score"], table, (2,)))
        return found


def _chart(title: str, at: Sequence[float], values: Sequence[float | None], marked: np.ndarray | None) -> Chart:
    lines = [Series(at, values, title)]
    if marked is not None and marked.any():
        near = marked | np.roll(marked, 1)  # a line takes two points
        lines.append(Series(at, [v if m else None for v, m in zip(values, near, strict=True)], "flagged"))
    return Chart(title, lines, x_label="row", wide=True)


def _choice(choice: RowChoice) -> list[Block]:
    kinds = list(choice.figures[choice.score])
    ranked = sorted(choice.figures, key=lambda name: -choice.mean(name))
    rows = [
        [
            name + (" *" if name == choice.score else ""),
            f"{choice.mean(name):.3f}",
            *(f"{choice.figures[name][kind]:.2f}" for kind in kinds),
        ]
        for name in ranked
    ]
    text = f"Average precision of each score for anomalies made up in {choice.rows:,} held-out normal rows."
    return [
        Heading("Choice of the score"),
        Text(text),
        Table(["score", "mean", *kinds], rows, range(1, len(kinds) + 2)),
    ]
