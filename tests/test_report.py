"""The report: it stands alone, says what was measured, and keeps silent about what does not exist."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import tessella
from tessella.bottlenecks import VectorQuantizer
from tessella.core.contracts import CodePrior
from tessella.core.outputs import UNCONDITIONAL
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.core.tensors import write_tensors
from tessella.data import Data
from tessella.evaluation import metric_text
from tessella.evaluation.results import (
    CodesEvaluation,
    CollapseEvaluation,
    Evaluation,
    ImportanceBound,
    LevelEvaluation,
)
from tessella.foundation.blocks import Chart, Series
from tessella.foundation.registry import find
from tessella.models import presets
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import Spec, TrainOptions
from tessella.pages.charts import draw_chart, ticks
from tessella.pages.command_lines import command_line
from tessella.pages.html import html_page
from tessella.priors import MaskedTransformer
from tessella.tasks.code_blocks import rate_maps
from tessella.tasks.report.sections import compose, prior_call, train_call
from tessella.training import checkpoint, fitted_priors
from tessella.training.run import Run

BYTES = Schema.of((1, 8, 8), "uint8")
MEASURED = Evaluation(
    model="vae", data="digits", split="test", examples=141, dims=64, rate=20.0, distortion=160.0, bound=180.0,
    bits_per_dim=180 / 64 / math.log(2), importance_bound=ImportanceBound(5, 175.0, 3.9), kl_per_unit=(12.0, 8.0, 0.0),
    active_units=2, mse=25.5**2, psnr=20.0, parameters=1000, seconds=1.0,
)  # fmt: skip
SAID = {"title": "nats", "across": "units"}
VOID = {"meta", "img", "br", "link", "i", "hr"}


def a_run(
    folder: Path, kind: str = "VAE", data: str = "digits", *, lines: int = 6, **options: object
) -> tuple[Path, Model, Data]:
    """A run folder as training leaves one, without training."""
    opened = tessella.open_data(data, **({"size": 16} if data == "sprites" else {}))
    torch.manual_seed(0)
    options |= {} if kind.startswith("VQ") else {"latent_dim": 3}
    model = getattr(presets, kind)(opened.schema, width=8, depth=1, **options).eval()
    run = checkpoint.prepare_run(folder / "my run")
    training = {"steps": 3, "batch_size": 8, "seed": 0}
    checkpoint.write_spec(run, Spec(model.name, model.schema, model.config, {"spec": data, **opened.options}, training))
    write_tensors(run / checkpoint.MODEL, model.state_dict(), {"step": 3})
    has = model.has_prior
    with (run / checkpoint.METRICS).open("w") as file:
        for k in range(lines):
            note = {"step": k, "seconds": 40.0 * k, "distortion": 200 - k, "rate": k if has else None, "mse": 9 - k}
            note["bits_per_dim"] = 5 - k / 10 if has else None
            note |= {"code_usage": k / 9, "perplexity": float(k)} if kind.startswith("VQ") else {}
            file.write(json.dumps({"kind": "train", **note}) + "\n" + json.dumps({"kind": "valid", **note}) + "\n")
        file.write('{"kind": "train", "st')  # cut off
    return run, model, opened


class Page(HTMLParser):
    """Every address, heading and open tag of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.unlabelled = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(given[name]) for name in ("src", "href", "data", "action") if name in given]
        self.unlabelled += tag == "img" and not given.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.mark.parametrize(("kind", "data"), [("VAE", "digits"), ("CVAE", "digits"), ("AE", "digits")])
def test_a_page_stands_alone_and_is_well_formed(kind: str, data: str, tmp_path: Path) -> None:
    run, model, opened = a_run(tmp_path, kind, data)
    text = html_page(compose(Run(run), model, opened)[1])
    page = Page(text)
    assert page.open == []
    assert page.unlabelled == 0
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"https?://|url\(|@import|<script", text)
    wanted = {"The data", "Reconstructions", "Interpolations", "Latent traversals", "Training", "The numbers"}
    assert wanted | {"How to reproduce"} <= set(page.headings)
    assert ("Samples" in page.headings) == ("Rate per latent dimension" in page.headings) == model.has_prior
    assert ("An autoencoder has no prior" in text) == (not model.has_prior)
    assert ("Is the latent used?" in page.headings) == model.has_prior
    assert "Codes" not in page.headings


