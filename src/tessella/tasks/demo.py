"""Task `demo`: trains a small VQ-VAE with a prior on embedded pictures, and applies other tasks to it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from tessella.foundation.blocks import Block, Call, Calls, Cards, Details, Figure, Heading, Page, Table, Text, joined
from tessella.foundation.errors import SpecError, option
from tessella.foundation.notes import note
from tessella.tasks.compress import CompressConfig, CompressResult, compress
from tessella.tasks.detect import DetectConfig, detect
from tessella.tasks.edit import EditConfig, EditResult, edit
from tessella.tasks.report import Report, ReportConfig, report
from tessella.tasks.search import IndexConfig, SearchConfig, SearchResult, index, search
from tessella.tasks.task import Result, task

if TYPE_CHECKING:
    from tessella.data import Data
    from tessella.evaluation.results import Evaluation
    from tessella.tasks.detect.result import DetectionResult
    from tessella.training.run import Run

DATA, RUN = "clothes", "demo-run"
RATE, PRIOR_RATE = 3e-3, 2e-3
"""Learning rates: in so short a time small networks need higher ones than the package's defaults."""
SHARE = 0.6
"""Share of the training time for the model; the rest is for the prior."""
EDITED, REGION, VARIANTS = "Dress", "0,12,28,16", 5
QUERIES, NEAREST = ("Ankle boot", "Bag", "Dress"), 7
NORMAL, SCORE, FALSE_POSITIVES, SHOWN = 300, "complexity-corrected", 0.01, 6
COMPRESSED = 500
PROBES = 20
"""Number of timed convolutions, a few milliseconds each, that show whether the machine is busy."""


@dataclass(frozen=True)
class DemoConfig:
    """Train a VQ-VAE and a prior on embedded pictures of clothes, and show on one page what they can do.

    The page has samples, an edit, a search, anomalies and a compressed file, each beside the command that makes it.

    Attributes:
        run: run folder to create; an existing `demo-run` is replaced.
        minutes: training time: three fifths for the model, two fifths for the prior.
    """

    run: str = RUN
    minutes: float = 2.5

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise SpecError(f"{option('minutes')} must be more than 0, got {self.minutes}", code="out-of-range")


@final
@dataclass(frozen=True)
class StoppedDemo(Result):
    """Training that was stopped and saved, with the call that resumes it."""

    run: str
    resume: Call

    @property
    def status(self) -> int:
        return 130

    def to_json(self) -> Mapping[str, Any]:
        return {"version": 1, "run": self.run, "stopped": True}

    def page(self) -> Page:
        return Page("Stopped", (Text("stopped and saved; resume with"), Calls([self.resume])))


