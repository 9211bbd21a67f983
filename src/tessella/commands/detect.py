"""`tessella detect`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from tessella.commands.shared import Where, loaded, progress, say, say_table
from tessella.foundation.errors import DataError, SpecError, TessellaError
from tessella.foundation.notes import note
from tessella.foundation.text import cell, json_text

if TYPE_CHECKING:
    from tessella.core.batches import Batch
    from tessella.tasks.detect import Calibration, Detector
    from tessella.tasks.detect.detection import DetectionResult
    from tessella.tasks.detect.inputs import Inputs
    from tessella.tasks.detect.ranking import Ranking

FALSE_POSITIVES = 0.01
TAUGHT = 500
"""Examples of the run's validation split that scores are learned from, where no normals are given."""


@dataclass(frozen=True)
class Detect:
    """Find what does not fit: scores, a threshold with a stated false-positive rate, and where it does not fit.

    An input is a picture file, a folder of them (sub-folders are classes), other data by its SPEC (of data that comes
    divided, the split), train, valid or test of the run's own data, or the number of an example of the split.

    Attributes:
        run: the run folder of a model that was trained on normal examples.
        inputs: what to look through; none: all of the split.
        out: the folder to write index.html, scores.csv and scores.json into.
        calibrate: normals that had no part in training, an input each; they set the thresholds. `--calibrate valid` is
            the run's own validation split.
        false_positives: share of normals that may be flagged; 0.01 with --calibrate.
        anomalies: inputs known to be anomalous; all others are then known to be normal.
        normal: classes that are normal; examples of others are anomalous.
        score: the score to sort and flag by; by default complexity, or where that cannot be had the bound.
        scores: which scores to find; by default all that the model allows.
        show: how many examples the page shows at either end.
        split: the split that numbers refer to, and that is taken of data that comes divided.
        prior: the kind of a fitted prior, or trained (of codes uniform): the model's own; by default the best.
        label: the class of picture files, for a model that sees it.
        data: where the run's data lies now, if it was moved.
        draws: draws of z an example.
        steps: of the optimisation for one example that the regret takes.
        seed: of the draws.
    """

    run: Positional[str]
    inputs: Positional[tuple[str, ...]] = ()
    out: Annotated[str, arg(aliases=("-o",))] = "anomalies"
    calibrate: UseAppendAction[tuple[str, ...]] = ()
    false_positives: float | None = None
    anomalies: UseAppendAction[tuple[str, ...]] = ()
    normal: UseAppendAction[tuple[str, ...]] = ()
    score: str | None = None
    scores: tuple[str, ...] = ()
    show: int = 40
    split: str = "test"
    prior: str | None = None
    label: str | None = None
    data: str | None = None
    draws: int = 4
    steps: int = 20
    seed: int = 0
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def detect(o: Detect) -> int:
    _check(o)
    model, run = loaded(o.run, o.prior, o.where)
    from tessella.tasks.detect import Detector, Statistics
    from tessella.tasks.detect.detection import find, held_out
    from tessella.tasks.detect.inputs import Inputs

    reader = Inputs(model, run, o.split, o.label, o.data)
    inputs = reader.find(o.inputs or (o.split,))
    anomalies = reader.find(o.anomalies)
    names = (*o.scores, *([o.score] if o.score and o.scores and o.score not in o.scores else []))

    def detector_for(normals: Statistics | None) -> Detector:
        return Detector(model, names, normals=normals, draws=o.draws, steps=o.steps, seed=o.seed)

    calibration = None
    if o.calibrate:
        rate = FALSE_POSITIVES if o.false_positives is None else o.false_positives
        with progress("calibrating") as tell:
            detector, calibration = held_out(detector_for, reader.find(o.calibrate), rate, tell)
    else:
        detector = Detector(model, names, normals=_own_normals(reader), draws=o.draws, steps=o.steps, seed=o.seed)
    by = _by(o, detector)
    with progress("scoring") as tell:
        found = find(detector, inputs, anomalies, by=by, normal=o.normal, show=o.show, progress=tell)
    rankings = found.rankings() if o.anomalies or o.normal else None
    _write(Path(o.out), o, detector, found, calibration, rankings)
    _say(detector, found, calibration, rankings, o.out)
    return 0


