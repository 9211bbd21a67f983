"""Recipes: commands, the score that each is expected to reach, and what it reached.

    python benchmarks/recipes.py mnist-vae --data FOLDER --out RUN       train, evaluate and record
    python benchmarks/recipes.py mnist-vae --record RUN                  record a finished run of the same command
    python benchmarks/recipes.py                                         list the recipes

`--minutes` gives another budget, `--label gpu` another name to the record.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import common
from startup import script
from tessella.commands.train import flat
from tessella.foundation import validation
from tessella.models.base import Model
from tessella.models.spec import ModelConfig, TrainOptions

Evaluation = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A command and what is expected of it.

    Attributes:
        train, evaluate: what follows `tessella train` and `tessella evaluate RUN`; `{data}` is the data's folder.
        prior: what follows `tessella fit-prior RUN`, for a model of codes; empty for others.
        better: whether a lower or a higher figure is.
        claim: what the figure is.
        figure: where it stands in an evaluation.
        bar: the figure to reach at least; `goal` to be glad of.
        examples: how many the test split must have for the figure to count.
    """

    train: str
    evaluate: str
    claim: str
    figure: Callable[[Evaluation], float | None]
    bar: float
    unit: str
    examples: int
    goal: float | None = None
    prior: str = ""
    better: Literal["lower", "higher"] = "lower"

    @property
    def sized(self) -> str:
        """`train`, with the sizes that were usual when the recipes were made, where it gives none."""
        rate = "0.001" if self.train.split()[0] in ("flow", "diffusion") else "0.002"
        usual = {"--width": "32", "--depth": "2", "--batch-size": "64", "--learning-rate": rate, "--compile": "no"}
        return " ".join([self.train, *(f"{flag} {v}" for flag, v in usual.items() if flag not in self.train.split())])

    @property
    def split(self) -> str:
        """The split that is evaluated."""
        words = shlex.split(self.evaluate)
        return words[words.index("--split") + 1] if "--split" in words else "test"

    def meets(self, figure: float | None, wanted: float | None) -> bool:
        """Whether the figure is as good as wanted."""
        if figure is None or wanted is None:
            return False
        return figure <= wanted if self.better == "lower" else figure >= wanted


def importance_nats(evaluation: Evaluation) -> float | None:
    """The importance-weighted bound, if it is of 500 samples at least."""
    bound = evaluation["importance_bound"]
    return bound["nats"] if bound and bound["samples"] >= 500 else None


def bound_with_codes_in_use(evaluation: Evaluation) -> float | None:
    """The bound, importance-weighted if asked for, if shuffling the codes between examples costs more than 5 nats."""
    used = evaluation["collapse"] and evaluation["collapse"]["shuffle_cost"] > 5
    sharper = evaluation["importance_bound"]
    return (sharper["nats"] if sharper else evaluation["bound"]) if used else None


def bits_with_codes_in_use(evaluation: Evaluation) -> float | None:
    """Bits per dimension, under the same condition."""
    return None if bound_with_codes_in_use(evaluation) is None else evaluation["bits_per_dim"]


