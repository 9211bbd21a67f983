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

import tessella
from tessella import Noise, PixelCNN, Sampling, Schema
from tessella.plugin import CodeModel, Condition, Objective, Terms
from tessella_experiments.models import RATE, UPDATES, codes
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner, TrainingJob, of_model

EXAMPLES = 500
PRIOR = PixelCNN(width=32, depth=2)
GUESSES = {"likeliest": "its likeliest codes", "mean": "its mean vectors", "nothing": "nothing"}


def _two(schema: Schema) -> dict[str, Any]:
    return {**codes(schema), "levels": 2}


TWO = of_model("vqvae2", tessella.VQVAE2, _two, steps=UPDATES, weight=1.5, learning_rate=RATE)


def _coarse(runner: ExperimentRunner, seed: int, seconds: float) -> CodeModel:
    """A model of one level on the grid of the other's coarse one."""
    top = cast(CodeModel, runner.model(TWO, seed)).code_shapes[0]
    options = {**codes(runner.schema), "grid_size": max(top[1:])}
    job = of_model(ONE.name, tessella.VQVAE, lambda schema: options, steps=UPDATES, learning_rate=RATE)
    return cast(CodeModel, job.make(runner, seed, seconds))


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
        shape, size = model.prior_shapes[-1], model.levels[-1].codebook_size
        self.given = PRIOR.build(shape, size, context_channels=model.context_channels[-1])
        self.alone = PRIOR.build(shape, size)

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
        """As of `Trainable`."""

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        """Stored values `[B, *shape]` to the cost of the finest level, given the coarser ones and alone: `[B, 2]`."""
        with torch.no_grad():
            codes = self.model.encode(x).codes
        rates = self.rates(codes, noise)
        return Terms(torch.zeros_like(rates[:, 0]), rates.sum(1), rates)

    def rates(self, codes: tuple[Tensor, ...], noise: Noise | None = None) -> Tensor:
        """Codes of all levels to the cost of the finest, given the coarser ones and alone: `[B, 2]` nats."""
        top = self.model.lookup(codes)[:, : self.model.context_channels[-1]].detach()
        streams = (None, None) if noise is None else (noise.split("given"), noise.split("alone"))
        given = self.given(codes[-1], Condition(context=top), noise=streams[0])
        alone = self.alone(codes[-1], noise=streams[1])
        return -torch.stack([given.flatten(1).sum(1), alone.flatten(1).sum(1)], 1)


def _fine_priors(runner: ExperimentRunner, seed: int, seconds: float) -> FinePriors:
    model = cast(CodeModel, runner.model(TWO, seed))
    torch.manual_seed(seed)
    priors = FinePriors(model)
    runner.fit(priors, seed=seed, seconds=seconds, steps=UPDATES, frozen=model, weight_decay=0.1)
    return priors


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
    average = _average(runner, model)
    sums: dict[str, float] = {}
    for number, part in enumerate(x.split(AT_ONCE)):
        latent = model.encode(part)
        top, z = model.context_channels[-1], {"both": latent.z}
        fine = priors.given.sample(
            len(part), Noise(seed, number, "claim 11"), Condition(context=latent.z[:, :top]), sampling=Sampling(0.0)
        )
        z["likeliest"] = model.lookup([*latent.codes[:-1], fine.reshape(latent.codes[-1].shape)])
        z["mean"] = torch.cat([latent.z[:, :top], average[top:].expand(len(part), -1, -1, -1)], 1)
        z["nothing"] = torch.cat([latent.z[:, :top], torch.zeros_like(latent.z[:, top:])], 1)
        costs = {name: -model.decode(value).log_prob(part) for name, value in z.items()}
        costs["coarse"] = -one.decode(one.encode(part).z).log_prob(part)
        costs["given"], costs["alone"] = priors.eval().rates(latent.codes).unbind(1)
        for name, nats in costs.items():
            sums[name] = sums.get(name, 0.0) + float(nats.double().sum()) / len(x)
    count = model.levels[-1]
    uniform = float(torch.tensor(count.code_shape).prod() * torch.tensor(float(count.codebook_size)).log())
    guesses = {name: sums[name] for name in GUESSES}
    return Levels(sums["both"], guesses, sums["coarse"], sums["given"], sums["alone"], uniform)


def _average(runner: ExperimentRunner, model: CodeModel) -> Tensor:
    """What training examples' codes stand for on average at each place, `[D, h, w]`."""
    return torch.cat([model.encode(part).z for part in runner.examples(2000).x.split(AT_ONCE)]).mean(0)


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
