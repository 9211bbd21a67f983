"""What x is, given its drawing: p(x | z), each a normalised distribution over the stored values.

    binary     Bernoulli
    integers   LogisticMixture, Categorical
    symbols    Categorical
    real       Gaussian, FixedGaussian

Inside, `independent.py` and `logistic.py` hold the classes, `shared.py` what they share: units, remedies, checks.
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
    """Build a likelihood for such data; by default the one that suits the stored values.

    Raises:
        SpecError: if it is not a distribution over the values.
    """
    return (config or LikelihoodConfig.chosen(schema.values.default_likelihood)()).build(schema)
