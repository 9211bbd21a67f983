"""The task `claims`: tests the field's claims on some data, as its entry point says."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from tessella.plugin import (
    Block,
    Cards,
    Cell,
    Charts,
    DataOptions,
    Details,
    Heading,
    Page,
    Result,
    Rows,
    SpecError,
    Table,
    Text,
    joined,
    note,
    option,
    task,
)

if TYPE_CHECKING:
    from tessella_experiments.records import Claim, EffectTest, Finding

VERDICTS = {
    "held": "what was predicted is there, beyond chance",
    "failed": "what was predicted is not there on this data",
    "undecided": "too noisy to say: give more minutes or seeds",
    "not applicable": "cannot be tested on this data",
}
TONES = {"held": "best", "failed": "bad"}


@dataclass(frozen=True)
class ClaimsConfig:
    """Test the field's claims on data of your own: small experiments, each with its verdict, numbers and a plot.

    A claim that does not hold on the data is reported as failed, and one that cannot be tested on it as not applicable.

    Attributes:
        data: clothes, digits, sprites, tones, hf:NAME, a folder of pictures, or a file.
        only: the numbers of claims, such as 6,10; all unless given.
        minutes: about how long all of them may take; less where the models have learned enough before. More than 14
            minutes train them for longer, which data larger than small pictures needs.
        seeds: how often each experiment is repeated; its standard errors are over these.
    """

    data: str
    how: Annotated[DataOptions, arg(name="")] = field(default_factory=DataOptions)
    only: str = ""
    minutes: float = 14.0
    seeds: int = 3


@dataclass(frozen=True)
class ClaimsResult(Result):
    """Findings of all claims that were tested.

    Attributes:
        about: the data, the versions and the time, as plain data.
    """

    about: Mapping[str, Any]
    findings: tuple[tuple[Claim, Finding], ...]

    def to_json(self) -> Mapping[str, Any]:
        claims = [
            {"number": c.number, "title": c.title, "hypothesis": c.hypothesis, "method": c.method, **found.to_json()}
            for c, found in self.findings
        ]
        return _finite({"version": 2, **self.about, "claims": claims})

    def page(self) -> Page:
        verdicts = [found.verdict for _, found in self.findings]
        about, counts = self.about, {verdict: verdicts.count(verdict) for verdict in VERDICTS}
        sizes = ", ".join(f"{count:,} {split}" for split, count in about["examples"].items())
        lead = (
            f"{len(verdicts)} claims of the field, each as an experiment on {about['data']} ({sizes}). Every effect is "
            f"measured with {about['seeds']} seeds and tested against its standard error; thresholds were fixed "
            "beforehand."
        )
        summary = [
            (str(c.number), Cell(c.title, link=f"#claim-{c.number}"), _verdict(found.verdict), found.sentence)
            for c, found in self.findings
        ]
        return Page(
            f"Claims, tested on {about['data']}",
            joined(
                [Text(line, "soft") for line in about["notes"]],
                Cards([(f"{count} {verdict}", VERDICTS[verdict]) for verdict, count in counts.items() if count]),
                Table(("", "claim", "verdict", "finding"), summary, figures=(0,)),
                *(_section(c, found) for c, found in self.findings),
                Text(
                    f"{about['seconds'] / 60:.1f} min, {about['processor_seconds'] / 60:.1f} of processor time, on "
                    f"{about['threads']} threads.",
                    "soft",
                ),
            ),
            lead,
        )


@task("claims", summary="test the claims of the field on your data", group="understand", out="claims.html")
def claims(config: ClaimsConfig, device: str | None = None) -> ClaimsResult:
    """Test claims on the data; models are trained on the device, and measured on the processor."""
    numbers = _numbers(config.only)
    if not config.minutes > 0:
        raise SpecError(f"minutes must be more than zero, not {config.minutes}", "bad-minutes")
    if not 2 <= config.seeds <= 100:
        raise SpecError(f"seeds must lie between 2 and 100, as errors are over them, not {config.seeds}", "bad-seeds")
    import torch

    import tessella
    import tessella_experiments as experiments

    chosen = experiments.chosen(numbers)
    data = config.how.open(config.data)
    started, worked = time.monotonic(), time.process_time()
    found = experiments.run(
        data, chosen, minutes=config.minutes, seeds=tuple(range(config.seeds)), device=device, tell=_tell
    )
    about = {
        "tessella": tessella.__version__,
        "data": Path(data.spec).name,
        "schema": asdict(data.schema),
        "examples": {name: len(split) for name, split in data.splits.items()},
        "notes": list(data.notes),
        "seeds": config.seeds,
        "minutes": config.minutes,
        "seconds": time.monotonic() - started,
        "processor_seconds": time.process_time() - worked,
        "threads": torch.get_num_threads(),
    }
    return ClaimsResult(about, tuple((c, found[c.number]) for c in chosen))


def _numbers(only: str) -> tuple[int, ...]:
    words = [word.strip() for word in only.split(",")] if only.strip() else []
    if not all(word.isdecimal() for word in words):
        message = f"{only!r} is not a list of numbers: name claims by {option('only')} 6,10"
        raise SpecError(message, "not-numbers", only=only)
    return tuple(map(int, words))


def _tell(claim: Claim, found: Finding) -> None:
    note(f"{claim.number}. {claim.title}: {found.verdict}")


def _verdict(verdict: str) -> Cell:
    return Cell(verdict, tone=TONES.get(verdict, "soft"))  # pyright: ignore[reportArgumentType]


def _section(c: Claim, found: Finding) -> tuple[Block, ...]:
    effects = [
        (e.what, f"{number(e.effect, e.error)} {e.unit}".strip(), predicted(e), _verdict(e.verdict))
        for e in found.effects
    ]
    measures = [(m.name, number(m.value, m.error), m.unit) for m in found.measures]
    charts = [plot for plot in found.plots if not isinstance(plot, Rows)]
    trained = "; ".join(f"{name}: {steps:,.0f}" for name, steps in found.trained.items())
    return joined(
        Heading(f"{c.number}. {c.title}: {found.verdict}", anchor=f"claim-{c.number}"),
        Text(c.hypothesis, strong="Hypothesis."),
        Text(c.method, "soft", strong="Method."),
        Text(f"{found.sentence[:1].upper()}{found.sentence[1:]}."),
        Table(("effect", "measured", "predicted", ""), effects) if effects else None,
        Charts(charts) if charts else None,
        [plot for plot in found.plots if isinstance(plot, Rows)],
        Text(f"Updates of {trained}.", "soft") if trained else None,
        Details("All that was measured", (Table(("", "", ""), measures),)) if measures else None,
    )


def number(value: float, error: float | None = None) -> str:
    """Format `12.3 ± 0.4`, with as many digits as the error leaves; three without one."""
    if not math.isfinite(value):
        return "not finite"
    if not error:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    power = math.floor(math.log10(error))
    digits = max(0, -power + (error < 2 * 10**power))  # 12.35 ± 0.14, 12.3 ± 0.4
    if digits > 4 or abs(value) >= 1e6:
        return f"{value:.3g} ± {error:.1g}"
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def predicted(effect: EffectTest) -> str:
    """Put the threshold in words."""
    if effect.least is not None and effect.most is not None:
        return f"between {effect.least:g} and {effect.most:g}"
    return f"above {effect.least:g}" if effect.most is None else f"below {effect.most:g}"


def _finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
