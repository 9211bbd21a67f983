"""`Run`: the handle on a run folder, from which tasks take the model, its data, and what was found before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, final

import numpy as np
import torch

from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.device import resolve
from tessella.core.schema import Schema
from tessella.core.tensors import load_weights, read_header
from tessella.data import Data, open_data
from tessella.data.dataset import RECORDED
from tessella.data.inputs import Inputs
from tessella.data.splits import Renumbered
from tessella.evaluation.results import Evaluation
from tessella.foundation import registry, validation
from tessella.foundation.errors import DataError, RunError, option
from tessella.foundation.files import kept, place, write_atomic
from tessella.foundation.notes import note
from tessella.foundation.text import json_text, shown
from tessella.kinds.base import kind_of
from tessella.models.base import LatentModel, Model
from tessella.models.spec import Spec, TrainOptions
from tessella.training import checkpoint, fitted_priors

if TYPE_CHECKING:
    from tessella.training.fit_prior import FitResult


EVALUATION, FIDELITY, GAP = "evaluation-{}", "fidelity", "gap"
"""Names of results: of the evaluation of a split, of samples, of the inference gap."""


class StoredResult(Protocol):
    """A record that a task returns."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, record: Any) -> Any:
        """Read what `to_json` gave.

        Raises:
            Malformed: if it is something else.
        """


R = TypeVar("R", bound=StoredResult)


@dataclass(frozen=True)
class ResultsStore:
    """`results/NAME.json` of a run: each names the weights that it is about, and is not given back for others.

    Args:
        run: the run folder.
    """

    run: Path

    def save(self, name: str, result: StoredResult, **how: Any) -> None:
        """Keep a result, with how it was made (its seed, precision)."""
        text = json_text({**result.to_json(), **how, **self._weights()}, indent=2)
        write_atomic(place(self.run, f"results/{name}.json"), lambda path: path.write_text(text))

    def load(self, name: str, kind: type[R], **facts: Any) -> R | None:
        """Read a result, if it is about the weights as they are now; a damaged one is as if it were not there.

        Args:
            facts: attributes that it must have, such as `split="test"`.
        """
        path = kept(self.run, f"results/{name}.json")
        if not path.is_file():
            return None
        try:
            record = validation.read_json(path)
            about = record if isinstance(record, dict) else {}
            if any(about.get(key) != now for key, now in self._weights().items()):
                return None
            found = kind.from_json(record)
            for fact, value in facts.items():
                if getattr(found, fact) != value:
                    raise validation.Malformed(f"its {fact} is {str(getattr(found, fact))[:40]!r}")
            return found
        except (OSError, validation.Malformed) as error:
            note(f"{path} is passed over, as it is damaged or was edited ({error})")
            return None

    def evaluation(self, split: str) -> Evaluation | None:
        """Read the evaluation of a split."""
        return self.load(EVALUATION.format(split), Evaluation, split=split)

    def _weights(self) -> dict[str, Any]:
        """What names the weights of a run as they are now: its step, and the prior over its latents."""
        step = read_header(self.run / checkpoint.MODEL).progress.get("step")
        return {"step": step, "prior": fitted_priors.prior_in_use(self.run)}