@final
@dataclass(frozen=True)
class DemoResult(Result):
    """Results of other tasks with one small run.

    Attributes:
        run: the run folder.
        minutes: training time of model and prior together.
        evaluation: evaluation on the test split.
        passed_over: why the learned prior is not used; empty if it is.
        edited, found, anomalies, compressed, report: results of the tasks.
        samples, codes: page blocks on samples and codes.
    """

    run: str
    minutes: float
    evaluation: Evaluation
    passed_over: str
    edited: EditResult
    found: SearchResult
    anomalies: DetectionResult
    compressed: CompressResult
    report: Report
    samples: tuple[Block, ...]
    codes: tuple[Block, ...]

    def to_json(self) -> Mapping[str, Any]:
        return {
            "version": 1,
            "run": self.run,
            "evaluation": self.evaluation.to_json(),
            "edit": self.edited.to_json(),
            "search": self.found.to_json(),
            "anomalies": self.anomalies.summary(),
            "compression": self.compressed.to_json(),
        }

    def page(self) -> Page:
        e, run = self.evaluation, self.run
        assert e.codes is not None
        lead = (
            f"In {self.minutes:g} minutes on this machine a VQ-VAE learned to describe small pictures of clothes by "
            f"{e.codes.codes_per_example:,} integers each, and a prior learned which integers occur together. "
            f"Everything below was computed with the two, on {e.examples:,} test pictures that had no part in training."
        )
        blocks = joined(
            self._cards(),
            self.samples or (Heading("Samples"), Text(self.passed_over, "warning", "Warning:")),
            Calls([Call("sample", [run])]),
            Heading("Codes and reconstructions"),
            self.codes,
            Calls([Call("reconstruct", [run]), Call("encode", [run])]),
            self._edit(),
            self._search(),
            self._detect(),
            self._compress(),
            Heading("All numbers"),
            Details(
                "the report of this run: rate, distortion, bound, codes, training curves", self.report.page().blocks
            ),
            Calls(
                [
                    Call("report", [run]),
                    Call("train", ["vqvae"], {"data": "FOLDER", "out": "RUN", "minutes": 10}, "with your own pictures"),
                    Call("fit-prior", ["RUN"], {"minutes": 10}),
                ]
            ),
        )
        return Page("What one small run can do", blocks, lead)

    def _cards(self) -> Cards:
        from tessella.evaluation.metric_text import psnr_text, saving_card

        e, c, rankings = self.evaluation, self.compressed, self.anomalies.rankings
        assert e.codes is not None
        assert rankings is not None
        cards = [saving_card(e.codes, "picture")] if e.codes.learned else []
        if c.codecs:
            best = min(c.codecs, key=lambda codec: codec.bytes)
            smaller = 100 * (1 - c.file.bytes / best.bytes)
            words = "smaller" if smaller >= 0 else "larger"
            text = f"{words} than {best.name}: a lossless file of {c.file.examples:,} test pictures"
            cards.append((f"{abs(smaller):.0f} %", text))
        auroc = rankings[self.anomalies.by].auroc
        cards.append((f"{auroc:.3f}", "AUROC: how often a handwritten digit scores as more anomalous than clothes"))
        if e.psnr is not None:
            cards.append((psnr_text(e.psnr), "PSNR of the reconstructions"))
        return Cards(cards)

    def _edit(self) -> tuple[Block, ...]:
        from tessella.tasks.edit.result import edit_sheet

        c, edited = self.edited.config, self.edited.edited
        caption = (
            f"Test picture {c.picture}: the lower half of its codes is sampled from the prior given the upper half, "
            f"which stays: {len(edited.after)} variants, each above its difference to the reconstruction. In the first "
            f"variant {len(edited.changed(0))} codes changed; the orange line is the region, the grey one the "
            "decoder's reach."
        )
        options = {"region": REGION, "resample": True, "count": VARIANTS}
        call = Call("edit", [self.run, c.picture], options)
        return Heading("An edit"), Figure(edit_sheet(edited, self.edited.schema), caption), Calls([call])

    def _search(self) -> tuple[Block, ...]:
        caption = (
            f"Left, a picture of the validation split; beside it the nearest of {self.found.examples:,} test pictures, "
            "with their distances in latent space."
        )
        queries = [row[0].name.replace("-", ":") for row in self.found.rows]
        calls = Calls([Call("index", [self.run], {"split": "test"}), Call("search", [self.run, *queries])])
        return Heading("A search"), Figure(self.found.sheet(), caption), calls

    def _detect(self) -> tuple[Block, ...]:
        from tessella.tasks.detect.result import shown_extremes

        caught, strange, false, normal = _caught(self.anomalies)
        text = (
            f"{strange} handwritten digits, which the model never saw, among {normal:,} test pictures of clothes, "
            f"sorted by anomaly score. {100 * FALSE_POSITIVES:g} % of the validation pictures exceed the threshold: "
            f"{caught} of the digits lie above it, and {false} of the clothes. Digits are easy to distinguish from "
            "clothes; damage to a small part of a picture is much harder to find."
        )
        options = {"anomalies": "digits", "calibration_data": "valid"}
        return (
            Heading("Anomalies"),
            Text(text),
            *shown_extremes(self.anomalies),
            Calls([Call("detect", [self.run, f":{NORMAL}"], options)]),
        )

    def _compress(self) -> tuple[Block, ...]:
        c, file = self.compressed, self.compressed.file
        rows = [
            ("stored raw", file.numbers, "8 bits per pixel"),
            *((codec.name, codec.bytes, "one file each") for codec in c.codecs),
            ("the model's bound", file.bound_bytes, "the length that the model promises"),
            (Path(c.out).name, file.bytes, "all of them in one file, names and checksums included"),
        ]
        cells = [(what, f"{size:,.0f}", f"{size / file.examples:,.1f} bytes; {words}") for what, size, words in rows]
        text = f"The first {file.examples:,} test pictures, lossless: after decompression every pixel is the same."
        compress = Call("compress", [self.run, f":{COMPRESSED}"], {"out": "clothes.tes"})
        return (
            Heading("A compressed file"),
            Text(text),
            Table(("what", "bytes", "per picture"), cells),
            Calls([compress, Call("decompress", ["clothes.tes"], {"out": "pictures"})]),
        )


