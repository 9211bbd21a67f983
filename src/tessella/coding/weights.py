"""Identifies the weights that a compressed file was made with, and loads the model that has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tessella.coding.container import Container
from tessella.foundation import registry
from tessella.foundation.errors import DataError, option
from tessella.foundation.text import shown
from tessella.models.base import Model
from tessella.training.checkpoint import SPEC, fingerprint
from tessella.training.fitted_priors import TRAINED, prior_home, prior_in_use
from tessella.training.run import load


@final
@dataclass(frozen=True)
class Weights:
    """Identifies the weights that a file was made with.

    Attributes:
        run: the run folder.
        model: fingerprint of the model's weights.
        prior, prior_fingerprint: kind of prior, and fingerprint of its weights; empty for a prior without weights.
    """

    run: str
    model: str
    prior: str
    prior_fingerprint: str = ""

    @staticmethod
    def of(run: str, model: Model, prior: str | None = None) -> Weights:
        """Identify the weights of a run's model.

        Args:
            model: model loaded from that run with that prior.
            prior: kind of prior that was chosen; None: the run's best.
        """
        now = fingerprint(run)
        if not model.levels:
            return Weights(run, now, "normal")
        if not model.fitted:
            return Weights(run, now, "uniform")
        if prior is None:
            kind, _, known = (prior_in_use(Path(run)) or "uniform").partition(" ")
            return Weights(run, now, kind, known)
        return Weights(run, now, prior, fingerprint(prior_home(Path(run), prior)))


def model_for(container: Container, run: str | None = None) -> Model:
    """Load the model that a file was made with, with its prior.

    Args:
        run: the run folder; None: the one that the file names.

    Raises:
        DataError: if the run is missing, or has other weights.
    """
    header = container.header
    hinted = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(container.path)), header.run))
    if run is None and not os.path.isfile(os.path.join(hinted, SPEC)):
        raise DataError(f"{container.path} needs a run that is not at {hinted}: give its path with {option('run')}",
                        code="no-run-of-file")  # fmt: skip
    home = run or hinted
    _check_weights(container, home, fingerprint(home))
    prior = TRAINED if header.method == "bits-back" else header.prior
    if prior not in (TRAINED, *registry.names("code-prior")):
        raise DataError(
            f"{container.path} was made with the prior {shown(header.prior)}, which this version does not know: "
            "upgrade tessella",
            code="unknown-prior",
        )
    model = load(home, prior=prior)
    check(container, model, Weights.of(home, model, header.prior))
    return model


def _check_weights(container: Container, run: str, now: str) -> None:
    header = container.header
    if header.fingerprint != now:
        raise DataError(
            f"{container.path} was made by a {header.model} with the weights {header.fingerprint}, but {run} has "
            f"{now}: give the run that made it with {option('run')}",
            code="other-weights",
        )


def check(container: Container, model: Model, weights: Weights) -> None:
    """Check that a file was made with this model and this prior.

    Raises:
        DataError: if it was made with another.
    """
    header, schema = container.header, model.schema
    _check_weights(container, weights.run, weights.model)
    priors = [(header.prior, header.prior_fingerprint), (weights.prior, weights.prior_fingerprint)]
    if priors[0] != priors[1]:
        made, now = (f"{shown(kind)} {known}".strip() for kind, known in priors)
        raise DataError(
            f"{container.path} was made with the prior {made}, but {weights.run} has {now}: give the run that made it",
            code="other-prior",
        )
    wanted = "lossless" if model.levels else "bits-back"
    if (header.values, header.shape) != (schema.values.name, schema.shape) or header.method not in ("codes", wanted):
        raise DataError(
            f"{container.path} holds {header.method} of {shown(header.values)} values of shape {header.shape}, and the "
            f"model of {weights.run} has {schema.values} of shape {schema.shape}: give the run that made it with "
            f"{option('run')}",
            code="other-schema",
        )
