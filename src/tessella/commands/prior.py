"""`tessella fit-prior`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress

from tessella.commands.options import Flags, given_flags, with_fields, word_after
from tessella.commands.tasks import device_text, progress_bar, quoted, say
from tessella.commands.train import budget, flat, refuse_changes, resumed_options, say_verdict
from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.schema import bits_per_dim
from tessella.foundation import registry
from tessella.foundation.errors import SpecError, option
from tessella.models.spec import TrainOptions

if TYPE_CHECKING:
    from tessella.models.base import Model
    from tessella.training.fit_prior import FitResult


DEFAULT = "pixelcnn"
APART = ("training", "data", "workers", "quiet", "given", "flags")
"""What processes that fit together need not have in common."""


@dataclass(frozen=True, kw_only=True)
class FitPrior:
    """Train a prior over the latents of a trained model, which stays as it is, and keep it in the run.

    Then samples are drawn from it and it sets the rate. Of several priors the one with the lowest rate on the
    validation split is used, if it beats the model's own (of codes the uniform one), unless another is chosen with
    --prior; an autoencoder gets samples, but no bound. Ctrl-C saves; `--resume` goes on.

    Attributes:
        run: the run folder.
        kind: which prior; by default pixelcnn for codes.
        class_conditional: let it see the labels, so that samples of a class can be asked for.
        data: where the run's data lies now, if it was moved.
        resume: go on from its last checkpoint; a newly given budget replaces the old one.
        changed_data: resume although the data is not what fitting was started with.
        overwrite: replace a prior of that kind.
        quiet: print nothing but the end.
    """

    run: Positional[str]
    kind: str = DEFAULT
    class_conditional: bool = False
    data: str | None = None
    resume: bool = False
    changed_data: bool = False
    overwrite: bool = False
    quiet: bool = False
    training: OmitArgPrefixes[TrainOptions]
    given: Suppress[frozenset[str]] = frozenset()
    flags: Suppress[Flags | None] = None

    @property
    def config(self) -> PriorConfig | CodePriorConfig:
        """The options of the prior."""
        assert self.flags is not None
        return self.flags.config(self)


def prior_options(args: Sequence[str]) -> type[FitPrior]:
    """The options of a command line: those of the prior that it names.

    Raises:
        SpecError: if there is no such prior, or an option that another one has.
    """
    kind, given = word_after(args, "--kind") or DEFAULT, given_flags(args)
    made = config_class(kind)
    base = None
    if "--resume" in args and args and not args[0].startswith("-"):
        from tessella.training import checkpoint, fitted_priors

        home = fitted_priors.prior_home(Path(args[0]), kind)
        base = fitted_priors.read_prior_spec(home).config if (home / checkpoint.SPEC).is_file() else None
    flags = Flags.of(made, args, base)
    flags.check(args, FitPrior)
    return with_fields(
        FitPrior,
        {**flags.fields, "given": (Suppress[frozenset[str]], given), "flags": (Suppress[Any], flags)},
    )


def config_class(kind: str) -> type[PriorConfig] | type[CodePriorConfig]:
    """The class of the options of a prior, over codes or real numbers.

    Raises:
        SpecError: if there is none of that name.
    """
    for base in (CodePriorConfig, PriorConfig):
        if kind in registry.names(base.part):
            return base.chosen(kind)
    known = ", ".join((*registry.names("code-prior"), *registry.names("prior")))
    raise SpecError(f"no prior is called {kind!r}; there are: {known}", code="no-such-part", kind="prior", name=kind)


def run_fitting(o: FitPrior) -> int:
    if o.resume and o.overwrite:
        raise SpecError(
            f"{option('resume')} goes on with a prior and {option('overwrite')} replaces it: give one of them",
            code="resume-or-overwrite",
        )
    if o.changed_data and not o.resume:
        raise SpecError(
            f"{option('changed_data')} is for a prior that is resumed: leave it out, or give {option('resume')}",
            code="only-with-resume",
        )
    from tessella.training import checkpoint
    from tessella.training.processes import writing

    checkpoint.read_spec(o.run)
    own = {f.name: getattr(o, f.name) for f in fields(FitPrior) if f.name not in APART}
    alike = {**own, **o.config.to_record(), **asdict(o.training)}
    alike.pop("workers")
    with writing(Path(o.run), o.training, alike):
        return _fitted(o)


def _fitted(o: FitPrior) -> int:
    device = device_text(o.training.device)
    from tessella.training import fitted_priors
    from tessella.training.fit_prior import fit_prior
    from tessella.training.run import Run

    run = Run(o.run, "cpu")
    model = run.model(fitted_priors.TRAINED)

    home = fitted_priors.prior_home(run.path, o.kind)
    options, config, conditional = TrainOptions(**asdict(o.training)), o.config, o.class_conditional
    if o.resume:
        before = fitted_priors.read_prior_spec(home)
        config, conditional = before.config, before.class_conditional
        stored = {**before.training, **flat(config), "class_conditional": conditional}
        requested = {**asdict(o.training), **flat(o.config), "class_conditional": o.class_conditional}
        refuse_changes(home, stored, requested, o.given - {"kind"})
        options = resumed_options(home, before.training, o.training, o.given)
    data = run.own_data(o.data)
    if not o.quiet:
        say(f"prior    {o.kind} over the {'codes' if model.levels else 'latents'} of {o.run}")
        say(f"device   {device}")
        say(f"budget   {budget(options)}")
    with progress_bar(quiet=o.quiet):
        done = fit_prior(
            o.run,
            data,
            config,
            options,
            class_conditional=conditional,
            resume=o.resume,
            overwrite=o.overwrite,
            changed_data=o.changed_data,
        )
    if done.training.stopped == "signal":
        kind = "" if o.kind == DEFAULT else f" --kind {o.kind}"
        again = f"tessella fit-prior {quoted(o.run)}{kind} --resume"
        say(f"stopped and saved at step {done.training.steps:,}; go on with: {again}")
        return 130
    say(f"fitted for {done.training.steps:,} steps, {done.training.seconds:.0f} seconds: {home}")
    say(_saving(done, model))
    if not o.quiet:
        say_verdict(run.path, data, options)
        name = quoted(o.run)
        say(f"next: tessella sample {name}, tessella evaluate {name}, tessella report {name}")
    return 0


def _saving(done: FitResult, model: Model) -> str:
    """The rate before and after, in words."""

    def said(nats: float) -> str:
        return f"{nats:.2f} nats ({bits_per_dim(nats, model.schema.observed_dims):.3f} bits/dim)"

    own = f"the {'uniform' if done.of_codes else 'trained'} prior"
    if done.rate is None:
        paid = "" if done.rate_before is None else f"{said(done.rate_before)} under {own}; "
        trust = f"there is no validation split to measure the fitted one on, so it is taken to be better than {own}"
        return f"rate     {paid}{trust if model.has_bound else trust.partition(',')[0]}"
    if done.rate_before is None:
        return (
            f"fit      -log p(z) is {done.rate:.2f} nats on the validation split; an autoencoder's z is a point, so "
            "this is a density and no rate: it can be sampled now, and has no bound"
        )
    saved, before = done.rate_before - done.rate, done.rate_before
    much = f"{100 * abs(saved) / before:.0f} %" if before > 0 else f"{abs(saved):.2f} nats"
    line = f"rate     {said(done.rate)} on the validation split, {said(before)} under {own}: "
    if saved > 0:
        return f"{line}{much} saved"
    return (
        f"{line}{much} more, so {own} is used; it has learned too little or too much by heart: give it another budget "
        f"or size with --overwrite, or take it as it is with --prior"
    )