@task(
    "demo",
    summary="train on embedded pictures of clothes and show what can be done, in 4 minutes",
    group="start here",
    out="RUN/demo.html",
)
def demo(config: DemoConfig, device: str | None = None) -> DemoResult | StoppedDemo:
    """Train a small model with a prior, and run other tasks with it."""
    with _threads():
        return _demo(config, device)


def _demo(config: DemoConfig, device: str | None) -> DemoResult | StoppedDemo:
    import torch

    from tessella import VQVAE, open_data
    from tessella.bottlenecks import EMAQuantizer
    from tessella.coding.code_atlas import encode_examples
    from tessella.evaluation.bounds import evaluate
    from tessella.evaluation.metric_text import saving_text, size_text
    from tessella.likelihoods import LogisticMixture
    from tessella.models.codes import CodeModel
    from tessella.models.spec import TrainOptions
    from tessella.priors import PixelCNN
    from tessella.tasks.code_blocks import code_strips, prior_samples
    from tessella.training.loop import train
    from tessella.training.run import EVALUATION, Run

    data, run = open_data(DATA), Run(config.run, device)
    test = data.split("test")
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    note(f"1 of 8: data: {counts} pictures of clothes, 28x28 (Fashion-MNIST, inside the package)")
    seconds = 60 * config.minutes
    note(f"2 of 8: training a VQ-VAE for {SHARE * seconds:.0f} seconds: it encodes pictures as small grids of integers")
    options = TrainOptions(minutes=SHARE * config.minutes, learning_rate=RATE, device=device or "auto")
    torch.manual_seed(options.seed)
    small = VQVAE(
        data.schema,
        quantizer=EMAQuantizer(codebook_size=128),
        likelihood=LogisticMixture(components=3),
        width=32,
        depth=1,
    )
    trained = train(small, data, run.path, options, overwrite=config.run == RUN)
    if trained.stopped == "signal":
        return StoppedDemo(config.run, Call("train", (), {"resume": True, "out": config.run}))
    note(f"3 of 8: fitting a prior for {(1 - SHARE) * seconds:.0f} seconds: which integers occur together")
    options = TrainOptions(minutes=(1 - SHARE) * config.minutes, learning_rate=PRIOR_RATE, device=device or "auto")
    fitted = run.fit_prior(data, PixelCNN(width=48, depth=4), options)
    if fitted.training.stopped == "signal":
        return StoppedDemo(config.run, Call("fit-prior", [config.run], {"resume": True}))
    model = cast(CodeModel, run.model())
    evaluation = evaluate(model, test, data=data.spec, split_name="test")
    assert evaluation.codes is not None
    assert evaluation.bound is not None
    run.results.save(EVALUATION.format("test"), evaluation, seed=0)
    sizes = f"a picture takes {size_text(evaluation.bound)}, {size_text(data.schema.dims * 8 * math.log(2))} raw"
    prior = f"the learned prior {saving_text(evaluation.codes)} of the bits of the codes"
    no_better = f"the learned prior is no better than the uniform one, which is used: increase {option('minutes')}"
    note(f"4 of 8: test: {sizes}; {prior if evaluation.codes.learned else no_better}")
    return DemoResult(
        config.run,
        config.minutes,
        evaluation,
        run.prior_choice().note,
        _edited(run, data),
        _found(run, data),
        _anomalies(run),
        _compressed(run, data),
        report(run, ReportConfig()),
        prior_samples(model) if model.fitted else (),
        code_strips(model, encode_examples(model, test), "test"),
    )


