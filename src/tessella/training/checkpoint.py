"""Run folders: written atomically, read without running anything that is stored.

spec.json            what was built, on which data
model.safetensors    the averaged weights: the model to use
state/last.safetensors   raw weights, optimizer and progress: enough to go on
metrics.jsonl, tensorboard/, pictures/, report.html
codes.safetensors    the codes of the data, made once to fit priors on
priors/KIND/         a prior over the latents, fitted when the model stood still: a run of its own

A run may come from a stranger. What it says is checked before it is used (`stored`), what it asks for may not be larger
than its tensors (`tensors.built`), and nothing is read or written through a link that lies in it (`files`).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch

from tessella.core.configs import CodePriorConfig, InferenceNetwork, PriorConfig
from tessella.core.contracts import CodePrior
from tessella.core.device import resolve
from tessella.core.tensors import built, fill, read_header
from tessella.core.tensors import read_tensors as read_tensors
from tessella.core.tensors import write_tensors as write_tensors
from tessella.foundation import registry, validation
from tessella.foundation.config import Config
from tessella.foundation.errors import RunError
from tessella.foundation.files import kept, place, write_atomic
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import VERSION, Source, Spec, TrainOptions, check_version
from tessella.priors.standardised import Standardised

SPEC, MODEL, STATE, METRICS = "spec.json", "model.safetensors", "state/last.safetensors", "metrics.jsonl"
MOST_METRICS = 1 << 26
"""Bytes of `metrics.jsonl`: of some ten million steps."""
CODES, PRIORS = "codes.safetensors", "priors"
LOCK, HOLDER, REPLACED = ".lock", ".lock.json", ".replaced"
"""What a process that writes into a run holds it by, who that is, and a mark of a run that is being replaced."""
TRAINED, UNIFORM = "trained", "uniform"
"""What the prior is called that a model was trained with; of codes it is the uniform one."""


def prepare_run(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """An empty run folder at `out`, but for what this process holds it by.

    Raises:
        RunError: as of `check_place`, or if the folder cannot be made.
    """
    run = Path(out)
    check_place(run, overwrite=overwrite)
    try:
        run.mkdir(parents=True, exist_ok=True)
        _clear(run)
    except OSError as error:
        raise RunError(f"{run} cannot be made ({error.strerror}): choose another folder") from error
    return run


def check_place(run: Path, *, overwrite: bool = False) -> None:
    """Whether a new run may begin in that folder. What a process leaves that was killed before it had begun, or while
    it was replacing a run, is in nobody's way.

    Raises:
        RunError: if something is there already and `overwrite` is not given, or it is not a run.
    """
    if not run.exists():
        return
    if not run.is_dir():
        raise RunError(f"{run} is not a folder: choose another place")
    if (run / REPLACED).is_file() or all(_is_leftover(path) for path in run.iterdir()):
        return
    is_run = (run / SPEC).is_file()
    if not is_run:
        raise RunError(f"{run} is not a run of tessella (it has no {SPEC}), so it is not overwritten: choose another")
    if not overwrite:
        raise RunError(f"{run} already exists: go on with --resume, replace it with --overwrite, or choose another")


def _is_leftover(path: Path) -> bool:
    """Whether it may lie in a folder in which no run has begun: drafts, and what a run is held by."""
    return path.name in (LOCK, HOLDER) or (path.name.startswith(".") and path.name.endswith(".draft"))


def _clear(run: Path) -> None:
    """Empty the folder of a run that is replaced; when it is cut short, a mark says that all of it is to go."""
    there = [path for path in run.iterdir() if path.name not in (LOCK, HOLDER, REPLACED)]
    if not there and not (run / REPLACED).exists():
        return
    (run / REPLACED).unlink(missing_ok=True)  # it may be a link
    write_atomic(run / REPLACED, lambda draft: draft.touch())
    for path in sorted(there, key=lambda path: path.name != SPEC):  # first what makes a run of it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (run / REPLACED).unlink()


def write_spec(run: Path, spec: Spec) -> None:
    """Keep the specification of a run.

    Raises:
        RunError: if it is too large to be read again, or cannot be written.
    """
    text = spec.to_json()
    if len(text) > validation.MOST_BYTES:
        raise RunError(
            f"{run / SPEC} would have {len(text):,} bytes and may have {validation.MOST_BYTES:,}: give fewer columns"
        )
    write_atomic(run / SPEC, lambda path: path.write_text(text))


def read_spec(run: str | os.PathLike[str]) -> Spec:
    """The specification of a run.

    Raises:
        RunError: if `run` is not a run folder, or its specification is damaged or newer than this package.
    """
    path = kept(run, SPEC)
    if not path.is_file():
        raise RunError(f"{run} is not a run of tessella: it has no {SPEC}")
    try:
        return Spec.from_json(validation.read_bytes(path).decode("utf-8"), str(path))
    except (UnicodeDecodeError, validation.Malformed) as error:
        why = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise RunError(f"{path} is not a specification that tessella wrote ({why})") from error


def read_metrics(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that was cut off, or does not say what a line says, is left out.

    Raises:
        RunError: if it is no file of the run, or larger than any training makes it.
    """
    path = kept(run, METRICS)
    if not path.is_file():
        return []
    try:
        text = validation.read_bytes(path, MOST_METRICS).decode("utf-8", "replace")
    except (OSError, validation.Malformed) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, it holds nothing but the curves") from error
    return [record for line in text.splitlines() if (record := _noted(line)) is not None]


