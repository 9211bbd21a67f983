"""`tessella demo`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tyro.conf import arg

from tessella.commands.shared import Where
from tessella.foundation.errors import SpecError
from tessella.models.spec import TrainOptions

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.models.codes import CodeModel
    from tessella.pages import demo as page
    from tessella.tasks.search import SearchResult
    from tessella.training.run import Run

DATA = "clothes"
CODEBOOK = 128
PRIOR_WIDTH, PRIOR_DEPTH = 48, 4
RATE, PRIOR_RATE = 3e-3, 2e-3
"""Learning rates: with so little time, small networks come farther with more than the package's own."""
SHARE = 0.6
"""Of the time, for the model; the rest is the prior's."""
EDITED, REGION, VARIANTS = "Dress", (0, 12, 28, 16), 5
QUERIES, NEAREST = ("Ankle boot", "Bag", "Dress"), 7
NORMAL, STRANGE, SCORE, FALSE_POSITIVES, SHOWN = 300, 20, "complexity", 0.01, 6
COMPRESSED = 500
PROBES = 20
"""Convolutions that are timed, a few milliseconds each, to see whether the machine is busy."""


@dataclass(frozen=True)
class Demo:
    """Train a VQ-VAE and a prior on embedded pictures of clothes, and show on one page what they can do.

    The page has samples, an edit, a search, anomalies and a compressed file, each beside the command that does it.

    Attributes:
        out: the run folder; `demo-run` is replaced if it is there.
        minutes: how long to train: three fifths for the model, two for the prior.
    """

    out: Annotated[str, arg(aliases=("-o",))] = "demo-run"
    minutes: float = 2.5
    where: Annotated[Where, arg(name="")] = field(default_factory=Where)


def demo(o: Demo) -> int:
    if not o.minutes > 0:
        raise SpecError(f"--minutes must be more than 0, got {o.minutes}")
    import torch

    threads = torch.get_num_threads()
    try:
        if threads > 1 and _crowded(threads):
            torch.set_num_threads(1)
            print("other programs keep this machine busy: computing with one thread, so expect rougher pictures")
        return _shown(o)
    finally:
        torch.set_num_threads(threads)


def _crowded(threads: int) -> bool:
    """Whether one thread is faster than all: where others hold the cores, threads mostly wait for each other."""
    import torch

    x, weight = torch.randn(64, 32, 14, 14), torch.randn(32, 32, 3, 3)

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        torch.nn.functional.conv2d(x, weight, padding=1)
        started = time.perf_counter()
        for _ in range(PROBES):
            torch.nn.functional.conv2d(x, weight, padding=1)
        return time.perf_counter() - started

    return sum(seconds(1) for _ in range(3)) < sum(seconds(threads) for _ in range(3))


