"""The named results that travel between the layers. Units: nats per example unless a name says otherwise.

Imports beside it: errors, stored.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tessella import stored
from tessella.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution

LARGEST = 1 << 26
"""Numbers in one example, at most."""
Values = Literal["binary", "bytes", "real"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Schema:
    """What one example looks like as it is stored: all that a model needs to know of the data.

    Attributes:
        shape: `(C, H, W)` for a picture, `(D,)` for a vector.
        values: `binary` (0 or 1), `bytes` (0 ... 255), or `real`.
        low, high: the range of the stored values (for `real`, as seen in the training split).
        center, scale: for `real` data the mean and standard deviation of the training split, one a feature for
            vectors and one a channel for pictures; `(0.0,)` and `(1.0,)` otherwise.
        classes: the names of the classes, in the order of their labels; empty if there are none.
        depth: of pictures read from files of more than 8 bits, the values in the files that became 0 and 255.
        columns: the names of a table's columns, in order; empty if they have none.
        offset: whole numbers that were subtracted from the columns, because 32 bits could not tell their values apart;
            empty if none were.
    """

    shape: tuple[int, ...]
    values: Values
    low: float = 0.0
    high: float = 255.0
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    classes: tuple[str, ...] = ()
    depth: tuple[float, float] | None = None
    columns: tuple[str, ...] = ()
    offset: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether an example has height and width."""
        return len(self.shape) == 3

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Schema:
        """What `to_json` gave.

        Raises:
            Malformed: if it is something else, or describes no data.
        """
        schema: Schema = stored.fitted(cls, record, "schema")
        sides = schema.shape
        if len(sides) not in (1, 3) or not all(1 <= side <= LARGEST for side in sides) or schema.dims > LARGEST:
            raise stored.Malformed(f"shape {sides[:4]} is of no picture and no vector that a model could be made for")
        if len(sides) == 3 and sides[0] > 4:
            raise stored.Malformed(f"shape {sides} has {sides[0]} channels, more than a picture has")
        if not schema.low <= schema.high:
            raise stored.Malformed(f"low {schema.low} is above high {schema.high}")
        if any(len(numbers) not in (1, sides[0]) for numbers in (schema.center, schema.scale)):
            raise stored.Malformed(f"center and scale do not have 1 or {sides[0]} numbers")
        if not all(number > 0 for number in schema.scale):
            raise stored.Malformed("scale is not above zero")
        if len(set(schema.classes)) < len(schema.classes):
            raise stored.Malformed("two classes have one name")
        return schema


