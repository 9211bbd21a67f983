"""FitResult a prior of a run, and keeping it there."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

import tessella
from tessella.bottlenecks.gaussian import DiagonalGaussianModule
from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.tensors import fill, read_header
from tessella.data import Data, Split
from tessella.foundation import registry
from tessella.foundation.errors import RunError, SpecError, option
from tessella.foundation.files import kept
from tessella.foundation.notes import note
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import TrainOptions
from tessella.training import checkpoint, code_priors, fitted_priors, latent_priors
from tessella.training.fitted_priors import PriorSpec
from tessella.training.loop import run_loop
from tessella.training.prior_trainer import FitResult, Frozen, PriorView, Progress, mean_rate
from tessella.training.processes import writing


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
    quiet: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a prior over the latents of a run's model, codes or real numbers, and keep it in the run.

    The model stays as it is; the prior minimises the rate E_q[log q(z | x) - log p(z)] on the training split. Of an
    autoencoder, which has no q, it minimises -log p(z): its samples are then the prior's, and it still has no bound.

    Args:
        run: the run folder.
        data: the data that it was trained on.
        config: the prior: a `CodePriorConfig` for a model of codes, a `PriorConfig` for others.
        options: the budget and how to use it.
        class_conditional: let it see the label: p(z | label).
        resume: go on from its last checkpoint.
        overwrite: replace a prior of that kind that is there.
        changed_data: resume although the data is not what it was.
        progress: told (examples encoded, examples in all) while latents are made.

    Raises:
        SpecError: if the prior cannot be fitted or is not for such a model, or labels are missing.
        RunError: if there is such a prior already, or none to go on with, or it is resumed on other data.
    """
    options = options or TrainOptions()
    checkpoint.read_spec(run)
    kind = config.name
    chosen = {"config": config.to_record(), "class_conditional": class_conditional, **asdict(options), **data.facts}
    with writing(Path(run), options, chosen) as accelerator:
        of_run = checkpoint.read_spec(run)
        model = checkpoint.build(run, of_run)
        _check_kind(model, config, str(run))
        fill(model, read_header(kept(run, checkpoint.MODEL)), exactly=True)
        _check(model, data, config, class_conditional=class_conditional)
        model = model.to(accelerator.device).eval()
        home = fitted_priors.prior_home(Path(run), kind)
        fingerprint = checkpoint.fingerprint(run)
        spec = PriorSpec(config, fingerprint, class_conditional=class_conditional, tessella=tessella.__version__)
        if resume:
            spec = fitted_priors.read_prior_spec(home)
            if spec.codes != fingerprint:
                raise RunError(f"{home} was fitted on other weights ({spec.codes}, now {fingerprint}): "
                               "fit it again with --overwrite")  # fmt: skip
            data.check_resumes(home, spec.data, changed_data=changed_data)
        else:
            checkpoint.check_place(home, overwrite=overwrite)
            if (what := data.difference(of_run.data)) is not None:
                note(f"{data.spec} is not the data that {run} was trained on ({what})")
        # a resumed budget, and the place of the data, are those that count
        spec = replace(spec, training=asdict(options), data=data.record)
        if isinstance(model, CodeModel):
            splits = code_priors.cached_codes(
                Path(run), model, data, options.precision, fingerprint, accelerator, progress
            )
            torch.manual_seed(options.seed)
            stage: Frozen = code_priors.Priors(model, fitted_priors.code_priors_of(model, spec))
            before = sum(int(np.prod(q.code_shape)) * float(np.log(q.codebook_size)) for q in model.levels)
            spec = replace(spec, rate_before=before if "valid" in splits else None)
        else:
            stage = latent_priors.LatentPrior(cast(LatentVariableModel, model))
            splits = latent_priors.splits_for(stage, data, options.precision, progress)
            before = _rate(stage, splits, options) if model.has_bound else None
            spec = replace(spec, rate_before=before)
            torch.manual_seed(options.seed)
            prior = fitted_priors.latent_prior_of(stage.model, spec)
            stage.set_prior(prior, splits["train"], data.split("train"), options.precision)
        if accelerator.is_main_process:
            if not resume:
                checkpoint.prepare_run(home, overwrite=overwrite)
            fitted_priors.write_prior_spec(home, spec)
        accelerator.wait_for_everyone()
        stage, view = stage.to(accelerator.device), PriorView(splits.get("valid"), options)
        done = run_loop(stage, splits["train"], view, home, options, accelerator, resume=resume, quiet=quiet)
        if done.stopped == "signal" or "valid" not in splits:
            return FitResult(done, None, before, bool(model.levels))
        fitted_priors.load_prior(home, stage.model)
        model.eval()  # once it has the prior: while it trains, one is measured with more noise and hidden labels
        rate = _rate(stage, splits, options)
        if accelerator.is_main_process and rate is not None:
            fitted_priors.write_prior_spec(home, spec.with_rate(rate))
        return FitResult(done, rate, before, bool(model.levels))


