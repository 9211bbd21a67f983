"""One page about a run that a stranger understands: `report.html`, which stands alone."""

from __future__ import annotations

import html
import math
import os
import platform
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tessella
from tessella.core.schema import Schema
from tessella.data import Data, Split, contact_sheet, describe
from tessella.evaluation import samples
from tessella.evaluation.bounds import ACTIVE, evaluate
from tessella.evaluation.metric_text import numbers, psnr_text, saving_card, size_text
from tessella.evaluation.results import Evaluation, GapEvaluation
from tessella.foundation import registry
from tessella.kinds.base import kind_of
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import Spec, TrainOptions
from tessella.pages import blocks, codes
from tessella.pages.html import html_blocks
from tessella.pages.svg import bar_chart, over_time
from tessella.tasks.inference_gap import gap_section
from tessella.training import checkpoint, fitted_priors
from tessella.training.results_store import GAP, ResultsStore

REPORT = "report.html"
SPLITS = ("test", "valid", "train")
QUICK = 2000
MOST_ROWS = 16
NO_PRIOR = (
    "<p>An autoencoder has no prior over its latents: it does not say which of them are plausible. So nothing can be "
    "sampled from it, and no probability, no bound and no bits per dimension can be said of the data. What it can do "
    "is give examples back.</p>"
)
NO_BOUND = (
    "<p>A prior was fitted over this autoencoder's latents, so that new examples can be drawn. But its latent is a "
    "point and not a distribution, so no bound and no bits per dimension can be said of the data.</p>"
)


@torch.inference_mode()
def write(run: Path, model: Model, data: Data) -> Path:
    """Write `report.html` into the run and return its path.

    The test split is measured quickly if `tessella evaluate` has not done so for the weights as they are.
    """
    spec = checkpoint.read_spec(run)
    name = next(s for s in SPLITS if s in data.splits)
    split = data.split(name)
    e = ResultsStore(run).evaluation(name) or evaluate(model, split, limit=QUICK, data=data.spec, split_name=name)
    gap = ResultsStore(run).load(GAP, GapEvaluation)
    metrics = checkpoint.read_metrics(run)
    title = f"{model.name} on {_short(data.spec)}"
    passed_over = fitted_priors.choose_prior(run).note
    body = [
        _opening(title, spec, model, data, e, metrics, passed_over),
        _data(data),
        _reconstructions(model, split, name),
        _samples(model, passed_over),
        ""
        if e.codes is None or not isinstance(model, CodeModel)
        else codes.section(model, split, name, e.codes, metrics),
        "" if blocks.slow(model) else _interpolations(model, split, name),
        "" if blocks.slow(model) or e.codes is not None else _traversals(model, split),
        _units(e),
        _collapse(e, model.schema),
        "" if gap is None else html_blocks(gap_section(gap)),
        _curves(run, metrics, model),
        _numbers(e, model.schema),
        _reproduce(run, spec, e, metrics),
    ]
    blocks.write_page(run / REPORT, title, body)
    return run / REPORT


