"""`tessella prior`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, Suppress, arg

from tessella.commands.shared import Where, loaded_without_prior, progress, quoted, said_of_device, say
from tessella.commands.train import budget, refuse_changes, resumed_options
from tessella.core.schema import bits_per_dim
from tessella.foundation.errors import SpecError
from tessella.models.spec import TrainOptions

if TYPE_CHECKING:
    from tessella.models.base import Model
    from tessella.training.prior_trainer import FitResult


SIZES = ("width", "depth", "components", "flow_steps", "class_conditional")
"""What a prior is made with; a resumed one keeps its own."""
APART = ("training", "data", "workers", "quiet", "given")
"""What processes that fit together need not have in common."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Fit a prior over the latents of a run and keep it in the run: it learns which codes, or numbers, go together.

    The model stays as it is. Then `sample` draws from the prior and `evaluate` pays its rate. Of several kinds the one
    with the lowest rate on the validation split is used, if it beats the model's own (of codes the uniform one), unless
    another is asked for with --prior; an autoencoder gets samples, but no bound. Ctrl-C saves; `--resume` goes on.

    Attributes:
        run: the run folder.
        kind: of a model of codes pixelcnn, transformer or masked; of an ae, vae or cvae mixture, vamp, flow or
            diffusion; `tessella list` says what they are.
        width: channels of its networks.
        depth: layers of its networks.
        components: of a mixture or vamp.
        flow_steps: of a flow.
        class_conditional: let it see the labels, so that a class can be asked of it.
        data: where the run's data lies now, if it was moved.
        resume: go on from its last checkpoint; a newly given budget replaces the old one.
        changed_data: resume although the data is not what fitting was started with.
        overwrite: replace a prior of that kind.
        quiet: print nothing but the end.
    """

    run: Positional[str]
    kind: str = "pixelcnn"
    width: int | None = None
    depth: int | None = None
    components: int | None = None
    flow_steps: int | None = None
    class_conditional: bool = False
    data: str | None = None
    resume: bool = False
    changed_data: bool = False
    overwrite: bool = False
    quiet: bool = False
    training: Annotated[TrainOptions, arg(name="")]
    given: Suppress[frozenset[str]] = frozenset()


def prior(o: Prior) -> int:
    if o.resume and o.overwrite:
        raise SpecError("--resume goes on with a prior and --overwrite replaces it: give one of them")
    if o.changed_data and not o.resume:
        raise SpecError("--changed-data is for a prior that is resumed: leave it out, or give --resume")
    from tessella.training import checkpoint
    from tessella.training.processes import writing

    checkpoint.read_spec(o.run)
    alike = {name: value for name, value in {**asdict(o), **asdict(o.training)}.items() if name not in APART}
    with writing(Path(o.run), o.training, alike):
        return _fitted(o)


def _fitted(o: Prior) -> int:
    device = said_of_device(o.training.device)
    model, run = loaded_without_prior(o.run, Where("cpu"))
    from tessella.training import fitted_priors
    from tessella.training.fit_prior import fit_prior

    home, options = fitted_priors.prior_home(run.path, o.kind), o.training
    sizes = {name: getattr(o, name) for name in SIZES}
    if o.resume:
        before = fitted_priors.read_prior_spec(home)
        sizes = {name: getattr(before, name) for name in sizes}
        minded = {**asdict(o.training), **{name: getattr(o, name) for name in SIZES}}
        refuse_changes(home, {**before.training, **sizes}, minded, o.given - {"kind"})
        options = resumed_options(home, before.training, o.training, o.given)
    data = run.own_data(o.data)
    if not o.quiet:
        say(f"prior    {o.kind} over the {'codes' if model.levels else 'latents'} of {o.run}")
        say(f"device   {device}")
        say(f"budget   {budget(options)}")
    with progress("encoding", quiet=o.quiet) as tell:
        done = fit_prior(
            o.run,
            data,
            o.kind,
            options,
            **sizes,
            resume=o.resume,
            overwrite=o.overwrite,
            changed_data=o.changed_data,
            quiet=o.quiet,
            progress=tell,
        )
    if done.training.stopped == "signal":
        kind = "" if o.kind == Prior.kind else f" --kind {o.kind}"
        again = f"tessella prior {quoted(o.run)}{kind} --resume"
        say(f"stopped and saved at step {done.training.steps:,}; go on with: {again}")
        return 130
    say(f"fitted for {done.training.steps:,} steps, {done.training.seconds:.0f} seconds: {home}")
    say(_saving(done, model))
    if not o.quiet:
        run = quoted(o.run)
        say(f"next: tessella sample {run}, tessella evaluate {run}, tessella report {run}")
    return 0


def _saving(done: FitResult, model: Model) -> str:
    """The rate before and after, in words."""

    def said(nats: float) -> str:
        return f"{nats:.2f} nats ({bits_per_dim(nats, model.schema.dims):.3f} bits/dim)"

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
