"""one coarse level of codes loses detail, a second restores it, and it is cheaper given the coarse one.

What the coarse level says by itself is judged kindly. With the top codes of a two-level model known, the decoder is
given three guesses at the finer level (its likeliest codes given the top, what its codes stand for on average at each
place, and nothing), and the best of them counts. Beside it stands a model of one level on the same coarse grid, trained
for it. What the finer level costs is measured by two priors of the same network and updates, one of which sees the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tessella.core.outputs import Condition, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.evaluation.codebook import coarse_only
from tessella.models.codes import CodeModel
from tessella.models.spec import Objective
from tessella.priors.autoregressive import PixelCNNModule
from tessella.training.prior_trainer import EncodedSplit, unpacked
from tessella_experiments.models import CODEBOOK, RATE, UPDATES, codes, size
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, TrainingJob, codes_of, of_model

EXAMPLES = 500
WIDTH, DEPTH = 32, 2
"""Of each prior's network."""
GUESSES = {"likeliest": "its likeliest codes", "mean": "its mean vectors", "nothing": "nothing"}


def _two(schema: Schema) -> dict[str, Any]:
    return {**codes(schema), "levels": 2}


TWO = of_model("vqvae2", "vqvae2", _two, steps=UPDATES, weight=1.5, learning_rate=RATE)


def _coarse(runner: ExperimentRunner, seed: int, seconds: float) -> CodeModel:
    """A model of one level on the grid of the other's coarse one."""
    top = cast(CodeModel, runner.model(TWO, seed)).code_shapes[0]
    options = {**size(runner.schema), "grid_size": max(top[1:]), "codebook_size": CODEBOOK}
    return of_model(ONE.name, "vqvae", lambda schema: options, steps=UPDATES, learning_rate=RATE).make(
        runner, seed, seconds
    )


ONE = TrainingJob("vqvae, coarse", _coarse)


class FinePriors(nn.Module):
    """Two priors over the codes of the finest level as the loop trains them: one sees the coarser levels, one does not.

    Args:
        model: whose codes they are; it stays as it is.
    """

    learning_rate: float = 2e-3

    def __init__(self, model: CodeModel) -> None:
        super().__init__()
        self._model = (model.requires_grad_(False).eval(),)  # in a tuple, so that its weights are not this module's
        make = PixelCNNModule
        shape, size = model.prior_shapes[-1], model.levels[-1].codebook_size
        self.given = make(shape, size, context_channels=model.context_channels[-1], width=WIDTH, depth=DEPTH)
        self.alone = make(shape, size, width=WIDTH, depth=DEPTH)

    @property
    def model(self) -> CodeModel:
        return self._model[0]

    @property
    def schema(self) -> Schema:
        return self.model.schema

    @property
    def objective(self) -> Objective:
        return Objective()

    def compile_networks(self) -> None:
        """As of `training.Trainable`."""

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Rows of codes `[B, codes]` to the cost of the finest level, given the coarser ones and alone: `[B, 2]`."""
        found = unpacked(self.model, x)
        fine = found[-1]
        top = self.model.lookup(found)[:, : self.model.context_channels[-1]].detach()
        streams = (None, None) if noise is None else (noise.split("given"), noise.split("alone"))
        given = -self.given(fine, Condition(context=top), noise=streams[0]).flatten(1).sum(1)
        alone = -self.alone(fine, noise=streams[1]).flatten(1).sum(1)
        return Terms(torch.zeros_like(given), given + alone, torch.stack([given, alone], 1))


def _fine_priors(runner: ExperimentRunner, seed: int, seconds: float) -> FinePriors:
    model = cast(CodeModel, runner.model(TWO, seed))
    torch.manual_seed(seed)
    priors = FinePriors(model)
    runner.fit(priors, _rows(runner, model, seed), seed=seed, seconds=seconds, steps=UPDATES, weight_decay=0.1)
    return priors


def _rows(runner: ExperimentRunner, model: CodeModel, seed: int) -> EncodedSplit:
    return runner.keep(f"codes of {TWO.name}", lambda: codes_of(model, runner.data.split("train")), seed)


FINE_PRIORS = TrainingJob("priors of the finer level", _fine_priors, 1.5)


@dataclass(frozen=True)
class Levels:
    """What was measured with one seed, mean nats per example.

    Attributes:
        both: distortion with both levels.
        top: distortion with the top alone, by what the decoder is given for the finer level.
        coarse: distortion of the model of one coarse level.
        given, alone: rate of the finer level given the top, and not.
        uniform: N log K of it.
    """

    both: float
    top: dict[str, float]
    coarse: float
    given: float
    alone: float
    uniform: float


def run(runner: ExperimentRunner) -> Finding:
    return conclude([_measured(runner, seed) for seed in runner.seeds])


@torch.no_grad()
def _measured(runner: ExperimentRunner, seed: int) -> Levels:
    x, priors = runner.unseen(EXAMPLES).x, cast(FinePriors, runner.get(FINE_PRIORS, seed))
    model, one = priors.model, cast(CodeModel, runner.model(ONE, seed))
    average = _average(runner, model, seed)
    sums: dict[str, float] = {}
    for number, part in enumerate(x.split(AT_ONCE)):
        latent = model.encode(part)
        top, z = model.context_channels[-1], {"both": latent.z}
        fine = priors.given.sample(
            len(part), Noise(seed, number, "claim 11"), Condition(context=latent.z[:, :top]), sampling=Sampling(0.0)
        )
        z["likeliest"] = model.lookup([*latent.codes[:-1], fine.reshape(latent.codes[-1].shape)])
        z["mean"] = torch.cat([latent.z[:, :top], average[top:].expand(len(part), -1, -1, -1)], 1)
        z["nothing"] = coarse_only(model, latent.z, len(model.levels) - 1)
        costs = {name: -model.decode(value).log_prob(part) for name, value in z.items()}
        costs["coarse"] = -one.decode(one.encode(part).z).log_prob(part)
        rows = torch.cat([c.flatten(1) for c in latent.codes], 1)
        per = priors.eval()(rows).rate_per_unit
        assert per is not None
        costs |= {"given": per[:, 0], "alone": per[:, 1]}
        for name, nats in costs.items():
            sums[name] = sums.get(name, 0.0) + float(nats.double().sum()) / len(x)
    count = model.levels[-1]
    uniform = float(torch.tensor(count.code_shape).prod() * torch.tensor(float(count.codebook_size)).log())
    guesses = {name: sums[name] for name in GUESSES}
    return Levels(sums["both"], guesses, sums["coarse"], sums["given"], sums["alone"], uniform)


def _average(runner: ExperimentRunner, model: CodeModel, seed: int) -> Tensor:
    """What training examples' codes stand for on average at each place, `[D, h, w]`."""
    rows = _rows(runner, model, seed).batch(range(min(2000, len(runner.data.split("train"))))).x
    return torch.stack([model.lookup(unpacked(model, part)).mean(0) for part in rows.split(AT_ONCE)]).mean(0)


