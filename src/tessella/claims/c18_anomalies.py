"""Claim 18: what the model finds improbable is anomalous.

One class after the other is left out of training. What the model then finds improbable should be that class: its
training examples, which the model never saw, against unseen examples of the classes that it did see. Every score is
reported; the claim is judged by one that was chosen beforehand, the bound, which is how improbable an example is.
The classes are those that the data have and no sample of others, so what counts is the mean over them, once a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from tessella.claims.bench import Bench, Recipe, fetched
from tessella.claims.claim import Bars, Claim, Measure, Result, Trial, decided, mean_and_error
from tessella.claims.parts import Part
from tessella.claims.recipes import RATE, latent
from tessella.core.batches import Batch
from tessella.models.base import Model
from tessella.models.spec import ModelConfig
from tessella.tasks.detect import Detector
from tessella.tasks.detect.ranking import auroc

CLASSES, EXAMPLES, TAUGHT = 10, 300, 100
"""Classes that are left out, examples of either kind, and normals that scores learn from."""
STEPS = 250
"""Updates of each small model."""
JUDGED_BY = "bound"
FEWEST = 10
"""Examples of a class, so that leaving it out can be judged."""
FEWEST_CLASSES = 3


@dataclass(frozen=True)
class LeftOut:
    """What was found with one class left out.

    Attributes:
        name: of the class.
        areas: the area under the ROC curve of every score.
    """

    name: str
    areas: dict[str, float]


def left_out(bench: Bench) -> list[int]:
    """The classes that are left out in turn: the first ones that have enough examples."""
    labels = bench.data.split("train").labels
    if not bench.classes or labels is None:
        return []
    counts = np.bincount(labels, minlength=bench.classes)
    return [c for c in range(bench.classes) if counts[c] >= FEWEST and counts[c] < counts.sum() - FEWEST][:CLASSES]


def _without(bench: Bench, seed: int, seconds: float) -> dict[int, Model]:
    """A model for each class, trained without it."""
    classes, train = left_out(bench), bench.data.split("train")
    assert train.labels is not None
    made: dict[int, Model] = {}
    for c in classes:
        torch.manual_seed(seed)
        made[c] = ModelConfig.chosen("vae").from_options(latent(bench.schema)).build(bench.schema)
        part = Part(train, np.flatnonzero(train.labels != c))
        bench.fit(made[c], part, seed=seed, seconds=seconds / len(classes), steps=STEPS, learning_rate=RATE)
    return made


MODELS = Recipe("one class left out", _without, weight=3.0)


def run(bench: Bench) -> Result:
    found = []
    for seed in bench.seeds:
        models: dict[int, Model] = bench.get(MODELS, seed)
        found.append([_found(bench, c, model, seed) for c, model in models.items()])
    return judged(found)


def _found(bench: Bench, c: int, model: Model, seed: int) -> LeftOut:
    """Every score's area with class `c` left out."""
    train, unseen = bench.data.split("train"), bench.unseen()
    assert train.labels is not None
    assert unseen.label is not None
    anomalies = fetched(Part(train, np.flatnonzero(train.labels == c)), EXAMPLES)
    normal = unseen.x[unseen.label != c]
    taught = min(TAUGHT, len(normal) // 3)
    detector = Detector(model, normals=[Batch(normal[:taught])], seed=seed)
    of_normals = detector.score(Batch(normal[taught : taught + EXAMPLES]))
    of_anomalies = detector.score(Batch(anomalies.x))
    areas = {name: auroc(of_normals[name], of_anomalies[name])[0] for name in of_normals}
    return LeftOut(bench.schema.classes[c], areas)


def judged(found: list[list[LeftOut]]) -> Result:
    """The result of what was found with each class left out, `[seed][class]`."""
    scores = list(found[0][0].areas)
    by_seed = {name: [fmean(of.areas[name] for of in seed) for seed in found] for name in scores}
    by_class = {of.name: [seed[number].areas[JUDGED_BY] for seed in found] for number, of in enumerate(found[0])}
    means = {name: mean_and_error(areas) for name, areas in by_seed.items()}
    classes = [fmean(areas) for areas in by_class.values()]
    trials = [
        Trial.over(f"AUROC of the {JUDGED_BY}, the mean over the classes left out", by_seed[JUDGED_BY], least=0.5)
    ]
    measures = [Measure.over(f"AUROC of {name}", areas) for name, areas in by_seed.items()]
    measures.append(Measure.over(f"AUROC of {JUDGED_BY}, were the classes a sample of others", classes))
    above = sum(area > 0.5 for area in classes)
    measures.append(Measure(f"classes of {len(classes)} with an AUROC of {JUDGED_BY} above one half", above))
    plots = [
        Bars(
            "AUROC of every score, the mean over the classes left out",
            tuple(means),
            tuple(mean for mean, _ in means.values()),
            tuple(error or 0.0 for _, error in means.values()),
        ),
        Bars(
            f"AUROC of the {JUDGED_BY} by the class that was left out",
            tuple(name[:12] for name in by_class),
            tuple(classes),
            tuple(mean_and_error(areas)[1] or 0.0 for areas in by_class.values()),
        ),
    ]
    others = ", ".join(f"{name} {value:.2f}" for name, (value, _) in means.items() if name != JUDGED_BY)
    sentence = (
        f"leaving out each of {len(classes)} classes, the {JUDGED_BY} finds it with a mean AUROC of "
        f"{means[JUDGED_BY][0]:.3f} ({min(classes):.2f} to {max(classes):.2f}, above one half for {above}); the other "
        f"scores: {others}"
    )
    return decided(sentence, trials, measures, plots)


def _hindrance(bench: Bench) -> str | None:
    if bench.classes < 2:
        return "the data have no classes, one of which could be left out as the anomaly"
    if len(left_out(bench)) < FEWEST_CLASSES:
        return f"fewer than {FEWEST_CLASSES} classes have {FEWEST} examples: too few to be left out in turn"
    return None


CLAIM = Claim(
    number=18,
    title="What the model finds improbable is anomalous",
    hypothesis=(
        f"With one class left out of training, the score chosen beforehand, the {JUDGED_BY}, is higher for that class "
        "than for unseen examples of the others: AUROC above 0.5 on average over the classes of the data."
    ),
    measured=(
        f"a VAE without each of up to {CLASSES} classes in turn; every score that the model allows, of up to "
        f"{EXAMPLES} examples of the class and of as many unseen normal ones"
    ),
    run=run,
    needs=(MODELS,),
    hindrance=_hindrance,
)
