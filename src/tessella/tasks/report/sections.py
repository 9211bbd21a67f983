"""Sections of a run's page."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

import tessella
from tessella.core.schema import Schema
from tessella.data import Data, Split
from tessella.data.dataset import RECORDED
from tessella.evaluation.bounds import ACTIVE, evaluate
from tessella.evaluation.metric_text import numbers, psnr_text, saving_card, size_text
from tessella.evaluation.results import Evaluation, GapEvaluation
from tessella.evaluation.samples import (
    in_rows,
    interpolate_rows,
    latent_statistics,
    reconstruct_rows,
    sample_rows,
    traverse_rows,
)
from tessella.evaluation.verdict import judge
from tessella.foundation import registry
from tessella.foundation.blocks import (
    Block,
    Call,
    Calls,
    Cards,
    Chart,
    Charts,
    Code,
    Details,
    Heading,
    Page,
    Series,
    Table,
    Text,
    joined,
)
from tessella.foundation.text import duration_text
from tessella.kinds.base import kind_of
from tessella.kinds.figures import examples_in_a_row, labelled_rows, named_examples, players, sheet_figure
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import Spec, TrainOptions
from tessella.tasks.code_blocks import code_blocks, prior_samples
from tessella.tasks.describe import contact_figure, data_facts
from tessella.tasks.inference_gap import gap_section
from tessella.training import checkpoint, fitted_priors
from tessella.training.run import GAP, Run

SPLITS = ("test", "valid", "train")
QUICK = 2000
"""Number of examples to measure if the run holds no evaluation."""
MOST_ROWS = 16
"""Maximum number of classes for which samples get one row each."""
WALKS, DIMENSIONS = 4, 10
"""Number of interpolations, and of latent dimensions to traverse."""
NO_PRIOR = (
    "An autoencoder has no prior over its latents, so it does not model which of them are plausible. It can "
    "reconstruct but not sample, and it has no probability, no bound and no bits per dimension of the data."
)
NO_BOUND = (
    "A prior was fitted over this autoencoder's latents, so that new examples can be sampled. But its latent is a "
    "point and not a distribution, so there is no bound and no bits per dimension of the data."
)


@torch.inference_mode()
def compose(run: Run, model: Model, data: Data) -> tuple[Evaluation, Page]:
    """Compose the page of a run; return it with the evaluation that it shows."""
    spec, metrics = run.spec, checkpoint.read_metrics(run.path)
    name = next(s for s in SPLITS if s in data.splits)
    split = data.split(name)
    e = run.results.evaluation(name) or evaluate(model, split, limit=QUICK, data=data.spec, split_name=name)
    gap = run.results.load(GAP, GapEvaluation)
    passed_over = run.prior_choice().note
    slow = _slow(model)
    blocks = joined(
        _opening(spec, model, e, passed_over),
        _verdict(model, data),
        _data(data),
        _reconstructions(model, split, name),
        _samples(model, passed_over),
        _codes(model, split, name, e, metrics),
        None if slow else _interpolations(model, split, name),
        None if slow or e.codes is not None else _traversals(model, split),
        _dimensions(e),
        _collapse(e, model.schema),
        None if gap is None else gap_section(gap),
        _curves(run, metrics, model),
        _numbers(e, model.schema),
        reproduction(run, spec, e, metrics),
    )
    title = f"{model.name} on {os.path.basename(data.spec.rstrip('/')) or data.spec}"
    return e, Page(title, blocks, _lead(model, data, e, metrics))


def _slow(model: Model) -> bool:
    """Return whether decoding takes a pass over all values, so that few examples should be shown."""
    return model.likelihood.sequential_mean


def _lead(model: Model, data: Data, e: Evaluation, metrics: list[dict[str, Any]]) -> str:
    schema = model.schema
    kind = kind_of(schema).description
    spent = f" in {duration_text(metrics[-1]['seconds'])}" if metrics else ""
    others = "of the same" if e.split == "train" else "others that had no part in training"
    by = f"{math.prod(model.latent_shape):,} numbers"
    if e.codes is not None:
        by = f"{e.codes.codes_per_example:,} integers below {e.codes.codebook_size:,}"
    return (
        f"From {len(data.split('train')):,} {kind} this model learned{spent} to encode each as {by}, and to "
        f"reconstruct it from those. Below are its results on {e.examples:,} {others}."
    )


def _opening(spec: Spec, model: Model, e: Evaluation, passed_over: str) -> tuple[Block, ...]:
    schema = model.schema
    one = kind_of(schema).example
    known = spec.model in registry.names("model")
    what = registry.find("model", spec.model).summary if known else "a model of your own"
    cards = []
    if e.bound is not None and e.bits_per_dim is not None:
        meaning = "bits per dimension: upper bound on -log p(x), the negative ELBO, per number of the data"
        cards.append((f"{e.bits_per_dim:.3f}", meaning))
        if schema.values.discrete:
            raw = schema.dims * math.log(schema.values.levels)
            cards.append((size_text(e.bound), f"per {one}, against {size_text(raw)} stored raw"))
    if e.sound is not None and e.sound.rate_per_second is not None:
        cards.append((f"{e.sound.rate_per_second:,.0f} bit/s", f"for the latents of the {one}s, without the residual"))
    if e.psnr is not None:
        cards.append((psnr_text(e.psnr), "PSNR of the reconstructions; higher is better"))
    if e.active_units is not None and e.kl_per_unit is not None:
        cards.append((f"{e.active_units:,} of {len(e.kl_per_unit):,}", "latent dimensions are active"))
    if e.codes is not None:
        worst = " (in the level with the lowest usage)" if len(e.codes.levels) > 1 else ""
        cards.append((f"{100 * e.codes.code_usage:.3g} %", f"of the {e.codes.codebook_size:,} codes occur{worst}"))
        if e.codes.learned:
            cards.append(saving_card(e.codes, one))
    notes = [*e.notes, passed_over] if passed_over else e.notes
    why = None if e.bound is not None else Text(NO_BOUND if model.has_prior else NO_PRIOR)
    warnings = [Text(note, "warning", "Warning:") for note in notes]
    return joined(Text(f"{spec.model}: {what}", "soft"), warnings, Cards(cards), why)


def _verdict(model: Model, data: Data) -> tuple[Block, ...]:
    """Compare the model with simple baselines on validation examples."""
    return tuple(Text(f"{sentence[:1].upper()}{sentence[1:]}.") for sentence in judge(model, data).sentences)


def _data(data: Data) -> tuple[Block, ...]:
    return Heading("The data"), contact_figure(data), Table(("", ""), data_facts(data), figures=())


def _reconstructions(model: Model, split: Split, name: str) -> tuple[Block, ...]:
    columns = examples_in_a_row(model.schema)
    rows = split.random_rows(columns if _slow(model) else 3 * columns)
    pairs = reconstruct_rows(model, split.batch(rows), columns)
    caption = (
        f"Examples of the {name} split; below each row of inputs are their reconstructions, decoded from the latents "
        "alone."
    )
    labels = ["input", "reconstruction"] * (len(pairs) // 2)
    shown = labelled_rows(pairs, labels, model.schema, caption)
    return joined(Heading("Reconstructions"), shown, players(named_examples(pairs, labels), model.schema))


def _samples(model: Model, passed_over: str) -> tuple[Block, ...]:
    """Show samples from the prior in use; nothing without a prior."""
    if not model.has_prior:
        return ()
    if model.fitted:
        return prior_samples(cast(CodeModel, model))
    columns, classes = examples_in_a_row(model.schema), model.schema.classes
    text = "None of these exists: a latent is sampled from the prior and decoded to the mean of p(x | z)."
    if model.levels:
        why = f"{passed_over[0].upper()}{passed_over[1:]}." if passed_over else "No prior over codes is fitted yet."
        text = f"Codes sampled from the uniform prior, each as likely as any other, and decoded. {why}"
    if model.conditional and len(classes) <= MOST_ROWS:
        rows = sample_rows(model, columns * len(classes))
        shown = labelled_rows(rows, classes, model.schema, f"{text} Each row is a class.")
        return joined(Heading("Samples"), shown, players(named_examples(rows, classes), model.schema))
    count = columns * (1 if _slow(model) else 4)
    samples = in_rows(sample_rows(model, count).flatten(0, 1)[:count], columns)
    heard = players(named_examples(samples, ["sample"] * len(samples)), model.schema)
    return joined(Heading("Samples"), sheet_figure(samples, model.schema, text), heard)


def _codes(model: Model, split: Split, name: str, e: Evaluation, metrics: list[dict[str, Any]]) -> tuple[Block, ...]:
    if e.codes is None:
        return ()
    usage = curves(metrics, [("code_usage", "share of the codes that occur"), ("perplexity", "perplexity")])
    return code_blocks(cast(CodeModel, model), split, name, e.codes, usage)


def _interpolations(model: Model, split: Split, name: str) -> tuple[Block, ...]:
    chosen = split.random_rows(2 * WALKS)
    half = len(chosen) // 2
    if not half:
        return ()
    steps = max(4, examples_in_a_row(model.schema)) - 2
    walks = interpolate_rows(model, split.batch(chosen[:half]), split.batch(chosen[half : 2 * half]), steps)
    caption = (
        f"At the ends are two examples of the {name} split; between them are decoded latents from one to the other."
    )
    return Heading("Interpolations"), sheet_figure(walks, model.schema, caption)


def _traversals(model: Model, split: Split) -> tuple[Block, ...]:
    statistics = latent_statistics(model, split)
    chosen = statistics.order[:DIMENSIONS]
    columns = (examples_in_a_row(model.schema) - 1) // 2 * 2 + 1
    rows = traverse_rows(model, split.batch(split.random_rows(1)), statistics, chosen, steps=columns)
    moved = "channel of the latent grid" if len(model.latent_shape) > 1 else "latent dimension"
    first = "with the highest rate" if statistics.rate is not None else "that vary most"
    caption = (
        f"One example, decoded with one {moved} changed from -2.5 to 2.5 standard deviations about its mean and all "
        f"others fixed; those {first} come first."
    )
    return Heading("Latent traversals"), labelled_rows(rows, statistics.names(chosen), model.schema, caption)


def _dimensions(e: Evaluation) -> tuple[Block, ...]:
    if e.kl_per_unit is None or e.active_units is None:
        return ()
    caption = (
        f"Mean KL to the prior per latent dimension, sorted. The bars add up to the rate, {e.rate:.2f} nats; "
        f"dimensions below {ACTIVE:g} nats are inactive."
    )
    values = Series(range(len(e.kl_per_unit)), sorted(e.kl_per_unit, reverse=True))
    how: dict[str, Any] = {"kind": "bar", "x_label": "latent dimensions, sorted", "wide": True}
    chart = Chart("nats, mean over the examples", [values], used=e.active_units, **how)
    return Heading("Rate per latent dimension"), Charts([chart], caption)


def _collapse(e: Evaluation, schema: Schema) -> tuple[Block, ...]:
    """Show whether the latent is used."""
    if e.collapse is None:
        return ()
    c, one = e.collapse, kind_of(schema).example
    what = "codes" if e.codes is not None else "latent"
    cards = [
        (
            f"{c.shuffle_cost:,.{1 if c.shuffle_cost < 100 else 0}f} nats",
            f"shuffle cost: loss of log p(x | z) if a {one} gets the {what} of another one",
        ),
        (
            f"{c.mutual_information:.2f} nats",
            f"mutual information of the {what} and the index of the {one} among {c.examples:,}; at most "
            f"{c.mutual_information_ceiling:.2f}",
        ),
    ]
    if c.active_units is not None:
        moved = "codes vary" if e.codes is not None else "latent dimensions vary"
        cards.append((f"{c.active_units:,} of {c.units:,}", f"{moved} from {one} to {one}"))
    verdict = f"No: {c.advice}" if c.collapsed else f"Yes: reconstructions depend on the {what}."
    intro = f"{verdict} A strong decoder can ignore its latent, which is called posterior collapse."
    return Heading("Is the latent used?"), Text(intro), Cards(cards)


def _curves(run: Run, metrics: list[dict[str, Any]], model: Model) -> tuple[Block, ...]:
    wanted = [("distortion", "distortion, nats"), ("mse", "squared error, stored units")]
    if model.has_bound:
        wanted = [("bits_per_dim", "bits per dimension"), ("distortion", "distortion, nats"), ("rate", "rate, nats")]
    of_codes = bool(model.levels)
    charts = curves(metrics, wanted[:2] if of_codes else wanted)
    if not charts:
        return Heading("Training"), Text("Training was too short for curves.")
    caption = f"Lower {wanted[0][1].partition(',')[0]} is better. The first values may lie above the chart." + (
        " During training all codes are equally likely: the rate is N log K throughout." if of_codes else ""
    )
    found: list[Block] = [Heading("Training"), Charts(charts, caption)]
    home = fitted_priors.prior_home(run.path, run.prior_in_use.split()[0]) if run.prior_in_use else None
    what = "codes" if of_codes else "latents"
    if home is not None:
        cost = f"rate of the {what}, nats" if model.has_bound else "-log p(z), nats"
        words = f"Then a prior over the {what} was fitted ({home.name}): the cost of the {what} under it."
        if fitting := curves(checkpoint.read_metrics(home), [("rate", cost)]):
            found.append(Charts(fitting, words))
    return tuple(found)


def _numbers(e: Evaluation, schema: Schema) -> tuple[Block, ...]:
    intro = f"Averages over {e.examples:,} examples of the {e.split} split. A nat is {1 / math.log(2):.3f} bits. " + (
        "The bound is the file size that a coder with this model needs." if e.bound is not None else ""
    )
    return Heading("The numbers"), Text(intro), Table(("what", "value", "what it means"), numbers(e, schema))


def reproduction(run: Run, spec: Spec, e: Evaluation, metrics: list[dict[str, Any]]) -> tuple[Block, ...]:
    """Build the section on how to reproduce a run."""
    took = f"{metrics[-1]['step']:,} steps in {duration_text(metrics[-1]['seconds'])}" if metrics else ""
    samples = {"importance_samples": e.importance_bound.samples} if e.importance_bound else {}
    calls = [train_call(spec, run.path, took)]
    if run.prior_in_use is not None:
        home = fitted_priors.prior_home(run.path, run.prior_in_use.split()[0])
        calls.append(prior_call(fitted_priors.read_prior_spec(home), run.path))
    calls += [Call("evaluate", [str(run.path)], samples), Call("report", [str(run.path)])]
    cuda = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = [
        ("trained with", f"tessella {spec.tessella}, seed {spec.training.get('seed', 0)}"),
        (
            "page written with",
            f"tessella {tessella.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        ),
        ("on", f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}{cuda}"),
    ]
    record = Details("the run's specification", [Code(spec.to_json())])
    return Heading("How to reproduce"), Calls(calls), Table(("", ""), versions, figures=()), record


def train_call(spec: Spec, run: Path, note: str = "") -> Call:
    """Build the call that starts such a run, with every option that is not the default."""
    read = {name: value for name, value in spec.data.items() if name not in ("spec", "seed", *RECORDED)}
    own = {} if spec.config is None else spec.config.changed()
    place = {"data": str(spec.data.get("spec", "?")), "out": str(run)}
    return Call("train", [spec.model], {**place, **own, **_unusual({**spec.training, **read})}, note)


def prior_call(prior: fitted_priors.PriorSpec, run: Path) -> Call:
    """Build the call that fits such a prior over the latents of a run."""
    given = {**prior.training, "class_conditional": prior.class_conditional}
    return Call("fit-prior", [str(run)], {"kind": prior.kind, **prior.config.changed(), **_unusual(given)})


def _unusual(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of training and data that are not the default."""
    usual = {**asdict(TrainOptions(steps=1)), "steps": None, "minutes": None, "class_conditional": False}
    return {name: value for name, value in given.items() if value is not None and value != usual.get(name)}


def _processor() -> str:
    """Return the processor's name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "an unnamed processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


NAMES = {"train": "training batches, current weights", "valid": "validation split, averaged weights"}


def curves(metrics: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, str]]) -> list[Chart]:
    """Chart metrics `(key, title)` over time, without those that have too few values."""
    seconds = max((m.get("seconds") or 0 for m in metrics), default=0)
    per, unit = (60, "minutes") if seconds >= 120 else (1, "seconds")
    charts = []
    for key, title in wanted:
        series = []
        for kind, name in NAMES.items():
            noted = [m for m in metrics if m.get("kind") == kind and _is_number(m.get(key))]
            x, y = [m["seconds"] / per for m in noted], [m[key] for m in noted]
            if x:
                series.append(Series(x, y, name, faint=kind == "train"))
        if any(len(one.x) > 1 for one in series):
            charts.append(Chart(title, series, x_label=f"{unit} of training", settled=True))
    return charts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