@final
class Run:
    """Handle on a run folder; nothing is read before it is asked for.

    Args:
        path: the folder.
        device: where its model runs unless another is asked for, as `tessella.core.device.resolve` takes it.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | torch.device | None = None) -> None:
        self.path, self.device = Path(path), device

    @property
    def spec(self) -> Spec:
        """What was built, on which data.

        Raises:
            RunError: if this is not a run folder, or its specification is damaged or newer than this package.
        """
        return checkpoint.read_spec(self.path)

    def model(self, prior: str | None = None, device: str | torch.device | None = None) -> Model:
        """Load the trained model, as `load` does; each call gives a model of its own."""
        return load(self.path, prior=prior, device=self.device if device is None else device)

    def data(self, spec: str | None = None, model: Model | None = None) -> Data:
        """Open the run's own data, or other data as the run's was read: same size, channels, values, label numbers.

        Args:
            spec: the SPEC of other data.
            model: the model that is to see it, if it was loaded: it needs labels if its prior sees them.

        Raises:
            DataError: if it cannot be opened, or is not what the model was made for.
        """
        return data_for(self.spec, spec, labelled=self._sees_labels(model))

    def own_data(self, place: str | None = None) -> Data:
        """Open the run's own data, read exactly as it was when training began.

        Args:
            place: where it lies now, if it was moved.

        Raises:
            DataError: as of `data`.
        """
        return own_data(self.spec, place, labelled=checkpoint.build(self.path).conditional)

    def inputs(self, model: Model, words: Sequence[str] = (), *, data: str | None = None, **options: Any) -> Inputs:
        """Read the examples that INPUTS name, for a model of this run.

        Args:
            data: the SPEC of other data that numbers and splits refer to; None: the run's own.
            options: as `tessella.data.inputs.Inputs` takes them.
        """
        return Inputs(model, words, lambda spec: self.data(spec or data, model), **options)

    @property
    def results(self) -> ResultsStore:
        """What tasks found on the run's own data."""
        return ResultsStore(self.path)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that name the weights."""
        return checkpoint.fingerprint(self.path)

    @property
    def prior_in_use(self) -> str | None:
        """The kind and the weights of the fitted prior that `model` takes by default; None: the model's own."""
        return fitted_priors.prior_in_use(self.path)

    def prior_choice(self, kind: str | None = None) -> fitted_priors.PriorChoice:
        """Say which prior `model(kind)` takes, and why fitted ones are passed over."""
        return fitted_priors.choose_prior(self.path, kind)

    def has_prior(self, kind: str) -> bool:
        """Find out whether a prior of that kind was fitted on the present weights."""
        home = fitted_priors.prior_home(self.path, kind)
        return (home / checkpoint.MODEL).is_file() and fitted_priors.read_prior_spec(home).codes == self.fingerprint

    def fit_prior(
        self,
        data: Data,
        config: PriorConfig | CodePriorConfig,
        options: TrainOptions | None = None,
        **how: Any,
    ) -> FitResult:
        """Fit a prior over the latents, and keep it in the run; as `tessella.fit_prior`."""
        from tessella.training.fit_prior import fit_prior

        return fit_prior(self.path, data, config, options, **how)

    def _sees_labels(self, model: Model | None) -> bool:
        """Whether the model needs the label of each example: by itself, or for the prior that it uses by default."""
        if model is not None:
            return model.conditional
        home = self.prior_choice().home
        by_prior = home is not None and fitted_priors.read_prior_spec(home).class_conditional
        return by_prior or checkpoint.build(self.path).conditional


