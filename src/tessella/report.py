"""One page about a run that a stranger understands: `report.html`, which stands alone."""

from __future__ import annotations

import html
import json
import math
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import tessella
from tessella import checkpoint, pictures, registry
from tessella.data import Data, Split, contact_sheet, describe
from tessella.evaluation.bounds import ACTIVE, evaluate
from tessella.models.model import Model
from tessella.records import Evaluation, ImportanceBound, Precision, Schema
from tessella.spec import ModelOptions, Spec, TrainOptions
from tessella.uses import look

REPORT = "report.html"
SPLITS = ("test", "valid", "train")
WIDTH, TILE = 860, 64
QUICK = 2000
MOST_ROWS = 16


@dataclass(frozen=True)
class Number:
    """One line of a table: what, how much, and what that means in words."""

    name: str
    value: str
    meaning: str


# evaluations kept with the run


def store(run: Path, result: Evaluation, *, seed: int, precision: Precision = "float32") -> None:
    """Keep an evaluation on the run's own data, with how it was made and the step of the weights that it is about."""
    record = {**jsonable(result), "seed": seed, "precision": precision, "step": _step(run)}
    text = json.dumps(record, indent=2)
    checkpoint.write_atomic(run / f"evaluation-{result.split}.json", lambda path: path.write_text(text))


