"""Where claims are tested: the data, the seeds, the time, and models that several claims share.

What is trained is a `Recipe`. It is made once a seed, when the first claim asks for it, and gets a share of the time
that is left, by its weight among all that is still to be made for the chosen claims. Small models reach the number of
updates that is enough for them before their time is up; then the others get more. A time longer than the usual one buys
more updates in proportion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tessella.core.batches import Batch
from tessella.core.configs import CodePriorConfig
from tessella.core.device import resolve
from tessella.core.precision import autocast
from tessella.core.schema import Schema
from tessella.data import Data, Split
from tessella.foundation.errors import DataError
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.training import loop
from tessella.training.code_priors import CodesSplit, Priors, packed
from tessella.training.loop import Trainable
from tessella.training.prior_trainer import Frozen

SEEDS = (0, 1, 2)
LEAST_TRAIN, LEAST_UNSEEN = 200, 40
"""Examples that there must be, to train on and to measure on."""
FOR_TRAINING = 0.8
"""Share of the time that trainings may plan with; the rest is for measuring."""
BATCH, SMALL = 64, 256
"""Examples in a batch; of examples of more numbers than that, half as many."""
USUAL = 14.0
"""Minutes in which the models of small pictures have come to about the updates that are enough for them."""
TRIED = 4
"""Updates that the speed of a training is measured by."""
AT_ONCE = 250


@dataclass(frozen=True)
class Recipe:
    """Something that is trained once a seed.

    Attributes:
        name: it is kept under this name, so each recipe has its own.
        make: makes it of (bench, seed, seconds that it may take); whatever it returns is kept.
        weight: its share of the time for one seed, relative to others'.
        once: it is made of the first seed alone.
    """

    name: str
    make: Callable[[Bench, int, float], Any]
    weight: float = 1.0
    once: bool = False


class Bench:
    """Where claims are tested.

    Args:
        data: with a train and a test split.
        minutes: what all chosen claims together may take; None: as long as the recipes take.
        seeds: every effect is measured once with each.
        needs: the recipes that will be asked for; of several claims that share one it is counted once.
        device: where models are trained, as of `tessella.core.device.resolve`; they are measured on the processor.

    Attributes:
        updates: of each recipe by its name, those of each training.
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
        needs: Iterable[Recipe] = (),
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

    # data

    @property
    def classes(self) -> int:
        """How many classes the labels name; 0 without labels."""
        return len(self.schema.classes) if self.data.split("train").labels is not None else 0

    def examples(self, split: str = "train", count: int | None = None) -> Batch:
        """The first `count` examples of a split in the order of their keys, which is no order of content."""
        return fetched(self.data.split(split), count)

    def unseen(self, count: int | None = 2000) -> Batch:
        """Examples that nothing was trained on: of the test split, then of the validation split."""
        parts = [self.data.split(name) for name in ("test", "valid") if name in self.data.splits]
        batches: list[Batch] = []
        for part in parts:
            left = None if count is None else count - sum(len(b.x) for b in batches)
            if left is None or left > 0:
                batches.append(fetched(part, left))
        labels = [b.label for b in batches if b.label is not None]
        return Batch(torch.cat([b.x for b in batches]), torch.cat(labels) if len(labels) == len(batches) else None)

    # what is trained

    def get(self, recipe: Recipe, seed: int) -> Any:
        """What the recipe makes of that seed, made now if it is not there yet."""
        key = (recipe.name, seed)
        if key not in self._made:
            seconds = self._share(recipe, seed)
            self._making.append(recipe.name)
            with torch.inference_mode(False), torch.enable_grad():  # whoever measures needs no gradients; this does
                self._made[key] = recipe.make(self, seed, seconds)
            self._making.pop()
        return self._made[key]

    def make(self, recipes: Iterable[Recipe]) -> None:
        """All that these recipes make, of every seed."""
        for recipe in recipes:
            for seed in self._seeds_of(recipe):
                self.get(recipe, seed)

    def model(self, recipe: Recipe, seed: int) -> Model:
        """The same, of a recipe that makes a model."""
        return cast(Model, self.get(recipe, seed))

    def keep(self, name: str, make: Callable[[], Any], seed: int | None = None) -> Any:
        """Anything that several claims share and that takes no training: made once."""
        key = (f"kept: {name}", seed)
        if key not in self._made:
            with torch.inference_mode(False):
                self._made[key] = make()
        return self._made[key]

    def _seeds_of(self, recipe: Recipe) -> tuple[int, ...]:
        return self.seeds[:1] if recipe.once else self.seeds

    def _share(self, recipe: Recipe, seed: int) -> float:
        """Seconds of what is left, by weight among what waits; a second at the least."""
        weight = self._waiting.pop((recipe.name, seed), recipe.weight)
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
        **options: Any,
    ) -> int:
        """Train in memory by `loop.fit` for as many updates as the seconds allow, but no more than are of use.

        The learning rate falls to zero within these updates. The speed is measured by a few updates of a copy.

        Args:
            split: the training split unless given.
            steps: updates that are enough in the usual time; in a longer one there are more in proportion.
            options: of `TrainOptions`.

        Returns:
            The number of updates.

        Raises:
            KeyboardInterrupt: if somebody asked to stop.
        """
        split, enough, steps = split or self.data.split("train"), steps, round(steps * self._longer)
        few = self.schema.dims > SMALL
        options = {"batch_size": BATCH // 2 if few else BATCH, "workers": 0, "device": self.device, **options}
        if seconds != float("inf"):
            steps = max(1, min(steps, int(seconds / self._pace(module, split, options))))
        _fitted(module, split, TrainOptions(steps=steps, seed=seed, **options))
        for name in self._making[-1:]:
            self.updates.setdefault(name, []).append(steps)
            self.shares.setdefault(name, []).append(steps / enough)
        return steps

    def _pace(self, module: Trainable, split: Split, options: dict[str, Any]) -> float:
        """Seconds an update, by a few of them after which the weights are put back."""
        assert isinstance(module, nn.Module)
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        _fitted(module, split, TrainOptions(steps=1, **options))
        started = time.perf_counter()
        _fitted(module, split, TrainOptions(steps=TRIED, **options))
        taken = (time.perf_counter() - started) / TRIED
        module.load_state_dict(kept)
        return taken


def _fitted(module: Trainable, split: Split, options: TrainOptions) -> None:
    """`loop.fit` on the device, and back to the processor, where claims are measured.

    Whoever asks it to stop means all of the claims.
    """
    parts: list[Any] = [module, module.model] if isinstance(module, Frozen) else [module]
    for part in parts:
        part.to(resolve(options.device))
    try:
        if loop.fit(module, split, options).stopped == "signal":
            raise KeyboardInterrupt
    finally:
        for part in parts:
            part.cpu()


def of_model(
    name: str,
    model: str,
    options: Callable[[Schema], dict[str, Any]] = lambda schema: {},
    *,
    weight: float = 1.0,
    steps: int = 1500,
    **training_options: Any,
) -> Recipe:
    """A recipe that trains a model of the catalogue.

    Args:
        model: its name in the catalogue.
        options: of the model and its parts, given the data's schema.
        weight: as of `Recipe`.
        steps: updates that are enough.
        training_options: of `TrainOptions`.
    """

    def make(bench: Bench, seed: int, seconds: float) -> Model:
        torch.manual_seed(seed)
        made = ModelConfig.chosen(model).from_options(options(bench.schema)).build(bench.schema)
        bench.fit(made, seed=seed, seconds=seconds, steps=steps, **training_options)
        return made

    return Recipe(name, make, weight)


def with_code_prior(
    name: str,
    base: Recipe,
    kind: str = "pixelcnn",
    *,
    width: int = 32,
    depth: int = 3,
    class_conditional: bool = False,
    weight: float = 1.0,
    steps: int = 1500,
    **training_options: Any,
) -> Recipe:
    """A recipe that fits priors over the codes of another recipe's model; that one keeps its uniform prior.

    Args:
        kind: a code prior's name in the catalogue.
        width, depth: of its network.
        class_conditional: p(codes | label).
    """

    def make(bench: Bench, seed: int, seconds: float) -> CodeModel:
        model = cast(CodeModel, bench.model(base, seed)).with_uniform_prior()
        split = bench.keep(f"codes of {base.name}", lambda: codes_of(model, bench.data.split("train")), seed)
        torch.manual_seed(seed)
        prior, classes = (
            CodePriorConfig.chosen(kind).from_options({"width": width, "depth": depth}),
            bench.classes if class_conditional else 0,
        )
        shapes = zip(model.prior_shapes, model.levels, model.context_channels, strict=True)
        made = [
            prior.build(shape, q.codebook_size, context_channels=context, classes=classes)
            for shape, q, context in shapes
        ]
        priors = Priors(model, made)
        bench.fit(priors, split, seed=seed, seconds=seconds, steps=steps, **{"weight_decay": 0.1, **training_options})
        return model.eval()

    return Recipe(name, make, weight)


@torch.no_grad()
def codes_of(model: CodeModel, split: Split) -> CodesSplit:
    """A split's codes, as what priors are fitted on."""
    rows: list[Tensor] = []
    for first in range(0, len(split), AT_ONCE):
        batch = split.batch(range(first, min(first + AT_ONCE, len(split))))
        with autocast("auto", model.schema, model.device):
            rows.append(packed(model.encode(batch.x.to(model.device)).codes).cpu().int())
    labels = None if split.labels is None else torch.from_numpy(split.labels)
    return CodesSplit(torch.cat(rows)[None], labels, split.example_ids)


def fetched(split: Split, count: int | None = None) -> Batch:
    """The first `count` examples of a split in the order of their keys; all of them if there are fewer."""
    order = split.random_rows(len(split) if count is None else count)
    batches = [split.batch(order[first : first + AT_ONCE]) for first in range(0, len(order), AT_ONCE)]
    labels = [b.label for b in batches if b.label is not None]
    return Batch(torch.cat([b.x for b in batches]), torch.cat(labels) if labels else None)
