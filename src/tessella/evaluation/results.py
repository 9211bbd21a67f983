"""Results of evaluations, in nats per example unless a name says otherwise."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tessella.foundation import validation
from tessella.foundation.errors import SpecError, option


@dataclass(frozen=True)
class ImportanceBound:
    """Importance-weighted bound on -log p(x) (Burda et al. 2015, eq. 8), averaged over the examples."""

    samples: int
    nats: float
    bits_per_dim: float


@dataclass(frozen=True)
class LevelEvaluation:
    """Use of one level of codes over a whole split.

    Attributes:
        codes_per_example: N, positions times codes per position.
        codebook_size: K.
        code_usage: share of the codebook that occurs; the mean over the slots if each has its own codebook.
        perplexity: exp of the entropy of the code frequencies, from 1 to K; also the mean over the slots.
        rate_uniform: N log K in nats, the cost of the codes if all are equally likely.
        rate: -log p(codes | coarser levels) in nats under the model's prior.
        distortion: -log p(x | z) in nats with this level and the coarser ones, and finer levels set to zero.
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
    """Use of a model's codes over a whole split: totals, and each level.

    Attributes:
        levels: the levels, coarsest first.
        codes_per_example, rate_uniform: sums over the levels.
        codebook_size: size of the largest codebook.
        code_usage, perplexity: lowest value of any level.
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
    """Result of the test for posterior collapse (`evaluation.collapse`), in nats per example.

    Attributes:
        examples: number of examples tested.
        active_units: latent units (or codes) that vary between examples; None if unknown.
        units: number of latent units (or codes).
        mutual_information: mutual information of z and the index of the example.
        mutual_information_ceiling: its maximum, the log of the number of examples.
        shuffle_cost: decrease of log p(x | z) if x gets another example's z.
        collapsed: whether the decoder ignores z.
        advice: if collapsed, what to do; else empty.
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
class SoundQuality:
    """Likeness of reconstructed sounds and their inputs (`evaluation.quality.sounds`), means over the clips.

    Attributes:
        clips: number of sounds compared.
        si_sdr: scale-invariant signal-to-distortion ratio in decibels; 100 for exact copies.
        log_mel_distance: mean |log10 mel(x) - log10 mel(y)|.
        stoi: short-time objective intelligibility; None if `pystoi` is not installed or all clips are too short.
        stoi_clips: number of clips that are long enough for it.
    """

    clips: int
    si_sdr: float
    log_mel_distance: float
    stoi: float | None
    stoi_clips: int


@dataclass(frozen=True)
class SoundEvaluation:
    """Bits of sounds per sample and per second, and the quality of reconstructions.

    Attributes:
        bits_per_sample: the bound, per sample of each channel; None for densities, and without a bound.
        bits_per_second: the bound, per second of all channels.
        rate_per_second: bits per second of the latent alone under the prior: of a file that holds only the codes.
        quality: None where a reconstruction takes a pass over all samples.
    """

    bits_per_sample: float | None
    bits_per_second: float | None
    rate_per_second: float | None
    quality: SoundQuality | None


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model on one split, in nats per example; None where a number does not apply.

    `mse` and `psnr` are those of reconstructions, in stored units; None where a reconstruction takes a pass over all
    pixels (autoregressive likelihoods). `codes` belongs to models with discrete latents, `sound` to sounds. `notes` are
    warnings.
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
    sound: SoundEvaluation | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Evaluation:
        """Read the record that `to_json` wrote; a PSNR of null becomes infinite if the error is 0.

        Raises:
            Malformed: if the record does not fit.
        """
        found: Evaluation = validation.fitted(cls, record, others=True)
        return replace(found, psnr=math.inf) if found.psnr is None and found.mse == 0 else found


