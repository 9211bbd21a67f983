"""Likelihoods p(x | z), each a normalised distribution over the stored values.

    binary     Bernoulli
    integers   LogisticMixture, Categorical
    symbols    Categorical
    real       Gaussian, FixedGaussian

The classes are in `independent.py`, `logistic.py` and `autoregressive.py`, shared units and checks in `shared.py`.
"""

from __future__ import annotations

from tessella.core.configs import LikelihoodConfig
from tessella.core.contracts import Likelihood
from tessella.core.schema import Schema
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


def likelihood_for(schema: Schema, config: LikelihoodConfig | None = None) -> Likelihood:
    """Build a likelihood for data of a schema.

    Args:
        schema: description of one example.
        config: options of the likelihood; None: the default likelihood of the values.

    Raises:
        SpecError: if it is not a distribution over the values.
    """
    return (config or LikelihoodConfig.chosen(schema.values.default_likelihood)()).build(schema)