def _shown(o: Demo) -> int:
    device = str(o.where.find())
    started = time.monotonic()
    import torch

    from tessella import VQVAE, open_data
    from tessella.bottlenecks.quantizers import EMAQuantizer
    from tessella.evaluation.bounds import evaluate
    from tessella.evaluation.metric_text import saving_text, size_text
    from tessella.likelihoods.logistic import LogisticMixture
    from tessella.models.codes import CodeModel
    from tessella.pages.html import write_html
    from tessella.priors.autoregressive import PixelCNN
    from tessella.tasks.report import ReportConfig, report
    from tessella.training.fit_prior import fit_prior
    from tessella.training.loop import train
    from tessella.training.results_store import EVALUATION
    from tessella.training.run import Run

    data, run = open_data(DATA), Path(o.out)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    _say(1, f"data: {counts} pictures of clothes, 28x28 (Fashion-MNIST, inside the package)")
    _say(
        2, f"training a VQ-VAE for {60 * SHARE * o.minutes:.0f} seconds: each picture becomes a small grid of integers"
    )
    options = TrainOptions(minutes=SHARE * o.minutes, learning_rate=RATE, device=device)
    torch.manual_seed(options.seed)
    new = VQVAE(
        data.schema,
        quantizer=EMAQuantizer(codebook_size=CODEBOOK),
        likelihood=LogisticMixture(components=3),
        width=32,
        depth=1,
    )
    trained = train(new, data, run, options, overwrite=o.out == Demo.out)
    if trained.stopped == "signal":
        return _stopped(f"tessella train --resume --out {run}")
    codes = int(np.prod(new.levels[0].code_shape))
    print(f"        {trained.steps:,} steps; {codes} integers below {CODEBOOK} a picture")
    _say(3, f"fitting a prior for {60 * (1 - SHARE) * o.minutes:.0f} seconds: which integers go together")
    options = TrainOptions(minutes=(1 - SHARE) * o.minutes, learning_rate=PRIOR_RATE, device=device)
    fitted = fit_prior(run, data, PixelCNN(width=PRIOR_WIDTH, depth=PRIOR_DEPTH), options)
    if fitted.training.stopped == "signal":
        return _stopped(f"tessella fit-prior {run} --resume")
    print(f"        {fitted.training.steps:,} steps")

    model = Run(run, device).model()
    assert isinstance(model, CodeModel)
    found = evaluate(model, data.split("test"), data=data.spec, split_name="test")
    assert found.codes is not None
    assert found.bound is not None
    Run(run).results.save(EVALUATION.format("test"), found, seed=0)
    if found.codes.learned:
        _say(4, f"test: the learned prior {saving_text(found.codes)} of the bits of the codes; a picture takes "
                f"{size_text(found.bound)} in all, {size_text(784 * 8 * np.log(2))} raw")  # fmt: skip
    else:
        _say(4, f"test: a picture takes {size_text(found.bound)}, {size_text(784 * 8 * np.log(2))} raw; the learned "
                "prior is no better than the uniform one, which is used: give more --minutes")  # fmt: skip
    from tessella.coding import code_atlas
    from tessella.pages import demo as page

    shown = page.Demo(
        run,
        model,
        found,
        code_atlas.encode_examples(model, data.split("test")),
        _edit(model, data),
        _search(data, Run(run)),
        _anomalies(model, data, Run(run)),
        _compression(data, run),
        o.minutes,
        Run(run).prior_choice().note,
    )
    write_html(run / "report.html", report(Run(run), ReportConfig()).page())
    written = os.path.abspath(page.write(shown))
    _say(9, f"done in {(time.monotonic() - started) / 60:.1f} minutes: open {written} in a browser")
    print("then try pictures of your own:")
    print("tessella train vqvae --data FOLDER --out RUN --minutes 10 && tessella fit-prior RUN --minutes 10")
    return 0


def _say(step: int, what: str) -> None:
    print(f"{step} of 9  {what}", flush=True)


def _stopped(go_on: str) -> int:
    print(f"stopped and saved; go on with: {go_on}")
    return 130


def _first(data: Data, split: str, name: str) -> int:
    """The number of the first example of a class."""
    labels = data.split(split).labels
    assert labels is not None
    return int(np.flatnonzero(labels == data.schema.classes.index(name))[0])


def _edit(model: CodeModel, data: Data) -> page.Edit:
    """The lower half of one picture, sampled anew given the upper half."""
    from tessella.pages import demo as page
    from tessella.tasks.edit.editing import edit_picture
    from tessella.tasks.edit.operations import Inpaint
    from tessella.tasks.edit.regions import box

    number = _first(data, "test", EDITED)
    x = data.split("test").batch([number]).x[0]
    region = box(*REGION, (28, 28))
    edited = edit_picture(model, x, region, Inpaint(VARIANTS))
    _say(5, f"edit: the lower half of test picture {number}, a {EDITED.lower()}, sampled anew {VARIANTS} times; "
            f"{len(edited.changed(0))} of {edited.levels[0].before.numel()} codes changed in the first")  # fmt: skip
    return page.Edit(number, ",".join(map(str, REGION)), edited)