@dataclass(frozen=True)
class Against:
    """A metric of samples against data, beside the same metric of data against other data.

    Attributes:
        value, error: metric of the samples, and its standard error.
        data, data_error: metric of equally many data, which perfect samples would have, and its standard error.
    """

    value: float
    error: float
    data: float
    data_error: float


@dataclass(frozen=True)
class FidelityEvaluation:
    """Similarity of samples to data (`evaluation.fidelity`).

    Attributes:
        samples: number of samples, and of examples that they are compared with.
        split: split that those examples are from.
        drawn: whether x was sampled from p(x | z); if not, samples are its means.
        features: source of the features: the classifier's task (`class`, `rotation`, `flip` or `autoencoder`), or
            `given` or a file's name for the user's own features.
        feature_count: length of an example's features.
        classifier: fingerprint of the classifier; numbers from different classifiers are not comparable. Empty if none.
        classifier_score: score on the validation split: accuracy, or the share of the variance that is reconstructed.
        frechet: Frechet distance between the features, as a share of the data's variance; 0 if they match.
        precision, recall: share of the samples that lie among the data, and of the data among the samples.
        consistency: share of the samples that are classified as their class; None if the model is unconditional.
        class_distance: total variation between the classes of samples and data; None without classes.
        class_shares: share of the samples in each class.
        sharpness: high-frequency energy relative to the data; None for vectors.
        fid: the standard Frechet Inception distance, if requested.
        seconds_per_sample: time to sample one example.
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
        """Read the record that `to_json` wrote.

        Raises:
            Malformed: if the record does not fit.
        """
        return validation.fitted(cls, record, others=True)


@dataclass(frozen=True)
class Estimate:
    """Mean over examples and its standard error, in nats per example."""

    nats: float
    error: float


@dataclass(frozen=True)
class GapConfig:
    """Measure the inference gap: bound minus -log p(x), split into the parts of the encoder and of q's family.

    log p(x) is estimated by annealed importance sampling (AIS), and bracketed on examples sampled from the model.

    Attributes:
        data: data set to measure on, read like the run's own; by default the run's own.
        split: split to measure on: train, valid or test.
        prior: kind of the fitted prior to use, or trained for the model's own; by default the best.
        examples: number of examples to measure, the same each time, spread over the split.
        chains: annealing chains per example.
        steps: annealing steps; by default 16, doubled until the bracket is narrow enough.
        simulated: number of simulated examples that give the bracket; by default half of the examples.
        tolerance: largest width of the bracket in nats, its standard error included.
        base: start of annealing: a Gaussian with the moments of q(z | x), or of p(z).
        minutes: time limit for the estimate of log p(x): the steps are not doubled if that would take longer.
        seed: seed of all random numbers.
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
    """Inference gap of a model and its parts (Cremer et al. 2018), in nats per example, means over the same examples.

    Attributes:
        exact: -log p(x), estimated by `method`; on average not below the truth.
        bound: rate + distortion as trained.
        own: bound with q optimised for each example within the model's family of q.
        flow: bound with q optimised for each example as a flow over a Gaussian; None if z is too large for that, or the
            model's q is a flow already.
        approximation: own - exact, the loss from the family of q.
        approximation_flow: flow - exact.
        amortisation: bound - own, the loss from an encoder that finds q in one pass.
        total: bound - exact, the sum of both losses.
        family: family of the model's q: `gaussian`, `flow`, or `dequantisation` (flow models).
        method: `annealed importance sampling`, `importance sampling`, or `exact`.
        steps, chains: annealing steps and chains; for importance sampling, `chains` is the samples per example.
        bracket: upper minus lower estimate of log p(x) on simulated examples: how far `exact` may be above the truth.
        tolerance: largest width of the bracket that counts as converged.
        converged: whether the bracket is that narrow.
        seconds_annealing: time to estimate log p(x), bracket included.
        seconds: total time.
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
        """Read the record that `to_json` wrote.

        Raises:
            Malformed: if the record does not fit.
        """
        return validation.fitted(cls, record, others=True)
