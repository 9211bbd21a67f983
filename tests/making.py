"""Models and parts for tests, from options by the names of their flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessella.core.configs import CodePriorConfig, PriorConfig
from tessella.core.schema import UINT8, Schema
from tessella.data import Data
from tessella.foundation.config import hints, slots
from tessella.foundation.registry import names
from tessella.models.spec import ModelConfig
from tessella.training.fit_prior import FitResult, fit_prior


def make(model: str | Callable[..., Any], schema: Schema, **options: Any) -> Any:
    """A fresh model of that name or preset: `make("vqvae", schema, quantizer="fsq", levels=(4, 4))`.

    Components of the likelihood of 8-bit values choose the logistic one.
    """
    config = ModelConfig.chosen(model) if isinstance(model, str) else model.__wrapped__  # type: ignore[attr-defined]
    if (
        "components" in options
        and schema.values == UINT8
        and "likelihood" in slots(config)
        and not {"prior", "likelihood"} & set(options)
    ):
        options = {"likelihood": "logistic", **options}
    return config.from_options(options).build(schema)


SIZES = ("width", "depth", "flow_steps")
"""Options that are left out where a prior has none of them."""
HOW = ("options", "class_conditional", "resume", "overwrite", "changed_data")


def fit(run: Any, data: Data, name: str, **more: Any) -> FitResult:
    """Fit a prior of that name; options that are not of fitting are the prior's."""
    how = {key: more.pop(key) for key in HOW if key in more}
    kind = CodePriorConfig if name in names("code-prior") else PriorConfig
    known = hints(kind.chosen(name))
    sizes = {key: value for key, value in more.items() if key in known or key not in SIZES}
    return fit_prior(run, data, kind.chosen(name).from_options(sizes), **how)
