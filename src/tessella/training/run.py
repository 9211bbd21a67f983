"""`Run`: handle on a run folder, with its model, its data and the results of tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, final

import numpy as np
import torch

from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.device import resolve_device
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
"""Names of stored results: evaluation of a split, sample quality, inference gap."""


class StoredResult(Protocol):
    """Result of a task that can be stored as JSON."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, record: Any) -> Any:
        """Make the result from a record of `to_json`.

        Raises:
            Malformed: if the record is invalid.
        """


R = TypeVar("R", bound=StoredResult)


@dataclass(frozen=True)
class ResultsStore:
    """Stored results `results/NAME.json` of a run. A result is valid only for the weights that it was computed with.

    Args:
        run: run folder.
    """

    run: Path

    def save(self, name: str, result: StoredResult, **how: Any) -> None:
        """Save a result with its settings (seed, precision)."""
        text = json_text({**result.to_json(), **how, **self._weights()}, indent=2)
        write_atomic(place(self.run, f"results/{name}.json"), lambda path: path.write_text(text))

    def load(self, name: str, kind: type[R], **facts: Any) -> R | None:
        """Load a result if it belongs to the current weights and is not damaged. Otherwise return None.

        Args:
            facts: required values of its attributes, such as `split="test"`.
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
            note(f"{path} is ignored, because it is damaged or was edited ({error})")
            return None

    def evaluation(self, split: str) -> Evaluation | None:
        """Load the evaluation of a split."""
        return self.load(EVALUATION.format(split), Evaluation, split=split)

    def _weights(self) -> dict[str, Any]:
        """Return the identity of the current weights: the step and the prior in use."""
        step = read_header(self.run / checkpoint.MODEL).progress.get("step")
        return {"step": step, "prior": fitted_priors.prior_in_use(self.run)}


@final
class Run:
    """Handle on a run folder; files are read only on access.

    Args:
        path: run folder.
        device: default device of its model: cpu, cuda, mps, xpu, or auto (see `resolve_device`).
    """

    def __init__(self, path: str | os.PathLike[str], device: str | torch.device | None = None) -> None:
        self.path, self.device = Path(path), device

    @property
    def spec(self) -> Spec:
        """Read the specification of the model and its data.

        Raises:
            RunError: if this is not a run folder, or its specification is damaged or newer than this package.
        """
        return checkpoint.read_spec(self.path)

    def model(
        self, prior: str | None = None, device: str | torch.device | None = None, codes_used: int | None = None
    ) -> Model:
        """Load the trained model (see `load`); each call returns a new object.

        Args:
            prior, device: as in `load`.
            codes_used: number of codes of each position to use, of nested ones; None: all.
        """
        model = load(self.path, prior=prior, device=self.device if device is None else device)
        model.use_codes(codes_used)
        return model

    def data(self, spec: str | None = None, model: Model | None = None) -> Data:
        """Open the run's own data, or other data converted in the same way.

        Other data gets the size, channels, binarization and label numbers of the run's data.

        Args:
            spec: SPEC of other data; None for the run's own data.
            model: model that will read the data, if loaded; it decides whether labels are needed.

        Raises:
            DataError: if it cannot be opened, or does not fit the model.
        """
        return data_for(self.spec, spec, labelled=self._sees_labels(model))

    def own_data(self, place: str | None = None) -> Data:
        """Open the run's own data with the reading options of the training.

        Args:
            place: new SPEC of the data, if it was moved.

        Raises:
            DataError: if it cannot be opened, or does not fit the model.
        """
        return own_data(self.spec, place, labelled=checkpoint.build(self.path).conditional)

    def inputs(self, model: Model, words: Sequence[str] = (), *, data: str | None = None, **options: Any) -> Inputs:
        """Open the examples named by INPUTS, for a model of this run.

        Args:
            data: SPEC of other data for example numbers and splits; None for the run's own data.
            options: further arguments of `tessella.data.inputs.Inputs`.
        """
        options.setdefault("labelled_by", self.spec.data.get("label"))
        return Inputs(model, words, lambda spec: self.data(spec or data, model), **options)

    @property
    def results(self) -> ResultsStore:
        """Return the store of results of tasks on the run's own data."""
        return ResultsStore(self.path)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the weights, 12 hexadecimal digits."""
        return checkpoint.fingerprint(self.path)

    @property
    def prior_in_use(self) -> str | None:
        """Return kind and weight fingerprint of the fitted prior that `model` uses by default; None for its own."""
        return fitted_priors.prior_in_use(self.path)

    def prior_choice(self, kind: str | None = None) -> fitted_priors.PriorChoice:
        """Return the prior that `model(kind)` uses, and why fitted priors are not used."""
        return fitted_priors.choose_prior(self.path, kind)

    def has_prior(self, kind: str) -> bool:
        """Return whether a prior of this kind was fitted on the current weights."""
        home = fitted_priors.prior_home(self.path, kind)
        return (home / checkpoint.MODEL).is_file() and fitted_priors.read_prior_spec(home).codes == self.fingerprint

    def fit_prior(
        self,
        data: Data,
        config: PriorConfig | CodePriorConfig,
        options: TrainOptions | None = None,
        **how: Any,
    ) -> FitResult:
        """Fit a prior over the latents, and save it in the run (see `tessella.fit_prior`)."""
        from tessella.training.fit_prior import fit_prior

        return fit_prior(self.path, data, config, options, **how)

    def _sees_labels(self, model: Model | None) -> bool:
        """Return whether the model, or the prior that it uses, needs the label of each example."""
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
    """Load the trained model of a run, with averaged weights, in evaluation mode.

    Args:
        device: device of the model: cpu, cuda, mps, xpu, or auto for the best one (see `resolve_device`).
        into: model to load the weights into, if it is your own composition and not in the registry.
        prior: kind of a fitted prior, or `trained` (for codes `uniform`) for the model's own. By default the fitted
            prior with the lowest rate on the validation split; the model's own prior if no fitted one is better.

    Raises:
        RunError: if the run is missing, damaged or from a newer version, its weights do not fit its specification, or
            it has no such prior.
        SpecError: if there is no such device.
    """
    place = resolve_device(device)
    spec, header = checkpoint.read_spec(run), read_header(kept(run, checkpoint.MODEL))
    model = checkpoint.build(run, spec) if into is None else into
    load_weights(model, header, exactly=into is None)
    if model.prior_part is None:
        if prior not in (None, fitted_priors.TRAINED):
            raise RunError(
                f"the model {model.name} of {run} has no prior {prior!r}: leave out {option('prior')}",
                code="own-prior",
            )
    elif model.prior_part == "prior" and prior in registry.names("code-prior"):
        raise RunError(
            f"{run} has no codes, so it has no prior {prior!r}: leave out {option('prior')}, or train a vqvae",
            code="no-codes",
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
    """Open the data of a run, or other data converted in the same way.

    Args:
        other: SPEC of other data; None for the run's own data.
        labelled: whether each example needs a label that the model knows.

    Raises:
        DataError: if it cannot be opened, or does not fit the model.
    """
    if other is None:
        data = own_data(spec, labelled=labelled)
        if (what := data.difference(spec.data)) is not None:
            note(f"{data.spec} has changed since the run was trained on it ({what})")
        return data
    schema, options = spec.schema, _reading(spec)
    if kind_of(schema).pixels:
        options |= {"size": schema.shape[1:], "channels": schema.shape[0]}
    data = _fitting(spec, other, options, labelled=labelled)
    for line in data.notes:
        note(line)
    return data


def own_data(spec: Spec, place: str | None = None, *, labelled: bool) -> Data:
    """Open the data that a run was trained on, with the reading options of the training.

    Args:
        place: new SPEC of the data, if it was moved.

    Raises:
        DataError: if it cannot be opened, or does not fit the model.
    """
    if place is not None:
        return _fitting(spec, place, _reading(spec), labelled=labelled)
    where, asked = spec.data.get("spec"), option("data")
    if where is None:
        raise DataError(f"the run does not record the data that it was trained on: give it with {asked}", "no-data")
    try:
        return _fitting(spec, str(where), _reading(spec), labelled=labelled)
    except DataError as error:
        raise DataError(
            f"{error.message} (the run was trained on this data; if it was moved, give its new place with {asked})",
            error.code,
            **error.parameters,
        ) from error


def _reading(spec: Spec) -> dict[str, Any]:
    """Return the options that a run's data was read with."""
    return {name: value for name, value in spec.data.items() if name not in ("spec", *RECORDED)}


def _fitting(spec: Spec, place: str, options: Mapping[str, Any], *, labelled: bool) -> Data:
    """Open data that fits the model, with the model's label numbers."""
    schema, size = spec.schema, options.get("size")
    try:
        options = validation.arguments(open_data, options, "data")
    except validation.Malformed as error:
        raise DataError(f"the run's specification was edited: {error}", "edited") from error
    if size is not None and kind_of(schema).pixels and tuple(np.broadcast_to(size, 2)) != schema.shape[1:]:
        raise DataError(
            f"the run's specification was edited: the size of its data is {size}, but its model expects {_by(schema)}",
            "edited",
        )
    data = open_data(place, **options, like=schema)
    if (data.schema.shape, data.schema.values) != (schema.shape, schema.values):
        raise DataError(
            f"{data.spec} has {data.schema.values} values of shape {_by(data.schema)}, but the model expects "
            f"{schema.values} values of shape {_by(schema)}: give such data",
            "other-kind-of-data",
        )
    if not labelled or data.schema.classes == schema.classes:
        return data
    if not data.schema.classes:
        raise DataError(
            f"{data.spec} has no labels, but the model {spec.model} needs one for each example: give labelled data",
            "no-labels",
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