TWO_CODES = {"quantizer": VectorQuantizer(codes_per_position=2)}
SEEN = {"Codes", "What each code stands for", "How often", "Usage over training", "Is the latent used?"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("VQVAE", {}), ("VQVAE", TWO_CODES), ("VQVAE2", {})],
    ids=str,
)
def test_a_model_of_codes_shows_them(kind: str, options: dict, tmp_path: Path) -> None:
    run, model, opened = a_run(tmp_path, kind, **options)
    text = html_page(compose(Run(run), model, opened)[1])
    page = Page(text)
    assert page.open == []
    assert page.unlabelled == 0
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert set(page.headings) >= SEEN
    assert "Latent traversals" not in page.headings
    assert "each as likely as any other" in text
    assert "learned prior" not in text
    assert ("code 2 of the 2 at each position" in text) == bool(options)
    assert ("coarsest codes" in text) == (kind == "VQVAE2")
    if kind == "VQVAE":
        assert f"{16 * (2 if options else 1)} integers below 512" in text


class Zeros(CodePrior):
    """Nearly always code 0: a prior that has been fitted, as far as a page can see."""

    def __init__(self, code_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.code_shape = code_shape

    def forward(self, codes, condition=UNCONDITIONAL, *, noise=None):  # pyright: ignore
        return torch.where(codes == 0, math.log(0.9), math.log(0.1 / 511))

    def generate(self, count, select, condition=UNCONDITIONAL):  # pyright: ignore
        return torch.zeros(count, *self.code_shape, dtype=torch.int64)


def test_samples_of_the_uniform_and_the_learned_prior_stand_side_by_side(tmp_path: Path) -> None:
    run, model, opened = a_run(tmp_path, "VQVAE")
    assert isinstance(model, CodeModel)
    model.set_prior([Zeros(model.prior_shapes[0])])
    text = html_page(compose(Run(run), model, opened)[1])
    samples = text.partition("<h2>Samples</h2>")[2].partition("<h2>")[0]
    uniform, learned = re.findall(r'<img[^>]*src="([^"]*)"', samples)
    assert uniform != learned
    assert "uniform prior" in samples
    assert "learned prior" in samples
    assert "rate of each code under the learned prior" in text
    assert "rate, uniform prior" in text
    batch = opened.split("test").batch(range(4))
    cost = rate_maps(model, batch)
    assert cost[0].sum((1, 2)).tolist() == pytest.approx(model.rate(model.encode(batch.x)).total.tolist())  # pyright: ignore


def test_a_codebook_that_has_collapsed_is_warned_of_on_the_page(tmp_path: Path) -> None:
    run, model, opened = a_run(tmp_path, "VQVAE")
    assert isinstance(model, CodeModel)
    with torch.no_grad():
        for parameter in model.levels[0].head.parameters():  # pyright: ignore
            parameter.zero_()
    text = html_page(compose(Run(run), model, opened)[1])
    assert "<b>Warning:</b> the codebook has collapsed: 1 of its 512 codes" in text
    assert "quantizer fsq" in text
    assert "No: the latent is not used" in text


def test_vectors_have_codes_too(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("\n".join(",".join(f"{v:.4f}" for v in row) for row in Noise(0).normal(80, 5).tolist()))
    run, model, opened = a_run(tmp_path, "VQVAE", str(table))
    page = Page(html_page(compose(Run(run), model, opened)[1]))
    assert set(page.headings) >= SEEN


def test_vectors_have_a_page_too(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(80, 5, generator=generator).tolist()
    table.write_text("\n".join(",".join(f"{v:.4f}" for v in row) for row in rows))
    run, model, opened = a_run(tmp_path, "VAE", str(table))
    text = html_page(compose(Run(run), model, opened)[1])
    assert "rows of 5 numbers" in text
    assert "table.csv" in text


def test_a_run_without_curves_or_test_split_has_a_page(tmp_path: Path) -> None:
    run, model, opened = a_run(tmp_path, lines=0)
    only = replace(opened, splits={"train": opened.splits["valid"]})
    text = html_page(compose(Run(run), model, only)[1])
    assert "too short" in text
    assert "of the same" in text


def test_numbers_are_said_in_words() -> None:
    lines = {n.name: n for n in metric_text.numbers(MEASURED, BYTES)}
    assert lines["bits per dimension"].value == f"{180 / 64 / math.log(2):.3f}"
    assert lines["bits per dimension"].meaning.startswith("32 bytes per picture, 2.0 times less than stored raw")
    assert lines["active units"].value == "2 of 3"
    assert lines["PSNR"].value == "20.0 dB"
    assert "25.5 (root mean square) in a range of 255" in lines["PSNR"].meaning
    worse = replace(MEASURED, bound=720.0)
    assert "2.0 times more" in metric_text.numbers(worse, BYTES)[0].meaning
    binary = Schema.of((1, 8, 8), "binary")
    assert "one bit per value (8.0 bytes)" in metric_text.numbers(MEASURED, binary)[0].meaning
    assert "density" in metric_text.numbers(MEASURED, Schema.of((64,), Real(-1, 1)))[0].meaning


def test_codes_and_their_use_are_said_in_words() -> None:
    coarse = LevelEvaluation(16, 512, 0.5, 200.4, 16 * math.log(512), 80.0, 300.0)
    fine = replace(coarse, codes_per_example=64, code_usage=1.0, rate_uniform=64 * math.log(512), rate=300.0)
    codes = CodesEvaluation(80, 512, 0.5, 200.4, 80 * math.log(512), True, (coarse, fine))
    judged = CollapseEvaluation(250, 78, 80, 5.5, math.log(250), 123.4, False)
    e = replace(MEASURED, active_units=None, mse=None, psnr=None, codes=codes, collapse=judged)
    lines = {n.name: n for n in metric_text.numbers(e, BYTES)}
    assert lines["codes, coarsest level"].value == "16 of 512"
    assert lines["codes, finest level"].meaning.startswith("a picture becomes 64 integers below 512, 9 bits each; 6.76")
    assert lines["code usage, coarsest level"].value == "50.0 %"
    assert lines["perplexity, coarsest level"].value == "200 of 512"
    assert "finer levels set to zero" in lines["distortion, coarsest level"].meaning
    assert f"saves {100 * (1 - 380 / codes.rate_uniform):.0f} %" in lines["rate, uniform prior"].meaning
    assert lines["shuffle cost"].value == "123.40 nats"
    assert lines["mutual information"].value == "5.50 of 5.52 nats"
    assert lines["codes that vary"].value == "78 of 80"
    assert "PSNR" not in lines
    only = replace(codes, levels=(coarse,), learned=False)
    names = [n.name for n in metric_text.numbers(replace(e, codes=only), BYTES)]
    assert "codes" in names
    assert not {"distortion, coarsest level", "rate, uniform prior"} & set(names)


def test_a_number_that_does_not_exist_is_not_said() -> None:
    none = replace(
        MEASURED, rate=None, bound=None, bits_per_dim=None, importance_bound=None, kl_per_unit=None, active_units=None
    )
    names = [n.name for n in metric_text.numbers(none, BYTES)]
    assert names == ["bound", "distortion", "PSNR", "parameters"]


@pytest.mark.parametrize(
    ("size", "text"), [(3, "3.0 bytes"), (30, "30 bytes"), (3100, "3.1 kB"), (2.5e6, "2.5 MB"), (7e9, "7000.0 MB")]
)
def test_sizes_have_units(size: float, text: str) -> None:
    assert metric_text.size_text(size * 8 * math.log(2)) == text


def test_the_command_to_reproduce_is_the_one_that_was_given(tmp_path: Path) -> None:
    from tessella import cli

    given = ["--data", "digits", "--out", str(tmp_path / "a b"), "--size", "10", "12", "--binarize", "static"]
    given += [
        "--steps",
        "7",
        "--batch-size",
        "32",
        "--latent-dim",
        "5",
        "--compile",
        "yes",
        "--learning-rate",
        "0.0005",
    ]
    data = {"spec": "digits", "size": [10, 12], "channels": None, "binarize": "static", "seed": 0}
    data |= {"fingerprint": "abc", "examples": {"train": 9}}
    training = {**vars(TrainOptions(steps=7, batch_size=32, compile="yes", learning_rate=5e-4))}
    config = find("model", "vae").load()(latent_dim=5)
    spec = Spec("vae", Schema.of((1, 10, 12), "binary"), config, data, training)
    command = shlex.split(command_line(train_call(spec, tmp_path / "a b")))
    assert command[:2] == ["tessella", "train"]
    from tessella.commands.train import train_options

    again, first = (
        cli._parsed(train_options(words), "train", list(words[1:])) for words in (command[2:], ["vae", *given])
    )
    assert again.chosen == first.chosen
    assert vars(again.training) == vars(first.training)
    assert vars(again.data_reading) == vars(first.data_reading)


def test_the_command_to_fit_the_prior_again_is_the_one_that_was_given(tmp_path: Path) -> None:
    training = vars(TrainOptions(minutes=7, batch_size=32, ema_decay=0.99))
    prior = fitted_priors.PriorSpec(MaskedTransformer(width=32), "abc", class_conditional=True, training=training)
    command = command_line(prior_call(prior, tmp_path / "a b"))
    given = "--kind masked --width 32 --minutes 7 --batch-size 32 --ema-decay 0.99 --class-conditional"
    assert shlex.split(command) == ["tessella", "fit-prior", str(tmp_path / "a b"), *given.split()]


@pytest.mark.parametrize(
    ("low", "high", "about"), [(0, 1, 4), (-3.2, 8.8, 5), (0.001, 0.0042, 3), (1e6, 3e6, 4), (17, 17.3, 4)]
)
def test_ticks_are_round_and_inside(low: float, high: float, about: int) -> None:
    marks = ticks(low, high, about)
    assert 2 <= len(marks) <= 2 * about + 2
    assert all(low - 1e-9 <= mark <= high + 1e-9 for mark in marks)
    steps = {round(b - a, 9) for a, b in pairwise(marks)}
    assert len(steps) == 1


def test_ticks_of_nothing_are_one() -> None:
    assert ticks(2, 2, 4) == [2]
    assert ticks(0, math.inf, 4) == [0]


def test_charts_draw_flat_lines_and_many_bars() -> None:
    flat = str(draw_chart(Chart("x < y", [Series([0, 5], [3.0, 3.0])], settled=True)).shapes)
    assert "nan" not in flat
    values = [1 / (k + 1) for k in range(5000)]
    few, many = (draw_chart(Chart("", [Series(range(len(v)), v)], kind="bar", used=2)) for v in (values[:3], values))
    assert sum(shape.tag == "rect" for shape in few.shapes) == 3
    assert any(shape.text == "2 in use, 1 not" for shape in few.shapes)
    assert not any(shape.tag == "rect" for shape in many.shapes)
    assert len(str(many.shapes)) < 30_000


@pytest.mark.parametrize("kind", ["line", "bar", "scatter", "stack"])
def test_charts_of_nothing_and_of_what_is_not_finite_are_drawn(kind) -> None:
    for x, y in (([], []), ([1.0], [math.nan]), ([1.0, 2.0], [None, math.inf])):
        assert "nan" not in str(draw_chart(Chart("empty", [Series(x, y)], kind=kind)).shapes)
