"""Results of evaluations. Units: nats per example unless a name says otherwise."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tessella.foundation import validation
from tessella.foundation.errors import SpecError, option


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
        found: Evaluation = validation.fitted(cls, record, others=True)
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
        return validation.fitted(cls, record, others=True)


@dataclass(frozen=True)
class Estimate:
    """A mean over examples, and its standard error; nats per example."""

    nats: float
    error: float


@dataclass(frozen=True)
class GapConfig:
    """Measure the inference gap: bound less -log p(x), and whether the encoder or q's family causes it.

    log p(x) is estimated by annealed importance sampling (AIS), and bracketed on examples sampled from the model.

    Attributes:
        data: other data than the run's own, read as the run's was.
        split: train, valid or test.
        prior: the kind of a fitted prior, or trained: the model's own; by default the best.
        examples: how many are measured, the same ones each time, spread over the split.
        chains: of annealing, per example.
        steps: of annealing; by default doubled from 16 on until the bracket is narrow enough.
        simulated: on how many examples of the model's own the bracket is found; by default on half as many.
        tolerance: nats that the bracket may be wide, with its standard error.
        base: what annealing starts from: a Gaussian like q(z | x), or like p(z).
        minutes: do not double the steps again if finding log p(x) would then take longer than about that.
        seed: of all random numbers.
    """

    data: str | None = None
    split: str = "test"
    prior: str | None = None
    examples: int = 100
    chains: int = 16
    steps: int | None = None
    simulated: int | None = None
    tolerance: float = 0.3
    base: Literal["posterior", "prior"] = "posterior"
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"examples": 2, "chains": 1, "steps": 1, "simulated": 2}
        for name, least in counts.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise SpecError(f"{option(name)} must be at least {least}, got {value}", "out-of-range", option=name)
        for name in ("tolerance", "minutes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise SpecError(f"{option(name)} must be more than zero, got {value}", "out-of-range", option=name)


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
        return validation.fitted(cls, record, others=True)
