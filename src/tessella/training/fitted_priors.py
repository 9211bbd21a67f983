"""Priors fitted on the latents of a run's trained model: their folders `priors/KIND/`, and the choice among them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.tensors import built, load_weights, read_header
from tessella.foundation import registry, validation
from tessella.foundation.errors import RunError, option, task_name
from tessella.foundation.files import kept, place, write_atomic
from tessella.models.base import LatentModel
from tessella.models.spec import VERSION, DataRecord, TrainOptions, check_version
from tessella.training.checkpoint import MODEL, PRIORS, SPEC, fingerprint, sizes

TRAINED, UNIFORM = "trained", "uniform"
"""Names of the model's own prior, with which it was trained; for codes it is uniform."""


@dataclass(frozen=True)
class PriorSpec:
    """Specification of a fitted prior: the content of `priors/KIND/spec.json`.

    Attributes:
        config: options of the prior.
        codes: fingerprint of the weights whose latents it was fitted on.
        class_conditional: whether it is conditioned on labels.
        training: training options of the fit.
        rate: mean rate on the validation split in nats (for an autoencoder the cross entropy); None until measured.
        rate_before: rate under the model's own prior on the same samples of z, N log K for N codes; None for an
            autoencoder, which has no prior, and without a validation split.
        data: record of the data that it was fitted on, as in a run's specification.
    """

    config: PriorConfig | CodePriorConfig
    codes: str
    class_conditional: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    tessella: str = ""
    rate: float | None = None
    rate_before: float | None = None
    data: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def kind(self) -> str:
        """Return the registered name of the prior."""
        return self.config.name

    @property
    def of_posteriors(self) -> bool:
        """Return whether the prior is a mixture of the model's own Gaussian posteriors."""
        return isinstance(self.config, PriorConfig) and self.config.of_posteriors

    @property
    def better(self) -> bool:
        """Return whether its validation rate is below the own prior's, or there is nothing to compare."""
        return self.rate_before is None or (self.rate is not None and self.rate < self.rate_before)

    def with_rate(self, rate: float) -> PriorSpec:
        return replace(self, rate=rate)

    def build(self, model: LatentModel, examples: Callable[[int], Tensor] | None = None) -> Sequence[nn.Module]:
        """Build the priors with fresh weights (see `LatentModel.build_priors`)."""
        return model.build_priors(self.config, len(model.schema.classes) if self.class_conditional else 0, examples)


def prior_home(run: Path, kind: str) -> Path:
    """Return the folder of a run's fitted prior of a kind.

    Raises:
        RunError: if the kind is not a valid name, or its folder is a link.
    """
    if not re.fullmatch(r"[a-z0-9-]+", kind):
        raise RunError(
            f"no prior is called {kind[:40]!r}: list the kinds with {task_name('list')}", code="no-such-prior"
        )
    return place(run, Path(PRIORS, kind, SPEC)).parent


def write_prior_spec(home: Path, spec: PriorSpec) -> None:
    record = {f.name: getattr(spec, f.name) for f in fields(spec)} | {"config": spec.config.to_record()}
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    write_atomic(home / SPEC, lambda path: path.write_text(json.dumps(finite, indent=2)))


def read_prior_spec(home: Path) -> PriorSpec:
    """Read the specification of a fitted prior.

    Raises:
        RunError: if it is missing, damaged, or newer than this package.
    """
    path = kept(home, SPEC)
    if not path.is_file():
        have = sorted(p.parent.name for p in home.parent.glob(f"*/{SPEC}"))
        known = ", ".join(have) or f"none yet, {task_name('fit-prior', 'RUN')} fits one"
        raise RunError(f"{home} holds no prior; there are: {known}", code="no-prior", kinds=have)
    try:
        record = validation.read_json(path)
        check_version(record, path)
        spec: PriorSpec = validation.fitted(PriorSpec, record)
        if not re.fullmatch(r"[0-9a-f]{12}", spec.codes):
            raise validation.Malformed("codes is not a fingerprint of weights")
        validation.known_fields(DataRecord, spec.data, "data")
        return replace(spec, training=validation.known_fields(TrainOptions, spec.training, "training"))
    except (OSError, validation.Malformed) as error:
        raise RunError(f"{path} is not a specification that tessella wrote ({error})", code="damaged") from error