def _search(data: Data, run: Run) -> SearchResult:
    """The nearest test pictures to some of the validation split."""
    from tessella.tasks.search import IndexConfig, SearchConfig, index, search

    index(run, IndexConfig(split="test"))
    numbers = [_first(data, "valid", name) for name in QUERIES]
    found = search(run, SearchConfig(tuple(f"valid:{number}" for number in numbers), count=NEAREST))
    test, valid = data.split("test").labels, data.split("valid").labels
    assert test is not None
    assert valid is not None
    same = sum(
        int(test[int(one.name.removeprefix("test-"))] == valid[number])
        for number, (_, *near) in zip(numbers, found.rows, strict=True)
        for one in near
    )
    _say(6, f"search: of the {NEAREST} nearest of {found.examples:,} pictures to each of {len(numbers)} queries, "
            f"{same} of {NEAREST * len(numbers)} are of the query's class")  # fmt: skip
    return found


def _anomalies(model: CodeModel, data: Data, run: Run) -> page.Anomalies:
    """Handwritten digits among clothes."""
    from tessella.core.batches import Batch
    from tessella.data import open_data
    from tessella.pages import demo as page
    from tessella.tasks.detect import Detector
    from tessella.tasks.detect.detection import find, held_out
    from tessella.tasks.detect.inputs import Inputs, Lot, Source

    reader = Inputs(model, run)
    detector, calibration = held_out(
        lambda normals: Detector(model, (SCORE,), normals=normals), reader.find(["valid"]), FALSE_POSITIVES
    )
    digits = open_data("digits", size=28).split("test").batch(range(STRANGE)).x
    lot = Lot([f"digit-{i}" for i in range(STRANGE)], Batch(digits), ["digit"] * STRANGE)
    inputs = reader.find([str(i) for i in range(NORMAL)])
    findings = find(detector, inputs, [Source(STRANGE, lambda: iter([lot]))], by=SCORE, show=SHOWN)
    flagged, known = findings.flagged(calibration), np.array(findings.anomalous, bool)
    _say(7, f"anomalies: {int((flagged & known).sum())} of {known.sum()} handwritten digits lie above the threshold, "
            f"and {int((flagged & ~known).sum())} of {int((~known).sum())} clothes")  # fmt: skip
    return page.Anomalies(findings, calibration, findings.rankings()[SCORE].auroc)


def _compression(data: Data, run: Path) -> page.Compression:
    """Test pictures in a lossless file, and back; coding runs on the processor."""
    from tessella.coding import files
    from tessella.coding.baseline_codecs import BaselineCodecs
    from tessella.coding.container import Container
    from tessella.coding.weights import Weights
    from tessella.core.batches import Batch
    from tessella.data.inputs import NamedBatch
    from tessella.pages import demo as page
    from tessella.training.run import load

    model, out = load(run), run / "clothes.tes"
    rivals = BaselineCodecs(model.schema, lossy=False)
    x = data.split("test").batch(range(COMPRESSED)).x
    rivals.collect(x)
    names = [f"test-{row}" for row in range(COMPRESSED)]
    packed = files.compress(
        model, [NamedBatch(names, Batch(x), [None] * COMPRESSED)], str(out), Weights.of(str(run), model)
    )
    same = [
        bool((back == one).all())
        for one, (_, back) in zip(x, files.decompress(Container(str(out)), model), strict=True)
    ]
    if not all(same):
        raise SpecError(f"{out} does not give back what went in: please report this")
    measured = rivals.sizes()
    beside = ", ".join(f"{rival.bytes:,} as {rival.name}" for rival in measured)
    _say(
        8, f"compressed: {COMPRESSED} test pictures in {packed.bytes:,} bytes, {beside}; back, every pixel is the same"
    )
    return page.Compression(out.name, packed, measured)
