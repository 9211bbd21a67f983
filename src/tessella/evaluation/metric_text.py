"""Metrics as text: the name, the value with its unit, and the meaning of each."""

from __future__ import annotations

import math
from typing import NamedTuple

from tessella.core.schema import Schema
from tessella.evaluation.bounds import ACTIVE
from tessella.evaluation.codebook import level_name
from tessella.evaluation.collapse import MOVES
from tessella.evaluation.results import (
    Against,
    CodesEvaluation,
    CollapseEvaluation,
    Evaluation,
    FidelityEvaluation,
    LevelEvaluation,
    SoundEvaluation,
)
from tessella.kinds.base import kind_of


class Number(NamedTuple):
    """One row of a table of metrics: name, value with unit, meaning."""

    name: str
    value: str
    meaning: str


def numbers(e: Evaluation, schema: Schema) -> list[Number]:
    """Describe an evaluation, one row per metric."""
    one = kind_of(schema).example
    lines = []
    if e.bound is not None and e.bits_per_dim is not None and e.rate is not None:
        lines += [
            Number("bits per dimension", f"{e.bits_per_dim:.3f}", _against_raw(e.bound, schema, one)),
            Number(
                "bound", f"{e.bound:.2f} nats", f"rate + distortion = negative ELBO: upper bound on -log p(x) per {one}"
            ),
            Number("rate", f"{e.rate:.2f} nats", f"the part that codes the latent: {e.rate / math.log(2):.1f} bits"),
            Number("distortion", f"{e.distortion:.2f} nats", f"the part that codes the {one}, given the latent"),
        ]
    else:
        lines += [
            Number("bound", "none", "the latent has no rate, so the model assigns no probability to the data"),
            Number(
                "distortion",
                f"{e.distortion:.2f} nats",
                f"-log p(x | z): cost of the {one}, given the latent; the cost of the latent is not included",
            ),
        ]
    if e.importance_bound is not None:
        b = e.importance_bound
        kind = "the same bound, tighter" if e.bound is None or b.nats <= e.bound else "a bound with a coarser chain"
        meaning = f"{kind}: {b.bits_per_dim:.3f} bits per dimension from {b.samples} posterior samples per {one}"
        lines.append(Number("importance bound", f"{b.nats:.2f} nats", meaning))
    if e.active_units is not None and e.kl_per_unit is not None:
        meaning = f"latent units with a mean KL above {ACTIVE:g} nats; the decoder ignores the others"
        lines.append(Number("active units", f"{e.active_units:,} of {len(e.kl_per_unit):,}", meaning))
    if e.codes is not None:
        lines += _codes(e.codes, one)
    if e.collapse is not None:
        lines += _collapse(e.collapse, one, codes=e.codes is not None)
    if e.sound is not None:
        lines += _sound(e.sound)
    if e.psnr is not None and e.mse is not None:
        error, span = math.sqrt(e.mse), schema.values.high - schema.values.low
        meaning = f"the reconstruction error is {error:.3g} (root mean square) in a range of {span:g}"
        lines.append(Number("PSNR", psnr_text(e.psnr), meaning))
    lines.append(Number("parameters", f"{e.parameters:,}", "trained weights of the model"))
    return lines


def fidelity_numbers(f: FidelityEvaluation) -> list[Number]:
    """Describe the quality of samples, one row per metric, each beside its value for data."""
    by = {
        "class": "a classifier of the same data",
        "rotation": "a network that predicts rotations of the same data",
        "flip": "a network that predicts reflections of the same data",
        "autoencoder": "an autoencoder of the same data",
    }.get(f.features, "your own features")
    if f.classifier_score is not None:
        unit = "of the variance" if f.features == "autoencoder" else "accuracy"
        by += f" ({100 * f.classifier_score:.1f} % {unit})"
    kind = "sampled from p(x | z)" if f.drawn else "means of p(x | z)"
    sets = f"{f.samples:,} samples{f', {kind},' if f.split else ''} against as many examples"
    lines = [
        Number("Frechet distance", against(f.frechet), f"{sets}, in features of {by}, scaled to variance 1"),
        Number("precision", against(f.precision, share=True), "of the samples lie among the data"),
        Number("recall", against(f.recall, share=True), "of the data lie among the samples"),
    ]
    if f.consistency is not None:
        meaning = "of the samples are classified as the class they are conditioned on"
        lines.append(Number("class consistency", against(f.consistency, share=True), meaning))
    if f.class_distance is not None:
        meaning = "total variation between the class frequencies of samples and data"
        lines.append(Number("class distance", against(f.class_distance, share=True), meaning))
    if f.sharpness is not None:
        meaning = "high-frequency energy relative to data: below 1 blurred, above 1 noisy"
        lines.append(Number("sharpness", against(f.sharpness), meaning))
    if f.fid is not None:
        lines.append(Number("FID", f"{f.fid:.2f}", "Frechet distance in Inception's features, by torchmetrics"))
    if f.seconds_per_sample is not None:
        lines.append(Number("time per sample", time_text(f.seconds_per_sample), "when many are sampled at once"))
    return lines


def against(a: Against, *, share: bool = False) -> str:
    """Format a metric with its standard error and, in brackets, its value for data."""
    if share:
        return f"{100 * a.value:.1f} ± {100 * a.error:.1f} % (data {100 * a.data:.1f})"
    return f"{a.value:.3f} ± {a.error:.3f} (data {a.data:.3f})"