def _rate(stage: Frozen, splits: dict[str, Split], options: TrainOptions) -> float | None:
    """What the model's prior pays on the validation split."""
    if "valid" not in splits:
        return None
    times = 1 if stage.model.levels else latent_priors.times_for(splits["valid"])
    return mean_rate(stage, splits["valid"], precision=options.precision, times=times)


def kind_of_prior(model: Model, run: str) -> type[PriorConfig] | type[CodePriorConfig]:
    """The kind of prior that can be fitted on what the model's latents are.

    Raises:
        SpecError: if none can.
    """
    if isinstance(model, CodeModel):
        return CodePriorConfig
    if isinstance(model, LatentVariableModel):
        return PriorConfig
    raise SpecError(
        f"the model {model.name} of {run} is its own prior: fit one to an ae, vae, cvae or vqvae", code="own-prior"
    )


def _check_kind(model: Model, config: PriorConfig | CodePriorConfig, run: str) -> None:
    """Refuse a prior that cannot be fitted on what the model's latents are.

    Raises:
        SpecError: saying what can.
    """
    kind, name = kind_of_prior(model, run), config.name
    known = f"choose {_listed(kind)}"
    if not isinstance(config, kind):
        over = "codes, and has real numbers" if kind is PriorConfig else "real numbers, and has codes"
        raise SpecError(
            f"the prior {name} is over {over.partition(',')[0]}, but the latents of {run} are "
            f"{'codes' if kind is CodePriorConfig else 'real numbers'}: {known}",
            code="other-latents",
        )
    if not config.fitted_after:
        raise SpecError(f"the {name} prior has nothing to fit: {known}", code="nothing-to-fit")


def _listed(kind: type[PriorConfig] | type[CodePriorConfig]) -> str:
    *most, last = (e.name for e in registry.entries(kind.part) if e.load().fitted_after)
    return f"{', '.join(most)} or {last}" if most else last


def _check(model: Model, data: Data, config: PriorConfig | CodePriorConfig, *, class_conditional: bool) -> None:
    """Refuse what else can be known to be wrong before anything is encoded."""
    conditional, kind = option("class_conditional"), config.name
    if isinstance(config, PriorConfig) and config.of_posteriors:
        if not isinstance(cast(LatentVariableModel, model).bottleneck, DiagonalGaussianModule):
            raise SpecError(
                f"a {kind} prior is made of Gaussian posteriors, which this {model.name} has not: choose another",
                code="needs-gaussian-posterior",
            )
        if model.conditional and not class_conditional:
            raise SpecError(
                f"a {kind} prior of a {model.name}, whose posteriors see labels, sees them too: give {conditional}",
                code="needs-labels",
            )
    if class_conditional and config.labels == "none":
        raise SpecError(f"the prior {kind} sees no labels: leave {conditional} out", code="sees-no-labels")
    if (class_conditional or model.conditional) and not data.schema.classes:
        what = f"leave {conditional} out" if class_conditional else "the model needs them"
        raise SpecError(f"{data.spec} has no labels: {what}", code="no-labels")
    if (class_conditional or model.conditional) and data.schema.classes != model.schema.classes:
        what = f"leave {conditional} out" if class_conditional else "give the data that it was trained on"
        raise SpecError(f"{data.spec} has other classes than the model was trained on: {what}", code="other-classes")
