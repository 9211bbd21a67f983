"""Run folders: written atomically, read without running anything that is stored.

spec.json            what was built, on which data
model.safetensors    the averaged weights: the model to use
state/last.safetensors   raw weights, optimizer and progress: enough to go on
metrics.jsonl, tensorboard/, pictures/, report.html
codes.safetensors    the codes of the data, made once to fit priors on
priors/KIND/         a prior over the latents, fitted when the model stood still: a run of its own
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tessella import registry
from tessella.contracts import CodePrior
from tessella.device import resolve
from tessella.errors import RunError
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.model import Model
from tessella.priors.standardised import Standardised
from tessella.spec import VERSION, Spec

SPEC, MODEL, STATE, METRICS = "spec.json", "model.safetensors", "state/last.safetensors", "metrics.jsonl"
CODES, PRIORS = "codes.safetensors", "priors"
LOCK, HOLDER, REPLACED = ".lock", ".lock.json", ".replaced"
"""What a process that writes into a run holds it by, who that is, and a mark of a run that is being replaced."""
TRAINED, UNIFORM = "trained", "uniform"
"""What the prior is called that a model was trained with; of codes it is the uniform one."""


@dataclass(frozen=True)
class State:
    """Tensors by name, and the numbers that go with them."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


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
    (run / REPLACED).touch()
    for path in sorted(there, key=lambda path: path.name != SPEC):  # first what makes a run of it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (run / REPLACED).unlink()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place; a reader sees the old or the new whole.

    Raises:
        RunError: if the disk is full or the folder cannot be written; what was there stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        mode = draft.stat().st_mode  # some writers close their files to others
        write(draft)
        draft.chmod(mode)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise RunError(f"{path} cannot be saved: {reason}; what was saved before is untouched") from error


def write_spec(run: Path, spec: Spec) -> None:
    write_atomic(run / SPEC, lambda path: path.write_text(spec.to_json()))


def read_spec(run: str | os.PathLike[str]) -> Spec:
    """The specification of a run.

    Raises:
        RunError: if `run` is not a run folder, or its specification is damaged or newer than this package.
    """
    path = Path(run) / SPEC
    if not path.is_file():
        raise RunError(f"{run} is not a run of tessella: it has no {SPEC}")
    try:
        return Spec.from_json(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not a specification that tessella wrote ({error.reason})") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
    """Tensors and numbers as one safetensors file that carries its own checksum."""
    plain: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().to("cpu", copy=False).contiguous()
        at = t.untyped_storage().data_ptr()
        plain[name] = t.clone() if at in memory else t  # safetensors takes no two names of the same memory
        memory.add(at)
    note = {"progress": json.dumps(progress), "sha256": _digest(plain)}
    write_atomic(path, lambda draft: save_file(plain, draft, note))


def read_tensors(path: Path) -> State:
    """What `write_tensors` wrote.

    Raises:
        RunError: if the file is missing, truncated, or not what was written.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing: there is no checkpoint yet; let the run train on, or --resume it")
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress = json.loads(note["progress"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} is damaged ({' '.join(str(error).split())}): copy it anew or train again") from error
    if note.get("sha256") != _digest(tensors):
        raise RunError(f"{path} is damaged (its checksum does not match): copy it anew or train again")
    return State(tensors, progress)


def load(
    run: str | os.PathLike[str],
    *,
    device: str | torch.device | None = "cpu",
    into: Model | None = None,
    prior: str | None = None,
) -> Model:
    """The trained model of a run: averaged weights, evaluation mode.

    Args:
        device: where it runs: cpu, cuda, mps, xpu, or auto for the best there is; as of `tessella.device.resolve`.
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
    spec = read_spec(run)
    path = Path(run) / MODEL
    weights = read_tensors(path).tensors
    model = into or spec.build()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path} does not fit {SPEC} beside it: one of them is from another run") from error
    if isinstance(model, LatentVariableModel) and prior in registry.names("code-prior"):
        raise RunError(f"{run} has no codes, so no prior {prior!r} over them: leave it out, or train a vqvae")
    if isinstance(model, CodeModel | LatentVariableModel):
        choice = choose_prior(Path(run), prior)
        if choice.note:
            warnings.warn(choice.note, stacklevel=2)
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
        kind: a name of the catalogue.
        codes: fingerprint of the weights whose latents it was fitted on.
        width, depth, components, flow_steps: of its networks; None: the kind's own.
        class_conditional: whether it sees labels.
        training: the options that fitting was started with.
        rate: mean rate on the validation split in nats, once it is known; of an autoencoder the cross entropy.
        rate_before: on the same draws, what the model's own prior pays, of codes N log K; None for an autoencoder,
            which has none, and without a validation split.
        data: what it was fitted on, as a run's specification has it.
    """

    kind: str
    codes: str
    width: int | None = None
    depth: int | None = None
    class_conditional: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    tessella: str = ""
    rate: float | None = None
    rate_before: float | None = None
    components: int | None = None
    flow_steps: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def better(self) -> bool:
        """Whether to prefer it to the model's own prior: by the validation split, and where there is none on trust."""
        return self.rate_before is None or (self.rate is not None and self.rate < self.rate_before)

    @property
    def size(self) -> dict[str, int]:
        """What was asked of its size."""
        names = ("width", "depth", "components", "flow_steps")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def with_rate(self, rate: float) -> PriorSpec:
        return replace(self, rate=rate)


