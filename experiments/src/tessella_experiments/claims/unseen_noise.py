"""codes spend no capacity on noise that nobody sees.

Noise of a standard deviation of 1/255 ... 16/255 of the range is added to unseen pictures and rounded to the stored
values; the share of codes that stay as they were is counted. Of pixels with bytes the same share is given beside it.
What codes still say is asked of a linear probe for the class.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from tessella import Integers, Noise, Schema
from tessella.plugin import Chart, CodeModel, Series
from tessella_experiments.models import VQVAE
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, difference, mean_and_error
from tessella_experiments.runner import AT_ONCE, ExperimentRunner

LEVELS = (1, 2, 4, 8, 16)
"""Deviations of the noise in 1/255 of the range."""
UNSEEN_BY_EYES, UNCHANGED = 2, 0.9
"""At this deviation at least this share of the codes must stay: 2/255 is below what is seen of fine noise."""
PICTURES, TAUGHT = 500, 2000


def run(runner: ExperimentRunner) -> Finding:
    batch, taught = runner.unseen(PICTURES), runner.examples(TAUGHT)
    kept: list[list[float]] = []
    pixels: list[list[float]] = []
    accuracy: list[list[float]] = []
    for seed in runner.seeds:
        model = cast(CodeModel, runner.model(VQVAE, seed))
        codes = _codes(model, batch.x)
        probe = None if runner.classes < 2 or taught.label is None else _probe(model, taught.x, taught.label)
        kept.append([])
        pixels.append([])
        accuracy.append([] if probe is None else [_accuracy(probe, model, batch.x, cast(Tensor, batch.label))])
        for level in LEVELS:
            noisy = with_noise(batch.x, runner.schema, level, Noise(seed, level, "claim 15"))
            kept[-1].append(float((_codes(model, noisy) == codes).float().mean()))
            pixels[-1].append(float((noisy == batch.x).float().mean()))
            if probe is not None:
                accuracy[-1].append(_accuracy(probe, model, noisy, cast(Tensor, batch.label)))
    return conclude(kept, pixels, accuracy if accuracy[0] else None, runner.classes)


def conclude(
    kept: list[list[float]], pixels: list[list[float]], accuracy: list[list[float]] | None, classes: int
) -> Finding:
    """The result of the shares of codes and of pixels that stay, `[seed][level]`.

    Args:
        accuracy: of the probe, `[seed][1 + level]`, first without noise; None without labels.
    """
    at = LEVELS.index(UNSEEN_BY_EYES)
    effects = [
        EffectTest.over(
            f"share of codes kept under noise of {UNSEEN_BY_EYES}/255", [k[at] for k in kept], least=UNCHANGED
        )
    ]
    measures = [
        Measure.over(f"codes unchanged by {level}/255", [100 * k[i] for k in kept], "%")
        for i, level in enumerate(LEVELS)
    ]
    measures += [Measure.over(f"pixels unchanged by {UNSEEN_BY_EYES}/255", [100 * p[at] for p in pixels], "%")]
    told = ""
    if accuracy is not None:
        clean, noisy = [a[0] for a in accuracy], [a[1 + at] for a in accuracy]
        effects.append(EffectTest.over("accuracy of a class probe on all codes above chance", clean, least=1 / classes))
        effects.append(
            EffectTest.over(
                f"accuracy that noise of {UNSEEN_BY_EYES}/255 costs the probe",
                difference(clean, noisy),
                least=-0.05,
                most=0.05,
            )
        )
        measures.append(Measure.over("class probe on codes", [100 * a for a in clean], "%"))
        measures.append(
            Measure.over(f"class probe with noise of {LEVELS[-1]}/255", [100 * a[-1] for a in accuracy], "%")
        )
        told = f"; a linear probe reads the class from the codes in {100 * mean_and_error(clean)[0]:.0f} % of the cases"
    plot = Chart(
        "what noise leaves unchanged",
        (_series("codes", kept), _series("pixels", pixels)),
        x_label="deviation of the noise, of 255",
        log_x=True,
    )
    stay, stay_strong = (100 * mean_and_error([k[i] for k in kept])[0] for i in (at, len(LEVELS) - 1))
    sentence = (
        f"noise of {UNSEEN_BY_EYES}/255 leaves {stay:.1f} % of the codes as they were and "
        f"{100 * mean_and_error([p[at] for p in pixels])[0]:.0f} % of the pixels, noise of {LEVELS[-1]}/255 leaves "
        f"{stay_strong:.1f} % of the codes{told}"
    )
    return Finding.of(sentence, effects, measures, [plot])


def with_noise(x: Tensor, schema: Schema, level: float, noise: Noise) -> Tensor:
    """Stored bytes with Gaussian noise of `level`/255 of their range, rounded and kept within it."""
    span = schema.values.high - schema.values.low
    moved = x.float() + noise.normal(*x.shape) * (level / 255 * span)
    return moved.round().clamp(schema.values.low, schema.values.high).to(x.dtype)


@torch.inference_mode()
def _codes(model: CodeModel, x: Tensor) -> Tensor:
    """The codes of all levels `[N, codes]`."""
    return torch.cat([torch.cat([c.flatten(1) for c in model.encode(part).codes], 1) for part in x.split(AT_ONCE)])


@torch.inference_mode()
def _vectors(model: CodeModel, x: Tensor) -> Any:
    """What the codes stand for, `[N, D]` as NumPy's."""
    return torch.cat([model.encode(part).z.flatten(1) for part in x.split(AT_ONCE)]).double().numpy()


def _probe(model: CodeModel, x: Tensor, label: Tensor) -> Any:
    """A linear classifier of what all codes stand for."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0)).fit(_vectors(model, x), label.numpy())


def _accuracy(probe: Any, model: CodeModel, x: Tensor, label: Tensor) -> float:
    return float(probe.score(_vectors(model, x), label.numpy()))


def _series(name: str, shares: list[list[float]]) -> Series:
    means, errors = zip(*(mean_and_error([100 * s[i] for s in shares]) for i in range(len(LEVELS))), strict=True)
    return Series(LEVELS, means, name, errors)


def _skip_reason(runner: ExperimentRunner) -> str | None:
    if runner.schema.rank != 2:
        return "the data are vectors: what noise cannot be seen in is a picture"
    if runner.schema.values != Integers():
        return f"the pictures have {runner.schema.values} values: noise of 1/255 needs bytes"
    return None


CLAIM = Claim(
    number=15,
    title="Codes spend nothing on noise that is not seen",
    hypothesis=(
        f"Noise with a deviation of {UNSEEN_BY_EYES}/255 leaves at least {100 * UNCHANGED:.0f} % of the codes as they "
        "were, while a linear probe on all codes tells the class better than chance, and the noise changes its "
        "accuracy by less than 5 points."
    ),
    method=(
        f"Gaussian noise of 1/255 ... {LEVELS[-1]}/255 on up to {PICTURES} unseen pictures; share of codes and of "
        "pixels that stay; ridge classifier on what the codes stand for"
    ),
    run=run,
    needs=(VQVAE,),
    skip_reason=_skip_reason,
)