def _check(o: Detect) -> None:
    """What can be known to be wrong before anything is loaded."""
    from tessella.tasks.detect.calibration import check_rate

    if o.false_positives is not None:
        check_rate(o.false_positives)
        if not o.calibrate:
            raise SpecError(
                "a false-positive rate takes normals that had no part in training: give them by --calibrate "
                "(--calibrate valid: the run's own validation split)"
            )
    if o.draws < 1 or o.steps < 1 or o.show < 0:
        raise SpecError("draws and steps must be at least 1, and no fewer than 0 examples can be shown")
    if Path(o.out).is_file():
        raise DataError(f"{o.out} is a file: give a folder to write into")


def _own_normals(reader: Inputs) -> list[Batch] | None:
    """Some of the run's validation split; None if it is not to be had, or too small to learn from."""
    from tessella.evaluation.samples import CHUNK
    from tessella.tasks.detect.scores import FEWEST

    try:
        split = reader.own.split("valid")
    except TessellaError:
        return None
    rows = split.random_rows(TAUGHT)
    if len(rows) < FEWEST:
        return None
    return [split.batch(rows[first : first + CHUNK]) for first in range(0, len(rows), CHUNK)]


def _by(o: Detect, detector: Detector) -> str:
    given = [score.name for score in detector.scores]
    if detector.left_out:
        left = ", ".join(score.name for score in detector.left_out)
        note(f"{left}: left out, for there are no normals to learn from; --calibrate gives some")
    if o.score is None:
        return detector.preferred
    if o.score not in given:
        raise SpecError(f"the score {o.score} is not to be had here; there are: {', '.join(given)}")
    return o.score


def _write(
    out: Path,
    o: Detect,
    detector: Detector,
    found: DetectionResult,
    calibration: Calibration | None,
    rankings: dict[str, Ranking] | None,
) -> None:
    from tessella.foundation.files import write_atomic
    from tessella.pages.anomalies import write_anomalies

    summary = {
        "version": 1,
        "run": o.run,
        "model": detector.examine.model.name,
        "dims": detector.examine.model.schema.dims,
        "units": "nats per example; higher is more anomalous",
        "by": found.by,
        "scores": {score.name: score.summary for score in detector.scores},
        "false_positives": None if calibration is None else calibration.false_positives,
        "normals": None if calibration is None else len(calibration.normals[found.by]),
        "thresholds": None if calibration is None else calibration.thresholds,
        "rankings": None if rankings is None else {name: asdict(r) for name, r in rankings.items()},
    }
    write_atomic(out / "scores.csv", lambda draft: _write_table(draft, found.records(calibration)))
    write_atomic(out / "scores.json", lambda draft: _write_json(draft, summary, found.records(calibration)))
    write_anomalies(out / "index.html", o.run, detector, found, calibration, rankings)


def _write_table(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """The records as CSV, each as it comes: there may be very many."""
    first = next(records)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        for record in chain([first], records):
            writer.writerow({k: cell(v) if isinstance(v, str) else v for k, v in record.items()})


def _write_json(path: Path, summary: dict[str, Any], records: Iterator[dict[str, Any]]) -> None:
    """The summary and, as its list `examples`, the records as they come."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json_text(summary, indent=1).removesuffix("\n}") + ',\n "examples": [')
        for number, record in enumerate(records):
            file.write(("," if number else "") + "\n  " + json_text(record, indent=1).replace("\n", "\n  "))
        file.write("\n ]\n}")


def _say(
    detector: Detector,
    found: DetectionResult,
    calibration: Calibration | None,
    rankings: dict[str, Ranking] | None,
    out: str,
) -> None:
    headings = _headings(calibration, rankings)
    rows = []
    for score in detector.scores:
        cells: list[str] = []
        if rankings is not None:
            cells += rankings[score.name].figures
        if calibration is not None:
            above = found.scores[score.name] > calibration.thresholds[score.name]
            cells += [f"{calibration.thresholds[score.name]:.2f}", f"{int(above.sum()):,}"]
        rows.append([f"{score.name}{' *' if score.name == found.by else ''}", *cells, score.summary])
    say_table("", ("score", *headings, "what it says"), rows, figures=range(1, 1 + len(headings)))
    say(f"* the pages and flags go by it; {len(found):,} examples in all")
    say(f"wrote {out}/index.html, scores.csv and scores.json")


def _headings(calibration: Calibration | None, rankings: dict[str, Ranking] | None) -> Sequence[str]:
    judged = ["AUROC", "average precision"] if rankings is not None else []
    return [*judged, *(["threshold, nats", "above it"] if calibration is not None else [])]
