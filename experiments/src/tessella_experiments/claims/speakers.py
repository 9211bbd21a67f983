"""codes of sounds keep what is said and drop who says it.

A VQ-VAE whose decoder is told the class of a sound, who speaks, need not spend codes on it (van den Oord et al. 2017,
section 4.3). What is said is another field of the file names, or a factor of made sounds.

What codes keep is asked by a classifier on the codes' vectors, beside the same classifier on spectra of the sounds.
Then unseen sounds are decoded with the class of somebody else, and classifiers that were trained on spectra of real
sounds, and know nothing of the model, say what they hear and who speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

import tessella
from tessella import EMAQuantizer, Schema, Split
from tessella.plugin import CodeModel, Rows, log_mel, pressure
from tessella_experiments.measuring import row_of
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, of_model

TAUGHT, UNSEEN = 3000, 500
PIECES = 12
"""Parts of equal length that a sound is divided into; a classifier sees the average of each."""
MOST_VALUES = 50
"""Values that may tell what is said."""
KEPT = 0.5
"""Of what the spectrum tells of what is said, codes tell at least this share."""
HEARD = 0.5
"""At least this share of the sounds decoded for somebody else is heard as said, and as the one asked for."""
SHOWN = 8


def _options(schema: Schema) -> dict[str, Any]:
    return {"quantizer": EMAQuantizer(codebook_size=64), "width": 32, "depth": 1}


SPEECH = of_model("cvqvae of sounds", tessella.CVQVAE, _options, weight=3.0, steps=2000, batch_size=8)


Pair = tuple[float, float]


@dataclass(frozen=True)
class Listened:
    """Accuracies of classifiers with one seed, as shares.

    Attributes:
        spectra, codes: of what is said and of who speaks, told by spectra of the sounds, and by codes.
        copies: of both, heard in reconstructions by the classifiers of spectra.
        others: the same for sounds decoded as somebody else, who is the one to recognise.
    """

    spectra: Pair
    codes: Pair
    copies: Pair
    others: Pair


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    name, train, unseen = _content(runner)
    said, speakers = _numbers(train, unseen, name), runner.classes
    who = [cast(np.ndarray, split.labels) for split in (train, unseen)]
    sounds, later = (split.batch(range(len(split))).x for split in (train, unseen))

    def told(taught: np.ndarray, features: np.ndarray) -> tuple[Pair, list[Any]]:
        judges = [fitted(taught, answer[0]) for answer in (said, who)]
        return _right(judges, features, (said[1], who[1])), judges

    def heard(x: Tensor) -> np.ndarray:
        return averages(spectrum(x, runner.schema), x)

    by_spectra, judges = told(heard(sounds), heard(later))
    found: list[Listened] = []
    rows: list[tuple[str, Any]] = []
    for seed in runner.seeds:
        model = cast(CodeModel, runner.model(SPEECH, seed))
        by_codes, _ = told(*(averages(_vectors(model, x), x) for x in (sounds, later)))
        shift = np.random.default_rng(seed).integers(1, speakers, len(unseen))
        asked = (who[1], (who[1] + shift) % speakers)
        spoken = [decoded(model, later, torch.from_numpy(label)) for label in asked]
        by_ear = [_right(judges, heard(x), (said[1], label)) for x, label in zip(spoken, asked, strict=True)]
        found.append(Listened(by_spectra, by_codes, *by_ear))
        if not rows:
            titles = ("unseen sounds", "reconstructions", "decoded as others")
            rows = [
                (title, row_of(x[:SHOWN], runner.schema)) for title, x in zip(titles, (later, *spoken), strict=True)
            ]
    values = (len(np.unique(said[0])), speakers)
    return conclude(found, values, name, Rows(rows, "Waveforms and spectrograms, one seed."))


def conclude(found: list[Listened], values: tuple[int, int], name: str, rows: Rows | None = None) -> Finding:
    """Conclude from the accuracies of each seed.

    Args:
        values: number of values of what is said, and of speakers.
        name: of the field that tells what is said.
    """
    kept = [[_kept(one.codes[i], one.spectra[i], values[i]) for one in found] for i in (0, 1)]
    other = [[one.others[i] for one in found] for i in (0, 1)]
    effects = [
        EffectTest.over(f"share of what spectra tell of {name} that codes tell", kept[0], least=KEPT),
        EffectTest.over("which is more than the share they tell of the class", difference(*kept)),
        EffectTest.over(f"{name} is heard in sounds decoded as another class", other[0], least=HEARD),
        EffectTest.over("the other class is heard in them", other[1], least=HEARD),
    ]
    where = {
        "told by spectra": [one.spectra for one in found],
        "told by codes": [one.codes for one in found],
        "heard in reconstructions": [one.copies for one in found],
        "heard in sounds decoded as another class": [one.others for one in found],
    }
    accuracy = {
        f"{what} {how}": Measure.over(f"{what} {how}", [100 * pair[i] for pair in pairs], "%")
        for how, pairs in where.items()
        for i, what in enumerate((name, "class"))
    }
    shown = {f"{what}: {how}": f"{what} told by {how}" for what in (name, "class") for how in ("spectra", "codes")}
    plot = bars("told right", {label: accuracy[told] for label, told in shown.items()}, "%")
    right = {what: m.value for what, m in accuracy.items()}
    sentence = (
        f"codes tell {name} of {right[f'{name} told by codes']:.0f} % of unseen sounds and the class of "
        f"{right['class told by codes']:.0f} %, spectra {right[f'{name} told by spectra']:.0f} and "
        f"{right['class told by spectra']:.0f} %; decoded as another class, {name} is heard in "
        f"{100 * float(np.mean(other[0])):.0f} % and that class in {100 * float(np.mean(other[1])):.0f} %"
    )
    chances = [
        Measure(f"chance for {what}", 100 / n, None, "%") for what, n in zip((name, "class"), values, strict=True)
    ]
    return Finding.of(sentence, effects, [*accuracy.values(), *chances], [plot, *([] if rows is None else [rows])])


def spectrum(x: Tensor, schema: Schema) -> Tensor:
    """Compute the log-mel spectrogram `[N, bands, frames]` of stored sounds `[N, C, T]`, all channels together."""
    return torch.cat([log_mel(pressure(part, schema), schema.rate).mean(1) for part in x.split(AT_ONCE)])


@torch.inference_mode()
def decoded(model: CodeModel, x: Tensor, label: Tensor) -> Tensor:
    """Encode sounds `[N, C, T]` and decode their codes with these labels; NaN stays after their ends."""
    parts = [
        model.decode(model.encode(part).z, of).mean.masked_fill(part.isnan(), torch.nan)
        for part, of in zip(x.split(AT_ONCE), label.split(AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


def _vectors(model: CodeModel, x: Tensor) -> Tensor:
    return torch.cat([model.encode(part).z for part in x.split(AT_ONCE)])


def averages(maps: Tensor, x: Tensor) -> np.ndarray:
    """Average maps `[N, D, frames]` over parts of each sound up to its end: `[N, D * PIECES]`."""
    seen = ~x.isnan().all(1)
    ends = seen.shape[1] - seen.flip(1).int().argmax(1)
    frames = (ends * maps.shape[2] / seen.shape[1]).ceil().int().clamp_min(1).tolist()
    pieces = [adaptive_avg_pool1d(one[:, :n].float(), PIECES) for one, n in zip(maps, frames, strict=True)]
    return torch.stack(pieces).flatten(1).double().numpy()


def _right(judges: list[Any], features: np.ndarray, answers: Sequence[np.ndarray]) -> Pair:
    said, who = (float(judge.score(features, answer)) for judge, answer in zip(judges, answers, strict=True))
    return said, who


def fitted(features: np.ndarray, answer: np.ndarray) -> Any:
    """Fit a classifier with Gaussian kernels."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(C=10.0)).fit(features, answer)