def conclude(found: list[Levels]) -> Finding:
    """The result of what was measured with each seed."""
    best = [min(of.top.values()) for of in found]
    effects = [
        EffectTest.over(
            "distortion: the top alone, with the best guess, more than both",
            difference(best, [of.both for of in found]),
            unit="nats",
        ),
        EffectTest.over(
            "distortion: a model of one coarse level more than both levels",
            [of.coarse - of.both for of in found],
            unit="nats",
        ),
        EffectTest.over(
            "rate of the finer level: alone more than given the top", [of.alone - of.given for of in found], unit="nats"
        ),
    ]
    measures = [
        Measure.over("distortion, both levels", [of.both for of in found], "nats"),
        *(
            Measure.over(f"distortion, top alone, finer level: {words}", [of.top[name] for of in found], "nats")
            for name, words in GUESSES.items()
        ),
        Measure.over("distortion, a model of one coarse level", [of.coarse for of in found], "nats"),
        Measure.over("rate of the finer level, given the top", [of.given for of in found], "nats"),
        Measure.over("rate of the finer level, alone", [of.alone for of in found], "nats"),
        Measure.over("rate of the finer level, uniform prior", [of.uniform for of in found], "nats"),
    ]
    labels = ("both levels", "top, likeliest", "top, mean", "one coarse level")
    plots = [
        bars("distortion", dict(zip(labels, [measures[i] for i in (0, 1, 2, 4)], strict=True)), "nats"),
        bars("rate of the finer level", {"given the top": measures[5], "alone": measures[6]}, "nats"),
    ]
    sentence = (
        f"distortion is {measures[0].value:.1f} nats with both levels, {sum(best) / len(best):.1f} with the top alone "
        f"and {measures[4].value:.1f} in a model of the coarse level only; the finer level costs "
        f"{measures[5].value:.1f} nats given the top and {measures[6].value:.1f} alone"
    )
    return Finding.of(sentence, effects, measures, plots)


def _skip_reason(runner: ExperimentRunner) -> str | None:
    if runner.schema.rank != 2:
        return "the data are vectors, which have no coarse and fine grid"
    if min(runner.schema.shape[1:]) < 4:
        return "the pictures are too small for two grids"
    return None


CLAIM = Claim(
    number=11,
    title="A second level restores what one coarse level loses, and costs less given it",
    hypothesis=(
        "Distortion with both levels is lower than with the top alone (whatever the decoder is given in the finer "
        "level's place: its likeliest codes given the top, their mean vectors, or nothing) and than in a model of the "
        "coarse level only; and the finer level's rate is lower given the top."
    ),
    method=(
        "VQ-VAE-2 of two levels, VQ-VAE on the coarse grid, two PixelCNN priors of the same size over the finer "
        f"codes; up to {EXAMPLES} unseen pictures"
    ),
    run=run,
    needs=(TWO, ONE, FINE_PRIORS),
    skip_reason=_skip_reason,
)
