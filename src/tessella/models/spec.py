"""Description of a model as data: enough to rebuild it on any machine, without running stored code."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    """Training objective: mean(distortion + beta * rate) + penalty is minimised.

    Attributes:
        beta: weight of the rate (Higgins et al. 2017); 1 trains the bound itself.
        warmup: fraction of the training budget over which beta rises from 0 (Sonderby et al. 2016, section 2.3).
        free_bits: nats per dimension of z that are free of cost: sum_j max(free_bits, mean_batch KL_j) (Kingma et al.
            2016, appendix C.8). Needs a rate that is a sum over dimensions.
        iwae_samples: samples of z per example. More than one trains the importance-weighted bound (Burda et al. 2015,
            eq. 8), without beta and free bits.
        iwae_from: fraction of the training budget after which these samples are used; before, there is one.

    Raises:
        SpecError: if a number is out of its range, or several samples are combined with beta or free bits.
    """

    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0
    iwae_samples: int = 1
    iwae_from: float = 0.0

    def __post_init__(self) -> None:
        if self.iwae_samples > 1 and (self.beta != 1 or self.free_bits):
            raise SpecError(
                f"{option('iwae_samples')} above 1 trains the importance-weighted bound, which has no "
                f"{option('beta')} and no {option('free_bits')}: leave out one of them",
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
        """Return the training objective; parameters that the model lacks keep their defaults."""
        own = {f.name for f in fields(Objective)} & set(hints(type(self)))
        return Objective(**{name: getattr(self, name) for name in own})

    def sizes(self, schema: Schema) -> Sequence[Mapping[str, int]]:
        """Return sizes of the networks, by option, from small to large, of which one suits the training budget."""
        return ()

    @abstractmethod
    def build(self, schema: Schema) -> Any:
        """Build the model with new weights.

        Raises:
            SpecError: if the model does not suit the data, or its parts do not suit each other.
        """


@dataclass(frozen=True)
class DataOptions:
    """How the data is read.

    Attributes:
        size: height and width that pictures are cropped and resized to, or one number for both.
        channels: channels of pictures: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; of sounds: 1 mono, 2
            stereo. Recordings are mono by default if they differ.
        binarize: make 8-bit values binary: sampled in every batch, sampled once, or cut at half.
        label: the column of a table, or the array of an .npz, that holds the class; by default one called label, class
            or target that holds few values. In a folder, a pattern of the file names such as
            {digit}_{speaker}_{index}:speaker, whose field after the colon is the class, or a column of a CSV file in
            the folder whose first column names the files; by default the sub-folder.
        kind: signal if arrays (N, C, T) and (N, T), or the rows of a table, are signals, not grey pictures and vectors;
            series if the rows of a table or of an array (T, C) are consecutive times.
        rate: samples per second of sounds; others are resampled. Default: that of most recordings.
        seconds: length of the windows into which recordings are cut, or series whose rows have dates. Default: the
            longest recording, at most 1 s.
        values: values of sounds: pcm is whole numbers of 16 bits, or of 8 bits if all files have 8; mu-law is the 256
            codes of ITU-T G.711; real is floats. Default: pcm.
        whole_windows: leave out the end of a sound that is shorter than a window, as flows and diffusion need it.
        window: rows of the windows into which series are cut. Default: twice their period.
        stride: rows from one training window of a series to the next. Default: a window, or a quarter of it if there
            would be few. Windows of other splits never overlap.
        valid_share: share of the examples that is cut out for validation, if the data has no such split (default 0.05).
        test_share: share of the examples that is cut out for the test, if the data has no such split (default 0.1).
    """

    size: tuple[int, ...] | None = None
    channels: int | None = None
    binarize: Literal["dynamic", "static", "threshold"] | None = None
    label: str | None = None
    kind: Literal["signal", "series"] | None = None
    rate: int | None = None
    seconds: float | None = None
    values: Literal["pcm", "mu-law", "real"] | None = None
    whole_windows: bool = False
    window: int | None = None
    stride: int | None = None
    valid_share: float | None = None
    test_share: float | None = None

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
            spec,
            size=self.box,
            channels=self.channels,
            binarize=self.binarize,
            label=self.label,
            kind=self.kind,
            rate=self.rate,
            seconds=self.seconds,
            values=self.values,
            whole_windows=self.whole_windows,
            window=self.window,
            stride=self.stride,
            valid_share=self.valid_share,
            test_share=self.test_share,
        )


@dataclass(frozen=True)
class TrainOptions:
    """Options of training.

    Attributes:
        minutes: training budget in minutes; 10 if no budget is given. Give at most one of minutes, epochs and steps.
        epochs: training budget in passes through the training split.
        steps: training budget in updates of the weights.
        batch_size: examples per step and process. Default: about 131,072 values, from 8 to 64 examples, or more where
            that costs no time.
        learning_rate: peak learning rate; it rises over the first 50 updates or 3 % of the budget, then falls to zero
            along a cosine. Default: 3e-3 for models of codes, 2e-3 for other ones, 1e-3 for flows, diffusion and
            priors; narrow networks take more.
        weight_decay: weight decay of AdamW (Loshchilov & Hutter 2017).
        grad_clip: largest norm of the gradient, of the loss in nats per dimension.
        ema_decay: decay of the averaged weights that evaluation uses.
        precision: `auto` is bfloat16 autocast for pictures where the hardware supports it natively, else float32.
        compile: compile the networks before training; auto does so where the time that it saves within the budget, by
            measurement, is more than it takes.
        seed: seed of the weights, the order of the examples and all sampling.
        save_every: seconds between checkpoints; a killed run loses at most this time.
        threads: threads of the processor. Default: all, or one where the machine is so busy that it is faster alone.
        workers: processes that read files, for streamed data.
        device: device of the networks: auto (the best available), cpu, cuda, mps or xpu; cuda:1 is the second GPU.
            Default: the environment variable TESSELLA_DEVICE, or else auto.
        rank_timeout: seconds after which a process that does not answer is given up when several processes train
            together; the others then stop.
        track: experiment trackers that get metrics and pictures besides metrics.jsonl, such as tensorboard,wandb; each
            needs its package.
    """

    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: Precision = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    seed: int = 0
    save_every: float = 60.0
    threads: int | None = None
    workers: int = 2
    device: str | None = None
    rank_timeout: float = 300.0
    track: str = ""

    def __post_init__(self) -> None:
        budgets = {n: getattr(self, n) for n in ("minutes", "epochs", "steps") if getattr(self, n) is not None}
        if len(budgets) > 1:
            raise SpecError(f"give only one budget, not {' and '.join(map(option, budgets))}", code="one-budget")
        for name, value in {
            **budgets,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "rank_timeout": self.rank_timeout,
            "threads": self.threads,
        }.items():
            if value is not None and not value > 0:
                raise SpecError(f"{option(name)} must be more than 0, got {value}", code="out-of-range")
        if not budgets:
            object.__setattr__(self, "minutes", 10.0)


@dataclass(frozen=True)
class DataRecord:
    """Origin and size of a run's data.

    Attributes:
        spec: location of the data.
        fingerprint: hash of its content.
        examples: number of examples in each split.
    """

    spec: str | None = None
    fingerprint: str = ""
    examples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """Description of a model and its origin: the content of `spec.json`.

    Attributes:
        model: name of the model.
        schema: description of one example.
        config: options of the model and its parts; None for your own composition.
        data: `{"spec": ..., **options}` of `open_data`.
        training: options that training was started with.
        tessella: version of the package that wrote it.
        version: version of the format.
    """

    model: str
    schema: Schema
    config: ModelConfig | None = None
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tessella: str = ""
    version: int = VERSION

    def build(self) -> Any:
        """Build the model with new weights.

        Raises:
            SpecError: if it is your own composition.
        """
        if self.config is None:
            known = ", ".join(registry.names("model"))
            raise SpecError(
                f"there is no model {self.model[:40]!r}, only {known}: load your own composition with `into`",
                code="no-such-part",
            )
        return self.config.build(self.schema)

    def to_json(self) -> str:
        config = None if self.config is None else self.config.to_record()
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**kept, "schema": self.schema.to_json(), "config": config}, indent=2)

    @classmethod
    def from_json(cls, text: str, where: str) -> Spec:
        """Read a text that `to_json` wrote.

        Raises:
            RunError: if it is not such a text, or has another version.
        """
        try:
            record = validation.parse(text)
            check_version(record, where)
            schema = Schema.from_json(record.get("schema"))
            spec: Spec = validation.fitted(cls, {**record, "schema": schema})
            if spec.config is not None and spec.config.name != spec.model:
                raise validation.Malformed("model and config name different models")
            validation.known_fields(DataRecord, spec.data, "data")
            training = validation.known_fields(TrainOptions, spec.training, "training")
            return replace(spec, schema=schema, training=training)
        except validation.Malformed as error:
            raise RunError(
                f"{where} was not written by tessella ({error}): copy the run again", code="damaged"
            ) from error


def check_version(record: Any, where: object) -> None:
    """Check that a record has the version that this package writes.

    Raises:
        Malformed: if it has no version.
        RunError: if it has another version.
    """
    version = record.get("version") if isinstance(record, dict) else None
    if type(version) is not int:
        raise validation.Malformed("it has no version")
    if version != VERSION:
        newer = version > VERSION
        remedy = "upgrade tessella" if newer else "train the run again, or use the tessella that wrote it"
        raise RunError(
            f"{where} has version {version}, but this tessella reads version {VERSION}: {remedy}",
            code="other-version",
            version=version,
        )
