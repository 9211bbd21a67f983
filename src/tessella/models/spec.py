"""What a model is built of, as data: enough to build it again, on any machine, without running anything stored."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tessella.core.schema import Precision, Schema
from tessella.foundation import registry, validation
from tessella.foundation.errors import RunError, SpecError

VERSION = 1
MOST = 1 << 24
"""Of values of a code, of a grid's side, of draws."""


@dataclass(frozen=True)
class Objective:
    """What training minimises: mean(distortion + beta * rate) + penalty.

    Attributes:
        beta: weight of the rate (Higgins et al. 2017); 1 is the bound itself.
        warmup: fraction of the training budget over which beta rises from 0 (Sonderby et al. 2016, section 2.3).
        free_bits: nats a unit that cost nothing: sum_j max(free_bits, mean_batch KL_j) (Kingma et al. 2016,
            appendix C.8). Needs a rate that is a sum over units.
        draws: of z an example. With more than one the importance-weighted bound is trained instead (Burda et al.
            2015, eq. 8), and beta and free bits have no part in it.
        draws_after: fraction of the budget from which on there are that many draws; one before.
    """

    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0
    draws: int = 1
    draws_after: float = 0.0

    def __post_init__(self) -> None:
        if self.beta < 0 or self.free_bits < 0 or not 0 <= self.warmup <= 1:
            raise SpecError(
                f"beta {self.beta} and free bits {self.free_bits} must not be negative and warm-up {self.warmup} "
                "must lie between 0 and 1"
            )
        if self.draws < 1 or not 0 <= self.draws_after <= 1:
            raise SpecError(
                f"there must be at least one draw, not {self.draws}, and draws after {self.draws_after} must lie "
                "between 0 and 1"
            )
        if self.draws > 1 and (self.beta != 1 or self.free_bits):
            raise SpecError("several draws train the importance-weighted bound, which has no beta and no free bits")


@dataclass(frozen=True)
class ModelOptions:
    """How a model is made. What is None follows from the data.

    Attributes:
        likelihood: a name of the catalogue; by default the one for the stored values.
        mixtures: logistics in a discretised-logistic mixture; refused by other likelihoods.
        latent: `vector`, one z for the whole example, or `grid`, a z at each position of a coarse grid. By default
            a grid for colour pictures, whose bound needs many units, and a vector for all else.
        prior: p(z) of a model with continuous latents: a name of the catalogue; N(0, I) unless given.
        posterior: q(z | x): `gaussian` (factorised), or `flow` (inverse autoregressive steps after it).
        components: of a mixture or VampPrior.
        flow_steps: of a flow prior or posterior; couplings at each scale of a flow model.
        dequantization: how a flow model makes discrete values real ones; uniform unless given.
        class_conditional: of a diffusion model: whether it sees the label.
        units: numbers in z (in each position's z for a grid); not for codes.
        width: channels of the widest grid (pictures), units of a layer (vectors).
        depth: residual blocks at each resolution.
        beta: weight of the rate in training; 1 unless the model has its own.
        warmup: fraction of the budget over which beta rises from 0.
        free_bits: nats a unit that cost nothing in training.
        draws: of z an example; more than one train the importance-weighted bound.
        draws_after: fraction of the budget from which on there are that many draws.
        pixel_width: channels of an autoregressive likelihood's network.
        pixel_depth: its layers.
        quantizer: of a model of codes; a name of the catalogue.
        codebook_size: values that a code can take.
        codes: codes at each position.
        code_dim: numbers that a code stands for.
        side: aim for a grid of codes of this side; it is halved from the data's until it has no more than 2 side^2
            positions.
        levels: grids of codes, coarse to fine.
        commitment: weight of the commitment term, where the quantiser has one.
        distance: by which the nearest code is chosen.
        gradient: how it passes the quantiser.
    """

    likelihood: str | None = None
    mixtures: int | None = None
    pixel_width: int | None = None
    pixel_depth: int | None = None
    quantizer: str | None = None
    codebook_size: int | None = None
    codes: int | None = None
    code_dim: int | None = None
    side: int | None = None
    levels: int | None = None
    commitment: float | None = None
    distance: Literal["euclidean", "cosine"] | None = None
    gradient: Literal["straight-through", "rotation"] | None = None
    latent: Literal["vector", "grid"] | None = None
    prior: str | None = None
    posterior: Literal["gaussian", "flow"] | None = None
    components: int | None = None
    flow_steps: int | None = None
    class_conditional: bool = False
    dequantization: Literal["uniform", "variational"] | None = None
    units: int | None = None
    width: int | None = None
    depth: int | None = None
    beta: float | None = None
    warmup: float = 0.0
    free_bits: float = 0.0
    draws: int = 1
    draws_after: float = 0.0

    def __post_init__(self) -> None:
        counts = ("mixtures", "units", "width", "depth", "pixel_width", "pixel_depth")
        for name in (*counts, "codebook_size", "codes", "code_dim", "side", "levels", "components", "flow_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} must be at least 1, not {value}".replace("_", " "))
        if max(self.codebook_size or 0, self.side or 0, self.draws) > MOST:
            raise SpecError(f"codebook size, side and draws must be at most {MOST:,} each")
        if self.commitment is not None and not self.commitment >= 0:
            raise SpecError(f"commitment must not be negative, and {self.commitment} is")
        if self.latent not in (None, "vector", "grid"):
            raise SpecError(f"latent must be vector or grid, not {self.latent!r}")
        if self.posterior not in (None, "gaussian", "flow"):
            raise SpecError(f"posterior must be gaussian or flow, not {self.posterior!r}")
        if self.dequantization not in (None, "uniform", "variational"):
            raise SpecError(f"dequantization must be uniform or variational, not {self.dequantization!r}")
        self.objective  # checks itself  # noqa: B018

    @property
    def objective(self) -> Objective:
        return Objective(
            1.0 if self.beta is None else self.beta, self.warmup, self.free_bits, self.draws, self.draws_after
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
        clip: largest norm of the gradient of the loss in nats per dimension.
        average: decay of the averaged weights that evaluation uses.
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
    clip: float = 1.0
    average: float = 0.999
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
        model: a name of the catalogue.
        data: `{"spec": ..., **options}` of `open_data`.
        training: the options that training was started with.
    """

    model: str
    schema: Schema
    options: ModelOptions = field(default_factory=ModelOptions)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tessella: str = ""
    version: int = VERSION

    def build(self) -> Any:
        """The model, with fresh weights."""
        return registry.find("model", self.model).load()(self.schema, **asdict(self.options))

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "schema": self.schema.to_json()}, indent=2)

    @classmethod
    def from_json(cls, text: str, where: str) -> Spec:
        """Read what `to_json` wrote.

        Raises:
            RunError: if it is no such text, or a newer version's.
        """
        try:
            record = validation.parse(text)
            version = record.get("version") if isinstance(record, dict) else None
            if type(version) is not int:
                raise validation.Malformed("it names no version")
            if version > VERSION:
                raise RunError(
                    f"{where} has version {version}, written by a newer tessella; this one reads versions up to "
                    f"{VERSION}: upgrade tessella"
                )
            schema = Schema.from_json(record.get("schema"))
            spec: Spec = validation.fitted(cls, record)
            validation.known_fields(Source, spec.data, "data")
            training = validation.known_fields(TrainOptions, spec.training, "training")
            return replace(spec, schema=schema, training=training)
        except validation.Malformed as error:
            raise RunError(f"{where} is not a specification that tessella wrote ({error}): get the run anew") from error