def load_prior(home: Path, model: LatentModel) -> None:
    """Load a fitted prior from its folder into a model.

    Raises:
        RunError: if the prior is missing or damaged.
    """
    spec, header = read_prior_spec(home), read_header(kept(home, MODEL))
    if spec.kind != home.name or spec.config.part != model.prior_part:
        raise RunError(
            f"{home / SPEC} describes a prior {spec.kind[:40]!r}, not {home.name}: fit it again", code="other-prior"
        )
    priors = built(lambda: spec.build(model), header, of=home / SPEC, options=sizes(spec.config))
    load_weights(_PriorModules(priors), header, what="prior")
    model.set_prior([prior.to(model.device) for prior in priors])


class _PriorModules(nn.Module):
    """Module that gives the priors' weights their names in a file."""

    def __init__(self, priors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.priors = nn.ModuleList(priors)


@dataclass(frozen=True)
class PriorChoice:
    """Choice of the prior that a run's model uses.

    Attributes:
        home: folder of a fitted prior; None for the model's own prior.
        note: reason why fitted priors are not used, and what to do; empty if there is none.
    """

    home: Path | None
    note: str = ""


def prior_in_use(run: Path) -> str | None:
    """Return kind and weight fingerprint of the prior that `load` uses by default; None for the model's own."""
    home = choose_prior(run).home
    return None if home is None else f"{home.name} {fingerprint(home)}"


def choose_prior(run: Path, kind: str | None = None) -> PriorChoice:
    """Choose the fitted prior of a kind, by default the one with the lowest validation rate.

    By default, the model's own prior is chosen if no fitted one has a lower rate.

    Raises:
        RunError: if the requested prior is missing or was fitted on other weights.
    """
    if kind in (TRAINED, UNIFORM):
        return PriorChoice(None)
    now = fingerprint(run)
    if kind is not None:
        home = prior_home(run, kind)
        spec = read_prior_spec(home)
        if spec.codes != now:
            raise other_weights(home, spec, now)
        return PriorChoice(home)
    homes = [prior_home(run, name) for name in _prior_names(run)]
    known = [(home, read_prior_spec(home)) for home in homes if (home / MODEL).is_file()]
    if not known:
        return PriorChoice(None)
    current = sorted(
        ((math.inf if spec.rate is None else spec.rate, home, spec) for home, spec in known if spec.codes == now),
        key=lambda item: item[:2],
    )
    if not current:
        return PriorChoice(
            None,
            f"the priors in {run / PRIORS} were fitted on other weights, so the model's own is used: "
            f"fit them again ({task_name('fit-prior')})",
        )
    better = [home for _, home, spec in current if spec.better]
    return PriorChoice(better[0]) if better else PriorChoice(None, _passed_over(run, current[0][2]))


def _passed_over(run: Path, spec: PriorSpec) -> str:
    """Describe why the best fitted prior is not used, and what to do."""
    own = "the uniform one" if spec.config.part == "code-prior" else "the model's own"
    which = f"{run} {option('kind')} {spec.kind}"
    resume, again = (task_name("fit-prior", f"{which} {option(how)}") for how in ("resume", "overwrite"))
    taken = f"or take it as it is with {option('prior')} {spec.kind}"
    if spec.rate is None:
        return (
            f"the prior {spec.kind} was stopped before it was measured, so {own} is used: go on with {resume}, {taken}"
        )
    return (
        f"the fitted prior {spec.kind} costs more than {own} on the validation split ({spec.rate:.2f} against "
        f"{spec.rate_before:.2f} nats), so {own} is used: fit it again with another budget or size ({again}), {taken}"
    )


def other_weights(home: Path, spec: PriorSpec, now: str) -> RunError:
    """Make the error that a prior was fitted on other weights than the run has now."""
    return RunError(
        f"{home} was fitted on other weights ({spec.codes}, now {now}): fit it again with {option('overwrite')}",
        code="other-weights",
        fitted_on=spec.codes,
        now=now,
    )


def _prior_names(run: Path) -> list[str]:
    """List the kinds of a run's fitted priors."""
    known = (*registry.names("code-prior"), *registry.names("prior"))
    return sorted(path.parent.name for path in (run / PRIORS).glob(f"*/{SPEC}") if path.parent.name in known)
