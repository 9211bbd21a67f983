"""What a model is built of, as data: enough to build it again, on any machine, without running anything stored."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from tessella.core.schema import Precision, Schema
from tessella.foundation import registry, validation
from tessella.foundation.config import Config, hints
from tessella.foundation.errors import DataError, RunError, SpecError, option

if TYPE_CHECKING:
    from tessella.data import Data

VERSION = 2


@dataclass(frozen=True)
class Objective:
    """What training minimises: mean(distortion + beta * rate) + penalty.

    Attributes:
        beta: weight of the rate (Higgins et al. 2017); 1 is the bound itself.
        warmup: fraction of the training budget over which beta rises from 0 (Sonderby et al. 2016, section 2.3).
        free_bits: nats a dimension of z that cost nothing: sum_j max(free_bits, mean_batch KL_j) (Kingma et al. 2016,
            appendix C.8). Needs a rate that is a sum over dimensions.
        iwae_samples: samples of z an example. With more than one the importance-weighted bound is trained instead
            (Burda et al. 2015, eq. 8), and beta and free bits have no part in it.
        iwae_from: fraction of the budget from which on there are that many samples; one before.

    Raises:
        SpecError: if a number is out of its range, or several samples go with beta or free bits.
    """

    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0
    iwae_samples: int = 1
    iwae_from: float = 0.0

    def __post_init__(self) -> None:
        if self.iwae_samples > 1 and (self.beta != 1 or self.free_bits):
            raise SpecError(
                f"several {option('iwae_samples')} train the importance-weighted bound, which has no {option('beta')} "
                f"and no {option('free_bits')}: leave one out",
                code="iwae-and-beta",
            )


class ModelConfig(Config, ABC):
    """Options of a model: of its networks, its parts and its objective."""

    part = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective  # checks itself  # noqa: B018

    @property
    def objective(self) -> Objective:
        """What training minimises; options of it that the model does not have keep their defaults."""
        own = {f.name for f in fields(Objective)} & set(hints(type(self)))
        return Objective(**{name: getattr(self, name) for name in own})

    @abstractmethod
    def build(self, schema: Schema) -> Any:
        """Make the model with fresh weights.

        Raises:
            SpecError: if it cannot be a model of such data, or its parts do not fit together.
        """


@dataclass(frozen=True)
class DataOptions:
    """How the data is read.

    Attributes:
        size: height and width that pictures are cropped and resized to, or one number for both.
        channels: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
        binarize: make 8-bit values binary: sampled in every batch, sampled once, or cut at half.
        label: the column of a table, or the array of an .npz, that holds the class; by default one called label, class
            or target that holds few values.
        kind: signal if arrays (N, C, T) and (N, T) are signals, not grey pictures and vectors.
    """

    size: tuple[int, ...] | None = None
    channels: int | None = None
    binarize: Literal["dynamic", "static", "threshold"] | None = None
    label: str | None = None
    kind: Literal["signal"] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) not in (1, 2):
            raise DataError(
                f"the size is one number, or a height and a width, not {len(self.size)} numbers", code="bad-option"
            )

    @property
    def box(self) -> tuple[int, int] | None:
        """Height and width."""
        return None if self.size is None else (self.size[0], self.size[-1])

    def open(self, spec: str) -> Data:
        from tessella.data import open_data

        return open_data(
            spec, size=self.box, channels=self.channels, binarize=self.binarize, label=self.label, kind=self.kind
        )


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained.

    Attributes:
        minutes: the budget as time spent training; 10 if no budget is given. At most one budget can be.
        epochs: the budget as passes through the training split.
        steps: the budget as updates of the weights.
        batch_size: examples a process sees in one step.
        learning_rate: at its highest, unless it is what suits what is trained (2e-3 for most models, 1e-3 for flows,
            diffusion and priors); it rises over the first 3 % of the budget and falls to zero as a cosine.
        weight_decay: of AdamW (Loshchilov & Hutter 2017).
        grad_clip: largest norm of the gradient of the loss in nats per dimension.
        ema_decay: decay of the averaged weights that evaluation uses.
        precision: `auto` is bfloat16 autocast for pictures where the hardware has it natively, else float32.
        compile: compile the networks before training.
        seed: of the weights, the order of the examples and every draw.
        save_every: seconds between checkpoints: what a killed run loses at most.
        workers: processes that read files, for data that is streamed.
        device: where networks run: auto (the best there is), cpu, cuda, mps or xpu; of several cards cuda:1 is the
            second. By default what the environment variable TESSELLA_DEVICE says, or else auto.
        rank_timeout: of several processes that train together, seconds after which one that does not answer, or does
            not come, is given up: the others then end.
        track: trackers to tell of metrics and pictures besides metrics.jsonl, such as tensorboard,wandb; each takes its
            package.
    """

    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: Precision = "auto"
    compile: bool = False
    seed: int = 0
    save_every: float = 60.0
    workers: int = 2
    device: str | None = None
    rank_timeout: float = 300.0
    track: str = ""

    def __post_init__(self) -> None:
        budgets = {n: getattr(self, n) for n in ("minutes", "epochs", "steps") if getattr(self, n) is not None}
        if len(budgets) > 1:
            raise SpecError(f"give one budget, not {' and '.join(budgets)}")
        for name, value in {
            **budgets,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "rank_timeout": self.rank_timeout,
        }.items():
            if value is not None and not value > 0:
                raise SpecError(f"{name.replace('_', ' ')} must be more than zero, not {value}")
        if not budgets:
            object.__setattr__(self, "minutes", 10.0)


