"""`tessella prior`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, Suppress, arg

from tessella.commands.shared import loaded_without_prior, progress
from tessella.commands.train import budget, refuse_changes, resumed_options
from tessella.errors import SpecError
from tessella.records import bits_per_dim
from tessella.spec import TrainOptions

if TYPE_CHECKING:
    from tessella.fitting import Fitting
    from tessella.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Fit a prior over the codes of a run and keep it in the run: it learns which codes go together.

    Then `sample` draws from it and `evaluate` pays its rate. Of several kinds the one with the lowest rate on the
    validation split is used, unless another is asked for. Ctrl-C saves; `--resume` goes on.

    Attributes:
        run: the run folder of a model of codes.
        kind: pixelcnn, transformer or masked; `tessella parts` says what they are.
        width: channels of its networks.
        depth: layers of its networks.
        class_conditional: let it see the labels, so that a class can be asked of it.
        data: where the run's data lies now, if it was moved.
        resume: go on from its last checkpoint; a newly given budget replaces the old one.
        overwrite: replace a prior of that kind.
        quiet: print nothing but the end.
    """

    run: Positional[str]
    kind: str = "pixelcnn"
    width: int | None = None
    depth: int | None = None
    class_conditional: bool = False
    data: str | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    training: Annotated[TrainOptions, arg(name="")]
    given: Suppress[frozenset[str]] = frozenset()


def prior(o: Prior) -> int:
    if o.resume and o.overwrite:
        raise SpecError("--resume goes on with a prior and --overwrite replaces it: give one of them")
    model, source = loaded_without_prior(o.run)
    from tessella import checkpoint
    from tessella.fitting import fit_prior
    from tessella.uses.look import data_for

    home, options = checkpoint.prior_home(Path(o.run), o.kind), o.training
    sizes = {"width": o.width, "depth": o.depth, "class_conditional": o.class_conditional}
    if o.resume:
        before = checkpoint.read_prior_spec(home)
        sizes = {name: getattr(before, name) for name in sizes}
        minded = {**asdict(o.training), "width": o.width, "depth": o.depth, "class_conditional": o.class_conditional}
        refuse_changes(home, {**before.training, **sizes}, minded, o.given - {"kind", "data"})
        options = resumed_options(home, before.training, o.training, o.given)
    data = data_for(model, source, o.data)
    if not o.quiet:
        print(f"prior    {o.kind} over the codes of {o.run}")
        print(f"budget   {budget(options)}", flush=True)
    with progress("encoding", quiet=o.quiet) as tell:
        done = fit_prior(
            o.run, data, o.kind, options, **sizes, resume=o.resume, overwrite=o.overwrite, quiet=o.quiet, progress=tell
        )
    if done.training.stopped == "signal":
        kind = "" if o.kind == Prior.kind else f" --kind {o.kind}"
        print(f"stopped and saved at step {done.training.steps:,}; go on with: tessella prior {o.run}{kind} --resume")
        return 130
    print(f"fitted for {done.training.steps:,} steps, {done.training.seconds:.0f} seconds: {home}")
    print(_saving(done, model))
    if not o.quiet:
        print(f"next: tessella sample {o.run}, tessella evaluate {o.run}, tessella report {o.run}")
    return 0


def _saving(done: Fitting, model: Model) -> str:
    """The rate before and after, in words."""
    uniform = f"{done.rate_uniform:.2f} nats ({bits_per_dim(done.rate_uniform, model.schema.dims):.3f} bits/dim)"
    if done.rate is None:
        return f"rate     {uniform} under the uniform prior; there is no validation split to measure the fitted one on"
    fitted = f"{done.rate:.2f} nats ({bits_per_dim(done.rate, model.schema.dims):.3f} bits/dim)"
    share = 100 * (1 - done.rate / done.rate_uniform)
    worse = "" if share > 0 else "; it has learned too little or too much by heart: give it another budget or size"
    return f"rate     {fitted} on the validation split, {uniform} under the uniform prior: {share:.0f} % saved{worse}"