def prior_home(run: Path, kind: str) -> Path:
    """The folder of a run's prior of that kind."""
    return run / PRIORS / kind


def fingerprint(run: str | os.PathLike[str]) -> str:
    """12 hexadecimal digits that name the weights of a run: what their codes are codes of.

    Raises:
        RunError: if there are no weights.
    """
    path = Path(run) / MODEL
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {})["sha256"][:12]
    except (SafetensorError, OSError, KeyError) as error:
        raise RunError(f"{path} is missing or damaged: train the run first") from error


def write_prior_spec(home: Path, spec: PriorSpec) -> None:
    write_atomic(home / SPEC, lambda path: path.write_text(json.dumps(asdict(spec), indent=2)))


def read_prior_spec(home: Path) -> PriorSpec:
    """The specification of a fitted prior.

    Raises:
        RunError: if there is none, or it is damaged or newer than this package.
    """
    path = home / SPEC
    if not path.is_file():
        have = sorted(p.parent.name for p in home.parent.glob(f"*/{SPEC}"))
        raise RunError(
            f"{home} holds no prior; there are: {', '.join(have) or 'none yet, tessella prior RUN fits one'}"
        )
    try:
        record = json.loads(path.read_text())
        if record["version"] > VERSION:
            raise RunError(f"{path} has version {record['version']}; this tessella reads up to {VERSION}: upgrade it")
        return PriorSpec(**record)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a specification that tessella wrote ({error})") from error


def prior_entry(model: Model, kind: str) -> registry.Entry:
    """The catalogue's entry of a prior over what the model's latents are.

    Raises:
        SpecError: if there is none of that name.
    """
    return registry.find("code-prior" if isinstance(model, CodeModel) else "prior", kind)


def code_priors_of(model: CodeModel, spec: PriorSpec) -> list[CodePrior]:
    """Priors over codes as specified, one a level, with fresh weights."""
    make = prior_entry(model, spec.kind).load()
    classes = len(model.schema.classes) if spec.class_conditional else 0
    return [
        make(shape, quantizer.codebook_size, context_channels=context, classes=classes, **spec.size)
        for shape, quantizer, context in zip(model.prior_shapes, model.levels, model.context_channels, strict=True)
    ]


def latent_prior_of(model: LatentVariableModel, spec: PriorSpec) -> Standardised:
    """A prior over real-valued z as specified, with fresh weights and z's scale not yet set."""
    make = prior_entry(model, spec.kind).load()
    classes = len(model.schema.classes) if spec.class_conditional else 0
    parts: dict[str, Any] = {"classes": classes} if classes else {}
    if spec.kind == "vamp":
        parts |= {"encoder": model.encoder, "bottleneck": model.bottleneck, "input_shape": model.schema.shape}
        parts |= {"labelled": model.networks_see_labels}
    return Standardised(make(model.latent_shape, **parts, **spec.size), model.latent_shape, classes)


def load_prior(home: Path, model: CodeModel | LatentVariableModel) -> None:
    """Let `model` use the fitted prior.

    Raises:
        RunError: if it is missing or damaged.
    """
    spec = read_prior_spec(home)
    if isinstance(model, CodeModel):
        priors = code_priors_of(model, spec)
        _fill_priors(home, priors)
        model.adopt([prior.to(model.device) for prior in priors])
    else:
        prior = latent_prior_of(model, spec)
        _fill_priors(home, [prior])
        model.adopt(prior.to(model.device), labelled=spec.class_conditional)


def _fill_priors(home: Path, priors: Sequence[torch.nn.Module]) -> None:
    """Give them the weights that are kept."""
    weights = read_tensors(home / MODEL).tensors
    try:
        torch.nn.ModuleDict({"priors": torch.nn.ModuleList(priors)}).load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{home / MODEL} does not fit {SPEC} beside it: one of them is from another prior") from error


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
    homes = sorted(path.parent for path in (run / PRIORS).glob(f"*/{SPEC}"))
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


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