def _kept(accuracy: float, possible: float, values: int) -> float:
    """Return the part of an accuracy above chance that is kept; NaN if there is nothing to keep."""
    chance = 1 / values
    return (accuracy - chance) / (possible - chance) if possible > chance else float("nan")


def _content(runner: ExperimentRunner) -> tuple[str, Split, Split]:
    """Return the name of what is said, and labelled sounds to learn from and to judge."""
    train, test = (runner.data.split(name) for name in ("train", "test"))
    chosen = [split.subset(split.random_rows(count)) for split, count in ((train, TAUGHT), (test, UNSEEN))]
    return next(iter(contents(train))), *chosen  # pyright: ignore[reportReturnType]


def contents(split: Split) -> dict[str, np.ndarray]:
    """Return the factors of a split that may tell what is said: of few values, and not the class itself."""
    found: dict[str, np.ndarray] = {}
    for name, values in split.factors.items():
        count = len(np.unique(values))
        pairs = len(np.unique(np.stack([values.astype(str), cast(np.ndarray, split.labels).astype(str)]), axis=1).T)
        if 2 <= count <= MOST_VALUES and pairs > count:
            found[name] = values
    return found


def _numbers(train: Split, unseen: Split, name: str) -> list[np.ndarray]:
    """Number the values of a factor in both splits alike."""
    both = [split.factors[name].astype(str) for split in (train, unseen)]
    values = np.unique(np.concatenate(both))
    return [np.searchsorted(values, of) for of in both]


def _skip_reason(runner: ExperimentRunner) -> str | None:
    if not runner.schema.rate:
        return "the data are no sounds"
    if runner.classes < 2:
        return "there is no label that tells who speaks"
    if "test" not in runner.data.splits:
        return "there is no test split to listen to"
    if not contents(runner.data.split("train")):
        return (
            "nothing tells what is said: name the class and another field of the file names, as by the label "
            "{word}_{speaker}_{number}:speaker"
        )
    return None


CLAIM = Claim(
    number=16,
    title="Codes of sounds keep what is said and drop who says it",
    hypothesis=(
        f"If the decoder is told the class, who speaks, codes keep more than {100 * KEPT:.0f} % of what spectra tell "
        "of what is said, and more of that than of the class. In unseen sounds decoded as another class, independent "
        f"classifiers hear what was said in more than {100 * HEARD:.0f} %, and that class in as many."
    ),
    method=(
        "a VQ-VAE whose decoder takes the class; classifiers with Gaussian kernels on codes' vectors, and on log-mel "
        f"spectra, averaged over {PIECES} parts of each sound"
    ),
    run=run,
    needs=(SPEECH,),
    skip_reason=_skip_reason,
)
