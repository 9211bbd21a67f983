"""what the model finds improbable is anomalous.

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
from sklearn.metrics import roc_auc_score

from tessella import VAE, Batch, Detector, Model
from tessella_experiments.models import RATE, latent
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, mean_and_error
from tessella_experiments.runner import ExperimentRunner, TrainingJob, fetched

CLASSES, EXAMPLES, TAUGHT = 10, 300, 100
"""Classes that are left out, examples of either kind, and inliers that scores learn from."""
STEPS = 250
"""Updates of each small model."""
TESTED_BY = "bound"
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


def left_out(runner: ExperimentRunner) -> list[int]:
    """The classes that are left out in turn: the first ones that have enough examples."""
    labels = runner.data.split("train").labels
    if not runner.classes or labels is None:
        return []
    counts = np.bincount(labels, minlength=runner.classes)
    return [c for c in range(runner.classes) if counts[c] >= FEWEST and counts[c] < counts.sum() - FEWEST][:CLASSES]


def _without(runner: ExperimentRunner, seed: int, seconds: float) -> dict[int, Model]:
    """A model for each class, trained without it."""
    classes, train = left_out(runner), runner.data.split("train")
    assert train.labels is not None
    made: dict[int, Model] = {}
    for c in classes:
        torch.manual_seed(seed)
        made[c] = VAE(runner.schema, **latent(runner.schema))
        part = train.subset(np.flatnonzero(train.labels != c))
        runner.fit(made[c], part, seed=seed, seconds=seconds / len(classes), steps=STEPS, learning_rate=RATE)
    return made


MODELS = TrainingJob("one class left out", _without, weight=3.0)


def run(runner: ExperimentRunner) -> Finding:
    found = []
    for seed in runner.seeds:
        models: dict[int, Model] = runner.get(MODELS, seed)
        found.append([_found(runner, c, model, seed) for c, model in models.items()])
    return conclude(found)


def _found(runner: ExperimentRunner, c: int, model: Model, seed: int) -> LeftOut:
    """Every score's area with class `c` left out."""
    train, unseen = runner.data.split("train"), runner.unseen()
    assert train.labels is not None
    assert unseen.label is not None
    anomalies = fetched(train.subset(np.flatnonzero(train.labels == c)), EXAMPLES)
    normal = unseen.x[unseen.label != c]
    taught = min(TAUGHT, len(normal) // 3)
    detector = Detector(model, inliers=[Batch(normal[:taught])], seed=seed)
    of_normals = detector.score(Batch(normal[taught : taught + EXAMPLES]))
    of_anomalies = detector.score(Batch(anomalies.x))
    areas = {name: _area(of_normals[name], of_anomalies[name]) for name in of_normals}
    return LeftOut(runner.schema.classes[c], areas)


def _area(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """The area under the ROC curve."""
    return float(roc_auc_score([0] * len(normal) + [1] * len(anomalous), np.concatenate([normal, anomalous])))


def conclude(found: list[list[LeftOut]]) -> Finding:
    """The result of what was found with each class left out, `[seed][class]`."""
    scores = list(found[0][0].areas)
    by_seed = {name: [fmean(of.areas[name] for of in seed) for seed in found] for name in scores}
    by_class = {of.name: [seed[number].areas[TESTED_BY] for seed in found] for number, of in enumerate(found[0])}
    means = {name: mean_and_error(areas) for name, areas in by_seed.items()}
    classes = [fmean(areas) for areas in by_class.values()]
    effects = [
        EffectTest.over(f"AUROC of the {TESTED_BY}, the mean over the classes left out", by_seed[TESTED_BY], least=0.5)
    ]
    measures = [Measure.over(f"AUROC of {name}", areas) for name, areas in by_seed.items()]
    measures.append(Measure.over(f"AUROC of {TESTED_BY}, were the classes a sample of others", classes))
    above = sum(area > 0.5 for area in classes)
    measures.append(Measure(f"classes of {len(classes)} with an AUROC of {TESTED_BY} above one half", above))
    of_classes = {name[:12]: Measure.over(name, areas) for name, areas in by_class.items()}
    plots = [
        bars("AUROC of every score, the mean over the classes left out", dict(zip(means, measures, strict=False))),
        bars(f"AUROC of the {TESTED_BY} by the class that was left out", of_classes),
    ]
    others = ", ".join(f"{name} {value:.2f}" for name, (value, _) in means.items() if name != TESTED_BY)
    sentence = (
        f"leaving out each of {len(classes)} classes, the {TESTED_BY} finds it with a mean AUROC of "
        f"{means[TESTED_BY][0]:.3f} ({min(classes):.2f} to {max(classes):.2f}, above one half for {above}); the other "
        f"scores: {others}"
    )
    return Finding.of(sentence, effects, measures, plots)


def _skip_reason(runner: ExperimentRunner) -> str | None:
    if runner.classes < 2:
        return "the data have no classes, one of which could be left out as the anomaly"
    if len(left_out(runner)) < FEWEST_CLASSES:
        return f"fewer than {FEWEST_CLASSES} classes have {FEWEST} examples: too few to be left out in turn"
    return None


CLAIM = Claim(
    number=18,
    title="What the model finds improbable is anomalous",
    hypothesis=(
        f"With one class left out of training, the score chosen beforehand, the {TESTED_BY}, is higher for that class "
        "than for unseen examples of the others: AUROC above 0.5 on average over the classes of the data."
    ),
    method=(
        f"a VAE without each of up to {CLASSES} classes in turn; every score that the model allows, of up to "
        f"{EXAMPLES} examples of the class and of as many unseen normal ones"
    ),
    run=run,
    needs=(MODELS,),
    skip_reason=_skip_reason,
)