RECIPES = {
    "mnist-vae": Recipe(
        train="vae --data {data}/mnist.npz --binarize dynamic --minutes 30 --iwae-samples 5 --iwae-from 0.75",
        evaluate="--importance-samples 500 --precision bfloat16",
        claim="MNIST, dynamically binarised, VAE: -log p(x) by 500 importance samples, all test pictures",
        figure=importance_nats,
        bar=84.8,
        goal=82.9,
        unit=" nats",
        examples=10_000,
    ),
    "mnist-vae-flow": Recipe(
        train="vae --data {data}/mnist.npz --binarize dynamic --posterior flow --prior flow --minutes 59 --draws 5 "
        "--iwae-from 0.8",
        evaluate="--importance-samples 500 --precision bfloat16",
        claim="MNIST, dynamically binarised, VAE with flow posterior and flow prior: -log p(x) by 500 importance "
        "samples, all test pictures",
        figure=importance_nats,
        bar=81.5,
        unit=" nats",
        examples=10_000,
    ),
    "cifar10-vae": Recipe(
        train="vae --data {data}/cifar10 --minutes 60 --width 64 --depth 4 --latent-dim 16 --components 5 "
        "--batch-size 32 --learning-rate 2e-3",
        evaluate="",
        claim="CIFAR-10, VAE with a discretised-logistic mixture: bound, all test pictures",
        figure=lambda evaluation: evaluation["bits_per_dim"],
        bar=4.51,
        unit=" bits/dim",
        examples=10_000,
    ),
    "cifar10-vqvae": Recipe(
        train="vqvae --data {data}/cifar10 --minutes 60 --quantizer fsq --codebook-size 64 --codes 2 "
        "--batch-size 32 --components 5",
        prior="--kind pixelcnn --minutes 60 --width 128 --depth 6 --batch-size 32 --learning-rate 1.5e-3",
        evaluate="--precision bfloat16",
        claim="CIFAR-10, VQ-VAE with independent pixels and a learned prior: bound, all test pictures",
        figure=lambda evaluation: evaluation["bits_per_dim"],
        bar=4.67,
        goal=4.51,
        unit=" bits/dim",
        examples=10_000,
    ),
    "cifar10-autoregressive": Recipe(
        train="vqvae --data {data}/cifar10 --minutes 80 --likelihood autoregressive --grid-size 8 --width 32 "
        "--depth 2 "
        "--codebook-size 256 --components 5 --batch-size 16 --learning-rate 1.5e-3",
        prior="--kind pixelcnn --minutes 10 --width 64 --depth 6",
        evaluate="--precision bfloat16",
        claim="CIFAR-10, VQ-VAE with an autoregressive decoder, codes in use: bound, all test pictures",
        figure=bits_with_codes_in_use,
        bar=4.0,
        unit=" bits/dim",
        examples=10_000,
    ),
    "cifar10-diffusion": Recipe(
        train="diffusion --data {data}/cifar10 --minutes 60 --width 48 --depth 2 --batch-size 16 "
        "--learning-rate 1.5e-3",
        evaluate="--precision bfloat16",
        claim="CIFAR-10, diffusion with a learned schedule: variational bound, all test pictures",
        figure=lambda evaluation: evaluation["bits_per_dim"],
        bar=4.5,
        unit=" bits/dim",
        examples=10_000,
    ),
    "mnist-vqvae": Recipe(
        train="vqvae --data {data}/mnist.npz --binarize dynamic --minutes 30 --grid-size 4 --codebook-size 32 "
        "--code-dim 8 "
        "--iwae-samples 5 --iwae-from 0.7",
        prior="--kind pixelcnn --minutes 15 --width 64 --depth 4 --batch-size 128",
        evaluate="--importance-samples 50 --precision bfloat16",
        claim="MNIST, dynamically binarised, VQ-VAE with independent pixels and a learned prior: importance-"
        "weighted bound (nobody has published this figure)",
        figure=lambda evaluation: evaluation["importance_bound"]["nats"],
        bar=88.0,
        unit=" nats",
        examples=10_000,
    ),
    "mnist-autoregressive": Recipe(
        train="vqvae --data {data}/mnist.npz --binarize dynamic --minutes 50 --likelihood autoregressive --grid-size 2 "
        "--codebook-size 64 --width 24 --depth 1 --batch-size 32",
        prior="--kind pixelcnn --minutes 10 --width 64 --depth 4 --batch-size 128",
        evaluate="--importance-samples 20 --precision bfloat16",
        claim="MNIST, dynamically binarised, VQ-VAE with an autoregressive decoder, codes in use: importance-weighted "
        "bound",
        figure=bound_with_codes_in_use,
        bar=84.0,
        goal=82.0,
        unit=" nats",
        examples=10_000,
    ),
    "cifar10-flow": Recipe(
        train="flow --data {data}/cifar10 --minutes 36 --width 64 --depth 1 --components 5 --batch-size 16",
        evaluate="",
        claim="CIFAR-10, flow with uniform dequantisation: bound, all test pictures",
        figure=lambda evaluation: evaluation["bits_per_dim"],
        bar=4.4,
        unit=" bits/dim",
        examples=10_000,
    ),
    "cifar10-usage-ema": Recipe(
        train="vqvae --data {data}/cifar10 --minutes 5 --quantizer ema --codebook-size 1024 --width 32 --depth 2",
        evaluate="--split train --precision bfloat16",
        claim="CIFAR-10, share of the 1024 codes of an EMA codebook in use over the training set",
        figure=lambda evaluation: evaluation["codes"]["code_usage"],
        bar=0.95,
        unit="",
        examples=45_000,
        better="higher",
    ),
    "cifar10-usage-simvq": Recipe(
        train="vqvae --data {data}/cifar10 --minutes 5 --quantizer simvq --codebook-size 16384 "
        "--code-dim 8 --batch-size 32 --width 32 --depth 2",
        evaluate="--split train --precision bfloat16",
        claim="CIFAR-10, share of the 16384 codes of SimVQ in use over the training set",
        figure=lambda evaluation: evaluation["codes"]["code_usage"],
        bar=0.95,
        unit="",
        examples=45_000,
        better="higher",
    ),
    "cifar10-usage-fsq": Recipe(
        train="vqvae --data {data}/cifar10 --minutes 5 --quantizer fsq --codebook-size 16384 --width 32 --depth 2",
        evaluate="--split train --precision bfloat16",
        claim="CIFAR-10, share of the 16384 codes of FSQ in use over the training set",
        figure=lambda evaluation: evaluation["codes"]["code_usage"],
        bar=0.95,
        unit="",
        examples=45_000,
        better="higher",
    ),
}