def stored(run: Path, split: str) -> Evaluation | None:
    """The evaluation that was kept, if there is one of the weights as they are now."""
    try:
        record = json.loads((run / f"evaluation-{split}.json").read_text())
        if record["step"] != _step(run):
            return None
        known = {f.name: record[f.name] for f in fields(Evaluation)}
        if known["importance_bound"] is not None:
            known["importance_bound"] = ImportanceBound(**known["importance_bound"])
        if known["kl_per_unit"] is not None:
            known["kl_per_unit"] = tuple(known["kl_per_unit"])
        return Evaluation(**{**known, "psnr": math.inf if known["psnr"] is None else known["psnr"]})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def jsonable(result: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON knows it: numbers that are not finite become null."""
    return json.loads(json.dumps(result.to_json()), parse_constant=lambda _: None)


def _step(run: Path) -> int | None:
    return checkpoint.read_tensors(run / checkpoint.MODEL).progress.get("step")


# the numbers in words


def numbers(e: Evaluation, schema: Schema) -> list[Number]:
    """What an evaluation says, line by line."""
    one = "picture" if schema.is_picture else "example"
    lines = []
    if e.bound is not None and e.bits_per_dim is not None and e.rate is not None:
        lines += [
            Number("bits per dimension", f"{e.bits_per_dim:.3f}", _against_raw(e.bound, schema, one)),
            Number(
                "bound", f"{e.bound:.2f} nats", f"rate + distortion: at least the model's surprise -log p(x) at a {one}"
            ),
            Number("rate", f"{e.rate:.2f} nats", f"of it spent on saying the latent: {e.rate / math.log(2):.1f} bits"),
            Number("distortion", f"{e.distortion:.2f} nats", f"of it spent on saying the {one}, given the latent"),
        ]
    else:
        lines += [
            Number("bound", "none", "without a prior over latents no probability of the data can be said"),
            Number(
                "distortion",
                f"{e.distortion:.2f} nats",
                f"-log p(x | z): the {one}, given its latent; the latent is not paid for",
            ),
        ]
    if e.importance_bound is not None:
        b = e.importance_bound
        meaning = f"the same bound, tighter: {b.bits_per_dim:.3f} bits per dimension from {b.samples} draws an example"
        lines.append(Number("importance bound", f"{b.nats:.2f} nats", meaning))
    if e.active_units is not None and e.kl_per_unit is not None:
        meaning = f"latent units that say more than {ACTIVE:g} nats on average; the others are ignored"
        lines.append(Number("active units", f"{e.active_units:,} of {len(e.kl_per_unit):,}", meaning))
    psnr = "exact" if math.isinf(e.psnr) else f"{e.psnr:.1f} dB"
    error = math.sqrt(e.mse)
    meaning = f"reconstructions are off by {error:.3g} (root mean square) in a range of {schema.high - schema.low:g}"
    lines.append(Number("PSNR", psnr, meaning))
    lines.append(Number("parameters", f"{e.parameters:,}", "numbers that training adjusted"))
    return lines


def size_text(nats: float) -> str:
    """Nats as the size of a file: `3.1 kB`."""
    size = nats / math.log(2) / 8
    for unit in ("bytes", "kB", "MB"):
        if abs(size) < 1000 or unit == "MB":
            break
        size /= 1000
    return f"{size:.0f} bytes" if unit == "bytes" and size >= 10 else f"{size:.1f} {unit}"


def _against_raw(bound: float, schema: Schema, one: str) -> str:
    if schema.values == "real":
        return (
            "of a density, which depends on the data's unit and may be negative: compare models of the same data only"
        )
    raw = schema.dims * math.log(2) * (8 if schema.values == "bytes" else 1)
    each = "8 bits a number" if schema.values == "bytes" else "one bit a number"
    if bound <= 0:
        return f"about nothing a {one}"
    ratio = raw / bound
    compared = f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"
    return f"{size_text(bound)} a {one}, {compared} than stored raw at {each} ({size_text(raw)})"


# the page


@torch.inference_mode()
def write(run: Path, model: Model, data: Data) -> Path:
    """Write `report.html` into the run and return its path.

    The test split is measured quickly if `tessella evaluate` has not done so for the weights as they are.
    """
    spec = checkpoint.read_spec(run)
    name = next(s for s in SPLITS if s in data.splits)
    split = data.split(name)
    e = stored(run, name) or evaluate(model, split, limit=QUICK, data=data.spec, split_name=name)
    metrics = read_metrics(run / checkpoint.METRICS)
    title = f"{model.name} on {_short(data.spec)}"
    body = "\n".join(
        [
            _opening(title, spec, model, data, e, metrics),
            _data(data),
            _reconstructions(model, split, name),
            _samples(model),
            _interpolations(model, split, name),
            _traversals(model, split),
            _units(e),
            _curves(metrics, model),
            _numbers(e, model.schema),
            _reproduce(run, spec, e, metrics),
            f"<footer>Written by tessella {tessella.__version__}. This page holds everything it shows.</footer>",
        ]
    )
    template = Template(resources.files("tessella").joinpath("report_template.html").read_text("utf-8"))
    page = template.substitute(title=html.escape(title), body=body)
    checkpoint.write_atomic(run / REPORT, lambda path: path.write_text(page, "utf-8"))
    return run / REPORT


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that was cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            lines.append(record)
    return lines


def _opening(title: str, spec: Spec, model: Model, data: Data, e: Evaluation, metrics: list[dict[str, Any]]) -> str:
    schema = model.schema
    one = "picture" if schema.is_picture else "example"
    kind = f"pictures of {schema.shape[2]}x{schema.shape[1]}" if schema.is_picture else f"rows of {schema.dims} numbers"
    spent = f", in {_duration(metrics[-1]['seconds'])}" if metrics else ""
    others = "of the same" if e.split == "train" else "others that had no part in training"
    lead = (
        f"From {len(data.split('train')):,} {kind} this model learned{spent}, to describe each by "
        f"{math.prod(model.latent_shape):,} numbers and to draw it again from those. "
        f"Below is how well it does on {e.examples:,} {others}."
    )
    known = spec.model in registry.names("model")
    what = registry.find("model", spec.model).summary if known else "a composition of one's own"
    cards = []
    if e.bound is not None and e.bits_per_dim is not None:
        cards.append((f"{e.bits_per_dim:.3f}", "bits per dimension, at most: what saying one number of the data costs"))
        if schema.values != "real":
            raw = schema.dims * math.log(2) * (8 if schema.values == "bytes" else 1)
            cards.append((size_text(e.bound), f"a {one}, against {size_text(raw)} stored raw"))
    cards.append(
        ("exact" if math.isinf(e.psnr) else f"{e.psnr:.1f} dB", "PSNR: how close reconstructions come; more is better")
    )
    if e.active_units is not None and e.kl_per_unit is not None:
        cards.append((f"{e.active_units:,} of {len(e.kl_per_unit):,}", "latent units are in use"))
    shown = "".join(f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(m)}</span></div>' for v, m in cards)
    why = "" if e.bound is not None else (
        "<p>An autoencoder has no prior over its latents: it does not say which of them are plausible. So nothing can "
        "be sampled from it, and no probability, no bound and no bits per dimension can be said of the data. "
        "What it can do is give examples back.</p>"
    )  # fmt: skip
    return (
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f'<p class="soft">{html.escape(spec.model)}: {html.escape(what)}</p><div class="cards">{shown}</div>{why}'
    )


def _data(data: Data) -> str:
    lines = "".join(_row(*line.split(maxsplit=1)) for line in describe(data).splitlines())
    caption = "Some of what it learned from, as stored." + (
        " A row is a class." if data.schema.classes and data.split("train").labels is not None else ""
    )
    return f"<h2>The data</h2>{_figure(contact_sheet(data), caption, widest=560)}<table>{lines}</table>"


def _reconstructions(model: Model, split: Split, name: str) -> str:
    columns = _columns(model.schema)
    pairs = look.reconstruct(model, split.batch(look.some(split, 3 * columns)), columns)
    caption = (
        f"Examples of the {name} split, and below each row of them what the model gives back after squeezing each "
        "through its latent."
    )
    labels = ["as it is", "given back"] * (len(pairs) // 2)
    return f"<h2>Reconstructions</h2>{_labelled_rows(pairs, labels, model.schema, caption)}"


def _samples(model: Model) -> str:
    if not model.has_prior:
        return ""
    columns, classes = _columns(model.schema), model.schema.classes
    text = (
        "None of these exists. A latent is drawn from the prior, and the model draws what it stands for "
        "(the mean of p(x | z))."
    )
    if model.conditional and len(classes) <= MOST_ROWS:
        rows = look.sample(model, columns * len(classes))
        figure = _labelled_rows(rows, classes, model.schema, f"{text} A row is a class that was asked for.")
    else:
        drawn = look.sample(model, columns * 4).flatten(0, 1)[: columns * 4]
        figure = _sheet(look.in_rows(drawn, columns, model.schema.low), model.schema, text)
    return f"<h2>Samples</h2>{figure}"


def _interpolations(model: Model, split: Split, name: str) -> str:
    columns = _columns(model.schema)
    chosen = look.some(split, 8)
    half = len(chosen) // 2
    columns = max(4, columns)
    if not half:
        return ""
    walks = look.interpolate(model, split.batch(chosen[:half]), split.batch(chosen[half : 2 * half]), columns - 2)
    caption = (
        f"At the ends two examples of the {name} split; between them the model's drawings of latents on the way from "
        "one to the other."
    )
    return f"<h2>From one to another</h2>{_sheet(walks, model.schema, caption)}"


def _traversals(model: Model, split: Split) -> str:
    units = look.survey(model, split)
    chosen = units.order[:10]
    columns = (_columns(model.schema) - 1) // 2 * 2 + 1
    example = split.batch(look.some(split, 1))
    rows = look.traverse(model, example, units, chosen, steps=columns)
    moved = "channel of the latent grid" if len(model.latent_shape) > 1 else "latent unit"
    first = "those that say most first" if units.rate is not None else "those that vary most first"
    caption = (
        f"One example redrawn with one {moved} moved and all else kept, from -2.5 to 2.5 standard deviations about its "
        f"mean; {first}."
    )
    return f"<h2>One unit at a time</h2>{_labelled_rows(rows, look.named(units, chosen), model.schema, caption)}"


def _units(e: Evaluation) -> str:
    if e.kl_per_unit is None or e.active_units is None:
        return ""
    caption = (
        "What each latent unit says of an example on average (KL to the prior), sorted. Together the bars are the "
        f"rate, {e.rate:.2f} nats. A unit under {ACTIVE:g} nats is not in use."
    )
    chart = bar_chart(sorted(e.kl_per_unit, reverse=True), e.active_units)
    return f"<h2>What each unit says</h2><figure>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _curves(metrics: list[dict[str, Any]], model: Model) -> str:
    wanted = [("distortion", "distortion, nats"), ("mse", "squared error, stored units")]
    if model.has_prior:
        wanted = [("bits_per_dim", "bits per dimension"), ("distortion", "distortion, nats"), ("rate", "rate, nats")]
    seconds = max((m.get("seconds") or 0 for m in metrics), default=0)
    per, unit = (60, "minutes") if seconds >= 120 else (1, "seconds")
    charts = []
    for key, title in wanted:
        lines = {
            kind: [(m["seconds"] / per, m[key]) for m in metrics if m.get("kind") == kind and _is_number(m.get(key))]
            for kind in ("train", "valid")
        }
        if any(len(points) > 1 for points in lines.values()):
            charts.append(line_chart(lines, title, f"{unit} of training"))
    if not charts:
        return "<h2>Training</h2><p>It was too short to draw curves of.</p>"
    caption = (
        '<span class="key"><i class="t"></i>training batches, with the weights as they move</span> '
        '<span class="key"><i></i>validation split, with the averaged weights that are kept</span>. '
        f"Lower {wanted[0][1].partition(',')[0]} is better. The first moments may run off the top."
    )
    figure = f'<div class="charts">{"".join(charts)}</div><figcaption>{caption}</figcaption>'
    return f"<h2>Training</h2><figure>{figure}</figure>"


def _numbers(e: Evaluation, schema: Schema) -> str:
    rows = "".join(_row(n.name, n.value, n.meaning) for n in numbers(e, schema))
    intro = f"Averages over {e.examples:,} examples of the {e.split} split. A nat is {1 / math.log(2):.3f} bits. " + (
        "A file coder built on this model would need the bound's number of bits." if e.bound is not None else ""
    )
    head = "<tr><th>what</th><th>value</th><th>what it means</th></tr>"
    return f"<h2>The numbers</h2><p>{intro}</p><table>{head}{rows}</table>"


def _reproduce(run: Path, spec: Spec, e: Evaluation, metrics: list[dict[str, Any]]) -> str:
    samples = f" --importance-samples {e.importance_bound.samples}" if e.importance_bound else ""
    out = shlex.quote(str(run))
    steps = f"# it took {metrics[-1]['step']:,} steps in {_duration(metrics[-1]['seconds'])}\n" if metrics else ""
    commands = f"{train_command(spec, run)}\n{steps}tessella evaluate {out}{samples}\ntessella report {out}"
    versions = {
        "trained with": f"tessella {spec.tessella}, seed {spec.training.get('seed', 0)}",
        "page written with": f"tessella {tessella.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "on": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
    table = "".join(_row(name, version) for name, version in versions.items())
    return (
        f"<h2>How to reproduce</h2><pre>{html.escape(commands)}</pre><table>{table}</table>"
        f"<details><summary>the run's specification</summary><pre>{html.escape(spec.to_json())}</pre></details>"
    )


def train_command(spec: Spec, run: Path) -> str:
    """The command line that starts such a run, with every option that is not the default."""
    words = ["tessella", "train", spec.model, "--data", str(spec.data.get("spec", "?")), "--out", str(run)]
    shown = {k: v for k, v in spec.data.items() if k not in ("spec", "seed")}
    given = {**asdict(spec.options), **spec.training, **shown}
    usual = {**asdict(ModelOptions()), **asdict(TrainOptions(steps=1)), "steps": None, "minutes": None}
    if spec.model == "beta-vae":
        usual["beta"] = 4.0
    for name, value in given.items():
        if value is None or value == usual.get(name):
            continue
        flag = f"--{name.replace('_', '-')}"
        values = [] if value is True else list(value) if isinstance(value, list | tuple) else [value]
        words += [flag, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return shlex.join(words)


# figures


def _row(name: str, *rest: str) -> str:
    """A table's row: a name, perhaps a value, and words."""
    classes = ("v", "m") if len(rest) > 1 else ("m",)
    cells = "".join(f"<td class={c}>{html.escape(text)}</td>" for c, text in zip(classes, rest, strict=True))
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def _columns(schema: Schema) -> int:
    width = schema.shape[2] if schema.is_picture else pictures.PLOT_WIDTH
    return max(3, min(11, WIDTH // max(width, TILE)))


def _scale(schema: Schema, columns: int) -> int:
    height, width = schema.shape[1:] if schema.is_picture else (pictures.PLOT_HEIGHT, pictures.PLOT_WIDTH)
    return max(1, min(-(-TILE // min(height, width)), WIDTH // (columns * width)))


def _sheet(examples: Tensor, schema: Schema, caption: str) -> str:
    scale = _scale(schema, examples.shape[1])
    image = pictures.grid(examples.flatten(0, 1), schema, examples.shape[1], scale=scale)
    return _figure(image, caption, pixels=scale > 1)


def _labelled_rows(examples: Tensor, labels: Sequence[str], schema: Schema, caption: str) -> str:
    columns = examples.shape[1]
    scale = max(1, min(_scale(schema, columns), (WIDTH - 150) // (columns * max(schema.shape[-1], 1))))
    rows = "".join(
        f"<span>{html.escape(label)}</span>{_image(pictures.grid(row, schema, columns, scale=scale), label, scale > 1)}"
        for label, row in zip(labels, examples, strict=True)
    )
    return f'<figure><div class="rows">{rows}</div><figcaption>{html.escape(caption)}</figcaption></figure>'


def _figure(image: Image.Image, caption: str, *, pixels: bool = False, widest: int = WIDTH) -> str:
    return f"<figure>{_image(image, caption, pixels, widest)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(image: Image.Image, alt: str, pixels: bool, widest: int = WIDTH) -> str:
    kind = ' class="pixels"' if pixels else ""
    size = f'width="{min(image.width, widest)}" alt="{html.escape(alt, quote=True)}"'
    return f'<img{kind} src="{pictures.png_data_uri(image)}" {size}>'


def line_chart(lines: dict[str, list[tuple[float, float]]], title: str, across: str) -> str:
    """Lines `{css class: [(x, y), ...]}` as SVG with axes; the first tenth of the time does not decide the scale."""
    points = [p for line in lines.values() for p in line]
    end = max(x for x, _ in points) or 1.0
    settled = [y for x, y in points if x >= end / 10] or [y for _, y in points]
    low, high = min(settled), max(settled)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    ys = ticks(low - margin, high + margin, 4)
    plot = _Plot(300, 210, (0.0, end), (min(low - margin, ys[0]), max(high + margin, ys[-1])))
    parts = [plot.frame(title, across, ticks(0, end, 4), ys)]
    for kind, line in lines.items():
        if not line:
            continue
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y, clip=True):.1f}" for x, y in _thinned(line))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        x, y = line[-1]
        if kind == "valid":
            parts.append(f'<circle class="valid" cx="{plot.x(x):.1f}" cy="{plot.y(y, clip=True):.1f}" r="3"/>')
    return plot.svg(parts, title)


def bar_chart(values: Sequence[float], active: int) -> str:
    """Values in falling order as SVG bars, the first `active` of them marked off; very many become an outline."""
    top = max(*values, 1e-3) * 1.05
    count = len(values)
    plot = _Plot(860, 230, (0.0, float(count)), (0.0, top))
    parts = [plot.frame("nats, mean over the examples", "latent units, sorted", ticks(0, count, 8), ticks(0, top, 4))]
    if count <= 256:
        wide = (plot.x(1) - plot.x(0)) * (0.8 if count <= 128 else 1)
        for k, value in enumerate(values):
            kind, y = ("bar" if k < active else "idle"), plot.y(max(value, 0))
            tall = max(plot.y(0) - y, 0.5)
            parts.append(
                f'<rect class="{kind}" x="{plot.x(k):.1f}" y="{y:.1f}" width="{wide:.2f}" height="{tall:.1f}"/>'
            )
    else:
        outline = " ".join(f"{plot.x(k):.1f},{plot.y(max(v, 0)):.1f}" for k, v in _thinned(list(enumerate(values))))
        corners = f"{plot.x(0):.1f},{plot.y(0):.1f} {outline} {plot.x(count):.1f},{plot.y(0):.1f}"
        parts.append(f'<polygon class="bar" points="{corners}"/>')
    if active < count:
        x, y = plot.x(active) - 0.1 * (plot.x(1) - plot.x(0)), plot.y(top)
        late = active > 0.75 * count
        anchor, to_side = ("end", -6) if late else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{plot.y(0):.1f}"/>')
        text = f"{active:,} in use, {count - active:,} not"
        parts.append(
            f'<text class="marked" x="{x + to_side:.1f}" y="{y + 12:.1f}" text-anchor="{anchor}">{text}</text>'
        )
    return plot.svg(parts, "KL of each latent unit")


@dataclass(frozen=True)
class _Plot:
    """Data coordinates on an SVG canvas."""

    width: int
    height: int
    across: tuple[float, float]
    up: tuple[float, float]

    LEFT, RIGHT, TOP, BOTTOM = 46, 8, 26, 38

    def x(self, value: float) -> float:
        return self.LEFT + (value - self.across[0]) / (self.across[1] - self.across[0]) * (
            self.width - self.LEFT - self.RIGHT
        )

    def y(self, value: float, *, clip: bool = False) -> float:
        share = (value - self.up[0]) / (self.up[1] - self.up[0])
        share = min(max(share, 0.0), 1.0) if clip else share
        return self.height - self.BOTTOM - share * (self.height - self.TOP - self.BOTTOM)

    def frame(self, title: str, across: str, xs: Sequence[float], ys: Sequence[float]) -> str:
        base, right = self.height - self.BOTTOM, self.width - self.RIGHT
        parts = [f'<text class="title" x="{self.LEFT}" y="14">{html.escape(title)}</text>']
        for y in ys:
            at = self.y(y)
            parts.append(f'<path class="axis" d="M{self.LEFT} {at:.1f}H{right}"/>')
            parts.append(f'<text x="{self.LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
        parts += [f'<text x="{self.x(x):.1f}" y="{base + 16}" text-anchor="middle">{x:g}</text>' for x in xs]
        middle = (self.LEFT + right) / 2
        parts.append(f'<text x="{middle:.0f}" y="{self.height - 4}" text-anchor="middle">{html.escape(across)}</text>')
        return "".join(parts)

    def svg(self, parts: Sequence[str], label: str) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(label, quote=True)}">'
            f"{''.join(parts)}</svg>"
        )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, about so many."""
    rough = (high - low) / about
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(points: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    every = -(-len(points) // most)
    return points if every == 1 else [*points[::every], points[-1]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _short(spec: str) -> str:
    return os.path.basename(spec.rstrip("/")) or spec


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "an unnamed processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