def time_text(seconds: float) -> str:
    """Format seconds: `3.1 ms`."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s"


def psnr_text(psnr: float) -> str:
    return "exact" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _codes(codes: CodesEvaluation, one: str) -> list[Number]:
    """Describe the use of codes, level by level."""
    lines, levels = [], len(codes.levels)
    for level, of in enumerate(codes.levels):
        name = level_name(level, levels)
        which = f", {name.removeprefix('the ')}" if name else ""
        used = f"{100 * of.code_usage:.1f} %"
        lines += [
            Number(
                f"codes{which}", f"{of.codes_per_example:,} of {of.codebook_size:,}", _of_bits(of, one, codes.learned)
            ),
            Number(f"code usage{which}", used, f"of the {of.codebook_size:,} codes occur in this split"),
            Number(
                f"perplexity{which}",
                f"{of.perplexity:,.0f} of {of.codebook_size:,}",
                "effective number of codes: exp of the entropy of their frequencies",
            ),
        ]
        if levels > 1:
            alone = "finer levels set to zero" if level < levels - 1 else "all levels"
            lines.append(Number(f"distortion{which}", f"{of.distortion:.2f} nats", f"-log p(x | z) with {alone}"))
    if codes.learned:
        words = f"cost of the codes if all are equally likely; the learned prior {saving_text(codes)}"
        lines.append(Number("rate, uniform prior", f"{codes.rate_uniform:.2f} nats", words))
    return lines


def saving_text(codes: CodesEvaluation) -> str:
    """Describe the learned prior's saving against the uniform prior: `saves 12 %`."""
    saved = 100 * (1 - sum(of.rate for of in codes.levels) / codes.rate_uniform)
    return f"saves {saved:.0f} %" if saved >= 0 else f"costs {-saved:.1f} % more"


def saving_card(codes: CodesEvaluation, one: str) -> tuple[str, str]:
    """Return the learned prior's saving in large print, and its meaning."""
    rate, uniform = sum(of.rate for of in codes.levels) / math.log(2), codes.rate_uniform / math.log(2)
    verb, _, much = saving_text(codes).partition(" ")
    verb = "saved" if verb == "saves" else "added"
    meaning = f"of the bits of each {one}'s codes {verb} by the learned prior: {rate:.0f} against {uniform:.0f} bits"
    return much.removesuffix(" more"), meaning


def _of_bits(of: LevelEvaluation, one: str, learned: bool) -> str:
    each = of.rate_uniform / of.codes_per_example / math.log(2)
    words = f"a {one} becomes {of.codes_per_example:,} integers below {of.codebook_size:,}, {each:.3g} bits each"
    return f"{words}; {of.rate / of.codes_per_example / math.log(2):.2f} under the learned prior" if learned else words


def _collapse(c: CollapseEvaluation, one: str, *, codes: bool) -> list[Number]:
    """Describe whether the latent is used."""
    lines = [
        Number(
            "shuffle cost",
            f"{c.shuffle_cost:.2f} nats",
            f"loss of log p(x | z) if {one}s are decoded from each other's latents; near zero: the latent is not used",
        ),
        Number(
            "mutual information",
            f"{c.mutual_information:.2f} of {c.mutual_information_ceiling:.2f} nats",
            f"information in the latent about which of {c.examples:,} {one}s it belongs to, and the maximum",
        ),
    ]
    if c.active_units is not None:
        unit, how = ("codes", "") if codes else ("units", f" (variance of their posterior mean above {MOVES:g})")
        meaning = f"latent {unit} that differ from {one} to {one}{how}"
        lines.append(Number(f"{unit} that vary", f"{c.active_units:,} of {c.units:,}", meaning))
    return lines


def _sound(s: SoundEvaluation) -> list[Number]:
    """Describe the bits of sounds per second, and the quality of reconstructions."""
    lines = []
    if s.bits_per_second is not None and s.bits_per_sample is not None:
        meaning = f"the bound: {s.bits_per_sample:.3f} bits per sample; a lossless file takes as much"
        lines.append(Number("bits per second", f"{s.bits_per_second:,.0f}", meaning))
    if s.rate_per_second is not None:
        meaning = "the rate: a lossy file, which holds the latent alone, takes as much"
        lines.append(Number("bits per second, latent", f"{s.rate_per_second:,.0f}", meaning))
    if (q := s.quality) is not None:
        of = f"of {q.clips:,} reconstructed sounds"
        ratio = f"scale-invariant signal-to-distortion ratio {of}; higher is better"
        lines.append(Number("SI-SDR", f"{q.si_sdr:.1f} dB", ratio))
        distance = f"mean |log10 mel(x) - log10 mel(y)| {of}; 0: equal"
        lines.append(Number("log-mel distance", f"{q.log_mel_distance:.3f}", distance))
        if q.stoi is not None:
            meaning = f"objective intelligibility of the {q.stoi_clips:,} of them that are long enough; 1: equal"
            lines.append(Number("STOI", f"{q.stoi:.3f}", meaning))
    return lines


def size_text(nats: float) -> str:
    """Format nats as a file size: `3.1 kB`."""
    size = nats / math.log(2) / 8
    for unit in ("bytes", "kB", "MB"):
        if abs(size) < 1000 or unit == "MB":
            break
        size /= 1000
    return f"{size:.0f} bytes" if unit == "bytes" and size >= 10 else f"{size:.1f} {unit}"


def _against_raw(bound: float, schema: Schema, one: str) -> str:
    if not schema.values.discrete:
        return (
            "of a density, which depends on the data's unit and may be negative: compare models of the same data only"
        )
    raw = schema.dims * math.log(schema.values.levels)
    each = f"{math.log2(schema.values.levels):.3g} bits per value" if schema.values.levels > 2 else "one bit per value"
    if bound <= 0:
        return f"almost nothing per {one}"
    ratio = raw / bound
    compared = f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"
    return f"{size_text(bound)} per {one}, {compared} than stored raw at {each} ({size_text(raw)})"