@dataclass(frozen=True)
class Batch:
    """Examples as stored, `x` `[B, *shape]` (uint8 or float32), and their labels `[B]` (int64) if there are any."""

    x: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """How freely is drawn: probabilities are sharpened by the temperature, then cut off, then drawn from.

    Attributes:
        temperature: of real numbers a factor on the deviation; of codes the logits are divided by it (0: the
            likeliest).
        top_k: of codes, only the k likeliest values of each; None: all.
        top_p: of codes, only the likeliest values that hold this share of the probability (Holtzman et al. 2020,
            section 3.1); None: all.
        steps: of what draws in many steps (diffusion), how many; None: its own number.
        guidance: of diffusion that sees labels, how far it is led towards the class: 0 is not at all, 1 is p(z | label)
            itself, above that more typical of the class (Ho & Salimans 2022); None: 1.

    Raises:
        SpecError: if a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SpecError(f"temperature must be a number from 0 up, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise SpecError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SpecError(f"top-p must lie above 0 and up to 1, not {self.top_p}")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"steps must be at least 1, not {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise SpecError(f"guidance must be a number from 0 up, not {self.guidance}")


@dataclass(frozen=True)
class Passage:
    """What a bottleneck lets through.

    Attributes:
        z: `[B, *latent_shape]`, a draw from `posterior` (or the features themselves where there is none).
        posterior: q(z | x) with batch shape `[B]`; None for a deterministic bottleneck, which has no rate.
        penalty: `[B]`, what training adds to the loss and no bound ever contains (commitment, ...); or None.
    """

    z: Tensor
    posterior: Distribution | None
    penalty: Tensor | None = None


@dataclass(frozen=True)
class Latent:
    """What the model says of a batch: the latent and what it costs to say it.

    Attributes:
        z: `[B, *latent_shape]`.
        rate: `[B]`, KL(q(z | x) || p(z)); None for an autoencoder.
        rate_per_unit: `[B, units]`, its parts where the KL is a sum over units; None otherwise.
        penalty: `[B]` or None, as in `Passage`.
        codes: of a model with discrete latents, the codes of each level `[B, C, h, w]` int64, coarsest first.
        posterior: q(z | x) of a model with continuous latents, batch shape `[B]`.
    """

    z: Tensor
    rate: Tensor | None
    rate_per_unit: Tensor | None = None
    penalty: Tensor | None = None
    codes: tuple[Tensor, ...] = ()
    posterior: Distribution | None = None


@dataclass(frozen=True)
class Terms:
    """The terms of the bound, one number an example.

    Attributes:
        distortion: `[B]`, -log p(x | z).
        rate: `[B]`, KL(q(z | x) || p(z)); None for an autoencoder.
        rate_per_unit: `[B, units]` or None.
        penalty: `[B]` or None; never part of the bound.
        log_weights: `[samples, B]`, log p(x, z_k) - log q(z_k | x) of several draws, if they were asked for.
    """

    distortion: Tensor
    rate: Tensor | None
    rate_per_unit: Tensor | None = None
    penalty: Tensor | None = None
    log_weights: Tensor | None = None

    @property
    def bound(self) -> Tensor | None:
        """`[B]`, rate + distortion >= -log p(x); None where there is no rate."""
        return None if self.rate is None else self.rate + self.distortion


@dataclass(frozen=True)
class ImportanceBound:
    """-log p(x) bounded by importance weighting (Burda et al. 2015, eq. 8), averaged over the examples."""

    samples: int
    nats: float
    bits_per_dim: float


@dataclass(frozen=True)
class LevelEvaluation:
    """One level of codes over a whole split.

    Attributes:
        codes_per_example: N, positions times codes a position.
        codebook_size: K.
        code_usage: share of the codes that occur at all; the mean over the slots if each has its own codebook.
        perplexity: exp of the entropy of the codes' frequencies, 1 ... K; the mean over slots likewise.
        rate_uniform: nats, N log K: what the codes cost if all are held equally plausible.
        rate: nats, -log p(codes | coarser levels) under the model's prior.
        distortion: nats, -log p(x | z) with this level and the coarser ones, the finer ones left blank.
    """

    codes_per_example: int
    codebook_size: int
    code_usage: float
    perplexity: float
    rate_uniform: float
    rate: float
    distortion: float


@dataclass(frozen=True)
class CodesEvaluation:
    """How a model uses its codes over a whole split; the totals of its levels, and each.

    Attributes:
        levels: coarsest first.
        codes_per_example, rate_uniform: of all levels together.
        codebook_size: of the level that has most codes.
        code_usage, perplexity: of the level that uses least of its codes.
        learned: whether a prior over the codes has been fitted; if not, `rate` is `rate_uniform`.
    """

    codes_per_example: int
    codebook_size: int
    code_usage: float
    perplexity: float
    rate_uniform: float
    learned: bool
    levels: tuple[LevelEvaluation, ...]


@dataclass(frozen=True)
class CollapseEvaluation:
    """Whether z is used, judged on some examples: `evaluation.collapse` says how. Nats per example.

    Attributes:
        examples: on how many.
        active_units: numbers of z (or codes) that change from example to example; None if that cannot be said.
        units: numbers in z (or codes).
        mutual_information: between z and the index of the example.
        mutual_information_ceiling: what it can be at most with so many examples: log of their number.
        shuffle_cost: how much log p(x | z) falls when x is given another example's z.
        collapsed: whether z goes unused.
        advice: if so, what to do, in words; else empty.
    """

    examples: int
    active_units: int | None
    units: int
    mutual_information: float
    mutual_information_ceiling: float
    shuffle_cost: float
    collapsed: bool
    advice: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A model on one split. Nats per example, averaged; None where the model has no such number.

    `mse` and `psnr` are of reconstructions, in stored units; None where drawing one takes a pass over all pixels
    (autoregressive likelihoods). `codes` is of models with discrete latents. `notes` are warnings in words.
    """

    model: str
    data: str
    split: str
    examples: int
    dims: int
    rate: float | None
    distortion: float
    bound: float | None
    bits_per_dim: float | None
    importance_bound: ImportanceBound | None
    kl_per_unit: tuple[float, ...] | None
    active_units: int | None
    mse: float | None
    psnr: float | None
    parameters: int
    seconds: float
    codes: CodesEvaluation | None = None
    collapse: CollapseEvaluation | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Evaluation:
        """What `to_json` gave, be it an older version's; a PSNR that is not finite may have become null.

        Raises:
            Malformed: if it is something else.
        """
        found: Evaluation = stored.fitted(cls, record, others=True)
        return replace(found, psnr=math.inf) if found.psnr is None and found.mse == 0 else found