def _noted(line: str) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`; figures that were not finite are None."""
    try:
        record = json.loads(line, parse_constant=lambda _: None) if len(line) < validation.LONGEST else None
        validation.fitted(dict[str, float | str | None], record)
        progress: _Noted = validation.fitted(_Noted, record, others=True)
    except (ValueError, RecursionError):
        return None
    return record if progress.step >= 0 and progress.seconds >= 0 else None


@dataclass(frozen=True)
class _Noted:
    """What each line of `metrics.jsonl` says."""

    kind: str
    step: int
    seconds: float


def build(run: str | os.PathLike[str], spec: Spec | None = None) -> Model:
    """The model of a run with fresh weights, unless it would be much larger than the weights that the run holds.

    Args:
        spec: the run's specification, if it was read before.

    Raises:
        RunError: if the run is missing, damaged, or its specification and its weights do not belong together.
    """
    spec = spec or read_spec(run)
    known = [name for name in (MODEL, STATE) if kept(run, name).exists()]
    header = read_header(kept(run, known[0])) if known else None
    model: Model = built(spec.build, header, of=Path(run) / SPEC, options=_sizes(spec.config))
    return model


def load(
    run: str | os.PathLike[str],
    *,
    device: str | torch.device | None = "cpu",
    into: Model | None = None,
    prior: str | None = None,
) -> Model:
    """The trained model of a run: averaged weights, evaluation mode.

    Args:
        device: where it runs: cpu, cuda, mps, xpu, or auto for the best there is; as of `tessella.core.device.resolve`.
        into: a model to load the weights into, for a composition of your own that the catalogue does not know.
        prior: the kind of a fitted prior, or `trained` for the model's own (of codes `uniform`); by default the fitted
            one with the lowest rate on the validation split, and the model's own if none was fitted on these weights or
            none is better.

    Raises:
        RunError: if the run is missing, damaged, from a newer version, its weights do not fit its specification, or it
            has no such prior.
        SpecError: if there is no such device.
    """
    place = resolve(device)
    spec, header = read_spec(run), read_header(kept(run, MODEL))
    model = build(run, spec) if into is None else into
    fill(model, header, exactly=into is None)
    if isinstance(model, LatentVariableModel) and prior in registry.names("code-prior"):
        raise RunError(f"{run} has no codes, so no prior {prior!r} over them: leave it out, or train a vqvae")
    if isinstance(model, CodeModel | LatentVariableModel):
        choice = choose_prior(Path(run), prior)
        if choice.note:
            note(choice.note)
        if choice.home is not None:
            load_prior(choice.home, model)
    elif prior not in (None, TRAINED):
        raise RunError(f"{run} is of a {model.name}, which is its own prior, and has no other {prior!r}: leave it out")
    return model.to(place).eval()


# priors fitted on frozen latents


@dataclass(frozen=True)
class PriorSpec:
    """A prior and what it was fitted on: the content of `priors/KIND/spec.json`.

    Attributes:
        config: its options.
        codes: fingerprint of the weights whose latents it was fitted on.
        class_conditional: whether it sees labels.
        training: the options that fitting was started with.
        rate: mean rate on the validation split in nats, once it is known; of an autoencoder the cross entropy.
        rate_before: on the same draws, what the model's own prior pays, of codes N log K; None for an autoencoder,
            which has none, and without a validation split.
        data: what it was fitted on, as a run's specification has it.
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
        """The name of the prior."""
        return self.config.name

    @property
    def better(self) -> bool:
        """Whether to prefer it to the model's own prior: by the validation split, and where there is none on trust."""
        return self.rate_before is None or (self.rate is not None and self.rate < self.rate_before)

    def with_rate(self, rate: float) -> PriorSpec:
        return replace(self, rate=rate)


def prior_home(run: Path, kind: str) -> Path:
    """The folder of a run's prior of that kind.

    Raises:
        RunError: if the kind is no name, or its folder is a link.
    """
    if not re.fullmatch(r"[a-z0-9-]+", kind):
        raise RunError(f"no prior is called {kind[:40]!r}: tessella list lists the kinds")
    return place(run, Path(PRIORS, kind, SPEC)).parent


def fingerprint(run: str | os.PathLike[str]) -> str:
    """12 hexadecimal digits that name the weights of a run: what their codes are codes of.

    Raises:
        RunError: if there are no weights.
    """
    try:
        return read_header(kept(run, MODEL)).digest[:12]
    except RunError as error:
        raise RunError(f"{Path(run) / MODEL} is missing or damaged: train the run first") from error


def write_prior_spec(home: Path, spec: PriorSpec) -> None:
    record = {f.name: getattr(spec, f.name) for f in fields(spec)} | {"config": spec.config.to_record()}
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    write_atomic(home / SPEC, lambda path: path.write_text(json.dumps(finite, indent=2)))


def read_prior_spec(home: Path) -> PriorSpec:
    """The specification of a fitted prior.

    Raises:
        RunError: if there is none, or it is damaged or newer than this package.
    """
    path = kept(home, SPEC)
    if not path.is_file():
        have = sorted(p.parent.name for p in home.parent.glob(f"*/{SPEC}"))
        raise RunError(
            f"{home} holds no prior; there are: {', '.join(have) or 'none yet, tessella prior RUN fits one'}"
        )
    try:
        record = validation.read_json(path)
        check_version(record, path)
        spec: PriorSpec = validation.fitted(PriorSpec, record)
        if not re.fullmatch(r"[0-9a-f]{12}", spec.codes):
            raise validation.Malformed("codes names no weights")
        validation.known_fields(Source, spec.data, "data")
        return replace(spec, training=validation.known_fields(TrainOptions, spec.training, "training"))
    except (OSError, validation.Malformed) as error:
        raise RunError(f"{path} is not a specification that tessella wrote ({error})") from error


def code_priors_of(model: CodeModel, spec: PriorSpec) -> list[CodePrior]:
    """Priors over codes as specified, one a level, with fresh weights."""
    config = cast(CodePriorConfig, spec.config)
    classes = len(model.schema.classes) if spec.class_conditional else 0
    return [
        config.build(shape, quantizer.codebook_size, context_channels=context, classes=classes)
        for shape, quantizer, context in zip(model.prior_shapes, model.levels, model.context_channels, strict=True)
    ]


def latent_prior_of(model: LatentVariableModel, spec: PriorSpec) -> Standardised:
    """A prior over real-valued z as specified, with fresh weights and z's scale not yet set."""
    config = cast(PriorConfig, spec.config)
    classes = len(model.schema.classes) if spec.class_conditional else 0
    inference = InferenceNetwork(model.encoder, model.bottleneck, model.schema.shape, model.networks_see_labels)
    return Standardised(config.build(model.latent_shape, classes, inference), model.latent_shape, classes)


def load_prior(home: Path, model: CodeModel | LatentVariableModel) -> None:
    """Let `model` use the fitted prior.

    Raises:
        RunError: if it is missing or damaged.
    """
    spec, header = read_prior_spec(home), read_header(kept(home, MODEL))
    wanted = CodePriorConfig if isinstance(model, CodeModel) else PriorConfig
    if spec.kind != home.name or not isinstance(spec.config, wanted):
        raise RunError(f"{home / SPEC} is of a prior {spec.kind[:40]!r}, not {home.name}: fit it again")
    options = _sizes(spec.config)
    if isinstance(model, CodeModel):
        priors = built(lambda: code_priors_of(model, spec), header, of=home / SPEC, options=options)
        fill(_Priors(priors), header, what="prior")
        model.set_prior([prior.to(model.device) for prior in priors])
    else:
        prior = built(lambda: latent_prior_of(model, spec), header, of=home / SPEC, options=options)
        fill(_Priors([prior]), header, what="prior")
        model.set_prior(prior.to(model.device), labelled=spec.class_conditional)


class _Priors(torch.nn.Module):
    """Priors by the names that their weights have in a file."""

    def __init__(self, priors: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.priors = torch.nn.ModuleList(priors)


def _sizes(config: Config | None) -> dict[str, int]:
    """Those options of a part and of the parts it holds that say how many or how wide parts are."""
    others = ("iwae_samples", "grid_size", "codebook_size")
    values = {} if config is None else config.values()
    sizes = {name: value for name, value in values.items() if type(value) is int and name not in others}
    for value in values.values():
        sizes |= _sizes(value) if isinstance(value, Config) else {}
    return sizes


@dataclass(frozen=True)
class PriorChoice:
    """The prior that a run's model uses.

    Attributes:
        home: the folder of a fitted prior; None for the model's own.
        note: why fitted priors were passed over, and what to do, in a line; empty if none was.
    """

    home: Path | None
    note: str = ""


def prior_in_use(run: Path) -> str | None:
    """The kind and the weights' fingerprint of the prior that `load` takes by default; None: the model's own."""
    home = choose_prior(run).home
    return None if home is None else f"{home.name} {fingerprint(home)}"


def choose_prior(run: Path, kind: str | None = None) -> PriorChoice:
    """Choose the prior of that kind, or by default the fitted one with the lowest rate on the validation split.

    The model's own is chosen where no fitted one is better on the validation split.

    Raises:
        RunError: if the prior asked for was fitted on other weights.
    """
    if kind in (TRAINED, UNIFORM):
        return PriorChoice(None)
    now = fingerprint(run)
    if kind is not None:
        home = prior_home(run, kind)
        spec = read_prior_spec(home)
        if spec.codes != now:
            raise RunError(f"{home} was fitted on other weights ({spec.codes}, now {now}): fit it again")
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
            "fit them again with tessella prior",
        )
    better = [home for _, home, spec in current if spec.better]
    return PriorChoice(better[0]) if better else PriorChoice(None, _passed_over(run, current[0][2]))


def _passed_over(run: Path, spec: PriorSpec) -> str:
    """Why the best of the fitted priors is not used, and what to do."""
    own = "the uniform one" if spec.kind in registry.names("code-prior") else "the model's own"
    again, taken = f"tessella prior {run} --kind {spec.kind}", f"or take it as it is with --prior {spec.kind}"
    if spec.rate is None:
        return (
            f"the prior {spec.kind} was stopped before it was measured, so {own} is used: go on with {again} "
            f"--resume, {taken}"
        )
    return (
        f"the fitted prior {spec.kind} costs more than {own} on the validation split ({spec.rate:.2f} against "
        f"{spec.rate_before:.2f} nats), so {own} is used: fit it again with another budget or size ({again} "
        f"--overwrite), {taken}"
    )


def _prior_names(run: Path) -> list[str]:
    """The kinds of a run's priors, those of names that kinds have."""
    known = (*registry.names("code-prior"), *registry.names("prior"))
    return sorted(path.parent.name for path in (run / PRIORS).glob(f"*/{SPEC}") if path.parent.name in known)