# a run, told


def record_of(recipe: Recipe, run: Path) -> common.Record:
    """What a finished run of the recipe reached.

    Raises:
        SystemExit: if the run or its evaluation is missing, unfinished or not of the same weights.
    """
    spec, evaluation, last = _finished(run, recipe.split)
    training = spec["training"]
    budget = next(n for n in ("minutes", "epochs", "steps") if training[n] is not None)
    figure = recipe.figure(evaluation) if evaluation["examples"] >= recipe.examples else None
    evaluation["data"] = Path(evaluation["data"]).name
    evaluation.pop("kl_per_unit", None)  # thousands of numbers for a grid; the run has them
    claim = f"{recipe.claim}, {training[budget]:g} {budget}"
    fitted = _fitted_prior(run) if recipe.prior else None
    if fitted is not None:
        claim += f" and {fitted['budget']} for the prior"
    return {
        "about": "a recipe through the command line: train, then evaluate",
        "rows": [common.row(claim, recipe.bar, figure, unit=recipe.unit, better=recipe.better)],
        "goal": recipe.goal,
        "goal_reached": recipe.meets(figure, recipe.goal),
        "commands": [command_of(spec), *([fitted["command"]] if fitted else []), _evaluated(evaluation)],
        "prior": fitted,
        "budget": {budget: training[budget]},
        "seed": training["seed"],
        "steps": last["step"],
        "seconds": last["seconds"],
        "evaluation": evaluation,
        "trained_with": spec["tessella"],
        "environment": common.environment(),
    }


def _finished(run: Path, split: str) -> tuple[dict[str, Any], Evaluation, dict[str, Any]]:
    try:
        spec = json.loads((run / "spec.json").read_text())
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError) as error:
        raise SystemExit(f"{run} is no run of tessella with metrics ({error})") from error
    if last["used"] < 1:
        raise SystemExit(f"{run} has used {last['used']:.0%} of its budget: finish it by tessella train --resume")
    path = run / f"results/evaluation-{split}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: tessella evaluate {run} first, with the recipe's options")
    evaluation = json.loads(path.read_text())
    if evaluation["step"] != last["step"]:
        raise SystemExit(f"{path} is of step {evaluation['step']}, the run ended at {last['step']}: evaluate it anew")
    return spec, evaluation, last


def command_of(spec: dict[str, Any]) -> str:
    """The command that a run's specification is the trace of; what is default is left out."""
    data = spec["data"]
    words = ["tessella", "train", spec["model"], "--data", Path(data["spec"]).name]
    if data.get("size"):
        words += ["--size", *map(str, data["size"])]
    chosen = {name: data[name] for name in ("channels", "binarize") if data.get(name) is not None}
    for kind, stored in ((TrainOptions, spec["training"]),):
        defaults = {f.name: f.default for f in fields(kind)}
        chosen |= {name: value for name, value in stored.items() if value != defaults[name]}
    chosen |= validation.fitted(ModelConfig, spec["config"]).changed()
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--out", "RUN"])