def _opening(
    title: str,
    spec: Spec,
    model: Model,
    data: Data,
    e: Evaluation,
    metrics: list[dict[str, Any]],
    passed_over: str,
) -> str:
    schema = model.schema
    one = kind_of(schema).example
    kind = kind_of(schema).description
    spent = f", in {_duration(metrics[-1]['seconds'])}" if metrics else ""
    others = "of the same" if e.split == "train" else "others that had no part in training"
    by = f"{math.prod(model.latent_shape):,} numbers"
    if e.codes is not None:
        by = f"{e.codes.codes_per_example:,} integers below {e.codes.codebook_size:,}"
    lead = (
        f"From {len(data.split('train')):,} {kind} this model learned{spent}, to describe each by "
        f"{by} and to draw it again from those. "
        f"Below is how well it does on {e.examples:,} {others}."
    )
    known = spec.model in registry.names("model")
    what = registry.find("model", spec.model).summary if known else "a composition of one's own"
    cards = []
    if e.bound is not None and e.bits_per_dim is not None:
        cards.append((f"{e.bits_per_dim:.3f}", "bits per dimension, at most: what saying one number of the data costs"))
        if schema.values.discrete:
            raw = schema.dims * math.log(schema.values.levels)
            cards.append((size_text(e.bound), f"a {one}, against {size_text(raw)} stored raw"))
    if e.psnr is not None:
        cards.append((psnr_text(e.psnr), "PSNR: how close reconstructions come; more is better"))
    if e.active_units is not None and e.kl_per_unit is not None:
        cards.append((f"{e.active_units:,} of {len(e.kl_per_unit):,}", "latent units are in use"))
    if e.codes is not None:
        worst = " (of the level that uses least of them)" if len(e.codes.levels) > 1 else ""
        cards.append((f"{100 * e.codes.code_usage:.3g} %", f"of the {e.codes.codebook_size:,} codes occur{worst}"))
        if e.codes.learned:
            cards.append(saving_card(e.codes, one))
    notes = [*e.notes, passed_over] if passed_over else e.notes
    warned = "".join(f'<p class="warned"><b>Warning:</b> {html.escape(note)}</p>' for note in notes)
    why = "" if e.bound is not None else NO_PRIOR if not model.has_prior else NO_BOUND
    return (
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>'
        f'<p class="soft">{html.escape(spec.model)}: {html.escape(what)}</p>{warned}{blocks.cards(cards)}{why}'
    )


def _data(data: Data) -> str:
    lines = "".join(blocks.row(*line.split(maxsplit=1)) for line in describe(data).splitlines())
    caption = "Some of what it learned from, as stored." + (
        " A row is a class." if data.schema.classes and data.split("train").labels is not None else ""
    )
    return f"<h2>The data</h2>{blocks.figure(contact_sheet(data), caption, widest=560)}<table>{lines}</table>"


