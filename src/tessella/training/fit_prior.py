"""Fit a prior on the latents of a run's model, and save it in the run with the codes that it was fitted on."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

import tessella
from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.schema import Precision
from tessella.core.tensors import Kind, TensorsHeader, load_weights, read_header, read_tensors, write_tensors
from tessella.data import Data, Split
from tessella.foundation import registry
from tessella.foundation.errors import RunError, SpecError, option
from tessella.foundation.files import kept
from tessella.foundation.notes import note
from tessella.models.base import LatentModel, Model
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import TrainOptions
from tessella.training import checkpoint, fitted_priors
from tessella.training.fitted_priors import PriorSpec
from tessella.training.loop import TrainResult, run_loop
from tessella.training.prior_trainer import (
    DRAWS,
    ENCODED,
    EncodedSplit,
    PriorProbe,
    PriorTrainer,
    encode_splits,
    prior_trainer,
)
from tessella.training.processes import writing
from tessella.training.sizing import fit_to_budget


@dataclass(frozen=True)
class FitResult:
    """Result of fitting a prior.

    Attributes:
        training: result of the training loop.
        rate: mean rate on the validation split in nats (for an autoencoder, which has no q(z | x), the cross entropy
            -log p(z)); None without a validation split, or if training was stopped.
        rate_before: rate under the model's own prior, which is uniform for codes; None if there is no such prior or no
            validation split.
        of_codes: whether the prior is over codes.
    """

    training: TrainResult
    rate: float | None
    rate_before: float | None
    of_codes: bool = True


def fit_prior(
    run: str | os.PathLike[str],
    data: Data,
    config: PriorConfig | CodePriorConfig,
    options: TrainOptions | None = None,
    *,
    class_conditional: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    changed_data: bool = False,
) -> FitResult:
    """Fit a prior over the latents of a run's model, and save it in the run.

    Latents are codes or real numbers. The model does not change; the prior minimises the rate E_q[log q(z | x) - log
    p(z)] on the training split. For an autoencoder, which has no q, it minimises -log p(z): the autoencoder can then
    sample, but still has no bound.

    Args:
        run: run folder.
        data: data that the model was trained on.
        config: options of the prior: a `CodePriorConfig` for a model of codes, a `PriorConfig` for others.
        options: training options, with the budget.
        class_conditional: condition the prior on the label: p(z | label).
        resume: continue from the last checkpoint of the prior.
        overwrite: replace an existing prior of this kind.
        changed_data: resume even if the data has changed.

    Raises:
        SpecError: if the prior does not fit the model, or labels are missing.
        RunError: if the prior exists already, cannot be resumed, or is resumed on other data.
    """
    options = options or TrainOptions()
    checkpoint.read_spec(run)
    chosen = {"config": config.to_record(), "class_conditional": class_conditional, **asdict(options), **data.facts}
    with writing(Path(run), options, chosen) as accelerator:
        of_run = checkpoint.read_spec(run)
        model = checkpoint.build(run, of_run)
        _check_kind(model, config, str(run))
        load_weights(model, read_header(kept(run, checkpoint.MODEL)), exactly=True)
        spec = PriorSpec(
            config, checkpoint.fingerprint(run), class_conditional=class_conditional, tessella=tessella.__version__
        )
        _check(model, data, spec)
        model = model.to(accelerator.device).eval()
        home, fingerprint = fitted_priors.prior_home(Path(run), config.name), spec.codes
        if resume:
            spec = fitted_priors.read_prior_spec(home)
            if spec.codes != fingerprint:
                raise fitted_priors.other_weights(home, spec, fingerprint)
            data.check_resumes(home, spec.data, changed_data=changed_data)
        else:
            checkpoint.check_place(home, overwrite=overwrite)
            if (what := data.difference(of_run.data)) is not None:
                note(f"{data.spec} is not the data that {run} was trained on ({what})")
        # a resumed budget, and the place of the data, are those that count
        spec = replace(spec, training=asdict(options), data=data.record)
        trainer, precision = prior_trainer(cast(LatentModel, model)), options.precision
        if trainer.on_disk:
            splits = _kept(Path(run), trainer, data, precision, fingerprint, accelerator)
        else:
            splits = encode_splits(trainer, data, precision)
        valid, train = splits.get("valid"), data.split("train")
        before = trainer.rate_before(valid, precision)

        def examples(count: int) -> Tensor:
            return model.encoder_input(train.batch(train.random_rows(count)).x.to(model.device))

        def sized_trainer(config: PriorConfig | CodePriorConfig) -> PriorTrainer:
            trainer.set_prior(replace(spec, config=config).build(trainer.model, examples))
            return trainer

        if not resume:
            rows = splits["train"]
            sized = fit_to_budget(config, config.sizes, sized_trainer, rows, options, rows.batch([0]).x[0].numel())
            spec, options = replace(spec, config=sized.config), sized.options
            if sized.reason:
                note(f"sizes of the prior: {sized.reason}")
        spec = replace(spec, rate_before=None if valid is None else before, training=asdict(options))
        torch.manual_seed(options.seed)
        trainer.set_prior(spec.build(trainer.model, examples))
        if not spec.of_posteriors:  # those have the scale of z already
            trainer.fit_scale(splits["train"], precision)
        if accelerator.is_main_process:
            if not resume:
                checkpoint.prepare_run(home, overwrite=overwrite)
            fitted_priors.write_prior_spec(home, spec)
        accelerator.wait_for_everyone()
        probe, trainer = PriorProbe(valid, precision), trainer.to(accelerator.device)
        done = run_loop(trainer, splits["train"], probe, home, options, accelerator, resume=resume, marginal=before)
        if done.stopped == "signal" or valid is None:
            return FitResult(done, None, before, trainer.on_disk)
        fitted_priors.load_prior(home, trainer.model)
        model.eval()  # once it has the prior: while it trains, one is measured with more noise and hidden labels
        rate = trainer.mean_rate(valid, precision)
        if accelerator.is_main_process:
            fitted_priors.write_prior_spec(home, spec.with_rate(rate))
        return FitResult(done, rate, before, trainer.on_disk)


# codes stored in the run


def _kept(
    run: Path, trainer: PriorTrainer, data: Data, precision: Precision, fingerprint: str, accelerator: Accelerator
) -> dict[str, Split]:
    """Encode the training and validation splits, or read the codes stored for these weights."""
    path = kept(run, checkpoint.CODES)
    about = {"codes": fingerprint, "data": data.fingerprint}
    if accelerator.is_main_process and not _is_about(path, about, trainer, data):
        tensors: dict[str, Tensor] = {}
        for name, split in encode_splits(trainer, data, precision).items():
            assert isinstance(split, EncodedSplit)
            tensors[f"{name}.codes"] = split.rows
            if split.labels is not None:
                tensors[f"{name}.labels"] = torch.from_numpy(split.labels)
        write_tensors(path, tensors, about)
    accelerator.wait_for_everyone()
    stored = read_tensors(path).tensors
    return {
        name: EncodedSplit(stored[f"{name}.codes"], stored.get(f"{name}.labels"), data.split(name).example_ids)
        for name in ("train", "valid")
        if f"{name}.codes" in stored
    }


def _is_about(path: Path, about: dict[str, str], trainer: PriorTrainer, data: Data) -> bool:
    """Return whether a file holds codes of this data by these weights, all in their range."""
    if not path.is_file():
        return False
    sizes = [(math.prod(q.code_shape), q.codebook_size) for q in trainer.model.levels]
    try:
        header = read_header(path)
        if any(header.progress.get(key) != value for key, value in about.items()):
            return False
        _check_codes(header, data, width=sum(count for count, _ in sizes))
        tensors = read_tensors(path, header).tensors
    except RunError as error:
        note(f"{str(error).partition(': ')[0]}; the data is encoded again")
        return False
    largest = torch.cat([torch.full((count,), codebook_size - 1) for count, codebook_size in sizes])
    for name, rows in tensors.items():
        most = largest if name.endswith(".codes") else torch.tensor(max(len(data.schema.classes) - 1, 0))
        flat = rows.flatten(0, -2) if rows.dim() > 1 else rows
        if not all(bool(((some >= 0) & (some <= most)).all()) for some in flat.split(ENCODED)):
            note(f"{path}: {name} has values out of range; the data is encoded again")
            return False
    return True


def _check_codes(header: TensorsHeader, data: Data, width: int) -> None:
    """Check that a file holds codes of each example of the data, and nothing else.

    Raises:
        RunError: if it does not ("other-codes").
    """
    allowed: dict[str, list[Kind]] = {}
    for name in ("train", "valid"):
        if name in data.splits:
            count, types = len(data.split(name)), (torch.int16, torch.int32)
            allowed[f"{name}.codes"] = [(dtype, (draws, count, width)) for dtype in types for draws in (1, DRAWS)]
            allowed[f"{name}.labels"] = [(torch.int64, (count,))]
    for name, kind in header.kinds.items():
        if kind not in allowed.get(name, ()):
            what = "which are not codes of this data and model"
            raise RunError(f"{header.path} holds {name[:40]!r}, {what}", code="other-codes")
    if missing := {name for name in allowed if name.endswith(".codes")} - header.kinds.keys():
        raise RunError(f"{header.path} holds no {min(missing)}", code="other-codes")


# checks before fitting


def _check_kind(model: Model, config: PriorConfig | CodePriorConfig, run: str) -> None:
    """Check that the prior can be fitted on the model's latents.

    Raises:
        SpecError: if it cannot; the message lists priors that can.
    """
    if model.prior_part is None:
        raise SpecError(
            f"the model {model.name} of {run} has no latents for a prior: fit priors to an ae, vae, cvae or vqvae",
            code="own-prior",
        )
    *most, last = (entry.name for entry in registry.entries(model.prior_part) if entry.load().fitted_after)
    known = f"choose {', '.join(most)} or {last}" if most else f"choose {last}"
    if config.part != model.prior_part:
        latents = {"prior": "real numbers", "code-prior": "codes"}
        raise SpecError(
            f"the prior {config.name} models {latents[config.part]}, but the latents of {run} are "
            f"{latents[model.prior_part]}: {known}",
            code="other-latents",
        )
    if not config.fitted_after:
        raise SpecError(f"the {config.name} prior has nothing to fit: {known}", code="nothing-to-fit")


def _check(model: Model, data: Data, spec: PriorSpec) -> None:
    """Check labels and posteriors before the data is encoded.

    Raises:
        SpecError: if labels are missing or not supported, or the prior needs Gaussian posteriors and has none.
    """
    flag, name = option("class_conditional"), spec.kind
    if spec.of_posteriors:
        if not cast(LatentVariableModel, model).bottleneck.gaussian:
            raise SpecError(
                f"the prior {name} needs Gaussian posteriors, which a {model.name} like this lacks: choose another",
                code="needs-gaussian-posterior",
            )
        if model.conditional and not spec.class_conditional:
            raise SpecError(
                f"the prior {name} must see labels, because the posteriors of a {model.name} see them: give {flag}",
                code="needs-labels",
            )
    if spec.class_conditional and spec.config.labels == "none":
        raise SpecError(f"the prior {name} cannot use labels: leave out {flag}", code="sees-no-labels")
    if spec.class_conditional or model.conditional:
        what = f"leave out {flag}" if spec.class_conditional else ""
        if not data.schema.classes:
            raise SpecError(f"{data.spec} has no labels: {what or 'the model needs them'}", code="no-labels")
        if data.schema.classes != model.schema.classes:
            what = what or "give the data that the model was trained on"
            raise SpecError(f"{data.spec} has other classes than the model was trained on: {what}", "other-classes")