@contextmanager
def _threads() -> Iterator[None]:
    """Compute with one thread if that is faster, as on a machine whose cores are busy."""
    import torch

    threads = torch.get_num_threads()
    x, weight = torch.randn(64, 32, 14, 14), torch.randn(32, 32, 3, 3)

    def seconds(count: int) -> float:
        torch.set_num_threads(count)
        torch.nn.functional.conv2d(x, weight, padding=1)
        started = time.perf_counter()
        for _ in range(PROBES):
            torch.nn.functional.conv2d(x, weight, padding=1)
        return time.perf_counter() - started

    try:
        if threads > 1 and sum(seconds(1) for _ in range(3)) < sum(seconds(threads) for _ in range(3)):
            torch.set_num_threads(1)
            note("other programs keep this machine busy: computing with one thread, so expect rougher pictures")
        else:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(threads)


def _first(data: Data, split: str, name: str) -> int:
    """Return the number of the first example of a class."""
    labels = data.split(split).labels
    assert labels is not None
    return labels.tolist().index(data.schema.classes.index(name))


def _edited(run: Run, data: Data) -> EditResult:
    """Resample the lower half of one picture given the upper half."""
    number = _first(data, "test", EDITED)
    result = edit(run, EditConfig(str(number), region=REGION, resample=True, count=VARIANTS))
    changed = f"{len(result.edited.changed(0))} of {result.edited.code_count} codes changed in the first"
    half = f"the lower half of test picture {number}, a {EDITED.lower()}"
    note(f"5 of 8: edit: {half}, sampled {VARIANTS} times; {changed}")
    return result


def _found(run: Run, data: Data) -> SearchResult:
    """Find the nearest test pictures to some pictures of the validation split."""
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
    every = f"{NEAREST} nearest of {found.examples:,} pictures to each of {len(numbers)} queries"
    note(f"6 of 8: search: of the {every}, {same} of {NEAREST * len(numbers)} are of the query's class")
    return found


def _anomalies(run: Run) -> DetectionResult:
    """Detect handwritten digits among clothes."""
    config = DetectConfig(
        (f":{NORMAL}",),
        calibration_data=("valid",),
        false_positives=FALSE_POSITIVES,
        anomalies=("digits",),
        scores=(SCORE,),
        top=SHOWN,
    )
    result = cast("DetectionResult", detect(run, config))
    caught, strange, false, normal = _caught(result)
    above = f"{caught} of {strange} handwritten digits lie above the threshold, and {false} of {normal} clothes"
    note(f"7 of 8: anomalies: {above}")
    return result


def _caught(result: DetectionResult) -> tuple[int, int, int, int]:
    """Count anomalies above the threshold, all anomalies, normal examples above it, and all normal examples."""
    flagged = result.flagged
    assert flagged is not None
    strange = [bool(above) for above, known in zip(flagged, result.anomalous, strict=True) if known]
    normal = [bool(above) for above, known in zip(flagged, result.anomalous, strict=True) if not known]
    return sum(strange), len(strange), sum(normal), len(normal)


def _compressed(run: Run, data: Data) -> CompressResult:
    """Compress test pictures into a lossless file, and check that it restores them."""
    from tessella.coding.container import Container
    from tessella.coding.files import read_compressed
    from tessella.coding.weights import model_for

    out = str(run.path / "clothes.tes")
    result = compress(run, CompressConfig((f":{COMPRESSED}",), out, overwrite=True))
    container = Container(out)
    x = data.split("test").batch(range(COMPRESSED)).x
    back = read_compressed(container, model_for(container))
    if not all(bool((one == restored).all()) for one, (_, restored) in zip(x, back, strict=True)):
        raise SpecError(f"{out} does not restore the original pictures: please report this", code="not-restored")
    beside = ", ".join(f"{codec.bytes:,} as {codec.name}" for codec in result.codecs)
    sizes = f"{COMPRESSED} test pictures in {result.file.bytes:,} bytes, {beside}"
    note(f"8 of 8: compressed: {sizes}; restored, every pixel is equal")
    return result