def _reconstructions(model: Model, split: Split, name: str) -> str:
    columns = blocks.columns_of(model.schema)
    count = columns if blocks.slow(model) else 3 * columns
    pairs = samples.reconstruct_rows(model, split.batch(split.random_rows(count)), columns)
    caption = (
        f"Examples of the {name} split; below each row of inputs their reconstructions, decoded from nothing but "
        "their latents."
    )
    labels = ["input", "reconstruction"] * (len(pairs) // 2)
    return f"<h2>Reconstructions</h2>{blocks.labelled_rows(pairs, labels, model.schema, caption)}"


def _samples(model: Model, passed_over: str) -> str:
    """Samples from the prior in use.

    Args:
        passed_over: why a fitted prior is not the one in use; empty if none was passed over.
    """
    if not model.has_prior:
        return ""
    if isinstance(model, CodeModel) and model.fitted:
        return codes.samples(model)
    columns, classes = blocks.columns_of(model.schema), model.schema.classes
    text = (
        "None of these exists. A latent is drawn from the prior, and the model draws what it stands for "
        "(the mean of p(x | z))."
    )
    if isinstance(model, CodeModel):
        text = (
            "Codes sampled from the uniform prior, each as likely as any other, and decoded. "
            + (f"{passed_over[0].upper()}{passed_over[1:]}." if passed_over else
               "No prior over codes has been fitted yet: tessella fit-prior does that.")
        )  # fmt: skip
    if model.conditional and len(classes) <= MOST_ROWS:
        rows = samples.sample_rows(model, columns * len(classes))
        figure = blocks.labelled_rows(rows, classes, model.schema, f"{text} A row is a class that was asked for.")
    else:
        count = columns * (1 if blocks.slow(model) else 4)
        drawn = samples.sample_rows(model, count).flatten(0, 1)[:count]
        figure = blocks.sheet(samples.in_rows(drawn, columns, model.schema.values.low), model.schema, text)
    return f"<h2>Samples</h2>{figure}"


def _interpolations(model: Model, split: Split, name: str) -> str:
    columns = blocks.columns_of(model.schema)
    chosen = split.random_rows(8)
    half = len(chosen) // 2
    columns = max(4, columns)
    if not half:
        return ""
    walks = samples.interpolate_rows(
        model, split.batch(chosen[:half]), split.batch(chosen[half : 2 * half]), columns - 2
    )
    caption = (
        f"At the ends two examples of the {name} split; between them the model's drawings of latents on the way from "
        "one to the other."
    )
    return f"<h2>From one to another</h2>{blocks.sheet(walks, model.schema, caption)}"


def _traversals(model: Model, split: Split) -> str:
    units = samples.latent_statistics(model, split)
    chosen = units.order[:10]
    columns = (blocks.columns_of(model.schema) - 1) // 2 * 2 + 1
    example = split.batch(split.random_rows(1))
    rows = samples.traverse_rows(model, example, units, chosen, steps=columns)
    moved = "channel of the latent grid" if len(model.latent_shape) > 1 else "latent unit"
    first = "those that say most first" if units.rate is not None else "those that vary most first"
    caption = (
        f"One example redrawn with one {moved} moved and all else kept, from -2.5 to 2.5 standard deviations about its "
        f"mean; {first}."
    )
    return f"<h2>One unit at a time</h2>{blocks.labelled_rows(rows, units.names(chosen), model.schema, caption)}"


def _units(e: Evaluation) -> str:
    if e.kl_per_unit is None or e.active_units is None:
        return ""
    caption = (
        "What each latent unit says of an example on average (KL to the prior), sorted. Together the bars are the "
        f"rate, {e.rate:.2f} nats. A unit under {ACTIVE:g} nats is not in use."
    )
    chart = bar_chart(
        sorted(e.kl_per_unit, reverse=True),
        e.active_units,
        title="nats, mean over the examples",
        across="latent units, sorted",
    )
    return f"<h2>What each unit says</h2><figure>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _collapse(e: Evaluation, schema: Schema) -> str:
    """Whether the latent is used, in words."""
    if e.collapse is None:
        return ""
    c, one = e.collapse, kind_of(schema).example
    what = "codes" if e.codes is not None else "latent"
    cards = [
        (
            f"{c.shuffle_cost:,.{1 if c.shuffle_cost < 100 else 0}f} nats",
            f"is what a {one} loses of its log p(x | z) if it is given another one's {what}",
        ),
        (
            f"{c.mutual_information:.2f} nats",
            f"is what the {what} tell{'' if e.codes else 's'} of which of {c.examples:,} {one}s it is; "
            f"there are {c.mutual_information_ceiling:.2f} to tell",
        ),
    ]
    if c.active_units is not None:
        moved = "codes differ" if e.codes is not None else "latent numbers move"
        cards.append((f"{c.active_units:,} of {c.units:,}", f"{moved} from {one} to {one}"))
    verdict = f"No: {c.advice}" if c.collapsed else f"Yes: what is drawn depends on the {what}."
    intro = (
        f"{verdict} A decoder that is strong enough can do without what it is told, and the encoder then stops "
        "telling: posterior collapse."
    )
    return f"<h2>Is the latent used?</h2><p>{html.escape(intro)}</p>{blocks.cards(cards)}"


def _curves(run: Path, metrics: list[dict[str, Any]], model: Model) -> str:
    wanted = [("distortion", "distortion, nats"), ("mse", "squared error, stored units")]
    if model.has_bound:
        wanted = [("bits_per_dim", "bits per dimension"), ("distortion", "distortion, nats"), ("rate", "rate, nats")]
    of_codes = bool(model.levels)
    charts = over_time(metrics, wanted[:2] if of_codes else wanted)
    if not charts:
        return "<h2>Training</h2><p>It was too short to draw curves of.</p>"
    caption = (
        '<span class="key"><i class="t"></i>training batches, with the weights as they move</span> '
        '<span class="key"><i></i>validation split, with the averaged weights that are kept</span>. '
        f"Lower {wanted[0][1].partition(',')[0]} is better. The first moments may run off the top."
        + (" Up to here all codes are held equally plausible: the rate is N log K throughout." if of_codes else "")
    )
    home, fitting = _prior_of(run), ""
    what = "codes" if of_codes else "latents"
    if home is not None:
        cost = f"rate of the {what}, nats" if model.has_bound else "-log p(z), nats"
        fitting = over_time(checkpoint.read_metrics(home), [("rate", cost)])
    if fitting:
        words = f"Then a prior over the {what} was fitted ({home.name if home else ''}): what the {what} cost under it."
        fitting = f"<figure>{fitting}<figcaption>{html.escape(words)}</figcaption></figure>"
    return f"<h2>Training</h2><figure>{charts}<figcaption>{caption}</figcaption></figure>{fitting}"


def _prior_of(run: Path) -> Path | None:
    """The folder of the fitted prior that the run's model uses; None if there is none."""
    kind = fitted_priors.prior_in_use(run)
    return None if kind is None else fitted_priors.prior_home(run, kind.split()[0])


def _numbers(e: Evaluation, schema: Schema) -> str:
    rows = "".join(blocks.row(n.name, n.value, n.meaning) for n in numbers(e, schema))
    intro = f"Averages over {e.examples:,} examples of the {e.split} split. A nat is {1 / math.log(2):.3f} bits. " + (
        "A file coder built on this model would need the bound's number of bits." if e.bound is not None else ""
    )
    head = "<tr><th>what</th><th>value</th><th>what it means</th></tr>"
    return f"<h2>The numbers</h2><p>{intro}</p><table>{head}{rows}</table>"


def _reproduce(run: Path, spec: Spec, e: Evaluation, metrics: list[dict[str, Any]]) -> str:
    samples = f" --importance-samples {e.importance_bound.samples}" if e.importance_bound else ""
    out = shlex.quote(str(run))
    steps = f"# it took {metrics[-1]['step']:,} steps in {_duration(metrics[-1]['seconds'])}\n" if metrics else ""
    home = _prior_of(run)
    prior = f"{prior_command(fitted_priors.read_prior_spec(home), run)}\n" if home else ""
    commands = f"{train_command(spec, run)}\n{steps}{prior}tessella evaluate {out}{samples}\ntessella report {out}"
    versions = {
        "trained with": f"tessella {spec.tessella}, seed {spec.training.get('seed', 0)}",
        "page written with": f"tessella {tessella.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "on": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
    table = "".join(blocks.row(name, version) for name, version in versions.items())
    return (
        f"<h2>How to reproduce</h2><pre>{html.escape(commands)}</pre><table>{table}</table>"
        f"<details><summary>the run's specification</summary><pre>{html.escape(spec.to_json())}</pre></details>"
    )


def train_command(spec: Spec, run: Path) -> str:
    """The command line that starts such a run, with every option that is not the default."""
    words = ["tessella", "train", spec.model, "--data", str(spec.data.get("spec", "?")), "--out", str(run)]
    shown = {k: v for k, v in spec.data.items() if k not in ("spec", "seed")}
    given = {} if spec.config is None else spec.config.changed()
    usual = {**asdict(TrainOptions(steps=1)), "steps": None, "minutes": None}
    return shlex.join([*words, *_flags(given, {}), *_flags({**spec.training, **shown}, usual)])


def prior_command(prior: fitted_priors.PriorSpec, run: Path) -> str:
    """The command line that fits such a prior over the latents of a run."""
    given = {**prior.training, "class_conditional": prior.class_conditional}
    usual = {**asdict(TrainOptions(steps=1)), "steps": None, "minutes": None, "class_conditional": False}
    words = ["tessella", "fit-prior", str(run), "--kind", prior.kind]
    return shlex.join([*words, *_flags(prior.config.changed(), {}), *_flags(given, usual)])


def _flags(given: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """Options that are not as usual, as words of a command line."""
    words = []
    for name, value in given.items():
        if value is None or value == usual.get(name):
            continue
        values = [] if value is True else list(value) if isinstance(value, list | tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return words


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
