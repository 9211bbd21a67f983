"""Where claims are tested: the data, the seeds, the time, and models that several claims share.

What is trained is a `TrainingJob`. It is done once a seed, when the first claim asks for it, and gets a share of the
time that is left, by its weight among all that is still to be done for the chosen claims. Small models reach the number
of updates that is enough for them before their time is up; then the others get more. A time longer than the usual one
buys more updates in proportion.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tessella import Batch, Data, Model, Sampling, Schema, Split, TrainOptions
from tessella.plugin import (
    CodePriorConfig,
    DataError,
    LatentModel,
    PriorConfig,
    Trainable,
    encode_split,
    fit,
    prior_trainer,
    resolve_device,
)
from tessella_experiments.records import SEEDS

LEAST_TRAIN, LEAST_UNSEEN = 200, 40
"""Examples needed to train on and to measure on."""
FOR_TRAINING = 0.8
"""Share of the time for trainings; the rest is for measuring."""
BATCH, SMALL = 64, 256
"""Examples in a batch; of examples of more numbers than that, half as many."""
USUAL = 14.0
"""Minutes in which the models of small pictures have come to about the updates that are enough for them."""
TRIED = 4
"""Updates that the speed of a training is measured by."""
AT_ONCE = 250


@dataclass(frozen=True)
class TrainingJob:
    """One training, done once a seed.

    Attributes:
        name: its result is kept under this name, so each job has its own.
        make: does it, given (runner, seed, seconds that it may take); whatever it returns is kept.
        weight: its share of the time for one seed, relative to others'.
        once: it is done for the first seed alone.
    """

    name: str
    make: Callable[[ExperimentRunner, int, float], Any]
    weight: float = 1.0
    once: bool = False


class ExperimentRunner:
    """Train and measure what claims ask for.

    Args:
        data: with a train and a test split.
        minutes: what all chosen claims together may take; None: as long as the jobs take.
        seeds: every effect is measured once with each.
        needs: the jobs that will be asked for; one that several claims share is counted once.
        device: where models are trained, as of `tessella.plugin.resolve_device`; they are measured on the processor.

    Attributes:
        updates: by the name of a job, the number in each training.
        shares: the same as shares of the updates that are enough.

    Raises:
        DataError: if there is too little data.
    """

    def __init__(
        self,
        data: Data,
        *,
        minutes: float | None = None,
        seeds: Sequence[int] = SEEDS,
        needs: Iterable[TrainingJob] = (),
        device: str | None = None,
    ) -> None:
        self.data, self.schema, self.seeds, self.device = data, data.schema, tuple(seeds), device
        train = len(data.split("train"))
        unseen = sum(len(data.split(name)) for name in ("valid", "test") if name in data.splits)
        if train < LEAST_TRAIN or unseen < LEAST_UNSEEN:
            raise DataError(
                f"{data.spec} has {train} examples to train on and {unseen} to measure on: claims need at least "
                f"{LEAST_TRAIN} and {LEAST_UNSEEN}; give more data"
            )
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes * FOR_TRAINING
        self._longer = 1.0 if minutes is None else max(1.0, minutes / USUAL)
        self.updates: dict[str, list[int]] = {}
        self.shares: dict[str, list[float]] = {}
        self._making: list[str] = []
        self._made: dict[tuple[str, int | None], Any] = {}
        self._waiting = {(r.name, seed): r.weight for r in needs for seed in self._seeds_of(r)}

    @property
    def classes(self) -> int:
        """How many classes the labels name; 0 without labels."""
        return len(self.schema.classes) if self.data.split("train").labels is not None else 0

    def examples(self, count: int | None = None) -> Batch:
        """Read the first `count` training examples in the order of their ids, which is no order of content."""
        return fetched(self.data.split("train"), count)

    def unseen(self, count: int = 2000) -> Batch:
        """Read examples that nothing was trained on: of the test split, then of the validation split."""
        batches: list[Batch] = []
        for name in ("test", "valid"):
            left = count - sum(map(len, batches))
            if name in self.data.splits and left > 0:
                batches.append(fetched(self.data.split(name), left))
        return Batch.cat(batches)

    def get(self, job: TrainingJob, seed: int) -> Any:
        """Return the result of the job for that seed; do it now if it is not done yet."""
        key = (job.name, seed)
        if key not in self._made:
            seconds = self._share(job, seed)
            self._making.append(job.name)
            with torch.inference_mode(False), torch.enable_grad():  # whoever measures needs no gradients; this does
                self._made[key] = job.make(self, seed, seconds)
            self._making.pop()
        return self._made[key]

    def make(self, jobs: Iterable[TrainingJob]) -> None:
        """Do these jobs for every seed."""
        for job in jobs:
            for seed in self._seeds_of(job):
                self.get(job, seed)

    def model(self, job: TrainingJob, seed: int) -> Model:
        """Return the model that a job trains."""
        return cast(Model, self.get(job, seed))

    def _seeds_of(self, job: TrainingJob) -> tuple[int, ...]:
        return self.seeds[:1] if job.once else self.seeds

    def _share(self, job: TrainingJob, seed: int) -> float:
        """Divide the seconds that are left by weight among what waits; at least one."""
        weight = self._waiting.pop((job.name, seed), job.weight)
        if self._deadline is None:
            return float("inf")
        left = self._deadline - time.monotonic()
        return max(1.0, left * weight / (weight + sum(self._waiting.values())))

    def fit(
        self,
        module: Trainable,
        split: Split | None = None,
        *,
        seed: int,
        seconds: float,
        steps: int,
        frozen: nn.Module | None = None,
        **options: Any,
    ) -> int:
        """Train in memory for as many updates as the seconds allow, but no more than are of use.

        The learning rate falls to zero within these updates. The speed is measured by a few updates of a copy.

        Args:
            split: the training split unless given.
            steps: updates that are enough in the usual time; in a longer one there are more in proportion.
            frozen: a model that the module uses and does not train.
            options: of `TrainOptions`.

        Returns:
            The number of updates.

        Raises:
            KeyboardInterrupt: if somebody asked to stop.
        """
        split, enough, steps = split or self.data.split("train"), steps, round(steps * self._longer)
        few = self.schema.dims > SMALL
        options = {"batch_size": BATCH // 2 if few else BATCH, "workers": 0, "device": self.device, **options}
        parts = [part for part in (module, frozen) if isinstance(part, nn.Module)]
        for part in parts:
            part.to(resolve_device(self.device))
        try:
            if seconds != float("inf"):
                steps = max(1, min(steps, int(seconds / self._pace(module, split, options))))
            _fitted(module, split, TrainOptions(steps=steps, seed=seed, **options))
        finally:
            for part in parts:
                part.cpu()
        for name in self._making[-1:]:
            self.updates.setdefault(name, []).append(steps)
            self.shares.setdefault(name, []).append(steps / enough)
        return steps

    def _pace(self, module: Trainable, split: Split, options: dict[str, Any]) -> float:
        """Measure the seconds an update takes by a few of them; the weights are put back."""
        assert isinstance(module, nn.Module)
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        _fitted(module, split, TrainOptions(steps=1, **options))
        started = time.perf_counter()
        _fitted(module, split, TrainOptions(steps=TRIED, **options))
        taken = (time.perf_counter() - started) / TRIED
        module.load_state_dict(kept)
        return taken


def _fitted(module: Trainable, split: Split, options: TrainOptions) -> None:
    """Train; whoever stops a training stops all of the claims."""
    if fit(module, split, options).stopped == "signal":
        raise KeyboardInterrupt


def of_model(
    name: str,
    build: Callable[..., Model],
    options: Callable[[Schema], dict[str, Any]] = lambda schema: {},
    *,
    weight: float = 1.0,
    steps: int = 1500,
    **training_options: Any,
) -> TrainingJob:
    """Define a job that trains a model.

    Args:
        build: makes the model of the data's schema and options, as `tessella.VAE` does.
        options: of the model, given the schema.
        weight: as of `TrainingJob`.
        steps: updates that are enough.
        training_options: of `TrainOptions`.
    """

    def make(runner: ExperimentRunner, seed: int, seconds: float) -> Model:
        torch.manual_seed(seed)
        model = build(runner.schema, **options(runner.schema))
        runner.fit(model, seed=seed, seconds=seconds, steps=steps, **training_options)
        return model

    return TrainingJob(name, make, weight)


def with_prior(
    name: str,
    base: TrainingJob,
    prior: PriorConfig | CodePriorConfig,
    *,
    weight: float = 1.0,
    steps: int = 1500,
    examples: int | None = None,
    **training_options: Any,
) -> TrainingJob:
    """Define a job that fits a prior over the latents of another job's model, which keeps its own prior.

    Args:
        examples: of the training split that it is fitted on; all unless given.
    """

    def make(runner: ExperimentRunner, seed: int, seconds: float) -> Model:
        model = cast(LatentModel, copy.deepcopy(runner.model(base, seed)))
        trainer, train = prior_trainer(model), runner.data.split("train")
        rows = encode_split(trainer, train.subset(train.random_rows(examples)) if examples else train, "auto")
        torch.manual_seed(seed)
        trainer.set_prior(model.build_priors(prior))
        trainer.fit_scale(rows, "auto")
        runner.fit(trainer, rows, seed=seed, seconds=seconds, steps=steps, frozen=model, **training_options)
        return model.eval()

    return TrainingJob(name, make, weight)


def fetched(split: Split, count: int | None = None) -> Batch:
    """Read the first `count` examples of a split in the order of their ids; all of them if there are fewer."""
    return split.batch(split.random_rows(count))


@torch.inference_mode()
def samples(model: Model, count: int, seed: int, sampling: Sampling | None = None) -> Tensor:
    """Sample `[count, *shape]`: the means of p(x | z)."""
    sizes = [min(AT_ONCE, count - first) for first in range(0, count, AT_ONCE)]
    return torch.cat([model.sample(n, seed=1000 * seed + i, sampling=sampling).cpu() for i, n in enumerate(sizes)])