@dataclass(frozen=True)
class Against:
    """A figure of samples against data, and for a measure the same figure of data against other data.

    Attributes:
        value, error: of the samples, and its standard error.
        data, data_error: of as many examples that are data themselves: what perfect samples would have.
    """

    value: float
    error: float
    data: float
    data_error: float


@dataclass(frozen=True)
class FidelityEvaluation:
    """How much samples look like data: `evaluation.fidelity` says how. Never a "FID" unless it is called so.

    Attributes:
        samples: how many were drawn, and with how many examples of the data they were compared.
        split: where those are from.
        drawn: whether x was drawn from p(x | z); if not, the samples are its means.
        features: what both were looked at by: `class`, `rotation`, `flip` or `autoencoder`, the task of the
            classifier; `given` or a file's name for features of one's own.
        feature_count: numbers in the features of one example.
        classifier: fingerprint of the classifier; figures of another one are on another scale. Empty if none.
        classifier_score: of its task on the validation split: accuracy, or of an autoencoder the share of variance.
        frechet: Frechet distance between the features, as a share of the data's variance; 0 is the same.
        precision, recall: share of the samples that lie among the data, and of the data among the samples.
        consistency: of a model that sees the label: share of the samples that are seen as the class asked for.
        class_distance: total variation between the classes of samples and of data; None without classes.
        class_shares: share of the samples in each class.
        sharpness: high-frequency energy over the data's; None for vectors.
        fid: the standard Frechet Inception distance, if it was asked for.
        seconds_per_sample: what drawing one took.
    """

    samples: int
    split: str
    drawn: bool
    features: str
    feature_count: int
    classifier: str
    classifier_score: float | None
    frechet: Against
    precision: Against
    recall: Against
    consistency: Against | None = None
    class_distance: Against | None = None
    class_shares: tuple[float, ...] | None = None
    sharpness: Against | None = None
    fid: float | None = None
    seconds_per_sample: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> FidelityEvaluation:
        """What `to_json` gave.

        Raises:
            Malformed: if it is something else.
        """
        return stored.fitted(cls, record, others=True)


@dataclass(frozen=True)
class Estimate:
    """A mean over examples, and its standard error; nats per example."""

    nats: float
    error: float


@dataclass(frozen=True)
class GapEvaluation:
    """What a bound is short of -log p(x), and why (Cremer et al. 2018). Nats per example, means over the same examples.

    Attributes:
        exact: -log p(x), estimated by `method`; on average not below the truth.
        bound: rate + distortion as trained.
        own: the bound with q optimised for each example within the family of the model's q.
        flow: likewise with a flow of each example's own after a Gaussian q; None if z has too many numbers for one, or
            q is of a flow already.
        approximation: own - exact, what the family costs.
        approximation_flow: flow - exact.
        amortisation: bound - own, what it costs that an encoder finds q in one pass.
        total: bound - exact, their sum.
        family: of the model's q: `gaussian`, `flow`, or `dequantisation` (of a flow model).
        method: `annealed importance sampling`, `importance sampling`, or `exact`.
        steps, chains: of annealing, or draws an example (`chains`) of importance sampling.
        bracket: upper less lower estimate of log p(x) on simulated examples: how far `exact` may be above the truth.
        tolerance: what the bracket was to come below.
        converged: whether it did.
        seconds_annealing: to find log p(x) of the examples, the bracket included.
        seconds: to find everything.
    """

    model: str
    data: str
    split: str
    examples: int
    dims: int
    family: str
    method: str
    chains: int
    steps: int
    exact: Estimate
    bound: Estimate
    own: Estimate
    flow: Estimate | None
    approximation: Estimate
    approximation_flow: Estimate | None
    amortisation: Estimate
    total: Estimate
    bracket: Estimate | None
    tolerance: float
    converged: bool
    seconds_annealing: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> GapEvaluation:
        """What `to_json` gave.

        Raises:
            Malformed: if it is something else.
        """
        return stored.fitted(cls, record, others=True)


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats per example as bits per dimension: `nats / (dims * ln 2)`."""
    return nats / (dims * math.log(2))
