"""What x is, given its drawing: p(x | z), each a normalised distribution over the stored values.

    binary   Bernoulli
    uint8    LogisticMixture, Categorical
    real     Gaussian, FixedGaussian

Inside, `independent.py` and `logistic.py` hold the classes, `shared.py` what they share: units, remedies, checks.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from tessella.core.contracts import Likelihood
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import find
from tessella.likelihoods.independent import BernoulliModule, CategoricalModule, FixedGaussianModule, GaussianModule
from tessella.likelihoods.logistic import LogisticMixtureModule

__all__ = [
    "BernoulliModule",
    "CategoricalModule",
    "FixedGaussianModule",
    "GaussianModule",
    "LogisticMixtureModule",
    "likelihood_for",
]


def likelihood_for(schema: Schema, name: str | None = None, **options: Any) -> Likelihood:
    """The likelihood of that name for such data; without a name, the one that suits the stored values.

    Args:
        schema: what the stored values are.
        name: a name of the catalogue, or None.
        options: the class's own arguments (`mixtures`, `scale`).

    Raises:
        SpecError: if there is no such name, it does not know an option, or it is not a distribution over the values.
    """
    name = name or schema.values.default_likelihood
    make = find("likelihood", name).load()
    known = [option for option in signature(make).parameters if option != "schema"]
    if unknown := [option for option in options if option not in known]:
        raise SpecError(
            f"the {name} likelihood has no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}"
        )
    return make(schema, **options)