def _fitted_prior(run: Path) -> dict[str, Any]:
    """The prior that the run's evaluation used: the fitted one with the lowest rate on the validation split.

    Raises:
        SystemExit: if none is fitted to the end.
    """
    specs = [(json.loads(path.read_text()), path.parent) for path in (run / "priors").glob("*/spec.json")]
    done = [(spec["rate"], spec, home) for spec, home in specs if spec["rate"] is not None]
    if not done:
        raise SystemExit(f"{run} has no fitted prior: tessella fit-prior {run} first, with the recipe's options")
    rate, spec, home = min(done, key=lambda entry: entry[0])
    training = spec["training"]
    budget = next(n for n in ("minutes", "epochs", "steps") if training[n] is not None)
    defaults = {f.name: f.default for f in fields(TrainOptions)}
    words = ["tessella", "fit-prior", "RUN", "--kind", spec["kind"]]
    chosen = {name: spec[name] for name in ("width", "depth", "class_conditional") if spec[name]}
    chosen |= {name: value for name, value in training.items() if value != defaults[name]}
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    last = json.loads((home / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "kind": spec["kind"],
        "validation_rate": rate,
        "budget": f"{training[budget]:g} {budget}",
        "seconds": last["seconds"],
        "steps": last["step"],
        "command": shlex.join(words),
    }


def _evaluated(evaluation: Evaluation) -> str:
    bound = evaluation["importance_bound"]
    samples = f" --importance-samples {bound['samples']}" if bound else ""
    seed = f" --seed {evaluation['seed']}" if evaluation["seed"] else ""
    precision = f" --precision {evaluation['precision']}" if evaluation["precision"] != "float32" else ""
    split = f" --split {evaluation['split']}" if evaluation.get("split", "test") != "test" else ""
    return f"tessella evaluate RUN{split}{samples}{seed}{precision}"


def differences(recipe: Recipe, spec: dict[str, Any], data: str = "DATA") -> list[str]:
    """Options in which a run is not what the recipe says, the budget apart."""
    import tyro

    from tessella.commands.train import train_options

    words = [*shlex.split(recipe.sized.format(data=data)), "--out", "RUN"]
    asked = tyro.cli(train_options(words), args=words[1:])
    wanted = _options(asked.training, asked.chosen) | {"binarize": asked.data_reading.binarize, "model": asked.model}
    stored = _options(TrainOptions(**spec["training"]), validation.fitted(ModelConfig, spec["config"]))
    have = stored | {"binarize": spec["data"]["binarize"], "model": spec["model"]}
    unheard = ("minutes", "epochs", "steps", "save_every", "workers")
    found = [
        f"{n}: {have[n]!r}, not {v!r}" for n, v in wanted.items() if v is not None and n not in unheard and have[n] != v
    ]
    named = Path(asked.data or "").name
    if Path(spec["data"]["spec"]).name != named:
        found.append(f"data: {Path(spec['data']['spec']).name}, not {named}")
    return found


def _options(training: TrainOptions, model: ModelConfig) -> dict[str, Any]:
    rate = training.learning_rate or Model.learning_rate
    return {**asdict(training), **flat(model), **asdict(model.objective), "learning_rate": rate}


# a run, made


def run_recipe(recipe: Recipe, data: Path, out: Path, minutes: float | None) -> None:
    """Both commands through the real command line; what they print is shown."""
    train = shlex.split(recipe.sized.format(data=shlex.quote(str(data))))
    if minutes is not None:
        train[train.index("--minutes") + 1] = f"{minutes:g}"
    stages = [["train", *train, "--out", str(out)], ["evaluate", str(out), *shlex.split(recipe.evaluate)]]
    if recipe.prior:
        stages.insert(1, ["fit-prior", str(out), *shlex.split(recipe.prior)])
    for words in stages:
        done = subprocess.run([*script(), *words])
        if done.returncode:
            sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", choices=RECIPES)
    parser.add_argument("--data", type=Path, help="the folder that the data sets lie in")
    parser.add_argument("--out", type=Path, help="the run folder to make")
    parser.add_argument("--record", type=Path, metavar="RUN", help="record a finished run, without training")
    parser.add_argument("--minutes", type=float, help="another budget than the recipe's")
    parser.add_argument("--label", help="what else to call the record, for instance gpu")
    chosen = parser.parse_args()
    if chosen.recipe is None:
        for name, recipe in RECIPES.items():
            print(f"{name}: bar {recipe.bar:g}{recipe.unit}\n  tessella train {recipe.sized.format(data='DATA')}")
            if recipe.prior:
                print(f"  tessella fit-prior RUN {recipe.prior}")
        return
    recipe, run = RECIPES[chosen.recipe], chosen.record or chosen.out
    if run is None or (chosen.record is None and chosen.data is None):
        parser.error("give --data and --out to train, or --record RUN")
    if chosen.record is None:
        run_recipe(recipe, chosen.data, run, chosen.minutes)
    record = record_of(recipe, run)
    if wrong := differences(recipe, json.loads((run / "spec.json").read_text())):
        raise SystemExit(f"{run} is no run of {chosen.recipe} ({'; '.join(wrong)})")
    label = f"-{chosen.label}" if chosen.label else ""
    if chosen.label:
        record["rows"][0]["claim"] += f" ({chosen.label})"
    common.write(f"recipe-{chosen.recipe}{label}", record)
    common.show(record)


if __name__ == "__main__":
    main()
