"""Records of an experiment: what a claim predicts, what was measured, what follows.

A claim predicts one or several effects. Each is measured once for every seed and tested against its own standard
error: `EffectTest`. The claim held if all its effects did, and failed if one did not; a claim that fails is a result.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from tessella.plugin import Chart, Rows, Series

if TYPE_CHECKING:
    from tessella_experiments.runner import ExperimentRunner, TrainingJob

Verdict = Literal["held", "failed", "undecided", "not applicable"]

ONE_SIDED_95 = (math.inf, 6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
"""Student's t that is passed by chance once in 20, by degrees of freedom."""
OF_MANY = 1.645
"""Student's t of more degrees of freedom than the table has."""
SEEDS = (0, 1, 2)
"""Each effect is measured once with each."""


@dataclass(frozen=True)
class Measure:
    """A number that was measured.

    Attributes:
        error: its standard error over the seeds; None where there is none.
        unit: `nats`, `bits`, `%`, ...; empty for a pure number.
    """

    name: str
    value: float
    error: float | None = None
    unit: str = ""

    @classmethod
    def over(cls, name: str, values: Sequence[float], unit: str = "") -> Measure:
        """Average one value a seed; the error is over the seeds."""
        mean, error = mean_and_error(values)
        return cls(name, mean, error, unit)


@dataclass(frozen=True)
class EffectTest:
    """Test one predicted effect against its standard error.

    The effect is predicted to lie above `least`, below `most`, or between the two. It held if it does so by its margin,
    that of a one-sided test at 95 %; it failed if it lies outside by as much; otherwise it is undecided.

    Attributes:
        what: the prediction in words.
        effect: the mean over the seeds.
        error: its standard error.
        degrees: of freedom of that error: one less than there are seeds.
    """

    what: str
    effect: float
    error: float
    degrees: int
    least: float | None = 0.0
    most: float | None = None
    unit: str = ""

    @classmethod
    def over(cls, what: str, effects: Sequence[float], **bounds: Any) -> EffectTest:
        """Test one effect a seed; `bounds` are `least`, `most` and `unit`."""
        mean, error = mean_and_error(effects)
        return cls(what, mean, error or 0.0, len(effects) - 1, **bounds)

    @classmethod
    def exact(cls, what: str, effect: float, **bounds: Any) -> EffectTest:
        """Test an effect that is computed and has no error."""
        return cls(what, effect, 0.0, 1, **bounds)

    @property
    def margin(self) -> float:
        """By how much the effect may be off: its error times Student's t."""
        t = ONE_SIDED_95[self.degrees] if self.degrees < len(ONE_SIDED_95) else OF_MANY
        return t * self.error if self.degrees else math.inf

    @property
    def verdict(self) -> Verdict:
        low, high = self.effect - self.margin, self.effect + self.margin
        if not math.isfinite(self.effect):
            return "undecided"
        if (self.least is not None and high <= self.least) or (self.most is not None and low >= self.most):
            return "failed"
        if (self.least is None or low > self.least) and (self.most is None or high < self.most):
            return "held"
        return "undecided"


Plot = Chart | Rows


def bars(title: str, measures: Mapping[Any, Measure], unit: str = "") -> Chart:
    """Draw measures as bars, by their labels."""
    series = Series(
        tuple(measures),
        tuple(m.value for m in measures.values()),
        error=tuple(m.error or 0.0 for m in measures.values()),
    )
    return Chart(f"{title} ({unit})" if unit else title, (series,), "bar")


@dataclass(frozen=True)
class Finding:
    """Finding about a claim.

    Attributes:
        sentence: the finding in one sentence; where the claim does not apply, the reason.
        effects: the predicted effects, from which the verdict follows.
        measures: what else was measured.
        seconds: how long it took, trainings that it was the first to need included.
        trained: updates of each model that it looked at, the mean over the seeds.
    """

    verdict: Verdict
    sentence: str
    effects: tuple[EffectTest, ...] = ()
    measures: tuple[Measure, ...] = ()
    plots: tuple[Plot, ...] = ()
    seconds: float = 0.0
    trained: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, sentence: str, effects: Sequence[EffectTest], measures: Sequence[Measure] = (), plots: Sequence[Plot] = ()
    ) -> Finding:
        """Conclude from the effects: failed if one failed, held if all held, else undecided."""
        verdicts = {effect.verdict for effect in effects}
        verdict: Verdict = "failed" if "failed" in verdicts else "held" if verdicts == {"held"} else "undecided"
        return cls(verdict, sentence, tuple(effects), tuple(measures), tuple(plots))

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data: each effect with its own verdict; pictures are left out."""
        charts = [asdict(plot) for plot in self.plots if isinstance(plot, Chart)]
        effects = [{**asdict(effect), "verdict": effect.verdict} for effect in self.effects]
        return {**asdict(replace(self, plots=())), "effects": effects, "plots": charts}


@dataclass(frozen=True)
class Claim:
    """A sentence of the field's story, and the experiment that tests it.

    Attributes:
        number: as `--only` names it.
        title: the claim in a few words.
        hypothesis: what it predicts, with the thresholds that were fixed before anything was measured.
        method: how it is measured.
        run: the experiment. It is run only where the claim applies.
        needs: the trainings whose results it uses, so that the time can be divided.
        skip_reason: why the claim does not apply to this data, in words; None if it does.
    """

    number: int
    title: str
    hypothesis: str
    method: str
    run: Callable[[ExperimentRunner], Finding]
    needs: tuple[TrainingJob, ...] = ()
    skip_reason: Callable[[ExperimentRunner], str | None] = lambda runner: None


def difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Subtract seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Average, with the standard error; a single value has none."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