@dataclass(frozen=True)
class Source:
    """What a specification says of data besides how it is read.

    Attributes:
        spec: where it lies.
        fingerprint: of its content.
        examples: how many each split has.
    """

    spec: str | None = None
    fingerprint: str = ""
    examples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """A model and where it comes from: the content of `spec.json`.

    Attributes:
        model: its name.
        config: its options and its parts'; None for a composition of one's own.
        data: `{"spec": ..., **options}` of `open_data`.
        training: the options that training was started with.
    """

    model: str
    schema: Schema
    config: ModelConfig | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tessella: str = ""
    version: int = VERSION

    def build(self) -> Any:
        """The model, with fresh weights.

        Raises:
            SpecError: if it is a composition of one's own.
        """
        if self.config is None:
            known = ", ".join(registry.names("model"))
            raise SpecError(
                f"no model is called {self.model[:40]!r}; there are: {known}; load a composition of your own into one",
                code="no-such-part",
            )
        return self.config.build(self.schema)

    def to_json(self) -> str:
        config = None if self.config is None else self.config.to_record()
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**kept, "schema": self.schema.to_json(), "config": config}, indent=2)

    @classmethod
    def from_json(cls, text: str, where: str) -> Spec:
        """Read what `to_json` wrote.

        Raises:
            RunError: if it is no such text, or another version's.
        """
        try:
            record = validation.parse(text)
            check_version(record, where)
            schema = Schema.from_json(record.get("schema"))
            spec: Spec = validation.fitted(cls, {**record, "schema": schema})
            if spec.config is not None and spec.config.name != spec.model:
                raise validation.Malformed("model and config name different models")
            validation.known_fields(Source, spec.data, "data")
            training = validation.known_fields(TrainOptions, spec.training, "training")
            return replace(spec, schema=schema, training=training)
        except validation.Malformed as error:
            raise RunError(f"{where} is not a specification that tessella wrote ({error}): get the run anew") from error


def check_version(record: Any, where: object) -> None:
    """Refuse a record of another version than this package writes.

    Raises:
        Malformed: if it names no version.
        RunError: saying which versions these are.
    """
    version = record.get("version") if isinstance(record, dict) else None
    if type(version) is not int:
        raise validation.Malformed("it names no version")
    if version != VERSION:
        newer = version > VERSION
        remedy = "upgrade tessella" if newer else "train the run again, or use the tessella that wrote it"
        raise RunError(
            f"{where} has version {version} and this tessella reads version {VERSION}: {remedy}",
            code="other-version",
            version=version,
        )
