"""a condition is obeyed.

A conditional VAE draws as many pictures of every class, and a classifier that never saw the model names the class of
each. Chance is one in the number of classes; the classifier's own accuracy on unseen data is the most that can be
expected. The share that is named as asked has a binomial error within a seed and one between seeds; the larger of the
two counts.
"""

from __future__ import annotations

import math

import torch

import tessella
from tessella_experiments.measuring import CLASSIFIER, classifier
from tessella_experiments.models import RATE, UPDATES, latent
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, mean_and_error
from tessella_experiments.runner import ExperimentRunner, of_model

CVAE = of_model("cvae", tessella.CVAE, latent, steps=UPDATES, learning_rate=RATE)
SAMPLES, MOST_A_CLASS = 600, 50
OBEYED = 0.5
"""More often than not: at least this share of the samples, and more than chance."""


def run(runner: ExperimentRunner) -> Finding:
    names, seeds = runner.schema.classes, runner.seeds
    judge = classifier(runner)
    each = max(2, min(MOST_A_CLASS, SAMPLES // len(names)))
    asked = torch.arange(len(names)).repeat_interleave(each)
    right = [judge.classes(runner.model(CVAE, seed).sample(len(asked), asked, seed=seed)) == asked for seed in seeds]
    per_class = torch.stack([r.view(len(names), each).double().mean(1) for r in right])
    unseen = runner.unseen()
    ceiling = None if unseen.label is None else float((judge.classes(unseen.x) == unseen.label).double().mean())
    return conclude(per_class.tolist(), each, names, ceiling)


def conclude(per_class: list[list[float]], each: int, names: tuple[str, ...], ceiling: float | None) -> Finding:
    """The result of the shares of `each` samples of every class that are named as asked, `[seed][class]`.

    Args:
        ceiling: the classifier's accuracy on unseen data.
    """
    shares = [sum(of) / len(of) for of in per_class]
    mean, between = mean_and_error(shares)
    chance = 1 / len(names)
    count = len(shares) * each * len(names)
    binomial = math.sqrt(max(mean * (1 - mean), 1 / count) / count)
    above = math.sqrt(chance * (1 - chance) / count)
    if between is None or binomial > between:
        error, degrees = binomial, count - 1
    else:
        error, degrees = between, len(shares) - 1
    least = max(OBEYED, chance + 2 * above)
    effects = [EffectTest("share of conditional samples that are named as asked", mean, error, degrees, least)]
    measures = [
        Measure("named as asked", 100 * mean, 100 * error, "%"),
        Measure("chance, with its binomial error", 100 * chance, 100 * above, "%"),
        Measure("standard errors above chance", (mean - chance) / above),
    ]
    if ceiling is not None:
        measures.append(Measure("the classifier on unseen data", 100 * ceiling, None, "%"))
    of_class = [Measure.over(names[c], [100 * of[c] for of in per_class], "%") for c in range(min(len(names), 20))]
    plot = bars("samples that are named as asked, by class", {m.name[:12]: m for m in of_class}, "%")
    own = "" if ceiling is None else f", which names {100 * ceiling:.0f} % of unseen data right"
    sentence = (
        f"{100 * mean:.1f} % of {count} conditional samples are seen as the class asked for by an independent "
        f"classifier{own}; chance is {100 * chance:.0f} %"
    )
    return Finding.of(sentence, effects, measures, [plot])


CLAIM = Claim(
    number=17,
    title="A condition is obeyed",
    hypothesis=(
        f"More than {100 * OBEYED:.0f} % of a conditional VAE's samples, and more than chance by two of its binomial "
        "errors, are named as the class that was asked for by an independent classifier."
    ),
    method=(
        f"up to {MOST_A_CLASS} samples (means of p(x | z)) of every class and seed, named by a small classifier "
        "trained on the same training split"
    ),
    run=run,
    needs=(CVAE, CLASSIFIER),
    skip_reason=lambda runner: None if runner.classes > 1 else "the data have no classes to be a condition",
)