def load(
    run: str | os.PathLike[str],
    *,
    device: str | torch.device | None = "cpu",
    into: Model | None = None,
    prior: str | None = None,
) -> Model:
    """Load the trained model of a run: averaged weights, evaluation mode.

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
    spec, header = checkpoint.read_spec(run), read_header(kept(run, checkpoint.MODEL))
    model = checkpoint.build(run, spec) if into is None else into
    load_weights(model, header, exactly=into is None)
    if model.prior_part is None:
        if prior not in (None, fitted_priors.TRAINED):
            raise RunError(
                f"{run} is of a {model.name}, which is its own prior, and has no other {prior!r}: leave it out",
                code="own-prior",
            )
    elif model.prior_part == "prior" and prior in registry.names("code-prior"):
        raise RunError(
            f"{run} has no codes, so no prior {prior!r} over them: leave it out, or train a vqvae", code="no-codes"
        )
    else:
        choice = fitted_priors.choose_prior(Path(run), prior)
        if choice.note:
            note(choice.note)
        if choice.home is not None:
            fitted_priors.load_prior(choice.home, cast(LatentModel, model))
    return model.to(place).eval()


# the data of a run


def data_for(spec: Spec, other: str | None = None, *, labelled: bool) -> Data:
    """Open the data of a run, or `other` data seen as the run's was: same size, channels, binarisation, label numbers.

    Args:
        other: another SPEC.
        labelled: whether each example needs a label that the model knows.

    Raises:
        DataError: if it cannot be opened, or is not what the model was made for.
    """
    if other is None:
        data = own_data(spec, labelled=labelled)
        if (what := data.difference(spec.data)) is not None:
            note(f"{data.spec} is not what the run was trained on any more ({what})")
        return data
    schema, options = spec.schema, _reading(spec)
    if kind_of(schema).pixels:
        options |= {"size": schema.shape[1:], "channels": schema.shape[0]}
    data = _fitting(spec, other, options, labelled=labelled)
    for line in data.notes:
        note(line)
    return data


def own_data(spec: Spec, place: str | None = None, *, labelled: bool) -> Data:
    """Open the data that a run was trained on, read exactly as it was then.

    Args:
        place: where it lies now, if it was moved.

    Raises:
        DataError: as of `data_for`; asking for the place if none is given.
    """
    if place is not None:
        return _fitting(spec, place, _reading(spec), labelled=labelled)
    where, asked = spec.data.get("spec"), option("data")
    if where is None:
        raise DataError(f"the run does not say what data it was trained on: give {asked}", "no-data")
    try:
        return _fitting(spec, str(where), _reading(spec), labelled=labelled)
    except DataError as error:
        raise DataError(
            f"{error.message} (this is the data that the run was trained on; say with {asked} where it lies now)",
            error.code,
            **error.parameters,
        ) from error


def _reading(spec: Spec) -> dict[str, Any]:
    """The options that a run's data was read with."""
    return {name: value for name, value in spec.data.items() if name not in ("spec", *RECORDED)}


def _fitting(spec: Spec, place: str, options: Mapping[str, Any], *, labelled: bool) -> Data:
    """Open data that fits the model, its labels numbered as the model's."""
    schema, size = spec.schema, options.get("size")
    try:
        options = validation.arguments(open_data, options, "data")
    except validation.Malformed as error:
        raise DataError(f"the run's specification was edited: {error}", "edited") from error
    if size is not None and kind_of(schema).pixels and tuple(np.broadcast_to(size, 2)) != schema.shape[1:]:
        raise DataError(
            f"the run's data has size {size}, and its model is made for {_by(schema)}: one was edited", "edited"
        )
    data = open_data(place, **options, like=schema)
    if (data.schema.shape, data.schema.values) != (schema.shape, schema.values):
        raise DataError(
            f"{data.spec} has {data.schema.values} values of shape {_by(data.schema)}, the model is made for "
            f"{schema.values} values of shape {_by(schema)}: give data of that kind",
            "other-kind-of-data",
        )
    if not labelled or data.schema.classes == schema.classes:
        return data
    if not data.schema.classes:
        raise DataError(
            f"{data.spec} has no labels, and the model {spec.model} needs one for every example", "no-labels"
        )
    unknown = [name for name in data.schema.classes if name not in schema.classes]
    if unknown:
        raise DataError(
            f"{data.spec} has classes that the model was not trained on: {', '.join(map(shown, unknown[:8]))}; "
            f"it knows {', '.join(map(shown, schema.classes[:8]))}{', ...' if len(schema.classes) > 8 else ''}",
            "unknown-classes",
            unknown=unknown,
        )
    numbers = np.array([schema.classes.index(name) for name in data.schema.classes], dtype=np.int64)
    splits = {name: Renumbered(split, numbers) for name, split in data.splits.items()}
    all_examples = data.all_examples and Renumbered(data.all_examples, numbers)
    return replace(data, schema=schema, splits=splits, all_examples=all_examples)


def _by(schema: Schema) -> str:
    return "x".join(map(str, schema.shape))
